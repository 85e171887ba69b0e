"""`EmbeddedServer`: the listening sockets, from `start` to `stop`.

It must leave nothing behind when it stops or cannot start, and says in words why it cannot. Called by
`kestrel up` and `kestrel server run` through `kestrel.local.hosted`, by local pools, and by tests.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import socket
import ssl
import sys
from collections.abc import Callable

from kestrel.errors import EnvironmentProblem, UsageError
from kestrel.server.accounts import Accounts
from kestrel.server.certificate import server_context
from kestrel.server.component_connection import ComponentConnection
from kestrel.server.doorman import Doorman
from kestrel.server.hub import Hub
from kestrel.server.settings import ServerLimits, ServerSettings

__all__ = ["EmbeddedServer", "ServerLimits", "ServerSettings"]

log = logging.getLogger("kestrel.server")

BACKLOG = 1024
FILES_RESERVED = 128
"""Descriptors that are left to everything else in the process."""


class EmbeddedServer:
    """An XMPP server in this process, on the running event loop. May be started again after `stop`."""

    def __init__(self, settings: ServerSettings, accounts: Accounts) -> None:
        self.settings = settings
        self.accounts = accounts
        self._hub: Hub | None = None
        self._servers: list[asyncio.Server] = []
        self.c2s_port = 0
        """Port for clients, known after `start`."""
        self.component_port = 0
        """Port for components, known after `start`; 0 if none is configured."""

    @property
    def hub(self) -> Hub:
        """The running parts, for tests and benchmarks."""
        assert self._hub is not None
        return self._hub

    @property
    def running(self) -> bool:
        """Between `start` and `stop`."""
        return self._hub is not None

    async def start(self) -> None:
        """Listen. Raises `EnvironmentProblem` (port, certificate), `UsageError`; then nothing is left."""
        if self._hub is not None:
            raise UsageError("the server is running already", hint="stop it first")
        settings = self.settings
        context = self._context()
        hub = Hub(settings, self.accounts, context, _connections_max(settings.limits.connections_max))
        try:
            self.c2s_port = await self._listen(
                lambda: Doorman(hub), settings.host, settings.c2s_port, "--port"
            )
            if settings.components:
                self.component_port = await self._listen(
                    lambda: ComponentConnection(hub),
                    settings.component_host,
                    settings.component_port,
                    "--component-port",
                )
        except BaseException:
            await self._stop_listening()
            raise
        self._hub = hub
        hub.start_ticking()
        log.info(
            "server.started",
            extra={
                "domain": settings.domain,
                "host": settings.host,
                "c2s_port": self.c2s_port,
                "component_port": self.component_port,
                "tls": context is not None,
            },
        )

    async def stop(self) -> None:
        """Close all streams in order, then everything else, within `stop_s_max`. May be called twice."""
        hub, self._hub = self._hub, None
        if hub is None:
            return
        hub.stopping = True
        await self._stop_listening()
        # Components first: they need not be told of each client that goes.
        for connection in sorted(hub.connections, key=lambda each: each.kind, reverse=True):
            connection.fail("system-shutdown")
        hub.flush()
        deadline = hub.loop.time() + hub.limits.stop_s_max
        await self._drained(hub, min(deadline, hub.loop.time() + hub.limits.linger_s_max))
        for connection in list(hub.connections):
            connection.drop("stopped")
        await hub.stop()
        await self._drained(hub, deadline)
        log.info("server.stopped", extra={"domain": self.settings.domain, "left": len(hub.connections)})

    @staticmethod
    async def _drained(hub: Hub, deadline: float) -> None:
        try:
            async with asyncio.timeout_at(deadline):
                await hub.vacant.wait()
        except TimeoutError:
            log.debug("server.connections_left", extra={"count": len(hub.connections)})

    def _context(self) -> ssl.SSLContext | None:
        settings = self.settings
        if settings.tls_certificate is not None:
            return server_context(settings.tls_certificate)
        if settings.tls_required or (settings.tls_required is None and not is_loopback(settings.host)):
            raise UsageError(
                f"a server on {settings.host} needs a certificate, since clients must encrypt",
                hint="set tls_certificate (`ensure_certificate` makes one), or listen on 127.0.0.1",
            )
        return None

    async def _listen(self, make: Callable[[], asyncio.Protocol], host: str, port: int, option: str) -> int:
        try:
            listening = _bind(host, port)
        except OSError as problem:
            raise _cannot_listen(host, port, option, problem) from problem
        loop = asyncio.get_running_loop()
        server = await loop.create_server(make, sock=listening, backlog=BACKLOG)
        self._servers.append(server)
        return int(listening.getsockname()[1])

    async def _stop_listening(self) -> None:
        servers, self._servers = self._servers, []
        for server in servers:
            # Not `wait_closed`: since Python 3.12 it waits for all connections, which come later.
            server.close()
        await asyncio.sleep(0)


def _bind(host: str, port: int) -> socket.socket:
    """A bound socket; both families if `host` is `::`."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listening = socket.socket(family, kind, protocol)
    try:
        if sys.platform != "win32":
            # On Windows this would let two servers have one port.
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6 and hasattr(socket, "IPV6_V6ONLY"):
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if host == "::" else 1)
        listening.setblocking(False)
        listening.bind(address)
        listening.listen(BACKLOG)
    except BaseException:
        listening.close()
        raise
    return listening


def _cannot_listen(host: str, port: int, option: str, problem: OSError) -> EnvironmentProblem:
    where = f"{host}:{port}"
    if problem.errno == errno.EADDRINUSE:
        return EnvironmentProblem(
            f"port {port} on {host} is taken by another program",
            hint=f"stop that program, or choose another port with {option}",
            code="port_taken",
        )
    if problem.errno in (errno.EACCES, errno.EPERM):
        return EnvironmentProblem(
            f"no permission to listen on {where}", hint=f"choose a port above 1023 with {option}"
        )
    return EnvironmentProblem(
        f"cannot listen on {where}: {problem.strerror or problem}",
        hint="the address must be one of this machine, such as 127.0.0.1 or 0.0.0.0",
    )


def is_loopback(host: str) -> bool:
    """Whether this address to listen on can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _connections_max(wanted: int) -> int:
    """As many connections as there can be descriptors; the soft limit is raised for them.

    Without this, the first connection too many would fail inside the event loop's accept.
    """
    if sys.platform == "win32":
        return wanted
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + FILES_RESERVED
    infinite = resource.RLIM_INFINITY
    if soft != infinite and soft < needed:
        goal = needed if hard == infinite else min(needed, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (goal, hard))
            soft = goal
        except (OSError, ValueError) as problem:
            log.warning("server.file_limit_kept", extra={"limit": soft, "reason": str(problem)})
    if soft == infinite or soft >= needed:
        return wanted
    return max(1, soft - FILES_RESERVED)
