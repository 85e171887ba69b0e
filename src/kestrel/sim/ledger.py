"""What really happened on the simulated machines: every run of every task, seen from outside.

Nothing of Kestrel writes here or reads from here; the simulated launcher writes, the checkers read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

TaskKey = tuple[str, int]
"""Name of the script that the task runs, and the task's index."""


class RunEnd(Enum):
    """How a run ended."""

    EXITED = "exited"
    STOPPED = "stopped"
    TIMED_OUT = "timed out"
    KILLED = "killed"
    """With its worker or launcher."""


@dataclass(slots=True)
class Run:
    """One process that ran one task."""

    key: TaskKey
    attempt: int
    host: str
    started: float
    bad: bool = False
    """On a machine that failed everything at that time."""
    ended: float | None = None
    end: RunEnd | None = None
    exit_code: int | None = None

    @property
    def succeeded(self) -> bool:
        return self.end is RunEnd.EXITED and self.exit_code == 0


class Ledger:
    """All runs, in the order in which they started."""

    def __init__(self) -> None:
        self.runs: list[Run] = []
        self.by_attempt: dict[int, list[Run]] = defaultdict(list)
        self.by_task: dict[TaskKey, list[Run]] = defaultdict(list)
        self.not_found: dict[TaskKey, set[int]] = defaultdict(set)
        """Attempts that could not be started, for their command does not exist."""
        self.on_start: Callable[[Run], None] | None = None
        """Called with each run as it starts."""

    def failing(self, key: TaskKey) -> int:
        """How many attempts of a task failed by themselves: with an exit code, by their time limit, or
        because there was nothing to start."""
        ends = (RunEnd.EXITED, RunEnd.TIMED_OUT)
        failed = {r.attempt for r in self.by_task[key] if r.end in ends and not r.succeeded}
        return len(failed | self.not_found[key])

    def start(self, now: float, key: TaskKey, attempt: int, host: str, bad: bool = False) -> Run:
        """A process was started."""
        run = Run(key, attempt, host, now, bad)
        self.runs.append(run)
        self.by_attempt[attempt].append(run)
        self.by_task[key].append(run)
        if self.on_start is not None:
            self.on_start(run)
        return run

    def end(self, now: float, run: Run, end: RunEnd, exit_code: int | None = None) -> None:
        """A process has ended."""
        run.ended, run.end, run.exit_code = now, end, exit_code
