"""The manager as a plain reactor: messages and presence in, store units and messages out.

One unit at a time: everything that arrived while the store was busy becomes the next unit, goes
through the scheduler at once, is stored in one transaction, and only then is anybody told (law 1).
Reads wait in the same line, so an answer never shows what is not stored yet. A manager whose lease has
lapsed takes no turn and tells nobody anything until `resume`: somebody else may be the manager by now.

It must never block, never await, and know nothing of asyncio, XMPP or SQL: `service` and the
simulator run it over the roles of `kestrel.ports`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from kestrel.core import events as ev
from kestrel.core.model import WorkerId
from kestrel.core.scheduler import Scheduler
from kestrel.errors import StoreError
from kestrel.manager import jobs
from kestrel.manager.access import Access
from kestrel.manager.carrying import Carrier
from kestrel.manager.far import FarWorkers
from kestrel.manager.intake import outcome_of
from kestrel.manager.jobbooks import JobBooks
from kestrel.manager.reception import Reception
from kestrel.manager.refusals import Refusals
from kestrel.manager.requests import Requests
from kestrel.manager.roster import Roster
from kestrel.manager.settings import ManagerSettings
from kestrel.manager.unit import Request, Tell, Unit
from kestrel.manager.words import Manner, answer_as_words
from kestrel.ports import (
    Clock,
    CommitDone,
    CommitFailed,
    Show,
    Store,
    StoreContent,
    TimerHandle,
    Transport,
)
from kestrel.protocol import codec
from kestrel.protocol import messages as m
from kestrel.xmpp.jid import bare

log = logging.getLogger("kestrel.manager")


COUNTERS = ("messages", "bad_messages", "duplicates", "dropped", "refused", "foreign_reports")


class Manager:
    """Implements `TransportEvents` and `RoleEvents`. Everything happens on the thread that calls it."""

    def __init__(
        self,
        clock: Clock,
        transport: Transport,
        store: Store,
        settings: ManagerSettings | None = None,
        *,
        lapsed: Callable[[], bool] | None = None,
    ) -> None:
        """`lapsed`: whether another manager may act by now; None: there is no other."""
        self.clock = clock
        self.transport = transport
        self.store = store
        self.settings = settings or ManagerSettings()
        self.access = Access(
            self.settings.access,
            self.settings.role_authority,
            roles_max=self.settings.roles_max,
            cached_max=self.settings.greeted_max,
        )
        self.books = JobBooks(self)
        self.jobs = self.books.entries
        self.roster = Roster(self)
        self.far = FarWorkers(self)
        self.workers = self.roster.entries
        self.epoch = 0
        self.address = ""
        self.store_problem: StoreError | None = None
        self.counters = dict.fromkeys(COUNTERS, 0)
        self.refusals = Refusals(self)
        self.on_failed: Callable[[Exception], None] | None = None
        """Told once when the manager cannot go on."""
        self._lapsed = lapsed
        self._inbox: list[ev.Event | Request] = []
        self.inbox_bytes = 0
        """Of the messages from which what is in there came."""
        self._time_waiting = False
        self._deaf = False
        """Our own connection is broken: nobody can be heard."""
        self._unit: Unit | None = None
        self._units = 0
        self._untold = False
        """The unit is stored, and its tells wait for `resume`."""
        self._kept: list[Tell] = []
        """Other tells that wait for `resume`."""
        self._flush_due: TimerHandle | None = None
        self._tick_due: TimerHandle | None = None
        self._retry_due: TimerHandle | None = None
        self._carrier = Carrier(self)
        self.requests = Requests(self)
        self.outputs = self.requests.outputs
        self.reception = Reception(self)
        self._closed = False

    # --- life ---------------------------------------------------------------------------------------

    def start(self, content: StoreContent) -> None:
        """Go on where the last life stopped, with what the store held when it was opened for this one."""
        self.epoch = content.epoch
        self.books.next_job = content.next_job
        self.scheduler = Scheduler(self.settings.scheduler, content.epoch)
        for record in content.jobs:
            self.books.enter(jobs.entry_of(record))
        for job in content.unfinished:
            self.jobs[job.job].cancelled = job.cancelled
        restored = [ev.JobRestored(r) for r in content.unfinished]
        expected = self.roster.restore(content)
        unit = Unit()
        self._carrier.carry_out(self.scheduler.handle([*restored, expected], self.clock.now()), unit)
        log.info(
            "manager_started",
            extra={
                "epoch": self.epoch,
                "jobs": len(content.jobs),
                "unfinished": len(restored),
                "workers_expected": len(self.roster.expected),
            },
        )
        self._tick_due = self.clock.call_later(self.settings.tick_s, self._tick)
        self._commit(unit)

    def resume(self) -> None:
        """The lease was renewed: go on where a lapse stopped us. Cheap if none did."""
        if self._closed or self.is_lapsed:
            return
        try:
            kept, self._kept = self._kept, []
            for tell in kept:
                tell()
            if self._untold and self._unit is not None:
                self._finish(self._unit)
            elif self._inbox or self._time_waiting:
                self._flush_soon()
        except Exception as problem:  # noqa: BLE001 - the boundary of a turn
            self._on_fault(problem)

    def close(self) -> None:
        """Leave in order: whoever waits for an answer hears what to do, everybody that we go.

        What is stored stays; what was not told is asked for again by the peers.
        """
        if self._untold:
            self.resume()
        if not self._closed and self.epoch and not self.is_lapsed:
            self.requests.farewell(self._inbox, self._unit)
            self.roster.farewell()
        self._end()

    def _end(self) -> None:
        """Stop reacting, and tell nobody."""
        self._closed = True
        for timer in (self._flush_due, self._tick_due, self._retry_due):
            if timer is not None:
                timer.cancel()
        self.books.close()
        self._inbox.clear()
        self._kept.clear()

    @property
    def is_lapsed(self) -> bool:
        """Whether somebody else may be the manager by now."""
        return self._lapsed is not None and self._lapsed()

    # --- what the transport tells ---------------------------------------------------------------------

    def on_up(self, address: str) -> None:
        """The manager's own connection is there (again): users come by themselves, workers are called."""
        self.address = address
        self.access.live_at(address)
        self._deaf = False
        log.info("manager_up", extra={"address": address})
        if not self._closed:
            self.roster.came_up()

    def on_down(self, reason: str) -> None:
        """The manager's own connection broke: nobody's presence is known, but nobody is lost for that.

        Time stands still for the scheduler until it is there again, however long that takes. Whoever does
        not come back within a lease after it is lost then.
        """
        self._deaf = True
        self.roster.went_down()
        log.warning("manager_down", extra={"reason": reason})

    def on_available(self, sender: str, show: Show, status: str) -> None:
        if not self._closed and self.access.admits(sender):
            self.roster.available(sender, show)

    def on_unavailable(self, sender: str, reason: str) -> None:
        if not self._closed and (self.access.admits(sender) or self.roster.is_known(sender)):
            self.requests.questions.forget_sender(sender)
            self.roster.unavailable(sender, reason)

    def on_heard(self, sender: str) -> None:
        if not self._closed:
            self.roster.heard(sender)

    def on_message(self, sender: str, payload: bytes, chat: bool) -> None:
        if not self._closed:
            self.reception.receive(sender, payload, chat)

    # --- who may what ---------------------------------------------------------------------------------

    @property
    def role_authority(self) -> str:
        """Domain of the server that is believed when it tells roles."""
        return self.access.authority

    def on_role(self, jid: str, role: str) -> None:
        """Who had more rights before loses what it had by them, at once."""
        concerned = "" if self._closed else self.access.tell(jid, role)
        if concerned:
            log.info("role_changed", extra={"jid": jid, "role": role})
            self.roster.dismiss(concerned)
            self.requests.dismiss(concerned)

    def admits(self, address: str) -> bool:
        """Whether this address may know of us: others get no answer to what asks for our presence."""
        return self.access.admits(address)

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
        if isinstance(message, m.Stop | m.Revoke):
            self.far.sent(worker)

    def tell_now(self, tell: Tell) -> None:
        """Something that needs no unit to be stored first; kept while the lease has lapsed."""
        if not self.is_lapsed:
            tell()
        elif len(self._kept) < self.settings.inbox_max:
            self._kept.append(tell)
        else:
            self.counters["dropped"] += 1

    def reply_now(self, to: str, manner: Manner, message: m.Message) -> None:
        """Answer in kind, without waiting for a unit to be stored."""
        self.tell_now(lambda: self.reply(to, manner, message))

    # --- taking messages in ---------------------------------------------------------------------------

    @property
    def is_overfull(self) -> bool:
        """Whether nothing more is taken in for now."""
        settings = self.settings
        return len(self._inbox) >= settings.inbox_max or self.inbox_bytes >= settings.inbox_bytes_max

    def _take(self, sender: str, manner: Manner, message: m.ToManager) -> None:
        """A message of somebody who may send it. Raises `UsageError` for a worker that cannot come in."""
        match message:
            case m.Report():
                outcomes = [outcome_of(r, self.settings.tail_bytes) for r in message.attempts]
                self.post(ev.AttemptsReported(sender, message.n, outcomes))
            case m.Revoked():
                self.post(ev.AttemptsRevoked(sender, message.job, message.attempts))
            case m.Profile():
                self.roster.join(sender, manner, message)
            case m.OutputPart():
                self.post(ev.WorkerHeard(sender))
                if self.outputs.awaits(sender, message.re):
                    self.tell_now(lambda: self.outputs.relay_answer(sender, message))
            case m.Error():
                if self.outputs.awaits(sender, message.re):
                    self.tell_now(lambda: self.outputs.relay_error(sender, message))
            case _:
                self._inbox.append((sender, manner, message))
                self._flush_soon()

    def is_drained(self, worker: WorkerId) -> bool:
        """Whether the worker gets no more tasks, for whichever reason."""
        return self.roster.is_drained(worker)

    def post(self, event: ev.Event) -> None:
        """Something for the scheduler, with the next turn."""
        self._inbox.append(event)
        self._flush_soon()

    # --- the turn -------------------------------------------------------------------------------------

    def _flush_soon(self) -> None:
        if self._unit is None and self._flush_due is None and not self._closed:
            self._flush_due = self.clock.call_later(0, self._flush)

    def _tick(self) -> None:
        self._tick_due = self.clock.call_later(self.settings.tick_s, self._tick)
        self._time_waiting = not self._deaf
        if not self.is_lapsed:
            self.requests.questions.expire()
            self.roster.tick()
            self.far.tick()
            if self._time_waiting or self._inbox:
                self._flush_soon()

    def _flush(self) -> None:
        self._flush_due = None
        if self._unit is None and not self._closed and not self.is_lapsed:
            try:
                self._turn()
            except Exception as problem:  # noqa: BLE001 - the boundary of a turn
                self._on_fault(problem)

    def _on_fault(self, problem: Exception) -> None:
        """A turn broke off in the middle: books and store may differ, so this life of the manager ends.

        The next one rebuilds itself from the store and from what workers have in hand (law 4).
        """
        log.critical("manager_fault", exc_info=problem)
        self._end()
        if self.on_failed is None:
            raise problem
        self.on_failed(problem)

    def _turn(self) -> None:
        inbox, self._inbox = self._inbox, []
        self.inbox_bytes = 0
        self.roster.apologize()
        unit = Unit()
        events: list[ev.Event] = []
        for item in inbox:
            if isinstance(item, tuple) and self.access.may(item[0], "user") is not None:
                self.reception.turn_back(item)  # it has lost its role meanwhile
            elif isinstance(item, tuple):
                changing = self.requests.change(item, unit, events)
                (unit.asked if changing else unit.questions).append(item)
            elif isinstance(item, ev.WorkerDrained):  # a user may have wished otherwise before it
                events.append(ev.WorkerDrained(item.worker, self.is_drained(item.worker)))
            else:
                events.append(item)
                if isinstance(item, ev.WorkerJoined):  # the scheduler may have forgotten it meanwhile
                    events.append(ev.WorkerDrained(item.worker, self.is_drained(item.worker)))
        if self._time_waiting:  # last: who was heard in this turn is not lost in it
            self._time_waiting = False
            events.append(ev.TimePassed())
        effects = self.scheduler.handle(events, self.clock.now())
        self._note_foreign_reports()
        self._carrier.carry_out(effects, unit)
        for request in unit.questions:
            self.requests.questions.answer(request, unit)
        self._commit(unit)

    def _note_foreign_reports(self) -> None:
        """Workers that told of attempts which they were never given changed nothing, and are named."""
        for worker, count in self.scheduler.accused().items():
            self.counters["foreign_reports"] += count
            self.refusals.note(worker, "foreign_report", f"{count} attempts that it was never given")

    def _commit(self, unit: Unit) -> None:
        """Store it, or try again to; what needs no store is told at once."""
        self._unit = unit
        if not unit.writes and not unit.reads:
            self._tell(unit)
            return
        if not unit.number:
            self._units += 1
            unit.number = self._units
        self.store.commit(unit.writes, unit.reads, self._on_committed, unit=unit.number)

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
        self.counters["duplicates"] += outcome.duplicates
        unit.answers = outcome.answers
        try:
            self._tell(unit)
        except Exception as problem:  # noqa: BLE001 - the boundary of a turn
            self._on_fault(problem)

    def _on_store_failed(self, problem: Exception, unit: Unit) -> None:
        """Nothing of the unit is stored, so nobody is told: keep it and try again, or give up."""
        if not isinstance(problem, StoreError) or not problem.retry:
            log.critical("store_failed", extra={"problem": str(problem)})
            self._end()
            if self.on_failed is not None:
                self.on_failed(problem)
            return
        first = self.store_problem is None
        self.store_problem = problem
        if first:
            log.error("store_unavailable", extra={"problem": str(problem)})
            self.requests.tell_of_delay(unit)
        waiting = len(self._inbox)
        self.requests.refuse_while_store_fails(self._inbox)
        if waiting:
            self.inbox_bytes = self.inbox_bytes * len(self._inbox) // waiting
        self._retry_due = self.clock.call_later(self.settings.store_retry_s, lambda: self._commit(unit))

    def _tell(self, unit: Unit) -> None:
        """It is stored: tell, unless somebody else may be the manager by now."""
        self._untold = self.is_lapsed
        if not self._untold:
            self._finish(unit)

    def _finish(self, unit: Unit) -> None:
        self._unit = None
        self._untold = False
        for tell in unit.tells:
            tell()
        if self._inbox or self._time_waiting:
            self._flush_soon()

    def _forget_worker(self, worker: WorkerId, session: int) -> None:
        self.roster.forget(worker, session)
