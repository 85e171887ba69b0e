"""Keeps finished attempts in the spool, and what the spool does not take in memory until it does.

A full disk must cost nothing but time: results that cannot be written are held here, writing is tried again
after a growing pause and whenever acknowledged results have made room, and meanwhile the agent starts
nothing new. Called by the worker's agent. Never decides what is kept, never drops anything.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from kestrel.core.execution_events import Finished
from kestrel.errors import EnvironmentProblem
from kestrel.ports import Clock, TimerHandle
from kestrel.worker.spool import Spool

log = logging.getLogger(__name__)

RETRY_S = 1.0
"""A spool that failed is tried again after this, then after twice as long …"""
RETRY_S_MAX = 30.0
"""… up to this."""
PORTION = 256
"""So many results are written at once when a spool works again: what is written stays written."""


class Keeper:
    """The spool as the agent sees it: `keep` and `forget` never raise, `failing` says how it is."""

    def __init__(
        self, clock: Clock, spool: Spool, counters: Counter[str], on_changed: Callable[[], None]
    ) -> None:
        """`on_changed`: called when `failing` has changed from within a timer, not from within a call."""
        self.failing = False
        """The spool takes nothing now."""
        self._clock = clock
        self._spool = spool
        self._counters = counters
        self._on_changed = on_changed
        self._unwritten: dict[int, Finished] = {}
        self._unforgotten: list[int] = []
        """The spool still has them, for nothing."""
        self._failures = 0
        self._retry_due: TimerHandle | None = None

    @property
    def unwritten(self) -> int:
        """How many results are in memory only."""
        return len(self._unwritten)

    def keep(self, finished: Sequence[Finished]) -> None:
        """Write these; or hold them until that is possible."""
        if not self.failing:
            try:
                self._spool.keep(finished)
            except EnvironmentProblem as problem:
                self._fail(problem)
            else:
                self._look_for_room()
                return
        self._unwritten.update((f.attempt, f) for f in finished)

    def forget(self, attempts: Sequence[int]) -> None:
        """These are stored elsewhere."""
        written = [a for a in attempts if self._unwritten.pop(a, None) is None]
        if self.failing:
            self._unforgotten += written
            self._try()
        elif written:
            try:
                self._spool.forget(written)
            except EnvironmentProblem as problem:  # should they be reported twice, that changes nothing
                self._unforgotten += written
                self._fail(problem)

    def close(self) -> None:
        """Try no more."""
        if self._retry_due is not None:
            self._retry_due.cancel()

    # ----------------------------------------------------------------------------------------------

    def _look_for_room(self) -> None:
        """What was written is safe; what comes next may not be."""
        try:
            self._spool.check_room()
        except EnvironmentProblem as problem:
            self._fail(problem)

    def _fail(self, problem: EnvironmentProblem) -> None:
        self._counters["spool_failures"] += 1
        if not self.failing:
            self.failing = True
            self._failures = 0
            log.error("spool_failed", extra={"text": problem.text, "hint": problem.hint})
        if self._retry_due is None:
            delay_s = min(RETRY_S_MAX, RETRY_S * 2.0 ** min(self._failures, 16))
            self._failures += 1
            self._retry_due = self._clock.call_later(delay_s, self._retry)

    def _retry(self) -> None:
        self._retry_due = None
        self._try()
        if not self.failing:
            self._on_changed()

    def _try(self) -> None:
        try:
            if self._unforgotten:
                self._spool.forget(self._unforgotten)
                self._unforgotten = []
            for portion in self._portions():
                self._spool.keep(portion)
                for finished in portion:
                    del self._unwritten[finished.attempt]
            self._spool.check()
        except EnvironmentProblem as problem:
            self._fail(problem)
            return
        self.failing = False
        if self._retry_due is not None:
            self._retry_due.cancel()
            self._retry_due = None
        log.info("spool_mended")

    def _portions(self) -> Iterator[list[Finished]]:
        """The first of what is unwritten, again and again, until nothing is left."""
        while portion := list(islice(self._unwritten.values(), PORTION)):
            yield portion
