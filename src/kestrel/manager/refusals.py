"""Refusals, told and logged within bounds: whoever floods the manager gets few answers and few lines.

Called when something comes in that its sender may not send. Of each account it keeps how often it was
refused lately; of the accounts it keeps `refused_accounts_max`. It must never answer more than came in.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kestrel.manager.access import Refusal
from kestrel.manager.limits import Buckets

if TYPE_CHECKING:
    from kestrel.manager.manager import Manager

log = logging.getLogger("kestrel.manager")

EVERYBODY = ""
TEXT_CHARS_LOGGED = 300


@dataclass(slots=True)
class Record:
    """One account's refusals since the last line in the log."""

    due: float
    """When the next line may be written."""
    count: int = 0
    unanswered: int = 0
    """Refused without an answer since the last answer."""


class Refusals:
    """What is told of refusals, and to whom."""

    def __init__(self, manager: Manager) -> None:
        settings = manager.settings
        self._manager = manager
        self._records: dict[str, Record] = {}
        kept = settings.refused_accounts_max
        self._answers = Buckets(settings.refusals_per_s, settings.refusals_burst, kept_max=kept)
        self._all_answers = Buckets(settings.all_refusals_per_s, settings.all_refusals_per_s, kept_max=1)
        self._all_lines = Buckets(settings.refusal_lines_per_s, settings.refusal_lines_per_s, kept_max=1)

    def refuse(self, sender: str, refusal: Refusal, answer: Callable[[Refusal], None]) -> None:
        """Somebody may not send what it sent: log it, and have it answered, if there is room for that.

        `answer` gets the refusal with the count of those before it that were not answered.
        """
        record = self.note(sender, refusal.code, refusal.text)
        now = self._manager.clock.now()
        account = sender.partition("/")[0]
        if self._answers.take(account, now) or self._all_answers.take(EVERYBODY, now):
            record.unanswered += 1
            return
        unanswered, record.unanswered = record.unanswered, 0
        if unanswered:
            text = f"{refusal.text} ({unanswered} more refused without an answer)"
            refusal = Refusal(refusal.code, text, refusal.hint)
        answer(refusal)

    def note(self, sender: str, code: str, text: str) -> Record:
        """Somebody was refused: one line in the log now, or a count in the next one."""
        manager = self._manager
        settings = manager.settings
        manager.counters["refused"] += 1
        now = manager.clock.now()
        account = sender.partition("/")[0]
        record = self._records.pop(account, None) or Record(now)
        self._records[account] = record
        if len(self._records) > settings.refused_accounts_max:
            del self._records[next(iter(self._records))]
        record.count += 1
        if now >= record.due and not self._all_lines.take(EVERYBODY, now):
            fields = {"jid": sender, "code": code, "text": text[:TEXT_CHARS_LOGGED], "count": record.count}
            log.warning("refused", extra=fields)
            record.due, record.count = now + settings.refusal_log_s, 0
        return record
