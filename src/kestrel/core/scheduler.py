"""The manager's side of the core: jobs, workers, matching, leases, retries. Events in, effects out.

`Scheduler.handle` applies all events that arrived together and then hands out work once; the queries
answer without changing anything. It does no I/O, tells no time, draws no chance: the same events give
the same effects, always. Called by the manager's shell and by the simulator.

The parts: `jobs` and `pool` hold the state, `matching` who may run what, `books` the moves of one task,
`outcomes` what becomes of attempts, `dispatch` how much goes to whom, `settling` whom restored jobs wait for,
`quarantine` who is in trouble, `story` and `explain` tell it to people, `invariants` checks everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from kestrel.core import effects as fx
from kestrel.core import events as ev
from kestrel.core.books import Books, Strays
from kestrel.core.dispatch import Dispatch
from kestrel.core.explain import explain_job, explain_task, mismatch
from kestrel.core.invariants import check
from kestrel.core.jobs import QUEUED, RUNNING, Job
from kestrel.core.model import (
    AttemptId,
    JobCounts,
    JobId,
    JobState,
    RestoredJob,
    SchedulerSettings,
    TaskIndex,
    TaskState,
    WorkerId,
)
from kestrel.core.outcomes import Outcomes
from kestrel.core.pool import DepartedWorker, Worker, WorkerView
from kestrel.errors import InternalError, UsageError

REFUSAL = "this manager does not know you as a worker: you were away for too long, or it was restarted"
"""Why a sender is no worker here."""


class Scheduler:
    """One life of a manager; `epoch` must never have been used before."""

    def __init__(self, settings: SchedulerSettings, epoch: int) -> None:
        self._books = Books(settings, epoch)
        self._outcomes = Outcomes(self._books)
        self._dispatch = Dispatch(self._books)
        self._refused: set[WorkerId] = set()
        self._accused: dict[WorkerId, int] = {}

    def handle(self, events: Sequence[ev.Event], now: float) -> list[fx.Effect]:
        """Apply all events, then hand out work once. `now`: monotonic seconds.

        The rule of *time that stood still*: when more than `probe_s` have gone by since the last call, it
        was the manager that was away (stopped, suspended, without its store), for a live one calls a few
        times a second. Nobody is lost for that silence: everybody counts as heard now, and is probed. The
        grace period after a restart grows by the gap. A gap of more than `standstill_s` lengthens only that,
        by what is beyond: it is short, and a store that is always as slow must not make it endless.

        Raises `InternalError` for events that no sound shell sends (an unknown job extended, a job
        submitted twice); such an event changes nothing, and those before it in the sequence are kept.
        """
        books = self._books
        gap_s, books.now = now - books.now, now
        if gap_s > books.settings.probe_s:
            self._excuse_silence(gap_s)
        elif gap_s > books.settings.standstill_s:
            books.settling.extend(gap_s - books.settings.standstill_s)
        self._refused.clear()
        self._accused.clear()
        time_passed = False
        for event in events:
            if isinstance(event, ev.TimePassed):
                time_passed = True
            else:
                self._apply(event)
        if time_passed:
            # last: a sign of life that waited beside it must count, in whatever order they came
            self._on_time_passed()
        self._dispatch.settle()
        effects, books.effects = books.effects, []
        return effects

    def forget(self, job: JobId) -> None:
        """Drop a job that has ended; raises `UsageError` if it has not."""
        found = self._job(job)
        if found.ended is None:
            raise UsageError(f"job {job} has not ended, so it cannot be forgotten", hint="cancel it first")
        self._books.forget_job(found)

    # --- events -----------------------------------------------------------------------------------------

    def _apply(self, event: ev.Event) -> None:
        match event:
            case ev.AttemptsReported():
                self._on_attempts_reported(event)
            case ev.WorkerHeard(name):
                self._known(name)
            case ev.AttemptsRevoked():
                self._on_attempts_revoked(event)
            case ev.JobSubmitted():
                self._on_job_submitted(event)
            case ev.JobExtended():
                self._on_job_extended(event)
            case ev.JobCancelled():
                self._on_job_cancelled(event)
            case ev.JobRestored(restored):
                self._on_job_restored(restored)
            case ev.WorkersExpected(workers):
                self._on_workers_expected(workers)
            case ev.WorkerJoined():
                self._on_worker_joined(event)
            case ev.WorkerLost(name, reason):
                self._on_worker_lost(name, reason)
            case ev.WorkerDrained():
                self._on_worker_drained(event)
            case ev.TimePassed():
                pass  # `handle` sees to it, after all others
            case _:
                assert_never(event)

    def _on_job_submitted(self, event: ev.JobSubmitted) -> None:
        if event.job in self._books.jobs:
            raise InternalError(f"job {event.job} was submitted twice")
        job = self._books.add_job(event.job, event.terms, bytearray(event.size))
        job.open = event.open
        self._books.tell(event.job, None, f"submitted with {event.size} tasks")

    def _on_job_extended(self, event: ev.JobExtended) -> None:
        job = self._books.jobs.get(event.job)
        if job is None or not job.open:
            raise InternalError(f"job {event.job} is not open, but was extended by {event.count} tasks")
        job.extend(event.count)
        job.open = not event.last
        self._books.touched[job] = None

    def _on_job_cancelled(self, event: ev.JobCancelled) -> None:
        job = self._books.jobs.get(event.job)
        if job is None or job.ended is not None or job.cancelled:
            return
        if event.tasks is None:
            self._outcomes.cancel_job(job)
        else:
            self._outcomes.cancel_tasks(job, event.tasks)

    def _on_job_restored(self, restored: RestoredJob) -> None:
        """Without effects until its workers had time to come back with running tasks (`settling`)."""
        books = self._books
        if restored.job in books.jobs:
            raise InternalError(f"job {restored.job} was restored twice")
        if restored.states.count(RUNNING):
            raise InternalError(f"job {restored.job} was restored with running tasks: none are ever stored")
        job = books.add_job(restored.job, restored.terms, bytearray(restored.states))
        job.counts = [restored.states.count(state) for state in TaskState]
        job.last_seq = job.size - job.counts[QUEUED]
        job.open = restored.open and not restored.cancelled
        job.cancelled = restored.cancelled
        job.reruns = restored.reruns
        for task, trouble in restored.troubles.items():
            if job.states[task] == QUEUED:
                mark = job.mark(task)
                mark.failures, mark.losses = trouble.failures, trouble.losses
                mark.given_out = trouble.given_out
                mark.counted, mark.cancelling = tuple(trouble.counted), trouble.cancelling
        books.settling.restore(job, books.now)
        books.touched.pop(job, None)
        books.tell(job.id, None, "restored from the store")

    def _on_workers_expected(self, workers: Sequence[WorkerId] | None) -> None:
        settling = self._books.settling
        if settling.named:
            raise InternalError("the workers that are expected back were named twice")
        settling.expect(workers, self._books.now)
        for name in self._books.pool.workers:
            settling.arrived(name)

    def _on_worker_joined(self, event: ev.WorkerJoined) -> None:
        books = self._books
        worker = books.pool.workers.get(event.worker)
        if worker is None:
            books.settling.arrived(event.worker)
            worker = books.pool.join(event.worker, event.offer, books.now)
            books.effects.append(fx.RecordWorker(worker.id, True))
        else:
            books.pool.hear(worker, books.now)
            books.pool.change_offer(worker, event.offer)
            worker.end_revoke()
        books.effects.append(fx.WelcomeWorker(worker.id))
        self._outcomes.rejoin(worker, event.held)
        self._dispatch.note_excess(worker)

    def _on_attempts_reported(self, event: ev.AttemptsReported) -> None:
        worker = self._known(event.worker)
        refused = self._books.strays.refused
        if worker is not None:
            self._outcomes.report(worker, event.outcomes)
        else:
            for outcome in event.outcomes:
                self._outcomes.stray(event.worker, outcome)
        refused = self._books.strays.refused - refused
        if refused:
            self._accused[event.worker] = self._accused.get(event.worker, 0) + refused
        self._books.effects.append(fx.AcknowledgeReport(event.worker, event.number))

    def _on_attempts_revoked(self, event: ev.AttemptsRevoked) -> None:
        worker = self._known(event.worker)
        if worker is not None:
            self._outcomes.revoked(worker, event.job, event.attempts)
            if event.attempts:
                # after an empty answer it is not asked again before it gets more: it has started all
                self._dispatch.note_excess(worker)

    def _excuse_silence(self, gap_s: float) -> None:
        """Nobody could be heard while time stood still (see `handle`)."""
        self._books.pool.excuse(self._books.now)
        self._books.settling.extend(gap_s)

    def _on_time_passed(self) -> None:
        books = self._books
        for worker in books.pool.expired(books.now):
            self._lose_worker(worker, f"not heard for {books.now - worker.heard:.1f} s")
            # should it only have been cut off, it must learn that it has to introduce itself again
            books.effects.append(fx.RefuseWorker(worker.id, REFUSAL))
        books.effects.extend([fx.ProbeWorker(w.id) for w in books.pool.to_probe(books.now)])
        books.quarantine.review()
        self._dispatch.look_for_balance()

    def _on_worker_drained(self, event: ev.WorkerDrained) -> None:
        worker = self._books.pool.workers.get(event.worker)
        if worker is not None:
            self._books.pool.drain(worker, event.drained)
            if event.pardoned:
                self._books.quarantine.lift(worker, "a user says that it is well")

    def _on_worker_lost(self, name: WorkerId, reason: str) -> None:
        worker = self._books.pool.workers.get(name)
        if worker is not None:
            self._lose_worker(worker, reason)
        elif self._books.settling.arrived(name):
            self._books.effects.append(fx.RecordWorker(name, False))

    def _lose_worker(self, worker: Worker, reason: str) -> None:
        books = self._books
        worker.end_revoke()
        requeued = self._outcomes.take_back(worker, list(worker.hand.values()), reason)
        books.quarantine.forget(worker)
        books.pool.leave(worker, books.now, reason, requeued)
        books.effects.append(fx.RecordWorker(worker.id, False))
        books.effects.append(fx.AnnounceWorkerLost(worker.id, reason, requeued))

    def _known(self, name: WorkerId) -> Worker | None:
        """The worker that gave this sign of life; an unknown one is refused, once per `handle`."""
        books = self._books
        worker = books.pool.workers.get(name)
        if worker is not None:
            books.pool.hear(worker, books.now)
        elif name not in self._refused:
            self._refused.add(name)
            books.effects.append(fx.RefuseWorker(name, REFUSAL))
        return worker

    # --- questions ----------------------------------------------------------------------------------------

    def _job(self, job: JobId) -> Job:
        found = self._books.jobs.get(job)
        if found is None:
            raise UsageError(f"the scheduler knows no job {job}", hint="it has ended, or never was")
        return found

    def job_ids(self) -> list[JobId]:
        """Jobs that were not forgotten, in the order they came."""
        return list(self._books.jobs)

    def has_job(self, job: JobId) -> bool:
        return job in self._books.jobs

    def job_state(self, job: JobId) -> JobState:
        """PENDING until a worker has had a task of it."""
        found = self._job(job)
        if found.ended is not None:
            return found.ended
        return JobState.RUNNING if found.counts[RUNNING] or found.last_seq else JobState.PENDING

    def counts(self, job: JobId) -> JobCounts:
        """A copy."""
        return self._job(job).counts_view()

    def size(self, job: JobId) -> int:
        return self._job(job).size

    def is_open(self, job: JobId) -> bool:
        return self._job(job).open

    def last_seq(self, job: JobId) -> int:
        """How many results it has; they are numbered from 1."""
        return self._job(job).last_seq

    def reruns(self, job: JobId) -> int:
        """Attempts that were lost with their worker and tried again."""
        return self._job(job).reruns

    def task_state(self, job: JobId, task: TaskIndex) -> TaskState:
        return self._job(job).state(task)

    def trouble(self, job: JobId, task: TaskIndex) -> tuple[int, int]:
        """Failures and losses so far of a task that has not ended; (0, 0) for others."""
        mark = self._job(job).marks.get(task)
        return (0, 0) if mark is None else (mark.failures, mark.losses)

    def was_given_out(self, job: JobId, task: TaskIndex) -> bool:
        """Whether a task that must not run twice, and has not ended, may have been started."""
        mark = self._job(job).marks.get(task)
        return mark is not None and mark.given_out

    def task_worker(self, job: JobId, task: TaskIndex) -> tuple[WorkerId, AttemptId] | None:
        """Who has the task, under which attempt; None if nobody has."""
        attempt = self._job(job).running.get(task)
        return None if attempt is None else (attempt.worker.id, attempt.id)

    def running(self, job: JobId) -> list[TaskIndex]:
        """Tasks in workers' hands."""
        return list(self._job(job).running)

    def workers(self) -> dict[WorkerId, WorkerView]:
        """All workers, in the order they joined."""
        return {
            name: WorkerView(
                offer=w.offer,
                in_hand=len(w.hand),
                used=w.busy,
                drained=w.drained,
                joined=w.joined,
                heard=w.heard,
                completed=w.completed,
                failed=w.failed,
                quarantined=w.bar is not None and w.bar.proven,
                reason=w.bar.reason if w.bar is not None else "",
            )
            for name, w in self._books.pool.workers.items()
        }

    def has_worker(self, worker: WorkerId) -> bool:
        """Whether the worker is in the pool."""
        return worker in self._books.pool.workers

    def expected(self) -> set[WorkerId]:
        """Who was in the pool in the last life, and has neither come back nor been reported gone. A copy."""
        return set(self._books.settling.awaited)

    def totals(self) -> tuple[int, int, int]:
        """Workers, slots, busy slots. O(1)."""
        pool = self._books.pool
        return len(pool.workers), pool.slots, pool.busy

    def lost_workers(self) -> list[DepartedWorker]:
        """Workers that left, the latest last; at most `lost_workers_kept`."""
        return list(self._books.pool.departed)

    def strays(self) -> Strays:
        """Reports that did not come from the attempt that was waited for."""
        return self._books.strays

    def accused(self) -> dict[WorkerId, int]:
        """Who told in the last `handle` of attempts that it was never given, and of how many. They changed
        nothing; they are counted in `strays().refused`, too."""
        return dict(self._accused)

    def next_wake(self, now: float) -> float | None:
        """When `TimePassed` should come next at the latest; None: nothing is waited for.

        An idle worker beside a full one is also looked at with each `TimePassed`, but for that a few
        times a second are enough.
        """
        times = []
        deadline = self._books.pool.next_deadline()
        if deadline is not None:
            times.append(deadline)
        if self._books.settling.active:
            times.append(self._books.settling.until)
        parole = self._books.quarantine.next_parole()
        if parole is not None:
            times.append(parole)
        return max(now, min(times)) if times else None

    def explain(self, job: JobId, task: TaskIndex | None, now: float) -> list[str]:
        """Why the job, or one task of it, is not running, or how it runs: the most important first."""
        found = self._job(job)
        if task is None:
            return explain_job(self._books, found, now)
        return explain_task(self._books, found, task, now)

    def warning(self, job: JobId, now: float) -> str:
        """Why the job cannot run in the pool as it is; empty if somebody could run it."""
        return " ".join(mismatch(self._books, self._job(job), now))

    def story(self, job: JobId, task: TaskIndex | None, now: float | None = None) -> list[str]:
        """What is remembered of a task (None: of the job), oldest first; ages if `now` is given."""
        return self._books.story.tell(job, task, now)

    def check_invariants(self) -> None:
        """Raise `InternalError`, with the story, if any two parts of the state disagree. Not cheap."""
        check(self._books)
