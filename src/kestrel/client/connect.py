"""Connects a client with an account. Called by the command line and by the local pool."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from kestrel.client.client import Client
from kestrel.config import PoolAccess
from kestrel.errors import EnvironmentProblem, InternalError, KestrelError
from kestrel.xmpp.access import client_settings
from kestrel.xmpp.client import XmppClient
from kestrel.xmpp.link import XmppLink
from kestrel.xmpp.session import SessionSettings

CONNECT_S_MAX = 10.0
RECONNECT_S_MAX = 5.0
"""Longest pause before the next try: somebody sits in front of it, and users are few."""
QUIET_S_MAX, PONG_S_MAX = 6.0, 4.0
"""A link that a NAT box has forgotten says nothing: after so long without a byte the server is asked, and
after so long without an answer the link is made anew."""


@asynccontextmanager
async def connected(client: Client, access: PoolAccess) -> AsyncIterator[None]:
    """Keep the client connected with this account while the context lasts.

    Raises `AuthenticationError`, or `EnvironmentProblem` when the server cannot be reached at first;
    later breaks are mended by reconnecting. What cannot be mended (the account was removed) is raised by the
    client's requests.
    """
    link = XmppLink()
    link.deliver_to(client)
    session = SessionSettings(retry_s_max=RECONNECT_S_MAX, quiet_s_max=QUIET_S_MAX, pong_s_max=PONG_S_MAX)
    stream = XmppClient(replace(client_settings(access), session=session), link)
    link.attach(stream)
    client.attach(link)
    running = asyncio.create_task(stream.run(), name="client stream")
    try:
        await _first_time(stream, running, access)
        running.add_done_callback(lambda ended: _tell_end(client, ended))
        yield
    finally:
        client.close()
        await stream.close()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def _tell_end(client: Client, ended: asyncio.Task[None]) -> None:
    """The connection has ended for good: nobody shall wait for what cannot come."""
    problem = None if ended.cancelled() else ended.exception()
    if isinstance(problem, KestrelError):
        client.close(problem)
    elif problem is not None:
        client.close(InternalError(f"the connection broke off: {problem!r}"))


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
