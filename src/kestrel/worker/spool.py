"""Finished attempts on disk until the manager has stored them (law 3).

An append-only journal of lines with checksums (`journal`): `{"life": n}` at the start of each life of the
worker, the report of each finished attempt, `{"forget": [attempt, …]}` for what was acknowledged. A line
is written before anything is told, so it survives `kill -9` of the worker (with `fsync` a power cut, too).
A damaged journal costs the damaged lines and no others, and says which they are. A lock keeps a second
worker out of the directory. `MemorySpool` is for the simulator.

Called by the worker's `keeping`. Never decides what is kept.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Protocol

import msgspec

from kestrel.core.execution_events import Finished
from kestrel.errors import EnvironmentProblem
from kestrel.locks import lock_file
from kestrel.protocol.codec import wire_size
from kestrel.protocol.messages import AttemptReport
from kestrel.worker.journal import OVERHEAD_BYTES, line_of, read_lines

log = logging.getLogger(__name__)

SPOOL_BYTES_MAX = 256 * 1024 * 1024
"""Largest journal. What an agent keeps in memory is bounded by less, so that this is never what fails."""
ROOM_BYTES = 64 * 1024
"""So much must fit before a spool that failed is said to work again."""

ROOM_BYTES_MIN = 2**20
"""With less left on its disk a worker starts nothing: what tasks write goes there, too, and would be cut."""

_report = msgspec.json.Decoder(AttemptReport)


class _Note(msgspec.Struct, frozen=True):
    """A line that is no report."""

    life: Annotated[int, msgspec.Meta(ge=0, le=2**22)] = 0
    forget: list[int] = msgspec.field(default_factory=list)


_note = msgspec.json.Decoder(_Note)


class Spool(Protocol):
    """What the agent needs of a spool."""

    life: int
    """Number of this life of the worker: greater than all before it."""
    restored: Sequence[Finished]
    """What was kept when the spool was opened, oldest first."""

    def keep(self, finished: Sequence[Finished]) -> None:
        """Write these. Raises `EnvironmentProblem`; then they are not kept, and nothing is damaged."""
        ...

    def forget(self, attempts: Sequence[int]) -> None:
        """These are stored elsewhere. Raises `EnvironmentProblem`; then some may be reported again."""
        ...

    def check(self) -> None:
        """Try whether something could be kept, with room to spare. Raises `EnvironmentProblem` if not."""
        ...

    def check_room(self) -> None:
        """Look whether there is room to spare; cheap. Raises `EnvironmentProblem` if not."""
        ...


class MemorySpool:
    """A spool that outlives the agent, not the process."""

    def __init__(self) -> None:
        self.life = 0
        self.kept: dict[int, Finished] = {}
        self.restored: Sequence[Finished] = ()
        self.reopen()

    def reopen(self) -> None:
        """A new life of the worker with the same spool."""
        self.life += 1
        self.restored = tuple(self.kept.values())

    def keep(self, finished: Sequence[Finished]) -> None:
        self.kept.update((f.attempt, f) for f in finished)

    def forget(self, attempts: Sequence[int]) -> None:
        for attempt in attempts:
            self.kept.pop(attempt, None)

    def check(self) -> None:
        self.keep(())

    def check_room(self) -> None:
        """Memory has room."""


class FileSpool:
    """The spool in a directory. Raises `EnvironmentProblem` if the directory is in use or unusable."""

    def __init__(
        self,
        directory: Path,
        *,
        fsync: bool = False,
        bytes_max: int = SPOOL_BYTES_MAX,
        slack_bytes: int = 4 * 2**20,
    ) -> None:
        """`bytes_max`: the journal never grows beyond it. `slack_bytes`: rewritten when it holds so much
        that is no longer needed."""
        self._path = directory / "finished.journal"
        self._life_path = directory / "life"
        self._fsync = fsync
        self._bytes_max = bytes_max
        self._slack_bytes = slack_bytes
        self._kept: dict[int, bytes] = {}
        self._live_bytes = 0
        self._unforgotten: list[int] = []
        """Forgotten here, and not yet in the journal."""
        self._head_bytes = 0
        self._size = 0
        self._torn = False
        """Behind `_size` there is something in the file that has to go first."""
        self._file: io.FileIO
        self.restored: Sequence[Finished]
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = lock_file(directory / "lock", lambda holder: _in_use(directory, holder))
        except OSError as problem:
            raise _problem(directory, problem) from None
        try:
            last_life, self.restored = self._load()
            self.life = max(last_life, self._life_elsewhere()) + 1
            self._rewrite()
            self._write_life()
        except OSError as problem:
            self._lock.close()
            raise _problem(self._path, problem) from None
        except BaseException:
            self._lock.close()
            raise

    def close(self) -> None:
        """Release files and lock. What is kept stays on disk."""
        self._file.close()
        self._lock.close()

    def keep(self, finished: Sequence[Finished]) -> None:
        self._append(b"".join([line_of(f.body) for f in finished]))
        for f in finished:
            self._kept[f.attempt] = f.body
            self._live_bytes += len(f.body) + OVERHEAD_BYTES

    def forget(self, attempts: Sequence[int]) -> None:
        known = [attempt for attempt in attempts if attempt in self._kept]
        for attempt in known:
            self._live_bytes -= len(self._kept.pop(attempt)) + OVERHEAD_BYTES
        self._unforgotten += known
        if not self._kept:
            self._cleared()
        elif self._size > 2 * self._live_bytes + self._slack_bytes:
            self._rewritten()
        elif self._unforgotten:
            self._append(line_of(msgspec.json.encode({"forget": self._unforgotten})))
            self._unforgotten = []

    def check_room(self) -> None:
        try:
            disk = shutil.disk_usage(self._path.parent)
        except OSError as problem:
            raise _problem(self._path, problem) from None
        if disk.free < ROOM_BYTES_MIN <= disk.total:
            raise EnvironmentProblem(
                f"{disk.free / 2**20:.1f} MiB are left on the disk of {self._path.parent}",
                hint=f"free some space: below {ROOM_BYTES_MIN / 2**20:g} MiB no task is started",
                retry=True,
            )

    def check(self) -> None:
        self.check_room()
        before = self._size
        room = b" " * min(ROOM_BYTES, self._bytes_max // 16)
        self._append(line_of(b'{"forget":[]%b}' % room))
        self._torn = True
        self._size = before
        self._mend()

    # ----------------------------------------------------------------------------------------------

    def _append(self, lines: bytes) -> None:
        """Write whole lines, or nothing."""
        if self._torn:
            self._mend()
        if self._size + len(lines) > self._bytes_max and self._size > self._head_bytes + self._live_bytes:
            self._rewritten()
        if self._size + len(lines) > self._bytes_max:
            raise EnvironmentProblem(
                f"the spool {self._path} is full ({self._size} bytes, at most {self._bytes_max})",
                hint="is the manager gone for long? The worker goes on when it has taken some results",
                retry=True,
            )
        try:
            written = self._file.write(lines)
            if written != len(lines):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if self._fsync:
                os.fsync(self._file.fileno())
        except OSError as problem:
            self._torn = True  # no half line may stand before the next one
            try:
                self._mend()
            except EnvironmentProblem as second:
                log.error("spool_truncate_failed", extra={"path": str(self._path), "problem": second.text})
            raise _problem(self._path, problem) from None
        self._size += len(lines)

    def _mend(self) -> None:
        """Cut off what stands behind the last whole line."""
        try:
            self._file.truncate(self._size)
        except OSError as problem:
            raise _problem(self._path, problem) from None
        self._torn = False

    def _cleared(self) -> None:
        """Nothing is kept: only the first line stays."""
        self._size = self._head_bytes
        self._torn = True
        self._mend()
        self._unforgotten = []

    def _rewritten(self) -> None:
        """Rewrite in place of the old journal; if that is impossible, go on with the old one."""
        old = self._file
        try:
            self._rewrite()
        except OSError as problem:
            raise _problem(self._path, problem) from None
        old.close()

    def _rewrite(self) -> None:
        head = line_of(msgspec.json.encode({"life": self.life}))
        new = self._path.with_suffix(".new")
        size = len(head)
        try:
            with open(new, "wb", opener=_open_private) as file:
                file.write(head)
                for body in self._kept.values():
                    size += file.write(line_of(body))
                file.flush()
                if self._fsync:
                    os.fsync(file.fileno())
            os.replace(new, self._path)
        except OSError:
            new.unlink(missing_ok=True)  # where there is little room, that takes none
            raise
        self._head_bytes = len(head)
        self._file = io.FileIO(self._path, "ab")
        self._size = size
        self._torn = False
        self._unforgotten = []

    def _load(self) -> tuple[int, list[Finished]]:
        """The last life, and what it kept. What cannot be read is left out and named in the log."""
        life = 0
        found: dict[int, Finished] = {}
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return 0, []
        texts, damage = read_lines(content)
        for d in damage:
            where = {"path": str(self._path), "line": d.line, "offset": d.offset, "bytes": d.size}
            if d.torn and not d.saved:
                log.warning("spool_torn_record", extra=where)
            else:
                words = "results that stood there are lost; their tasks are run again"
                log.error("spool_damaged", extra=where | {"saved": d.saved, "text": words})
        for text in texts:
            try:
                if text.startswith((b'{"life"', b'{"forget"')):
                    fields = _note.decode(text)
                    life = max(life, fields.life)
                    for attempt in fields.forget:
                        found.pop(attempt, None)
                else:
                    r = _report.decode(text)
                    found[r.attempt] = Finished(r.job, r.task, r.attempt, text, wire_size(text) + 1)
            except (msgspec.MsgspecError, UnicodeDecodeError) as problem:
                log.error(
                    "spool_unknown_record",
                    extra={"path": str(self._path), "record": text[:200].decode(errors="replace")}
                    | {"text": str(problem)},
                )
        self._kept = {f.attempt: f.body for f in found.values()}
        self._live_bytes = sum(len(body) + OVERHEAD_BYTES for body in self._kept.values())
        return life, list(found.values())

    def _life_elsewhere(self) -> int:
        """The last life by its own small file: a number used twice could acknowledge what nobody stored."""
        try:
            return int(self._life_path.read_text(encoding="ascii"))
        except (FileNotFoundError, ValueError):
            return 0

    def _write_life(self) -> None:
        new = self._life_path.with_suffix(".new")
        new.write_text(f"{self.life}\n", encoding="ascii")
        os.replace(new, self._life_path)


def _in_use(directory: Path, holder: str) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"the spool {directory} is in use by another worker{f' (process {holder})' if holder else ''}",
        hint="give each worker a directory of its own (--dir), or stop the other one",
        code="in_use",
    )


def _open_private(path: str, flags: int) -> int:
    """For its owner only: ends of outputs are in it, and the directory may be one that others can enter."""
    return os.open(path, flags, 0o600)


def _problem(path: Path, problem: OSError) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"cannot write the spool {path}: {problem.strerror or problem}",
        hint="free some space, mend the permissions, or choose another directory with --dir",
        retry=True,
    )
