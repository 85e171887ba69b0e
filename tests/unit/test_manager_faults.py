"""What goes wrong inside or below the manager harms neither its books nor its peers."""

from __future__ import annotations

import pytest

from kestrel.core import effects as fx
from kestrel.core.model import JobState
from kestrel.errors import InternalError, StoreError
from kestrel.ports import CommitFailed
from kestrel.protocol import messages as m
from parts.manager import USER, WORKER, Rig


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_a_store_that_fails_is_not_tried_again_after_the_manager_has_closed(rig: Rig):
    tried: list[int] = []
    full = StoreError("the disk is full", retry=True)

    def refuse(writes: object, reads: object, done: object, *, unit: int) -> None:
        tried.append(1)
        rig.clock.call_later(0, lambda: done(CommitFailed(full)))  # type: ignore[operator]

    rig.store.commit = refuse  # type: ignore[method-assign, assignment]
    rig.tell(USER, m.Job(command="true"))
    rig.run(0.5)
    assert len(tried) == 1
    rig.manager.close()
    rig.run(5)
    assert len(tried) == 1


def test_what_a_restored_job_changes_at_once_is_stored(rig: Rig, monkeypatch: pytest.MonkeyPatch):
    rig.ask(m.Job(command="true", queue=1))
    from kestrel.core.scheduler import Scheduler

    handle = Scheduler.handle

    def with_an_end(self: Scheduler, events: object, now: float) -> list[fx.Effect]:
        monkeypatch.setattr(Scheduler, "handle", handle)
        effects = handle(self, events, now)  # type: ignore[arg-type]
        return [*effects, fx.RecordTrouble(1, 0, failures=1, losses=0)]

    monkeypatch.setattr(Scheduler, "handle", with_an_end)
    written: list[object] = []
    commit = rig.store.commit
    rig.store.commit = lambda w, r, d, unit: (written.extend(w), commit(w, r, d, unit=unit))[1]  # type: ignore
    rig.restart()
    rig.run()
    assert written == [fx.RecordTrouble(1, 0, failures=1, losses=0)]


def test_a_fault_in_a_turn_ends_the_manager_and_the_next_life_goes_on(rig: Rig):
    rig.join(cores=1)
    rig.ask(m.Job(command="true"))
    tasks = rig.to(WORKER, m.Tasks)[0]
    ended: list[Exception] = []
    rig.manager.on_failed = ended.append
    bug = InternalError("a law is broken")

    def broken(_events: object, _now: float) -> list[fx.Effect]:
        raise bug

    rig.manager.scheduler.handle = broken  # type: ignore[method-assign, assignment]
    rig.finish(tasks)
    assert ended == [bug]
    assert not rig.to(WORKER, m.Ack)
    rig.restart()
    rig.join(cores=1, held=[m.HeldAttempt(1, 0, tasks.attempt)])
    rig.finish(tasks)
    assert rig.ask(m.Status(job=1)).jobs[0].state == JobState.COMPLETED.value
