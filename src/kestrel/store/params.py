"""Parameters of tasks in the SQLite store: 256 tasks a row, encoded, with a bounded cache of decoded rows.

Called by `kestrel.store.tables` on the writer thread, inside its transactions. After a rollback the
cache must be dropped (`forget`), for it may hold what was never stored.
"""

from __future__ import annotations

import sqlite3
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

import msgspec

CHUNK_TASKS = 256
"""Tasks whose parameters share a row. Part of the file's format: never change it without a migration."""

Chunk = list[list[str]]

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Chunk).decode


class ParamChunks:
    """The table `params`."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        insert_rows: Callable[[str, Sequence[Sequence[object]]], None],
        cache_bytes_max: int,
    ) -> None:
        self._connection = connection
        self._insert_rows = insert_rows
        self._cache_bytes_max = cache_bytes_max
        self._cache: OrderedDict[tuple[int, int], tuple[Chunk, int]] = OrderedDict()
        self._cached_bytes = 0

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
        self._insert_rows("INSERT OR REPLACE INTO params (job, chunk, body)", rows)

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
            rows = self._connection.execute(
                "SELECT chunk, body FROM params WHERE job = ? AND chunk IN (SELECT value FROM json_each(?))",
                (job, msgspec.json.encode(missing).decode()),
            )
            for number, body in rows.fetchall():
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
