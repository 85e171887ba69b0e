"""What becomes of attempts: reported, given back, lost with their worker, found again, cancelled.

The first terminal result of a task counts, whoever sends it, as long as the attempt was given to that
worker for that task or dates from an earlier epoch (law 2). Called by `scheduler` only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kestrel.core import effects as fx
from kestrel.core.addresses import parts_of
from kestrel.core.books import Books
from kestrel.core.jobs import CANCELLED, COMPLETED, QUEUED, REQUEUED, RUNNING, Attempt, Job
from kestrel.core.model import (
    AttemptEnd,
    AttemptId,
    AttemptOutcome,
    HeldByWorker,
    JobId,
    TaskIndex,
    TaskState,
    WorkerId,
)
from kestrel.core.pool import Worker
from kestrel.core.signatures import may_run, means

STORY_TASKS_MAX = 1000
"""Most tasks that one cancellation names in the story."""

_FAILURES = {AttemptEnd.FAILED: TaskState.FAILED, AttemptEnd.TIMEOUT: TaskState.TIMEOUT}


@dataclass(slots=True)
class _Run:
    """Plain successes of one job in one report, booked together."""

    job: Job
    tasks: list[TaskIndex]
    wall_s: float = 0.0


class Outcomes:
    """Applies what workers tell to the books."""

    def __init__(self, books: Books) -> None:
        self.books = books

    # --- reports --------------------------------------------------------------------------------------

    def report(self, worker: Worker, outcomes: Sequence[AttemptOutcome]) -> None:
        """A report of a worker that is in the pool. Plain successes take the short way."""
        append = self.books.effects.append
        hand = worker.hand
        name = worker.id
        ok, completed = AttemptEnd.COMPLETED, TaskState.COMPLETED
        result = fx.RecordResult
        run: _Run | None = None
        runs: dict[JobId, _Run] = {}
        for outcome in outcomes:
            attempt = hand.get(outcome.attempt)
            task = outcome.task
            if (
                attempt is None
                or attempt.task != task
                or attempt.job.id != outcome.job
                or outcome.end is not ok
                or attempt.void
                or task in attempt.job.marks
            ):
                if runs and outcome.end is AttemptEnd.FAILED:  # a row of failures begins after them
                    self._book(worker, runs)
                    run = None
                self._unusual(worker, attempt, outcome)
                continue
            job = attempt.job
            if run is None or run.job is not job:
                run = runs.get(job.id)
                if run is None:
                    run = runs[job.id] = _Run(job, [])
            del hand[outcome.attempt]
            del job.running[task]
            job.states[task] = COMPLETED
            job.last_seq = seq = job.last_seq + 1
            run.tasks.append(task)
            run.wall_s += outcome.wall_s
            append(result(job.id, task, seq, completed, outcome.attempt, name, outcome.report))
        self._book(worker, runs)
        worker.progress = self.books.now
        self.books.pool.refresh(worker)

    def _book(self, worker: Worker, runs: dict[JobId, _Run]) -> None:
        """Count what was recorded, and start anew."""
        for run in runs.values():
            job, count = run.job, len(run.tasks)
            job.counts[RUNNING] -= count
            job.counts[COMPLETED] += count
            worker.count(job, -count)
            worker.completed += count
            job.note_durations(count, run.wall_s, self.books.settings.backlog_max - 1)
            self.books.touched[job] = None
            self.books.tell(job.id, run.tasks, "COMPLETED", worker.id)
            self._note_success(worker, job)
        runs.clear()

    def _note_success(self, worker: Worker, job: Job) -> None:
        if worker.rows or worker.bar is not None:
            self.books.quarantine.succeeded(worker)
        if job.suspects:
            self.books.quarantine.testified(worker, job)

    def _unusual(self, worker: Worker, attempt: Attempt | None, outcome: AttemptOutcome) -> None:
        if attempt is None or attempt.task != outcome.task or attempt.job.id != outcome.job:
            self.stray(worker.id, outcome)
            return
        books, job, end = self.books, attempt.job, outcome.end
        worker.take(attempt)
        blamed = worker.bar is not None and books.quarantine.probe_ended(worker, attempt, end)
        if attempt.void:
            books.strays.duplicates += 1
            return
        if end is AttemptEnd.COMPLETED:
            worker.completed += 1
        elif end in _FAILURES:
            worker.failed += 1
        books.detach(attempt)
        if blamed:
            self._blame(worker, attempt)
            return
        if end is AttemptEnd.COMPLETED or end in _FAILURES:
            job.note_durations(1, outcome.wall_s, books.settings.backlog_max - 1)
        if attempt.id < books.first_attempt:
            self._note_spent(job, attempt.task, attempt.id)
        tells = end is AttemptEnd.FAILED and not job.wants_cancel(attempt.task)
        self._apply(job, worker.id, outcome)
        if tells:
            books.quarantine.failed(worker, job)
        elif end is AttemptEnd.COMPLETED:
            self._note_success(worker, job)

    def _blame(self, worker: Worker, attempt: Attempt) -> None:
        """A probe failed: that is held against its worker, and the task goes to the next one."""
        job, task = attempt.job, attempt.task
        mark = job.mark(task)
        mark.blamed = worker.id
        mark.count(attempt.id)
        self.books.trouble(job, task)
        self.books.requeue(job, task, front=True)
        self.books.tell(job.id, (task,), "FAILED as a probe: the worker is blamed", worker.id, attempt.id)

    def stray(self, worker: WorkerId, outcome: AttemptOutcome) -> None:
        """A report of an attempt that is not in its sender's hand: lost and found, or none of ours."""
        books = self.books
        job = books.jobs.get(outcome.job)
        task = outcome.task
        if job is None:
            books.strays.duplicates += 1
        elif not 0 <= task < job.size:
            books.strays.refused += 1
        elif job.state(task).terminal or (task in job.marks and job.marks[task].has_ended(outcome.attempt)):
            books.strays.duplicates += 1
        elif not self._known(job, task, outcome.attempt, worker):
            books.strays.refused += 1
        else:
            books.strays.late += 1
            self._spend(job, task, outcome.attempt, worker)
            if outcome.end is AttemptEnd.COMPLETED or outcome.end in _FAILURES:
                self._apply(job, worker, outcome)

    def _known(self, job: Job, task: TaskIndex, attempt: AttemptId, worker: WorkerId) -> bool:
        """Whether a result of this attempt may count, though it is in nobody's hand.

        Of earlier lives nobody knows who was given what; who can never have been given it is known.
        """
        if not means(job, parts_of(worker)):
            return False
        mark = job.marks.get(task)
        if attempt < self.books.first_attempt:
            held = job.running.get(task)
            twins = [] if mark is None else mark.twins
            elsewhere = [a for a in (held, *twins) if a is not None and a.id == attempt]
            return attempt > 0 and not elsewhere and (mark is None or not mark.has_ended(attempt))
        return mark is not None and (attempt, worker) in mark.superseded

    def _spend(self, job: Job, task: TaskIndex, attempt: AttemptId, worker: WorkerId) -> None:
        """The end of this attempt is told: it cannot be told again."""
        if attempt < self.books.first_attempt:
            self._note_spent(job, task, attempt)
        else:
            del job.mark(task).superseded[attempt, worker]

    def _note_spent(self, job: Job, task: TaskIndex, attempt: AttemptId) -> None:
        spent = job.mark(task).spent
        spent.append(attempt)
        del spent[: -self.books.settings.superseded_max]

    def _apply(self, job: Job, worker: WorkerId, outcome: AttemptOutcome) -> None:
        """The end of an attempt that is in nobody's hand any more, for a task without a result."""
        books = self.books
        task, attempt, end = outcome.task, outcome.attempt, outcome.end
        if end is AttemptEnd.COMPLETED:
            books.finish(job, task, TaskState.COMPLETED, attempt, worker, outcome.report)
            return
        cancelling = job.wants_cancel(task)
        if end in _FAILURES:
            mark = job.mark(task)
            mark.failures += 1
            if mark.blamed and mark.blamed != worker:
                books.quarantine.acquit(mark.blamed)
            if cancelling or mark.failures > job.terms.retries:
                books.finish(job, task, _FAILURES[end], attempt, worker, outcome.report)
                return
            mark.count(attempt)
            books.trouble(job, task)
            books.tell(job.id, (task,), f"{end.name}, to be tried again", worker, attempt)
            if job.states[task] == RUNNING:
                books.requeue(job, task, front=False)
            elif not job.terms.restart:
                books.give_out(job, task, False)  # it was in nobody's hand yet, after a restart
        elif end is AttemptEnd.LOST:
            job.mark(task).count(attempt)
            books.lose(job, task, attempt, worker, "the worker's launcher died", started=True)
        elif task in job.running:
            books.tell(job.id, (task,), "stopped; another attempt goes on", worker, attempt)
        elif cancelling:
            books.finish(job, task, TaskState.CANCELLED, attempt, worker, outcome.report)
        elif not job.terms.restart and outcome.wall_s > 0:
            reason = "the worker stopped it; it must not run twice"
            books.finish(job, task, TaskState.NODE_FAIL, attempt, worker, outcome.report, reason)
        else:
            books.requeue(job, task, front=True)
            books.tell(job.id, (task,), "given back: the worker stopped it", worker, attempt)

    # --- given back -----------------------------------------------------------------------------------

    def revoked(self, worker: Worker, job_id: JobId, attempts: Sequence[AttemptId]) -> None:
        """The worker gave these back unstarted: no failure, no loss, and no result can come."""
        books = self.books
        if worker.revoking is not None and worker.revoking.id == job_id:
            worker.end_revoke()
        given = [worker.hand[a] for a in attempts if a in worker.hand and worker.hand[a].job.id == job_id]
        for attempt in reversed(given):
            if attempt.id not in worker.hand:
                continue
            worker.take(attempt)
            if attempt.void:
                continue
            job, task = attempt.job, attempt.task
            books.detach(attempt)
            if task not in job.running and job.wants_cancel(task):
                books.finish(job, task, TaskState.CANCELLED, attempt.id, worker.id)
                continue
            books.requeue(job, task, front=True)
            books.tell(job.id, (task,), "given back unstarted", worker.id, attempt.id)
        if given:
            worker.progress = books.now
            books.pool.refresh(worker)
            if not worker.idle:
                books.pool.sate(worker)  # it must not get back at once what it gave
            books.quarantine.hand_changed(worker)

    # --- lost and found -------------------------------------------------------------------------------

    def take_back(self, worker: Worker, attempts: Sequence[Attempt], reason: str) -> int:
        """These were lost with their worker, or on the way to it. Returns how many wait again.

        Which of them had been started is not known; the worker starts them in the order it got them, so
        the oldest that fill its slots are taken as started, and count as lost with it.
        """
        books = self.books
        started: set[AttemptId] = set()
        room = worker.offer.slots
        for attempt in worker.hand.values():
            room -= attempt.job.terms.slots
            if room < 0:
                break
            started.add(attempt.id)
        requeued = 0
        for attempt in reversed(attempts):
            worker.take(attempt)
            if attempt.void:
                continue
            job, task = attempt.job, attempt.task
            books.detach(attempt)
            if job.terms.restart and not job.wants_cancel(task):
                superseded = job.mark(task).superseded
                superseded[attempt.id, worker.id] = attempt.id in started
                if len(superseded) > books.settings.superseded_max:
                    del superseded[next(iter(superseded))]
            if books.lose(job, task, attempt.id, worker.id, reason, started=attempt.id in started):
                requeued += 1
        return requeued

    def rejoin(self, worker: Worker, held: Sequence[HeldByWorker]) -> None:
        """A worker says what it has in hand; the books follow it.

        What it does not have any more is queued again, and stopped in case it was on its way to the
        worker when this was written. What it has and nobody wants is stopped. A task that it still runs
        did not kill it: however often a long task's worker is cut off, that makes no poison. What its owner
        does not take any more is stopped as well, and stays its own until it says how that ended: it may
        have finished, and that counts.
        """
        books = self.books
        unwanted: list[AttemptId] = []
        listed = {h.attempt for h in held}
        missing = [a for a in worker.hand.values() if a.id not in listed]
        if missing:
            self.take_back(worker, missing, "the worker came back without it")
            unwanted.extend(a.id for a in missing)
        for item in held:
            known = worker.hand.get(item.attempt)
            if known is not None:
                if known.task != item.task or known.job.id != item.job:
                    unwanted.append(item.attempt)
                continue
            if not self._wanted(worker, item):
                unwanted.append(item.attempt)
                continue
            job = books.jobs[item.job]
            mark = job.marks.get(item.task)
            if mark is not None and mark.superseded.pop((item.attempt, worker.id), False):
                books.forgive_loss(job, item.task)
            books.adopt(worker, job, item.task, item.attempt)
            books.tell(job.id, (item.task,), "found again", worker.id, item.attempt)
            if job.wants_cancel(item.task):
                unwanted.append(item.attempt)
        for attempt in worker.hand.values():
            attempt.unwelcome = not attempt.void and not may_run(attempt.job, worker)
            if attempt.unwelcome and not attempt.job.wants_cancel(attempt.task):
                unwanted.append(attempt.id)
                what = "to be stopped: the worker's owner does not take it"
                books.tell(attempt.job.id, (attempt.task,), what, worker.id, attempt.id)
        if unwanted:
            books.effects.append(fx.StopAttempts(worker.id, unwanted))
        books.pool.refresh(worker)
        books.quarantine.hand_changed(worker)

    def _wanted(self, worker: Worker, item: HeldByWorker) -> bool:
        job = self.books.jobs.get(item.job)
        if job is None or not 0 <= item.task < job.size or job.state(item.task).terminal:
            return False
        if not self._known(job, item.task, item.attempt, worker.id):
            return False
        return job.terms.restart or item.task not in job.running

    # --- cancelled ------------------------------------------------------------------------------------

    def cancel_job(self, job: Job) -> None:
        """No task of it is wanted any more, and none may follow. Costs little per queued task."""
        books = self.books
        job.open = False
        job.cancelled = True
        books.touched[job] = None
        books.tell(job.id, None, "the job was cancelled")
        books.settling.drop(job)
        books.cancel_queued(job, job.cancel_queued())
        told = {task for task, mark in job.marks.items() if mark.cancelling}
        running = [attempt for task, attempt in job.running.items() if task not in told]
        job.marks = {task: mark for task, mark in job.marks.items() if task in job.running}
        for mark in job.marks.values():
            if not mark.cancelling:
                running.extend(mark.twins)
        books.stop(running)

    def cancel_tasks(self, job: Job, tasks: Sequence[TaskIndex]) -> None:
        """These tasks are not wanted: what waits ends now, what runs ends when its worker says so."""
        books = self.books
        waiting: list[TaskIndex] = []
        stopping: list[Attempt] = []
        for task in tasks:
            state = job.states[task] if 0 <= task < job.size else CANCELLED
            if state in (QUEUED, REQUEUED):
                waiting.append(task)
            elif state == RUNNING and not job.wants_cancel(task):
                mark = job.mark(task)
                mark.cancelling = True
                books.trouble(job, task)
                stopping.extend((job.running[task], *mark.twins))
        if len(tasks) <= STORY_TASKS_MAX:
            books.tell(job.id, tuple(tasks), "cancelled by the user")
        else:
            books.tell(job.id, None, f"{len(tasks)} tasks were cancelled by the user")
        books.cancel_waiting(job, waiting)
        books.stop(stopping)
