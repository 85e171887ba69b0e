"""Links on running streams, in the event loop of a test: a client or a component of a live server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from kestrel.ports import Show
from kestrel.xmpp.access import client_settings
from kestrel.xmpp.client import XmppClient
from kestrel.xmpp.component import ComponentSettings, XmppComponent
from kestrel.xmpp.link import XmppLink, XmppStream
from kestrel.xmpp.session import SessionSettings
from realpool.live import LiveServer, WayIn

PATIENCE_S = 30
QUICK = SessionSettings(retry_s_min=0.1, retry_s_max=0.5)
Maker = Callable[[XmppLink], XmppStream]


class Told:
    """Keeps what a link tells, and waits for things to be told."""

    def __init__(self) -> None:
        self.seen: asyncio.Queue[tuple[Any, ...]] = asyncio.Queue()

    async def until(self, kind: str) -> tuple[Any, ...]:
        """The next event of this kind; others before it are dropped."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                event = await self.seen.get()
                if event[0] == kind:
                    return event[1:]

    def so_far(self) -> list[tuple[Any, ...]]:
        """All that was told and not waited for."""
        return [self.seen.get_nowait() for _ in range(self.seen.qsize())]

    def on_up(self, address: str) -> None:
        self.seen.put_nowait(("up", address))

    def on_down(self, reason: str) -> None:
        self.seen.put_nowait(("down", reason))

    def on_message(self, sender: str, payload: bytes, chat: bool) -> None:
        self.seen.put_nowait(("message", sender, payload, chat))

    def on_available(self, sender: str, show: Show, status: str) -> None:
        self.seen.put_nowait(("available", sender, show, status))

    def on_unavailable(self, sender: str, reason: str) -> None:
        self.seen.put_nowait(("unavailable", sender, reason))

    def on_heard(self, sender: str) -> None:
        self.seen.put_nowait(("heard", sender))

    def on_role(self, jid: str, role: str) -> None:
        self.seen.put_nowait(("role", jid, role))


@asynccontextmanager
async def running(make: Maker) -> AsyncIterator[tuple[XmppLink, Told, Any]]:
    """A link on a running stream: (link, told, stream)."""
    link, told = XmppLink(), Told()
    link.deliver_to(told)
    stream: Any = make(link)
    link.attach(stream)
    task = asyncio.create_task(stream.run())
    try:
        up = asyncio.create_task(stream.wait_connected())
        await asyncio.wait({task, up}, timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
        up.cancel()
        if task.done():
            task.result()
        assert stream.connected, stream.last_problem
        yield link, told, stream
    finally:
        await stream.close()
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(task, return_exceptions=True)


def client(
    server: LiveServer, name: str = "alice", *, way: WayIn = "", resource: str = "r", **more: Any
) -> Maker:
    """A session of this account; `more` changes its `ClientSettings`."""
    access = server.access(name, via=way, resource=resource)
    settings = replace(client_settings(access), **({"session": QUICK} | more))
    return lambda link: XmppClient(settings, link)


def component(server: LiveServer, *, secret: str = "", domain: str = "") -> Maker:
    """The component of this server."""
    settings = ComponentSettings(
        domain or server.component, secret or server.secret, server.host, server.component_port, QUICK
    )
    return lambda link: XmppComponent(settings, link)
