"""Virtual time: one heap of calls to come, and a clock for every simulated process.

Nothing here looks at real time. Calls that are due at the same instant run in the order in which
they were asked for, so a history depends on nothing but its seed. Called by every part of the
simulator; the production shells see a `ProcessClock` as their `kestrel.ports.Clock`.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

WALL_EPOCH = 1_700_000_000.0
"""Unix time at which every simulated history begins."""


class Timer:
    """A call to come. Implements `kestrel.ports.TimerHandle`."""

    __slots__ = ("callback", "clock", "slept_s")

    def __init__(
        self, callback: Callable[[], None], clock: ProcessClock | None = None, slept_s: float = 0.0
    ) -> None:
        """`clock`: of the process that is to be called; None: nobody's, the world itself.
        `slept_s`: how long that process had slept when the delay began."""
        self.callback: Callable[[], None] | None = callback
        self.clock = clock
        self.slept_s = slept_s

    def cancel(self) -> None:
        """The call will not come. Cancelling twice, or after the call, does nothing."""
        self.callback = None


class Timeline:
    """The world's time in seconds from 0, and everything that is still to happen, in order."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Timer]] = []
        self._count = 0

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """Call once, `delay_s` seconds from now; 0 means after everything that is due now already."""
        timer = Timer(callback)
        self.put(delay_s, timer)
        return timer

    def put(self, delay_s: float, timer: Timer) -> None:
        """Have this timer's call come `delay_s` seconds from now."""
        self._count += 1
        heapq.heappush(self._heap, (self.now + max(0.0, delay_s), self._count, timer))

    def step(self) -> bool:
        """Let the next call happen; False if nothing is left."""
        heap = self._heap
        while heap:
            when, _, timer = heapq.heappop(heap)
            callback = timer.callback
            if callback is not None:
                self.now = when
                if timer.clock is not None:
                    timer.clock.due(timer)
                else:
                    timer.callback = None
                    callback()
                return True
        return False


class ProcessClock:
    """The clock of one life of one simulated process. Implements `kestrel.ports.Clock`.

    Its monotonic time has an origin of its own, as on real machines, and its wall clock may be wrong
    and may jump. A process that is dead is never called again. One that is suspended (SIGSTOP) is called,
    in order, when it goes on: its clocks went on meanwhile, and all its timers are late. One that is asleep
    (a laptop, on most systems) does not even know: its monotonic clock stood still, its timers are not
    late, and only the wall clock tells.
    """

    def __init__(self, timeline: Timeline, *, origin: float = 0.0, wall_offset_s: float = 0.0) -> None:
        self._timeline = timeline
        self._origin = origin
        self.wall_offset_s = wall_offset_s
        """Change it to let the wall clock jump."""
        self._dead = False
        self._suspended = False
        self._slept_s = 0.0
        """Time that the monotonic clock does not know of."""
        self._asleep_since: float | None = None
        self._parked: list[Timer] = []
        self._dreams: list[tuple[Timer, float]] = []
        """Timers that would have been due while it was asleep: they are due so long after it wakes."""

    @property
    def dead(self) -> bool:
        return self._dead

    @property
    def suspended(self) -> bool:
        return self._suspended

    @property
    def slept_s(self) -> float:
        """How long it has been asleep so far."""
        since = self._asleep_since
        return self._slept_s + (0.0 if since is None else self._timeline.now - since)

    def now(self) -> float:
        return self._timeline.now + self._origin - (self.slept_s if self._suspended else self._slept_s)

    def wall(self) -> float:
        return WALL_EPOCH + self._timeline.now + self.wall_offset_s

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(callback, self, self._slept_s if self._asleep_since is None else self.slept_s)
        self._timeline.put(delay_s, timer)
        return timer

    def due(self, timer: Timer) -> None:
        """The delay is over for the world; not yet for a process that slept meanwhile."""
        late_s = self.slept_s - timer.slept_s
        if late_s < 1e-9 or self._dead:
            self._fire(timer)
        elif self._asleep_since is None:
            timer.slept_s += late_s
            self._timeline.put(late_s, timer)
        else:  # so much of its delay is left when it wakes
            self._dreams.append((timer, late_s))

    def deliver(self, callback: Callable[[], None]) -> None:
        """Something from outside reaches the process: now, when it goes on, or never."""
        self._fire(Timer(callback))

    def _fire(self, timer: Timer) -> None:
        if self._dead or timer.callback is None:
            return
        if self._suspended:
            self._parked.append(timer)
            return
        callback, timer.callback = timer.callback, None
        callback()

    def suspend(self, *, asleep: bool = False) -> None:
        """Nothing is called from now on; `asleep`: and the monotonic clock stands still."""
        if asleep and not self._suspended:
            self._asleep_since = self._timeline.now
        self._suspended = True

    def resume(self) -> None:
        """Go on; what was due meanwhile is called soon, in the order in which it became due."""
        if not self._suspended:
            return
        self._timeline.call_later(0, self._unpark)

    def _unpark(self) -> None:
        if not self._suspended:
            return
        if self._asleep_since is not None:
            self._slept_s = self.slept_s
            self._asleep_since = None
        dreams, self._dreams = self._dreams, []
        for timer, left_s in dreams:
            timer.slept_s = self._slept_s
            self._timeline.put(left_s, timer)
        self._suspended = False
        parked, self._parked = self._parked, []
        for i, timer in enumerate(parked):
            self._fire(timer)
            if self._suspended or self._dead:
                self._parked = parked[i + 1 :] + self._parked
                return

    def kill(self) -> None:
        """The process is gone: whatever it had planned never happens."""
        self._dead = True
        self._parked.clear()
        self._dreams.clear()
