"""GNU parallel's job log: one line per ended task, written as results come, and read to resume.

Tab-separated, with a head line: Seq Host Starttime JobRuntime Send Receive Exitval Signal Command.
The file is only ever added to, and whoever dies while writing leaves at most one torn line, which
the next run removes. Tasks that were cancelled are not logged: they are to be run again.
Called by `run`.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from kestrel.errors import EnvironmentProblem, UsageError
from kestrel.protocol.messages import TASKS_PER_JOB_MAX

HEAD = "Seq\tHost\tStarttime\tJobRuntime\tSend\tReceive\tExitval\tSignal\tCommand"
_COLUMNS = HEAD.count("\t") + 1
_MASK = 2**64 - 1


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One line. `seq` counts from 1."""

    seq: int
    host: str
    started: float
    """Unix time."""
    wall_s: float
    received: int
    """Bytes of standard output."""
    exit_code: int
    """-1 if its time was up, as GNU parallel has it."""
    signal: int
    command: str

    def line(self) -> str:
        """The line, with its end."""
        return (
            f"{self.seq}\t{self.host}\t{self.started:.3f}\t{self.wall_s:10.3f}\t0\t{self.received}"
            f"\t{self.exit_code}\t{self.signal}\t{one_line(self.command)}\n"
        )


class LoggedTasks:
    """Which tasks a log knows, how they ended, and a fingerprint of their commands: 9 bytes a task."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.count = 0
        self._commands = array("Q")
        self._failed = bytearray()

    def add(self, seq: int, command: str, *, failed: bool) -> None:
        """A later line about the same task replaces the earlier one."""
        if seq > len(self._commands):
            missing = max(seq - len(self._commands), len(self._commands) // 8, 1024)
            self._commands.frombytes(bytes(8 * missing))
            self._failed.extend(bytes(missing))
        self.count += not self._commands[seq - 1]
        self._commands[seq - 1] = _fingerprint(command)
        self._failed[seq - 1] = failed

    def is_done(self, seq: int, command: str, *, also_failed: bool) -> bool:
        """Whether the task needs no other run; raises `UsageError` if the log is about another command."""
        if seq > len(self._commands) or not self._commands[seq - 1]:
            return False
        if self._commands[seq - 1] != _fingerprint(one_line(command)):
            raise UsageError(
                f"the job log {self.name} is about another command: task {seq} is now {command[:200]!r}",
                hint="resume with the same command and arguments, or choose another --joblog",
                code="other_joblog",
            )
        return also_failed or not self._failed[seq - 1]


class JobLog:
    """A log that is being written. One writer at a time."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self._file = file

    @classmethod
    def create(cls, path: Path) -> JobLog:
        """A new log; an old one of this name is replaced, as GNU parallel does without --resume."""
        try:
            file = open(path, "wb")  # noqa: SIM115 (closed by `close`)
            log = cls(path, file)
            log._write((HEAD + "\n").encode())
        except OSError as problem:
            raise _cannot(path, "write", problem) from None
        return log

    @classmethod
    def resume(cls, path: Path) -> tuple[JobLog, LoggedTasks]:
        """What the log knows, and the log to go on with; a log that does not exist is a new one."""
        try:
            logged, whole = _read(path)
        except FileNotFoundError:
            return cls.create(path), LoggedTasks(str(path))
        except OSError as problem:
            raise _cannot(path, "read", problem) from None
        if not whole:
            return cls.create(path), logged
        try:
            os.truncate(path, whole)
            return cls(path, open(path, "ab")), logged
        except OSError as problem:
            raise _cannot(path, "write", problem) from None

    def add(self, entries: Iterable[LogEntry]) -> None:
        """Write these lines at once, and hand them to the operating system."""
        try:
            self._write("".join(entry.line() for entry in entries).encode("utf-8", "replace"))
        except OSError as problem:
            raise _cannot(self.path, "write", problem) from None

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._file.flush()

    def close(self) -> None:
        """All is written already."""
        self._file.close()


def one_line(command: str) -> str:
    """The command as a line of the log holds it."""
    return (
        command.replace("\n", "\\n").replace("\r", "\\r") if "\n" in command or "\r" in command else command
    )


def _read(path: Path) -> tuple[LoggedTasks, int]:
    """All whole lines, and how many bytes they have."""
    logged = LoggedTasks(str(path))
    whole = 0
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            if not raw.endswith(b"\n"):
                break
            line = raw[:-1].decode("utf-8", "replace")
            if number == 1:
                if line != HEAD:
                    raise _bad_line(path, number, "this is not the head of a job log")
            else:
                _read_line(logged, path, number, line)
            whole += len(raw)
    return logged, whole


def _read_line(logged: LoggedTasks, path: Path, number: int, line: str) -> None:
    fields = line.split("\t", _COLUMNS - 1)
    if len(fields) < _COLUMNS:
        raise _bad_line(path, number, f"{len(fields)} fields instead of {_COLUMNS}")
    try:
        seq, exit_code, signal = int(fields[0]), int(fields[6]), int(fields[7])
    except ValueError as problem:
        raise _bad_line(path, number, str(problem)) from None
    if not 1 <= seq <= TASKS_PER_JOB_MAX:
        raise _bad_line(path, number, f"there cannot be a task {seq}")
    logged.add(seq, fields[8], failed=bool(exit_code or signal))


def _bad_line(path: Path, number: int, what: str) -> UsageError:
    return UsageError(
        f"{path}:{number}: {what}",
        hint="--resume needs a job log that `kestrel run --joblog` or GNU parallel wrote",
        code="bad_joblog",
    )


def _cannot(path: Path, verb: str, problem: OSError) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"cannot {verb} the job log {path}: {problem.strerror or problem}",
        hint="choose another file with --joblog, or mend its permissions or the disk",
    )


def _fingerprint(command: str) -> int:
    """Never 0. Good within this process only."""
    return hash(command) & _MASK or 1
