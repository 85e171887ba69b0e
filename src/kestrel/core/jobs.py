"""Jobs and what is in them: a byte per task, counters, a queue, and objects for running tasks only.

Pure data with the moves that keep it consistent; decides nothing. Used by the other modules of core.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from kestrel.core.model import (
    COUNTED_MAX,
    AttemptId,
    JobCounts,
    JobId,
    JobState,
    JobTerms,
    TaskIndex,
    TaskState,
    WorkerId,
)
from kestrel.core.ranking import Ranking

if TYPE_CHECKING:
    from kestrel.core.pool import Worker
    from kestrel.core.signatures import Owner, Signature

QUEUED: Final = int(TaskState.QUEUED)
RUNNING: Final = int(TaskState.RUNNING)
COMPLETED: Final = int(TaskState.COMPLETED)
CANCELLED: Final = int(TaskState.CANCELLED)
REQUEUED: Final = 7
"""In the bytes only: queued again after an attempt. To everybody outside it is QUEUED."""

STATES: Final[tuple[TaskState, ...]] = (*TaskState, TaskState.QUEUED)
"""Byte → state."""

_QUEUED_RUNS = re.compile(rb"[\x00\x07]+")
_CANCELLING = bytes(CANCELLED if b in (QUEUED, REQUEUED) else b for b in range(256))

UNIT: Final = 1_000_000
"""One slot's worth of load, as an integer, so that sums stay exact."""
TASK_S_MIN: Final = 1e-4
"""No task is taken to be shorter: a worker needs as long to start one."""
DURATION_WEIGHT: Final = 0.1
"""Weight of one more duration in the moving average."""


class User:
    """Whose jobs they are; `load` is the share of slots that his tasks take up, in units."""

    __slots__ = ("jobs", "kind", "load", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.load = 0
        self.jobs = 0
        self.kind: frozenset[Owner] = frozenset()
        """Owners, among those that take not everybody's jobs, who take his. Kept by `matching`."""


class Attempt(Struct, eq=False):
    """A task in a worker's hand. `void`: nobody waits for it any more, but the worker has not said so.
    `unwelcome`: the worker's owner does not take it any more, and the worker was told to stop it."""

    id: AttemptId
    job: Job
    task: TaskIndex
    worker: Worker
    void: bool = False
    unwelcome: bool = False


class Mark:
    """What is unusual about a task; most tasks never have one."""

    __slots__ = (
        "blamed",
        "cancelling",
        "counted",
        "failures",
        "given_out",
        "losses",
        "spent",
        "superseded",
        "twins",
    )

    def __init__(self, failures: int = 0, losses: int = 0) -> None:
        self.failures = failures
        self.losses = losses
        self.given_out = False
        """A worker has it, or had it in an earlier epoch; kept only if it must not run twice."""
        self.blamed: WorkerId = ""
        """The worker that got it as a probe, and failed it."""
        self.cancelling = False
        self.superseded: dict[tuple[AttemptId, WorkerId], bool] = {}
        """Lost with their workers, oldest first; whether that is in `losses`. Late results still count."""
        self.twins: list[Attempt] = []
        """Live attempts beside the one in `Job.running`: workers that came back with it."""
        self.counted: tuple[AttemptId, ...] = ()
        """As in `Trouble`; stored with the counters."""
        self.spent: list[AttemptId] = []
        """Attempts of earlier epochs whose end was told in this one, whatever it was."""

    def count(self, attempt: AttemptId) -> None:
        """The end of this attempt was dealt with, and the task goes on."""
        self.counted = (*self.counted, attempt)[-COUNTED_MAX:]

    def has_ended(self, attempt: AttemptId) -> bool:
        """Whether the end of this attempt was told before."""
        return attempt in self.counted or attempt in self.spent


class Job:
    """A bag of tasks. `last_seq` results are recorded, so it equals the number of terminal tasks."""

    __slots__ = (
        "_back",
        "_cursor",
        "_front",
        "acquitted",
        "cancelled",
        "counts",
        "ended",
        "failures",
        "id",
        "in_hand",
        "last_seq",
        "lenders",
        "listed",
        "lookahead_s",
        "marks",
        "open",
        "reruns",
        "revokes",
        "running",
        "samples",
        "settling",
        "signature",
        "states",
        "suspects",
        "task_s",
        "terms",
        "unit",
        "user",
    )

    def __init__(
        self, job: JobId, terms: JobTerms, states: bytearray, user: User, lookahead_s: float
    ) -> None:
        self.id = job
        self.terms = terms
        self.user = user
        self.states = states
        self.counts = [0] * len(TaskState)
        self.counts[QUEUED] = len(states)
        self.open = False
        self.cancelled = False
        self.ended: JobState | None = None
        self.settling = False
        """Waits for workers to come back after a restart of the manager."""
        self.last_seq = 0
        self.reruns = 0
        self.signature: Signature
        self.listed = False
        """Is among the candidates of its signature."""
        self.marks: dict[TaskIndex, Mark] = {}
        self.running: dict[TaskIndex, Attempt] = {}
        self.in_hand = 0
        """Attempts in workers' hands, the void ones too."""
        self.lenders: Ranking[Worker] = Ranking()
        """Workers that may have unstarted tasks of this job, by upper bounds of how many (negated)."""
        self.revokes = 0
        """Revocations that workers have not answered yet."""
        self.failures = 0
        """Failed attempts, as far as credible witnesses tell of them (`quarantine`)."""
        self.suspects: dict[Worker, None] = {}
        """Workers that are held back until others have said what they make of this job."""
        self.acquitted = False
        """All who had its tasks failed them: nobody is held back for it before somebody completes one."""
        self.lookahead_s = lookahead_s
        self.task_s = 0.0
        """Moving average of the time a task takes; 0 until the first is reported."""
        self.samples = 0
        self.unit = UNIT * terms.slots
        """The load that one task is for a worker: a worker's full hand adds up to its slots."""
        self._cursor = 0
        self._front: OrderedDict[TaskIndex, None] = OrderedDict()
        self._back: OrderedDict[TaskIndex, None] = OrderedDict()

    @property
    def size(self) -> int:
        return len(self.states)

    @property
    def queued(self) -> int:
        return self.counts[QUEUED]

    def state(self, task: TaskIndex) -> TaskState:
        """State of a task as the world knows it."""
        return STATES[self.states[task]]

    def counts_view(self) -> JobCounts:
        """How many tasks are in which state; a copy."""
        return JobCounts(*self.counts)

    def mark(self, task: TaskIndex) -> Mark:
        """The task's mark; made if it had none."""
        mark = self.marks.get(task)
        if mark is None:
            mark = self.marks[task] = Mark()
        return mark

    def wants_cancel(self, task: TaskIndex) -> bool:
        """Whether a task that runs is to end as cancelled."""
        if self.cancelled:
            return True
        mark = self.marks.get(task)
        return mark is not None and mark.cancelling

    # --- size and durations ---------------------------------------------------------------------------

    def extend(self, count: int) -> None:
        """More tasks at the end."""
        self.states.extend(bytes(count))
        self.counts[QUEUED] += count

    def note_durations(self, count: int, total_s: float, ahead_max: int) -> None:
        """Learn from `count` tasks that took `total_s` together how much work a task is.

        How many tasks may wait in a worker for each that runs is the look-ahead over the duration, but
        no more than have been measured: a first impression is not trusted with thousands of tasks.
        """
        mean_s = total_s / count
        if self.samples:
            self.task_s += (mean_s - self.task_s) * (1.0 - (1.0 - DURATION_WEIGHT) ** count)
        else:
            self.task_s = mean_s
        self.samples += count
        ahead = 0
        if self.terms.restart:
            ahead = min(int(self.lookahead_s / max(self.task_s, TASK_S_MIN)), self.samples, ahead_max)
        unit = UNIT * self.terms.slots // (1 + ahead)
        if unit != self.unit:
            self.user.load += self.in_hand * (unit - self.unit)
            self.unit = unit

    # --- the queue ------------------------------------------------------------------------------------
    # First what came back from lost workers (`_front`), then fresh tasks (bytes from `_cursor` on that
    # are QUEUED), then what failed and is tried again (`_back`).

    def take(self, count: int) -> Sequence[TaskIndex]:
        """The next `count` queued tasks, at most; they are RUNNING from now on."""
        states = self.states
        taken: list[TaskIndex] = []
        while self._front and len(taken) < count:
            taken.append(self._front.popitem(last=False)[0])
        want = count - len(taken)
        start = states.find(QUEUED, self._cursor) if want else -1
        if want and start < 0:
            self._cursor = len(states)
        if start >= 0:
            stop = min(start + want, len(states))
            if states.count(QUEUED, start, stop) == stop - start:
                states[start:stop] = b"\x01" * (stop - start)
                self._cursor = stop
                if not taken and stop - start == want:
                    self._count_taken(want)
                    return range(start, stop)
                taken.extend(range(start, stop))
            else:
                self._take_scattered(taken, start, want)
        while self._back and len(taken) < count:
            taken.append(self._back.popitem(last=False)[0])
        for task in taken:
            states[task] = RUNNING
        self._count_taken(len(taken))
        return taken

    def _take_scattered(self, taken: list[TaskIndex], start: int, want: int) -> None:
        states = self.states
        while start >= 0 and want:
            taken.append(start)
            self._cursor = start + 1
            want -= 1
            start = states.find(QUEUED, start + 1)

    def _count_taken(self, count: int) -> None:
        self.counts[QUEUED] -= count
        self.counts[RUNNING] += count

    def requeue(self, task: TaskIndex, *, front: bool) -> None:
        """A running task is queued again."""
        self.states[task] = REQUEUED
        self.counts[RUNNING] -= 1
        self.counts[QUEUED] += 1
        if front:
            self._front[task] = None
            self._front.move_to_end(task, last=False)
        else:
            self._back[task] = None

    def leave_queue(self, task: TaskIndex, state: TaskState) -> None:
        """A queued task goes straight into `state`: adopted, finished by a late result, or cancelled."""
        if self.states[task] == REQUEUED and self._front.pop(task, self) is self:
            del self._back[task]
        self.states[task] = state
        self.counts[QUEUED] -= 1
        self.counts[state] += 1

    def cancel_queued(self) -> list[tuple[int, int]]:
        """Cancel everything that is queued: the ranges [start, stop) of it, ascending."""
        if not self.counts[QUEUED]:
            return []
        ranges = [match.span() for match in _QUEUED_RUNS.finditer(self.states)]
        self.states = self.states.translate(_CANCELLING)
        self.counts[CANCELLED] += self.counts[QUEUED]
        self.counts[QUEUED] = 0
        self._front.clear()
        self._back.clear()
        self._cursor = len(self.states)
        return ranges

    def tasks_before(self, task: TaskIndex) -> int:
        """How many queued tasks of the job will be taken before this queued one. Not cheap."""
        for waiting, before in ((self._front, 0), (self._back, len(self._front))):
            if task in waiting:
                fresh = 0 if waiting is self._front else self.states.count(QUEUED)
                return before + fresh + next(i for i, t in enumerate(waiting) if t == task)
        return len(self._front) + self.states.count(QUEUED, 0, task)

    def queue_faults(self) -> list[str]:
        """What is wrong with the queue, for the invariant check."""
        faults = []
        waiting = [*self._front, *self._back]
        if len(set(waiting)) != len(waiting):
            faults.append("a task is twice in the queue")
        marked = {i for i, byte in enumerate(self.states) if byte == REQUEUED}
        if set(waiting) != marked:
            faults.append(f"queued again {sorted(waiting)}, but the bytes say {sorted(marked)}")
        lost = self.states.find(QUEUED, 0, self._cursor)
        if lost >= 0:
            faults.append(f"task {lost} is queued, but before the cursor {self._cursor}")
        return faults
