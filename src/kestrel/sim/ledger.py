"""What really happened on the simulated machines: every run of every task, seen from outside.

Nothing of Kestrel writes here or reads from here; the simulated launcher writes, the checkers read.
"""

from __future__ import annotations

from collections import defaultdict
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

    def start(self, now: float, key: TaskKey, attempt: int, host: str) -> Run:
        """A process was started."""
        run = Run(key, attempt, host, now)
        self.runs.append(run)
        self.by_attempt[attempt].append(run)
        self.by_task[key].append(run)
        return run

    def end(self, now: float, run: Run, end: RunEnd, exit_code: int | None = None) -> None:
        """A process has ended."""
        run.ended, run.end, run.exit_code = now, end, exit_code
