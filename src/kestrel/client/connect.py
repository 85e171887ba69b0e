"""Connects a client with an account. Called by the command line and by the local pool."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from kestrel.client.client import Client
from kestrel.config import PoolAccess
from kestrel.errors import EnvironmentProblem
from kestrel.xmpp.access import client_settings
from kestrel.xmpp.client import XmppClient
from kestrel.xmpp.link import XmppLink

CONNECT_S_MAX = 10.0


@asynccontextmanager
async def connected(client: Client, access: PoolAccess) -> AsyncIterator[None]:
    """Keep the client connected with this account while the context lasts.

    Raises `AuthenticationError`, or `EnvironmentProblem` when the server cannot be reached at first;
    later breaks are mended by reconnecting.
    """
    link = XmppLink()
    link.deliver_to(client)
    stream = XmppClient(client_settings(access), link)
    link.attach(stream)
    client.attach(link)
    running = asyncio.create_task(stream.run(), name="client stream")
    try:
        await _first_time(stream, running, access)
        yield
    finally:
        client.close()
        await stream.close()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def _first_time(stream: XmppClient, running: asyncio.Task[None], access: PoolAccess) -> None:
    up = asyncio.ensure_future(stream.wait_connected())
    try:
        await asyncio.wait({up, running}, timeout=CONNECT_S_MAX, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
        if not up.done():
            where = f"{access.host}:{access.port}" if access.host else access.jid.partition("@")[2]
            raise EnvironmentProblem(
                f"cannot reach the XMPP server at {where}: {stream.last_problem or 'no answer'}",
                hint="is the pool up (`kestrel up`)? Is the address right?",
                code="unreachable",
                retry=True,
            )
    finally:
        up.cancel()
