"""The worker's agent: messages, presence and process ends in; processes, reports and presence out.

A plain reactor over the ports: it is called, it calls back, it never waits. What happens to an attempt
is decided by `kestrel.core.execution`; here is who the manager is, when to introduce ourselves, and
what the decisions mean on the wire. It obeys its manager and nobody else. Run by
`kestrel.worker.service`, and by the simulator on a virtual clock.
"""

from __future__ import annotations

import base64
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, assert_never

import msgspec

from kestrel.core import execution_events as xe
from kestrel.core.execution import Execution, ExecutionSettings
from kestrel.core.model import epoch_of
from kestrel.errors import PeerError
from kestrel.ports import Clock, Launcher, ProcessEnded, Show, TimerHandle, Transport
from kestrel.protocol import codec
from kestrel.protocol import messages as m
from kestrel.worker.joining import Joining
from kestrel.worker.keeping import Keeper
from kestrel.worker.opening import Opening
from kestrel.worker.outputs import Outputs
from kestrel.worker.reports import render, report_message
from kestrel.worker.settings import WorkerSettings
from kestrel.worker.spool import Spool
from kestrel.worker.starting import PreparedJob
from kestrel.worker.strangers import Strangers

log = logging.getLogger(__name__)

ENVELOPE_BYTES = 1024
"""Room for what is around the content of a message."""
HELD_BYTES = 66
"""Room for one held attempt in a profile, whatever its numbers are."""


class WorkerAgent:
    """Implements `ports.TransportEvents` and `ports.LauncherEvents`."""

    def __init__(
        self,
        clock: Clock,
        transport: Transport,
        launcher: Launcher,
        spool: Spool,
        settings: WorkerSettings,
    ) -> None:
        self.clock = clock
        self.transport = transport
        self.launcher = launcher
        self.settings = settings
        self.outputs = Outputs(settings.output_directory)
        self.counters: Counter[str] = Counter()
        self._stanza_bytes_max = settings.stanza_bytes_max
        self.keeper = Keeper(clock, spool, self.counters, self._on_spool_changed)
        self.on_left: Callable[[], None] = _nothing
        """Called once when everything is done after `shutdown`."""
        self.on_failed: Callable[[Exception], None] = _ignored
        """Called when this worker can never work for its manager."""
        self.on_lease: Callable[[float], None] = _unheeded
        """Called with each welcome: within so many seconds something is to be heard."""
        self.joining = Joining(clock, settings, self.counters, self._introduce)
        self.execution = Execution(
            ExecutionSettings(
                slots=settings.slots,
                queued_max=settings.queued_max,
                finished_max=settings.finished_max,
                finished_bytes_max=settings.finished_bytes_max,
                handover_s=settings.handover_s,
                held_max=self._held_max(settings.stanza_bytes_max),
            ),
            render,
            life=spool.life,
            restored=spool.restored,
        )
        self.strangers = Strangers(clock, transport)
        owner = settings.owner
        self.opening = Opening(clock, owner.hours, self._on_hours, owner.local_time)
        if not self.opening.open:
            self.execution.handle(xe.HoursEnded(), clock.now())  # before anything came: no effects
        self._closed = False
        self._told: set[str] = set()
        """What is logged once."""
        self._leaving = False
        """All is done but what only memory holds."""
        self._spool_failing = False
        """What the machine was told last."""
        self._epoch = 0
        """Of the life that welcomed us last."""
        self._tail_bytes = 4096
        self._deadline: float | None = None
        self._timer: TimerHandle | None = None

    # --- life -------------------------------------------------------------------------------------

    def shutdown(self, *, kill: bool = False) -> None:
        """Take no more work, give back what has not started; `on_left` is called when all is done.

        `kill`: stop what runs instead of letting it end. What cannot be reported stays in the spool.
        """
        self._handle(xe.ShutdownRequested(kill))

    def close(self) -> None:
        """Stop reacting at once."""
        self._closed = True
        self.keeper.close()
        self.opening.close()
        self.joining.close()
        if self._timer is not None:
            self._timer.cancel()

    # --- ports.LauncherEvents ---------------------------------------------------------------------

    def on_ended(self, ended: Sequence[ProcessEnded]) -> None:
        if self._closed:
            return
        for e in ended:
            kept = self._kept_bytes(e.out, e.out_bytes), self._kept_bytes(e.err, e.err_bytes)
            if any(kept):
                task = self.execution.task_of(e.attempt)
                if task is not None:
                    self.outputs.ended(*task, e.attempt, kept, 0)
        self._handle(
            xe.ProcessesEnded(
                [
                    xe.ProcessEnd(e.attempt, e.exit_code, e.wall_s, e.timed_out, e.unstarted, e.reason, e)
                    for e in ended
                ]
            )
        )

    def _kept_bytes(self, tail: str, size: int) -> int:
        """Length of the file that the launcher left, 0 if the tail holds all and it is gone."""
        return size if size > self._tail_bytes or "\ufffd" in tail else 0

    def on_launcher_lost(self, attempts: Sequence[int]) -> None:
        if not self._closed:
            self._handle(xe.LauncherFailed(attempts))

    # --- ports.TransportEvents --------------------------------------------------------------------

    def on_up(self, address: str) -> None:
        if self._closed:
            return
        log.info("worker_up", extra={"address": address, "manager": self.settings.manager})
        self.joining.on_up(address)

    def on_down(self, reason: str) -> None:
        if self._closed:
            return
        log.warning("worker_down", extra={"reason": reason})
        self.joining.on_down()
        self._handle(xe.ManagerLost())

    def on_available(self, sender: str, show: Show, status: str) -> None:
        if not self._closed and self.joining.is_manager(sender):
            self.joining.on_heard(sender)
            self.joining.on_available()

    def on_unavailable(self, sender: str, reason: str) -> None:
        if self._closed or not self.joining.is_manager(sender):
            return
        if self.joining.on_unavailable(sender, reason):
            self._handle(xe.ManagerLost())

    def on_heard(self, sender: str) -> None:
        self.joining.on_heard(sender)

    def on_message(self, sender: str, payload: bytes, chat: bool) -> None:
        if self._closed:
            return
        if not self.joining.is_manager(sender):
            self._refuse_stranger(sender, payload, chat)
            return
        self.joining.on_heard(sender)
        try:
            message = codec.decode_to_worker(payload)
        except codec.ProtocolError as problem:
            if not self.joining.obeys(sender):
                self._refuse_stranger(sender, payload, chat)
                return
            self.counters["bad_messages"] += 1
            log.warning("bad_message", extra={"sender": sender, "code": problem.code, "text": problem.text})
            self._send(problem.as_message())
            return
        if self._heeds(sender, message):
            self._take(sender, message)
        else:
            self._refuse_stranger(sender, payload, chat)

    def _heeds(self, sender: str, message: m.ManagerToWorker) -> bool:
        """Whether this session of our manager's account may say this.

        Another one than that which welcomed us may call us, for it may be a new life of the manager: then we
        ask the account, and who answers is the manager. Until somebody has, it may refuse us, too.
        """
        if self.joining.obeys(sender):
            return True
        match message:
            case m.Welcome():
                return not self.joining.welcomed
            case m.Error(code=code):
                return not self.joining.welcomed or code == "unknown_worker"
            case _:
                return False

    def _refuse_stranger(self, sender: str, payload: bytes, chat: bool) -> None:
        self.counters["foreign_messages"] += 1
        self.strangers.on_message(sender, payload, chat, self.settings.manager)

    def _take(self, sender: str, message: m.ManagerToWorker) -> None:
        match message:
            case m.Tasks():
                self._on_tasks(message)
            case m.Ack(n=n, epoch=epoch):
                self._handle(xe.ReportStored(n, epoch))
                self._tell_ignored(
                    "old_acknowledgements", self.execution.counters.old_acknowledgements, epoch
                )
            case m.Welcome():
                self._on_welcome(sender, message)
            case m.Stop(attempts=attempts):
                self._handle(xe.StopRequested(attempts))
            case m.Revoke(job=job, count=count):
                self._handle(xe.RevocationRequested(job, count))
            case m.ReadOutput():
                self._on_read_output(message)
            case m.Error():
                self._on_error(message)
            case _:
                assert_never(message)

    # --- joining ----------------------------------------------------------------------------------

    def _introduce(self) -> None:
        """Show ourselves, and say who we are and what we hold."""
        self._announce(self.execution.load())
        self._handle(xe.IntroductionDue(self._held_max(self._stanza_bytes_max)))
        if not self.opening.open:  # a manager heeds the presence of those whose profile it has
            self._announce(self.execution.load())

    def _held_max(self, stanza_bytes_max: int) -> int:
        """How many attempts a profile can name."""
        room = stanza_bytes_max - ENVELOPE_BYTES - len(codec.encode(self.settings.profile))
        return max(1, room // HELD_BYTES)

    def _on_welcome(self, sender: str, welcome: m.Welcome) -> None:
        if welcome.epoch < self._epoch:
            self._handle(self._welcome_event(welcome))
            self._tell_ignored("old_welcomes", self.execution.counters.old_welcomes, welcome.epoch)
            return
        if welcome.protocol < m.PROTOCOL_VERSION:
            self._fail(
                f"the manager speaks protocol {welcome.protocol}, this worker {m.PROTOCOL_VERSION}",
                "upgrade the manager, or install the manager's version of Kestrel on this machine",
            )
            return
        self._epoch = welcome.epoch
        self.joining.on_welcomed(sender, welcome.lease_s)
        self._stanza_bytes_max = welcome.stanza_bytes_max
        # two streams, and a byte may become six in JSON: even the worst report fits into one message
        self._tail_bytes = min(welcome.tail_bytes, self._stanza_bytes_max // 16)
        log.info("welcomed", extra={"manager": sender, "pool": welcome.pool, "epoch": welcome.epoch})
        self._handle(self._welcome_event(welcome))
        self.on_lease(welcome.lease_s)

    def _welcome_event(self, welcome: m.Welcome) -> xe.ManagerWelcomed:
        room = max(1, welcome.stanza_bytes_max - ENVELOPE_BYTES)
        held_max = self._held_max(welcome.stanza_bytes_max)
        return xe.ManagerWelcomed(welcome.epoch, welcome.report_delay_s, room, held_max)

    def _tell_ignored(self, what: str, count: int, epoch: int) -> None:
        """What another life of the manager said, as the machine counts it; one line in the log per kind."""
        if not count or what in self._told:
            return
        self._told.add(what)
        log.warning(
            "other_life_ignored",
            extra={
                "what": what,
                "epoch": epoch,
                "known": self._epoch,
                "hint": "a manager that was replaced is harmless; if its store was, restart this worker",
            },
        )

    def _on_error(self, error: m.Error) -> None:
        self.counters["errors"] += 1
        fields = {"code": error.code, "text": error.text, "hint": error.hint}
        if error.code == "unknown_worker":  # every manager that starts says so
            log.info("manager_error", extra=fields)
            self.joining.on_unknown()
            return
        log.warning("manager_error", extra=fields)
        if error.code == "version":
            self._fail(error.text, error.hint)

    def _fail(self, text: str, hint: str) -> None:
        log.error("worker_failed", extra={"text": text, "hint": hint})
        self.joining.on_refused()
        self._handle(xe.ManagerLost())
        self.on_failed(PeerError(text, hint=hint, code="version"))

    # --- tasks and output -------------------------------------------------------------------------

    def _on_tasks(self, tasks: m.Tasks) -> None:
        spec = tasks.spec
        prepared = None
        if spec is not None:
            prepared = PreparedJob(tasks.job, spec, self.joining.address, self.settings)
        self._handle(
            xe.TasksReceived(
                tasks.job,
                tasks.attempt,
                tasks.tasks,
                tasks.params,
                prepared,
                1 if spec is None else spec.slots,
                spec is not None and self.settings.owner.refuses(spec.user),
            )
        )
        self._tell_ignored("foreign_tasks", self.execution.counters.foreign_tasks, epoch_of(tasks.attempt))

    def _on_read_output(self, request: m.ReadOutput) -> None:
        attempt = request.attempt
        ended = not (self.execution.is_running(attempt) or self.execution.is_waiting(attempt))
        limit = min(request.limit, (self._stanza_bytes_max - ENVELOPE_BYTES) * 3 // 4)
        stderr = request.stream == "stderr"
        data, size = b"", 0
        try:
            piece = self.outputs.read(request.job, request.task, attempt, stderr, request.offset, limit)
            data, size = piece.data, piece.size
        except OSError as problem:
            if ended:
                self._send(
                    m.Error(
                        re=request.id,
                        code="no_output",
                        text=f"no {request.stream} of attempt {attempt} on this worker: {problem.strerror}",
                        hint="short outputs are whole in the result; long ones are removed after a while",
                    )
                )
                return
        self._send(
            m.OutputPart(
                re=request.id,
                job=request.job,
                task=request.task,
                attempt=attempt,
                stream=request.stream,
                offset=request.offset,
                data=base64.b64encode(data).decode(),
                size=size,
                final=ended,
            )
        )

    # --- the machine ------------------------------------------------------------------------------

    def _handle(self, event: xe.ExecutionEvent) -> None:
        """One event through the machine, its effects carried out, its deadline watched."""
        now = self.clock.now()
        for effect in self.execution.handle(event, now):
            self._carry_out(effect)
        self._settle(now)

    def _settle(self, now: float) -> None:
        """What follows from the effects: tell the spool's state, watch the deadline, take the way out."""
        if self.keeper.failing != self._spool_failing:
            self._tell_spool(now)
        self._watch_deadline(now)
        if self._leaving and not self._closed:
            self._leave()

    def _watch_deadline(self, now: float) -> None:
        deadline = self.execution.deadline()
        if self._timer is not None:
            if deadline is None or (self._deadline is not None and self._deadline <= deadline):
                return  # it comes too early or for nothing, which is cheaper than a new one each time
            self._timer.cancel()
            self._timer = None
        if deadline is not None and not self._closed:
            self._deadline = deadline
            self._timer = self.clock.call_later(max(0.0, deadline - now), self._on_deadline)

    def _on_deadline(self) -> None:
        self._timer = None
        if not self._closed:
            self._handle(xe.DeadlineReached())

    def _carry_out(self, effect: xe.ExecutionEffect) -> None:
        match effect:
            case xe.StartAttempts(starts):
                self.launcher.start([self._start_of(start) for start in starts])
            case xe.KeepFinished(finished):
                self.keeper.keep(finished)
            case xe.SendReport(number, finished):
                self.transport.send(self.joining.manager, report_message(number, finished))
            case xe.ForgetFinished(attempts):
                self.keeper.forget(attempts)
            case xe.StopProcesses(attempts):
                self.launcher.stop(attempts)
            case xe.SendRevoked(job, attempts):
                self._send(m.Revoked(job=job, attempts=list(attempts)))
            case xe.TellRefused(job):
                self._send(_not_my_users(job, self.settings))
                log.warning("job_refused", extra={"job": job, "hint": "--users does not name its user"})
            case xe.SendProfile(held):
                listed = [m.HeldAttempt(h.job, h.task, h.attempt) for h in held]
                self._send(msgspec.structs.replace(self.settings.profile, held=listed, epoch=self._epoch))
            case xe.AnnounceLoad():
                self._announce(effect)
            case xe.LeavePool():
                self._leaving = True
            case _:
                assert_never(effect)

    def _start_of(self, start: xe.AttemptStart) -> Any:
        prepared: PreparedJob = start.spec
        files = self.outputs.paths(start.job, start.task, start.attempt)
        return prepared.start(start, files, self._tail_bytes)

    def _tell_spool(self, now: float) -> None:
        """The machine learns that nothing can be kept, so that it starts nothing, or that it can again."""
        self._spool_failing = self.keeper.failing
        event = xe.SpoolFailed() if self._spool_failing else xe.SpoolMended()
        for effect in self.execution.handle(event, now):
            self._carry_out(effect)
        if self.execution.welcomed:
            self._announce(self.execution.load())

    def _on_spool_changed(self) -> None:
        if not self._closed:
            self._settle(self.clock.now())

    def _on_hours(self) -> None:
        """The owner's hours begin or end. Who shows itself first does not get back what it gives back."""
        if self._closed:
            return
        is_open = self.opening.open
        log.info("hours_began" if is_open else "hours_ended", extra={"until": self.opening.until()})
        if self.joining.up:
            self._announce(self.execution.load())
        stop = self.settings.owner.at_close == "stop"
        self._handle(xe.HoursBegan() if is_open else xe.HoursEnded(stop))

    def _send(self, message: m.Message) -> None:
        self.transport.send(self.joining.manager, codec.encode(message))

    def _announce(self, load: xe.AnnounceLoad) -> None:
        if load.draining:
            show = Show.XA
        elif self.keeper.failing or not self.opening.open:
            show = Show.AWAY  # a manager gives no tasks to who is away
        else:
            show = Show.DND if load.busy >= load.slots else Show.CHAT
        status = f"{load.busy}/{load.slots} slots busy"
        if not self.opening.open:
            status = f"closed until {self.opening.until()}" + (f", {status}" if load.busy else "")
        if load.jobs:
            status += f", job{'s' * (len(load.jobs) > 1)} {', '.join(map(str, load.jobs))}"
        if self.keeper.failing:
            status += ", spool full"
        if load.draining:
            status += ", leaving"
        self.transport.announce(self.settings.manager, show, status)

    def _leave(self) -> None:
        if self.keeper.unwritten:
            if "leave_waits" not in self._told:
                self._told.add("leave_waits")
                hint = "free some space, or let the manager have them"
                log.error("leave_waits", extra={"in_memory_only": self.keeper.unwritten, "hint": hint})
            return
        self._leaving = False
        if self.joining.up:
            self.transport.withdraw(self.settings.manager)
        self.on_left()


def _nothing() -> None:
    """Nobody wants to know."""


def _ignored(problem: Exception) -> None:
    """Nobody wants to know; it is in the log."""


def _unheeded(lease_s: float) -> None:
    """Nobody wants to know."""


def _not_my_users(job: int, settings: WorkerSettings) -> m.Error:
    users = ", ".join(map(str, settings.owner.users))
    return m.Error(
        code="user_refused",
        text=f"the owner of this machine does not let job {job} run here: it lets only {users}",
        hint="a manager that heeds `users` of profiles gives such jobs to other workers",
    )
