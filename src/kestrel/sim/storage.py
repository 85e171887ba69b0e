"""The store of a simulated world: the memory store behind a disk that takes time and fails now and then.

`Disk` outlives managers. Each life of a manager gets its own `StorePort`, which dies with it: units that
the disk had not yet carried out are lost then, and nobody hears of those that it had. Called by the
world; the checkers look into `Disk.store` at any instant, which is what is stored at that instant.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from kestrel.errors import StoreError
from kestrel.ports import CommitDone, CommitFailed, JobRecord, Read, StoreContent, Write
from kestrel.sim.clock import ProcessClock, Timeline
from kestrel.sim.trace import Trace
from kestrel.store.memory import MemoryStore

Done = Callable[[CommitDone | CommitFailed], None]


class InspectableStore(MemoryStore):
    """A memory store that can be read at any instant without counting up its epoch."""

    def peek(self, terms_of: Callable[[JobRecord], Any]) -> StoreContent:
        """What a manager would get that opened the store now; changes nothing."""
        epoch, is_open = self._epoch, self._open
        content = self.open(terms_of)
        self._epoch, self._open = epoch, is_open
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
    """How good the disk is."""

    delay_s: float = 0.004
    """Longest ordinary time of one transaction."""
    failure_probability: float = 0.0
    """Transactions that fail and may be tried again."""
    slow_probability: float = 0.0
    slow_s: float = 3.0


class Disk:
    """Carries out units in order, each after its time; what it has carried out survives everything."""

    def __init__(self, timeline: Timeline, clock: ProcessClock, random: Random, trace: Trace) -> None:
        self.store = InspectableStore(clock)
        self.settings = DiskSettings()
        self.timeline = timeline
        self.units = 0
        self._random = random
        self._trace = trace

    def delay(self) -> float:
        """How long the next transaction takes."""
        settings = self.settings
        if settings.slow_probability and self._random.random() < settings.slow_probability:
            return self._random.uniform(0.0, settings.slow_s)
        return self._random.uniform(0.0, settings.delay_s)

    def fails(self) -> bool:
        """Whether this transaction fails; if so nothing of it is stored."""
        failure = self.settings.failure_probability
        if failure and self._random.random() < failure:
            self._trace.add(self.timeline.now, "disk_failed")
            return True
        return False


class StorePort:
    """`kestrel.ports.Store` for one life of a manager."""

    def __init__(self, disk: Disk, clock: ProcessClock) -> None:
        self._disk = disk
        self._clock = clock
        self._waiting: deque[tuple[Sequence[Write], Sequence[Read], Done]] = deque()
        self._busy = False
        self._dead = False

    def open(self, terms_of: Callable[[JobRecord], Any]) -> StoreContent:
        return self._disk.store.open(terms_of)

    def commit(self, writes: Sequence[Write], reads: Sequence[Read], done: Done, *, unit: int = 0) -> None:
        self._waiting.append((list(writes), list(reads), done))
        self._begin()

    def shortage(self) -> StoreError | None:
        """Nothing is short."""
        return None

    def close(self) -> None:
        """What came in is finished at once, as closing blocks."""
        while self._waiting:
            writes, reads, _ = self._waiting.popleft()
            self._disk.store.commit(writes, reads, _nobody)
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
        writes, reads, done = self._waiting.popleft()
        if self._disk.fails():
            problem = StoreError("database is locked", retry=True)
            self._answer(done, CommitFailed(problem))
        else:
            self._disk.units += 1
            self._disk.store.commit(writes, reads, lambda outcome: self._answer(done, outcome))
        self._begin()

    def _answer(self, done: Done, outcome: CommitDone | CommitFailed) -> None:
        self._clock.call_later(0.0, lambda: done(outcome))


def _nobody(outcome: CommitDone | CommitFailed) -> None:
    """The one who asked is gone."""
