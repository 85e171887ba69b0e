"""A simulated world in which only happens what a scenario says."""

from __future__ import annotations

from collections.abc import Callable

from kestrel.protocol import messages as m
from kestrel.sim.hosts import Shells
from kestrel.sim.scripts import Behaviour
from kestrel.sim.user import JobPlan
from kestrel.sim.world import World, WorldSettings, quiet_logs


class Stage:
    """A world without chance faults: one user, and what the scenario does at which second."""

    def __init__(self, workers: int, standbys: int = -1, shells: Shells | None = None) -> None:
        """`standbys`: -1 is one manager alone, without leases."""
        settings = WorldSettings(workers_min=workers, workers_max=workers, questions_max=0)
        self.world = World(
            3,
            settings,
            shells,
            faults=({}, frozenset()),
            plans=lambda random, scripts: [[]],
            standbys=standbys,
        )
        self.world.network.exclusive.clear()
        self.world.network.untold.clear()
        self.world.managers[0].start()
        for second, manager in enumerate(self.world.managers[1:], 1):
            self.at(second, manager.start)
        for worker in self.world.workers:
            worker.start()
        for host in self.world.user_hosts:
            host.link.connect()

    def at(self, second: float, call: Callable[[], object]) -> None:
        self.world.timeline.call_later(second, lambda: _drop(call()))

    def job(self, second: float, name: str, tasks: list[Behaviour], **fields: object) -> JobPlan:
        """A job of these tasks, submitted at that second."""
        for index, behaviour in enumerate(tasks):
            self.world.scripts.behaviours[(name, index)] = behaviour
        message = m.Job(
            command=["task", name],
            id=f"id-{name}",
            queue=len(tasks),
            **fields,  # type: ignore[arg-type]
        )
        plan = JobPlan(name, message, size=len(tasks))
        user = self.world.users[0]
        user.plans.append(plan)
        self.at(second, lambda: user.submit(plan))
        return plan

    def play(self, seconds: float) -> None:
        """Everything until then, and the judgement."""
        with quiet_logs():
            self.world.run_until(seconds)
            self.world.conclude()

    def runs(self, plan: JobPlan, task: int) -> int:
        return len(self.world.ledger.by_task[(plan.script, task)])


def _drop(_: object) -> None:
    """What a call returns does not matter here."""
