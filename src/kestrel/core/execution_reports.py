"""The finished attempts of a worker that the manager has not stored yet, and the report that is out.

Part of the execution machine (`kestrel.core.execution`), which alone calls it. Pure.

Reports are sent one at a time: the next leaves when the one before is acknowledged, with all that
has gathered meanwhile. So an acknowledgement can never cover a report that was lost on the way, and a
slow manager gets fewer, larger reports. Numbers are never used twice: they contain the number of
this worker's life, as attempt ids contain the manager's epoch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from kestrel.core.execution_events import Finished, SendReport
from kestrel.core.model import AttemptId

REPORTS_PER_LIFE_BITS = 30


@dataclass(slots=True)
class _Outstanding:
    number: int
    finished: list[Finished]
    sent_at: float


class ReportQueue:
    """Results from their end to their acknowledgement, in the order in which they ended."""

    def __init__(self, life: int, restored: Sequence[Finished], attempts_max: int, resend_s: float) -> None:
        self.kept: dict[AttemptId, Finished] = {f.attempt: f for f in restored}
        """Everything that is not acknowledged."""
        self.kept_bytes = sum(f.size for f in self.kept.values())
        self._attempts_max = attempts_max
        self._resend_s = resend_s
        self._pending: deque[Finished] = deque(self.kept.values())
        self._pending_since: float | None = None
        self._out: _Outstanding | None = None
        self._next_number = (life << REPORTS_PER_LIFE_BITS) + 1

    def add(self, finished: Finished) -> None:
        """One more attempt has ended."""
        self.kept[finished.attempt] = finished
        self.kept_bytes += finished.size
        self._pending.append(finished)

    def recall(self) -> None:
        """The report that is out may be lost: its attempts will be reported anew, under a new number."""
        if self._out is not None:
            self._pending.extendleft(reversed(self._out.finished))
            self._out = None
        self._pending_since = None

    def deadline(self, delay_s: float) -> float | None:
        """When `next_report` or `repeated` has something, if nothing else happens."""
        if self._out is not None:
            return self._out.sent_at + self._resend_s
        return None if self._pending_since is None else self._pending_since + delay_s

    def next_report(self, now: float, delay_s: float, bytes_max: int, idle: bool) -> SendReport | None:
        """The report that is due; `idle`: nothing more will end soon, so there is nothing to wait for."""
        if not self._pending or self._out is not None:
            return None
        if self._pending_since is None:
            self._pending_since = now
        full = len(self._pending) >= self._attempts_max or self.kept_bytes >= bytes_max
        if not (idle or full) and now < self._pending_since + delay_s:
            return None
        chosen: list[Finished] = []
        room = bytes_max
        while self._pending and len(chosen) < self._attempts_max:
            room -= self._pending[0].size
            if chosen and room < 0:
                break
            chosen.append(self._pending.popleft())
        self._out = _Outstanding(self._next_number, chosen, now)
        self._next_number += 1
        self._pending_since = None
        return SendReport(self._out.number, chosen)

    def repeated(self, now: float) -> SendReport | None:
        """The report that is out, unchanged, if its acknowledgement is overdue."""
        if self._out is None or now < self._out.sent_at + self._resend_s:
            return None
        self._out.sent_at = now
        return SendReport(self._out.number, self._out.finished)

    def acknowledge(self, number: int) -> list[Finished]:
        """Forget the report that is out, if it has this number; what it held (empty: it was another)."""
        if self._out is None or self._out.number != number:
            return []
        done = self._out.finished
        self._out = None
        for finished in done:
            del self.kept[finished.attempt]
            self.kept_bytes -= finished.size
        return done

    def problems(self, welcomed: bool) -> list[str]:
        """Which laws are broken; empty if none. O(state)."""
        out = self._out.finished if self._out is not None else []
        found = []
        if sorted(f.attempt for f in (*out, *self._pending)) != sorted(self.kept):
            found.append("reports and results kept differ")
        if self.kept_bytes != sum(f.size for f in self.kept.values()):
            found.append("bytes of results miscounted")
        if out and not welcomed:
            found.append("a report is out, and no manager")
        return found
