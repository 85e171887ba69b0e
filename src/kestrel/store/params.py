"""Parameters of tasks in a database: 256 tasks a row, encoded, with a bounded cache of decoded rows.

Called on the writer thread of the SQLite or the PostgreSQL store, inside its transactions. After a rollback
the cache must be dropped (`forget`), for it may hold what was never stored.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Sequence

import msgspec

CHUNK_TASKS = 256
"""Tasks whose parameters share a row. Part of the file's format: never change it without a migration."""

Chunk = list[list[str]]

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Chunk).decode


class ParamChunks(ABC):
    """The table `params`."""

    def __init__(self, cache_bytes_max: int) -> None:
        self._cache_bytes_max = cache_bytes_max
        self._cache: OrderedDict[tuple[int, int], tuple[Chunk, int]] = OrderedDict()
        self._cached_bytes = 0

    @abstractmethod
    def _fetch(self, job: int, numbers: Sequence[int]) -> Iterable[tuple[int, bytes]]:
        """The stored ones of these chunks of the job, as (number, body)."""

    @abstractmethod
    def _save(self, rows: Sequence[tuple[int, int, bytes]]) -> None:
        """Store chunks as (job, number, body), in place of those that are there."""

    def append(self, job: int, offset: int, params: Sequence[Sequence[str]]) -> None:
        """Store the parameters of tasks `offset` …; `offset` is the size of the job so far."""
        if not params:
            return
        number, inside = divmod(offset, CHUNK_TASKS)
        head: Chunk = []
        if inside:
            kept = self._chunk(job, number)
            head = kept + [[] for _ in range(inside - len(kept))]
        rows: list[tuple[int, int, bytes]] = []
        taken = 0
        while taken < len(params):
            part = params[taken : taken + CHUNK_TASKS - len(head)]
            rows.append((job, number, _encode([*head, *part])))
            self._drop(job, number)
            taken += len(part)
            number += 1
            head = []
        self._save(rows)

    def get(self, job: int, tasks: Iterable[int]) -> list[list[str]]:
        """Parameters of these tasks, in the same order; empty where none were given."""
        wanted = list(tasks)
        chunks = self._load(job, {task // CHUNK_TASKS for task in wanted})
        found = []
        for task in wanted:
            chunk = chunks[task // CHUNK_TASKS]
            inside = task % CHUNK_TASKS
            found.append(chunk[inside] if inside < len(chunk) else [])
        return found

    def forget(self) -> None:
        """Empty the cache."""
        self._cache.clear()
        self._cached_bytes = 0

    def _chunk(self, job: int, number: int) -> Chunk:
        return self._load(job, {number})[number]

    def _load(self, job: int, numbers: set[int]) -> dict[int, Chunk]:
        chunks: dict[int, Chunk] = {}
        missing = []
        for number in numbers:
            cached = self._cache.get((job, number))
            if cached is None:
                missing.append(number)
            else:
                self._cache.move_to_end((job, number))
                chunks[number] = cached[0]
        if missing:
            for number, body in self._fetch(job, missing):
                chunks[number] = _decode(body)
                self._keep(job, number, chunks[number], len(body))
            for number in missing:
                chunks.setdefault(number, [])
        return chunks

    def _keep(self, job: int, number: int, chunk: Chunk, size: int) -> None:
        self._cache[job, number] = (chunk, size)
        self._cached_bytes += size
        while self._cached_bytes > self._cache_bytes_max:
            _, (_, dropped) = self._cache.popitem(last=False)
            self._cached_bytes -= dropped

    def _drop(self, job: int, number: int) -> None:
        cached = self._cache.pop((job, number), None)
        if cached is not None:
            self._cached_bytes -= cached[1]
