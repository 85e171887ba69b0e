"""The machines of a simulated world: managers, workers and users, each with its lives.

A host keeps what survives a crash (the disk, the spool, the address) and makes the production shell
anew for each life. Called by the world and the faults; nothing here decides when something happens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import msgspec

from kestrel.core.addresses import Pattern
from kestrel.core.execution_events import Finished
from kestrel.errors import EnvironmentProblem, StoreError
from kestrel.manager.jobs import terms_of
from kestrel.manager.leadership import Leadership, LeaseSettings
from kestrel.manager.manager import Manager
from kestrel.manager.settings import ManagerSettings
from kestrel.ports import FENCED, LeaseView, StoreContent
from kestrel.protocol import messages as m
from kestrel.sim.clock import ProcessClock, Timeline
from kestrel.sim.launcher import Health, Machinery, SimLauncher
from kestrel.sim.leasing import SimLeaseBook
from kestrel.sim.network import Link, Network
from kestrel.sim.storage import Disk, StorePort, Way
from kestrel.worker.agent import WorkerAgent
from kestrel.worker.settings import WorkerSettings
from kestrel.worker.spool import MemorySpool

OPEN_S = 0.3
"""Longest time that a manager needs to read its store."""
TAKE_OVER_S_MAX = 60.0
RELEASE_S_MAX = 3.0
"""Both as in `kestrel.manager.service`."""
NOTICED_S = 20.0
"""Longest time until a server, or a database, finds out that a machine lost its power."""


@dataclass(frozen=True, slots=True)
class Shells:
    """The classes that are run. Tests put broken ones here to see the checkers fail."""

    manager: type[Manager] = Manager
    agent: type[WorkerAgent] = WorkerAgent
    port: type[StorePort] = StorePort
    leadership: type[Leadership] = Leadership
    book: type[SimLeaseBook] = SimLeaseBook


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

    def _end_life_silently(self) -> None:
        """As when the power fails: the server finds out later."""
        self.note("end", self.lives, "silently")
        self.clock.kill()
        if self.link.session is not None:
            self.network.forget(self.link.session, self.machinery.random.uniform(0.5, NOTICED_S))


class ManagerHost(Node):
    """A machine that can be the manager of the pool, alone or with others on one database.

    Alone, it opens its store as it starts. With leases it stands by, acts when the lease is its own, and
    stands by again when it was replaced, as the command does. All of them have the same address.
    """

    def __init__(
        self,
        machinery: Machinery,
        network: Network,
        address: str,
        name: str,
        disk: Disk,
        settings: ManagerSettings,
        shells: Shells,
        on_failed: Callable[[Exception], None],
        lease: LeaseSettings | None = None,
    ) -> None:
        """`lease`: None if no other manager can have the store."""
        super().__init__(machinery, network, address)
        self.name = name
        self.disk = disk
        self.way = Way(disk)
        self.manager: Manager | None = None
        self.leadership: Leadership | None = None
        self.book: SimLeaseBook | None = None
        self.settings = settings
        self.on_taken: Callable[[ManagerHost, int, LeaseView], None] = _nobody_asks
        """Called at the instant in which it takes the lease, with the epoch and what it saw before."""
        self._lease = lease
        self._shells = shells
        self._on_failed = on_failed
        self._port: StorePort | None = None
        self._leaving = False

    def start(self) -> None:
        """A new life: a new process on the same machine."""
        if self.alive:
            return
        self._begin_life()
        self._leaving = False
        self.way.session = object()
        if self._lease is None:
            self._open(0)
            return
        self.book = book = self._shells.book(self.disk, self.clock, self.way)
        book.on_taken = lambda epoch, seen: self.on_taken(self, epoch, seen)
        self.leadership = leadership = self._shells.leadership(
            self.clock, book, self.name, self._lease, patience_s=self._lease.lease_s
        )
        leadership.on_taken = self._taken
        leadership.on_lost = self._lost
        leadership.on_renewed = self._renewed
        leadership.stand_by()

    def lapsed(self) -> bool:
        """Whether its manager must be silent."""
        return self.leadership is not None and self.leadership.lapsed()

    # --- the lease ----------------------------------------------------------------------------------

    def _taken(self, epoch: int) -> None:
        self.note("leads", self.name, epoch)
        self.clock.call_later(self.machinery.random.uniform(0.0, OPEN_S), lambda: self._open(epoch))

    def _lost(self, problem: StoreError) -> None:
        self.note("replaced", self.name)
        self.clock.call_later(0.0, self.hand_over)

    def _renewed(self) -> None:
        if self.manager is not None:
            self.manager.resume()

    # --- the manager --------------------------------------------------------------------------------

    def _open(self, epoch: int) -> None:
        """Read the store, and connect; the manager begins when it is connected."""
        if self._leaving:
            return
        port = self._shells.port(self.disk, self.clock, self.way, epoch)
        try:
            content = port.open(terms_of)
        except StoreError as problem:
            self.note("not_opened", self.name, problem.text)
            if self._lease is None:
                self.clock.call_later(1.0, lambda: self._open(epoch))
            else:
                self.hand_over()
            return
        self._port = port
        lapsed = None if self._lease is None else self.lapsed
        manager = self._shells.manager(self.clock, self.link, port, self.settings, lapsed=lapsed)
        manager.on_failed = self._failed
        self.link.attach(manager)
        self.link.on_first_up = lambda: self._begin(manager, content)
        self.link.on_conflict = self.hand_over
        self.link.connect()
        self.clock.call_later(TAKE_OVER_S_MAX, self._give_up)

    def _begin(self, manager: Manager, content: StoreContent) -> None:
        manager.start(content)
        self.manager = manager
        self.note("acts", self.name, manager.epoch)

    def _give_up(self) -> None:
        """The server has not let us in for so long that somebody else may have more luck."""
        if self.manager is None:
            self.note("gives_up", self.name)
            self.hand_over()

    def _failed(self, problem: Exception) -> None:
        """The manager cannot go on: being replaced is no failure of the history, all else is."""
        if isinstance(problem, StoreError) and problem.code == FENCED and self._lease is not None:
            self.note("fenced", self.name)
            self.clock.call_later(0.0, self.hand_over)
        else:
            self._on_failed(problem)

    def crash(self, silently: bool = False) -> None:
        """kill -9; or (`silently`) the power fails, and nobody is told."""
        if not self.alive:
            return
        if silently:
            self._end_life_silently()
            session = self.way.session
            self.timeline.call_later(
                self.machinery.random.uniform(0.5, NOTICED_S), lambda: self.way.end_session(session)
            )
        else:
            self._end_life()
            self.way.end_session(self.way.session)
        if self._port is not None:
            self._port.die()
        self.manager = self.leadership = self.book = self._port = None

    def hand_over(self) -> None:
        """SIGTERM, or the candidacy has ended: what `ManagerService.stop` does; then a new life begins."""
        if not self.alive or self.clock.suspended or self._leaving:
            return
        self._leaving = True
        self.note("leaves", self.name)
        if self.manager is not None:
            self.manager.close()
        self.link.close()
        if self._port is not None:
            self._port.close()
        if self.leadership is None:
            self._left()
        else:
            self.clock.call_later(RELEASE_S_MAX, self._left)
            self.leadership.release(lambda: self.clock.call_later(0.0, self._left))

    def _left(self) -> None:
        self.crash()
        self.timeline.call_later(self.machinery.random.uniform(0.2, 2.0), self.start)


class SimSpool(MemorySpool):
    """A spool whose disk cannot be written now and then."""

    def __init__(self) -> None:
        self.unwritable = False
        super().__init__()

    def keep(self, finished: Sequence[Finished]) -> None:
        self._need_room()
        super().keep(finished)

    def forget(self, attempts: Sequence[int]) -> None:
        self._need_room()
        super().forget(attempts)

    def _need_room(self) -> None:
        if self.unwritable:
            raise EnvironmentProblem("the spool cannot be written", hint="make room on this machine")


class WorkerHost(Node):
    """A worker's machine, with its spool."""

    def __init__(
        self,
        machinery: Machinery,
        network: Network,
        address: str,
        settings: WorkerSettings,
        shells: Shells,
        wish: Callable[[], list[str]],
    ) -> None:
        """`wish`: whose jobs its owner takes in the next life (patterns; empty: everybody's)."""
        super().__init__(machinery, network, address)
        self.settings = settings
        self._wish = wish
        self.spool: SimSpool | None = None
        self.health = Health()
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
        users = self._wish()
        self.settings = replace(
            self.settings,
            owner=replace(self.settings.owner, users=tuple(map(Pattern.parse, users))),
            profile=msgspec.structs.replace(self.settings.profile, users=users),
        )
        if self.spool is None:
            self.spool = SimSpool()
        else:
            self.spool.reopen()
        self.launcher = SimLauncher(
            self.machinery, self.address, self.settings.slots, self.clock, self._poisoned, self.health
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
            self._end_life_silently()
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


def _nobody_asks(host: ManagerHost, epoch: int, seen: LeaseView) -> None:
    """Nobody wants to know."""
