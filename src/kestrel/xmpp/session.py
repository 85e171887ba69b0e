"""Keeps one XMPP session alive: connect, serve, notice silence, reconnect with back-off.

What client and component have in common; each of them brings its own way to log in. It never gives up
on an unreachable server and never tries again what cannot get better (a wrong password).
"""

from __future__ import annotations

import asyncio
import logging
import random
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol

from kestrel.errors import AuthenticationError, EnvironmentProblem, KestrelError, PeerError, UsageError
from kestrel.xmpp import stanza as x
from kestrel.xmpp.acks import REQUEST, AckCounter, AckError
from kestrel.xmpp.stream import Stanza
from kestrel.xmpp.wire import CLOSE_S_MAX, OUTGOING_BYTES_MAX, StreamRefusedError, Wire, stream_problem

log = logging.getLogger("kestrel.xmpp")

FAILURES_TOLD = 2
"""After so many failures in a row a warning says that we keep trying."""
STEADY_S = 5.0
"""A session that lasted so long was one: after its end the pauses begin anew."""
SIGN_OF_LIFE_S_MIN = 0.5
"""Nobody can make us doubt a link sooner than that."""
QUIET_SHARE = 2 / 3
"""Of the time until a silent link is given up, this much passes before the server is pinged."""
CONFLICTS_QUICK = 30
"""So often in a row we try again soon when the server says that our address is connected: it is about to
notice that the process before us died."""

_ERROR_TAG = f"{x.NS_STREAM} error"
_REQUEST_TAG = f"{x.NS_ACKS} r"
_ACK_TAG = f"{x.NS_ACKS} a"
_STANZAS = frozenset(
    f"{ns} {name}" for ns in (x.NS_CLIENT, x.NS_COMPONENT) for name in ("message", "presence", "iq")
)
_IQS = frozenset((f"{x.NS_CLIENT} iq", f"{x.NS_COMPONENT} iq"))


class Handler(Protocol):
    """Who is told what happens on a session."""

    def on_connected(self, address: str) -> None: ...

    def on_disconnected(self, reason: str) -> None: ...

    def on_stanza(self, stanza: Stanza) -> None: ...


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """Bounds of one session; all times in seconds."""

    retry_s_min: float = 0.5
    """The first wait is drawn between 0 and this; it doubles with each failure in a row."""
    retry_s_max: float = 10.0
    login_s_max: float = 20.0
    """From the first byte to the session."""
    quiet_s_max: float = 20.0
    """After so long without a byte the server is pinged."""
    pong_s_max: float = 10.0
    """After so long without a byte after a ping the server is taken as dead. `expect_sign_of_life` can
    shorten both, never lengthen them."""
    outgoing_bytes_max: int = OUTGOING_BYTES_MAX


class Session(ABC):
    """One session, from `run` to `close`, through any number of connections."""

    def __init__(self, settings: SessionSettings, handler: Handler, server: str) -> None:
        self._bounds = settings
        self._handler = handler
        self._server = server
        """Address of the server, to be pinged."""
        self._wire: Wire | None = None
        self._acks: AckCounter | None = None
        self._up = asyncio.Event()
        self._closing = asyncio.Event()
        self._ping_id = ""
        self._pings = 0
        self._quiet_s, self._pong_s = settings.quiet_s_max, settings.pong_s_max
        self._patience_changed = asyncio.Event()
        self.address = ""
        """The address in use, while connected."""
        self.last_problem = ""
        """Why the last connection failed or ended, in words."""

    # ----------------------------------------------------------------------------------------------
    # what client and component bring

    @abstractmethod
    async def _log_in(self) -> tuple[Wire, str, AckCounter | None]:
        """Connect and log in; returns the wire, our address, and counters if acknowledged.

        Raises `AuthenticationError` or `UsageError` for what is final. Nothing is left open then.
        """

    @property
    @abstractmethod
    def _ping_from(self) -> str:
        """`from` of our pings; empty if the server stamps it."""

    # ----------------------------------------------------------------------------------------------
    # public

    @property
    def connected(self) -> bool:
        """Whether stanzas can be sent now."""
        return self._up.is_set()

    async def wait_connected(self) -> None:
        """Until the session is up."""
        await self._up.wait()

    def send(self, stanza: bytes) -> None:
        """Send one stanza together with what else is sent in this turn; dropped while not connected."""
        wire = self._wire
        if wire is None:
            return
        wire.write(stanza)
        if self._acks is not None:
            try:
                if self._acks.count_sent():
                    wire.write(REQUEST)
            except AckError as problem:
                wire.drop(problem)

    def expect_sign_of_life(self, within_s: float | None) -> None:
        """From now on a link on which nothing came for `within_s` seconds is dead, and is made anew.

        The server is asked (XEP-0199) before, early enough to answer within that time. Holds for this
        connection and all later ones. None: as the settings say, which are the longest times in any case.
        """
        bounds = self._bounds
        self._quiet_s, self._pong_s = bounds.quiet_s_max, bounds.pong_s_max
        if within_s is not None:
            within_s = max(within_s, SIGN_OF_LIFE_S_MIN)
            self._quiet_s = min(self._quiet_s, within_s * QUIET_SHARE)
            self._pong_s = min(self._pong_s, within_s - self._quiet_s)
        self._patience_changed.set()

    async def run(self) -> None:
        """Stay connected until `close`. Raises `AuthenticationError`, `UsageError`, or
        `EnvironmentProblem` with `retry` False when trying again cannot help."""
        loop = asyncio.get_running_loop()
        failures = conflicts = 0
        while not self._closing.is_set():
            try:
                wire = await self._connect()
                if wire is not None:
                    since = loop.time()
                    try:
                        await self._serve(wire)
                    finally:
                        if loop.time() - since > min(STEADY_S, self._bounds.retry_s_max):
                            failures = 0
            except (AuthenticationError, UsageError):
                raise
            except (EnvironmentProblem, PeerError) as problem:
                conflicts = conflicts + 1 if problem.code == "conflict" else 0
                self.last_problem = problem.text
                if isinstance(problem, EnvironmentProblem) and not problem.retry:
                    raise
                log.info("xmpp.disconnected", extra={"server": self._server, "reason": problem.text})
                if failures == FAILURES_TOLD:  # once per outage, for who waits in front of it
                    log.warning("xmpp.keeps_trying", extra={"server": self._server, "reason": problem.text})
            await self._pause(0 if 0 < conflicts <= CONFLICTS_QUICK else failures)
            failures += 1

    async def close(self) -> None:
        """End the session in order; `run` returns."""
        self._closing.set()
        if self._wire is not None:
            await self._wire.close()

    # ----------------------------------------------------------------------------------------------
    # private

    async def _connect(self) -> Wire | None:
        """Log in; None if `close` was called meanwhile."""
        logging_in = asyncio.ensure_future(self._log_in())
        closing = asyncio.ensure_future(self._closing.wait())
        try:
            await asyncio.wait(
                {logging_in, closing},
                timeout=self._bounds.login_s_max,
                return_when=asyncio.FIRST_COMPLETED,
            )
        except asyncio.CancelledError:
            await _cancel(logging_in)
            if not logging_in.cancelled() and logging_in.exception() is None:
                logging_in.result()[0].drop(EnvironmentProblem("The login was cancelled."))
            raise
        finally:
            await _cancel(closing)
        await _cancel(logging_in)
        if not logging_in.cancelled():
            wire, self.address, self._acks = logging_in.result()
            return wire
        if self._closing.is_set():
            return None
        raise EnvironmentProblem(
            f"The server did not let us in within {self._bounds.login_s_max:g} s.",
            hint="Is that an XMPP server?",
            retry=True,
        )

    async def _serve(self, wire: Wire) -> None:
        """Hand over what arrives until the wire is gone; raises why it went, unless we closed it."""
        self._wire = wire
        self._ping_id = ""
        watching = asyncio.ensure_future(self._watch(wire))
        log.info("xmpp.connected", extra={"address": self.address})
        self._up.set()
        try:
            self._handler.on_connected(self.address)
            wire.deliver(self._on_stanza)
            await asyncio.wait({wire.closed})
        finally:
            self._up.clear()
            self._wire = None
            problem = self._final(wire.problem) if wire.problem is not None else None
            if not wire.closed.done():
                wire.drop(EnvironmentProblem("The session was cancelled.", retry=True))
                await asyncio.wait({wire.closed}, timeout=CLOSE_S_MAX)
            await _cancel(watching)
            self._handler.on_disconnected(problem.text if problem is not None else "cancelled")
            self.address = ""
        if problem is not None and not self._closing.is_set():
            raise problem

    def _on_stanza(self, stanza: Stanza) -> None:
        tag = stanza.tag
        if tag in _STANZAS:
            if self._acks is not None:
                self._acks.count_received()
            if self._ping_id and tag in _IQS and stanza.attrs.get("id") == self._ping_id:
                self._ping_id = ""
                return
            self._handler.on_stanza(stanza)
        elif tag == _REQUEST_TAG:
            if self._wire is not None and self._acks is not None:
                self._wire.write(self._acks.answer())
        elif tag == _ACK_TAG:
            self._on_ack(stanza)
        elif tag == _ERROR_TAG:
            if self._wire is not None:
                self._wire.drop(stream_problem(stanza))
        else:
            log.debug("xmpp.unknown_element", extra={"element": tag})

    def _on_ack(self, stanza: Stanza) -> None:
        if self._acks is None or self._wire is None:
            return
        try:
            self._acks.on_ack(stanza.attrs.get("h"))
        except AckError as problem:
            self._wire.drop(problem)

    def _final(self, problem: KestrelError) -> KestrelError:
        """Being replaced is final: two processes with one address would throw each other out for ever."""
        if isinstance(problem, StreamRefusedError) and problem.condition == "conflict":
            return EnvironmentProblem(
                f"Somebody else has connected as {self.address}; this session was replaced.",
                hint="Give each process a resource (or component) of its own.",
                code="conflict",
            )
        return problem

    async def _watch(self, wire: Wire) -> None:
        """Ping a server that has been quiet, and drop the wire if it stays so (XEP-0199)."""
        loop = asyncio.get_running_loop()
        while True:
            quiet_s = loop.time() - wire.heard_at
            if quiet_s < self._quiet_s:
                await self._doze(self._quiet_s - quiet_s)
                continue
            asked_at = loop.time()
            self._ping()
            # What came in the turn in which we asked is a sign of life as well.
            while wire.heard_at < asked_at:
                left_s = asked_at + self._pong_s - loop.time()
                if left_s <= 0:
                    silence = f"{loop.time() - wire.heard_at:.3g}"
                    wire.drop(EnvironmentProblem(f"The server has been silent for {silence} s.", retry=True))
                    return
                await self._doze(left_s)

    async def _doze(self, s: float) -> None:
        """Until then, or until we are to be more or less patient."""
        self._patience_changed.clear()
        try:
            async with asyncio.timeout(s):
                await self._patience_changed.wait()
        except TimeoutError:
            return

    def _ping(self) -> None:
        self._pings += 1
        self._ping_id = f"alive-{self._pings}"
        payload = f"<ping xmlns='{x.NS_PING}'/>"
        self.send(x.iq("get", self._ping_id, to=self._server, from_=self._ping_from, payload=payload))

    async def _pause(self, failures: int) -> None:
        """Wait before the next try: exponential with full jitter, within the bound; less on `close`."""
        longest = min(self._bounds.retry_s_max, self._bounds.retry_s_min * 2 ** min(failures, 30))
        try:
            async with asyncio.timeout(random.uniform(0, longest)):
                await self._closing.wait()
        except TimeoutError:
            return


async def _cancel(future: asyncio.Future[Any]) -> None:
    """Cancel and wait until it is done; its outcome stays with it."""
    future.cancel()
    await asyncio.gather(future, return_exceptions=True)
