"""Who is there, as the manager's shell knows it: workers, presence, drains, and who is called to come back.

Called by `Manager` when something comes in, with each tick, and within its turns. It decides nothing about
tasks: what matters to them becomes an event for the scheduler. After a restart, or a break of the
manager's own connection, it calls the workers that should be there, so many with each tick.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from kestrel.core import events as ev
from kestrel.core.model import HeldByWorker, WorkerId, WorkerOffer, fold_tags
from kestrel.errors import UsageError
from kestrel.manager.access import is_of
from kestrel.manager.intake import REASON_CHARS_MAX, check_profile
from kestrel.manager.meant import meant_by, nobody, patterns_of, user_patterns_of
from kestrel.manager.unit import Unit, WorkerEntry
from kestrel.manager.words import Manner
from kestrel.ports import DrainWorker, Show, StoreContent
from kestrel.protocol import messages as m
from kestrel.xmpp.jid import bare

if TYPE_CHECKING:
    from kestrel.manager.manager import Manager

log = logging.getLogger("kestrel.manager")

USERS_FIELD = "the worker's `users`"


class Roster:
    """Workers and other peers of one manager."""

    def __init__(self, manager: Manager) -> None:
        self.manager = manager
        self.entries: dict[WorkerId, WorkerEntry] = {}
        self.greeted: dict[str, None] = {}
        """Who knows our presence, so that the server tells them when we go."""
        self.drained_by_user: set[WorkerId] = set()
        """Whether they are there or not."""
        self.expected: set[WorkerId] = set()
        """Who was in the pool when the last life ended, and of whom nothing was heard yet."""
        self.overheard: dict[WorkerId, None] = {}
        """Workers of which something was left out because the inbox was full."""
        self.refused: dict[WorkerId, tuple[float, str]] = {}
        """Workers that introduced themselves in vain lately: when (wall clock) and why."""
        self._sessions = 0
        self._missing: set[WorkerId] = set()
        """Workers of which nothing was heard since our own connection broke; their leases decide."""
        self._paused_by_presence: dict[WorkerId, Show] = {}
        self._calls: dict[WorkerId, None] = {}
        """Whom to call yet, in order."""
        self._absent: dict[WorkerId, str] = {}
        """Expected ones that the server said are not there, and its words."""
        self._absence_counts_at = 0.0
        self._rounds_left = manager.settings.recalls_max
        self._next_round_at = 0.0

    def restore(self, content: StoreContent) -> ev.WorkersExpected:
        """Who was there and who was drained when the last life ended."""
        self.drained_by_user = set(content.drained)
        self.expected = set(content.workers or ())
        return ev.WorkersExpected(content.workers)

    # --- our own connection ---------------------------------------------------------------------------

    def went_down(self) -> None:
        """Nobody's presence is known any more."""
        self.greeted.clear()
        self._calls.clear()
        self._absent.clear()
        self._missing.update(self.entries)

    def came_up(self) -> None:
        """Call who should be there: not every server tells them that we were away and are back."""
        self._absence_counts_at = self.manager.clock.now() + self.manager.settings.absence_s
        self._calls = dict.fromkeys(sorted(self.expected | self._missing))
        self._next_round_at = self.manager.clock.now() + self.manager.settings.recall_s
        self._call()

    def _call(self) -> None:
        """The next of those who are to be called: on this a worker introduces itself anew."""
        text = "the manager is back, and does not know what this worker has in hand"
        message = m.Error(code="unknown_worker", text=text, hint="send a profile")
        if self.manager.is_lapsed:
            return  # with the first tick after that
        for worker in list(self._calls)[: self.manager.settings.recalls_per_tick_max]:
            del self._calls[worker]
            if worker in self.expected or worker in self._missing:
                self.greet(worker)
                self.manager.send_worker(worker, message)
                self.manager.transport.ping(worker)  # a server must answer it for who is not there

    def tick(self) -> None:
        """Call the next ones, and again who did not answer; give up who had the time to reconnect."""
        now = self.manager.clock.now()
        if not self._calls and self.expected and self._rounds_left and now >= self._next_round_at:
            self._rounds_left -= 1
            self._next_round_at = now + self.manager.settings.recall_s
            self._calls = dict.fromkeys(sorted(self.expected))
        self._call()
        if self._absent and now >= self._absence_counts_at:
            absent, self._absent = self._absent, {}
            for worker, reason in absent.items():
                self._give_up(worker, reason)

    def _give_up(self, worker: WorkerId, reason: str) -> None:
        self.expected.discard(worker)
        self.manager.post(ev.WorkerLost(worker, reason))

    def leave_out(self, worker: WorkerId) -> None:
        """What it sent was not taken in: it is asked to introduce itself again when there is room."""
        if len(self.overheard) < self.manager.settings.workers_max:
            self.overheard[worker] = None

    def apologize(self) -> None:
        """Have those introduce themselves anew of whom something was left out."""
        overheard, self.overheard = self.overheard, {}
        text = "the manager was overloaded and left out what you sent"
        for worker in overheard:
            self.manager.send_worker(
                worker, m.Error(code="unknown_worker", text=text, hint="send a profile first")
            )

    def farewell(self) -> None:
        """Tell everybody that we go. Servers tell it when the stream ends, but not all of them."""
        for peer in self.greeted:
            self.manager.transport.withdraw(peer)
        self.greeted.clear()

    # --- presence ---------------------------------------------------------------------------------------

    def available(self, sender: str, show: Show) -> None:
        """Directed presence of anybody."""
        self._missing.discard(sender)
        self._absent.pop(sender, None)
        if sender not in self.greeted:
            self.greet(sender)
        if sender in self.entries:
            self.manager.post(ev.WorkerHeard(sender))
            self._pause(sender, show)

    def greet(self, peer: str) -> None:
        """Our presence, so that it learns when we go."""
        self.greeted[peer] = None
        if len(self.greeted) > self.manager.settings.greeted_max:
            del self.greeted[next(iter(self.greeted))]
        workers, slots, busy = self.manager.scheduler.totals()
        words = f"{workers} workers, {busy}/{slots} slots busy"
        self.manager.tell_now(lambda: self.manager.transport.announce(peer, Show.ONLINE, words))

    def unavailable(self, sender: str, reason: str) -> None:
        """Anybody left, or is not there.

        Where server and manager restart together, workers are a moment later than the manager: that one of
        the last life is not there counts only after `absence_s`.
        """
        self.greeted.pop(sender, None)
        reason = reason[:REASON_CHARS_MAX] or "went offline"
        if sender in self.entries:
            if sender not in self._missing:
                self.manager.post(ev.WorkerLost(sender, reason))
        elif sender in self.expected:
            if self.manager.clock.now() < self._absence_counts_at:
                self._absent[sender] = reason
            else:
                self._give_up(sender, reason)

    def heard(self, sender: str) -> None:
        """A ping was answered."""
        self._missing.discard(sender)
        if sender in self.entries:
            self.manager.post(ev.WorkerHeard(sender))

    def wrote(self, sender: str) -> None:
        """A message came."""
        self._missing.discard(sender)

    def is_known(self, peer: str) -> bool:
        """Whether anything is kept of this peer."""
        return peer in self.entries or peer in self.greeted or peer in self.expected

    # --- coming and going -------------------------------------------------------------------------------

    def join(self, sender: str, manner: Manner, profile: m.Profile) -> None:
        """A worker introduces itself. Raises `UsageError` that says why it cannot come in."""
        try:
            self._check(sender, profile)
        except UsageError as problem:
            self._note_refusal(sender, problem)
            raise
        self.refused.pop(sender, None)
        self.manager.far.settled(sender)
        self._sessions += 1
        known = self.entries.get(sender)
        self.entries[sender] = WorkerEntry(
            profile,
            self._sessions,
            known.joined if known else self.manager.clock.wall(),
            manner is not Manner.CONTAINER,
            known.specs if known else set(),
        )
        self.expected.discard(sender)
        self._absent.pop(sender, None)
        users = user_patterns_of(profile.users, USERS_FIELD)
        offer = WorkerOffer(profile.slots or profile.cores, fold_tags(tuple(profile.provides)), users)
        held = [HeldByWorker(h.job, h.task, h.attempt) for h in profile.held]
        self.manager.post(ev.WorkerJoined(sender, offer, held))
        log.info("worker_joined", extra={"worker": sender, "slots": offer.slots, "held": len(held)})

    def _check(self, sender: str, profile: m.Profile) -> None:
        settings = self.manager.settings
        if not m.PROTOCOL_OLDEST <= profile.protocol <= m.PROTOCOL_VERSION:
            older = profile.protocol < m.PROTOCOL_OLDEST
            raise UsageError(
                f"the worker speaks protocol {profile.protocol}, this manager {m.PROTOCOL_OLDEST} to "
                f"{m.PROTOCOL_VERSION}",
                hint="upgrade Kestrel on the worker" if older else "upgrade the manager first",
                code="version",
            )
        if profile.epoch > self.manager.epoch:
            # It would ignore all that we give it, and tasks would be set aside for that.
            raise UsageError(
                f"the worker was welcomed by life {profile.epoch} of this pool's manager, and this is life "
                f"{self.manager.epoch}",
                hint="if the manager was given another store on purpose, restart the worker",
                code="older_life",
            )
        check_profile(profile, settings)
        user_patterns_of(profile.users, USERS_FIELD)
        if sender not in self.entries and len(self.entries) >= settings.workers_max:
            raise UsageError("the pool has as many workers as this manager takes", code="busy")

    def _note_refusal(self, sender: str, problem: UsageError) -> None:
        """For who asks where a worker is; one line in the log as long as it is kept."""
        if sender not in self.refused:
            log.warning(
                "worker_refused", extra={"worker": sender, "text": problem.text, "hint": problem.hint}
            )
        self.refused.pop(sender, None)
        if len(self.refused) >= self.manager.settings.refused_max:
            del self.refused[next(iter(self.refused))]
        self.refused[sender] = self.manager.clock.wall(), f"refused: {problem.text}; {problem.hint}"

    def forget(self, worker: WorkerId, session: int) -> None:
        """The worker is gone, unless it has introduced itself again."""
        entry = self.entries.get(worker)
        if entry is not None and entry.session == session:
            del self.entries[worker]
            for job in entry.specs:
                self.manager.jobs[job].told.pop(worker, None)
            self._missing.discard(worker)
            self._paused_by_presence.pop(worker, None)
            self.manager.far.settled(worker)

    def dismiss(self, whose: str) -> None:
        """This account, or domain, has other rights now: those of its workers that may not work any more are
        lost at once. Who is expected from the last life has the time to be told a role."""
        for worker in [w for w in self.entries if is_of(w, whose)]:
            refusal = self.manager.access.may(worker, "worker")
            if refusal is None:
                continue
            self.manager.refusals.note(worker, refusal.code, refusal.text)
            self._give_up(worker, f"refused: {refusal.text}"[:REASON_CHARS_MAX])
            error = m.Error(code=refusal.code, text=refusal.text, hint=refusal.hint)
            self.manager.tell_now(partial(self.manager.send_worker, worker, error))

    # --- drains -----------------------------------------------------------------------------------------

    def _pause(self, worker: WorkerId, show: Show) -> None:
        paused, before = show in (Show.AWAY, Show.XA), worker in self._paused_by_presence
        if paused:
            self._paused_by_presence[worker] = show
        else:
            self._paused_by_presence.pop(worker, None)
        if paused != before and worker not in self.drained_by_user:
            self.manager.post(ev.WorkerDrained(worker, paused))

    def is_drained(self, worker: WorkerId) -> bool:
        """Whether the worker gets no more tasks, for whichever reason."""
        return worker in self.drained_by_user or worker in self._paused_by_presence

    def is_away(self, worker: WorkerId) -> bool:
        """Whether it said itself that it takes nothing now, and nobody has drained it."""
        return worker not in self.drained_by_user and self._paused_by_presence.get(worker) is Show.AWAY

    def drain(
        self, message: m.Drain, unit: Unit, events: list[ev.Event], *, account: str | None = None
    ) -> int:
        """A user's wish, which outweighs presence and lasts until it is taken back; how many workers it
        concerns. Raises `UsageError`, also if one of them is not of this `account` (None: all may be)."""
        wanted = not message.undo
        names = self._named(message.worker, self.drained_by_user if message.undo else self.expected)
        foreign = [w for w in names if account is not None and bare(w) != account]
        if foreign:
            raise UsageError(
                f"only an administrator of the pool may drain {foreign[0]}",
                hint="a worker's owner can stop it where it runs",
                code="not_admin",
            )
        new = [w for w in names if wanted != (w in self.drained_by_user)]
        if wanted and len(self.drained_by_user) + len(new) > self.manager.settings.drained_max:
            raise UsageError(
                f"{len(self.drained_by_user)} workers are drained, and more are not kept",
                hint=f"take some back, e.g. {next(iter(self.drained_by_user), message.worker)}",
                code="busy",
            )
        for worker in new:
            (self.drained_by_user.add if wanted else self.drained_by_user.discard)(worker)
            unit.writes.append(DrainWorker(worker, wanted))
        events += [ev.WorkerDrained(w, self.is_drained(w), pardoned=message.undo) for w in names]
        return len(names)

    def _named(self, text: str, others: set[WorkerId]) -> Sequence[WorkerId]:
        """Workers that an address or a pattern means, of those who are there and of `others`."""
        patterns = patterns_of([text], "drain: `worker`")
        names = [*self.entries, *sorted(others - self.entries.keys())]
        found = meant_by(patterns, names)
        if not found:
            raise nobody(patterns, names)
        return found
