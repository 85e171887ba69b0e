"""What all connections of one server share: the router, the counts that are bounded, time, flushing.

It admits connections within the bounds, writes what the router has put into outboxes, looks at each
connection once per tick, and hashes passwords in threads. It must never let one connection's trouble
reach another. Called by the connections and by the service.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from asyncio import sslproto
from collections import Counter
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any, Protocol, TypeVar, cast

from kestrel.errors import EnvironmentProblem, KestrelError, UsageError
from kestrel.server.accounts import Accounts, keys_of_password
from kestrel.server.guard import LoginGuard
from kestrel.server.origin import is_loopback_peer
from kestrel.server.routing import Router
from kestrel.server.sessions import Session
from kestrel.server.settings import ServerSettings
from kestrel.xmpp import stanza as x
from kestrel.xmpp.stream import Stanza

log = logging.getLogger("kestrel.server")

FLUSH_NOW_BYTES = 16_384
"""A read of this size is passed on at once; smaller ones wait for the others of the same loop turn."""

TLS_READ_BYTES = 16_384
"""What is read at once from a client in TLS; no record of TLS holds more."""

T = TypeVar("T")


class Guest(Protocol):
    """Whoever has a socket here: a connection, or one of whom it is not known yet what it speaks."""

    address: str
    origin: str
    """What is counted as one: its address, or the network of it."""
    half_open: bool
    """Whether it counts as one that has not logged in."""
    closed_at: float
    kind: str

    def tick(self, now: float) -> None: ...
    def fail(self, condition: str, text: str = "") -> None: ...
    def drop(self, reason: str) -> None: ...


class Hub:
    """The shared part of a running server."""

    def __init__(
        self,
        settings: ServerSettings,
        accounts: Accounts,
        context: ssl.SSLContext | None,
        connections_max: int,
    ) -> None:
        self.settings = settings
        self.limits = settings.limits
        self.accounts = accounts
        self.context = context
        self.connections_max = connections_max
        self.loop = asyncio.get_running_loop()
        self.router = Router(
            settings.domain, frozenset(settings.components), accounts, settings.limits, self._change_password
        )
        self.guard = LoginGuard(settings.limits)
        self.connections: set[Guest] = set()
        self.addresses: Counter[str] = Counter()
        """How many each origin has."""
        self.half_open: dict[str, dict[Guest, None]] = {}
        """Those of each origin that have not logged in; who has said nothing yet comes first."""
        self.half_open_count = 0
        self.now = self.loop.time()
        """Time of the last tick: good enough for silences."""
        self.refused = 0
        """Connections that were not admitted since the last tick."""
        self.crowded_out = 0
        """Connections that made room for others since the last tick."""
        self.tasks: set[asyncio.Task[None]] = set()
        self.stopping = False
        self.vacant = asyncio.Event()
        """Set while there is no connection."""
        self.vacant.set()
        self._flush_due = False
        self._ticker: asyncio.TimerHandle | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._hashing = 0
        self._accounts_version = accounts.version()

    # ----------------------------------------------------------------------------------------------
    # admission

    def admit(self, connection: Guest) -> bool:
        """Count a new connection; False if it is one too many."""
        limits, origin = self.limits, connection.origin
        mine = len(self.half_open.get(origin, ()))
        if (
            self.stopping
            or self.addresses[origin] >= limits.connections_per_address_max
            or mine >= limits.half_open_per_address_max
            or not self._has_room(mine)
        ):
            self.refused += 1
            return False
        self.connections.add(connection)
        self.vacant.clear()
        self.addresses[origin] += 1
        self._wait(connection)
        return True

    def _has_room(self, mine: int) -> bool:
        """Whether one more may wait; if all places are taken, whoever takes most of them gives one up.

        So a flood from a few addresses does not lock out those who come from elsewhere.
        """
        if self.half_open_count < self.limits.half_open_max and len(self.connections) < self.connections_max:
            return True
        crowd = max(self.half_open.values(), key=len, default={})
        if len(crowd) <= mine:
            return False
        oldest = next(iter(crowd))
        self.crowded_out += 1
        self.leave(oldest)
        oldest.drop("crowded-out")
        return True

    def _wait(self, connection: Guest) -> None:
        connection.half_open = True
        self.half_open.setdefault(connection.origin, {})[connection] = None
        self.half_open_count += 1

    def hand_over(self, older: Guest, newer: Guest) -> None:
        """`newer` has the socket of `older` now, which was half-open."""
        if older not in self.connections:
            return
        self.connections.discard(older)
        self.logged_in(older)
        self.connections.add(newer)
        self._wait(newer)

    def logged_in(self, connection: Guest) -> None:
        """It is not half-open any more."""
        if connection.half_open:
            connection.half_open = False
            crowd = self.half_open[connection.origin]
            del crowd[connection]
            if not crowd:
                del self.half_open[connection.origin]
            self.half_open_count -= 1

    def leave(self, connection: Guest) -> None:
        """Its socket is gone."""
        if connection not in self.connections:
            return
        self.connections.discard(connection)
        if not self.connections:
            self.vacant.set()
        self.addresses[connection.origin] -= 1
        if not self.addresses[connection.origin]:
            del self.addresses[connection.origin]
        self.logged_in(connection)

    @property
    def empty(self) -> bool:
        """True if nobody is connected and nothing is left over."""
        counts = self.addresses or self.half_open or self.half_open_count
        left = self.connections or counts or self.router.rosters.remembered
        return not left and self.router.tables.empty and self.router.roles.empty

    def requires_tls(self, address: str) -> bool:
        """Whether who comes from there must encrypt before any secret is taken."""
        required = self.settings.tls_required
        return required if required is not None else not is_loopback_peer(address)

    # ----------------------------------------------------------------------------------------------
    # flushing

    def flush_soon(self) -> None:
        """Write all outboxes when this turn of the loop is over, once."""
        if not self._flush_due and self.router.tables.dirty:
            self._flush_due = True
            self.loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write all outboxes, each with one write."""
        self._flush_due = False
        dirty = self.router.tables.dirty
        while dirty:
            batch = dirty[:]
            dirty.clear()
            for session in batch:
                link: Any = session.link
                try:
                    link.write_outbox(session)
                except Exception:
                    # A task boundary: whoever cannot be written to is dropped, the others get theirs.
                    log.exception("server.write_failed", extra={"session": session.address})
                    link.drop("write-failed")

    # ----------------------------------------------------------------------------------------------
    # time

    def start_ticking(self) -> None:
        """Look at all connections every `tick_s`."""
        self._ticker = self.loop.call_later(self.limits.tick_s, self._tick)

    def _tick(self) -> None:
        self.now = self.loop.time()
        for connection in list(self.connections):
            try:
                connection.tick(self.now)
            except Exception:
                # A task boundary: time goes on for everybody else.
                log.exception("server.tick_failed", extra={"address": connection.address})
                connection.drop("tick-failed")
        self._follow_accounts()
        if self.refused:
            log.warning("server.connections_refused", extra={"count": self.refused})
            self.refused = 0
        for each in self.guard.report(self.now):
            log.warning("server.logins_guessed", extra=asdict(each))
        if self.crowded_out:
            log.warning("server.connections_crowded_out", extra={"count": self.crowded_out})
            self.crowded_out = 0
        self.flush_soon()
        self.start_ticking()

    def _follow_accounts(self) -> None:
        """Accounts that were removed or changed by this or another process (`kestrel account`)."""
        try:
            version = self.accounts.version()
            if version == self._accounts_version:
                return
            accounts = {account.local: account for account in self.accounts.everyone()}
        except EnvironmentProblem as problem:
            # Noticed at the next tick; who is there stays meanwhile.
            log.error("server.accounts_unreadable", extra={"reason": problem.text})
            return
        self._accounts_version = version
        self.router.accounts_changed(accounts)

    # ----------------------------------------------------------------------------------------------
    # work that takes longer

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run it beside everything else; it is cancelled when the server stops."""
        task = self.loop.create_task(self._guarded(work))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    @staticmethod
    async def _guarded(work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception:
            # A task boundary: the fault is ours, and costs nobody else anything.
            log.exception("server.task_failed")

    async def secure(
        self, transport: asyncio.Transport, protocol: asyncio.Protocol, received: bytes = b""
    ) -> asyncio.Transport | None:
        """TLS for this socket, of which `received` has been read already; None if it has gone meanwhile.

        Raises `OSError`, `EOFError`; then, and if None, asyncio will not tell the protocol of the end.
        """
        assert self.context is not None
        starting = self.loop.create_task(
            self.loop.start_tls(
                transport,
                protocol,
                self.context,
                server_side=True,
                ssl_handshake_timeout=self.limits.tls_handshake_s_max,
                ssl_shutdown_timeout=self.limits.linger_s_max,
            )
        )
        try:
            # After this its first step is done: the protocol of TLS has the socket, and has read nothing.
            await asyncio.sleep(0)
            if not starting.done():
                tls = cast(asyncio.BufferedProtocol, transport.get_protocol())
                _trim(tls)
                if received:
                    _pour(received, tls)
            return await starting
        except BaseException:
            starting.cancel()
            raise

    async def hashed(self, function: Callable[[], T]) -> T:
        """Run a slow hash in a thread. Raises `EnvironmentProblem` if too many wait already."""
        if self._hashing >= self.limits.hashing_queue_max:
            raise EnvironmentProblem("too many passwords wait to be checked", hint="try again", retry=True)
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self.limits.hashing_threads, "kestrel-hash")
        self._hashing += 1
        try:
            return await self.loop.run_in_executor(self._threads, function)
        finally:
            self._hashing -= 1

    def _change_password(self, session: Session, stanza: Stanza, password: str) -> None:
        self.spawn(self._set_password(session, stanza, password))

    async def _set_password(self, session: Session, stanza: Stanza, password: str) -> None:
        condition = ""
        try:
            iterations = self.accounts.iterations
            keys = await self.hashed(lambda: keys_of_password(password, iterations))
            self.accounts.set_keys(session.local, keys)
            log.info("server.password_changed", extra={"account": session.local})
        except UsageError:
            condition = "not-acceptable"
        except KestrelError as problem:
            log.warning("server.password_not_changed", extra={"reason": problem.text})
            condition = "resource-constraint"
        if self.router.tables.quick.get(session.address) is not session:
            return
        request = {**stanza.attrs, "from": session.address}
        session.send(x.error_reply("iq", request, condition) if condition else x.iq_result(request))
        self.flush_soon()

    async def stop(self) -> None:
        """Stop ticking, cancel what runs, let the threads go."""
        if self._ticker is not None:
            self._ticker.cancel()
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)


def _trim(protocol: asyncio.BufferedProtocol) -> None:
    """Let the TLS of one connection keep 16 KiB to read into, instead of the 256 KiB that asyncio gives it.

    asyncio has no setting for that. Where its protocol looks different one day, or is that of another loop,
    nothing is changed; a test of the memory of clients will tell.
    """
    tls: Any = protocol
    if isinstance(protocol, sslproto.SSLProtocol) and hasattr(protocol, "_ssl_buffer_view"):
        tls.max_size = TLS_READ_BYTES
        tls._ssl_buffer = bytearray(TLS_READ_BYTES)
        tls._ssl_buffer_view = memoryview(tls._ssl_buffer)


def _pour(data: bytes, protocol: asyncio.BufferedProtocol) -> None:
    """Hand over what was read from the socket before the protocol had it, as the loop would have."""
    while data:
        room = memoryview(protocol.get_buffer(len(data)))
        size = min(len(room), len(data))
        room[:size] = data[:size]
        protocol.buffer_updated(size)
        data = data[size:]
