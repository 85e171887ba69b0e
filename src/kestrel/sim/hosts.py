"""The machines of a simulated world: a manager, workers and users, each with its lives.

A host keeps what survives a crash (the disk, the spool, the address) and makes the production shell
anew for each life. Called by the world and the faults; nothing here decides when something happens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kestrel.manager.manager import Manager
from kestrel.manager.settings import ManagerSettings
from kestrel.protocol import messages as m
from kestrel.sim.clock import ProcessClock, Timeline
from kestrel.sim.launcher import Machinery, SimLauncher
from kestrel.sim.network import Link, Network
from kestrel.sim.storage import Disk, StorePort
from kestrel.worker.agent import WorkerAgent
from kestrel.worker.settings import WorkerSettings
from kestrel.worker.spool import MemorySpool


@dataclass(frozen=True, slots=True)
class Shells:
    """The classes that are run. Tests put broken ones here to see the checkers fail."""

    manager: type[Manager] = Manager
    agent: type[WorkerAgent] = WorkerAgent
    port: type[StorePort] = StorePort


class Node:
    """What every machine has: a link, and a clock for each life."""

    def __init__(self, machinery: Machinery, network: Network, address: str) -> None:
        self.machinery = machinery
        self.network = network
        self.address = address
        self.lives = 0
        self.clock = self._new_clock()
        self.link = Link(network, address, self.clock)

    @property
    def timeline(self) -> Timeline:
        return self.machinery.timeline

    @property
    def alive(self) -> bool:
        return self.lives > 0 and not self.clock.dead

    def note(self, what: str, *fields: object) -> None:
        """Write into the history's log."""
        self.machinery.trace.add(self.timeline.now, what, self.address, *fields)

    def _new_clock(self) -> ProcessClock:
        random = self.machinery.random
        return ProcessClock(
            self.timeline,
            origin=float(random.randint(0, 1_000_000)),
            wall_offset_s=random.choice((0.0, 0.0, random.uniform(-100.0, 100.0))),
        )

    def _begin_life(self) -> None:
        self.lives += 1
        if self.lives > 1:
            self.clock = self._new_clock()
            self.link = Link(self.network, self.address, self.clock)
        self.note("start", self.lives)

    def _end_life(self) -> None:
        self.note("end", self.lives)
        self.clock.kill()
        self.link.close()


class ManagerHost(Node):
    """The manager's machine, with the disk."""

    def __init__(
        self,
        machinery: Machinery,
        network: Network,
        address: str,
        disk: Disk,
        settings: ManagerSettings,
        shells: Shells,
        on_failed: Callable[[Exception], None],
    ) -> None:
        super().__init__(machinery, network, address)
        self.disk = disk
        self.manager: Manager | None = None
        self.settings = settings
        self._shells = shells
        self._on_failed = on_failed
        self._port: StorePort | None = None

    def start(self) -> None:
        """A new life on the same disk."""
        if self.alive:
            return
        self._begin_life()
        self._port = self._shells.port(self.disk, self.clock)
        manager = self._shells.manager(self.clock, self.link, self._port, self.settings)
        manager.on_failed = self._on_failed
        self.link.attach(manager)
        manager.start()
        self.manager = manager
        self.clock.call_later(0.0, self.link.connect)

    def crash(self) -> None:
        """kill -9."""
        if not self.alive:
            return
        assert self._port is not None
        self._end_life()
        self._port.die()
        self.manager = None


class WorkerHost(Node):
    """A worker's machine, with its spool."""

    def __init__(
        self,
        machinery: Machinery,
        network: Network,
        address: str,
        settings: WorkerSettings,
        shells: Shells,
    ) -> None:
        super().__init__(machinery, network, address)
        self.settings = settings
        self.spool: MemorySpool | None = None
        self.agent: WorkerAgent | None = None
        self.launcher: SimLauncher | None = None
        self.drained = False
        """A user asked for it to be drained, and has not taken it back."""
        self._shells = shells

    def start(self) -> None:
        """A new life with the same spool."""
        if self.alive:
            return
        self._begin_life()
        if self.spool is None:
            self.spool = MemorySpool()
        else:
            self.spool.reopen()
        self.launcher = SimLauncher(
            self.machinery, self.address, self.settings.slots, self.clock, self._poisoned
        )
        agent = self._shells.agent(self.clock, self.link, self.launcher, self.spool, self.settings)
        agent.on_left = self._left
        self.launcher.attach(agent)
        self.link.attach(agent)
        self.agent = agent
        self.clock.call_later(0.0, self.link.connect)

    def crash(self, silently: bool = False) -> None:
        """kill -9; or (`silently`) the power fails, and nobody is told."""
        if not self.alive:
            return
        assert self.launcher is not None
        self.launcher.die()
        if silently:
            self.network.stall(self.link, True)
            self.note("end", self.lives, "silently")
            self.clock.kill()
        else:
            self._end_life()
        self.agent = None

    def _poisoned(self) -> None:
        self.note("poisoned")
        self.crash()
        self.timeline.call_later(self.machinery.random.uniform(0.5, 4.0), self.start)

    def leave(self, kill: bool) -> None:
        """SIGTERM: the worker finishes and goes; it is started again later."""
        if self.agent is not None and self.alive and not self.clock.suspended:
            self.note("leave", kill)
            self.agent.shutdown(kill=kill)

    def _left(self) -> None:
        """The service stops the loop after the call has returned."""
        self.clock.call_later(0.0, self._gone)

    def _gone(self) -> None:
        assert self.agent is not None
        self.agent.close()
        self.crash()
        self.timeline.call_later(self.machinery.random.uniform(0.5, 4.0), self.start)


def worker_settings(
    manager: str, slots: int, provides: Sequence[str], *, queued_max: int, finished_max: int
) -> WorkerSettings:
    """How simulated workers are set: like production, with small bounds."""
    return WorkerSettings(
        manager=manager,
        profile=m.Profile(os="Sim", cores=slots, slots=slots, provides=list(provides)),
        workdir="/sim",
        output_directory="/sim/out",
        queued_max=queued_max,
        finished_max=finished_max,
    )
