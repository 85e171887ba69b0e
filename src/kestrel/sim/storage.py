"""The store of a simulated world: the memory store behind a disk, or a database, that has its days.

`Disk` outlives managers. Each life of a manager gets its own `StorePort`, which dies with it: units that
the disk had not yet carried out are lost then, and nobody hears of those that it had. What goes wrong:
transactions fail and may be tried again, take long, are stored while only the answer is lost; the disk is
nearly full, or full; the database is away for everybody, or one machine is cut off from it.

Called by the world; the checkers look into `Disk.store` at any instant, which is what is stored then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from kestrel.errors import StoreError
from kestrel.manager.leadership import replaced
from kestrel.ports import CommitDone, CommitFailed, JobRecord, Read, StoreContent, Write
from kestrel.sim.clock import ProcessClock, Timeline
from kestrel.sim.trace import Trace
from kestrel.store.memory import MemoryStore

Done = Callable[[CommitDone | CommitFailed], None]


class InspectableStore(MemoryStore):
    """A memory store that can be read at any instant, and whose epoch a lease may have counted up."""

    @property
    def epoch(self) -> int:
        return self._epoch

    def count_up(self) -> int:
        """A manager takes the lease: a new epoch, before the store is opened with it."""
        self._epoch += 1
        return self._epoch

    def open_with(self, terms_of: Callable[[JobRecord], Any]) -> StoreContent:
        """Open with the epoch as it is."""
        epoch = self._epoch
        content = self.open(terms_of)
        self._epoch = epoch
        return replace(content, epoch=epoch)

    def peek(self, terms_of: Callable[[JobRecord], Any]) -> StoreContent:
        """What a manager would get that opened the store now; changes nothing."""
        epoch, is_open, unit = self._epoch, self._open, self._unit
        content = self.open(terms_of)
        self._epoch, self._open, self._unit = epoch, is_open, unit
        return content

    def stored_job(self, user: str, submission: str) -> int | None:
        """Number of the job that is stored for a submission."""
        return self._submissions.get((user, submission))

    def record(self, job: int) -> JobRecord | None:
        """The stored record of a job; its counts are not filled in."""
        found = self._jobs.get(job)
        return None if found is None else found.record

    def is_cancelled(self, job: int) -> bool:
        """Whether it is stored that the whole job was cancelled."""
        return self._jobs[job].cancelled

    def result(self, job: int, task: int) -> tuple[int, Any] | None:
        """The stored end of a task: (seq, result)."""
        found = self._jobs.get(job)
        return None if found is None else found.end_of(task)

    def terminal(self, job: int) -> int:
        """How many tasks of a job have a stored end."""
        return sum(self._jobs[job].counts)


@dataclass(slots=True)
class DiskSettings:
    """How good the disk, or the database, is now."""

    delay_s: float = 0.004
    """Longest ordinary time of one transaction."""
    failure_probability: float = 0.0
    """Transactions that fail and may be tried again."""
    lost_probability: float = 0.0
    """Transactions that are stored, while the one who asked is told that they failed."""
    slow_probability: float = 0.0
    slow_s: float = 3.0
    wait_s: float = 0.0
    """Shortest time of one transaction."""
    short: bool = False
    """Little room is left, and kept for what runs."""
    full: bool = False
    """No room is left."""
    down: bool = False
    """Nobody can reach it."""


@dataclass(slots=True)
class LeaseRow:
    """What the database holds beside the store's epoch."""

    beat: int = 0
    holder: str = ""
    session: object = None
    """The session that renewed last, while the database sees it."""


class Disk:
    """Carries out units in order, each after its time; what it has carried out survives everything."""

    def __init__(self, timeline: Timeline, clock: ProcessClock, random: Random, trace: Trace) -> None:
        self.store = InspectableStore(clock)
        self.settings = DiskSettings()
        self.row = LeaseRow()
        self.timeline = timeline
        self.random = random
        self.on_stored: Callable[[int, Sequence[Write]], None] | None = None
        """Called after each unit that was stored, with the epoch of the manager that had it stored."""
        self._trace = trace

    def note(self, what: str, *fields: object) -> None:
        """Write into the history's log."""
        self._trace.add(self.timeline.now, what, *fields)

    def delay(self) -> float:
        """How long the next transaction takes."""
        settings = self.settings
        if settings.slow_probability and self.random.random() < settings.slow_probability:
            return settings.wait_s + self.random.uniform(0.0, settings.slow_s)
        return settings.wait_s + self.random.uniform(0.0, settings.delay_s)

    def chance(self, probability: float) -> bool:
        """Whether something of this probability happens now; certainties draw nothing."""
        return probability > 0.0 and self.random.random() < probability

    def stop(self) -> None:
        """The database goes down, with all sessions."""
        self.note("database_down")
        self.settings.down = True
        self.row.session = None

    def go_on(self) -> None:
        """It is back."""
        if self.settings.down:
            self.note("database_up")
            self.settings.down = False


class Way:
    """One machine's way to the database: may be cut, silently, for a while."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.cut = False
        self.session = object()

    def end_session(self, session: object) -> None:
        """The database sees that this session is gone; the next question comes over a new one."""
        if self.disk.row.session is session:
            self.disk.row.session = None
        if self.session is session:
            self.session = object()


class StorePort:
    """`kestrel.ports.Store` for one life of a manager."""

    def __init__(self, disk: Disk, clock: ProcessClock, way: Way, epoch: int = 0) -> None:
        """`epoch`: of the lease that was taken; 0: there are no leases, and opening counts it up."""
        self.epoch = epoch
        self._disk = disk
        self._clock = clock
        self._way = way
        self._waiting: deque[tuple[Sequence[Write], Sequence[Read], Done, int]] = deque()
        self._busy = False
        self._dead = False

    def open(self, terms_of: Callable[[JobRecord], Any]) -> StoreContent:
        disk = self._disk
        if disk.settings.down or self._way.cut:
            raise StoreError("no way to the database", hint="is it running?", retry=True)
        if not self.epoch:
            content = disk.store.open(terms_of)
            self.epoch = content.epoch
            return content
        if self._is_fenced():
            raise replaced()
        return disk.store.open_with(terms_of)

    def commit(self, writes: Sequence[Write], reads: Sequence[Read], done: Done, *, unit: int = 0) -> None:
        self._waiting.append((list(writes), list(reads), done, unit))
        self._begin()

    def shortage(self) -> StoreError | None:
        settings = self._disk.settings
        if settings.short or settings.full:
            return StoreError(
                "the disk is nearly full", hint="make room on the disk of the store", retry=True
            )
        return None

    def close(self) -> None:
        """What came in is finished at once, as closing blocks."""
        while self._waiting:
            writes, reads, _, unit = self._waiting.popleft()
            if not self._is_fenced() and not self._obstacle():
                self._store(writes, reads, _nobody, unit)
        self.die()

    def die(self) -> None:
        """The manager's process is gone: what the disk has not carried out never happens."""
        self._dead = True
        self._waiting.clear()

    def _begin(self) -> None:
        if self._waiting and not self._busy:
            self._busy = True
            self._disk.timeline.call_later(self._disk.delay(), self._carry_out)

    def _carry_out(self) -> None:
        """The instant in which the unit becomes durable, or fails."""
        self._busy = False
        if self._dead:
            return
        disk = self._disk
        writes, reads, done, unit = self._waiting.popleft()
        obstacle = self._obstacle()
        if obstacle:
            disk.note("not_stored", obstacle)
            problem = StoreError(obstacle, retry=True)
            late_s = disk.random.uniform(0.1, 2.0) if self._way.cut else 0.0
            self._answer(done, CommitFailed(problem), late_s)
        elif self._is_fenced():
            disk.note("fenced", self.epoch)
            self._answer(done, CommitFailed(replaced()))
        elif disk.chance(1.0 if self._way.cut else disk.settings.lost_probability):
            disk.note("answer_lost", unit)
            self._store(writes, reads, _nobody, unit)
            problem = StoreError("the connection broke while a unit was being stored", retry=True)
            self._answer(done, CommitFailed(problem), disk.random.uniform(0.0, 1.0))
        else:
            self._store(writes, reads, lambda outcome: self._answer(done, outcome), unit)
        self._begin()

    def _obstacle(self) -> str:
        """Why nothing can be stored at this instant; empty if it can be."""
        disk, settings = self._disk, self._disk.settings
        if settings.down:
            return "no way to the database"
        if self._way.cut and disk.chance(0.8):  # else it was under way when the way was cut
            return "the database does not answer"
        if settings.full:
            return "disk is full"
        if self._clock.suspended and disk.chance(0.5):
            return "the database has thrown out a session that stood still in a transaction"
        return "database is locked" if disk.chance(settings.failure_probability) else ""

    def _is_fenced(self) -> bool:
        return self.epoch != self._disk.store.epoch

    def _store(self, writes: Sequence[Write], reads: Sequence[Read], done: Done, unit: int) -> None:
        self._disk.store.commit(writes, reads, done, unit=unit)
        if self._disk.on_stored is not None:
            self._disk.on_stored(self.epoch, writes)

    def _answer(self, done: Done, outcome: CommitDone | CommitFailed, late_s: float = 0.0) -> None:
        self._clock.call_later(late_s, lambda: done(outcome))


def _nobody(outcome: CommitDone | CommitFailed) -> None:
    """The one who asked is not told."""
