"""Watches the hours in which the owner lends the machine, and says when they begin and end.

The clock on the wall may jump (somebody sets it, the machine was asleep, summer time begins), so it is looked
at every minute at the latest. Called by the worker's agent. Never decides what happens to tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from kestrel.ports import Clock, TimerHandle
from kestrel.worker.hours import Hours, moment

LOOK_S_MAX = 60.0
"""The clock on the wall is looked at no more seldom than this."""
LOOK_S_MIN = 0.05
"""A change that is due now is looked for again after this: timers may come a little early."""


class Opening:
    """Whether the machine is open now."""

    def __init__(
        self,
        clock: Clock,
        hours: Hours | None,
        on_changed: Callable[[], None],
        local_time: Callable[[float], datetime] = datetime.fromtimestamp,
    ) -> None:
        """`hours`: None is always. `on_changed`: called from a timer when `open` has changed.
        `local_time`: Unix time to the time on the wall."""
        self.open = True
        """As it was told last."""
        self._clock = clock
        self._hours = hours
        self._on_changed = on_changed
        self._local_time = local_time
        self._timer: TimerHandle | None = None
        if hours is not None:
            self.open = hours.open_at(self._now())
            self._watch()

    def close(self) -> None:
        """Call back no more."""
        if self._timer is not None:
            self._timer.cancel()

    def until(self) -> str:
        """When this changes, for people (`Mon 20:00`); empty: never."""
        change = None if self._hours is None else self._hours.next_change(self._now())
        return "" if change is None else moment(change)

    # ----------------------------------------------------------------------------------------------

    def _now(self) -> datetime:
        return self._local_time(self._clock.wall()).replace(tzinfo=None)

    def _watch(self) -> None:
        assert self._hours is not None
        now = self._now()
        change = self._hours.next_change(now)
        delay_s = LOOK_S_MAX if change is None else (change - now).total_seconds()
        self._timer = self._clock.call_later(max(LOOK_S_MIN, min(LOOK_S_MAX, delay_s)), self._look)

    def _look(self) -> None:
        assert self._hours is not None
        is_open = self._hours.open_at(self._now())
        changed, self.open = is_open != self.open, is_open
        self._watch()
        if changed:
            self._on_changed()
