"""Turns the scheduler's effects into the writes, reads and tells of a unit; tells workers what to run.

Called by `Manager` in its turns. It must never send anything itself before the unit is stored: what goes
out is a tell of the unit (law 1).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, assert_never

from kestrel.core import effects as fx
from kestrel.core.model import JobId, WorkerId
from kestrel.errors import InternalError
from kestrel.manager.jobs import JobEntry
from kestrel.manager.unit import Unit
from kestrel.ports import ReadParams
from kestrel.protocol import codec
from kestrel.protocol import messages as m

if TYPE_CHECKING:
    from kestrel.manager.manager import Manager

log = logging.getLogger("kestrel.manager")


class Carrier:
    """Carries out effects for one manager."""

    def __init__(self, manager: Manager) -> None:
        self.manager = manager

    def carry_out(self, effects: Sequence[fx.Effect], unit: Unit) -> None:
        """Put what the scheduler wants into the unit, in order."""
        for effect in effects:
            match effect:
                case fx.RecordResult() | fx.RecordTrouble() | fx.RecordCancelled() | fx.RecordWorker():
                    unit.writes.append(effect)
                case fx.RecordJobEnded():
                    unit.writes.append(effect)
                    self.manager.books.job_ended(effect, unit)
                case fx.AssignTasks():
                    self._assign(effect, unit)
                case fx.StopAttempts(worker, attempts):
                    self._tell_worker(unit, worker, m.Stop(attempts=list(attempts)))
                case fx.RevokeTasks(worker, job, count):
                    self._tell_worker(unit, worker, m.Revoke(job=job, count=count))
                case fx.AcknowledgeReport(worker, number):
                    self._tell_worker(unit, worker, m.Ack(n=number, epoch=self.manager.epoch))
                case fx.WelcomeWorker(worker):
                    self._tell_worker(unit, worker, self._welcome())
                case fx.ProbeWorker(worker):
                    unit.tells.append(lambda worker=worker: self.manager.transport.ping(worker))  # type: ignore[misc]
                case fx.RefuseWorker(worker, reason):
                    self._tell_worker(
                        unit, worker, m.Error(code="unknown_worker", text=reason, hint="send a profile first")
                    )
                case fx.AnnounceJob(job):
                    unit.tells.append(lambda job=job: self.manager.books.job_changed(job))  # type: ignore[misc]
                case fx.AnnounceWorkerLost():
                    self._worker_lost(effect, unit)
                case fx.AnnounceWorkerQuarantined() | fx.AnnounceQuarantineLifted():
                    self._quarantine(effect, unit)
                case _:
                    assert_never(effect)

    def _tell_worker(self, unit: Unit, worker: WorkerId, message: m.Message) -> None:
        unit.tells.append(lambda: self.manager.send_worker(worker, message))

    def _welcome(self) -> m.Welcome:
        settings = self.manager.settings
        return m.Welcome(
            epoch=self.manager.epoch,
            pool=settings.pool,
            lease_s=settings.scheduler.lease_s,
            report_delay_s=settings.report_delay_s,
            tail_bytes=settings.tail_bytes,
            stanza_bytes_max=settings.stanza_bytes_max,
        )

    def _assign(self, effect: fx.AssignTasks, unit: Unit) -> None:
        entry = self.manager.jobs.get(effect.job)
        if entry is None:
            raise InternalError(f"the scheduler assigns tasks of job {effect.job}, which has no books")
        if entry.has_params:
            unit.read(ReadParams(effect.job, effect.tasks), lambda p: self._send_tasks(effect, entry, p))
        else:
            unit.tells.append(lambda: self._send_tasks(effect, entry, None))

    def _send_tasks(self, effect: fx.AssignTasks, entry: JobEntry, params: list[m.Parameters] | None) -> None:
        worker = self.manager.workers.get(effect.worker)
        if worker is None:
            return  # lost while the store was busy: the scheduler hears of it in the next turn
        first_time = entry.told.get(effect.worker) != worker.session
        entry.told[effect.worker] = worker.session
        worker.specs.add(effect.job)
        spec = entry.spec if first_time else None
        self.manager.far.sent(effect.worker)
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
        if codec.wire_size(text) <= self.manager.settings.stanza_bytes_max or len(tasks) == 1:
            entry = self.manager.workers.get(worker)
            self.manager.transport.send(worker, text, chat=entry is not None and entry.chat)
            return
        half = len(tasks) // 2
        first = None if params is None else params[:half]
        second = None if params is None else params[half:]
        self._send_tasks_sized(worker, job, attempt, tasks[:half], first, spec)
        self._send_tasks_sized(worker, job, attempt + half, tasks[half:], second, None)

    def _quarantine(
        self, effect: fx.AnnounceWorkerQuarantined | fx.AnnounceQuarantineLifted, unit: Unit
    ) -> None:
        lifted = isinstance(effect, fx.AnnounceQuarantineLifted)
        event, level = (
            ("quarantine_lifted", logging.INFO) if lifted else ("worker_quarantined", logging.WARNING)
        )
        fields = {"worker": effect.worker, "reason": effect.reason}
        unit.tells.append(lambda: log.log(level, event, extra=fields))

    def _worker_lost(self, effect: fx.AnnounceWorkerLost, unit: Unit) -> None:
        """Forget it when the loss is stored, unless it has introduced itself again before or until then."""
        worker = effect.worker
        entry = self.manager.workers.get(worker)
        session = 0 if entry is None or self.manager.scheduler.has_worker(worker) else entry.session
        unit.tells.append(lambda: self.manager._forget_worker(worker, session))
        fields = {"worker": worker, "reason": effect.reason, "requeued": effect.requeued}
        unit.tells.append(lambda: log.warning("worker_lost", extra=fields))
