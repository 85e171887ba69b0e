"""What goes wrong in a simulated world, and when: each seed draws its own subset of faults and rates.

A swarm of different histories finds more than one history with everything in it, for faults hide each
other. Every fault heals by itself sooner or later, and `heal` ends all of them. Called by the world.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from random import Random
from typing import TYPE_CHECKING

from kestrel.sim.hosts import Node, WorkerHost

if TYPE_CHECKING:
    from kestrel.sim.world import World


class Fault(Enum):
    """Kinds of faults that strike at random instants."""

    WORKER_CRASH = "worker_crash"
    WORKER_POWER = "worker_power"
    """It dies without a word."""
    WORKER_SUSPENDED = "worker_suspended"
    WORKER_CABLE = "worker_cable"
    """Its connection is silent for a while, then goes on or breaks."""
    WORKER_LEAVES = "worker_leaves"
    LINK_BREAK = "link_break"
    """Of anyone, the manager and the users too."""
    MANAGER_CABLE = "manager_cable"
    MANAGER_CRASH = "manager_crash"
    SERVER_RESTART = "server_restart"
    LAUNCHER_LOSS = "launcher_loss"
    DRAIN = "drain"
    WALL_JUMP = "wall_jump"
    PARTITION = "partition"
    """A worker cannot reach the server at all for a while, and knows it."""


class Weather(Enum):
    """Conditions that hold for the whole time of faults."""

    SPIKES = "spikes"
    DUPLICATES = "duplicates"
    DISK_ERRORS = "disk_errors"
    SLOW_DISK = "slow_disk"


class Faults:
    """Strikes until it is told to heal."""

    def __init__(
        self, world: World, random: Random, kinds: dict[Fault, float], weather: frozenset[Weather]
    ) -> None:
        """`kinds`: mean seconds between two faults of the kind."""
        self.kinds = kinds
        self.weather = weather
        self.struck: dict[str, int] = {}
        self._world = world
        self._random = random
        self._healed = False
        self._actions: dict[Fault, Callable[[], None]] = {
            Fault.WORKER_CRASH: self._worker_crash,
            Fault.WORKER_POWER: self._worker_power,
            Fault.WORKER_SUSPENDED: self._worker_suspended,
            Fault.WORKER_CABLE: self._worker_cable,
            Fault.WORKER_LEAVES: self._worker_leaves,
            Fault.LINK_BREAK: self._link_break,
            Fault.MANAGER_CABLE: self._manager_cable,
            Fault.MANAGER_CRASH: self._manager_crash,
            Fault.SERVER_RESTART: self._server_restart,
            Fault.LAUNCHER_LOSS: self._launcher_loss,
            Fault.DRAIN: self._drain,
            Fault.WALL_JUMP: self._wall_jump,
            Fault.PARTITION: self._partition,
        }

    def begin(self) -> None:
        """From now on things go wrong."""
        network, disk = self._world.network.settings, self._world.disk.settings
        if Weather.SPIKES in self.weather:
            network.spike_probability = self._random.choice((0.002, 0.02))
            network.spike_s = self._random.choice((0.5, 5.0))
        if Weather.DUPLICATES in self.weather:
            network.duplicate_probability = 0.05
        if Weather.DISK_ERRORS in self.weather:
            disk.failure_probability = self._random.choice((0.01, 0.2))
        if Weather.SLOW_DISK in self.weather:
            disk.slow_probability = 0.05
        for fault, mean_s in self.kinds.items():
            self._next(fault, mean_s)

    def _next(self, fault: Fault, mean_s: float) -> None:
        self._world.timeline.call_later(
            self._random.expovariate(1.0 / mean_s), lambda: self._strike(fault, mean_s)
        )

    def _strike(self, fault: Fault, mean_s: float) -> None:
        if self._healed:
            return
        self.struck[fault.value] = self.struck.get(fault.value, 0) + 1
        self._world.note("fault", fault.value)
        self._actions[fault]()
        self._next(fault, mean_s)

    def heal(self) -> None:
        """Nothing goes wrong any more, and everything that was wrong ends now."""
        self._healed = True
        world = self._world
        world.note("healed")
        network, disk = world.network.settings, world.disk.settings
        network.spike_probability = network.duplicate_probability = 0.0
        disk.failure_probability = disk.slow_probability = 0.0
        world.network.start_server()
        for node in world.nodes():
            node.link.refused = False
            node.clock.resume()
            world.network.stall(node.link, False)
        world.manager.start()
        for worker in world.workers:
            worker.start()
            if worker.drained:
                worker.drained = False
                world.users[0].drain(worker.address, undo=True)

    # --- each kind --------------------------------------------------------------------------------

    def _later(self, low_s: float, high_s: float, call: Callable[[], None]) -> None:
        """A fault's own end; not needed any more once everything is healed."""

        def unless_healed() -> None:
            if not self._healed:
                call()

        self._world.timeline.call_later(self._random.uniform(low_s, high_s), unless_healed)

    def _worker(self) -> WorkerHost:
        return self._random.choice(self._world.workers)

    def _worker_crash(self) -> None:
        worker = self._worker()
        worker.crash()
        self._later(0.2, 12.0, worker.start)

    def _worker_power(self) -> None:
        worker = self._worker()
        worker.crash(silently=True)
        self._later(0.2, 25.0, worker.start)

    def _worker_suspended(self) -> None:
        worker = self._worker()
        worker.clock.suspend()
        worker.note("suspend")
        clock = worker.clock
        self._later(0.5, 25.0, clock.resume)

    def _worker_cable(self) -> None:
        self._cable(self._worker())

    def _manager_cable(self) -> None:
        self._cable(self._world.manager)

    def _cable(self, node: Node) -> None:
        link = node.link
        self._world.network.stall(link, True)
        if self._random.random() < 0.5:
            self._later(0.5, 20.0, lambda: self._world.network.stall(link, False))
        else:
            self._later(0.5, 20.0, lambda: self._world.network.break_session(link))

    def _worker_leaves(self) -> None:
        self._worker().leave(kill=self._random.random() < 0.3)

    def _link_break(self) -> None:
        node = self._random.choice(self._world.nodes())
        self._world.network.break_session(
            node.link,
            server_notices_s=self._random.choice((0.0, 0.0, self._random.uniform(0.0, 20.0))),
            node_notices_s=self._random.choice((0.0, 0.0, self._random.uniform(0.0, 5.0))),
        )

    def _manager_crash(self) -> None:
        self._world.manager.crash()
        self._later(0.1, 6.0, self._world.manager.start)

    def _server_restart(self) -> None:
        network = self._world.network
        if network.server_up:
            network.stop_server()
            self._later(0.1, 6.0, network.start_server)

    def _launcher_loss(self) -> None:
        launcher = self._worker().launcher
        if launcher is not None:
            launcher.fail()

    def _drain(self) -> None:
        worker = self._worker()
        worker.drained = not worker.drained
        self._world.users[0].drain(worker.address, undo=not worker.drained)

    def _wall_jump(self) -> None:
        node = self._random.choice(self._world.nodes())
        node.clock.wall_offset_s += self._random.choice((-3600.0, 3600.0, self._random.uniform(-5.0, 5.0)))

    def _partition(self) -> None:
        worker = self._worker()
        worker.link.refused = True
        self._world.network.break_session(worker.link)
        link = worker.link
        self._later(1.0, 20.0, lambda: setattr(link, "refused", False))


def draw_kinds(random: Random) -> tuple[dict[Fault, float], frozenset[Weather]]:
    """A swarm member: which faults, how often (mean seconds between two), and which weather."""
    share = random.choice((0.1, 0.3, 0.6))
    kinds = {fault: random.choice((4.0, 10.0, 25.0)) for fault in Fault if random.random() < share}
    weather = frozenset(w for w in Weather if random.random() < share)
    return kinds, weather
