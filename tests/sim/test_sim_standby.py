"""Managers that stand by for each other: who acts, how soon, and what runs twice for it (nothing)."""

from __future__ import annotations

import pytest
import sim_planted as planted
from sim_stage import Stage

from kestrel.core.model import first_attempt
from kestrel.protocol import codec
from kestrel.protocol import messages as m
from kestrel.sim.hosts import ManagerHost, Shells
from kestrel.sim.laws import BrokenLawError
from kestrel.sim.network import Kind, Stanza
from kestrel.sim.scripts import Behaviour
from kestrel.sim.user import JobPlan

LONG = 8.0


class Change(Stage):
    """Two workers, an active manager, one that stands by, and a job that both must carry through."""

    def __init__(self, shells: Shells | None = None, task_s: float = LONG, rounds: int = 3) -> None:
        super().__init__(workers=2, standbys=1, shells=shells)
        self.active, self.other = self.world.managers
        self.slots = sum(worker.settings.slots for worker in self.world.workers)
        self.plan: JobPlan = self.job(3, "long", [Behaviour(task_s)] * (rounds * self.slots))

    def when_other_acts(self, host: ManagerHost) -> float:
        """Play until this manager acts; the second at which it does."""
        world = self.world
        while host.manager is None:
            assert world.timeline.now < 60, f"{host.name} never acts"
            world.run_until(world.timeline.now + 0.01)
        return world.timeline.now

    def judge(self) -> None:
        """Everything was done, and once."""
        self.play(self.world.timeline.now + 1)
        assert [result.state for result in self.plan.seen] == ["COMPLETED"] * self.plan.size
        assert [self.runs(self.plan, task) for task in range(self.plan.size)] == [1] * self.plan.size


def test_a_killed_manager_is_replaced_within_two_seconds_and_nothing_runs_twice() -> None:
    change = Change()
    change.at(6, change.active.crash)
    change.world.run_until(6.0)
    assert change.when_other_acts(change.other) < 8.0
    change.judge()


def test_a_manager_that_gives_its_lease_back_is_replaced_within_a_second() -> None:
    change = Change()
    change.at(6, change.active.hand_over)
    change.world.run_until(6.0)
    assert change.when_other_acts(change.other) < 7.0
    change.judge()


def test_a_stopped_manager_is_replaced_after_its_lease_and_stands_by_when_it_goes_on() -> None:
    change = Change()
    change.at(6, change.active.clock.suspend)
    change.at(20, change.active.clock.resume)
    change.world.run_until(6.0)
    assert 10.0 < change.when_other_acts(change.other) < 12.0
    change.world.run_until(25.0)
    assert change.active.lives == 2
    assert change.active.manager is None
    change.judge()


def test_a_manager_that_is_stopped_for_a_moment_stays() -> None:
    change = Change()
    change.at(6, change.active.clock.suspend)
    change.at(9, change.active.clock.resume)
    change.world.run_until(20.0)
    assert change.other.manager is None
    change.judge()


def test_a_manager_that_is_cut_off_from_the_database_is_replaced_and_says_nothing_more() -> None:
    change = Change()
    change.at(6, lambda: setattr(change.active.way, "cut", True))
    change.at(30, lambda: setattr(change.active.way, "cut", False))
    change.world.run_until(6.0)
    assert 10.0 < change.when_other_acts(change.other) < 13.0
    change.world.run_until(35.0)
    assert change.active.manager is None
    change.judge()


def test_an_orphan_that_lives_on_is_heeded_by_nobody() -> None:
    """The database has lost the session of a manager that lives and may act: for a while there are two."""
    change = Change(task_s=0.3, rounds=80)
    active, world = change.active, change.world

    def cut() -> None:
        active.way.cut = True
        active.way.end_session(active.way.session)

    change.at(6, cut)
    world.run_until(6.0)
    assert change.when_other_acts(change.other) < 8.0
    assert active.manager is not None
    assert not active.lapsed()
    world.run_until(8.0)
    assert len(known_epochs(change)) == 2
    assert set(known_epochs(change)) == {2}
    change.judge()


def known_epochs(change: Change) -> list[int | None]:
    return [w.agent.execution._epoch for w in change.world.workers if w.agent is not None]


def late(shells: Shells | None = None) -> Change:
    """Tasks of the manager before arrive when the next one has welcomed everybody."""
    change = Change(shells)
    change.at(6, change.active.crash)
    change.world.run_until(6.0)
    change.when_other_acts(change.other)
    change.world.run_until(12.0)
    assert known_epochs(change) == [2, 2]
    worker, plan = change.world.workers[0].address, change.plan
    spec = m.TaskSpec(command=["task", plan.script, "{#0}"])
    tasks = m.Tasks(job=plan.job or 0, attempt=first_attempt(1) + 1000, tasks=[plan.size - 1], spec=spec)
    sender = change.world.managers[0].address
    change.world.network._send_to(worker, Stanza(Kind.MESSAGE, sender, worker, codec.encode(tasks)))
    return change


def test_tasks_that_a_former_manager_gave_are_not_run_when_they_come_too_late() -> None:
    late().judge()


def test_a_worker_that_runs_them_is_seen() -> None:
    change = late(Shells(agent=planted.ObeysEverybody))
    with pytest.raises(BrokenLawError) as broken:
        change.judge()
    assert broken.value.law == "stale_run"


def test_a_manager_that_loses_only_the_xmpp_server_keeps_its_lease_and_goes_on() -> None:
    change = Change()
    network = change.world.network
    change.at(6, lambda: network.stall(change.active.link, True))
    change.at(9, lambda: network.stall(change.active.link, False))
    change.world.run_until(20.0)
    assert change.other.manager is None
    change.judge()


def test_a_manager_that_is_cut_off_from_the_database_for_long_lets_its_address_go() -> None:
    """Some servers let nobody else in while the former manager is still connected."""
    change = Change()
    change.world.network.exclusive.add(change.active.address)
    change.at(6, lambda: setattr(change.active.way, "cut", True))
    change.world.run_until(6.0)
    assert 10.0 < change.when_other_acts(change.other) < 25.0
    change.judge()


def test_work_goes_on_as_soon_as_all_workers_of_the_former_life_are_back() -> None:
    """Not only when the time is up in which they might come back."""
    change = Change(task_s=0.5, rounds=40)
    change.at(6, change.active.crash)
    change.world.run_until(6.0)
    acts_at = change.when_other_acts(change.other)
    change.judge()
    epoch = first_attempt(2)
    first = min(run.started for run in change.world.ledger.runs if run.attempt >= epoch)
    assert first - acts_at < 0.5 < change.world.settings.scheduler.settle_s


def test_a_worker_that_died_with_its_manager_is_not_waited_for_in_vain() -> None:
    stage = Stage(workers=2, standbys=1)
    active, other = stage.world.managers
    dead, alive = stage.world.workers
    plan = stage.job(3, "both", [Behaviour(0.5)] * 100)
    stage.at(6, active.crash)
    stage.at(6, dead.crash)
    stage.world.run_until(9.0)
    assert other.manager is not None
    assert list(other.manager.scheduler.workers()) == [alive.address]
    assert not other.manager.scheduler._books.settling.active
    stage.play(10)
    assert {result.state for result in plan.seen} == {"COMPLETED"}
