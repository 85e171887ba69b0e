"""What happened lately, so that each task's story can be told: one entry per assignment or report.

Bounded by entries and by the tasks that they name. Never holds reports or anything large. Written by
`books`, `outcomes` and `dispatch`; read by `explain` and by the invariant check.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from kestrel.core.model import AttemptId, JobId, TaskIndex, WorkerId


@dataclass(frozen=True, slots=True)
class Entry:
    """Something that happened to these tasks of a job (None: to the whole job)."""

    at: float
    job: JobId
    tasks: Sequence[TaskIndex] | None
    what: str
    worker: WorkerId = ""
    attempt: AttemptId = 0
    """Of the first task, when attempts are consecutive."""
    consecutive: bool = False


class Story:
    """The newest entries, oldest first."""

    def __init__(self, length: int, tasks_max: int) -> None:
        self._entries: deque[Entry] = deque()
        self._length = length
        self._tasks_max = tasks_max
        self._tasks = 0

    def add(self, entry: Entry) -> None:
        """Remember it, and forget the oldest where there is no more room."""
        self._entries.append(entry)
        self._tasks += _weight(entry)
        while len(self._entries) > self._length or (self._tasks > self._tasks_max and len(self._entries) > 1):
            self._tasks -= _weight(self._entries.popleft())

    def __len__(self) -> int:
        return len(self._entries)

    def tell(self, job: JobId, task: TaskIndex | None, now: float | None = None) -> list[str]:
        """What is remembered of a task (None: of the job as a whole), oldest first, one line each.

        Times are ages when `now` is given, else the clock's readings. Not cheap: looks at every entry.
        """
        lines = []
        for entry in self._entries:
            if entry.job == job and (entry.tasks is None or (task is not None and task in entry.tasks)):
                lines.append(_line(entry, task, now))
        return lines


def _weight(entry: Entry) -> int:
    return 0 if entry.tasks is None or isinstance(entry.tasks, range) else len(entry.tasks)


def _line(entry: Entry, task: TaskIndex | None, now: float | None) -> str:
    when = f"{now - entry.at:.3g} s ago" if now is not None else f"at {entry.at:.3f}"
    words = [f"{when}: {entry.what}"]
    if entry.attempt and task is not None and entry.tasks is not None:
        place = entry.tasks.index(task) if entry.consecutive else 0
        words.append(f"as attempt {entry.attempt + place}")
    if entry.worker:
        words.append(f"on {entry.worker}" if entry.attempt else f"by {entry.worker}")
    return " ".join(words)
