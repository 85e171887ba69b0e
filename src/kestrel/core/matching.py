"""Who may run what: workers that offer the same form a class, jobs that ask the same share a signature.

Requirements are evaluated once per (signature, class), when either is new; HTCondor calls the
idea autoclusters. From then on only indices are kept up to date.
Decides which job is next for a class or a worker; never how many tasks of it (that is `dispatch`).

Two things could multiply signatures and classes, and must not. *Jobs that name their workers* have a
signature of their own kind, a crew (`naming`), and touch no class. *Owners that take only some users' jobs*:
users whom the same owners take share their signatures, so without such owners nobody's are split. When a new
list of an owner appears, the users it means get other signatures: O(their jobs that have not ended), once per
list; the last `OWNERS_KEPT_MAX` lists that nobody has any more are kept, so that one which comes and goes
costs nothing.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from itertools import chain, islice
from typing import TYPE_CHECKING, Final, TypeAlias

from kestrel.core.addresses import Pattern
from kestrel.core.jobs import Job, User
from kestrel.core.model import JobId, WorkerOffer
from kestrel.core.naming import Naming
from kestrel.core.signatures import Crew, Owner, Signature, WorkerClass

if TYPE_CHECKING:
    from kestrel.core.pool import Worker


PROBED_JOBS_MAX: Final = 64
"""How many waiting jobs with equal requirements are looked at for a probe."""
OWNERS_KEPT_MAX: Final = 64
"""So many lists of users that no worker has any more are remembered, should one with it come back."""

NO_OWNERS: Final[frozenset[Owner]] = frozenset()

Rank: TypeAlias = tuple[int, int, JobId]


class Matching:
    """All signatures and classes, and which fit. One per scheduler."""

    def __init__(self) -> None:
        self.signatures: dict[tuple[frozenset[str], int, frozenset[Owner]], Signature] = {}
        """Of jobs that do not name their workers."""
        self.naming = Naming()
        self.classes: dict[WorkerOffer, WorkerClass] = {}
        self.ready: dict[Signature, None] = {}
        """Signatures, crews excepted, with candidates."""
        self.jobs: dict[JobId, Job] = {}
        self.lending: dict[Signature, None] = {}
        """Signatures, and crews, of which some worker may have more than it can start."""
        self.users: dict[User, dict[Job, None]] = {}
        """Who has jobs that have not ended."""
        self.owners: dict[tuple[Pattern, ...], Owner] = {}
        self._idle_owners: dict[Owner, None] = {}

    # --- jobs -----------------------------------------------------------------------------------------

    def all_signatures(self) -> Iterator[Signature]:
        """Crews as well."""
        yield from self.signatures.values()
        yield from self.naming.crews.values()

    def add_job(self, job: Job) -> None:
        """A job that has not ended. It becomes a candidate with the next `update`."""
        user = job.user
        jobs = self.users.get(user)
        if jobs is None:
            jobs = self.users[user] = {}
            user.kind = NO_OWNERS
            if self.owners:
                user.kind = frozenset([o for o in self.owners.values() if o.takes(user.name)])
        jobs[job] = None
        self.jobs[job.id] = job
        self._sign(job)

    def drop_job(self, job: Job) -> None:
        """The job has ended."""
        self.update(job)
        self._unsign(job)
        del self.jobs[job.id]
        jobs = self.users[job.user]
        del jobs[job]
        if not jobs:
            del self.users[job.user]

    def _sign(self, job: Job) -> None:
        terms = job.terms
        signature: Signature | None
        if terms.workers:
            signature = self.naming.crew_for(job)
        else:
            key = (terms.requires, terms.slots, job.user.kind)
            signature = self.signatures.get(key)
            if signature is None:
                signature = self.signatures[key] = Signature(*key)
                for cls in self.classes.values():
                    self._link(signature, cls)
        signature.jobs += 1
        signature.revokes += job.revokes
        job.signature = signature

    def _unsign(self, job: Job) -> None:
        signature = job.signature
        signature.jobs -= 1
        signature.revokes -= job.revokes
        signature.lenders.pop(job, None)
        if signature.jobs:
            return
        if isinstance(signature, Crew):
            self.naming.drop(signature)
        else:
            del self.signatures[signature.requires, signature.slots, signature.kind]
            for cls in signature.classes:
                del cls.signatures[signature]

    def _set_kind(self, user: User, kind: frozenset[Owner]) -> None:
        """Other owners take this user's jobs now: those that name no workers get another signature."""
        user.kind = kind
        for job in self.users[user]:
            if not job.signature.named:
                listed, lends = job.listed, job in job.signature.lenders
                if listed:
                    self._unlist(job)
                self._unsign(job)
                self._sign(job)
                if listed:
                    self._list(job)
                if lends:
                    self.lend(job)

    def lend(self, job: Job) -> None:
        """Some worker may have more of the job than it can start."""
        job.signature.lenders[job] = None
        self.lending[job.signature] = None

    def update(self, job: Job) -> bool:
        """Enter a job among the candidates, or take it out; true if it has become one."""
        ready = job.counts[0] > 0 and not job.settling
        if ready == job.listed:
            return False
        job.listed = ready
        if ready:
            self._list(job)
        else:
            self._unlist(job)
        return ready

    def _list(self, job: Job) -> None:
        signature = job.signature
        if not signature.named:
            self.ready[signature] = None
        insort(signature.ready.setdefault(job.terms.priority, {}).setdefault(job.user, []), job.id)

    def _unlist(self, job: Job) -> None:
        signature = job.signature
        priority = job.terms.priority
        users = signature.ready[priority]
        waiting = users[job.user]
        del waiting[bisect_left(waiting, job.id)]
        if not waiting:
            del users[job.user]
            if not users:
                del signature.ready[priority]
                if not signature.ready and not signature.named:
                    del self.ready[signature]

    def best_for(self, cls: WorkerClass) -> Job | None:
        """The next job for workers of this class, among those that name no workers.

        Costs as much as there are distinct requirements among waiting jobs, plus their users; never as
        much as there are jobs, tasks or workers.
        """
        fitting = self._fitting(cls)
        if not fitting:
            return None
        return self.jobs[min([signature.best() for signature in fitting])[2]]

    def best_of(self, worker: Worker) -> Job | None:
        """The next job for this worker, among those that name it, too; each distinct crew of it counts as
        one requirement more."""
        if not worker.named:
            return self.best_for(worker.cls)
        fitting = self._fitting(worker.cls)
        fitting += [crew for crew in worker.named if crew.ready]
        if not fitting:
            return None
        return self.jobs[min([signature.best() for signature in fitting])[2]]

    def taker_of(self, signature: Signature) -> Worker | None:
        """A worker that wants work and may run jobs of this signature; None if nobody does. Classes have
        their turns, and in each the least loaded is first."""
        if isinstance(signature, Crew):
            return self.naming.taker_of(signature)
        if not signature.hungry:
            return None
        cls = next(iter(signature.hungry))
        signature.hungry.move_to_end(cls)
        return cls.hungry.first()

    def _fitting(self, cls: WorkerClass) -> list[Signature]:
        """Signatures with candidates that match the class."""
        if len(self.ready) <= len(cls.signatures):
            return [s for s in self.ready if s in cls.signatures]
        return [s for s in cls.signatures if s.ready]

    def probe_for(self, worker: Worker, slots: int) -> Job | None:
        """A job with a queued task that fits into so many slots of this worker, and that may run again or
        that nobody could run who takes tasks as usual; the order is that of `best`. Looks at
        `PROBED_JOBS_MAX` jobs per signature at most."""
        fitting: list[Rank] = []
        for signature in chain(worker.cls.signatures, worker.named):
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

    def join(self, worker: Worker) -> None:
        """Put a worker into the class of its offer, as one that takes no tasks yet."""
        offer = worker.offer
        cls = self.classes.get(offer)
        if cls is None:
            cls = self.classes[offer] = WorkerClass(offer, self._owner(offer.users))
            for signature in self.signatures.values():
                self._link(signature, cls)
        cls.members[worker] = None
        worker.cls = cls
        self.naming.enter(worker)

    def leave(self, worker: Worker) -> None:
        """The worker must take no tasks (`change_capacity`) and not be hungry any more."""
        cls = worker.cls
        self.naming.leave(worker)
        del cls.members[worker]
        if not cls.members:
            del self.classes[cls.offer]
            for signature in cls.signatures:
                del signature.classes[cls]
            if cls.owner is not None:
                self._leave_owner(cls.owner)

    def _owner(self, patterns: tuple[Pattern, ...]) -> Owner | None:
        """The owner of a new class; None if it takes everybody's jobs."""
        if not patterns:
            return None
        owner = self.owners.get(patterns)
        if owner is None:
            owner = self.owners[patterns] = Owner(patterns)
            for user in self.users:
                if owner.takes(user.name):
                    self._set_kind(user, user.kind | {owner})
        owner.classes += 1
        self._idle_owners.pop(owner, None)
        return owner

    def _leave_owner(self, owner: Owner) -> None:
        """A class of it is gone."""
        owner.classes -= 1
        if owner.classes:
            return
        self._idle_owners[owner] = None
        if len(self._idle_owners) > OWNERS_KEPT_MAX:
            oldest = next(iter(self._idle_owners))
            del self._idle_owners[oldest], self.owners[oldest.patterns]
            for user in self.users:
                if oldest in user.kind:
                    self._set_kind(user, user.kind - {oldest})

    def change_capacity(self, worker: Worker, slots: int) -> None:
        """Slots of this worker take tasks from now on or (negative) do not any more."""
        worker.cls.capacity += slots
        for signature in chain(worker.cls.signatures, worker.named):
            signature.capacity += slots

    def set_hungry(self, worker: Worker, key: int) -> None:
        """The worker wants work; the least `key` is served first."""
        cls = worker.cls
        if not cls.hungry:
            for signature in cls.signatures:
                signature.hungry[cls] = None
        cls.hungry.put(worker, key)
        if worker.named:
            self.naming.note(worker, key)

    def set_sated(self, worker: Worker) -> None:
        """The worker wants no work."""
        cls = worker.cls
        if worker.named:
            self.naming.note(worker, -1)
        if worker in cls.hungry:
            cls.hungry.discard(worker)
            if not cls.hungry:
                for signature in cls.signatures:
                    del signature.hungry[cls]

    def _link(self, signature: Signature, cls: WorkerClass) -> None:
        if signature.suits(cls):
            signature.classes[cls] = None
            signature.capacity += cls.capacity
            cls.signatures[signature] = None
            if cls.hungry:
                signature.hungry[cls] = None
