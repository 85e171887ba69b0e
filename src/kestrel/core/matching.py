"""Who may run what: workers that offer the same form a class, jobs that ask the same share a signature.

Requirements are evaluated once per (signature, class), when either is new; HTCondor calls the
idea autoclusters. From then on only indices are kept up to date.
Decides which job is next for a class; never how many tasks of it (that is `dispatch`).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from itertools import islice
from typing import TYPE_CHECKING, Final

from kestrel.core.jobs import Job, User
from kestrel.core.model import JobId, JobTerms, WorkerOffer
from kestrel.core.ranking import Ranking

if TYPE_CHECKING:
    from kestrel.core.pool import Worker


PROBED_JOBS_MAX: Final = 64
"""How many waiting jobs with equal requirements are looked at for a probe."""


class Signature:
    """What some jobs ask of a worker, and which of these jobs have queued tasks."""

    __slots__ = ("capacity", "classes", "hungry", "jobs", "lenders", "ready", "requires", "revokes", "slots")

    def __init__(self, requires: frozenset[str], slots: int) -> None:
        self.requires = requires
        self.slots = slots
        self.jobs = 0
        """Jobs that have not ended."""
        self.classes: dict[WorkerClass, None] = {}
        """Classes that match."""
        self.capacity = 0
        """Slots of all workers that match and take tasks."""
        self.hungry: OrderedDict[WorkerClass, None] = OrderedDict()
        """Matching classes in which somebody wants work."""
        self.ready: dict[int, dict[User, list[JobId]]] = {}
        """Priority → user → his jobs with queued tasks, in the order of submission."""
        self.lenders: OrderedDict[Job, None] = OrderedDict()
        """Jobs of which workers may have more than they can start."""
        self.revokes = 0
        """Revocations that workers have not answered yet."""

    def matches(self, offer: WorkerOffer) -> bool:
        """True set logic: the offer has all tags, and one task fits into its slots."""
        return self.slots <= offer.slots and self.requires <= offer.provides

    def best(self) -> tuple[int, int, JobId]:
        """The rank of its first candidate: priority, then its user's load, then the order of submission."""
        priority = max(self.ready)
        users = self.ready[priority]
        load, job = min((user.load, jobs[0]) for user, jobs in users.items())
        return (-priority, load, job)


class WorkerClass:
    """Workers with equal offers."""

    __slots__ = ("capacity", "hungry", "idle", "members", "offer", "signatures")

    def __init__(self, offer: WorkerOffer) -> None:
        self.offer = offer
        self.members: dict[Worker, None] = {}
        self.capacity = 0
        """Slots of its workers that take tasks."""
        self.signatures: dict[Signature, None] = {}
        self.hungry: Ranking[Worker] = Ranking()
        """Workers that want work, by how much of their slots is taken."""
        self.idle = 0
        """How many of them have a free slot."""


class Matching:
    """All signatures and classes, and which fit. One per scheduler."""

    def __init__(self) -> None:
        self.signatures: dict[tuple[frozenset[str], int], Signature] = {}
        self.classes: dict[WorkerOffer, WorkerClass] = {}
        self.ready: dict[Signature, None] = {}
        """Signatures with candidates."""
        self.jobs: dict[JobId, Job] = {}

    # --- jobs -----------------------------------------------------------------------------------------

    def add_job(self, job: Job) -> None:
        """A job that has not ended. It becomes a candidate with the next `update`."""
        self.jobs[job.id] = job
        terms: JobTerms = job.terms
        key = (terms.requires, terms.slots)
        signature = self.signatures.get(key)
        if signature is None:
            signature = self.signatures[key] = Signature(*key)
            for cls in self.classes.values():
                self._link(signature, cls)
        signature.jobs += 1
        job.signature = signature

    def drop_job(self, job: Job) -> None:
        """The job has ended."""
        self.update(job)
        signature = job.signature
        signature.jobs -= 1
        signature.lenders.pop(job, None)
        del self.jobs[job.id]
        if not signature.jobs:
            del self.signatures[signature.requires, signature.slots]
            for cls in signature.classes:
                del cls.signatures[signature]

    def update(self, job: Job) -> bool:
        """Enter a job among the candidates, or take it out; true if it has become one."""
        ready = job.counts[0] > 0 and not job.settling
        if ready == job.listed:
            return False
        job.listed = ready
        signature = job.signature
        priority = job.terms.priority
        if ready:
            self.ready[signature] = None
            insort(signature.ready.setdefault(priority, {}).setdefault(job.user, []), job.id)
            return True
        users = signature.ready[priority]
        waiting = users[job.user]
        del waiting[bisect_left(waiting, job.id)]
        if not waiting:
            del users[job.user]
            if not users:
                del signature.ready[priority]
                if not signature.ready:
                    del self.ready[signature]
        return False

    def best_for(self, cls: WorkerClass) -> Job | None:
        """The next job for workers of this class.

        Costs as much as there are distinct requirements among waiting jobs, plus their users; never as
        much as there are jobs, tasks or workers.
        """
        if len(self.ready) <= len(cls.signatures):
            fitting = [s for s in self.ready if s in cls.signatures]
        else:
            fitting = [s for s in cls.signatures if s.ready]
        if not fitting:
            return None
        return self.jobs[min(signature.best() for signature in fitting)[2]]

    def probe_for(self, cls: WorkerClass, slots: int) -> Job | None:
        """A job with a queued task that fits into so many slots of such a worker, and that may run again or
        that nobody could run who takes tasks as usual; the order is that of `best`. Looks at
        `PROBED_JOBS_MAX` jobs per signature at most."""
        fitting: list[tuple[int, int, JobId]] = []
        for signature in cls.signatures:
            if signature.ready and signature.slots <= slots:
                jobs = (
                    (-priority, user.load, job)
                    for priority, users in signature.ready.items()
                    for user, waiting in users.items()
                    for job in waiting
                )
                seen = islice(jobs, PROBED_JOBS_MAX)
                alone = not signature.capacity
                fitting += [rank for rank in seen if alone or self.jobs[rank[2]].terms.restart]
        return self.jobs[min(fitting)[2]] if fitting else None

    # --- workers --------------------------------------------------------------------------------------

    def join(self, worker: Worker) -> WorkerClass:
        """The class of a worker's offer, with the worker in it (as one that takes no tasks yet)."""
        offer = worker.offer
        cls = self.classes.get(offer)
        if cls is None:
            cls = self.classes[offer] = WorkerClass(offer)
            for signature in self.signatures.values():
                self._link(signature, cls)
        cls.members[worker] = None
        return cls

    def leave(self, worker: Worker) -> None:
        """The worker must take no tasks (`change_capacity`) and not be hungry any more."""
        cls = worker.cls
        del cls.members[worker]
        if not cls.members:
            del self.classes[cls.offer]
            for signature in cls.signatures:
                del signature.classes[cls]

    def change_capacity(self, cls: WorkerClass, slots: int) -> None:
        """Slots that take tasks were added or (negative) went."""
        cls.capacity += slots
        for signature in cls.signatures:
            signature.capacity += slots

    def set_hungry(self, worker: Worker, key: int) -> None:
        """The worker wants work; the least `key` is served first."""
        cls = worker.cls
        if not cls.hungry:
            for signature in cls.signatures:
                signature.hungry[cls] = None
        cls.hungry.put(worker, key)

    def set_sated(self, worker: Worker) -> None:
        """The worker wants no work."""
        cls = worker.cls
        if worker in cls.hungry:
            cls.hungry.discard(worker)
            if not cls.hungry:
                for signature in cls.signatures:
                    del signature.hungry[cls]

    def _link(self, signature: Signature, cls: WorkerClass) -> None:
        if signature.matches(cls.offer):
            signature.classes[cls] = None
            signature.capacity += cls.capacity
            cls.signatures[signature] = None
            if cls.hungry:
                signature.hungry[cls] = None
