"""Finished attempts on disk until the manager has stored them (law 3).

An append-only journal of JSON lines: `{"life": n}` at the start of each life of the worker, the
report of each finished attempt, `{"forget": [attempt, …]}` for what was acknowledged. A line is
written before anything is told, so it survives `kill -9` of the worker (with `fsync` a power cut, too).
A lock keeps a second worker out of the directory. `MemorySpool` is for the simulator.

Called by the worker's agent. Never decides what is kept.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Protocol

import msgspec

from kestrel.core.execution_events import Finished
from kestrel.errors import EnvironmentProblem
from kestrel.protocol.codec import wire_size
from kestrel.protocol.messages import AttemptReport

log = logging.getLogger(__name__)

_report = msgspec.json.Decoder(AttemptReport)
_line = msgspec.json.Decoder(dict[str, Any])


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


class FileSpool:
    """The spool in a directory. Raises `EnvironmentProblem` if the directory is in use or unusable."""

    def __init__(
        self,
        directory: Path,
        *,
        fsync: bool = False,
        bytes_max: int = 256 * 1024 * 1024,
        slack_bytes: int = 4 * 2**20,
    ) -> None:
        """`bytes_max`: the journal never grows beyond it. `slack_bytes`: rewritten when it holds so much
        that is no longer needed."""
        self._directory = directory
        self._path = directory / "finished.journal"
        self._fsync = fsync
        self._bytes_max = bytes_max
        self._slack_bytes = slack_bytes
        self._kept: dict[int, bytes] = {}
        self._live_bytes = 0
        self._head_bytes = 0
        self._size = 0
        self._file: io.FileIO
        self.restored: Sequence[Finished]
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = _locked(directory / "lock")
        except OSError as problem:
            raise _problem(directory, problem) from None
        try:
            last_life, self.restored = self._load()
            self.life = last_life + 1
            self._rewrite()
        except OSError as problem:
            self._lock.close()
            raise _problem(self._path, problem) from None

    def close(self) -> None:
        """Release files and lock. What is kept stays on disk."""
        self._file.close()
        self._lock.close()

    def keep(self, finished: Sequence[Finished]) -> None:
        lines = b"".join(f.body + b"\n" for f in finished)
        if self._size + len(lines) > self._bytes_max:
            self._rewritten()
        if self._size + len(lines) > self._bytes_max:
            raise EnvironmentProblem(
                f"the spool {self._path} is full ({self._size} bytes, at most {self._bytes_max})",
                hint="is the manager gone for long? Results are kept in memory only now",
            )
        self._append(lines)
        for f in finished:
            self._kept[f.attempt] = f.body
            self._live_bytes += len(f.body) + 1

    def forget(self, attempts: Sequence[int]) -> None:
        known = [attempt for attempt in attempts if attempt in self._kept]
        for attempt in known:
            self._live_bytes -= len(self._kept.pop(attempt)) + 1
        if not self._kept:
            self._cleared()
        elif self._size > 2 * self._live_bytes + self._slack_bytes:
            self._rewritten()
        elif known:
            self._append(msgspec.json.encode({"forget": known}) + b"\n")

    # ----------------------------------------------------------------------------------------------

    def _append(self, lines: bytes) -> None:
        try:
            written = self._file.write(lines)
            if written != len(lines):
                raise OSError(28, "No space left on device")
            if self._fsync:
                os.fsync(self._file.fileno())
        except OSError as problem:
            try:
                self._file.truncate(self._size)  # no half line may stand before the next one
            except OSError as second:
                log.error("spool_truncate_failed", extra={"path": str(self._path), "problem": str(second)})
            raise _problem(self._path, problem) from None
        self._size += len(lines)

    def _cleared(self) -> None:
        """Nothing is kept: only the first line stays."""
        try:
            self._file.truncate(self._head_bytes)
        except OSError as problem:
            raise _problem(self._path, problem) from None
        self._size = self._head_bytes

    def _rewritten(self) -> None:
        """Rewrite in place of the old journal; if that is impossible, go on with the old one."""
        old = self._file
        try:
            self._rewrite()
        except OSError as problem:
            raise _problem(self._path, problem) from None
        old.close()

    def _rewrite(self) -> None:
        head = msgspec.json.encode({"life": self.life}) + b"\n"
        self._head_bytes = len(head)
        new = self._path.with_suffix(".new")
        content = head + b"".join(body + b"\n" for body in self._kept.values())
        with open(new, "wb") as file:
            file.write(content)
            file.flush()
            if self._fsync:
                os.fsync(file.fileno())
        os.replace(new, self._path)
        self._file = io.FileIO(self._path, "ab")
        self._size = len(content)

    def _load(self) -> tuple[int, list[Finished]]:
        life = 0
        found: dict[int, Finished] = {}
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return 0, []
        lines = content.split(b"\n")
        if lines.pop():
            log.warning("spool_torn_record", extra={"path": str(self._path)})
        for number, line in enumerate(lines, 1):
            try:
                if line.startswith((b'{"life"', b'{"forget"')):
                    fields = _line.decode(line)
                    life = max(life, int(fields.get("life", 0)))
                    for attempt in fields.get("forget", ()):
                        found.pop(attempt, None)
                else:
                    r = _report.decode(line)
                    found[r.attempt] = Finished(r.job, r.task, r.attempt, line, wire_size(line) + 1)
            except (msgspec.MsgspecError, UnicodeDecodeError, TypeError, ValueError) as problem:
                log.error(
                    "spool_bad_record", extra={"path": str(self._path), "line": number, "text": str(problem)}
                )
        self._kept = {f.attempt: f.body for f in found.values()}
        self._live_bytes = sum(len(body) + 1 for body in self._kept.values())
        return life, list(found.values())


def _locked(path: Path) -> IO[str]:
    """The lock file, locked; raises `EnvironmentProblem` if somebody else has it."""
    file = open(path, "a+", encoding="ascii")  # noqa: SIM115 (held until the spool is closed)
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.seek(0)
    except OSError:
        holder = "" if sys.platform == "win32" else path.read_text(encoding="ascii").strip()
        file.close()
        raise EnvironmentProblem(
            f"the spool {path.parent} is in use by another worker{f' (process {holder})' if holder else ''}",
            hint="give each worker a directory of its own (--dir), or stop the other one",
            code="in_use",
        ) from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def _problem(path: Path, problem: OSError) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"cannot write the spool {path}: {problem.strerror or problem}",
        hint="free some space, mend the permissions, or choose another directory with --dir",
        retry=True,
    )
