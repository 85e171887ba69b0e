"""What tasks wrote, task by task: as they end, or in the order of the input; tagged if that is wanted.

Collects what may be printed now; text that has to wait for its turn is kept in memory up to a bound
and beyond it in a temporary file. Prints nothing itself but in `write_all`, which blocks and is
called on a thread. Called by `run`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO

from kestrel.cli.joblog import LogEntry
from kestrel.cli.output import Output
from kestrel.errors import EnvironmentProblem

HELD_BYTES_MAX = 64 * 2**20
"""Text in memory that waits for its turn; more goes to a temporary file."""
COPY_BYTES = 65_536


class Tagger:
    """Puts a tag before every line of a stream that comes in pieces."""

    def __init__(self, tag: bytes) -> None:
        self._tag = tag
        self._at_start = True

    def feed(self, data: bytes) -> bytes:
        """The piece with its tags."""
        if not data:
            return data
        head = self._tag if self._at_start else b""
        self._at_start = data.endswith(b"\n")
        body = data[:-1] if self._at_start else data
        return head + body.replace(b"\n", b"\n" + self._tag) + (b"\n" if self._at_start else b"")


@dataclass(frozen=True, slots=True)
class _Spilled:
    """A piece of the temporary file."""

    offset: int
    size: int


@dataclass(slots=True)
class _Held:
    """A task whose turn has not come."""

    pieces: list[tuple[bool, bytes | _Spilled]] = field(default_factory=list)
    entry: LogEntry | None = None


class TaskPrinter:
    """Takes the tasks one after the other: `part` any number of times, then `end`."""

    def __init__(self, *, keep_order: bool = False, held_bytes_max: int = HELD_BYTES_MAX) -> None:
        self.printed = 0
        """Tasks that are out of our hands, or will be with the next `write_all`."""
        self.logged: list[LogEntry] = []
        """Log entries of tasks released since this was emptied last."""
        self.ready_bytes = 0
        self._keep_order = keep_order
        self._held_bytes_max = held_bytes_max
        self._ready: list[tuple[bool, bytes | _Spilled]] = []
        self._held: dict[int, _Held] = {}
        self._held_bytes = 0
        self._spill: IO[bytes] | None = None
        self._spill_end = 0

    @property
    def has_ready(self) -> bool:
        """Whether there is anything for `write_all`."""
        return bool(self._ready)

    @property
    def ready_for_terminal(self) -> bool:
        """Whether any of it goes to standard error."""
        return any(err for err, _ in self._ready)

    def part(self, index: int, data: bytes, *, err: bool = False) -> None:
        """A piece of what task `index` wrote. May block shortly on a disk."""
        if not data:
            return
        if not self._keep_order or index == self.printed:
            self._ready.append((err, data))
            self.ready_bytes += len(data)
            return
        held = self._held.setdefault(index, _Held())
        if self._held_bytes + len(data) <= self._held_bytes_max:
            self._held_bytes += len(data)
            held.pieces.append((err, data))
        else:
            held.pieces.append((err, self._spilled(data)))

    def end(self, index: int, entry: LogEntry | None = None) -> None:
        """Task `index` has ended; `entry` is to be logged once it is printed."""
        if not self._keep_order:
            self.printed += 1
            self._log(entry)
            return
        if index != self.printed:
            self._held.setdefault(index, _Held()).entry = entry
            return
        self.printed += 1
        self._log(entry)
        while (held := self._held.pop(self.printed, None)) is not None:
            self._release(held)

    def release_all(self) -> None:
        """No more will come: what waited is printed in order, over the gaps."""
        for index in sorted(self._held):
            self._release(self._held.pop(index))

    def write_all(self, output: Output) -> None:
        """Print what may be printed. Blocks. Raises `BrokenPipeError`, `EnvironmentProblem`."""
        ready, self._ready, self.ready_bytes = self._ready, [], 0
        try:
            for err, piece in ready:
                if isinstance(piece, bytes):
                    output.write(piece, err=err)
                else:
                    for data in self._unspilled(piece):
                        output.write(data, err=err)
            output.flush()
        except BrokenPipeError:
            raise
        except OSError as problem:
            raise EnvironmentProblem(
                f"cannot write what the tasks printed: {problem.strerror or problem}",
                hint="is the disk full? With --joblog FILE a later --resume goes on from here",
            ) from None
        if not self._held and self._spill is not None:
            self._spill.truncate(0)
            self._spill_end = 0

    def close(self) -> None:
        """Drop what was not printed."""
        if self._spill is not None:
            self._spill.close()

    def _release(self, held: _Held) -> None:
        for _, piece in held.pieces:
            if isinstance(piece, bytes):
                self._held_bytes -= len(piece)
                self.ready_bytes += len(piece)
        self._ready += held.pieces
        self.printed += 1
        self._log(held.entry)

    def _log(self, entry: LogEntry | None) -> None:
        if entry is not None:
            self.logged.append(entry)

    def _spilled(self, data: bytes) -> _Spilled:
        try:
            if self._spill is None:
                self._spill = tempfile.TemporaryFile(prefix="kestrel-", buffering=0)  # noqa: SIM115
            self._spill.seek(self._spill_end)
            written = 0
            while written < len(data):
                written += self._spill.write(data[written:])
        except OSError as problem:
            raise EnvironmentProblem(
                f"cannot keep output that waits for its turn in {tempfile.gettempdir()}: "
                f"{problem.strerror or problem}",
                hint="set TMPDIR to a directory with room, or run without --keep-order",
            ) from None
        piece = _Spilled(self._spill_end, len(data))
        self._spill_end += len(data)
        return piece

    def _unspilled(self, piece: _Spilled) -> Iterator[bytes]:
        assert self._spill is not None
        self._spill.seek(piece.offset)
        left = piece.size
        while left:
            data = self._spill.read(min(left, COPY_BYTES))
            if not data:
                raise EOFError("the temporary file for output became shorter")
            left -= len(data)
            yield data
