"""What jobs ask for and what workers offer, each kept once: signatures, crews, classes, owners.

Pure data that `matching` and `naming` keep in step; they decide nothing. Read by the other modules of core.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from kestrel.core.addresses import Parts, Pattern, matching
from kestrel.core.jobs import Job, User
from kestrel.core.model import JobId, WorkerOffer
from kestrel.core.ranking import Ranking

if TYPE_CHECKING:
    from kestrel.core.pool import Worker


class Owner:
    """Whose jobs the owners of some workers let run there; one object for equal lists of patterns."""

    __slots__ = ("classes", "patterns")

    def __init__(self, patterns: tuple[Pattern, ...]) -> None:
        self.patterns = patterns
        self.classes = 0
        """Classes of workers that belong to it."""

    def takes(self, user: str) -> bool:
        """Whether the jobs of a user (bare address) may run there."""
        return matching(self.patterns, user)


class Signature:
    """What some jobs ask of a worker, and which of these jobs have queued tasks."""

    __slots__ = (
        "capacity",
        "classes",
        "hungry",
        "jobs",
        "kind",
        "lenders",
        "ready",
        "requires",
        "revokes",
        "slots",
    )
    named: bool = False
    """Whether its jobs name their workers: then it is a `Crew`."""

    def __init__(self, requires: frozenset[str], slots: int, kind: frozenset[Owner]) -> None:
        self.requires = requires
        self.slots = slots
        self.kind = kind
        """Owners, among those that take not everybody's jobs, who take those of its users."""
        self.jobs = 0
        """Jobs that have not ended."""
        self.classes: dict[WorkerClass, None] = {}
        """Classes that match; none for a crew, which knows its workers one by one."""
        self.capacity = 0
        """Slots of all workers that match and take tasks."""
        self.hungry: OrderedDict[WorkerClass, None] = OrderedDict()
        """Matching classes in which somebody wants work; none for a crew."""
        self.ready: dict[int, dict[User, list[JobId]]] = {}
        """Priority → user → his jobs with queued tasks, in the order of submission."""
        self.lenders: OrderedDict[Job, None] = OrderedDict()
        """Jobs of which workers may have more than they can start."""
        self.revokes = 0
        """Revocations that workers have not answered yet."""

    def fits(self, worker: Worker) -> bool:
        """Whether its jobs may run on this worker. O(1)."""
        return worker.cls in self.classes

    def members(self) -> Iterator[Worker]:
        """All workers on which its jobs may run. O(them)."""
        for cls in self.classes:
            yield from cls.members

    def suits(self, cls: WorkerClass) -> bool:
        """True set logic: the offer has all tags, one task fits into its slots, the owner takes the users."""
        offer = cls.offer
        return (
            self.slots <= offer.slots
            and self.requires <= offer.provides
            and (cls.owner is None or cls.owner in self.kind)
        )

    def best(self) -> tuple[int, int, JobId]:
        """The rank of its first candidate: priority, then its user's load, then the order of submission."""
        priority = max(self.ready)
        users = self.ready[priority]
        load, job = min((user.load, jobs[0]) for user, jobs in users.items())
        return (-priority, load, job)


class Crew(Signature):
    """What jobs of one user ask that name their workers by the same patterns."""

    __slots__ = ("mask", "patterns", "user", "workers")
    named = True

    def __init__(
        self, requires: frozenset[str], slots: int, patterns: tuple[Pattern, ...], user: User
    ) -> None:
        super().__init__(requires, slots, frozenset())
        self.patterns = patterns
        self.user = user
        self.mask = 0
        """The numbers of its workers, as bits."""
        self.workers: tuple[Worker | None, ...] | list[Worker | None] = ()
        """Of everybody, by number: `naming` shares its list."""

    def fits(self, worker: Worker) -> bool:
        return bool(self.mask >> worker.number & 1)

    def members(self) -> Iterator[Worker]:
        for number in numbers(self.mask):
            worker = self.workers[number]
            assert worker is not None
            yield worker

    def suits(self, cls: WorkerClass) -> bool:
        offer = cls.offer
        return (
            self.slots <= offer.slots
            and self.requires <= offer.provides
            and (cls.owner is None or cls.owner in self.user.kind)
        )

    def means(self, worker: Worker) -> bool:
        """Whether one of its patterns means the worker, whatever it offers."""
        parts = worker.address
        return any(pattern.matches_parts(parts) for pattern in self.patterns)


_DIGITS: Final = bytes(b"01"[b & 1] for b in range(256))
NOBODY: Final[list[Crew]] = []
"""The crews of a worker that no job names: one list for all of them, which must stay empty."""


class WorkerClass:
    """Workers with equal offers."""

    __slots__ = ("capacity", "hungry", "idle", "members", "offer", "owner", "signatures")

    def __init__(self, offer: WorkerOffer, owner: Owner | None) -> None:
        self.offer = offer
        self.owner = owner
        """None: it takes everybody's jobs."""
        self.members: dict[Worker, None] = {}
        self.capacity = 0
        """Slots of its workers that take tasks."""
        self.signatures: dict[Signature, None] = {}
        """Those that match, without crews."""
        self.hungry: Ranking[Worker] = Ranking()
        """Workers that want work, by how much of their slots is taken."""
        self.idle = 0
        """How many of them have a free slot."""


def may_run(job: Job, worker: Worker) -> bool:
    """Whether the job means the worker, and its owner takes the user; what it can do is another question."""
    owner = worker.cls.owner
    return (owner is None or owner in job.user.kind) and means(job, worker.address)


def means(job: Job, worker: Parts) -> bool:
    """Whether the job may be given to a worker of this address: to all if it names none."""
    patterns = job.terms.workers
    return not patterns or any(pattern.matches_parts(worker) for pattern in patterns)


def mask_of(workers: Iterable[Worker]) -> int:
    """The numbers of these workers as bits."""
    bits = bytearray()
    for worker in workers:
        number = worker.number
        if number >= len(bits):
            bits.extend(bytes(number + 1 - len(bits)))
        bits[number] = 1
    return int(bits[::-1].translate(_DIGITS) or b"0", 2)


def numbers(mask: int) -> Iterator[int]:
    """The bits of a mask, from the lowest; O(bits of the whole mask)."""
    text = bin(mask)[:1:-1]
    at = text.find("1")
    while at >= 0:
        yield at
        at = text.find("1", at + 1)
