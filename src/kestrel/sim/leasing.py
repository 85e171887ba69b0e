"""The lease of a simulated database, asked over a way that is slow, breaks, and loses answers.

`kestrel.ports.LeaseBook` for one life of a manager; the row is the disk's, so it outlives everybody.
Questions reach the row and are answered in order. Called by `Leadership`; never decides anything itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from kestrel.errors import StoreError
from kestrel.ports import LeaseView
from kestrel.sim.clock import ProcessClock
from kestrel.sim.storage import Disk, Way

TIMEOUT_S = 2.0
"""A question over a way that is cut fails within this time."""

Question: TypeAlias = Callable[[], Any]


class SimLeaseBook:
    """`LeaseBook` of one process."""

    def __init__(self, disk: Disk, clock: ProcessClock, way: Way) -> None:
        self.on_taken: Callable[[int, LeaseView], None] | None = None
        """Called at the instant of each take, with the new epoch and what was seen before."""
        self.sent_at = 0.0
        """World's time at which the last renewal or take that succeeded was sent."""
        self._disk = disk
        self._clock = clock
        self._way = way
        self._reached_at = 0.0
        self._answered_at = 0.0

    def look(self, done: Callable[[LeaseView | StoreError], None]) -> None:
        self._ask(self._view, done)

    def take(self, seen: LeaseView, holder: str, done: Callable[[int | StoreError | None], None]) -> None:
        sent_at = self._disk.timeline.now

        def take() -> int | None:
            disk, row = self._disk, self._disk.row
            if (disk.store.epoch, row.beat) != (seen.epoch, seen.beat):
                return None
            epoch = disk.store.count_up()
            disk.note("taken", holder, epoch)
            if self.on_taken is not None:
                self.on_taken(epoch, seen)
            row.beat, row.holder, row.session = 0, holder, self._way.session
            self.sent_at = sent_at
            return epoch

        self._ask(take, done)

    def renew(self, epoch: int, done: Callable[[bool | StoreError], None]) -> None:
        sent_at = self._disk.timeline.now

        def renew() -> bool:
            row = self._disk.row
            if self._disk.store.epoch != epoch:
                return False
            row.beat += 1
            row.session = self._way.session
            self.sent_at = sent_at
            return True

        self._ask(renew, done)

    def release(self, epoch: int, done: Callable[[bool | StoreError], None]) -> None:
        def release() -> bool:
            row = self._disk.row
            if self._disk.store.epoch != epoch:
                return False
            self._disk.note("released", row.holder, epoch)
            row.beat, row.holder = row.beat + 1, ""
            return True

        self._ask(release, done)

    def _view(self) -> LeaseView:
        row = self._disk.row
        return LeaseView(self._disk.store.epoch, row.beat, row.holder, row.session is not None)

    def _ask(self, question: Question, done: Callable[[Any], None]) -> None:
        disk, timeline = self._disk, self._disk.timeline
        self._reached_at = max(self._reached_at, timeline.now + disk.delay())

        def reach() -> None:
            if self._clock.dead:
                return
            if self._way.cut or disk.settings.down or disk.chance(disk.settings.failure_probability):
                late_s = disk.random.uniform(0.1, TIMEOUT_S) if self._way.cut else 0.0
                answer: Any = StoreError("the database does not answer", retry=True)
            else:
                answer, late_s = question(), disk.delay()
                if disk.chance(disk.settings.lost_probability):
                    disk.note("lease_answer_lost")
                    answer = StoreError("the connection broke", retry=True)
            self._answered_at = max(self._answered_at, timeline.now + late_s)
            timeline.call_later(
                self._answered_at - timeline.now, lambda: self._clock.deliver(lambda: done(answer))
            )

        timeline.call_later(self._reached_at - timeline.now, reach)
