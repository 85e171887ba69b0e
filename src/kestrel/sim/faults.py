"""What goes wrong in a simulated world, and when: each seed draws its own subset of faults and rates.

A swarm of different histories finds more than one history with everything in it, for faults hide each
other. Every fault heals by itself sooner or later, and `heal` ends all of them. Called by the world.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from random import Random
from typing import TYPE_CHECKING

from kestrel.sim.hosts import ManagerHost, Node, WorkerHost

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
    WORKER_BAD = "worker_bad"
    """It fails everything for a while."""
    WORKER_SLOW = "worker_slow"
    """Everything takes much longer on it for a while."""
    SPOOL_UNWRITABLE = "spool_unwritable"
    LINK_BREAK = "link_break"
    """Of anyone, the manager and the users too."""
    MANAGER_CABLE = "manager_cable"
    MANAGER_CRASH = "manager_crash"
    MANAGER_POWER = "manager_power"
    MANAGER_STOPPED = "manager_stopped"
    """SIGSTOP, and SIGCONT later: sockets and sessions stay open meanwhile."""
    MANAGER_HANDOVER = "manager_handover"
    """It is stopped in order and started again, as for an upgrade."""
    STORE_CUT = "store_cut"
    """One manager cannot reach the database; everything else works."""
    STORE_OUTAGE = "store_outage"
    """Nobody can reach it."""
    DISK_FULL = "disk_full"
    """It is nearly full, then full perhaps, for a few seconds or a minute."""
    SERVER_RESTART = "server_restart"
    LAUNCHER_LOSS = "launcher_loss"
    DRAIN = "drain"
    WALL_JUMP = "wall_jump"
    NODE_SLEEPS = "node_sleeps"
    """Anyone's machine is suspended: its monotonic clock stands still, the wall clock goes on."""
    PARTITION = "partition"
    """A worker cannot reach the server at all for a while, and knows it."""
    SILENCE = "silence"
    """Any part of the nodes is cut off from the server at once, and nobody is told."""


class Weather(Enum):
    """Conditions that hold for the whole time of faults."""

    SPIKES = "spikes"
    DUPLICATES = "duplicates"
    DISK_ERRORS = "disk_errors"
    SLOW_DISK = "slow_disk"
    LOST_ANSWERS = "lost_answers"
    """Units, and questions about the lease, are carried out, and the one who asked is told that they
    failed."""


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
            Fault.WORKER_BAD: self._worker_bad,
            Fault.WORKER_SLOW: self._worker_slow,
            Fault.SPOOL_UNWRITABLE: self._spool_unwritable,
            Fault.LINK_BREAK: self._link_break,
            Fault.MANAGER_CABLE: self._manager_cable,
            Fault.MANAGER_CRASH: self._manager_crash,
            Fault.MANAGER_POWER: self._manager_power,
            Fault.MANAGER_STOPPED: self._manager_stopped,
            Fault.MANAGER_HANDOVER: self._manager_handover,
            Fault.STORE_CUT: self._store_cut,
            Fault.STORE_OUTAGE: self._store_outage,
            Fault.DISK_FULL: self._disk_full,
            Fault.SERVER_RESTART: self._server_restart,
            Fault.LAUNCHER_LOSS: self._launcher_loss,
            Fault.DRAIN: self._drain,
            Fault.WALL_JUMP: self._wall_jump,
            Fault.NODE_SLEEPS: self._node_sleeps,
            Fault.PARTITION: self._partition,
            Fault.SILENCE: self._silence,
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
        if Weather.LOST_ANSWERS in self.weather:
            disk.lost_probability = self._random.choice((0.02, 0.2))
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
        disk.failure_probability = disk.slow_probability = disk.lost_probability = 0.0
        disk.short = disk.full = False
        world.disk.go_on()
        world.network.start_server()
        world.network.forget_dead()
        for node in world.nodes():
            node.link.refused = False
            node.clock.resume()
            world.network.stall(node.link, False)
        for manager in world.managers:
            manager.way.cut = False
            manager.start()
        for worker in world.workers:
            self._heal_worker(worker)

    def _heal_worker(self, worker: WorkerHost) -> None:
        worker.health.bad, worker.health.slowness = False, 1.0
        if worker.spool is not None:
            worker.spool.unwritable = False
        worker.start()
        if worker.drained:
            worker.drained = False
            self._world.users[0].drain(worker.address, undo=True)

    # --- each kind --------------------------------------------------------------------------------

    def _later(self, low_s: float, high_s: float, call: Callable[[], None]) -> None:
        """A fault's own end; not needed any more once everything is healed."""

        def unless_healed() -> None:
            if not self._healed:
                call()

        self._world.timeline.call_later(self._random.uniform(low_s, high_s), unless_healed)

    def _worker(self) -> WorkerHost:
        return self._random.choice(self._world.workers)

    def _manager(self) -> ManagerHost:
        """Most often the active one."""
        if self._random.random() < 0.75:
            return self._world.manager
        return self._random.choice(self._world.managers)

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
        self._cable(self._manager())

    def _cable(self, node: Node) -> None:
        link, session = node.link, node.link.session
        self._world.network.stall(link, True)
        if self._random.random() < 0.5 or session is None:
            self._later(0.5, 20.0, lambda: self._world.network.stall(link, False))
        else:
            self._later(0.5, 20.0, lambda: self._world.network.break_session(link))

    def _silence(self) -> None:
        nodes = [node for node in self._world.nodes() if self._random.random() < 0.5]
        links = [node.link for node in nodes]
        for link in links:
            link.refused = True
            self._world.network.stall(link, True)

        def end() -> None:
            for link in links:
                link.refused = False
                self._world.network.stall(link, False)

        self._later(0.5, 20.0, end)

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
        manager = self._manager()
        manager.crash()
        self._later(0.1, 6.0, manager.start)

    def _manager_power(self) -> None:
        manager = self._manager()
        manager.crash(silently=True)
        self._later(0.2, 20.0, manager.start)

    def _manager_stopped(self) -> None:
        manager = self._manager()
        manager.clock.suspend()
        manager.note("suspend", manager.name)
        clock = manager.clock
        self._later(0.2, 25.0, clock.resume)

    def _manager_handover(self) -> None:
        self._manager().hand_over()

    def _store_cut(self) -> None:
        way = self._manager().way
        if way.cut:
            return
        way.cut = True
        session = way.session
        self._world.note("store_cut")
        self._later(0.5, 20.0, lambda: way.end_session(session))
        self._later(0.5, 20.0, lambda: setattr(way, "cut", False))

    def _store_outage(self) -> None:
        disk = self._world.disk
        if not disk.settings.down:
            disk.stop()
            self._later(0.1, self._random.choice((3.0, 15.0)), disk.go_on)

    def _disk_full(self) -> None:
        disk = self._world.disk.settings
        if disk.short:
            return
        disk.short = True
        if self._random.random() < 0.7:
            self._later(0.1, 5.0, lambda: setattr(disk, "full", disk.short))

        def room() -> None:
            disk.short = disk.full = False

        self._later(1.0, self._random.choice((5.0, 20.0, 60.0)), room)

    def _server_restart(self) -> None:
        network = self._world.network
        if network.server_up:
            network.stop_server()
            self._later(0.1, 6.0, network.start_server)

    def _worker_bad(self) -> None:
        health = self._worker().health
        health.bad = True
        self._later(0.5, 30.0, lambda: setattr(health, "bad", False))

    def _worker_slow(self) -> None:
        health = self._worker().health
        health.slowness = self._random.choice((3.0, 20.0))
        self._later(0.5, 20.0, lambda: setattr(health, "slowness", 1.0))

    def _spool_unwritable(self) -> None:
        spool = self._worker().spool
        if spool is not None:
            spool.unwritable = True
            self._later(0.5, 20.0, lambda: setattr(spool, "unwritable", False))

    def _node_sleeps(self) -> None:
        node = self._random.choice(self._world.nodes())
        node.clock.suspend(asleep=True)
        node.note("asleep")
        clock = node.clock
        self._later(0.5, 25.0, clock.resume)

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
