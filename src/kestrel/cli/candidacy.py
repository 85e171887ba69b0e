"""One manager process through all its candidacies: it stands by, is active, is replaced, stands by again.

Each candidacy has a store, a service and a connection of its own, so nothing of a life that ended can
reach the next one. It tells every change of state, once. It must never hide an error that no waiting
mends, and never keep the lease when it goes. Called by `kestrel manager`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass

from kestrel.cli.output import Output
from kestrel.cli.signals import on_stop_signals
from kestrel.errors import EnvironmentProblem, KestrelError
from kestrel.manager.access import home_of
from kestrel.manager.leadership import LeaseSettings
from kestrel.manager.service import ManagerService, StreamMaker, run_until
from kestrel.manager.settings import ManagerSettings
from kestrel.ports import FENCED
from kestrel.store.places import make_store

CONFLICT = "conflict"
"""Code of the problem when another connection has taken our address."""
FIRST_CONTACT_S_MAX = 15.0
"""A database that was never reached for so long is taken for a wrong address, not for an outage."""
AGAIN_S = 0.5
"""Before the next candidacy, where the last one ended with a problem that may pass."""
SHORT_LIFE_S = 10.0
SHORT_LIVES_MAX = 5
"""After so many lives in a row that others cut short, waiting does not mend it."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """What every candidacy of this process has in common."""

    place: str
    """Of the store."""
    address: str
    """Of the manager."""
    settings: ManagerSettings
    make_stream: StreamMaker
    lease: LeaseSettings
    standby: bool
    """Wait while another manager has the store, instead of giving up."""


class States:
    """Tells people and programs what the manager is, each change once."""

    def __init__(self, out: Output, candidate: Candidate) -> None:
        self._out = out
        self._pool = candidate.settings.pool
        self._access = candidate.settings.access
        self._home = home_of(candidate.address)
        self._told = ""
        self.settled = False
        """Whether it has stood by or been active: then what is said of the places is right."""

    def standby(self, holder: str) -> None:
        """Another manager, `holder`, has the store."""
        if self._told == f"standby {holder}":
            return
        self._told = f"standby {holder}"
        self._out.event({"state": "standby", "pool": self._pool, "holder": holder})
        self._out.line(f"Standing by: {holder} has the store of pool {self._pool!r}.")
        self._settle()

    def active(self, address: str, epoch: int) -> None:
        """It is up."""
        self._told = "active"
        access = self._access.as_words(self._home)
        self._out.event(
            {"state": "active", "pool": self._pool, "address": address, "epoch": epoch, "access": access}
        )
        self._out.line(f"The manager of pool {self._pool!r} is up as {address}.")
        self._settle()

    def _settle(self) -> None:
        """It says once who may do what."""
        if not self.settled:
            self._out.line(self._access.sentence(self._home))
        self.settled = True

    def replaced(self) -> None:
        """It was active, and another one is now."""
        self._told = "replaced"
        self._out.event({"state": "replaced", "pool": self._pool})
        self._out.line(f"Another manager of pool {self._pool!r} has taken over.")

    def trouble(self, problem: KestrelError) -> None:
        """Something keeps it from standing by; it is tried again."""
        if self._told != problem.text:
            self._told = problem.text
            self._out.warn(f"{problem.text}; trying again")


async def serve_until_stopped(candidate: Candidate, out: Output) -> None:
    """Be a manager until SIGINT or SIGTERM. Raises `KestrelError` for what waiting does not mend.

    Before it ever stood by or was active, all problems are told: a wrong address is no outage.
    """
    stopped = asyncio.Event()
    on_stop_signals(stopped.set)
    states = States(out, candidate)
    short_lives = 0
    while not stopped.is_set():
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            await _one_candidacy(candidate, states, stopped)
        except EnvironmentProblem as problem:
            if not candidate.standby:
                raise
            if problem.code in (FENCED, CONFLICT):
                short_lives = short_lives + 1 if loop.time() - began < SHORT_LIFE_S else 0
                if short_lives >= SHORT_LIVES_MAX:
                    raise
                states.replaced()
            elif problem.retry and states.settled:
                states.trouble(problem)
            else:
                raise
            await _pause(stopped)


async def _one_candidacy(candidate: Candidate, states: States, stopped: asyncio.Event) -> None:
    """From standing by to the end; returns when it was stopped, raises why it ended otherwise."""
    loop = asyncio.get_running_loop()
    store = make_store(candidate.place, loop.call_soon_threadsafe, pool=candidate.settings.pool)
    service = ManagerService(candidate.make_stream, store, candidate.settings, candidate.lease)
    try:
        if candidate.standby:
            limit_s = None if states.settled else FIRST_CONTACT_S_MAX
            waiting = service.stand_by(states.standby, first_contact_s_max=limit_s)
            if not await _unless(stopped, waiting):
                return
        if not await _unless(stopped, service.start()):
            return
        manager = service.manager
        assert manager is not None
        states.active(manager.address, manager.epoch)
        await run_until(service, stopped.wait)
    finally:
        await service.stop()


async def _unless(stopped: asyncio.Event, work: Awaitable[object]) -> bool:
    """Whether the work was done before we were stopped; if not, it is cancelled. Raises what it raises."""
    ends: list[asyncio.Future[object]] = [
        asyncio.ensure_future(work),
        asyncio.ensure_future(stopped.wait()),
    ]
    try:
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if ends[0].done():
            ends[0].result()
        return ends[0].done()
    finally:
        for end in ends:
            end.cancel()
        await asyncio.gather(*ends, return_exceptions=True)


async def _pause(stopped: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(AGAIN_S):
            await stopped.wait()
    except TimeoutError:
        return
