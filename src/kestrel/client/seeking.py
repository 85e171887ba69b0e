"""When a client announces itself to a manager again, and when it repeats what was turned away.

A manager that starts, or takes over, greets whoever shows himself and is not known to it; the greeting is
the sign on which a client repeats what is unanswered. So a client that waits shows itself now and then,
calmly, because it cannot see whether its manager thinks or is a new one. Runs on asyncio. Called by
`Client`, and only there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

SEEK_S = 1.0
"""A manager that is not there, or does not answer, is sought after this, then after twice as long …"""
SEEK_S_MAX = 4.0
"""… up to this."""


class Seeker:
    """Calls `act` while there is a reason to: after `SEEK_S`, then ever more calmly."""

    def __init__(self, act: Callable[[], None], reason: Callable[[], float | None]) -> None:
        """`reason`: since when there is one (loop time), None: there is none."""
        self._act = act
        self._reason = reason
        self._calls = 0
        self._due: asyncio.TimerHandle | None = None

    def look(self) -> None:
        """There may be a reason now."""
        if self._due is None and self._reason() is not None:
            self._due = asyncio.get_running_loop().call_later(SEEK_S, self._look)

    def again(self) -> None:
        """The world has changed: begin with short pauses again."""
        self.stop()
        self.look()

    def stop(self) -> None:
        """No more, until `look` or `again`."""
        self._calls = 0
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _look(self) -> None:
        self._due = None
        loop = asyncio.get_running_loop()
        since = self._reason()
        if since is None:
            self._calls = 0
            return
        rest_s = since + SEEK_S - loop.time()
        if rest_s > 0:
            self._calls = 0
        else:
            self._calls += 1
            rest_s = min(SEEK_S_MAX, SEEK_S * 2.0 ** min(self._calls, 16))
            self._act()
        self._due = loop.call_later(rest_s, self._look)
