"""What is done to whom, and the supervisor that makes it good again.

Kinds are dealt from a shuffled deck, so that each occurs however short the run is; targets and times are
drawn by seed. Everything is done by pid. Called by `chaos.run`, on its event loop.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, replace

from chaos.checker import Strike
from realpool.pool import RealPool
from realpool.postgres import PrivatePostgres
from realpool.processes import Process, now

DECK = {
    "kill worker": 3,
    "kill active": 2,
    "kill standby": 1,
    "kill server": 1,
    "kill postgres": 1,
    "stop worker": 2,
    "stop active": 1,
    "stop standby": 1,
    "stop server": 1,
    "stop postgres": 1,
}
"""How often each kind comes in one deck."""
ONLY_POSTGRES = {"kill standby", "kill postgres", "stop standby", "stop postgres"}
LOOK_S = 0.2
"""How often the supervisor looks for processes that ended by themselves."""


@dataclass(frozen=True, slots=True)
class ChaosPlan:
    """How often, and how long."""

    every_s: float = 4.0
    down_s: tuple[float, float] = (0.3, 2.0)
    """A killed process is started again after so long."""
    stop_s: tuple[float, float] = (1.0, 4.0)
    """A stopped one is continued after so long …"""
    long_stop_s: float = 8.0
    """… or, every third time, after this: longer than the lease."""
    store: str = "postgres"
    only: str = ""
    """Kinds that contain this; empty: all."""

    def deck(self) -> list[str]:
        """One deck, in order."""
        kinds = [kind for kind in DECK if self.only in kind]
        if self.store != "postgres":
            kinds = [kind for kind in kinds if kind not in ONLY_POSTGRES]
        return [kind for kind in kinds for _ in range(DECK[kind])]


@dataclass(frozen=True, slots=True)
class Death:
    """A process that ended although nobody struck it."""

    name: str
    at: float
    exit_code: int | None
    log: str


class Chaos:
    """Strikes from `run` until it is cancelled; `mend` makes everything good again."""

    def __init__(self, pool: RealPool, plan: ChaosPlan, seed: int) -> None:
        self.strikes: list[Strike] = []
        self.deaths: list[Death] = []
        self._pool = pool
        self._plan = plan
        self._random = random.Random(seed)
        self._deck: list[str] = []
        self._stops = 0
        self._struck: set[str] = set()
        """Names of those that are down or held at the moment."""
        self._mending: set[asyncio.Task[None]] = set()
        self._hurry = asyncio.Event()

    async def run(self) -> None:
        """Strike every few seconds, until cancelled."""
        while True:
            await asyncio.sleep(self._plan.every_s * self._random.uniform(0.5, 1.5))
            await self._strike()

    async def supervise(self) -> None:
        """Start again what ended by itself, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            for process in self._pool.processes:
                if not process.running and process.name not in self._struck:
                    self.deaths.append(Death(process.name, now(), process.exit_code, process.log()))
                    await asyncio.to_thread(process.start)

    async def mend(self) -> None:
        """Have everything run again, now."""
        self._hurry.set()
        while self._mending:
            await asyncio.gather(*self._mending)

    # --- one strike -----------------------------------------------------------------------------------

    async def _strike(self) -> None:
        kind = self._next_kind()
        verb, _, whom = kind.partition(" ")
        target = self._target(whom)
        if target is None:
            self._deck.insert(0, kind)  # nobody to strike at the moment: later
            return
        name = "postgres" if isinstance(target, PrivatePostgres) else target.name
        self._struck.add(name)
        number = len(self.strikes)
        self.strikes.append(Strike(kind, name, now(), now()))
        await asyncio.to_thread(target.kill if verb == "kill" else target.hold)
        delay = self._random.uniform(*self._plan.down_s) if verb == "kill" else self._stop_s()
        task = asyncio.create_task(self._mend_later(verb, target, name, number, delay), name=f"mend {name}")
        self._mending.add(task)
        task.add_done_callback(self._mending.discard)

    async def _mend_later(
        self, verb: str, target: Process | PrivatePostgres, name: str, number: int, delay: float
    ) -> None:
        try:
            await asyncio.wait_for(self._hurry.wait(), delay)
        except TimeoutError:
            pass
        await asyncio.to_thread(target.start if verb == "kill" else target.go_on)
        self.strikes[number] = replace(self.strikes[number], until=now())
        self._struck.discard(name)

    def _next_kind(self) -> str:
        if not self._deck:
            self._deck = self._plan.deck()
            self._random.shuffle(self._deck)
        return self._deck.pop()

    def _stop_s(self) -> float:
        self._stops += 1
        return self._plan.long_stop_s if self._stops % 3 == 2 else self._random.uniform(*self._plan.stop_s)

    def _target(self, whom: str) -> Process | PrivatePostgres | None:
        """Somebody of this kind who is neither down nor held."""
        pool = self._pool
        if whom == "postgres":
            return pool.postgres if "postgres" not in self._struck else None
        candidates = {
            "worker": list(pool.workers.values()),
            "active": [pool.active] if pool.active else [],
            "standby": pool.standbys,
            "server": [pool.server],
        }[whom]
        free = [each for each in candidates if each.running and each.name not in self._struck]
        return self._random.choice(free) if free else None
