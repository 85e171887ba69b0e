"""How much one peer may send: token buckets, one for each, of which only so many are kept.

Pure: `now` is an argument. Called when a message comes in, before it costs anything.
"""

from __future__ import annotations


class Buckets:
    """One bucket of tokens for each name: `per_s` come in, `burst` fit, each message takes one."""

    def __init__(self, per_s: float, burst: float, *, kept_max: int) -> None:
        """A rate of 0 means that there is no limit."""
        self.per_s = per_s
        self.burst = max(burst, 1.0)
        self._kept_max = kept_max
        self._levels: dict[str, tuple[float, float]] = {}
        """Tokens, and when they were counted."""

    def take(self, name: str, now: float) -> float:
        """Take one token: 0 if there was one, else the seconds until there is."""
        if not self.per_s:
            return 0.0
        level, at = self._levels.get(name, (self.burst, now))
        level = min(self.burst, level + (now - at) * self.per_s)
        if level < 1.0:
            return (1.0 - level) / self.per_s
        self._levels.pop(name, None)
        self._levels[name] = level - 1.0, now
        if len(self._levels) > self._kept_max:
            del self._levels[next(iter(self._levels))]  # that was quiet for longest
        return 0.0

    def __len__(self) -> int:
        return len(self._levels)
