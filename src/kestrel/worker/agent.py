"""The worker's agent: messages, presence and process ends in; processes, reports and presence out.

A plain reactor over the ports: it is called, it calls back, it never waits. What happens to an attempt
is decided by `kestrel.core.execution`; here is who the manager is, when to introduce ourselves, and
what the decisions mean on the wire. It obeys its manager and nobody else. Run by
`kestrel.worker.service`, and by the simulator on a virtual clock.
"""

from __future__ import annotations

import base64
import logging
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, assert_never

import msgspec

from kestrel.core import execution_events as xe
from kestrel.core.execution import Execution, ExecutionSettings
from kestrel.errors import EnvironmentProblem, PeerError
from kestrel.ports import Clock, Launcher, ProcessEnded, Show, TimerHandle, Transport
from kestrel.protocol import codec
from kestrel.protocol import messages as m
from kestrel.worker.outputs import Outputs
from kestrel.worker.reports import render, report_message
from kestrel.worker.settings import WorkerSettings
from kestrel.worker.spool import Spool
from kestrel.worker.starting import PreparedJob

log = logging.getLogger(__name__)

ENVELOPE_BYTES = 1024
"""Room for what is around the content of a message."""
HELD_BYTES = 64
"""Room for one held attempt in a profile."""


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
        self.spool = spool
        self.settings = settings
        self.outputs = Outputs(settings.output_directory)
        self.counters: Counter[str] = Counter()
        self.on_left: Callable[[], None] = _nothing
        """Called once when everything is done after `shutdown`."""
        self.on_failed: Callable[[Exception], None] = _ignored
        """Called when this worker can never work for its manager."""
        self.address = ""
        self.execution = Execution(
            ExecutionSettings(
                slots=settings.slots,
                queued_max=settings.queued_max,
                finished_max=settings.finished_max,
                finished_bytes_max=settings.finished_bytes_max,
                handover_s=settings.handover_s,
            ),
            render,
            life=spool.life,
            restored=spool.restored,
        )
        self._up = False
        self._closed = False
        self._manager = settings.manager
        self._manager_present = True
        """Until we are told otherwise."""
        self._introduced = False
        """An introduction is on its way, or was answered, as far as we know."""
        self._stanza_bytes_max = settings.stanza_bytes_max
        self._tail_bytes = 4096
        self._joins = 0
        """Introductions since the last welcome."""
        self._join_due: TimerHandle | None = None
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
        for timer in (self._timer, self._join_due):
            if timer is not None:
                timer.cancel()

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
        self.address = address
        self._up = True
        self._manager_present = True
        self._joins = 0
        log.info("worker_up", extra={"address": address, "manager": self.settings.manager})
        self._join()

    def on_down(self, reason: str) -> None:
        if self._closed:
            return
        self._up = False
        if self._join_due is not None:
            self._join_due.cancel()
        log.warning("worker_down", extra={"reason": reason})
        self._lose_manager()

    def on_available(self, sender: str, show: Show, status: str) -> None:
        if self._closed or not self._is_manager(sender):
            return
        if self._manager_present:
            return
        self._manager_present = True
        self._joins = 0
        if self._introduced:  # this answers the presence that went ahead of our introduction
            self._join_later()
        else:
            self._join()

    def on_unavailable(self, sender: str, reason: str) -> None:
        if self._closed or not self._is_manager(sender):
            return
        if self._manager_present:
            log.warning("manager_gone", extra={"manager": sender, "reason": reason})
            self._joins = 0
        self._manager_present = False
        self._introduced = False
        self._lose_manager()
        self._join_later()

    def on_heard(self, sender: str) -> None:
        """Nothing: a worker asks nobody for a sign of life."""

    def on_message(self, sender: str, payload: bytes, chat: bool) -> None:
        if self._closed:
            return
        if not self._is_manager(sender):
            self.counters["foreign_messages"] += 1
            return
        try:
            message = codec.decode_to_worker(payload)
        except codec.ProtocolError as problem:
            self.counters["bad_messages"] += 1
            log.warning("bad_message", extra={"sender": sender, "code": problem.code, "text": problem.text})
            self._send(problem.as_message())
            return
        self._take(sender, message)

    def _take(self, sender: str, message: m.ManagerToWorker) -> None:
        match message:
            case m.Tasks():
                self._on_tasks(message)
            case m.Ack(n=n):
                self._handle(xe.ReportStored(n))
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

    def _is_manager(self, sender: str) -> bool:
        """Whether the stamped sender is our manager: the same bare JID, or any of a component's."""
        bare = sender.partition("/")[0].casefold()
        manager = self.settings.manager.partition("/")[0].casefold()
        if bare == manager:
            return True
        ours = self.address.partition("/")[0].rpartition("@")[2].casefold()
        return "@" not in manager and manager != ours and bare.partition("@")[2] == manager

    def _join(self) -> None:
        """Introduce ourselves, and again later if there is no welcome."""
        if not self._up or self._closed:
            return
        self._manager = self.settings.manager
        self._introduced = True
        self._announce(self.execution.load())
        room = self._stanza_bytes_max - ENVELOPE_BYTES - len(codec.encode(self.settings.profile))
        self._handle(xe.IntroductionDue(max(1, room // HELD_BYTES)))
        self._join_later()

    def _join_later(self) -> None:
        if not self._up:
            return
        settings = self.settings
        first, most = (
            (settings.welcome_s, settings.welcome_s_max)
            if self._manager_present
            else (settings.join_retry_s, settings.join_retry_s_max)
        )
        delay_s = min(most, first * 2.0 ** min(self._joins, 16))
        # spread by address, so that a thousand workers do not all come in the same moment
        delay_s *= 1.0 + 0.25 * zlib.crc32(self.address.encode()) / 2**32
        if self._join_due is not None:
            self._join_due.cancel()
        self._join_due = self.clock.call_later(delay_s, self._join_again)

    def _join_again(self) -> None:
        self._join_due = None
        if self._up and not self.execution.welcomed:
            self._joins += 1
            self._join()

    def _lose_manager(self) -> None:
        self._handle(xe.ManagerLost())

    def _on_welcome(self, sender: str, welcome: m.Welcome) -> None:
        if welcome.protocol < m.PROTOCOL_VERSION:
            self._fail(
                f"the manager speaks protocol {welcome.protocol}, this worker {m.PROTOCOL_VERSION}",
                "upgrade the manager, or install the manager's version of Kestrel on this machine",
            )
            return
        if self._join_due is not None:
            self._join_due.cancel()
            self._join_due = None
        self._joins = 0
        self._manager = sender
        self._manager_present = True
        self._stanza_bytes_max = welcome.stanza_bytes_max
        # two streams, and a byte may become six in JSON: even the worst report fits into one message
        self._tail_bytes = min(welcome.tail_bytes, self._stanza_bytes_max // 16)
        log.info("welcomed", extra={"manager": sender, "pool": welcome.pool, "epoch": welcome.epoch})
        room = max(1, welcome.stanza_bytes_max - ENVELOPE_BYTES)
        self._handle(xe.ManagerWelcomed(welcome.epoch, welcome.report_delay_s, room))

    def _on_error(self, error: m.Error) -> None:
        self.counters["errors"] += 1
        log.warning("manager_error", extra={"code": error.code, "text": error.text, "hint": error.hint})
        if error.code == "unknown_worker":
            if self.execution.welcomed:
                self._joins = 0
                self._join()
        elif error.code == "version":
            self._fail(error.text, error.hint)

    def _fail(self, text: str, hint: str) -> None:
        log.error("worker_failed", extra={"text": text, "hint": hint})
        self._lose_manager()
        if self._join_due is not None:
            self._join_due.cancel()
        self.on_failed(PeerError(text, hint=hint, code="version"))

    # --- tasks and output -------------------------------------------------------------------------

    def _on_tasks(self, tasks: m.Tasks) -> None:
        spec = tasks.spec
        prepared = None
        if spec is not None:
            prepared = PreparedJob(tasks.job, spec, self.address, self.settings)
        self._handle(
            xe.TasksReceived(
                tasks.job,
                tasks.attempt,
                tasks.tasks,
                tasks.params,
                prepared,
                1 if spec is None else spec.slots,
            )
        )

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
        self._watch_deadline(now)

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
                self._keep(finished)
            case xe.SendReport(number, finished):
                self.transport.send(self._manager, report_message(number, finished))
            case xe.ForgetFinished(attempts):
                self._forget(attempts)
            case xe.StopProcesses(attempts):
                self.launcher.stop(attempts)
            case xe.SendRevoked(job, attempts):
                self._send(m.Revoked(job=job, attempts=list(attempts)))
            case xe.SendProfile(held):
                listed = [m.HeldAttempt(h.job, h.task, h.attempt) for h in held]
                self._send(msgspec.structs.replace(self.settings.profile, held=listed))
            case xe.AnnounceLoad():
                self._announce(effect)
            case xe.LeavePool():
                self._leave()
            case _:
                assert_never(effect)

    def _start_of(self, start: xe.AttemptStart) -> Any:
        prepared: PreparedJob = start.spec
        files = self.outputs.paths(start.job, start.task, start.attempt)
        return prepared.start(start, files, self._tail_bytes)

    def _keep(self, finished: Sequence[xe.Finished]) -> None:
        try:
            self.spool.keep(finished)
        except EnvironmentProblem as problem:  # they are still in memory, and are reported from there
            self.counters["spool_failures"] += 1
            log.error("spool_failed", extra={"text": problem.text, "hint": problem.hint})

    def _forget(self, attempts: Sequence[int]) -> None:
        try:
            self.spool.forget(attempts)
        except EnvironmentProblem as problem:  # they may be reported twice, which changes nothing
            self.counters["spool_failures"] += 1
            log.error("spool_failed", extra={"text": problem.text, "hint": problem.hint})

    def _send(self, message: m.Message) -> None:
        self.transport.send(self._manager, codec.encode(message))

    def _announce(self, load: xe.AnnounceLoad) -> None:
        if load.draining:
            show = Show.XA
        else:
            show = Show.DND if load.busy >= load.slots else Show.CHAT
        status = f"{load.busy}/{load.slots} slots busy"
        if load.jobs:
            status += f", job{'s' * (len(load.jobs) > 1)} {', '.join(map(str, load.jobs))}"
        if load.draining:
            status += ", leaving"
        self.transport.announce(self.settings.manager, show, status)

    def _leave(self) -> None:
        if self._up:
            self.transport.withdraw(self.settings.manager)
        self.on_left()


def _nothing() -> None:
    """Nobody wants to know."""


def _ignored(problem: Exception) -> None:
    """Nobody wants to know; it is in the log."""
