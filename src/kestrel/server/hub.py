"""What all connections of one server share: the router, the counts that are bounded, time, flushing.

It admits connections within the bounds, writes what the router has put into outboxes, looks at each
connection once per tick, and hashes passwords in threads. It must never let one connection's trouble
reach another. Called by the connections and by the service.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import Counter
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from kestrel.errors import EnvironmentProblem, KestrelError, UsageError
from kestrel.server.accounts import Accounts, keys_of_password
from kestrel.server.routing import Router
from kestrel.server.sessions import Session
from kestrel.server.settings import ServerSettings
from kestrel.xmpp import stanza as x
from kestrel.xmpp.stream import Stanza

if TYPE_CHECKING:
    from kestrel.server.connection import Connection

log = logging.getLogger("kestrel.server")

FLUSH_NOW_BYTES = 16_384
"""A read of this size is passed on at once; smaller ones wait for the others of the same loop turn."""

T = TypeVar("T")


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
        self.connections: set[Connection] = set()
        self.addresses: Counter[str] = Counter()
        self.half_open: Counter[str] = Counter()
        self.half_open_count = 0
        self.now = self.loop.time()
        """Time of the last tick: good enough for silences."""
        self.refused = 0
        """Connections that were not admitted since the last tick."""
        self.tasks: set[asyncio.Task[None]] = set()
        self.stopping = False
        self.vacant = asyncio.Event()
        """Set while there is no connection."""
        self.vacant.set()
        self._flush_due = False
        self._ticker: asyncio.TimerHandle | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._hashing = 0

    # ----------------------------------------------------------------------------------------------
    # admission

    def admit(self, connection: Connection) -> bool:
        """Count a new connection; False if it is one too many."""
        limits, address = self.limits, connection.address
        if (
            self.stopping
            or len(self.connections) >= self.connections_max
            or self.addresses[address] >= limits.connections_per_address_max
            or self.half_open_count >= limits.half_open_max
            or self.half_open[address] >= limits.half_open_per_address_max
        ):
            self.refused += 1
            return False
        self.connections.add(connection)
        self.vacant.clear()
        connection.half_open = True
        self.addresses[address] += 1
        self.half_open[address] += 1
        self.half_open_count += 1
        return True

    def logged_in(self, connection: Connection) -> None:
        """It is not half-open any more."""
        if connection.half_open:
            connection.half_open = False
            self._decrement(self.half_open, connection.address)
            self.half_open_count -= 1

    def leave(self, connection: Connection) -> None:
        """Its socket is gone."""
        if connection not in self.connections:
            return
        self.connections.discard(connection)
        if not self.connections:
            self.vacant.set()
        self._decrement(self.addresses, connection.address)
        self.logged_in(connection)

    @staticmethod
    def _decrement(counter: Counter[str], address: str) -> None:
        counter[address] -= 1
        if counter[address] <= 0:
            del counter[address]

    @property
    def empty(self) -> bool:
        """True if nobody is connected and nothing is left over."""
        counts = self.addresses or self.half_open or self.half_open_count
        left = self.connections or counts or self.router.rosters.remembered
        return not left and self.router.tables.empty

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
        if self.refused:
            log.warning("server.connections_refused", extra={"count": self.refused})
            self.refused = 0
        self.flush_soon()
        self.start_ticking()

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
