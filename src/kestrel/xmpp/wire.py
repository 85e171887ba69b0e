"""One TCP connection with an XML stream on it: bytes to stanzas, coalesced and bounded writes.

A thin asyncio protocol over `StreamReader`. While a stream is being negotiated its owner pulls events
one by one (`next`); after `deliver` they are pushed as they arrive. It never reconnects and knows
nothing of SASL. Called by `dial`, `session` and `register`.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import deque
from collections.abc import Callable
from typing import Protocol, cast

from kestrel.errors import EnvironmentProblem, KestrelError, PeerError
from kestrel.xmpp import stanza as x
from kestrel.xmpp.stream import Event, Stanza, StreamEnd, StreamError, StreamHeader, StreamReader

log = logging.getLogger("kestrel.xmpp")

OUTGOING_BYTES_MAX = 64 * 1024 * 1024
"""Bytes that may wait for a slow server before the connection is given up."""
NEGOTIATION_EVENTS_MAX = 64
"""Elements that may wait while a stream is being negotiated."""
_ERROR_TAG = f"{x.NS_STREAM} error"
CLOSE_S_MAX = 1.0
"""How long the other end may take to answer the end of the stream."""


class Reader(Protocol):
    """What turns bytes into events: a `StreamReader`, or something in front of one."""

    def feed(self, data: bytes) -> list[Event]: ...

    def reset(self) -> None: ...

    def close(self) -> None: ...


class Wire(asyncio.Protocol):
    """One connection. `closed` is done, never with an exception, when it is gone; `problem` says why."""

    def __init__(self, reader: StreamReader, *, outgoing_bytes_max: int = OUTGOING_BYTES_MAX) -> None:
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._reader: Reader = reader
        self._outgoing_bytes_max = outgoing_bytes_max
        self._transport: asyncio.Transport | None = None
        self._outgoing: list[bytes] = []
        self._outgoing_bytes = 0
        self._events: deque[Event] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._deliver: Callable[[Stanza], None] | None = None
        self.closed: asyncio.Future[None] = loop.create_future()
        self.problem: KestrelError | None = None
        self.heard_at = loop.time()
        """When bytes arrived last, for whoever watches the silence."""

    # ----------------------------------------------------------------------------------------------
    # called by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do everything that an `asyncio.Transport` does without being one.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.heard_at = self._loop.time()
        try:
            events = self._reader.feed(data)
        except StreamError as problem:
            self._take(problem.events)
            self.write(x.stream_error(problem.condition))
            self._flush()
            self._refuse(problem)
            return
        self._take(events)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.problem is None:
            why = f": {exc}" if exc is not None else ""
            self.problem = EnvironmentProblem(f"The server closed the connection{why}.", retry=True)
        self._reader.close()
        self._outgoing.clear()
        if not self.closed.done():
            self.closed.set_result(None)
        self._wake()

    # ----------------------------------------------------------------------------------------------
    # reading

    def _take(self, events: list[Event]) -> None:
        for event in events:
            if self._deliver is not None and isinstance(event, Stanza):
                self._hand_over(event)
            elif isinstance(event, StreamEnd):
                self.drop(EnvironmentProblem("The server closed the stream.", retry=True))
            elif isinstance(event, Stanza) and event.tag == _ERROR_TAG:
                self._refuse(stream_problem(event))
            elif len(self._events) < NEGOTIATION_EVENTS_MAX:
                self._events.append(event)
                self._wake()
            else:
                self.drop(PeerError("The server talks before the stream is negotiated."))

    def _hand_over(self, stanza: Stanza) -> None:
        assert self._deliver is not None
        try:
            self._deliver(stanza)
        except Exception:
            # One stanza that we cannot handle must not cost the link with everybody else's.
            log.exception("xmpp.handler_failed", extra={"stanza": stanza.tag})

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next(self) -> StreamHeader | Stanza:
        """The next header or element. Raises why there is none: `PeerError`, `EnvironmentProblem`."""
        while not self._events:
            if self.problem is not None:
                raise self.problem
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        event = self._events.popleft()
        assert not isinstance(event, StreamEnd)
        return event

    async def header(self) -> StreamHeader:
        """The next event, which must be a stream header."""
        event = await self.next()
        if isinstance(event, StreamHeader):
            return event
        raise PeerError(f"The server sent {event.name!r} before its stream header.")

    async def element(self) -> Stanza:
        """The next element. A stream error is raised, after what came before it has been pulled."""
        event = await self.next()
        if isinstance(event, StreamHeader):
            raise PeerError("The server sent a second stream header.")
        return event

    def deliver(self, callback: Callable[[Stanza], None]) -> None:
        """From now on push stanzas, those that wait first."""
        self._deliver = callback
        waiting, self._events = list(self._events), deque()
        self._take(waiting)

    def restart(self) -> None:
        """Expect a new stream header, as after SASL."""
        self._reader.reset()

    @property
    def pulled(self) -> bool:
        """Whether nothing waits to be pulled."""
        return not self._events

    # ----------------------------------------------------------------------------------------------
    # writing

    def write(self, data: bytes) -> None:
        """Send with whatever else is sent in this turn of the loop. Above the bound the wire is dropped."""
        if self._transport is None or self.problem is not None:
            return
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing.append(data)
        self._outgoing_bytes += len(data)
        if self._outgoing_bytes > self._outgoing_bytes_max:
            self._drop_overfull()

    def _flush(self) -> None:
        if not self._outgoing or self._transport is None:
            return
        data = b"".join(self._outgoing)
        self._outgoing.clear()
        self._outgoing_bytes = 0
        if self._transport.is_closing():
            return
        self._transport.write(data)
        if self._transport.get_write_buffer_size() > self._outgoing_bytes_max:
            self._drop_overfull()

    def _drop_overfull(self) -> None:
        self.drop(
            EnvironmentProblem(
                f"The server takes too little: more than {self._outgoing_bytes_max} bytes wait to be sent.",
                retry=True,
            )
        )

    # ----------------------------------------------------------------------------------------------
    # TLS and the end

    async def start_tls(self, context: ssl.SSLContext, server_name: str, handshake_s_max: float) -> None:
        """Go on encrypted, with a new stream. Raises `OSError` (which `ssl.SSLError` is)."""
        if self._transport is None or self.problem is not None:
            raise self.problem or ConnectionError("not connected")
        transport = await self._loop.start_tls(
            self._transport,
            self,
            context,
            server_hostname=server_name,
            ssl_handshake_timeout=handshake_s_max,
        )
        if transport is None:
            raise ConnectionError("the connection was closed during the TLS handshake")
        self._transport = transport
        self.restart()

    @property
    def certificate(self) -> bytes | None:
        """The server's certificate in DER form, if encrypted."""
        tls = self._transport.get_extra_info("ssl_object") if self._transport is not None else None
        return tls.getpeercert(binary_form=True) if tls is not None else None

    def drop(self, problem: KestrelError) -> None:
        """Give the connection up at once; what waits to be sent is lost."""
        if self.problem is None:
            self.problem = problem
        self._outgoing.clear()
        self._outgoing_bytes = 0
        if self._transport is not None:
            self._transport.abort()
        self._wake()

    def _refuse(self, problem: KestrelError) -> None:
        """Give the connection up after what was written has been sent."""
        if self.problem is None:
            self.problem = problem
        if self._transport is not None:
            self._transport.close()
        self._wake()

    async def close(self) -> None:
        """End the stream in order, within `CLOSE_S_MAX`; then give it up."""
        if self.problem is None:
            self.write(x.STREAM_END)
            self._flush()
            await asyncio.wait({self.closed}, timeout=CLOSE_S_MAX)
        self.drop(EnvironmentProblem("The connection was closed on request.", retry=True))
        if self._transport is not None:
            await asyncio.wait({self.closed}, timeout=CLOSE_S_MAX)


class StreamRefusedError(PeerError):
    """The other end ended the stream with an error. `condition` is its name (RFC 6120 section 4.9.3)."""

    code = "stream_refused"

    def __init__(self, condition: str, words: str) -> None:
        super().__init__(f"The server ended the stream: {condition}{f' ({words})' if words else ''}.")
        self.condition = condition


def stream_problem(error: Stanza) -> StreamRefusedError:
    """What a `<stream:error/>` says."""
    words = error.child_text(x.NS_STREAM_ERRORS, "text") or ""
    names = [name for ns, name, _, _ in error.children if ns == x.NS_STREAM_ERRORS and name != "text"]
    return StreamRefusedError(names[0] if names else "undefined-condition", words[:200])
