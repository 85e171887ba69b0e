"""The asyncio maker of `ports.Clock`. Called by the services of manager and worker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


class AsyncioClock:
    """Time and timers of one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def now(self) -> float:
        """Monotonic seconds, the loop's."""
        return self._loop.time()

    def wall(self) -> float:
        """Unix time."""
        return time.time()

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> asyncio.Handle:
        """Call once, `delay_s` from now; 0: in the loop's next turn."""
        if delay_s <= 0:
            return self._loop.call_soon(callback)
        return self._loop.call_later(delay_s, callback)
