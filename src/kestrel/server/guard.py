"""Slows down whoever tries passwords or invitations in a loop, and nobody else.

Failures are counted for each pair of network and account, each network and each account, and decay. Each
delays its own answer, longer from time to time. Above a bound the tries of a pair or a network are *paced*:
each waits for its turn, and one whose turn is too far away is refused unseen. What was right from a network
before waits less. So a guesser gets few tries; the owner of an account comes in from any other network as
ever; and a thousand workers behind one address come in within a minute though somebody guesses there.

Pure: `now` is an argument. It must never refuse for what other networks did. Called by the client
connections, and once per tick for what is to be logged.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from kestrel.server.settings import ServerLimits

TOKENS = ""
"""Stands for an account where an invitation is tried: those are too long to guess, so the network counts."""
REPORTED_MAX = 10
"""Networks that one report names."""

K = TypeVar("K", bound=Hashable)


@dataclass(slots=True)
class _Count:
    """Failures, decaying; and when the next try may be looked at."""

    failures: float = 0.0
    at: float = 0.0
    turn: float = 0.0


class _Counts(Generic[K]):
    """Counts by key; those that failed least lately are forgotten."""

    def __init__(self, half_life_s: float, kept_max: int) -> None:
        self._half_life_s = half_life_s
        self._kept_max = kept_max
        self._kept: OrderedDict[K, _Count] = OrderedDict()

    def add(self, key: K, now: float) -> float:
        """One more failure; returns how many there are now."""
        count = self._kept.setdefault(key, _Count())
        count.failures = self._decayed(count, now) + 1.0
        count.at = now
        self._kept.move_to_end(key)
        if len(self._kept) > self._kept_max:
            self._kept.popitem(last=False)
        return count.failures

    def over(self, key: K, bound: float, now: float) -> _Count | None:
        """The count of this key if it is at its bound, begun failures taken as whole ones."""
        count = self._kept.get(key)
        return count if count is not None and self._decayed(count, now) > bound - 1.0 else None

    def _decayed(self, count: _Count, now: float) -> float:
        return float(count.failures * 0.5 ** ((now - count.at) / self._half_life_s))

    def __len__(self) -> int:
        return len(self._kept)


@dataclass(slots=True)
class Suspicion:
    """What one network did since the last report."""

    origin: str
    failures: int = 0
    refused: int = 0
    accounts: int = 0
    """How many accounts it tried in vain; names that do not exist count, too."""


class LoginGuard:
    """What is known of failed logins on one server."""

    def __init__(self, limits: ServerLimits) -> None:
        self._limits = limits
        half_life_s, kept_max = limits.guard_half_life_s, limits.guard_entries_max
        self._pairs: _Counts[tuple[str, str]] = _Counts(half_life_s, kept_max)
        self._origins: _Counts[str] = _Counts(half_life_s, kept_max)
        self._accounts: _Counts[str] = _Counts(half_life_s, kept_max)
        self._right: OrderedDict[tuple[str, str], None] = OrderedDict()
        """Networks and accounts whose password was right, the latest last."""
        self._since: OrderedDict[str, Suspicion] = OrderedDict()
        self._tried: set[tuple[str, str]] = set()
        self._reported_at = -math.inf

    def hold_s(self, origin: str, account: str, now: float) -> float | None:
        """How long this try has to wait before it may be looked at; None: it is refused.

        `account` is the name that is claimed, whether there is such an account or not.
        """
        limits = self._limits
        known = (origin, account) in self._right
        waits: list[tuple[_Count, float]] = []
        if account != TOKENS:
            pair = self._pairs.over((origin, account), limits.guard_failures, now)
            if pair is not None:
                waits.append((pair, limits.guard_known_pace_s if known else limits.guard_pace_s))
        network = None if known else self._origins.over(origin, limits.guard_origin_failures, now)
        if network is not None:
            waits.append((network, limits.guard_origin_pace_s))
        if not waits:
            return 0.0
        turn = max(now, *(count.turn for count, _ in waits))
        if turn - now > limits.guard_hold_s_max:
            self._suspect(origin).refused += 1
            return None
        for count, pace_s in waits:
            count.turn = turn + pace_s
        return turn - now

    def failed(self, origin: str, account: str, now: float) -> float:
        """A password or an invitation was wrong; returns how long to wait before that is told."""
        self._origins.add(origin, now)
        mine = self._pairs.add((origin, account), now)
        everywhere = mine if account == TOKENS else self._accounts.add(account, now)
        suspicion = self._suspect(origin)
        suspicion.failures += 1
        if (origin, account) not in self._tried and len(self._tried) < self._limits.guard_entries_max:
            self._tried.add((origin, account))
            suspicion.accounts += 1
        limits = self._limits
        delay_s = limits.login_failure_delay_s * math.ceil(max(mine, everywhere))
        return min(limits.login_failure_delay_s_max, delay_s)

    def succeeded(self, origin: str, account: str) -> None:
        """The password was right: next time this account waits less here."""
        self._right[origin, account] = None
        self._right.move_to_end((origin, account))
        if len(self._right) > self._limits.guard_entries_max:
            self._right.popitem(last=False)

    def report(self, now: float) -> list[Suspicion]:
        """Whom to write into the log, most failures first; nothing more often than once in a while."""
        if not self._since or now - self._reported_at < self._limits.guard_report_s:
            return []
        found = sorted(self._since.values(), key=lambda each: each.failures + each.refused, reverse=True)
        found = [each for each in found if each.refused or each.failures >= self._limits.guard_failures]
        self._since.clear()
        self._tried.clear()
        self._reported_at = now
        return found[:REPORTED_MAX]

    def _suspect(self, origin: str) -> Suspicion:
        suspicion = self._since.get(origin)
        if suspicion is None:
            suspicion = self._since[origin] = Suspicion(origin)
            if len(self._since) > self._limits.guard_entries_max:
                self._since.popitem(last=False)
        return suspicion

    def __len__(self) -> int:
        """How many things are remembered."""
        counted = len(self._pairs) + len(self._origins) + len(self._accounts)
        return counted + len(self._right) + len(self._since) + len(self._tried)
