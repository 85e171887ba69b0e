"""Jobs that name their workers: which workers each of them means, and who of these wants work.

A crew is what jobs of one user with equal patterns, tags and slots ask for; it knows its workers one by one,
by numbers, as the bits of one integer. Who of all workers that some crew means wants work is kept the same
way, one integer for each fifth of fullness. So classes of workers never multiply, however patterns overlap.

What it costs, with W workers, C crews, and k crews that mean a given worker:

* a new crew: the workers that its patterns may mean (those of one user part or one resource if the pattern
  says which, else W); a worker that joins: the crews that may mean it, likewise; each pair is matched once;
* an event of a worker: O(k), which is nothing for one that nobody names, as long as no worker is looked for;
* to find a worker for a crew: five integers of W bits, some microseconds for 10,000 workers, idle or not;
* memory: W bits a crew and one reference for each worker it means.

Forgotten with the last job of the crew. Called by `matching` only.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING, Final, TypeAlias

from kestrel.core.addresses import Pattern
from kestrel.core.jobs import Job, User
from kestrel.core.signatures import NOBODY, Crew, mask_of

if TYPE_CHECKING:
    from kestrel.core.pool import Worker

LEVELS: Final = 5
"""Steps of fullness: four for workers with a free slot, the last for those that only want more in hand."""
LEVEL_BITS: Final = 8
"""A worker's place in the order of hunger, 0 … 1024, without so many bits is its level."""

CrewKey: TypeAlias = tuple[tuple[Pattern, ...], User, frozenset[str], int]
Anchor: TypeAlias = tuple[str, str]
_ANYWHERE: Final[Anchor] = ("", "")


class Naming:
    """All crews, and the numbers of all workers."""

    def __init__(self) -> None:
        self.crews: dict[CrewKey, Crew] = {}
        self._crews_by: dict[Anchor, dict[Crew, None]] = {}
        self._workers_by: dict[Anchor, dict[Worker, None]] = {_ANYWHERE: {}}
        self._numbered: list[Worker | None] = []
        self._free: list[int] = []
        self._levels = [0] * LEVELS
        self._turn = 0
        """Equally empty workers are served in turn."""

    # --- workers ----------------------------------------------------------------------------------------

    def enter(self, worker: Worker) -> None:
        """A worker joined; it is in its class, and takes no tasks yet."""
        if self._free:
            worker.number = heappop(self._free)
            self._numbered[worker.number] = worker
        else:
            worker.number = len(self._numbered)
            self._numbered.append(worker)
        anchors = _anchors_of(worker)
        for anchor in anchors:
            self._workers_by.setdefault(anchor, {})[worker] = None
        if self.crews:
            for anchor in anchors:
                for crew in self._crews_by.get(anchor, ()):
                    if not crew.fits(worker) and crew.suits(worker.cls) and crew.means(worker):
                        crew.mask |= 1 << worker.number
                        self._enlist(crew, worker)

    def leave(self, worker: Worker) -> None:
        """The worker goes, or offers something else from now on; it wants no work and takes no tasks."""
        for crew in worker.named:
            crew.mask ^= 1 << worker.number
        worker.named = NOBODY
        for anchor in _anchors_of(worker):
            known = self._workers_by[anchor]
            del known[worker]
            if not known and anchor != _ANYWHERE:
                del self._workers_by[anchor]
        self._numbered[worker.number] = None
        heappush(self._free, worker.number)

    def note(self, worker: Worker, key: int) -> None:
        """A worker that some crew means wants work, the less the more; -1: it wants none."""
        level = key >> LEVEL_BITS
        if level != worker.level:
            bit = 1 << worker.number
            if worker.level >= 0:
                self._levels[worker.level] ^= bit
            if level >= 0:
                self._levels[level] ^= bit
            worker.level = level

    # --- crews ------------------------------------------------------------------------------------------

    def crew_for(self, job: Job) -> Crew:
        """The crew of a job that names its workers; made if it is the first that asks so."""
        terms = job.terms
        key = (terms.workers, job.user, terms.requires, terms.slots)
        crew = self.crews.get(key)
        if crew is None:
            crew = self.crews[key] = Crew(terms.requires, terms.slots, terms.workers, job.user)
            crew.workers = self._numbered
            found: dict[Worker, None] = {}
            for anchor in {_anchor(pattern): None for pattern in terms.workers}:
                self._crews_by.setdefault(anchor, {})[crew] = None
                for worker in self._workers_by.get(anchor, ()):
                    if worker not in found and crew.suits(worker.cls) and crew.means(worker):
                        found[worker] = None
            crew.mask = mask_of(found)
            for worker in found:
                self._enlist(crew, worker)
                crew.capacity += worker.offer.slots if worker.takes_tasks else 0
        return crew

    def drop(self, crew: Crew) -> None:
        """Its last job has ended."""
        del self.crews[crew.patterns, crew.user, crew.requires, crew.slots]
        for anchor in {_anchor(pattern): None for pattern in crew.patterns}:
            known = self._crews_by[anchor]
            del known[crew]
            if not known:
                del self._crews_by[anchor]
        for worker in crew.members():
            worker.named.remove(crew)
            if not worker.named:
                self.note(worker, -1)
                worker.named = NOBODY
        crew.mask = 0

    def _enlist(self, crew: Crew, worker: Worker) -> None:
        """A worker that is in the crew's mask learns of it."""
        if worker.named:
            worker.named.append(crew)
        else:
            worker.named = [crew]
            hungry = worker.cls.hungry
            self.note(worker, hungry.key(worker) if worker in hungry else -1)

    # --- questions --------------------------------------------------------------------------------------

    def taker_of(self, crew: Crew) -> Worker | None:
        """A worker of the crew that wants work, one of the emptiest; None if nobody does."""
        for bits in self._levels:
            among = bits & crew.mask
            if among:
                later = among >> self._turn
                number = self._turn + _lowest(later) if later else _lowest(among)
                self._turn = number + 1
                return self._numbered[number]
        return None

    def idle_in(self, crew: Crew) -> int:
        """How many workers of the crew have a free slot and want work."""
        return sum((bits & crew.mask).bit_count() for bits in self._levels[:-1])

    def level_of(self, worker: Worker) -> int:
        """As the bits have it; for the invariant check. -1: it wants nothing, or nobody names it."""
        found = [level for level, bits in enumerate(self._levels) if bits >> worker.number & 1]
        return found[0] if len(found) == 1 else -1 if not found else LEVELS


def _lowest(mask: int) -> int:
    return (mask & -mask).bit_length() - 1


def _anchor(pattern: Pattern) -> Anchor:
    """Where to look for those whom it means: a part of the address that it spells out, if there is one."""
    if pattern.user and not pattern.is_wild("user"):
        return ("user", pattern.user)
    if pattern.resource and not pattern.is_wild("resource"):
        return ("resource", pattern.resource)
    return _ANYWHERE


def _anchors_of(worker: Worker) -> tuple[Anchor, ...]:
    """Where patterns that may mean the worker are."""
    parts = worker.address
    return (_ANYWHERE, ("user", parts.user), ("resource", parts.resource))
