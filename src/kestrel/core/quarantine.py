"""Workers that fail what others finish: who is held back, who is quarantined, who gets a probe when.

A broken machine fails each task at once, so it is always the hungriest, and would eat a whole bag. It is
found by rows: failures (not time-outs) of one job on one worker without any success of that worker in
between. A row is weighed against what others made of that job (`_weigh`): the chance that an ordinary
worker has such a row is p to the power of its length, p being the share of failures of others, estimated
with Laplace's rule (one of each in advance), since the row began or over all, whichever excuses more.

* Unlikely: the worker is *held back*: it gets nothing more until others have said what they make of the
  job. That needs somebody else who has tasks of the job; if all who have are held back, it is the job.
* Very unlikely, and another worker has completed tasks of that job since the row began, and could take
  more: it is *quarantined*, until it has completed a probe.

So a job that fails everywhere quarantines nobody, nor does one whose tasks often fail, and the only worker
that could run a job is never quarantined for it. A witness must be credible: of a row only the first
failures count against the job until a success ends it, or two broken machines would vouch for each other.

Both kinds give back what they have not started, and are paroled: after a while they get one task of a job
that may run again, as a probe. If it fails, the worker is blamed, not the task; should it fail elsewhere
too, the worker is acquitted. A job that nobody else could run would wait for ever: its tasks are probes
even if they must not run twice, and their failures are their own. Costs O(1) per failure, per report of a
worker in trouble and per probe, a logarithm of the workers in trouble included; nothing is kept per task but
on probes that failed.

Called by `outcomes`, `dispatch` and `scheduler`. Forgotten with the worker that leaves, and with this life.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import inf, log
from typing import TYPE_CHECKING, Final

from kestrel.core import effects as fx
from kestrel.core.jobs import COMPLETED, Attempt, Job
from kestrel.core.model import AttemptEnd, JobId, WorkerId
from kestrel.core.pool import Worker
from kestrel.core.ranking import Ranking

if TYPE_CHECKING:
    from kestrel.core.books import Books

UNLIKELY: Final = log(1e-2)
"""A row that an ordinary worker has so seldom gets its worker held back …"""
VERY_UNLIKELY: Final = log(1e-4)
"""… and such a one quarantined."""
ROWS_MAX: Final = 8
"""So many jobs a worker may be failing at the same time; of more the oldest are forgotten."""
SUSPECTS_MAX: Final = 16
"""When so many workers are held back for a job, it is the job."""
PROBES_MAX: Final = 4
"""For how many workers a probe is looked for at a time, so that those for whom there is none cost little."""


PROBE_COMPLETED: Final = "it completed a probe"


@dataclass(slots=True)
class Row:
    """Failures of one job on one worker without a success."""

    completed: int
    """Of the job, when the row began; all since then are others'."""
    failures: int
    """Those that counted against the job when the row began."""
    count: int = 0


@dataclass(slots=True, eq=False)
class Bar:
    """Why a worker gets no tasks, and when it gets a probe."""

    job: JobId
    reason: str
    parole_s: float
    proven: bool = False
    """Quarantined; else held back until others have spoken."""
    until: float = inf
    """When a probe is due; infinite while one is out, or due already."""
    probe: Attempt | None = None
    asked: set[JobId] = field(default_factory=set)
    """Jobs of which it was asked to give back what it has not started."""


class Quarantine:
    """All workers in trouble. `ready`: those that wait for a probe; `asking`: those that may have to be asked
    to give tasks back."""

    def __init__(self, books: Books) -> None:
        self.books = books
        self.barred: dict[Worker, Bar] = {}
        self.paroles: Ranking[Worker] = Ranking()
        """By when a probe is due, in microseconds."""
        self.ready: dict[Worker, None] = {}
        self.asking: dict[Worker, None] = {}
        self._suspected: dict[Job, None] = {}
        """Jobs for which somebody is held back."""

    # --- what is told ---------------------------------------------------------------------------------

    def failed(self, worker: Worker, job: Job) -> None:
        """A task of the job failed on this worker, and it was no probe."""
        credible = self.books.settings.quarantine_failures
        if not credible:
            return
        row = worker.rows.get(job.id)
        if row is None:
            if len(worker.rows) >= ROWS_MAX:
                needed = worker.bar.job if worker.bar is not None else None
                del worker.rows[next(j for j in worker.rows if j != needed)]
            row = worker.rows[job.id] = Row(job.counts[COMPLETED], job.failures)
        row.count += 1
        if row.count < credible:
            job.failures += 1
        self.testified(worker, job)
        if row.count >= credible:
            self._judge(worker, job, row)

    def succeeded(self, worker: Worker) -> None:
        """It completed something; to be called when it has rows or is barred."""
        credible = self.books.settings.quarantine_failures
        for job_id, row in worker.rows.items():
            job = self.books.jobs.get(job_id)
            if job is not None:
                job.failures += max(0, row.count - credible + 1)
        worker.rows.clear()
        if self._probe_is_gone(worker):
            self.lift(worker, PROBE_COMPLETED)
        elif worker.bar is not None and not worker.bar.proven:
            self.lift(worker, "it completed a task")

    def testified(self, witness: Worker, job: Job) -> None:
        """A worker said how tasks of the job ended: what others are held back for is weighed anew."""
        for worker in list(job.suspects):
            if worker is not witness:
                self._judge(worker, job, worker.rows[job.id])

    def probe_ended(self, worker: Worker, attempt: Attempt, end: AttemptEnd) -> bool:
        """An attempt ended; true if it was the worker's probe, and the worker is to blame, not the task."""
        bar = worker.bar
        if bar is None or bar.probe is not attempt:
            return False
        if end is AttemptEnd.COMPLETED:
            self.lift(worker, PROBE_COMPLETED)
        elif end is AttemptEnd.FAILED:
            bar.parole_s = min(bar.parole_s * 2, self.books.settings.parole_s_max)
            self._parole(worker, bar)
            return not attempt.void and self._may_blame(worker, attempt)
        else:
            self._parole(worker, bar)
        return False

    def _may_blame(self, worker: Worker, probe: Attempt) -> bool:
        """Whether the task is to run again, and somebody else could: else it would never come to an end."""
        job = probe.job
        return job.terms.restart and not job.wants_cancel(probe.task) and self._others_can(worker, job)

    def hand_changed(self, worker: Worker) -> None:
        """It gave tasks back, or came back without them: if a probe was among them, another follows later."""
        bar = worker.bar
        if bar is not None and self._probe_is_gone(worker):
            self._parole(worker, bar)

    def acquit(self, name: WorkerId) -> None:
        """The task that was blamed on this worker failed on another one as well."""
        worker = self.books.pool.workers.get(name)
        if worker is not None and worker.bar is not None:
            self.lift(worker, "its probe failed on another worker as well")

    def forget(self, worker: Worker) -> None:
        """It left the pool."""
        if worker.bar is not None:
            self._strike_out(worker)

    def job_is_over(self, job: Job) -> None:
        """All tasks of the job have ended: nobody will say any more about it."""
        for worker in list(job.suspects):
            self.lift(worker, "the job ended", clean=False)

    def review(self) -> None:
        """Time passed: nobody is held back for a job of which nobody else has tasks any more."""
        for job in list(self._suspected):
            if not self._others_hold(job):
                for worker in list(job.suspects):
                    self.lift(worker, "nobody else has tasks of the job", clean=False)

    def lift(self, worker: Worker, why: str, *, clean: bool = True) -> None:
        """It gets tasks again; `clean`: what it failed before is forgotten."""
        bar = worker.bar
        if bar is None:
            return
        self._strike_out(worker)
        if clean:
            worker.rows.clear()
        self.books.pool.set_barred(worker, None)
        if bar.proven:
            self.books.effects.append(fx.AnnounceQuarantineLifted(worker.id, why))
        text = "the quarantine of a worker is lifted" if bar.proven else "a worker is held back no longer"
        self.books.tell(bar.job, None, f"{text}: {why}", worker.id)

    # --- probes ---------------------------------------------------------------------------------------

    def next_parole(self) -> float | None:
        """When the next probe is due; None: none will be."""
        worker = self.paroles.first()
        return None if worker is None else self.barred[worker].until

    def due(self) -> Sequence[Worker]:
        """Workers that should have a probe now, at most `PROBES_MAX`; others have their turn next time."""
        now = self.books.now
        while (worker := self.paroles.first()) is not None and self.barred[worker].until <= now:
            self.paroles.discard(worker)
            self.barred[worker].until = inf
            self.ready[worker] = None
        due = list(islice(self.ready, PROBES_MAX))
        if len(due) < len(self.ready):
            for worker in due:
                del self.ready[worker]
                self.ready[worker] = None
        return due

    def probe_given(self, worker: Worker, attempt: Attempt) -> None:
        """This attempt is its probe."""
        self.barred[worker].probe = attempt
        self.ready.pop(worker, None)
        self.books.tell(attempt.job.id, (attempt.task,), "it is a probe", worker.id)

    def _probe_is_gone(self, worker: Worker) -> bool:
        probe = worker.bar.probe if worker.bar is not None else None
        return probe is not None and probe.id not in worker.hand

    def _parole(self, worker: Worker, bar: Bar) -> None:
        bar.probe = None
        bar.until = self.books.now + bar.parole_s
        self.ready.pop(worker, None)
        self.paroles.put(worker, int(bar.until * 1e6))

    # --- judging --------------------------------------------------------------------------------------

    def _judge(self, worker: Worker, job: Job, row: Row) -> None:
        bar = worker.bar
        if bar is not None and (bar.proven or bar.job != job.id):
            return
        completed = job.counts[COMPLETED] - row.completed
        weight = self._weigh(job, row)
        failed = f"it failed {row.count} tasks of job {job.id} in a row"
        if completed and weight <= VERY_UNLIKELY and self._others_can(worker, job):
            self._bar(worker, job, f"{failed}, while others completed {completed}", proven=True)
        elif weight > UNLIKELY or (job.acquitted and not completed):
            if bar is not None:
                self.lift(worker, "others have trouble with the job, too", clean=False)
        elif bar is None and self._may_wait_for_others(worker, job):
            self._bar(worker, job, f"{failed}, and waits for what others make of it", proven=False)

    def _weigh(self, job: Job, row: Row) -> float:
        """Logarithm of the chance that an ordinary worker has such a row."""
        own = min(row.count, self.books.settings.quarantine_failures - 1)
        failed, completed = job.failures - own, job.counts[COMPLETED]
        failed_since, completed_since = failed - row.failures, completed - row.completed
        ever = (failed + 1) / (failed + completed + 2)
        lately = (failed_since + 1) / (failed_since + completed_since + 2)
        return row.count * log(max(ever, lately))

    def _others_can(self, worker: Worker, job: Job) -> bool:
        """Whether somebody else takes tasks of the job."""
        own = worker.offer.slots if worker.takes_tasks and job.signature.fits(worker) else 0
        return job.signature.capacity > own

    def _others_hold(self, job: Job, worker: Worker | None = None) -> bool:
        """Whether somebody has tasks of the job who is not held back for it (nor this worker)."""
        silent = sum(w.per_job.get(job, 0) for w in job.suspects)
        own = worker.per_job.get(job, 0) if worker is not None else 0
        return job.in_hand > silent + own

    def _may_wait_for_others(self, worker: Worker, job: Job) -> bool:
        """Whether others will say something soon. If all who could are held back, it is the job."""
        if len(job.suspects) < SUSPECTS_MAX and self._others_hold(job, worker):
            return True
        if job.suspects:
            job.acquitted = True
            for other in list(job.suspects):
                self.lift(other, "all workers fail tasks of this job", clean=False)
        return False

    def _bar(self, worker: Worker, job: Job, reason: str, *, proven: bool) -> None:
        bar = worker.bar
        if bar is None:
            bar = self.barred[worker] = Bar(job.id, reason, self.books.settings.parole_s)
            self.books.pool.set_barred(worker, bar)
            self.asking[worker] = None
            self._parole(worker, bar)
        bar.reason, bar.proven = reason, proven
        if proven:
            self._clear_suspicion(worker, job)
            self.books.effects.append(fx.AnnounceWorkerQuarantined(worker.id, reason))
        else:
            job.suspects[worker] = None
            self._suspected[job] = None
        text = "a worker was quarantined" if proven else "a worker is held back"
        self.books.tell(job.id, None, f"{text}: {reason}", worker.id)

    def _clear_suspicion(self, worker: Worker, job: Job) -> None:
        job.suspects.pop(worker, None)
        if not job.suspects:
            self._suspected.pop(job, None)

    def _strike_out(self, worker: Worker) -> None:
        bar = self.barred.pop(worker)
        self.paroles.discard(worker)
        self.ready.pop(worker, None)
        self.asking.pop(worker, None)
        job = self.books.jobs.get(bar.job)
        if job is not None:
            self._clear_suspicion(worker, job)
