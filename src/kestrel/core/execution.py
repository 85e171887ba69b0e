"""The execution machine of a worker: which attempt starts when, what is kept, what is told to the manager.

Events in, effects out (`kestrel.core.execution_events`); no clock, no I/O. Called by the worker's
agent only. What it promises:

- An attempt that was accepted is started, given back, or reported; never dropped, never run twice.
- A finished attempt is kept until the manager has stored the report that names it (law 3). While it cannot
  be kept on disk, nothing new is started.
- Only the latest life of the manager counts: what an older one says is ignored.
- Attempts start in the order in which they came. A task that takes several slots waits at the head
  until they are free, and nothing overtakes it.
- What the owner of the machine does not let run, because of whose it is or of the hour, is given back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import assert_never

from kestrel.core import execution_events as xe
from kestrel.core.execution_parts import (
    Batch,
    ExecutionCounters,
    ExecutionSettings,
    JobSpec,
    Running,
    Waiting,
    ending_of,
)
from kestrel.core.execution_refusals import Refusals
from kestrel.core.execution_reports import ReportQueue
from kestrel.core.model import AttemptEnd, AttemptId, HeldByWorker, JobId, TaskIndex, epoch_of
from kestrel.errors import InternalError

__all__ = ["Execution", "ExecutionCounters", "ExecutionSettings", "Render"]

JOBS_SHOWN_MAX = 3


Render = Callable[[xe.Ending], xe.Finished]
"""Makes the report of an ending. Pure."""


class Execution:
    """One worker's attempts, from assignment to acknowledgement."""

    def __init__(
        self,
        settings: ExecutionSettings,
        render: Render,
        *,
        life: int,
        restored: Sequence[xe.Finished] = (),
    ) -> None:
        """`life`: number of this life of the worker, never used before with the same spool.
        `restored`: what the spool still had; it is reported again."""
        self.settings = settings
        self.counters = ExecutionCounters()
        self._render = render
        self._jobs: dict[JobId, JobSpec] = {}
        self._queue: dict[AttemptId, Waiting] = {}
        self._running: dict[AttemptId, Running] = {}
        self._busy = 0
        self._reports = ReportQueue(life, restored, settings.report_attempts_max, settings.report_resend_s)
        self._refusals = Refusals(settings.refuse_s, settings.refuse_s_max, settings.specs_max)
        self._recent: dict[AttemptId, None] = {}
        self._welcome: xe.ManagerWelcomed | None = None
        self._epoch: int | None = None
        self._held_max = settings.held_max
        self._spool_failing = False
        self._draining = False
        self._closed = False
        """The owner needs the machine."""
        self._left = False
        self._announced: xe.AnnounceLoad | None = None
        self._load_stale = False
        """The load may have changed since it was announced."""
        self._announce_after = 0.0

    # --- what the agent may ask -------------------------------------------------------------------

    @property
    def welcomed(self) -> bool:
        return self._welcome is not None

    @property
    def draining(self) -> bool:
        return self._draining

    def load(self) -> xe.AnnounceLoad:
        """How busy this worker is now."""
        slots = self.settings.slots
        jobs: dict[JobId, None] = {}
        for running in self._running.values():
            jobs[running.waiting.job] = None
            if len(jobs) == JOBS_SHOWN_MAX:
                break
        queued = len(self._queue) + len(self._refusals.held)
        return xe.AnnounceLoad(min(self._busy, slots), slots, queued, self._draining, tuple(jobs))

    def is_running(self, attempt: AttemptId) -> bool:
        """Whether the attempt runs, or waits in the launcher."""
        return attempt in self._running

    def is_waiting(self, attempt: AttemptId) -> bool:
        """Whether the attempt was accepted and has not been handed to the launcher."""
        return attempt in self._queue or attempt in self._refusals.held

    def task_of(self, attempt: AttemptId) -> tuple[JobId, TaskIndex] | None:
        """Job and task of an attempt that runs."""
        running = self._running.get(attempt)
        return None if running is None else (running.waiting.job, running.waiting.task)

    def deadline(self) -> float | None:
        """When `DeadlineReached` should come, if nothing else happens before."""
        if self._welcome is None:
            return None
        dues = self._reports.deadline(self._welcome.report_delay_s), self._refusals.deadline()
        times = [due for due in dues if due is not None]
        if self._load_stale:
            times.append(self._announce_after)
        return min(times, default=None)

    # --- the one entrance -------------------------------------------------------------------------

    def handle(self, event: xe.ExecutionEvent, now: float) -> list[xe.ExecutionEffect]:
        """What has to be done because of this event, in order. `now`: monotonic seconds."""
        batch = Batch()
        self._load_stale = True
        match event:
            case xe.ProcessesEnded(ends):
                self._on_processes_ended(ends, batch)
            case xe.TasksReceived():
                self._on_tasks_received(event, now, batch)
            case xe.ReportStored(number, epoch):
                self._on_report_stored(number, epoch, batch)
            case xe.DeadlineReached():
                self._resend_if_due(now, batch)
            case xe.StopRequested(attempts):
                self._on_stop_requested(attempts, batch)
            case xe.RevocationRequested(job, count):
                self._on_revocation_requested(job, count, batch)
            case xe.LauncherFailed(attempts):
                self._on_launcher_failed(attempts, batch)
            case xe.IntroductionDue(held_max):
                self._on_introduction_due(held_max, batch)
            case xe.ManagerWelcomed():
                self._on_manager_welcomed(event)
            case xe.ManagerLost():
                self._on_manager_lost()
            case xe.SpoolFailed():
                self._spool_failing = True
            case xe.SpoolMended():
                self._spool_failing = False
            case xe.HoursEnded(stop):
                self._on_hours_ended(stop, batch)
            case xe.HoursBegan():
                self._closed = False
            case xe.ShutdownRequested(kill):
                self._on_shutdown_requested(kill, batch)
            case _:
                assert_never(event)
        self._fill_slots(batch)
        self._give_back_refused(now, batch)
        self._report_if_due(now, batch)
        self._announce_if_due(now, batch)
        self._leave_if_done(batch)
        return batch.effects()

    # --- tasks come -------------------------------------------------------------------------------

    def _on_tasks_received(self, event: xe.TasksReceived, now: float, batch: Batch) -> None:
        if epoch_of(event.attempt) not in (0, self._epoch):
            self.counters.foreign_tasks += len(event.tasks)
            return
        if event.spec is not None:
            self._learn(event)
        job = self._jobs.get(event.job)
        problem = self._problem_with(event, job)
        refused: list[AttemptId] = []
        unwanted: dict[AttemptId, Waiting] = {}
        away = self._draining or self._closed
        room = self.settings.queued_max - len(self._refusals.held)
        for i, task in enumerate(event.tasks):
            attempt = event.attempt + i
            if self._knows(attempt):
                self.counters.duplicates += 1
            elif away or (not problem and len(self._queue) + len(unwanted) >= room):
                self.counters.overflowed += not away
                refused.append(attempt)
                self._remember(attempt)
            elif problem or job is None:
                self._finish(xe.Ending(event.job, task, attempt, AttemptEnd.LOST, problem), batch)
            else:
                params = event.params[i] if event.params is not None else None
                where = unwanted if job.refused else self._queue
                where[attempt] = Waiting(event.job, task, params, job)
        if refused:
            batch.first.append(xe.SendRevoked(event.job, refused))
        if unwanted:
            self.counters.refused += len(unwanted)
            if self._refusals.refuse(event.job, unwanted, now):
                batch.first.append(xe.TellRefused(event.job))

    def _problem_with(self, event: xe.TasksReceived, job: JobSpec | None) -> str:
        """Why the tasks can never run here, or nothing."""
        if job is None:
            return f"this worker does not know the specification of job {event.job}"
        if job.slots > self.settings.slots and not job.refused:
            return f"the task takes {job.slots} slots and this worker has {self.settings.slots}"
        if event.params is not None and len(event.params) != len(event.tasks):
            return f"{len(event.tasks)} tasks came with {len(event.params)} sets of parameters"
        return ""

    def _learn(self, event: xe.TasksReceived) -> None:
        known = self._jobs.pop(event.job, None)
        mean_s = known.mean_s if known is not None else None
        self._jobs[event.job] = JobSpec(event.spec, event.slots, mean_s, event.refused)
        while len(self._jobs) > self.settings.specs_max:
            del self._jobs[next(iter(self._jobs))]

    def _knows(self, attempt: AttemptId) -> bool:
        return (
            self.is_waiting(attempt)
            or attempt in self._running
            or attempt in self._reports.kept
            or attempt in self._recent
        )

    def _remember(self, attempt: AttemptId) -> None:
        self._recent[attempt] = None
        while len(self._recent) > self.settings.recent_max:
            del self._recent[next(iter(self._recent))]

    # --- tasks start and end ----------------------------------------------------------------------

    def _fill_slots(self, batch: Batch) -> None:
        settings = self.settings
        if not self._queue:
            return
        taken: list[AttemptId] = []
        for attempt, waiting in self._queue.items():
            job = waiting.terms
            if self._busy + job.slots > settings.slots + self._ahead(job) or self._may_not_start():
                break
            self._busy += job.slots
            self._running[attempt] = Running(waiting)
            taken.append(attempt)
            batch.starts.append(
                xe.AttemptStart(waiting.job, waiting.task, attempt, waiting.params, job.spec, job.slots)
            )
        for attempt in taken:
            del self._queue[attempt]

    def _ahead(self, job: JobSpec) -> int:
        """How many slots' worth of this job the launcher may have beyond the slots."""
        settings = self.settings
        if job.slots > 1 or job.mean_s is None or job.mean_s > settings.handover_s:
            return 0
        return min(settings.handover_max, int(settings.slots * settings.handover_s / max(job.mean_s, 1e-6)))

    def _may_not_start(self) -> bool:
        """Whether what would end could not be kept, or not be named in an introduction."""
        settings = self.settings
        return (
            self._spool_failing
            or len(self._reports.kept) + len(self._running) >= self._held_max
            or len(self._reports.kept) >= settings.finished_max
            or self._reports.kept_bytes >= settings.finished_bytes_max
        )

    def _on_processes_ended(self, ends: Sequence[xe.ProcessEnd], batch: Batch) -> None:
        returned: dict[AttemptId, Waiting] = {}
        for end in ends:
            running = self._running.pop(end.attempt, None)
            if running is None:
                continue  # reported as lost before, when the launcher failed
            waiting = running.waiting
            job = waiting.terms
            self._busy -= job.slots
            if end.unstarted and not running.stopped:
                job.mean_s = None  # not as quick as it seemed
                returned[end.attempt] = waiting
                continue
            if not end.unstarted:
                mean = job.mean_s
                job.mean_s = end.wall_s if mean is None else 0.8 * mean + 0.2 * end.wall_s
            self._finish(ending_of(end.attempt, running, end), batch)
        if returned and (self._draining or self._closed):
            self._give_back(returned, batch)
        elif returned:
            self._queue = {**returned, **self._queue}

    def _on_launcher_failed(self, attempts: Sequence[AttemptId], batch: Batch) -> None:
        for attempt in attempts:
            running = self._running.pop(attempt, None)
            if running is None:
                continue
            self._busy -= running.waiting.terms.slots
            waiting = running.waiting
            # lost even if it was being stopped: "stopped" without facts would mean that it never started
            reason = "the worker's launcher process died, and the task was killed"
            self._finish(xe.Ending(waiting.job, waiting.task, attempt, AttemptEnd.LOST, reason), batch)

    def _on_stop_requested(self, attempts: Sequence[AttemptId], batch: Batch) -> None:
        for attempt in attempts:
            running = self._running.get(attempt)
            waiting = self._queue.pop(attempt, None) or self._refusals.take(attempt)
            if running is not None:
                if not running.stopped:
                    running.stopped = True
                    batch.stops.append(attempt)
            elif waiting is not None:
                reason = "stopped before it was started"
                self._finish(
                    xe.Ending(waiting.job, waiting.task, attempt, AttemptEnd.CANCELLED, reason), batch
                )
            elif attempt not in self._reports.kept:
                self.counters.unknown_stops += 1

    def _finish(self, ending: xe.Ending, batch: Batch) -> None:
        finished = self._render(ending)
        self._reports.add(finished)
        batch.endings.append(finished)

    # --- tasks go back ----------------------------------------------------------------------------

    def _on_revocation_requested(self, job: JobId, count: int, batch: Batch) -> None:
        back: list[AttemptId] = []
        for attempt in reversed(self._queue):
            if len(back) == count:
                break
            if self._queue[attempt].job == job:
                back.append(attempt)
        for attempt in back:
            del self._queue[attempt]
        for attempt in [a for a, waiting in self._refusals.held.items() if waiting.job == job]:
            if len(back) == count:
                break
            self._refusals.take(attempt)
            back.append(attempt)
        for attempt in back:
            self._remember(attempt)
        batch.first.append(xe.SendRevoked(job, back))

    def _give_back(self, waiting: dict[AttemptId, Waiting], batch: Batch) -> None:
        by_job: dict[JobId, list[AttemptId]] = {}
        for attempt, entry in waiting.items():
            by_job.setdefault(entry.job, []).append(attempt)
            self._remember(attempt)
        if self._welcome is not None:  # else the next profile tells, or our going
            batch.first.extend(xe.SendRevoked(job, attempts) for job, attempts in by_job.items())

    def _give_back_refused(self, now: float, batch: Batch) -> None:
        if self._refusals.held and self._welcome is not None:
            self._give_back(self._refusals.take_due(now), batch)

    def _on_hours_ended(self, stop: bool, batch: Batch) -> None:
        self._closed = True
        self._announce_after = 0.0
        self._give_back({**self._queue, **self._refusals.take_all()}, batch)
        self._queue = {}
        if stop:
            self._on_stop_requested(list(self._running), batch)

    def _on_shutdown_requested(self, kill: bool, batch: Batch) -> None:
        self._draining = True
        self._announce_after = 0.0
        self._give_back({**self._queue, **self._refusals.take_all()}, batch)
        self._queue = {}
        if kill:
            self._on_stop_requested(list(self._running), batch)

    def _leave_if_done(self, batch: Batch) -> None:
        if not self._draining or self._left or self._running:
            return
        if self._reports.kept and self._welcome is not None:
            return
        self._left = True
        batch.last.append(xe.LeavePool())

    # --- the manager comes and goes ---------------------------------------------------------------

    def _on_introduction_due(self, held_max: int, batch: Batch) -> None:
        """Attempts that are not named are taken as not held, so none may be kept that is not named."""
        kept = len(self._running) + len(self._reports.kept)
        while self._refusals.held and kept + len(self._queue) + len(self._refusals.held) > held_max:
            self._overflow(next(iter(self._refusals.held)))
        while self._queue and kept + len(self._queue) > held_max:
            self._overflow(next(reversed(self._queue)))
        held = [HeldByWorker(r.waiting.job, r.waiting.task, a) for a, r in self._running.items()]
        held += [HeldByWorker(f.job, f.task, f.attempt) for f in self._reports.kept.values()]
        held += [HeldByWorker(w.job, w.task, a) for a, w in self._queue.items()]
        held += [HeldByWorker(w.job, w.task, a) for a, w in self._refusals.held.items()]
        self._on_manager_lost()
        batch.last.append(xe.SendProfile(held[:held_max]))

    def _overflow(self, attempt: AttemptId) -> None:
        if self._queue.pop(attempt, None) is None:
            self._refusals.take(attempt)
        self._remember(attempt)
        self.counters.overflowed += 1

    def _on_manager_welcomed(self, event: xe.ManagerWelcomed) -> None:
        if self._epoch is not None and event.epoch < self._epoch:
            self.counters.old_welcomes += 1
            return
        if self._epoch != event.epoch:
            self._epoch = event.epoch
            self._jobs.clear()  # the new life sends what it wants known
            self._refusals.pardon()
        self._on_manager_lost()
        self._welcome = event
        self._held_max = event.held_max or self._held_max
        self._announced = None
        self._announce_after = 0.0

    def _on_manager_lost(self) -> None:
        """What was on its way may be lost: it is reported anew, under a new number, after a welcome."""
        self._welcome = None
        self._reports.recall()

    # --- reports ----------------------------------------------------------------------------------

    def _report_if_due(self, now: float, batch: Batch) -> None:
        welcome = self._welcome
        if welcome is None:
            return
        idle = not self._running and not self._queue
        report = self._reports.next_report(now, welcome.report_delay_s, welcome.report_bytes_max, idle)
        if report is not None:
            batch.last.append(report)

    def _resend_if_due(self, now: float, batch: Batch) -> None:
        report = self._reports.repeated(now) if self._welcome is not None else None
        if report is not None:
            self.counters.resent += 1
            batch.last.append(report)

    def _on_report_stored(self, number: int, epoch: int, batch: Batch) -> None:
        if epoch not in (0, self._epoch):
            self.counters.old_acknowledgements += 1
            return
        done = self._reports.acknowledge(number)
        if not done:
            self.counters.stale_acknowledgements += 1
            return
        for finished in done:
            self._remember(finished.attempt)
        batch.first.append(xe.ForgetFinished([f.attempt for f in done]))

    # --- presence ---------------------------------------------------------------------------------

    def _announce_if_due(self, now: float, batch: Batch) -> None:
        if self._welcome is None or now < self._announce_after:
            return
        load = self.load()
        self._load_stale = False
        if load != self._announced:
            self._announced = load
            self._announce_after = now + self.settings.announce_s
            batch.last.append(load)

    # --- invariants -------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise `InternalError` if a law of this machine is broken. For tests and the simulator; O(state)."""
        sets = (
            self._queue.keys(),
            self._refusals.held.keys(),
            self._running.keys(),
            self._reports.kept.keys(),
            self._recent.keys(),
        )
        head = next(iter(self._queue.values()), None)
        self._require(len(set().union(*sets)) == sum(map(len, sets)), "an attempt is in two places")
        for problem in self._reports.problems(self._welcome is not None):
            self._require(False, problem)
        self._require(
            self._busy == sum(r.waiting.terms.slots for r in self._running.values()), "busy slots miscounted"
        )
        self._require(len(self._recent) <= self.settings.recent_max, "too many attempts remembered")
        waits = self._queue or self._refusals.held
        self._require(not ((self._draining or self._closed) and waits), "work is kept that must go back")
        self._require(not (self._left and self._running), "left while something runs")
        self._require(
            head is None or self._may_not_start() or self._busy + head.terms.slots > self.settings.slots,
            "slots are free and the head of the queue fits",
        )

    def _require(self, holds: bool, what: str) -> None:
        if not holds:
            raise InternalError(
                f"execution machine: {what}",
                story=f"queue {_some(self._queue)} running {_some(self._running)} "
                f"kept {_some(self._reports.kept)}",
            )


def _some(attempts: Iterable[AttemptId]) -> list[AttemptId]:
    return list(attempts)[:20]
