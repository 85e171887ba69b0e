"""The manager as a plain reactor: messages and presence in, store units and messages out.

One unit at a time: everything that arrived while the store was busy becomes the next unit, goes
through the scheduler at once, is stored in one transaction, and only then is anybody told (law 1).
Reads wait in the same line, so an answer never shows what is not stored yet.

It must never block, never await, and know nothing of asyncio, XMPP or SQL: `service` and the
simulator run it over the roles of `kestrel.ports`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, assert_never

from kestrel.core import effects as fx
from kestrel.core import events as ev
from kestrel.core.model import (
    HeldByWorker,
    JobId,
    WorkerId,
    WorkerOffer,
    fold_tags,
)
from kestrel.core.scheduler import Scheduler
from kestrel.errors import InternalError, KestrelError, StoreError, UsageError
from kestrel.manager import jobs as books
from kestrel.manager.intake import REASON_CHARS_MAX, check_profile, outcome_of
from kestrel.manager.jobs import JobEntry
from kestrel.manager.requests import Requests
from kestrel.manager.settings import ManagerSettings
from kestrel.manager.words import Manner, answer_as_words, command_from_words, manner_of
from kestrel.ports import (
    Clock,
    CommitDone,
    CommitFailed,
    Read,
    ReadParams,
    Show,
    Store,
    TimerHandle,
    Transport,
    Write,
)
from kestrel.protocol import codec
from kestrel.protocol import messages as m

log = logging.getLogger("kestrel.manager")

Tell: TypeAlias = Callable[[], None]


@dataclass(slots=True)
class Unit:
    """What one turn of the manager stores, reads and then tells, in order."""

    writes: list[Write] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    tells: list[Tell] = field(default_factory=list)
    answers: Sequence[Any] = ()

    def read(self, read: Read, then: Callable[[Any], None]) -> None:
        """Have something read from the store, and call `then` with it when this tell's turn comes."""
        index = len(self.reads)
        self.reads.append(read)
        self.tells.append(lambda: then(self.answers[index]))


@dataclass(slots=True)
class WorkerEntry:
    """What the shell knows of a worker beside the scheduler."""

    profile: m.Profile
    session: int
    joined: float
    chat: bool
    specs: set[JobId] = field(default_factory=set)
    """Live jobs of which it, or its session before, has the specification."""


Request: TypeAlias = tuple[str, Manner, m.UserToManager]
"""Sender, how it wants its answer, message."""


class Manager:
    """Implements `TransportEvents`. Everything happens on the thread that calls it."""

    def __init__(
        self, clock: Clock, transport: Transport, store: Store, settings: ManagerSettings | None = None
    ) -> None:
        self.clock = clock
        self.transport = transport
        self.store = store
        self.settings = settings or ManagerSettings()
        self.jobs: dict[JobId, JobEntry] = {}
        self.submissions: dict[tuple[str, str], JobId] = {}
        self.load = books.Load()
        self.workers: dict[WorkerId, WorkerEntry] = {}
        self.epoch = 0
        self.address = ""
        self.store_problem: StoreError | None = None
        self.counters = {"messages": 0, "bad_messages": 0, "duplicates": 0, "dropped": 0}
        self.on_failed: Callable[[Exception], None] | None = None
        """Told once when the manager cannot go on."""
        self._next_job: JobId = 1
        self._sessions = 0
        self._inbox: list[ev.Event | Request] = []
        self._time_waiting = False
        self._unit: Unit | None = None
        self._flush_due: TimerHandle | None = None
        self._tick_due: TimerHandle | None = None
        self._announce_due: TimerHandle | None = None
        self._retry_due: TimerHandle | None = None
        self._changed: dict[JobId, None] = {}
        self._watched: dict[JobId, None] = {}
        self._greeted: dict[str, None] = {}
        self._missing: set[WorkerId] = set()
        """Workers of which nothing was heard since our own connection broke; their leases decide."""
        self._paused_by_presence: set[WorkerId] = set()
        self._drained_by_user: set[WorkerId] = set()
        self._overheard: dict[WorkerId, None] = {}
        """Workers of which something was left out because the inbox was full."""
        self._requests = Requests(self)
        self._closed = False

    # --- life ---------------------------------------------------------------------------------------

    def start(self) -> None:
        """Read the store, count the epoch up, and begin. Blocks while reading; raises `StoreError`."""
        content = self.store.open(books.terms_of)
        self.epoch = content.epoch
        self._next_job = content.next_job
        self.scheduler = Scheduler(self.settings.scheduler, content.epoch)
        for record in content.jobs:
            self._enter(books.entry_of(record))
        for job in content.unfinished:
            self.jobs[job.job].cancelled = job.cancelled
        now = self.clock.now()
        restored = [ev.JobRestored(r) for r in content.unfinished]
        unit = Unit()
        self._carry_out(self.scheduler.handle(restored, now), unit)
        log.info(
            "manager_started",
            extra={"epoch": self.epoch, "jobs": len(content.jobs), "unfinished": len(restored)},
        )
        self._tick_due = self.clock.call_later(self.settings.tick_s, self._tick)
        self._commit(unit)

    def close(self) -> None:
        """Stop reacting. What is stored stays; what was not told is asked for again by the peers."""
        self._closed = True
        for timer in (self._flush_due, self._tick_due, self._announce_due, self._retry_due):
            if timer is not None:
                timer.cancel()
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
        self._requests.forget_sender(sender)
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
            self.transport.say(bare_of(to), answer_as_words(message)[: self.settings.words_chars_max])
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
        if profile.protocol > m.PROTOCOL_VERSION:
            self.reply(
                sender,
                manner,
                m.Error(
                    code="version",
                    text=f"the worker speaks protocol {profile.protocol}, this manager {m.PROTOCOL_VERSION}",
                    hint="upgrade the manager first, or install the same version on the worker",
                ),
            )
            return
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
        self._requests.expire()
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
                if not self._requests.change(item, unit, events):
                    asked.append(item)
            else:
                events.append(item)
                if isinstance(item, ev.WorkerJoined):  # the scheduler may have forgotten it meanwhile
                    events.append(ev.WorkerDrained(item.worker, self.is_drained(item.worker)))
        effects = self.scheduler.handle(events, self.clock.now())
        self._carry_out(effects, unit)
        for request in asked:
            self._requests.answer(request, unit)
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
        if self.store_problem is None:
            log.error("store_unavailable", extra={"problem": str(problem)})
        self.store_problem = problem
        self._requests.refuse_while_store_fails(self._inbox)
        self._retry_due = self.clock.call_later(self.settings.store_retry_s, lambda: self._commit(unit))

    def _finish(self, unit: Unit) -> None:
        for tell in unit.tells:
            tell()
        if self._inbox:
            self._flush_soon()

    # --- carrying out effects -------------------------------------------------------------------------

    def _carry_out(self, effects: Sequence[fx.Effect], unit: Unit) -> None:
        for effect in effects:
            match effect:
                case fx.RecordResult() | fx.RecordTrouble() | fx.RecordCancelled():
                    unit.writes.append(effect)
                case fx.RecordJobEnded():
                    unit.writes.append(effect)
                    self._job_ended(effect, unit)
                case fx.AssignTasks():
                    self._assign(effect, unit)
                case fx.StopAttempts(worker, attempts):
                    self._tell_worker(unit, worker, m.Stop(attempts=list(attempts)))
                case fx.RevokeTasks(worker, job, count):
                    self._tell_worker(unit, worker, m.Revoke(job=job, count=count))
                case fx.AcknowledgeReport(worker, number):
                    self._tell_worker(unit, worker, m.Ack(n=number))
                case fx.WelcomeWorker(worker):
                    self._tell_worker(unit, worker, self._welcome())
                case fx.ProbeWorker(worker):
                    unit.tells.append(lambda worker=worker: self.transport.ping(worker))  # type: ignore[misc]
                case fx.RefuseWorker(worker, reason):
                    self._tell_worker(
                        unit, worker, m.Error(code="unknown_worker", text=reason, hint="send a profile first")
                    )
                case fx.AnnounceJob(job):
                    unit.tells.append(lambda job=job: self._job_changed(job))  # type: ignore[misc]
                case fx.AnnounceWorkerLost():
                    self._worker_lost(effect, unit)
                case _:
                    assert_never(effect)

    def _tell_worker(self, unit: Unit, worker: WorkerId, message: m.Message) -> None:
        unit.tells.append(lambda: self.send_worker(worker, message))

    def _welcome(self) -> m.Welcome:
        settings = self.settings
        return m.Welcome(
            epoch=self.epoch,
            pool=settings.pool,
            lease_s=settings.scheduler.lease_s,
            report_delay_s=settings.report_delay_s,
            tail_bytes=settings.tail_bytes,
            stanza_bytes_max=settings.stanza_bytes_max,
        )

    def _assign(self, effect: fx.AssignTasks, unit: Unit) -> None:
        entry = self.jobs.get(effect.job)
        if entry is None:
            raise InternalError(f"the scheduler assigns tasks of job {effect.job}, which has no books")
        if entry.has_params:
            unit.read(ReadParams(effect.job, effect.tasks), lambda p: self._send_tasks(effect, entry, p))
        else:
            unit.tells.append(lambda: self._send_tasks(effect, entry, None))

    def _send_tasks(self, effect: fx.AssignTasks, entry: JobEntry, params: list[m.Parameters] | None) -> None:
        worker = self.workers.get(effect.worker)
        if worker is None:
            return  # lost while the store was busy: the scheduler hears of it in the next turn
        first_time = entry.told.get(effect.worker) != worker.session
        entry.told[effect.worker] = worker.session
        worker.specs.add(effect.job)
        spec = entry.spec if first_time else None
        self._send_tasks_sized(effect.worker, effect.job, effect.attempt, list(effect.tasks), params, spec)

    def _send_tasks_sized(
        self,
        worker: WorkerId,
        job: JobId,
        attempt: int,
        tasks: list[int],
        params: list[m.Parameters] | None,
        spec: m.TaskSpec | None,
    ) -> None:
        """One message, or several when long parameters make it larger than servers like."""
        text = codec.encode(m.Tasks(job=job, attempt=attempt, tasks=tasks, params=params, spec=spec))
        if codec.wire_size(text) <= self.settings.stanza_bytes_max or len(tasks) == 1:
            entry = self.workers.get(worker)
            self.transport.send(worker, text, chat=entry is not None and entry.chat)
            return
        half = len(tasks) // 2
        first = None if params is None else params[:half]
        second = None if params is None else params[half:]
        self._send_tasks_sized(worker, job, attempt, tasks[:half], first, spec)
        self._send_tasks_sized(worker, job, attempt + half, tasks[half:], second, None)

    # --- jobs -----------------------------------------------------------------------------------------

    def new_job(self) -> JobId:
        """The next free number."""
        job = self._next_job
        self._next_job += 1
        return job

    def enter(self, entry: JobEntry) -> None:
        """Open the books of a job."""
        self._enter(entry)

    def _enter(self, entry: JobEntry) -> None:
        record = entry.record
        self.jobs[record.job] = entry
        if not entry.ended:
            self.load.enter(record.user, entry.size)
        if record.submission:
            self.submissions[(record.user, record.submission)] = record.job

    def _job_ended(self, effect: fx.RecordJobEnded, unit: Unit) -> None:
        entry = self.jobs[effect.job]
        counts = books.counts_message(self.scheduler.counts(effect.job))
        entry.record = replace(
            entry.record,
            state=effect.state,
            finished=self.clock.wall(),
            counts=counts,
            last=self.scheduler.last_seq(effect.job),
            reruns=self.scheduler.reruns(effect.job),
            size=entry.size,
            open=False,
        )
        entry.open = False
        self.load.leave(entry.record.user, entry.size)
        unit.tells.append(lambda: self._job_gone(effect.job, entry))

    def _job_gone(self, job: JobId, entry: JobEntry) -> None:
        entry.ended = True
        for worker in entry.told:
            known = self.workers.get(worker)
            if known is not None:
                known.specs.discard(job)
        entry.told.clear()
        self.scheduler.forget(job)
        self._job_changed(job)
        log.info("job_ended", extra={"job": job, "state": entry.record.state.value})
        if entry.notify:
            self.transport.say(bare_of(entry.notify), answer_as_words(m.Event(job=self.job_info(job))))

    def job_info(self, job: JobId) -> m.JobInfo:
        """The job at a glance; `job` must be known."""
        entry = self.jobs[job]
        record = entry.record
        alive = not entry.ended and self.scheduler.has_job(job)
        scheduler = self.scheduler
        return m.JobInfo(
            job=job,
            user=record.user,
            name=entry.message.name,
            command=books.command_text(entry.message),
            state=scheduler.job_state(job).value if alive else record.state.value,
            size=entry.size,
            open=entry.open,
            counts=books.counts_message(scheduler.counts(job)) if alive else record.counts,
            submitted=record.submitted,
            finished=record.finished,
            last=scheduler.last_seq(job) if alive else record.last,
            reruns=scheduler.reruns(job) if alive else record.reruns,
        )

    def watched(self) -> list[JobEntry]:
        """Jobs that somebody watches."""
        return [self.jobs[job] for job in self._watched]

    def unwatch(self, job: JobId, watcher: str) -> None:
        """This one does not want to be told of the job any more."""
        watchers = self.jobs[job].watchers
        watchers.pop(watcher, None)
        if not watchers:
            self._watched.pop(job, None)

    def watch(self, job: JobId) -> None:
        """Remember that somebody watches the job."""
        self._watched[job] = None

    def _job_changed(self, job: JobId) -> None:
        entry = self.jobs.get(job)
        if entry is None:
            return
        if entry.waiters:
            self._requests.wake(job, entry, self._inbox)
            self._flush_soon()
        if entry.watchers:
            self._changed[job] = None
            if self._announce_due is None:
                delay_s = 0 if entry.ended else self.settings.announce_s
                self._announce_due = self.clock.call_later(delay_s, self._announce)

    def _announce(self) -> None:
        self._announce_due = None
        if self._unit is not None:  # the scheduler is ahead of the store: told when that has caught up
            self._unit.tells.append(self._announce)
            return
        changed, self._changed = self._changed, {}
        for job in changed:
            entry = self.jobs[job]
            message = m.Event(job=self.job_info(job))
            for watcher, manner in entry.watchers.items():
                self.reply(watcher, manner, message)
            if entry.ended:
                entry.watchers.clear()
            if not entry.watchers:
                self._watched.pop(job, None)

    # --- workers --------------------------------------------------------------------------------------

    def _worker_lost(self, effect: fx.AnnounceWorkerLost, unit: Unit) -> None:
        """Forget it when the loss is stored, unless it has introduced itself again before or until then."""
        worker = effect.worker
        entry = self.workers.get(worker)
        session = 0 if entry is None or self.scheduler.has_worker(worker) else entry.session
        unit.tells.append(lambda: self._forget_worker(worker, session))
        fields = {"worker": worker, "reason": effect.reason, "requeued": effect.requeued}
        unit.tells.append(lambda: log.warning("worker_lost", extra=fields))

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


def bare_of(address: str) -> str:
    """The address without its resource."""
    return address.partition("/")[0]
