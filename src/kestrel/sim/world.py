"""One simulated history: a pool built from a seed, a time of faults, a time without, and the judgement.

`run_seed` is the whole of it. The production shells run unchanged; everything around them is simulated.
A history depends on its seed alone: one random source, one heap of timers, no real time, no hashes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random

import msgspec

from kestrel.core.model import SchedulerSettings
from kestrel.manager.access import AccessRules
from kestrel.manager.leadership import LeaseSettings
from kestrel.manager.settings import ManagerSettings
from kestrel.sim.checkers import Checkers
from kestrel.sim.clock import ProcessClock, Timeline
from kestrel.sim.faults import Fault, Faults, Weather, draw_kinds
from kestrel.sim.hosts import ManagerHost, Node, Shells, WorkerHost, worker_settings
from kestrel.sim.launcher import Machinery
from kestrel.sim.laws import BrokenLawError
from kestrel.sim.ledger import Ledger
from kestrel.sim.network import Network
from kestrel.sim.plans import TAGS, draw_plan, draw_question
from kestrel.sim.scripts import Scripts
from kestrel.sim.storage import Disk
from kestrel.sim.trace import Trace
from kestrel.sim.user import JobPlan, ScriptedUser
from kestrel.sim.wishes import Wishes


@dataclass(frozen=True, slots=True)
class WorldSettings:
    """Sizes and times of simulated worlds. Seconds are virtual."""

    faults_s: float = 60.0
    """How long things go wrong."""
    submit_s: float = 30.0
    """Jobs are submitted within this time."""
    liveness_s: float = 400.0
    """Without faults everything must have ended after so long."""
    settle_s: float = 40.0
    """After that, every acknowledgement must have arrived."""
    steps_max: int = 400_000
    check_every: int = 25
    """Invariants are checked after so many steps."""
    workers_min: int = 1
    workers_max: int = 5
    users_max: int = 2
    jobs_max: int = 4
    questions_max: int = 12
    slots_max: int = 4
    standbys_max: int = 2
    leased_share: float = 0.6
    """Share of the worlds whose managers stand by for each other on one database."""
    queued_max: tuple[int, ...] = (10, 40)
    """Of each worker one of these: less than the manager gives it overflows."""
    finished_max: tuple[int, ...] = (3, 60)
    lease: LeaseSettings = field(default_factory=LeaseSettings)
    scheduler: SchedulerSettings = field(
        default_factory=lambda: SchedulerSettings(
            lookahead_s=0.5,
            batch_max=20,
            backlog_max=40,
            lease_s=6.0,
            probe_s=2.0,
            settle_s=3.0,
            parole_s=2.0,
            parole_s_max=10.0,
        )
    )


class UserHost(Node):
    """A user's machine; users do not crash, but their connections do."""

    def __init__(
        self, machinery: Machinery, network: Network, address: str, manager: str, plans: list[JobPlan]
    ) -> None:
        super().__init__(machinery, network, address)
        self._begin_life()
        self.user = ScriptedUser(address, manager, self.clock, self.link, machinery.random, plans)
        self.link.attach(self.user)


class World:
    """Everything of one history."""

    def __init__(
        self,
        seed: int,
        settings: WorldSettings | None = None,
        shells: Shells | None = None,
        faults: tuple[dict[Fault, float], frozenset[Weather]] | None = None,
        plans: Callable[[Random, Scripts], list[list[JobPlan]]] | None = None,
        standbys: int | None = None,
    ) -> None:
        """`faults`, `plans` (per user) and `standbys` replace what the seed would choose.

        `standbys`: how many managers stand by beside the active one; -1: one manager alone, without leases.
        """
        self.seed = seed
        self.settings = settings or WorldSettings()
        self.random = random = Random(seed)
        self.timeline = Timeline()
        self.trace = Trace()
        self.scripts = Scripts(random)
        self.wishes = Wishes(seed)
        self.ledger = Ledger()
        self.machinery = Machinery(self.timeline, random, self.trace, self.ledger, self.scripts)
        self.network = Network(self.timeline, random, self.trace)
        self.disk = Disk(self.timeline, ProcessClock(self.timeline), random, self.trace)
        self.failure: Exception | None = None
        self.steps = 0
        shells = shells or Shells()
        bare, full = random.choice(
            (("kestrel.example", "kestrel.example"), ("manager@example", "manager@example/m"))
        )
        if standbys is None:
            leased = random.random() < self.settings.leased_share
            standbys = random.randint(0, self.settings.standbys_max) if leased else -1
        self.managers = self._managers(full, standbys, shells)
        if random.random() < 0.5:
            self.network.exclusive.add(full)
        if "@" not in full and random.random() < 0.5:
            self.network.untold.add(full)
        self.workers = [
            self._worker(i, bare, shells)
            for i in range(random.randint(self.settings.workers_min, self.settings.workers_max))
        ]
        self.user_hosts = self._users(bare, plans)
        self.users = [host.user for host in self.user_hosts]
        kinds, weather = faults if faults is not None else draw_kinds(random)
        self.faults = Faults(self, random, kinds, weather)
        self.checkers = Checkers(self)

    def _managers(self, address: str, standbys: int, shells: Shells) -> list[ManagerHost]:
        """Machines that can be the manager; they share address, settings and disk."""
        settings = ManagerSettings(
            scheduler=self.settings.scheduler,
            access=AccessRules.of(admins=("user0@example",)),
            store_retry_s=0.5,
            wait_s_max=10.0,
        )
        lease = None if standbys < 0 else self.settings.lease
        return [
            ManagerHost(
                self.machinery,
                self.network,
                address,
                f"host{i}",
                self.disk,
                settings,
                shells,
                self._failed,
                lease,
            )
            for i in range(1 + max(0, standbys))
        ]

    @property
    def manager(self) -> ManagerHost:
        """The machine whose manager may write now; the first one if there is none."""
        epoch = self.disk.store.epoch
        found = (h for h in self.managers if h.manager is not None and h.manager.epoch == epoch)
        return next(found, self.managers[0])

    def _worker(self, number: int, manager: str, shells: Shells) -> WorkerHost:
        random, settings = self.random, self.settings
        tags = list(TAGS) if number == 0 else [t for t in TAGS if random.random() < 0.5]
        slots = settings.slots_max if number == 0 else random.randint(1, settings.slots_max)
        address = random.choice((f"worker@example/{number}", f"worker{number}@example/main"))
        return WorkerHost(
            self.machinery,
            self.network,
            address,
            worker_settings(
                manager,
                slots,
                tags,
                queued_max=random.choice(settings.queued_max),
                finished_max=random.choice(settings.finished_max),
            ),
            shells,
            lambda: self.wishes.users(number),
        )

    def _users(
        self, manager: str, plans: Callable[[Random, Scripts], list[list[JobPlan]]] | None
    ) -> list[UserHost]:
        random, settings = self.random, self.settings
        if plans is not None:
            chosen = plans(random, self.scripts)
        else:
            chosen = [
                [
                    draw_plan(random, self.scripts, f"u{u}j{j}", settings.slots_max)
                    for j in range(random.randint(1, settings.jobs_max))
                ]
                for u in range(random.randint(1, settings.users_max))
            ]
            addresses = [worker.address for worker in self.workers]
            for plan in (plan for user_plans in chosen for plan in user_plans):
                plan.message = msgspec.structs.replace(plan.message, workers=self.wishes.workers(addresses))
        return [
            UserHost(self.machinery, self.network, f"user{u}@example/main", manager, user_plans)
            for u, user_plans in enumerate(chosen)
        ]

    def nodes(self) -> list[Node]:
        """All machines."""
        return [*self.managers, *self.workers, *self.user_hosts]

    def note(self, what: str, *fields: object) -> None:
        """Write into the history's log."""
        self.trace.add(self.timeline.now, what, *fields)

    def _failed(self, problem: Exception) -> None:
        self.failure = problem

    # --- running ------------------------------------------------------------------------------------

    def run(self) -> None:
        """Play the history. Raises `BrokenLawError`, or whatever broke."""
        self.begin()
        self.run_until(self.settings.faults_s)
        self.conclude()

    def conclude(self) -> None:
        """Heal everything, wait for the end of everything, and judge."""
        self.faults.heal()
        self.run_until(
            self.timeline.now + self.settings.liveness_s, lambda: all(u.finished for u in self.users)
        )
        self.checkers.endings.everything_ended()
        self.run_until(self.timeline.now + self.settings.settle_s, self.checkers.endings.settled)
        self.checkers.endings.at_end()

    def begin(self) -> None:
        """Switch everything on, and let the faults come."""
        random = self.random
        later = self.timeline.call_later
        for manager in self.managers:
            later(random.uniform(0.0, 2.0), manager.start)
        for worker in self.workers:
            later(random.uniform(0.0, 4.0), worker.start)
        for host in self.user_hosts:
            later(random.uniform(0.0, 2.0), host.link.connect)
            for plan in host.user.plans:
                at = random.uniform(0.0, self.settings.submit_s)
                later(at, lambda user=host.user, plan=plan: user.submit(plan))  # type: ignore[misc]
            for _ in range(random.randint(0, self.settings.questions_max)):
                question = draw_question(random)
                ask = host.user.say if isinstance(question, str) else host.user.ask
                at = random.uniform(0.0, self.settings.faults_s)
                later(at, lambda ask=ask, question=question: ask(question))  # type: ignore[misc]
        later(1.0, self.faults.begin)

    def run_until(self, until: float, reached: Callable[[], bool] | None = None) -> None:
        """Go on to an instant, or until something is reached."""
        end = self.timeline.call_later(max(0.0, until - self.timeline.now), lambda: None)
        check_every = self.settings.check_every
        while end.callback is not None:
            self.timeline.step()
            self.steps += 1
            if self.failure is not None:
                raise self.failure
            if self.steps % check_every == 0:
                self.checkers.standing.after_steps()
                if reached is not None and reached():
                    break
            if self.steps > self.settings.steps_max:
                raise BrokenLawError(
                    "storm", f"more than {self.settings.steps_max} steps: something runs in circles"
                )
        end.cancel()


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one seed went."""

    seed: int
    world: World
    problem: Exception | None

    @property
    def ok(self) -> bool:
        return self.problem is None

    def story(self, last: int = 60) -> str:
        """What went wrong, and the end of the log."""
        lines = [f"seed {self.seed}: {type(self.problem).__name__}: {self.problem}"]
        lines += self.world.trace.lines(last)
        return "\n".join(lines)


def run_seed(seed: int, settings: WorldSettings | None = None, shells: Shells | None = None) -> Outcome:
    """Play and judge one seed; the outcome carries the problem instead of raising it."""
    return play(World(seed, settings, shells))


def play(world: World) -> Outcome:
    """Play and judge a world that was built already."""
    problem: Exception | None = None
    with quiet_logs():
        try:
            world.run()
        except Exception as raised:  # noqa: BLE001 (the boundary of a history: whatever broke is its outcome)
            problem = raised
    return Outcome(world.seed, world, problem)


@contextmanager
def quiet_logs() -> Iterator[None]:
    """Histories are full of things that a log would warn of."""
    logger = logging.getLogger("kestrel")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)
