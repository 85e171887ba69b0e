"""Law 4, and what a broken machine may cost.

What runs survives managers and the server without being run again, while its worker lives and its own
connection stays up. A worker that fails what others finish does not eat the bag.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from kestrel.core.model import SchedulerSettings
from kestrel.protocol import messages as m
from kestrel.sim.faults import Fault
from kestrel.sim.scripts import Behaviour, Scripts
from kestrel.sim.user import JobPlan
from kestrel.sim.world import World, WorldSettings, play

PATIENT = WorldSettings(
    questions_max=0,
    scheduler=SchedulerSettings(
        lookahead_s=0.5, batch_max=20, backlog_max=20, lease_s=30.0, probe_s=4.0, settle_s=10.0
    ),
)
"""Leases outlast the longest silence of a cable: a manager that hears nothing for longer gives up workers."""


def plans(random: Random, scripts: Scripts) -> list[list[JobPlan]]:
    """Jobs whose tasks all succeed, most of them long enough to meet a fault."""
    found = []
    for job in range(3):
        name, size = f"j{job}", random.randint(5, 40)
        for index in range(size):
            scripts.behaviours[(name, index)] = Behaviour(random.uniform(0.1, 6.0))
        message = m.Job(command=["task", name], id=f"id-{name}", queue=size)
        found.append(JobPlan(name, message, size=size))
    return [found]


def play_once(fault: Fault, standbys: int, seeds: range) -> int:
    """Nothing may run twice in these histories; how often the fault struck."""
    struck = 0
    for seed in seeds:
        world = World(seed, PATIENT, faults=({fault: 8.0}, frozenset()), plans=plans, standbys=standbys)
        outcome = play(world)
        assert outcome.ok, outcome.story()
        struck += world.faults.struck.get(fault.value, 0)
        again = {key: runs for key, runs in world.ledger.by_task.items() if len(runs) > 1}
        assert not again, f"seed {seed}: {again}"
        assert all(r.state == "COMPLETED" for plan in world.users[0].plans for r in plan.seen)
    return struck


@pytest.mark.parametrize("fault", [Fault.MANAGER_CRASH, Fault.SERVER_RESTART, Fault.MANAGER_HANDOVER])
def test_nothing_runs_twice_when_only_the_middle_fails(fault: Fault) -> None:
    assert play_once(fault, -1, range(1, 16)) > 50


@pytest.mark.parametrize(
    "fault",
    [
        Fault.MANAGER_CRASH,
        Fault.MANAGER_POWER,
        Fault.MANAGER_STOPPED,
        Fault.MANAGER_HANDOVER,
        Fault.MANAGER_CABLE,
        Fault.STORE_CUT,
        Fault.STORE_OUTAGE,
        Fault.DISK_FULL,
    ],
)
def test_nothing_runs_twice_when_managers_take_over(fault: Fault) -> None:
    assert play_once(fault, 1, range(1, 11)) > 25


BAD_WORKER = WorldSettings(questions_max=0, workers_min=3, workers_max=3, faults_s=40.0)


def a_bag(random: Random, scripts: Scripts) -> list[list[JobPlan]]:
    """More work than all can do in the time of faults."""
    size = 300
    for index in range(size):
        scripts.behaviours[("bag", index)] = Behaviour(random.uniform(0.2, 0.8))
    message = m.Job(command=["task", "bag"], id="id-bag", queue=size, retries=2)
    return [[JobPlan("bag", message, size=size)]]


def bad_runs(seed: int, quarantine_failures: int) -> tuple[int, int]:
    """Runs on the machine that failed everything, and tasks that failed in the end."""
    scheduler = replace(BAD_WORKER.scheduler, quarantine_failures=quarantine_failures)
    settings = replace(BAD_WORKER, scheduler=scheduler)
    world = World(seed, settings, faults=({}, frozenset()), plans=a_bag, standbys=-1)
    world.workers[1].health.bad = True
    outcome = play(world)
    assert outcome.ok, outcome.story()
    failed = [r for plan in world.users[0].plans for r in plan.seen if r.state == "FAILED"]
    return sum(run.bad for run in world.ledger.runs), len(failed)


def test_a_worker_that_fails_everything_while_others_succeed_fails_few_tasks() -> None:
    scheduler = BAD_WORKER.scheduler
    probes = BAD_WORKER.faults_s / scheduler.parole_s_max + 4  # the pause doubles up to its longest
    most = scheduler.backlog_max + scheduler.quarantine_failures + probes
    for seed in range(1, 5):
        runs, failed = bad_runs(seed, scheduler.quarantine_failures)
        assert scheduler.quarantine_failures <= runs <= most
        assert failed == 0


def test_without_quarantine_it_fails_many() -> None:
    runs, failed = bad_runs(1, 0)
    assert runs > 150
    assert failed > 25
