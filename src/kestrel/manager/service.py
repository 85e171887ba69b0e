"""Runs a manager on asyncio: XMPP link below it, a store beside it, one event loop.

Called by `kestrel up`, `kestrel manager` and the ephemeral pool of `kestrel run`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from kestrel.clock import AsyncioClock
from kestrel.errors import EnvironmentProblem
from kestrel.manager.manager import Manager
from kestrel.manager.settings import ManagerSettings
from kestrel.ports import Store
from kestrel.xmpp.link import XmppLink, XmppStream

log = logging.getLogger("kestrel.manager")

CONNECT_S_MAX = 15.0


class StreamMaker(Protocol):
    """Makes the manager's XMPP connection (component or account) for a link."""

    def __call__(self, link: XmppLink) -> XmppStream: ...


class ManagerService:
    """One manager, its store and its connection, from `start` to `stop`."""

    def __init__(self, make_stream: StreamMaker, store: Store, settings: ManagerSettings) -> None:
        self._make_stream = make_stream
        self._store = store
        self._settings = settings
        self._running: asyncio.Task[None] | None = None
        self._failure: asyncio.Future[None] | None = None
        self._stream: XmppStream | None = None
        self.manager: Manager | None = None

    async def start(self) -> Manager:
        """Read the store, connect, and return when the server has let the manager in.

        Raises `StoreError`, `AuthenticationError` or `EnvironmentProblem`; nothing is left running then.
        """
        loop = asyncio.get_running_loop()
        self._failure = loop.create_future()
        link = XmppLink()
        manager = Manager(AsyncioClock(loop), link, self._store, self._settings)
        manager.on_failed = self._on_failed
        link.deliver_to(manager)
        self.manager = manager
        try:
            manager.start()
            stream = self._stream = self._make_stream(link)
            link.attach(stream)
            self._running = asyncio.create_task(stream.run(), name="manager stream")
            await self._connected(stream, self._running)
        except BaseException:
            await self.stop()
            raise
        return manager

    async def _connected(self, stream: XmppStream, running: asyncio.Task[None]) -> None:
        up = asyncio.ensure_future(stream.wait_connected())
        try:
            await asyncio.wait({up, running}, timeout=CONNECT_S_MAX, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                running.result()
            if not up.done():
                raise EnvironmentProblem(
                    f"the manager cannot connect to its XMPP server: {stream.last_problem or 'no answer'}",
                    hint="check the address; is the server running and does it know the component?",
                    retry=True,
                )
        finally:
            up.cancel()

    def _on_failed(self, problem: Exception) -> None:
        if self._failure is not None and not self._failure.done():
            self._failure.set_exception(problem)

    async def wait(self) -> None:
        """Until the manager cannot go on; raises why."""
        assert self._running is not None
        assert self._failure is not None
        await asyncio.wait({self._running, self._failure}, return_when=asyncio.FIRST_COMPLETED)
        for future in (self._failure, self._running):
            if future.done():
                future.result()

    async def stop(self) -> None:
        """Leave in order: stop reacting, close the stream, finish what the store has in hand."""
        if self.manager is not None:
            self.manager.close()
        if self._stream is not None:
            await self._stream.close()
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        if self._failure is not None:
            self._failure.cancel()
            if not self._failure.cancelled():
                self._failure.exception()  # told already, or there is nobody left to tell
        await asyncio.get_running_loop().run_in_executor(None, self._store.close)


async def run_until(service: ManagerService, stopped: Callable[[], Awaitable[object]]) -> None:
    """Serve until `stopped` returns or the manager fails (then raise why)."""
    ends = [asyncio.ensure_future(service.wait()), asyncio.ensure_future(stopped())]
    try:
        done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for end in done:
            end.result()
    finally:
        for end in ends:
            end.cancel()
        await asyncio.gather(*ends, return_exceptions=True)
