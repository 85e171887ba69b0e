"""Gets hold of what each ended task wrote, and hands it to the printer as the user wants to see it.

Short output came with the result; the rest is fetched from the worker through the manager, as bytes,
small output of many tasks at once, large output piece by piece. Called by `run`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from kestrel.cli import run_outcome as outcome
from kestrel.cli.output import Output, plain
from kestrel.cli.run_feed import Selection
from kestrel.cli.run_print import Tagger, TaskPrinter
from kestrel.client import Client
from kestrel.client.client import RequestError
from kestrel.protocol import messages as m

FETCHES_AT_ONCE = 16
WHOLE_BYTES_MAX = 65_536
"""Output up to this length is fetched as a whole, many tasks at once; longer output in pieces."""
READY_BYTES_MAX = 2**20
"""Text that is collected before it is printed."""
JSON_TEXT_BYTES_MAX = 2**20
"""Output in a JSON record; of longer output the end is shown."""

Texts = tuple[bytes, bytes]
"""Standard output and standard error."""


class TaskTexts:
    """`write` prints what the printer has ready; `log_host`: what the job log calls the machine,
    `worker` for the name of each task's worker, empty if there is no log."""

    def __init__(
        self,
        client: Client,
        output: Output,
        selection: Selection,
        printer: TaskPrinter,
        write: Callable[[], Awaitable[None]],
        *,
        tag: bool,
        log_host: str,
    ) -> None:
        self._client = client
        self._output = output
        self._selection = selection
        self._printer = printer
        self._write = write
        self._tag = tag
        self._log_host = log_host

    async def whole(self, job: int, results: Sequence[m.TaskResult]) -> list[Texts | None]:
        """What each of these wrote; None if that is too much to be kept, or the task was cancelled."""
        found: list[Texts | None] = []
        missing: list[int] = []
        for i, result in enumerate(results):
            if result.state == "CANCELLED":
                found.append(None)
            elif _is_whole(result.out, result.out_bytes) and _is_whole(result.err, result.err_bytes):
                found.append((result.out.encode(), result.err.encode()))
            else:
                found.append(None)
                if max(result.out_bytes, result.err_bytes) <= WHOLE_BYTES_MAX:
                    missing.append(i)
        if missing:
            fetched = await asyncio.gather(*(self._both(job, results[i], WHOLE_BYTES_MAX) for i in missing))
            for i, texts in zip(missing, fetched, strict=True):
                found[i] = texts
        return found

    async def print(self, job: int, result: m.TaskResult, texts: Texts | None) -> None:
        """One task has ended; `texts` is what it wrote, None if that has to be fetched in pieces."""
        seq = self._selection.seq(result.task)
        words = self._selection.own_words(result.params)
        in_json = self._output.mode == "json"
        command = self._selection.command_text(words, seq - 1) if in_json or self._log_host else ""
        if in_json:
            out, err = texts or await self._both(job, result, JSON_TEXT_BYTES_MAX)
            record = outcome.record_of(result, seq, words, command, out, err)
            self._printer.part(result.task, msgspec.json.encode(plain(record)) + b"\n")
        elif texts is not None:
            for err_stream, text in ((False, texts[0]), (True, texts[1])):
                if text:
                    self._part(result.task, self._tagger(words), text, err_stream)
        else:
            await self._print_pieces(job, result, words)
        entry = None
        if self._log_host:
            host = result.worker if self._log_host == "worker" else self._log_host
            entry = outcome.log_entry(result, seq, host, command)
        self._printer.end(result.task, entry)

    async def _print_pieces(self, job: int, result: m.TaskResult, words: Sequence[str]) -> None:
        for stream, tail, size in (
            ("stdout", result.out, result.out_bytes),
            ("stderr", result.err, result.err_bytes),
        ):
            err, tagger = stream == "stderr", self._tagger(words)
            if _is_whole(tail, size):
                self._part(result.task, tagger, tail.encode(), err)
                continue
            got = 0
            try:
                async for piece in self._client.output(job, result.task, stream):
                    got += len(piece)
                    self._part(result.task, tagger, piece, err)
                    if self._printer.ready_bytes > READY_BYTES_MAX:
                        await self._write()
            except RequestError as problem:
                self._only_tail(result, stream, problem)
                # What came is printed already; of the rest there is at most what the tail holds.
                left = min(max(0, size - got), len(tail.encode()))
                self._part(result.task, tagger, tail.encode()[-left:] if left else b"", err)

    async def _both(self, job: int, result: m.TaskResult, size_max: int) -> Texts:
        out = await self._fetched(job, result, "stdout", result.out, result.out_bytes, size_max)
        err = await self._fetched(job, result, "stderr", result.err, result.err_bytes, size_max)
        return out, err

    async def _fetched(
        self, job: int, result: m.TaskResult, stream: str, tail: str, size: int, size_max: int
    ) -> bytes:
        """The stream as a whole, or its tail if it is longer than `size_max` or its worker is gone."""
        if _is_whole(tail, size) or size > size_max:
            return tail.encode()
        try:
            return b"".join([piece async for piece in self._client.output(job, result.task, stream)])
        except RequestError as problem:
            self._only_tail(result, stream, problem)
            return tail.encode()

    def _only_tail(self, result: m.TaskResult, stream: str, problem: RequestError) -> None:
        name = "standard error" if stream == "stderr" else "standard output"
        seq = self._selection.seq(result.task)
        self._output.warn(f"task {seq}: not all of its {name} could be had: {problem.text}")

    def _tagger(self, words: Sequence[str]) -> Tagger | None:
        return Tagger(" ".join(words).encode() + b"\t") if self._tag else None

    def _part(self, index: int, tagger: Tagger | None, data: bytes, err: bool) -> None:
        self._printer.part(index, tagger.feed(data) if tagger else data, err=err)


def _is_whole(tail: str, size: int) -> bool:
    """Whether the text of a report is exactly the stream's bytes."""
    if not tail:
        return not size
    return (len(tail) if tail.isascii() else len(tail.encode())) == size and "\ufffd" not in tail
