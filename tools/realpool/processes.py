"""One process that is started, read, struck and ended by pid.

A thread keeps what it prints, with the time of each line, so that whoever waits for a line waits for the
line and not for a guess. Never names a process by a pattern. Called by `realpool.pool` and by tests.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

END_S_MAX = 10.0
"""How long a process may take to end in order before it is killed."""
PAUSE_S = 0.02
LINES_KEPT = 1000
LOG_BYTES_SHOWN = 3000


def now() -> float:
    """Seconds since the machine started: the time that shell scripts read in /proc/uptime."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Hung(Exception):
    """Something did not happen in the time it may take; the text says what, and what was seen instead."""


def until(
    question: Callable[[], bool], what: str, patience_s: float, *, seen: Callable[[], str] = str
) -> None:
    """Ask again until the answer is yes. Raises `Hung`."""
    end = time.monotonic() + patience_s
    pause = threading.Event()
    while not question():
        if time.monotonic() > end:
            raise Hung(f"in {patience_s:g} s this did not happen: {what}\n{seen()}")
        pause.wait(PAUSE_S)


def tree(pid: int) -> list[int]:
    """The process and all that descend from it, parents first."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(") ")[2].split()
                children.setdefault(int(fields[1]), []).append(int(entry))
    found = [pid]
    for each in found:
        found += children.get(each, ())
    return found


def send(pid: int, number: signal.Signals) -> None:
    """A signal to a process that may have ended meanwhile."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def state_of(pid: int) -> str:
    """The letter that the kernel has for it (`R`, `S`, `T` …); empty: there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[0]
    except OSError:
        return ""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of standard output, and when it was read (`now`)."""

    at: float
    text: str


class Process:
    """One command that stays; may be started again after its end. Logs of all its lives go to one file."""

    def __init__(
        self, name: str, argv: Sequence[str], *, env: dict[str, str], directory: Path, log: Path
    ) -> None:
        self.name = name
        self.argv = list(argv)
        self.lines: list[Line] = []
        """What its lives have printed, the latest `LINES_KEPT`."""
        self.started = 0.0
        self.stopped: list[int] = []
        """Pids that are held by SIGSTOP."""
        self._env = env
        self._directory = directory
        self._log = log
        self._popen: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    def start(self) -> None:
        """One more life."""
        assert not self.running, f"{self.name} runs already"
        self._read_to_the_end()
        self.started = now()
        with self._log.open("a") as log:
            self._popen = popen = subprocess.Popen(
                self.argv,
                env=self._env,
                cwd=self._directory,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self._reader = threading.Thread(target=self._read, args=(popen,), name=f"lines of {self.name}")
        self._reader.start()

    def _read(self, popen: subprocess.Popen[str]) -> None:
        assert popen.stdout is not None
        with popen.stdout:
            for text in popen.stdout:
                self.lines.append(Line(now(), text.rstrip("\n")))
                del self.lines[:-LINES_KEPT]

    @property
    def pid(self) -> int:
        assert self._popen is not None, f"{self.name} was never started"
        return self._popen.pid

    @property
    def running(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    @property
    def exit_code(self) -> int | None:
        """Of the last life; negative: the signal that killed it; None: it runs."""
        return None if self._popen is None else self._popen.poll()

    def line(self, part: str, *, since: float = 0.0) -> Line | None:
        """The latest line with this text in it that was read after `since`."""
        found = [line for line in list(self.lines) if part in line.text and line.at >= since]
        return found[-1] if found else None

    def wait_for(self, part: str, patience_s: float, *, since: float | None = None) -> Line:
        """The first line with this text in it, of this life or after `since`. Raises `Hung`."""
        begin = self.started if since is None else since

        def found() -> bool:
            if self.line(part, since=begin) is not None:
                return True
            if not self.running:
                raise Hung(f"{self.name} ended ({self.exit_code}) instead of printing {part!r}\n{self.log()}")
            return False

        until(found, f"{self.name} prints {part!r}", patience_s, seen=self.log)
        return next(line for line in list(self.lines) if part in line.text and line.at >= begin)

    def log(self) -> str:
        """The end of what it wrote on standard error."""
        text = self._log.read_text(errors="replace") if self._log.exists() else ""
        return text[-LOG_BYTES_SHOWN:]

    # --- what may happen to it ------------------------------------------------------------------------

    def kill(self) -> None:
        """`kill -9` of this process alone; what it started must see to itself."""
        assert self._popen is not None
        self.stopped.clear()
        send(self._popen.pid, signal.SIGKILL)
        self._popen.wait()

    def hold(self) -> None:
        """SIGSTOP for it and all that it started, as when a machine goes to sleep."""
        self.stopped = []
        for pid in tree(self.pid):
            send(pid, signal.SIGSTOP)
            self.stopped.append(pid)

    def go_on(self) -> None:
        """SIGCONT for all that was held."""
        for pid in reversed(self.stopped):
            send(pid, signal.SIGCONT)
        self.stopped = []

    def ask_to_end(self) -> None:
        """SIGTERM."""
        self.go_on()
        if self.running:
            send(self.pid, signal.SIGTERM)

    def end(self, patience_s: float = END_S_MAX) -> bool:
        """Have it end in order; False: it had to be killed."""
        self.ask_to_end()
        in_order = True
        if self._popen is not None:
            try:
                self._popen.wait(patience_s)
            except subprocess.TimeoutExpired:
                self.kill()
                in_order = False
        self._read_to_the_end()
        return in_order

    def _read_to_the_end(self) -> None:
        if self._reader is not None:
            self._reader.join(END_S_MAX)
            self._reader = None

    def describe(self) -> str:
        """One line for a report of what hangs."""
        if self._popen is None:
            return f"{self.name}: never started"
        state = f"state {state_of(self.pid)}" if self.running else f"ended with {self.exit_code}"
        last = self.lines[-1].text if self.lines else "nothing"
        return f"{self.name}: pid {self.pid}, {state}, last line: {last}"
