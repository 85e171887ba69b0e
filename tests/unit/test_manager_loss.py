"""How soon a silent worker is lost, and that one which answers slowly is not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kestrel.core.model import SchedulerSettings
from kestrel.manager.settings import ManagerSettings, noticing_within
from kestrel.protocol import messages as m
from parts.manager import USER, WORKER, Rig

SETTINGS = ManagerSettings(scheduler=replace(SchedulerSettings(), settle_s=1.0))
OTHER = "w2@example.org/worker"


def noticing(lost_after_s: float) -> Rig:
    return Rig(noticing_within(SETTINGS, lost_after_s))


def answer_pings(rig: Rig, delay_s: float, *workers: str) -> None:
    """From now on these answer each ping, so late."""
    ping = rig.notes.ping

    def pinged(to: str) -> None:
        ping(to)
        if to in workers:
            rig.clock.call_later(delay_s, lambda: rig.manager.on_heard(to))

    rig.notes.ping = pinged  # type: ignore[method-assign]


def lost_at(rig: Rig, worker: str, within_s: float) -> float:
    """Seconds until the worker is lost."""
    began = rig.clock.now()
    while rig.manager.scheduler.has_worker(worker):
        assert rig.clock.now() - began <= within_s, "not lost in time"
        rig.run(0.01)
    return rig.clock.now() - began


@pytest.mark.parametrize("lost_after_s", [2.0, 5.0, 15.0, 60.0])
def test_a_silent_worker_is_lost_after_that_time_and_a_tick_at_most(lost_after_s: float):
    rig = noticing(lost_after_s)
    answer_pings(rig, 0.01, OTHER)
    rig.join(OTHER, cores=1)
    rig.tell(WORKER, m.Profile(cores=1))
    rig.run(0.001)
    took_s = lost_at(rig, WORKER, lost_after_s + rig.settings.tick_s + 0.02)
    assert took_s >= lost_after_s - 0.02
    assert rig.manager.scheduler.has_worker(OTHER)


def test_its_tasks_go_to_others_with_that():
    rig = noticing(2.0)
    rig.join(cores=1)
    rig.ask(m.Job(command="true"))
    answer_pings(rig, 0.01, OTHER)
    rig.join(OTHER, cores=1)
    rig.run(2.0 + rig.settings.tick_s)
    assert [t.tasks for t in rig.to(OTHER, m.Tasks)] == [[0]]


@pytest.mark.parametrize("lost_after_s", [2.0, 15.0])
def test_a_worker_that_answers_within_half_of_that_time_is_never_lost(lost_after_s: float):
    rig = noticing(lost_after_s)
    answer_pings(rig, lost_after_s / 2, WORKER)
    rig.join(cores=1)
    for _ in range(200):
        rig.run(lost_after_s / 10)
        assert rig.manager.scheduler.has_worker(WORKER)
    assert not rig.manager.scheduler.lost_workers()


def test_a_worker_is_asked_after_a_third_of_that_time_and_told_how_long_it_is():
    rig = noticing(3.0)
    rig.join(cores=1)
    assert [w.lease_s for w in rig.to(WORKER, m.Welcome)] == [3.0]
    rig.run(0.8)
    assert WORKER not in rig.notes.pings
    rig.run(0.2 + rig.settings.tick_s)
    assert WORKER in rig.notes.pings


def test_nobody_is_lost_for_time_in_which_the_manager_itself_stood_still():
    rig = noticing(2.0)
    answer_pings(rig, 0.1, WORKER)
    rig.join(cores=1)
    commit = rig.store.commit
    held = []
    rig.store.commit = lambda *unit, **number: held.append((unit, number))  # type: ignore[assignment]
    rig.tell(USER, m.Job(command="true"))
    rig.run(10)
    assert held
    rig.store.commit = commit  # type: ignore[method-assign]
    for unit, number in held:
        commit(*unit, **number)
    rig.run(5)
    assert rig.manager.scheduler.has_worker(WORKER)
    assert not rig.manager.scheduler.lost_workers()
