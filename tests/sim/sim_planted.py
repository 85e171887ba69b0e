"""Shells with one bug each, for the tests that prove that the simulator's judges can fail."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from kestrel.core import effects as fx
from kestrel.core import events as ev
from kestrel.core import execution_events as xe
from kestrel.core.model import epoch_of
from kestrel.manager.leadership import Leadership
from kestrel.manager.manager import Manager
from kestrel.manager.unit import Unit
from kestrel.manager.words import Manner
from kestrel.ports import (
    AddJob,
    CommitDone,
    CommitFailed,
    DrainWorker,
    LeaseView,
    ProcessEnded,
    Read,
    StartProcess,
    StoreContent,
    Write,
)
from kestrel.protocol import messages as m
from kestrel.sim.storage import Done, StorePort
from kestrel.worker.agent import WorkerAgent
from kestrel.worker.keeping import Keeper

# --- managers -------------------------------------------------------------------------------------


class TellsBeforeStoring(Manager):
    def _commit(self, unit: Unit) -> None:
        if any(isinstance(write, AddJob) for write in unit.writes) and not unit.reads:
            tells, unit.tells = unit.tells, []
            for tell in tells:
                tell()
        super()._commit(unit)


class AcknowledgesAtOnce(Manager):
    def _take(self, sender: str, manner: Manner, message: m.ToManager) -> None:
        if isinstance(message, m.Report):
            self.send_worker(sender, m.Ack(n=message.n))
        super()._take(sender, manner, message)


class RecordsTwice(Manager):
    def _commit(self, unit: Unit) -> None:
        again = [w for w in unit.writes if isinstance(w, fx.RecordResult)]
        unit.writes.extend(again)
        super()._commit(unit)


class DropsATask(Manager):
    def _take(self, sender: str, manner: Manner, message: m.ToManager) -> None:
        if isinstance(message, m.Job) and (message.queue or 0) > 1:
            message = msgspec.structs.replace(message, queue=(message.queue or 0) - 1)
        super()._take(sender, manner, message)


class SkipsAResult(Manager):
    def reply(self, to: str, manner: Manner, message: m.Message) -> None:
        if isinstance(message, m.ResultPage) and message.results and not message.done:
            message = msgspec.structs.replace(message, last=message.last + 1)
        super().reply(to, manner, message)


class ForgetsSubmissions(Manager):
    def _take(self, sender: str, manner: Manner, message: m.ToManager) -> None:
        self.books.submissions.clear()
        super()._take(sender, manner, message)


class IgnoresRestartNever(Manager):
    def _take(self, sender: str, manner: Manner, message: m.ToManager) -> None:
        if isinstance(message, m.Job):
            message = msgspec.structs.replace(message, restart="always")
        super()._take(sender, manner, message)


class ForgetsReturnedWorkers(Manager):
    def _forget_worker(self, worker: str, session: int) -> None:
        self.workers.pop(worker, None)


class MiscountsSlots(Manager):
    def _flush(self) -> None:
        super()._flush()
        self.scheduler._books.pool.busy += 1


class LetsRepeatsWait(Manager):
    def _flush(self) -> None:
        super()._flush()
        for entry in self.jobs.values():
            entry.waiters.extend(entry.waiters)


class RefusesWatchers(Manager):
    def _take(self, sender: str, manner: Manner, message: m.ToManager) -> None:
        if isinstance(message, m.Watch):
            self.reply(sender, manner, m.Error(re=message.id, code="no", text="not today"))
        else:
            super()._take(sender, manner, message)


class IgnoresNames(Manager):
    def _take(self, sender: str, manner: Manner, message: m.ToManager) -> None:
        super()._take(sender, manner, message)
        for job in self.scheduler._books.jobs.values():
            if job.terms.workers and not job.listed:
                job.terms = replace(job.terms, workers=())
                self.scheduler._books.matching._unsign(job)
                self.scheduler._books.matching._sign(job)


class IgnoresOwners(Manager):
    def post(self, event: ev.Event) -> None:
        if isinstance(event, ev.WorkerJoined):
            event = replace(event, offer=replace(event.offer, users=()))
        super().post(event)


class IgnoresItsLapse(Manager):
    def __init__(self, *parts: Any, **others: Any) -> None:
        super().__init__(*parts, **{**others, "lapsed": None})


class BeginsAgainAtOne(Manager):
    def start(self, content: StoreContent) -> None:
        super().start(replace(content, epoch=1))


class SaysDrained(Manager):
    def _take(self, sender: str, manner: Manner, message: m.ToManager) -> None:
        if isinstance(message, m.Drain):
            self.reply(sender, manner, m.Accepted(re=message.id, changed=1))
        else:
            super()._take(sender, manner, message)


class NeverTriesAgain(Manager):
    def _take(self, sender: str, manner: Manner, message: m.ToManager) -> None:
        if isinstance(message, m.Job):
            message = msgspec.structs.replace(message, retries=0)
        super()._take(sender, manner, message)


class IgnoresQuestions(Manager):
    def _take(self, sender: str, manner: Manner, message: m.ToManager) -> None:
        if not isinstance(message, m.Pool):
            super()._take(sender, manner, message)


# --- ports of the store ---------------------------------------------------------------------------


class EditedPort(StorePort):
    """Stores something else than it was told."""

    def commit(
        self,
        writes: Sequence[Write],
        reads: Sequence[Read],
        done: Callable[[CommitDone | CommitFailed], None],
        *,
        unit: int = 0,
    ) -> None:
        kept = [edited for w in writes if (edited := self.edit(w)) is not None]
        super().commit(kept, reads, done, unit=unit)

    def edit(self, write: Write) -> Write | None:
        return write


class LosesTroubles(EditedPort):
    def edit(self, write: Write) -> Write | None:
        return None if isinstance(write, fx.RecordTrouble) else write


class LosesSubmissionIds(EditedPort):
    def edit(self, write: Write) -> Write | None:
        if isinstance(write, AddJob):
            return replace(write, record=replace(write.record, submission=""))
        return write


class CountsTwice(EditedPort):
    def edit(self, write: Write) -> Write | None:
        if isinstance(write, fx.RecordTrouble) and write.failures:
            return msgspec.structs.replace(write, failures=write.failures + 1)
        return write


class LosesDrains(EditedPort):
    def edit(self, write: Write) -> Write | None:
        return None if isinstance(write, DrainWorker) else write


class LosesWorkers(EditedPort):
    def edit(self, write: Write) -> Write | None:
        return None if isinstance(write, fx.RecordWorker) else write


class KnowsNoFence(StorePort):
    def _is_fenced(self) -> bool:
        return False

    def _store(self, writes: Sequence[Write], reads: Sequence[Read], done: Done, unit: int) -> None:
        super()._store(writes, reads, done, 0)


# --- agents ---------------------------------------------------------------------------------------


class DropsAssignments(WorkerAgent):
    def _on_tasks(self, tasks: m.Tasks) -> None:
        if tasks.attempt % 3:
            super()._on_tasks(tasks)


class InventsResults(WorkerAgent):
    def _carry_out(self, effect: xe.ExecutionEffect) -> None:
        if isinstance(effect, xe.StartAttempts):
            ends = [ProcessEnded(start.attempt, 0, wall_s=0.01) for start in effect.starts]
            self.clock.call_later(0.01, lambda: self.on_ended(ends))
        else:
            super()._carry_out(effect)


class RunsAgain(WorkerAgent):
    def _carry_out(self, effect: xe.ExecutionEffect) -> None:
        if isinstance(effect, xe.StartAttempts):
            self.__dict__.setdefault("_began", {}).update(
                (s.attempt, self._start_of(s)) for s in effect.starts
            )
        super()._carry_out(effect)

    def on_ended(self, ended: Sequence[ProcessEnded]) -> None:
        super().on_ended(ended)
        began: dict[int, StartProcess] = self.__dict__["_began"]
        again = [began.pop(e.attempt) for e in ended if e.attempt in began and not e.unstarted]
        if again:
            self.launcher.start(again)


class ReusesReportNumbers(WorkerAgent):
    def on_up(self, address: str) -> None:
        self.execution._reports._next_number = 1
        super().on_up(address)


class MiscountsBusySlots(WorkerAgent):
    def _on_tasks(self, tasks: m.Tasks) -> None:
        super()._on_tasks(tasks)
        self.execution._busy += 1


class _WritesNothing(Keeper):
    def keep(self, finished: Sequence[xe.Finished]) -> None:
        """Nothing is written to the spool."""


class KeepsNothing(WorkerAgent):
    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.keeper = _WritesNothing(self.clock, self.keeper._spool, self.counters, self.keeper._on_changed)


class _RemembersAll(Keeper):
    def forget(self, attempts: Sequence[int]) -> None:
        """What is stored stays in the spool."""


class NeverForgets(WorkerAgent):
    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.keeper = _RemembersAll(self.clock, self.keeper._spool, self.counters, self.keeper._on_changed)


class PingsForEver(WorkerAgent):
    def _on_welcome(self, sender: str, welcome: m.Welcome) -> None:
        super()._on_welcome(sender, welcome)
        self.transport.ping(sender)

    def on_heard(self, sender: str) -> None:
        self.transport.ping(sender)


class ObeysEverybody(WorkerAgent):
    def _on_tasks(self, tasks: m.Tasks) -> None:
        self.execution._epoch = epoch_of(tasks.attempt)
        super()._on_tasks(tasks)


# --- leases ---------------------------------------------------------------------------------------


class TakesAtOnce(Leadership):
    def _is_ripe(self, view: LeaseView) -> bool:
        return True
