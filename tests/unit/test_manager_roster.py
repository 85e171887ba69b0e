"""A manager that is back calls its workers; drains last; a store that is short of room takes nothing new."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kestrel.core import events as ev
from kestrel.core.model import SchedulerSettings
from kestrel.errors import StoreError
from kestrel.manager.access import AccessRules
from kestrel.manager.settings import ManagerSettings
from kestrel.ports import Show
from kestrel.protocol import messages as m
from parts.manager import USER, WORKER, Rig

OTHER = "w2@example.org/worker"
SETTINGS = ManagerSettings(scheduler=replace(SchedulerSettings(), settle_s=30.0), tick_s=0.5)
ADMINISTRATED = replace(SETTINGS, access=AccessRules.of(admins=("ann@example.org",)))


@pytest.fixture
def rig() -> Rig:
    return Rig(SETTINGS)


def calls(rig: Rig, worker: str = WORKER) -> int:
    return [e.code for e in rig.to(worker, m.Error)].count("unknown_worker")


class TestReturn:
    """After a restart of the manager, or a break of its connection."""

    def test_workers_of_the_last_life_are_called_when_the_connection_is_up(self, rig: Rig):
        rig.join(cores=1)
        rig.join(OTHER, cores=1)
        rig.restart()
        rig.run(0.1)
        for worker in (WORKER, OTHER):
            assert calls(rig, worker) == 1
            assert (worker, Show.ONLINE) in rig.notes.presence
            assert worker in rig.notes.pings

    def test_who_has_come_back_is_not_called_again_and_who_is_silent_is(self, rig: Rig):
        rig.join(cores=1)
        rig.join(OTHER, cores=1)
        rig.restart()
        rig.join(cores=1)
        for _ in range(3):
            rig.run(SETTINGS.recall_s)
            rig.manager.on_heard(WORKER)
        assert calls(rig) == 1
        assert 2 <= calls(rig, OTHER) <= 4
        rig.run(3 * SETTINGS.recall_s * SETTINGS.recalls_max)
        assert calls(rig, OTHER) == 1 + SETTINGS.recalls_max

    def test_calls_are_paced(self):
        rig = Rig(replace(SETTINGS, recalls_per_tick_max=10))
        names = [f"w{i}@example.org/worker" for i in range(25)]
        for name in names:
            rig.join(name, cores=1)
        rig.restart()
        assert sum(calls(rig, name) for name in names) == 10
        rig.run(0.6)
        assert sum(calls(rig, name) for name in names) == 20
        rig.run(0.6)
        assert [calls(rig, name) for name in names] == [1] * 25

    def test_restored_tasks_wait_for_expected_workers_and_no_longer(self, rig: Rig):
        rig.join(cores=1)
        rig.join(OTHER, cores=1)
        rig.ask(m.Job(command="true", queue=2, restart="never"))
        first = {w: rig.to(w, m.Tasks)[0] for w in (WORKER, OTHER)}
        rig.restart()
        held = first[WORKER]
        rig.join(cores=1, held=[m.HeldAttempt(1, held.tasks[0], held.attempt)])
        rig.run(5)
        assert not rig.to(WORKER, m.Tasks)
        held = first[OTHER]
        rig.join(OTHER, cores=1, held=[m.HeldAttempt(1, held.tasks[0], held.attempt)])
        assert rig.manager.roster.expected == set()
        assert not rig.manager.scheduler.expected()
        rig.run(1)
        assert rig.ask(m.Status(job=1)).jobs[0].counts.running == 2

    def test_an_expected_worker_that_is_not_there_is_given_up_after_a_moment(self, rig: Rig):
        rig.join(cores=1)
        rig.join(OTHER, cores=1)
        rig.ask(m.Job(command="true", queue=2))
        rig.restart()
        rig.join(cores=1)
        rig.manager.on_unavailable(OTHER, "service-unavailable")
        rig.run(SETTINGS.absence_s - 0.5)
        assert not rig.to(WORKER, m.Tasks), "it may still be on its way"
        rig.run(1.5)
        assert rig.to(WORKER, m.Tasks)
        rig.restart()
        assert rig.manager.roster.expected == {WORKER}, "and the next life does not expect it"

    def test_an_expected_worker_that_reconnects_meanwhile_keeps_what_it_runs(self, rig: Rig):
        rig.join(cores=1)
        rig.ask(m.Job(command="true", queue=1))
        tasks = rig.to(WORKER, m.Tasks)[0]
        rig.restart()
        rig.join(OTHER, cores=1)
        rig.manager.on_unavailable(WORKER, "service-unavailable")
        rig.run(1)
        rig.manager.on_available(WORKER, Show.CHAT, "")
        rig.run(SETTINGS.absence_s)
        rig.join(cores=1, held=[m.HeldAttempt(1, 0, tasks.attempt)])
        rig.run(5)
        assert not rig.to(OTHER, m.Tasks)
        rig.finish(tasks)
        assert rig.ask(m.Status(job=1)).jobs[0].state == "COMPLETED"

    def test_later_an_expected_worker_that_goes_is_given_up_at_once(self, rig: Rig):
        rig.join(cores=1)
        rig.restart()
        rig.run(SETTINGS.absence_s + 1)
        rig.manager.on_unavailable(WORKER, "")
        assert rig.manager._inbox == [ev.WorkerLost(WORKER, "went offline")]

    def test_what_was_said_of_who_is_there_before_a_break_counts_no_more(self, rig: Rig):
        rig.join(cores=1)
        rig.restart()
        rig.manager.on_unavailable(WORKER, "service-unavailable")
        rig.run(1)
        rig.manager.on_down("the server restarts")
        rig.manager.on_up("manager.example.org")
        rig.run(SETTINGS.absence_s + 1)
        assert rig.manager.roster.expected == {WORKER}
        rig.manager.on_unavailable(WORKER, "service-unavailable")
        rig.run(1)
        assert rig.manager.roster.expected == set()

    def test_after_a_break_of_our_connection_the_workers_are_called_and_none_is_lost(self, rig: Rig):
        rig.join(cores=1)
        rig.join(OTHER, cores=1)
        rig.manager.on_down("the server restarts")
        rig.manager.on_up("manager.example.org")
        assert (calls(rig), calls(rig, OTHER)) == (1, 1)
        rig.manager.on_unavailable(WORKER, "service-unavailable")
        rig.run(1)
        assert rig.ask(m.Pool()).count == 2
        rig.manager.on_down("again")
        rig.join(OTHER, cores=1)
        rig.manager.on_up("manager.example.org")
        assert (calls(rig), calls(rig, OTHER)) == (2, 1)

    def test_a_break_of_our_connection_that_outlasts_every_lease_loses_nobody(self, rig: Rig):
        rig.join(cores=1)
        rig.join(OTHER, cores=1)
        rig.manager.on_down("the server's machine restarts")
        rig.run(10 * SETTINGS.scheduler.lease_s)
        rig.manager.on_up("manager.example.org")
        rig.run(SETTINGS.scheduler.lease_s / 2)
        assert rig.ask(m.Pool()).count == 2
        rig.manager.on_heard(WORKER)
        rig.run(SETTINGS.scheduler.lease_s / 2 + 1)
        assert [w.worker for w in rig.ask(m.Pool()).workers] == [WORKER]

    def test_no_more_than_one_tick_waits_for_a_store_that_is_away(self, rig: Rig):
        rig.store.commit = lambda *_unit, **_number: None  # type: ignore[method-assign]
        rig.tell(USER, m.Job(command="true"))
        rig.run(20)
        assert rig.manager._inbox == []

    def test_who_was_heard_in_a_turn_is_not_lost_in_it(self, rig: Rig):
        rig.join(cores=1)
        seen: list[list[ev.Event]] = []
        handle = rig.manager.scheduler.handle
        rig.manager.scheduler.handle = lambda events, now: (seen.append(list(events)), handle(events, now))[1]  # type: ignore
        rig.manager._tick()
        rig.manager.on_heard(WORKER)
        rig.run(0.01)
        assert seen == [[ev.WorkerHeard(WORKER), ev.TimePassed()]]


class TestDrain:
    """What an administrator drains stays drained."""

    @pytest.fixture
    def rig(self) -> Rig:
        return Rig(ADMINISTRATED)

    def test_a_drain_outlasts_the_worker_and_the_manager_until_it_is_taken_back(self, rig: Rig):
        rig.join(cores=1)
        assert rig.ask(m.Drain(worker=WORKER)).changed == 1
        rig.manager.on_unavailable(WORKER, "")
        rig.run(1)
        rig.join(cores=1)
        assert rig.ask(m.Pool()).workers[0].state == "draining"
        rig.restart()
        rig.join(cores=1)
        rig.ask(m.Job(command="true"))
        rig.run(5)
        assert rig.ask(m.Pool()).workers[0].state == "draining"
        assert not rig.to(WORKER, m.Tasks)
        assert rig.ask(m.Drain(worker=WORKER, undo=True)).changed == 1
        assert len(rig.to(WORKER, m.Tasks)) == 1
        rig.restart()
        rig.join(cores=1)
        assert rig.ask(m.Pool()).workers[0].state != "draining"

    def test_a_drain_can_be_taken_back_while_the_worker_is_away(self, rig: Rig):
        rig.join(cores=1)
        rig.ask(m.Drain(worker="w1@example.org"))
        rig.manager.on_unavailable(WORKER, "")
        rig.run(1)
        assert rig.ask(m.Drain(worker=WORKER)).code == "unknown_worker"
        assert rig.ask(m.Drain(worker=WORKER, undo=True)).changed == 1
        assert rig.ask(m.Drain(worker=WORKER, undo=True)).code == "unknown_worker"
        rig.join(cores=1)
        assert rig.ask(m.Pool()).workers[0].state == "idle"

    def test_an_expected_worker_can_be_drained_before_it_is_back(self, rig: Rig):
        rig.join(cores=1)
        rig.restart()
        assert rig.ask(m.Drain(worker=WORKER)).changed == 1
        rig.join(cores=1)
        assert rig.ask(m.Pool()).workers[0].state == "draining"

    def test_a_repeated_drain_is_stored_once(self, rig: Rig):
        rig.join(cores=1)
        written: list[object] = []
        commit = rig.store.commit
        rig.store.commit = lambda w, r, d, unit: (written.extend(w), commit(w, r, d, unit=unit))[1]  # type: ignore
        assert [rig.ask(m.Drain(worker=WORKER)).changed for _ in range(3)] == [1, 1, 1]
        assert len(written) == 1

    def test_drains_are_bounded(self):
        rig = Rig(replace(ADMINISTRATED, drained_max=1))
        rig.join(cores=1)
        rig.join(OTHER, cores=1)
        rig.ask(m.Drain(worker=WORKER))
        refused = rig.ask(m.Drain(worker=OTHER))
        assert refused.code == "busy"
        assert WORKER in refused.hint
        assert rig.ask(m.Drain(worker=WORKER)).changed == 1
        assert rig.manager.roster.drained_by_user == {WORKER}


def test_a_store_that_is_short_of_room_takes_no_new_work_and_all_else(rig: Rig):
    rig.join(cores=1)
    rig.ask(m.Job(id="known", command="true"))
    rig.ask(m.Job(command="cat", args=[["a"]], open=True))
    full = StoreError("less than 64 MiB are left on the disk", hint="make room", retry=False)
    rig.store.shortage = lambda: full  # type: ignore[method-assign]
    for message in (m.Job(command="true"), m.Extend(job=2, offset=1, args=[["b"]])):
        refused = rig.ask(message)
        assert (refused.code, refused.text, refused.hint) == ("store", full.text, full.hint)
    assert rig.ask(m.Job(id="known", command="true")).job == 1
    assert rig.ask(m.Extend(job=2, offset=1, args=[], last=True)).size == 1
    rig.finish(rig.to(WORKER, m.Tasks)[0])
    assert rig.ask(m.Status(job=1)).jobs[0].state == "COMPLETED"
    assert rig.ask(m.Cancel(job=2)).job == 2
    rig.store.shortage = lambda: None  # type: ignore[method-assign]
    assert rig.ask(m.Job(command="true")).job == 3


def test_a_worker_that_fails_what_the_other_finishes_is_shown_in_quarantine(rig: Rig):
    rig.join(cores=1)
    rig.join(OTHER, cores=1)
    rig.ask(m.Job(command="true", queue=200, retries=100))
    seen = {WORKER: 0, OTHER: 0}

    def quarantined() -> list[str]:
        return [w.worker for w in rig.ask(m.Pool()).workers if w.state == "quarantined"]

    while not quarantined():
        assert sum(seen.values()) < 200
        for worker, bad in ((OTHER, False), (WORKER, True)):
            for tasks in rig.to(worker, m.Tasks)[seen[worker] :]:
                seen[worker] += 1
                state, code = ("failed", 1) if bad else ("completed", 0)
                rig.finish(tasks, worker, n=seen[worker], state=state, exit_code=code)
    assert quarantined() == [WORKER]
