"""The manager as a plain reactor: messages and presence in, store units and messages out.

One unit at a time: everything that arrived while the store was busy becomes the next unit, goes
through the scheduler at once, is stored in one transaction, and only then is anybody told (law 1).
Reads wait in the same line, so an answer never shows what is not stored yet.

It must never block, never await, and know nothing of asyncio, XMPP or SQL: `service` and the
simulator run it over the roles of `kestrel.ports`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from kestrel.core import events as ev
from kestrel.core.model import (
    HeldByWorker,
    WorkerId,
    WorkerOffer,
    fold_tags,
)
from kestrel.core.scheduler import Scheduler
from kestrel.errors import KestrelError, StoreError, UsageError
from kestrel.manager import jobs
from kestrel.manager.carrying import Carrier
from kestrel.manager.intake import REASON_CHARS_MAX, check_profile, outcome_of
from kestrel.manager.jobbooks import JobBooks
from kestrel.manager.requests import Requests
from kestrel.manager.settings import ManagerSettings
from kestrel.manager.unit import Request, Unit, WorkerEntry
from kestrel.manager.words import Manner, answer_as_words, command_from_words, manner_of
from kestrel.ports import (
    Clock,
    CommitDone,
    CommitFailed,
    Show,
    Store,
    TimerHandle,
    Transport,
)
from kestrel.protocol import codec
from kestrel.protocol import messages as m
from kestrel.xmpp.jid import bare

log = logging.getLogger("kestrel.manager")


class Manager:
    """Implements `TransportEvents`. Everything happens on the thread that calls it."""

    def __init__(
        self, clock: Clock, transport: Transport, store: Store, settings: ManagerSettings | None = None
    ) -> None:
        self.clock = clock
        self.transport = transport
        self.store = store
        self.settings = settings or ManagerSettings()
        self.books = JobBooks(self)
        self.jobs = self.books.entries
        self.workers: dict[WorkerId, WorkerEntry] = {}
        self.epoch = 0
        self.address = ""
        self.store_problem: StoreError | None = None
        self.counters = {"messages": 0, "bad_messages": 0, "duplicates": 0, "dropped": 0}
        self.on_failed: Callable[[Exception], None] | None = None
        """Told once when the manager cannot go on."""
        self._sessions = 0
        self._inbox: list[ev.Event | Request] = []
        self._time_waiting = False
        self._unit: Unit | None = None
        self._flush_due: TimerHandle | None = None
        self._tick_due: TimerHandle | None = None
        self._retry_due: TimerHandle | None = None
        self._greeted: dict[str, None] = {}
        self._missing: set[WorkerId] = set()
        """Workers of which nothing was heard since our own connection broke; their leases decide."""
        self._paused_by_presence: set[WorkerId] = set()
        self._drained_by_user: set[WorkerId] = set()
        self._overheard: dict[WorkerId, None] = {}
        """Workers of which something was left out because the inbox was full."""
        self._carrier = Carrier(self)
        self._requests = Requests(self)
        self._closed = False

    # --- life ---------------------------------------------------------------------------------------

    def start(self) -> None:
        """Read the store, count the epoch up, and begin. Blocks while reading; raises `StoreError`."""
        content = self.store.open(jobs.terms_of)
        self.epoch = content.epoch
        self.books.next_job = content.next_job
        self.scheduler = Scheduler(self.settings.scheduler, content.epoch)
        for record in content.jobs:
            self.books.enter(jobs.entry_of(record))
        for job in content.unfinished:
            self.jobs[job.job].cancelled = job.cancelled
        now = self.clock.now()
        restored = [ev.JobRestored(r) for r in content.unfinished]
        unit = Unit()
        self._carrier.carry_out(self.scheduler.handle(restored, now), unit)
        log.info(
            "manager_started",
            extra={"epoch": self.epoch, "jobs": len(content.jobs), "unfinished": len(restored)},
        )
        self._tick_due = self.clock.call_later(self.settings.tick_s, self._tick)
        self._commit(unit)

    def close(self) -> None:
        """Stop reacting. What is stored stays; what was not told is asked for again by the peers."""
        self._closed = True
        for timer in (self._flush_due, self._tick_due, self._retry_due):
            if timer is not None:
                timer.cancel()
        self.books.close()
        self._inbox.clear()

    # --- what the transport tells ---------------------------------------------------------------------

    def on_up(self, address: str) -> None:
        """The manager's own connection is there (again): workers and users introduce themselves anew."""
        self.address = address
        log.info("manager_up", extra={"address": address})

    def on_down(self, reason: str) -> None:
        """The manager's own connection broke: nobody's presence is known, but nobody is lost for that.

        Whoever does not come back before its lease ends is lost then.
        """
        self._greeted.clear()
        self._missing.update(self.workers)
        log.warning("manager_down", extra={"reason": reason})

    def on_available(self, sender: str, show: Show, status: str) -> None:
        if self._closed:
            return
        self._missing.discard(sender)
        if sender not in self._greeted:
            self._greeted[sender] = None
            if len(self._greeted) > self.settings.greeted_max:
                del self._greeted[next(iter(self._greeted))]
            self.transport.announce(sender, Show.ONLINE, self._status_words())
        if sender in self.workers:
            self._post(ev.WorkerHeard(sender))
            self._pause(sender, show in (Show.AWAY, Show.XA))

    def on_unavailable(self, sender: str, reason: str) -> None:
        if self._closed:
            return
        self._greeted.pop(sender, None)
        self._requests.questions.forget_sender(sender)
        if sender in self.workers and sender not in self._missing:
            self._post(ev.WorkerLost(sender, reason[:REASON_CHARS_MAX] or "went offline"))

    def on_heard(self, sender: str) -> None:
        self._missing.discard(sender)
        if not self._closed and sender in self.workers:
            self._post(ev.WorkerHeard(sender))

    def on_message(self, sender: str, payload: bytes, chat: bool) -> None:
        if self._closed:
            return
        self.counters["messages"] += 1
        self._missing.discard(sender)
        manner = manner_of(payload, chat)
        try:
            message: m.ToManager
            if manner is Manner.WORDS:
                message = command_from_words(payload.decode("utf-8", "replace"))
            else:
                message = codec.decode_to_manager(payload)
            self._take(sender, manner, message)
        except codec.ProtocolError as problem:
            self.counters["bad_messages"] += 1
            log.warning("bad_message", extra={"sender": sender, "code": problem.code, "text": problem.text})
            self.reply(sender, manner, problem.as_message())
        except KestrelError as problem:
            self.reply(sender, manner, m.Error(code=problem.code, text=problem.text, hint=problem.hint))

    # --- sending --------------------------------------------------------------------------------------

    def reply(self, to: str, manner: Manner, message: m.Message) -> None:
        """Answer in kind."""
        if manner is Manner.WORDS:
            # To the person, not to the device: words may come from a program that does not listen.
            self.transport.say(bare(to), answer_as_words(message)[: self.settings.words_chars_max])
            return
        text = codec.encode(message)
        if codec.wire_size(text) > self.settings.stanza_bytes_max:
            # A larger one would cost us the stream, and everybody in the pool with it.
            log.error("answer_too_large", extra={"to": to, "type": type(message).__name__})
            re: str = getattr(message, "re", "")
            text = codec.encode(
                m.Error(re=re, code="too_large", text="the answer does not fit", hint="ask for less")
            )
        self.transport.send(to, text, chat=manner is Manner.BODY)

    def send_worker(self, worker: WorkerId, message: m.Message) -> None:
        entry = self.workers.get(worker)
        self.transport.send(worker, codec.encode(message), chat=entry is not None and entry.chat)

    # --- taking messages in ---------------------------------------------------------------------------

    def _take(self, sender: str, manner: Manner, message: m.ToManager) -> None:
        if isinstance(message, m.WorkerToManager) and self._is_overfull():
            # Left out: it keeps its results, and is asked to introduce itself again when there is room.
            self.counters["dropped"] += 1
            if len(self._overheard) < self.settings.workers_max:
                self._overheard[sender] = None
        elif isinstance(message, m.Report):
            self._post(
                ev.AttemptsReported(
                    sender, message.n, [outcome_of(r, self.settings.tail_bytes) for r in message.attempts]
                )
            )
        elif isinstance(message, m.Revoked):
            self._post(ev.AttemptsRevoked(sender, message.job, message.attempts))
        elif isinstance(message, m.Profile):
            self._join(sender, manner, message)
        elif isinstance(message, m.OutputPart):
            self._post(ev.WorkerHeard(sender))
            self._requests.outputs.relay_answer(sender, message)
        elif isinstance(message, m.Error):
            self._requests.outputs.relay_error(sender, message)
        elif self._is_overfull():
            self.counters["dropped"] += 1
            self.reply(
                sender,
                manner,
                m.Error(re=message.id, code="busy", text="the manager is overloaded", hint="try again"),
            )
        else:
            self._inbox.append((sender, manner, message))
            self._flush_soon()

    def _is_overfull(self) -> bool:
        return len(self._inbox) >= self.settings.inbox_max

    def _join(self, sender: str, manner: Manner, profile: m.Profile) -> None:
        if not m.PROTOCOL_OLDEST <= profile.protocol <= m.PROTOCOL_VERSION:
            older = profile.protocol < m.PROTOCOL_OLDEST
            raise UsageError(
                f"the worker speaks protocol {profile.protocol}, this manager {m.PROTOCOL_OLDEST} to "
                f"{m.PROTOCOL_VERSION}",
                hint="upgrade Kestrel on the worker" if older else "upgrade the manager first",
                code="version",
            )
        check_profile(profile, self.settings)
        if sender not in self.workers and len(self.workers) >= self.settings.workers_max:
            raise UsageError("the pool has as many workers as this manager takes", code="busy")
        self._sessions += 1
        known = self.workers.get(sender)
        self.workers[sender] = WorkerEntry(
            profile,
            self._sessions,
            known.joined if known else self.clock.wall(),
            manner is not Manner.CONTAINER,
            known.specs if known else set(),
        )
        offer = WorkerOffer(profile.slots or profile.cores, fold_tags(tuple(profile.provides)))
        held = [HeldByWorker(h.job, h.task, h.attempt) for h in profile.held]
        self._post(ev.WorkerJoined(sender, offer, held))
        log.info("worker_joined", extra={"worker": sender, "slots": offer.slots, "held": len(held)})

    def _pause(self, worker: WorkerId, paused: bool) -> None:
        if paused == (worker in self._paused_by_presence):
            return
        (self._paused_by_presence.add if paused else self._paused_by_presence.discard)(worker)
        if worker not in self._drained_by_user:
            self._post(ev.WorkerDrained(worker, paused))

    def drained(self, worker: WorkerId, drained: bool) -> ev.WorkerDrained:
        """A user's wish, as an event for the scheduler; it outweighs the worker's presence."""
        (self._drained_by_user.add if drained else self._drained_by_user.discard)(worker)
        return ev.WorkerDrained(worker, drained or worker in self._paused_by_presence)

    def is_drained(self, worker: WorkerId) -> bool:
        """Whether the worker gets no more tasks, for whichever reason."""
        return worker in self._drained_by_user or worker in self._paused_by_presence

    def _post(self, event: ev.Event) -> None:
        self._inbox.append(event)
        self._flush_soon()

    # --- the turn -------------------------------------------------------------------------------------

    def _flush_soon(self) -> None:
        if self._unit is None and self._flush_due is None and not self._closed:
            self._flush_due = self.clock.call_later(0, self._flush)

    def _tick(self) -> None:
        self._tick_due = self.clock.call_later(self.settings.tick_s, self._tick)
        self._requests.questions.expire()
        if not self._time_waiting:  # while the store is away for long, one is enough
            self._time_waiting = True
            self._post(ev.TimePassed())

    def _flush(self) -> None:
        self._flush_due = None
        if self._unit is None and not self._closed:
            try:
                self._turn()
            except Exception as problem:  # noqa: BLE001 - the boundary of a turn
                self._on_fault(problem)

    def _on_fault(self, problem: Exception) -> None:
        """A turn broke off in the middle: books and store may differ, so this life of the manager ends.

        The next one rebuilds itself from the store and from what workers have in hand (law 4).
        """
        log.critical("manager_fault", exc_info=problem)
        self.close()
        if self.on_failed is None:
            raise problem
        self.on_failed(problem)

    def _turn(self) -> None:
        inbox, self._inbox = self._inbox, []
        overheard, self._overheard = self._overheard, {}
        for worker in overheard:
            text = "the manager was overloaded and left out what you sent"
            self.send_worker(worker, m.Error(code="unknown_worker", text=text, hint="send a profile first"))
        self._time_waiting = False
        unit = Unit()
        events: list[ev.Event] = []
        asked: list[Request] = []
        for item in inbox:
            if isinstance(item, tuple):
                changing = self._requests.change(item, unit, events)
                (unit.asked if changing else asked).append(item)
            else:
                events.append(item)
                if isinstance(item, ev.WorkerJoined):  # the scheduler may have forgotten it meanwhile
                    events.append(ev.WorkerDrained(item.worker, self.is_drained(item.worker)))
        effects = self.scheduler.handle(events, self.clock.now())
        self._carrier.carry_out(effects, unit)
        for request in asked:
            self._requests.questions.answer(request, unit)
        self._commit(unit)

    def _commit(self, unit: Unit) -> None:
        if not unit.writes and not unit.reads:
            self._finish(unit)
            return
        self._unit = unit
        self.store.commit(unit.writes, unit.reads, self._on_committed)

    def _on_committed(self, outcome: CommitDone | CommitFailed) -> None:
        unit = self._unit
        if unit is None or self._closed:
            return
        if isinstance(outcome, CommitFailed):
            self._on_store_failed(outcome.problem, unit)
            return
        if self.store_problem is not None:
            log.info("store_recovered")
            self.store_problem = None
        self._unit = None
        self.counters["duplicates"] += outcome.duplicates
        unit.answers = outcome.answers
        try:
            self._finish(unit)
        except Exception as problem:  # noqa: BLE001 - the boundary of a turn
            self._on_fault(problem)

    def _on_store_failed(self, problem: Exception, unit: Unit) -> None:
        """Nothing of the unit is stored, so nobody is told: keep it and try again, or give up."""
        if not isinstance(problem, StoreError) or not problem.retry:
            log.critical("store_failed", extra={"problem": str(problem)})
            self.close()
            if self.on_failed is not None:
                self.on_failed(problem)
            return
        first = self.store_problem is None
        self.store_problem = problem
        if first:
            log.error("store_unavailable", extra={"problem": str(problem)})
            self._requests.tell_of_delay(unit)
        self._requests.refuse_while_store_fails(self._inbox)
        self._retry_due = self.clock.call_later(self.settings.store_retry_s, lambda: self._commit(unit))

    def _finish(self, unit: Unit) -> None:
        for tell in unit.tells:
            tell()
        if self._inbox:
            self._flush_soon()

    # --- workers --------------------------------------------------------------------------------------

    def _forget_worker(self, worker: WorkerId, session: int) -> None:
        entry = self.workers.get(worker)
        if entry is not None and entry.session == session:
            del self.workers[worker]
            for job in entry.specs:
                self.jobs[job].told.pop(worker, None)
            self._missing.discard(worker)
            self._paused_by_presence.discard(worker)
            self._drained_by_user.discard(worker)

    def _status_words(self) -> str:
        workers, slots, busy = self.scheduler.totals()
        return f"{workers} workers, {busy}/{slots} slots busy"
