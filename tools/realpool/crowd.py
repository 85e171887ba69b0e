"""Many workers in one process: real sessions and the real protocol, tasks that end as soon as they begin.

What a manager and a server cost per worker is measured with these, and the contract suite fills pools with
them. It must never start a process. Called by benchmarks and tests, on an asyncio loop of theirs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

from kestrel.config import PoolAccess
from kestrel.ports import Show
from kestrel.protocol import codec
from kestrel.protocol import messages as m
from kestrel.xmpp.access import client_settings
from kestrel.xmpp.client import XmppClient
from kestrel.xmpp.link import XmppLink

LOGINS_AT_ONCE = 32
"""So many are under way together: more would only wait for the server."""


@dataclass(frozen=True, slots=True)
class CrowdSettings:
    """How big a crowd is."""

    count: int
    slots: int = 1
    prefix: str = "w"
    """Resources are `w0`, `w1` …"""
    arrive_s_max: float = 120.0
    """Until all are logged in, and again until all are welcomed."""


class Member:
    """One worker: introduces itself, answers pings (its link does), reports every task as done."""

    def __init__(self, access: PoolAccess, slots: int, on_change: Callable[[], None]) -> None:
        self.welcomed = False
        self.done = 0
        """Tasks that it reported."""
        self._manager = access.manager
        self._slots = slots
        self._reports = 0
        self._on_change = on_change
        self.link = XmppLink()
        self.link.deliver_to(self)
        self.stream = XmppClient(client_settings(access), self.link)
        self.link.attach(self.stream)

    def introduce(self) -> None:
        """Join the pool, or join it again."""
        self.link.announce(self._manager, Show.CHAT, f"{self._slots}/{self._slots} slots free")
        self.link.send(self._manager, codec.encode(m.Profile(cores=self._slots, slots=self._slots)))

    # --- ports.TransportEvents ------------------------------------------------------------------------

    def on_up(self, address: str) -> None:
        self._on_change()

    def on_down(self, reason: str) -> None:
        self.welcomed = False
        self._on_change()

    def on_message(self, sender: str, payload: bytes, chat: bool) -> None:
        match codec.decode_to_worker(payload):
            case m.Welcome():
                self.welcomed = True
                self._on_change()
            case m.Tasks(job=job, tasks=tasks, attempt=first):
                self._reports += 1
                self.done += len(tasks)
                ended = [m.AttemptReport(job=job, task=t, attempt=first + i) for i, t in enumerate(tasks)]
                self.link.send(self._manager, codec.encode(m.Report(n=self._reports, attempts=ended)))
            case m.Revoke(job=job):
                self.link.send(self._manager, codec.encode(m.Revoked(job=job, attempts=[])))
            case m.Error(code="unknown_worker"):
                self.introduce()
            case _:
                pass

    def on_available(self, sender: str, show: Show, status: str) -> None:
        pass

    def on_unavailable(self, sender: str, reason: str) -> None:
        pass

    def on_heard(self, sender: str) -> None:
        pass


class Crowd:
    """`async with Crowd(access, settings) as crowd: await crowd.log_in(); await crowd.join()`."""

    def __init__(self, access: PoolAccess, settings: CrowdSettings) -> None:
        """All share the account of `access`, and differ in their resource."""
        self._settings = settings
        self._changed = asyncio.Event()
        self._running: list[asyncio.Task[None]] = []
        self.members = [
            Member(replace(access, resource=f"{settings.prefix}{number}"), settings.slots, self._changed.set)
            for number in range(settings.count)
        ]

    async def log_in(self) -> None:
        """Every member has a session, none has introduced itself. Raises `TimeoutError`, or a refusal."""
        room = asyncio.Semaphore(LOGINS_AT_ONCE)

        async def enter(member: Member) -> None:
            async with room:
                self._running.append(running := asyncio.create_task(member.stream.run()))
                up = asyncio.create_task(member.stream.wait_connected())
                await asyncio.wait({running, up}, return_when=asyncio.FIRST_COMPLETED)
                up.cancel()
                if running.done():
                    running.result()

        async with asyncio.timeout(self._settings.arrive_s_max):
            await asyncio.gather(*map(enter, self.members))

    async def join(self) -> None:
        """Every member is welcomed. Raises `TimeoutError`."""
        for member in self.members:
            member.introduce()
        await self.until(lambda: all(member.welcomed for member in self.members))

    async def until(self, question: Callable[[], bool]) -> None:
        """Ask again whenever a member changed. Raises `TimeoutError`."""
        async with asyncio.timeout(self._settings.arrive_s_max):
            while not question():
                self._changed.clear()
                await self._changed.wait()

    async def __aenter__(self) -> Crowd:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(member.stream.close() for member in self.members))
        for running in self._running:
            running.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
