"""The scheduler's whole state, and the moves of one task that keep all of its indices in step.

Every change of a task's state goes through here (the fast path of `outcomes` for plain successes
excepted, which does the same in bulk). Used by `outcomes`, `dispatch` and `scheduler`; never by shells.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from kestrel.core import effects as fx
from kestrel.core.jobs import CANCELLED, QUEUED, REQUEUED, RUNNING, Attempt, Job, User
from kestrel.core.matching import Matching
from kestrel.core.model import (
    AttemptId,
    JobId,
    JobState,
    JobTerms,
    SchedulerSettings,
    TaskIndex,
    TaskState,
    WorkerId,
    first_attempt,
)
from kestrel.core.pool import Pool, Worker
from kestrel.core.quarantine import Quarantine
from kestrel.core.settling import Settling
from kestrel.core.story import Entry, Story


@dataclass(slots=True)
class Strays:
    """Reports that did not come from the attempt that was waited for, counted since the start."""

    late: int = 0
    """Counted all the same: the first result, from a worker that had been given up or an earlier epoch."""
    duplicates: int = 0
    """Ignored: the task had its result already, its job is gone, or this attempt had told its end before."""
    refused: int = 0
    """Ignored: that worker never had that attempt of that task, as far as is remembered."""


class Books:
    """All that the scheduler knows."""

    def __init__(self, settings: SchedulerSettings, epoch: int) -> None:
        self.settings = settings
        self.first_attempt = first_attempt(epoch)
        self.next_attempt = self.first_attempt
        self.now = 0.0
        self.matching = Matching()
        self.pool = Pool(settings, self.matching)
        self.jobs: dict[JobId, Job] = {}
        self.users: dict[str, User] = {}
        self.story = Story(settings.story_length, settings.story_tasks_max)
        self.strays = Strays()
        self.touched: dict[Job, None] = {}
        """Jobs that changed since the last dispatch."""
        self.settling = Settling(settings.settle_s)
        self.quarantine = Quarantine(self)
        self.effects: list[fx.Effect] = []

    def add_job(self, job_id: JobId, terms: JobTerms, states: bytearray) -> Job:
        """Open the books of a job; all of `states` are taken as queued."""
        user = self.users.get(terms.user)
        if user is None:
            user = self.users[terms.user] = User(terms.user)
        user.jobs += 1
        job = Job(job_id, terms, states, user, self.settings.lookahead_s)
        self.jobs[job_id] = job
        self.matching.add_job(job)
        self.touched[job] = None
        return job

    def forget_job(self, job: Job) -> None:
        """Close the books of a job that has ended."""
        del self.jobs[job.id]
        self.touched.pop(job, None)
        job.user.jobs -= 1
        if not job.user.jobs:
            del self.users[job.user.name]

    def tell(
        self,
        job: JobId,
        tasks: Sequence[TaskIndex] | None,
        what: str,
        worker: WorkerId = "",
        attempt: AttemptId = 0,
    ) -> None:
        """An entry for the story."""
        self.story.add(Entry(self.now, job, tasks, what, worker, attempt))

    # --- attempts -------------------------------------------------------------------------------------

    def detach(self, attempt: Attempt) -> None:
        """The attempt works for its task no more; a twin, if there is one, takes its place."""
        job, task = attempt.job, attempt.task
        mark = job.marks.get(task)
        if job.running.get(task) is attempt:
            if mark is not None and mark.twins:
                job.running[task] = mark.twins.pop(0)
            else:
                del job.running[task]
        elif mark is not None:
            mark.twins = [twin for twin in mark.twins if twin is not attempt]

    def stop(self, attempts: Iterable[Attempt]) -> None:
        """Have these stopped, in one message per worker."""
        by_worker: dict[WorkerId, list[AttemptId]] = {}
        for attempt in attempts:
            by_worker.setdefault(attempt.worker.id, []).append(attempt.id)
        for worker, ids in by_worker.items():
            self.effects.append(fx.StopAttempts(worker, ids))

    def adopt(self, worker: Worker, job: Job, task: TaskIndex, attempt_id: AttemptId) -> Attempt:
        """A worker has this attempt in hand: the task runs there, or there too."""
        attempt = Attempt(attempt_id, job, task, worker)
        worker.put(attempt)
        self.touched[job] = None
        if job.states[task] in (QUEUED, REQUEUED):
            job.leave_queue(task, TaskState.RUNNING)
            job.running[task] = attempt
        else:
            job.mark(task).twins.append(attempt)
        return attempt

    # --- ends -----------------------------------------------------------------------------------------

    def finish(
        self,
        job: Job,
        task: TaskIndex,
        state: TaskState,
        attempt: AttemptId,
        worker: WorkerId,
        report: Any = None,
        reason: str = "",
    ) -> None:
        """The task has its result. Whoever else still works for it is told to stop."""
        others: list[Attempt] = []
        if job.states[task] == RUNNING:
            current = job.running.pop(task, None)
            if current is not None:
                others.append(current)
            job.states[task] = state
            job.counts[RUNNING] -= 1
            job.counts[state] += 1
        else:
            job.leave_queue(task, state)
        mark = job.marks.pop(task, None)
        if mark is not None:
            others.extend(mark.twins)
        job.last_seq += 1
        self.touched[job] = None
        self.effects.append(
            fx.RecordResult(job.id, task, job.last_seq, state, attempt, worker, report, reason)
        )
        self.tell(job.id, (task,), f"{state.name}{': ' if reason else ''}{reason}", worker, attempt)
        for other in others:
            other.void = True
        self.stop(others)

    def requeue(self, job: Job, task: TaskIndex, *, front: bool) -> None:
        """The task waits again, unless another attempt is still at work for it."""
        self.touched[job] = None
        if task not in job.running:
            job.requeue(task, front=front)
            if not job.terms.restart:
                self.give_out(job, task, False)

    def give_out(self, job: Job, task: TaskIndex, given_out: bool) -> None:
        """Have it stored whether a task that must not run twice may have been started."""
        mark = job.mark(task)
        if mark.given_out != given_out:
            mark.given_out = given_out
            self.trouble(job, task)

    def trouble(self, job: Job, task: TaskIndex) -> None:
        """Have the task's counters stored."""
        m = job.mark(task)
        self.effects.append(
            fx.RecordTrouble(job.id, task, m.failures, m.losses, m.given_out, m.counted, m.cancelling)
        )
        self.touched[job] = None

    def lose(
        self, job: Job, task: TaskIndex, attempt: AttemptId, worker: WorkerId, reason: str, *, started: bool
    ) -> bool:
        """A detached attempt is lost with its worker; true if the task waits for another try.

        `started` says whether the task may be what killed the worker, so that it counts against it.
        """
        if job.wants_cancel(task):
            if task not in job.running:
                self.finish(job, task, TaskState.CANCELLED, attempt, worker, reason=reason)
            return False
        if not job.terms.restart:
            why = f"{reason}; it must not run twice"
            self.finish(job, task, TaskState.NODE_FAIL, attempt, worker, reason=why)
            return False
        if started:
            mark = job.mark(task)
            mark.losses += 1
            if mark.losses >= self.settings.losses_max:
                why = f"{reason}; it was lost with its worker {mark.losses} times, so it is set aside"
                self.finish(job, task, TaskState.NODE_FAIL, attempt, worker, reason=why)
                return False
            job.reruns += 1
            self.trouble(job, task)
        self.requeue(job, task, front=True)
        self.tell(job.id, (task,), f"lost ({reason})", worker, attempt)
        return task not in job.running

    def forgive_loss(self, job: Job, task: TaskIndex) -> None:
        """The worker that was lost with the task is back with it: the task is not what made it go."""
        job.mark(task).losses -= 1
        job.reruns -= 1
        self.trouble(job, task)

    def cancel_waiting(self, job: Job, tasks: Iterable[TaskIndex]) -> None:
        """These queued tasks get their results; cheapest in ascending order. One may be named twice."""
        ranges: list[tuple[int, int]] = []
        first = last = -1
        for task in tasks:
            if job.states[task] == CANCELLED:
                continue
            job.leave_queue(task, TaskState.CANCELLED)
            job.marks.pop(task, None)
            if task != last:
                if first >= 0:
                    ranges.append((first, last))
                first = task
            last = task + 1
        if first >= 0:
            ranges.append((first, last))
        self.cancel_queued(job, ranges)

    def cancel_queued(self, job: Job, ranges: Sequence[tuple[int, int]]) -> None:
        """These ranges, whose bytes say CANCELLED already, get their results."""
        if ranges:
            count = sum(stop - start for start, stop in ranges)
            self.effects.append(fx.RecordCancelled(job.id, ranges, job.last_seq + 1))
            job.last_seq += count
            self.touched[job] = None

    def end_if_done(self, job: Job) -> None:
        """All tasks terminal and none to come: the job has ended, once."""
        if job.ended is not None or job.open or job.last_seq < job.size:
            return
        self.settling.drop(job)
        if job.counts[TaskState.COMPLETED] == job.size > 0:
            state = JobState.COMPLETED
        elif job.cancelled or job.counts[TaskState.CANCELLED] == job.size > 0:
            state = JobState.CANCELLED
        else:
            state = JobState.FAILED if job.size else JobState.COMPLETED
        job.ended = state
        self.matching.drop_job(job)
        self.effects.append(fx.RecordJobEnded(job.id, state))
        self.tell(job.id, None, f"the job ended: {state.name}")
