"""The workers that a manager sees: what is in their hands, how full they are, when they were last heard.

Keeps totals, hunger and leases up to date at O(log n) per change. Decides nothing about tasks. Used by
the other modules of core.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kestrel.core.addresses import parts_of
from kestrel.core.jobs import UNIT, Attempt, Job
from kestrel.core.matching import Matching
from kestrel.core.model import AttemptId, JobId, SchedulerSettings, WorkerId, WorkerOffer
from kestrel.core.signatures import NOBODY, Crew, WorkerClass

if TYPE_CHECKING:
    from kestrel.core.quarantine import Bar, Row

FULL: Final = 1024
"""A worker's place in the order of hunger when all its slots are taken; 0 when none is."""


class Worker:
    """A worker, as the scheduler sees it."""

    __slots__ = (
        "address",
        "bar",
        "busy",
        "cls",
        "completed",
        "drained",
        "failed",
        "hand",
        "heard",
        "id",
        "idle",
        "joined",
        "level",
        "named",
        "number",
        "offer",
        "per_job",
        "progress",
        "revoking",
        "rows",
        "used",
    )

    def __init__(self, worker: WorkerId, offer: WorkerOffer, now: float) -> None:
        self.id = worker
        self.offer = offer
        self.address = parts_of(worker)
        self.cls: WorkerClass
        self.number = -1
        """Its bit in the masks of crews, while it is in the pool; given out again when it has left."""
        self.named: list[Crew] = NOBODY
        """Jobs that name it, and that it could run. Kept by `naming`, like `level`."""
        self.level = -1
        self.hand: dict[AttemptId, Attempt] = {}
        """What it was given and has not reported, oldest first."""
        self.per_job: dict[Job, int] = {}
        """How many attempts of which job are in its hand."""
        self.used = 0
        """Slots that its hand would take if all of it ran at once."""
        self.busy = 0
        """Its part of the pool's busy slots."""
        self.idle = False
        """Counted among the idle of its class."""
        self.drained = False
        self.bar: Bar | None = None
        """Set while it is held back or quarantined."""
        self.rows: dict[JobId, Row] = {}
        """What it fails at without a success; empty for a worker that is well."""
        self.joined = now
        self.heard = now
        self.progress = now
        """When its hand last shrank, or was filled from empty."""
        self.revoking: Job | None = None
        """The job of which it was asked to give back tasks, and has not answered."""
        self.completed = 0
        self.failed = 0

    @property
    def takes_tasks(self) -> bool:
        """Whether it gets whatever it has room for."""
        return not self.drained and self.bar is None

    def load(self) -> int:
        """How full its hand is, in units: `UNIT` times its slots when it has all it should have."""
        return sum([count * job.unit for job, count in self.per_job.items()])

    def put(self, attempt: Attempt) -> None:
        """One more attempt in its hand."""
        job = attempt.job
        self.hand[attempt.id] = attempt
        self.count(job, 1)

    def take(self, attempt: Attempt) -> None:
        """The attempt is in its hand no more."""
        del self.hand[attempt.id]
        self.count(attempt.job, -1)

    def count(self, job: Job, change: int) -> None:
        """Keep the sums: so many attempts of a job more or (negative) fewer."""
        job.in_hand += change
        job.user.load += change * job.unit
        self.used += change * job.terms.slots
        left = self.per_job.get(job, 0) + change
        if left:
            self.per_job[job] = left
        else:
            self.per_job.pop(job, None)
            if self.revoking is job:
                self.end_revoke()

    def end_revoke(self) -> None:
        """It answered, or has nothing left to give back."""
        if self.revoking is not None:
            self.revoking.revokes -= 1
            self.revoking.signature.revokes -= 1
            self.revoking = None


@dataclass(frozen=True, slots=True)
class WorkerView:
    """What a question about a worker is answered with."""

    offer: WorkerOffer
    in_hand: int
    """Attempts in its hands, started or waiting there."""
    used: int
    """Slots that are taken, at most `offer.slots`."""
    drained: bool
    joined: float
    """By the manager's monotonic clock, as `handle` was told it."""
    heard: float
    completed: int
    """Tasks that it ended well since it joined."""
    failed: int
    quarantined: bool = False
    """It fails what others finish, and gets nothing but probes."""
    reason: str = ""
    """Why it is in quarantine, or held back until others have said what they make of a job."""

    @property
    def slots(self) -> int:
        return self.offer.slots


@dataclass(frozen=True, slots=True)
class DepartedWorker:
    """A worker that is gone."""

    worker: WorkerId
    offer: WorkerOffer
    at: float
    """By the manager's monotonic clock."""
    reason: str
    requeued: int


class Pool:
    """All workers. `dirty` collects the classes in which somebody wants work since the last dispatch."""

    def __init__(self, settings: SchedulerSettings, matching: Matching) -> None:
        self._settings = settings
        self._matching = matching
        self.workers: dict[WorkerId, Worker] = {}
        self.slots = 0
        self.busy = 0
        self.dirty: dict[WorkerClass, None] = {}
        self.dirty_named: dict[Worker, None] = {}
        """Workers that want work since then, and that jobs name."""
        self.departed: deque[DepartedWorker] = deque(maxlen=settings.lost_workers_kept)
        self._by_heard: OrderedDict[Worker, None] = OrderedDict()
        self._by_touched: OrderedDict[Worker, float] = OrderedDict()
        """When each was last heard or probed, the longest ago first."""

    def join(self, worker_id: WorkerId, offer: WorkerOffer, now: float) -> Worker:
        """Take in a worker that is not there."""
        worker = Worker(worker_id, offer, now)
        self.workers[worker_id] = worker
        self._enter(worker)
        self.hear(worker, now)
        return worker

    def change_offer(self, worker: Worker, offer: WorkerOffer) -> None:
        """It offers something else now."""
        if worker.offer != offer:
            self._remove(worker)
            worker.offer = offer
            self._enter(worker)
            self.refresh(worker)

    def drain(self, worker: Worker, drained: bool) -> None:
        """No more tasks for it, or tasks again."""
        if worker.drained != drained:
            took = worker.takes_tasks
            worker.drained = drained
            self._takes_changed(worker, took)

    def set_barred(self, worker: Worker, bar: Bar | None) -> None:
        """It is in trouble, or (None) in trouble no more."""
        took = worker.takes_tasks
        worker.bar = bar
        self._takes_changed(worker, took)

    def _takes_changed(self, worker: Worker, took: bool) -> None:
        takes = worker.takes_tasks
        if takes != took:
            slots = worker.offer.slots
            self._matching.change_capacity(worker, slots if takes else -slots)
            self.refresh(worker)

    def leave(self, worker: Worker, now: float, reason: str, requeued: int) -> None:
        """It is gone; its hand must be empty."""
        self._remove(worker)
        del self.workers[worker.id]
        del self._by_heard[worker]
        del self._by_touched[worker]
        self.departed.append(DepartedWorker(worker.id, worker.offer, now, reason, requeued))

    def _enter(self, worker: Worker) -> None:
        self._matching.join(worker)
        self.slots += worker.offer.slots
        if worker.takes_tasks:
            self._matching.change_capacity(worker, worker.offer.slots)

    def _remove(self, worker: Worker) -> None:
        self._set_hunger(worker, wants=False, idle=False)
        if worker.takes_tasks:
            self._matching.change_capacity(worker, -worker.offer.slots)
        self._matching.leave(worker)
        self.slots -= worker.offer.slots
        self.busy -= worker.busy
        worker.busy = 0

    # --- hunger -----------------------------------------------------------------------------------------

    def refresh(self, worker: Worker) -> None:
        """Its hand changed: see how full it is. With less than half of a full hand it wants more."""
        used, slots = worker.used, worker.offer.slots
        busy = used if used < slots else slots
        self.busy += busy - worker.busy
        worker.busy = busy
        if not worker.takes_tasks or len(worker.hand) >= self._settings.backlog_max:
            self._set_hunger(worker, wants=False, idle=False)
        elif used < slots:
            self._set_hunger(worker, wants=True, idle=True)
        else:
            self._set_hunger(worker, wants=worker.load() * 2 < slots * UNIT, idle=False)

    def sate(self, worker: Worker) -> None:
        """It gets no more for now, though it may have room; its next report asks again."""
        self._set_hunger(worker, wants=False, idle=False)

    def _set_hunger(self, worker: Worker, *, wants: bool, idle: bool) -> None:
        if idle != worker.idle:
            worker.idle = idle
            worker.cls.idle += 1 if idle else -1
        if wants:
            self.dirty[worker.cls] = None
            if worker.named:
                self.dirty_named[worker] = None
            self._matching.set_hungry(worker, min(FULL, worker.used * FULL // worker.offer.slots))
        else:
            self._matching.set_sated(worker)

    # --- leases -----------------------------------------------------------------------------------------

    def hear(self, worker: Worker, now: float) -> None:
        """A sign of life."""
        worker.heard = now
        self._by_heard[worker] = None
        self._by_heard.move_to_end(worker)
        self._touch(worker, now)

    def excuse(self, now: float) -> None:
        """Everybody counts as heard now, but stays due to be probed. Costs O(workers)."""
        for worker in self._by_heard:
            worker.heard = now

    def _touch(self, worker: Worker, now: float) -> None:
        self._by_touched[worker] = now
        self._by_touched.move_to_end(worker)

    def expired(self, now: float) -> list[Worker]:
        """Workers whose lease has ended, the longest silent first. Costs O(expired)."""
        found = []
        for worker in self._by_heard:
            if now - worker.heard < self._settings.lease_s:
                break
            found.append(worker)
        return found

    def to_probe(self, now: float) -> list[Worker]:
        """Workers that were silent for `probe_s` since they were heard or probed; they count as probed."""
        found = []
        for worker, touched in self._by_touched.items():
            if now - touched < self._settings.probe_s:
                break
            found.append(worker)
        for worker in found:
            self._touch(worker, now)
        return found

    def next_deadline(self) -> float | None:
        """When the first lease ends or the first probe is due; None without workers."""
        heard = next(iter(self._by_heard), None)
        if heard is None:
            return None
        touched = next(iter(self._by_touched.values()))
        return min(heard.heard + self._settings.lease_s, touched + self._settings.probe_s)
