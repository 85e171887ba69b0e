"""Law 4: what runs survives the manager and the server without being run again, while its worker lives."""

from __future__ import annotations

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
        lookahead_s=0.5, batch_max=20, backlog_max=20, lease_s=20.0, probe_s=4.0, settle_s=10.0
    ),
)


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


@pytest.mark.parametrize("fault", [Fault.MANAGER_CRASH, Fault.SERVER_RESTART])
def test_nothing_runs_twice_when_only_the_middle_fails(fault: Fault) -> None:
    struck = 0
    for seed in range(1, 16):
        world = World(seed, PATIENT, faults=({fault: 8.0}, frozenset()), plans=plans, standbys=-1)
        outcome = play(world)
        assert outcome.ok, outcome.story()
        struck += world.faults.struck.get(fault.value, 0)
        again = {key: runs for key, runs in world.ledger.by_task.items() if len(runs) > 1}
        assert not again, f"seed {seed}: {again}"
        assert all(r.state == "COMPLETED" for plan in world.users[0].plans for r in plan.seen)
    assert struck > 50
