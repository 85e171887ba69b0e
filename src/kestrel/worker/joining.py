"""Who the manager is, whether it is there and knows us, and when a worker introduces itself.

A manager that is not there is sought; one that is there and does not welcome us is asked again, ever more
calmly; one that takes over calls its workers, and each answers with one introduction. Not every server
tells when a component goes, so silence counts, too. Sends nothing itself. Called by the worker's agent.
"""

from __future__ import annotations

import logging
import zlib
from collections import Counter
from collections.abc import Callable

from kestrel.ports import Clock, TimerHandle
from kestrel.worker.settings import WorkerSettings

log = logging.getLogger(__name__)

SILENCE_LEASES = 2.0
"""After so many leases without a sign of life of the manager the worker introduces itself again. It pings
quiet workers several times in a lease."""


class Joining:
    """The state of our membership, and the timers that repair it."""

    def __init__(
        self,
        clock: Clock,
        settings: WorkerSettings,
        counters: Counter[str],
        introduce: Callable[[], None],
    ) -> None:
        """`introduce`: called when a profile is due; from then on nobody has welcomed us."""
        self.address = ""
        """Ours."""
        self.up = False
        self.welcomed = False
        self.manager = settings.manager
        """To whom we send: the address that welcomed us, else the one that we were given."""
        self._welcomed_by = ""
        """The address that welcomed us last."""
        self._clock = clock
        self._settings = settings
        self._counters = counters
        self._introduce = introduce
        self._present = True
        """The manager is there, until we are told otherwise."""
        self._introduced = False
        """An introduction is on its way, or was answered, as far as we know."""
        self._introduced_at = 0.0
        self._tries = 0
        """Introductions since the last sign that the next one may help."""
        self._due: TimerHandle | None = None
        self._due_at = 0.0
        self._heard_at = 0.0
        self._silence_s = 0.0
        """So long without a sign of life is too long; 0: for ever is not."""
        self._silence_due: TimerHandle | None = None

    def close(self) -> None:
        """Call back no more."""
        for timer in (self._due, self._silence_due):
            if timer is not None:
                timer.cancel()
        self.up = False

    def is_manager(self, sender: str) -> bool:
        """Whether the stamped sender is our manager, in one of its sessions if it is an account."""
        return _bare(sender) == _bare(self._settings.manager)

    def obeys(self, sender: str) -> bool:
        """Whether its orders count. Of an account it must be the session that welcomed us last: a component
        is one program, but anybody who has the password of an account has a session of it."""
        if "@" not in self._settings.manager:
            return self.is_manager(sender)
        return self.is_manager(sender) and sender == self._welcomed_by

    # --- what happened ----------------------------------------------------------------------------

    def on_up(self, address: str) -> None:
        """We are connected: introduce ourselves."""
        self.address = address
        self.up = self._present = True
        self._tries = 0
        self._join()

    def on_down(self) -> None:
        """We are not connected."""
        self.up = self.welcomed = False
        self._cancel_due()

    def on_heard(self, sender: str) -> None:
        """A sign of life; it counts if it comes from whom we belong to."""
        if sender == self.manager:
            self._heard_at = self._clock.now()

    def on_available(self) -> None:
        """The manager shows itself: it greets us, or it is there again."""
        if self._present:
            return
        self._present = True
        self._tries = 0
        if self._introduced:  # this answers the presence that went ahead of our introduction
            self._join_later()
        else:
            self._join()

    def on_unavailable(self, sender: str, reason: str) -> bool:
        """The manager has gone, or is not where we sent something: seek it. False: it was another session
        of its account, not the one that welcomed us."""
        if self.welcomed and sender != self.manager and "/" in sender:
            return False
        if self._present:
            log.warning("manager_gone", extra={"manager": sender, "reason": reason})
            self._tries = 0
        self._present = self._introduced = self.welcomed = False
        self._join_later()
        return True

    def on_unknown(self) -> None:
        """The manager calls us, or has forgotten us: it wants one introduction, and gets one."""
        if self.welcomed or not self._present:
            self._present = True
            self._tries = 0
            self._join()
            return
        # Ours may be on its way, or lost with the life of the manager before this one. A second one that
        # crosses the welcome would have all tasks stopped that came with it: it is not sent at once.
        settings, now = self._settings, self._clock.now()
        soon = max(now + settings.join_retry_s, self._introduced_at + settings.join_retry_s_max)
        if self._due is not None and soon < self._due_at:
            self._join_in(soon - now)

    def on_welcomed(self, sender: str, lease_s: float) -> None:
        """We belong to this manager. It is to be heard from within `SILENCE_LEASES` of these leases."""
        self._cancel_due()
        self.welcomed = self._present = True
        self._tries = 0
        self.manager = self._welcomed_by = sender
        self._heard_at = self._clock.now()
        self._silence_s = SILENCE_LEASES * lease_s
        if self._silence_due is None and self._silence_s:
            self._silence_due = self._clock.call_later(self._silence_s, self._on_silence)

    def on_refused(self) -> None:
        """It will never welcome us."""
        self.welcomed = False
        self._cancel_due()

    # --- introductions ----------------------------------------------------------------------------

    def _join(self) -> None:
        """Introduce ourselves, and again later if there is no welcome."""
        if not self.up:
            return
        self.manager = self._settings.manager
        self._introduced = True
        self._introduced_at = self._clock.now()
        self.welcomed = False
        self._introduce()
        self._join_later()

    def _join_later(self) -> None:
        if not self.up:
            return
        settings = self._settings
        first, most = (
            (settings.welcome_s, settings.welcome_s_max)
            if self._present
            else (settings.join_retry_s, settings.join_retry_s_max)
        )
        self._join_in(min(most, first * 2.0 ** min(self._tries, 16)))

    def _join_in(self, delay_s: float) -> None:
        # spread by address, so that a thousand workers do not all come in the same moment
        delay_s *= 1.0 + 0.25 * zlib.crc32(self.address.encode()) / 2**32
        self._cancel_due()
        self._due_at = self._clock.now() + delay_s
        self._due = self._clock.call_later(delay_s, self._join_again)

    def _join_again(self) -> None:
        self._due = None
        if not self.welcomed:
            self._tries += 1
            self._join()

    def _cancel_due(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _on_silence(self) -> None:
        self._silence_due = None
        if not self.welcomed or not self.up:
            return  # the next welcome starts the watch again
        rest_s = self._heard_at + self._silence_s - self._clock.now()
        if rest_s > 0:
            self._silence_due = self._clock.call_later(rest_s, self._on_silence)
            return
        self._counters["silences"] += 1
        log.warning("manager_silent", extra={"manager": self.manager, "silence_s": self._silence_s})
        self._tries = 0
        self._join()


def _bare(address: str) -> str:
    return address.partition("/")[0].casefold()
