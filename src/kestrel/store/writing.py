"""Units on their way to a store that has a thread of its own: in through a bounded queue, out through `post`.

Used by makers of the store whose SQL runs on one writer thread; knows no database. The event loop's thread
calls `put`, and gets every answer in `deliver`; the writer's thread calls `next_group` and `answer`.
It must never answer from inside `put`, drop a unit, or change the order of units.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from kestrel.errors import InternalError, StoreError
from kestrel.ports import CommitDone, CommitFailed, Read, Write

log = logging.getLogger("kestrel.store")

Done: TypeAlias = Callable[[CommitDone | CommitFailed], None]
Post: TypeAlias = Callable[[Callable[[], None]], object]
"""Has a function called on the event loop's thread; `loop.call_soon_threadsafe` is one."""


@dataclass(frozen=True, slots=True)
class Unit:
    """What the manager wants committed as one."""

    writes: Sequence[Write]
    reads: Sequence[Read]
    done: Done
    number: int = 0
    refused: StoreError | None = None


class UnitQueue:
    """The queue of one store. `place` is its name in messages."""

    def __init__(self, place: str, post: Post, units_max: int, group_writes_max: int) -> None:
        self._place = place
        self._post = post
        self._units_max = units_max
        self._group_writes_max = group_writes_max
        self._wake = threading.Condition()
        self._waiting: deque[Unit] = deque()
        self._answers: deque[tuple[Done, CommitDone | CommitFailed]] = deque()
        self._open = False

    def open(self) -> None:
        """From now on units are taken."""
        with self._wake:
            self._open = True

    def close(self) -> None:
        """No more units are taken; those that wait still go to the writer."""
        with self._wake:
            self._open = False
            self._wake.notify_all()

    def put(self, writes: Sequence[Write], reads: Sequence[Read], done: Done, number: int) -> None:
        """Queue one unit; where too many wait, it is refused in its turn."""
        with self._wake:
            if not self._open:
                raise InternalError(f"a unit was committed to the store {self._place}, which is not open")
            if len(self._waiting) >= self._units_max:
                unit = Unit((), (), done, refused=self._overfull())  # it comes again under its number
            else:
                unit = Unit(writes, reads, done, number)
            self._waiting.append(unit)
            self._wake.notify()

    def next_group(self, until: float | None = None) -> list[Unit] | None:
        """What waits, up to the bound of a group; blocks while nothing does, but not beyond `until`
        (monotonic; then empty). None: the queue is closed and empty."""
        with self._wake:
            while not self._waiting:
                if not self._open:
                    return None
                left = None if until is None else max(0.0, until - time.monotonic())
                if not self._wake.wait(left):
                    return []
            units: list[Unit] = []
            room = self._group_writes_max
            while self._waiting and room > 0:
                unit = self._waiting.popleft()
                room -= len(unit.writes)
                units.append(unit)
            return units

    def answer(self, units: Sequence[Unit], outcomes: Sequence[CommitDone | CommitFailed]) -> None:
        """Have the units' callbacks called on the event loop's thread; a refused unit hears why."""
        for unit, outcome in zip(units, outcomes, strict=True):
            refused = None if unit.refused is None else CommitFailed(unit.refused)
            self._answers.append((unit.done, refused or outcome))
        try:
            self._post(self._deliver)
        except RuntimeError as problem:
            # The event loop is closed: nobody is left to tell, but what came in is still to be stored.
            log.warning("store_answer_undeliverable", extra={"units": len(units), "problem": str(problem)})

    def _deliver(self) -> None:
        """Call what is answered, in order. A callback that raises must not cost the others theirs."""
        while self._answers:
            done, outcome = self._answers.popleft()
            try:
                done(outcome)
            except BaseException:
                if self._answers:
                    self._post(self._deliver)
                raise

    def _overfull(self) -> StoreError:
        return StoreError(
            f"{self._units_max} units wait for the store {self._place} already",
            hint="the store is too slow for this load; put it on a faster disk or raise queue_units_max",
            code="store_behind",
            retry=True,
        )
