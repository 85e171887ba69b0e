"""One connection to the server: bytes in, stanzas to the router, outboxes out, and every way to end.

A thin asyncio protocol over `StreamReader`; what differs between clients and components is in the two
subclasses. The law of this module: however a connection ends, its session is closed at once, before
the socket is, and once. Times are checked by the hub's tick, so an idle connection owns no timer.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from abc import abstractmethod
from typing import TYPE_CHECKING, cast

from kestrel.server.hub import FLUSH_NOW_BYTES, Guest, Hub
from kestrel.server.origin import origin_of
from kestrel.server.sessions import Session
from kestrel.xmpp import stanza as x
from kestrel.xmpp.acks import REQUEST, AckCounter, AckError
from kestrel.xmpp.stream import Event, Stanza, StreamError, StreamHeader, StreamReader

if TYPE_CHECKING:
    from kestrel.xmpp.websocket import Framing

log = logging.getLogger("kestrel.server")

BUSY, RATE, CONGESTED, SECURING = 1, 2, 4, 8
"""Why a connection is not read: something must finish first; it is over its rate; its target is full."""


class Connection(asyncio.Protocol):
    """What client and component connections have in common."""

    __slots__ = (
        "_held",
        "_paid_until",
        "_pauses",
        "_pinged",
        "_rest",
        "_waiters",
        "acks",
        "address",
        "choked",
        "choked_at",
        "closed_at",
        "half_open",
        "heard_at",
        "hub",
        "opened",
        "origin",
        "reader",
        "securing",
        "session",
        "started_at",
        "transport",
    )

    namespace = x.NS_CLIENT
    kind = "client"
    ack_request = REQUEST
    """What asks for an acknowledgement (XEP-0198)."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.reader: StreamReader | Framing = self._make_reader()
        self.transport: asyncio.Transport | None = None
        self.session: Session | None = None
        self.acks: AckCounter | None = None
        self.address = self.origin = ""
        self.half_open = False
        """Whether it counts as one that has not logged in."""
        self.securing = False
        """While TLS is being negotiated nothing can be written."""
        self.opened = False
        """Whether our stream header has been sent."""
        self.choked = False
        """The other end takes less than is written."""
        self.choked_at = 0.0
        self.closed_at = 0.0
        """When it was closed; 0 while it is open."""
        self.started_at = self.heard_at = hub.loop.time()
        self._pauses = 0
        self._pinged = False
        self._paid_until = 0.0
        self._held: list[bytes] | None = None
        self._rest: list[Event] | None = None
        self._waiters: list[Connection] | None = None

    @abstractmethod
    def _make_reader(self) -> StreamReader: ...

    @abstractmethod
    def _on_header(self, header: StreamHeader) -> None: ...

    @abstractmethod
    def _on_negotiation(self, element: Stanza) -> None: ...

    @abstractmethod
    def _route(self, session: Session, events: list[Event]) -> int: ...

    @property
    @abstractmethod
    def outgoing_bytes_max(self) -> int: ...

    # ----------------------------------------------------------------------------------------------
    # called by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do everything that an `asyncio.Transport` does without being one.
        self.transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        self.address = peer[0] if peer else ""
        self.origin = origin_of(self.address)
        if not self.hub.admit(self):
            self.closed_at = self.hub.loop.time()
            self.transport.abort()

    def take_place(self, older: Guest, transport: asyncio.Transport, started_at: float) -> None:
        """Go on with the socket of `older`, which has been admitted; its time runs on."""
        self.transport = transport
        self.address, self.origin = older.address, older.origin
        self.started_at = started_at
        self.hub.hand_over(older, self)
        transport.set_protocol(self)

    def data_received(self, data: bytes) -> None:
        if self.closed_at:
            return
        hub = self.hub
        self.heard_at = hub.now
        self._pinged = False
        if self._pauses or self._must_wait():
            if self._held is None:
                self._held = []
            self._held.append(data)
            return
        count = self._read(data)
        if len(data) >= FLUSH_NOW_BYTES:
            hub.flush()
            self._must_wait()
        else:
            hub.flush_soon()
        if hub.limits.stanzas_per_s or hub.limits.bytes_per_s:
            self._charge(count, len(data))

    def eof_received(self) -> None:
        """The other end has stopped sending; half-open streams are not kept (RFC 6120 section 4.4)."""
        self.end("eof")

    def connection_lost(self, exc: Exception | None) -> None:
        try:
            self.end("lost", error=exc)
        finally:
            self.hub.leave(self)
            self.transport = None
            self._held = self._rest = None

    def pause_writing(self) -> None:
        self.choked = True
        self.choked_at = self.hub.loop.time()

    def resume_writing(self) -> None:
        self.choked = False
        self._release_waiters()

    # ----------------------------------------------------------------------------------------------
    # reading

    def _read(self, data: bytes) -> int:
        """Take in what has become complete; returns the number of elements."""
        try:
            events = self.reader.feed(data)
        except StreamError as problem:
            count = self._take(problem.events)
            self.fail(problem.condition, problem.reason)
            return count
        return self._take(events)

    def _take(self, events: list[Event]) -> int:
        try:
            session = self.session
            if session is not None:
                return self._route(session, events)
            for at, event in enumerate(events):
                if self.closed_at or self.securing:
                    break
                if self._pauses & BUSY:
                    self._rest = events[at:]
                    break
                self._negotiate(event)
        except StreamError as problem:
            self.fail(problem.condition, problem.reason)
        except Exception:
            # A task boundary: our fault ends this stream and no other.
            log.exception("server.connection_failed", extra=self._fields())
            self.fail("internal-server-error")
        return len(events)

    def _negotiate(self, event: Event) -> None:
        if isinstance(event, Stanza):
            if not self.opened:
                # Behind the last element of a login, where a new stream has to begin.
                raise StreamError("bad-format", "a stream header must come first")
            self._on_negotiation(event)
        elif isinstance(event, StreamHeader):
            self._on_header(event)
        else:
            self.finish()

    def _must_wait(self) -> bool:
        """Stop reading while the component that this client sends to is congested."""
        session = self.session
        if session is None or session.toward is None:
            return False
        target = session.toward.link
        assert isinstance(target, Connection)
        if not target.choked or target.closed_at:
            return False
        if target._waiters is None:
            target._waiters = []
        target._waiters.append(self)
        self.pause(CONGESTED)
        return True

    def _release_waiters(self) -> None:
        waiters, self._waiters = self._waiters, None
        for waiter in waiters or ():
            # Not from inside the transport's callback: what they held is routed here at once.
            self.hub.loop.call_soon(waiter.resume, CONGESTED)

    def _charge(self, count: int, size: int) -> None:
        """Read slower if this client is above its rate; it may be `burst_s` ahead."""
        limits = self.hub.limits
        cost = max(
            count / limits.stanzas_per_s if limits.stanzas_per_s else 0.0,
            size / limits.bytes_per_s if limits.bytes_per_s else 0.0,
        )
        now = self.hub.loop.time()
        self._paid_until = max(self._paid_until, now) + cost
        ahead = self._paid_until - now - limits.burst_s
        if ahead > 0 and not self._pauses & RATE and not self.closed_at:
            self.pause(RATE)
            self.hub.loop.call_later(ahead, self.resume, RATE)

    def pause(self, reason: int) -> None:
        """Stop reading; what came meanwhile is held."""
        if not self._pauses and self.transport is not None and not self.transport.is_closing():
            self.transport.pause_reading()
        self._pauses |= reason

    def resume(self, reason: int) -> None:
        """Go on reading if nothing else forbids it."""
        self._pauses &= ~reason
        if not self._may_read():
            return
        self.heard_at = self.hub.now
        rest, self._rest = self._rest, None
        if rest:
            self._take(rest)
        while self._held and self._may_read():
            held, self._held = self._held, None
            self.data_received(held[0])
            # What this brought to a halt comes before what was behind it.
            self._hold_after(held[1:])
        self.hub.flush_soon()
        if self._may_read() and self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    def _hold_after(self, later: list[bytes]) -> None:
        self._held = [*(self._held or ()), *later]

    def _may_read(self) -> bool:
        return not (self._pauses or self.closed_at)

    # ----------------------------------------------------------------------------------------------
    # writing

    def write(self, data: bytes) -> None:
        """Send now; for what is no stanza. Who asks on and takes no answers is dropped."""
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        transport.write(data)
        if self.closed_at or not (self.choked or self.session is None):
            return
        most = self.hub.limits.login_outgoing_bytes_max if self.session is None else self.outgoing_bytes_max
        if transport.get_write_buffer_size() > most:
            log.warning("server.slow_reader_dropped", extra=self._fields())
            self.drop("slow")

    def write_outbox(self, session: Session) -> None:
        """Send what the router has for this session, with one write."""
        outbox = session.outbox
        count = len(outbox)
        data = outbox[0] if count == 1 else b"".join(outbox)
        outbox.clear()
        transport = self.transport
        if transport is None or self.session is not session or not data:
            return
        if self.acks is not None:
            try:
                if self.acks.count_sent(count):
                    data += self.ack_request
            except AckError as problem:
                self.fail("policy-violation", problem.text)
                return
        transport.write(data)
        if self.choked and transport.get_write_buffer_size() > self.outgoing_bytes_max:
            log.warning("server.slow_reader_dropped", extra=self._fields())
            self.drop("slow")

    def write_together(self, parts: tuple[bytes, ...]) -> None:
        """Send several elements now, with one write."""
        self.write(b"".join(parts))

    def open_stream(self, to: str = "", features: bytes = b"") -> str:
        """Send our stream header, and with it what is offered; returns the stream's id."""
        number = secrets.token_hex(8)
        self.opened = True
        version = "1.0" if self.namespace == x.NS_CLIENT else ""
        sender = self.hub.settings.domain if self.namespace == x.NS_CLIENT else to
        header = x.stream_header(self.namespace, from_=sender, id=number, version=version)
        self.write_together((header, features) if features else (header,))
        return number

    # ----------------------------------------------------------------------------------------------
    # ending

    def end(self, reason: str, *, error: Exception | None = None) -> None:
        """The session is over, now; the socket may live a little longer."""
        if self.closed_at:
            return
        self.closed_at = self.hub.loop.time()
        session, self.session = self.session, None
        if session is not None:
            log.info(
                "server.session_closed",
                extra={
                    **self._fields(),
                    "session": session.address,
                    "reason": reason,
                    "error": str(error or ""),
                },
            )
            self.hub.router.close(session)
        self.reader.close()
        self._release_waiters()
        self.hub.flush_soon()

    def finish(self) -> None:
        """The other end has closed its stream in order: answer, and close."""
        self._last_words(x.STREAM_END, "closed")

    def fail(self, condition: str, text: str = "") -> None:
        """Close the stream with an error (RFC 6120 section 4.9)."""
        if not self.closed_at:
            log.info(
                "server.stream_error", extra={**self._fields(), "condition": condition, "text": text[:200]}
            )
        self._last_words(x.stream_error(condition, text[:200]), condition)

    def _last_words(self, words: bytes, reason: str) -> None:
        if self.closed_at:
            return
        session = self.session
        if session is not None and session.outbox:
            self.write_outbox(session)
        if self.closed_at:
            return
        if self.securing:
            self.drop(reason)
            return
        if not self.opened:
            self.open_stream()
        self.end(reason)
        self.write(words)
        if self.transport is not None:
            self.transport.close()

    def drop(self, reason: str) -> None:
        """Close at once; what was written and not taken is lost."""
        self.end(reason)
        if self.transport is not None:
            self.transport.abort()

    # ----------------------------------------------------------------------------------------------
    # time

    def tick(self, now: float) -> None:
        """Called every `tick_s`."""
        limits = self.hub.limits
        if self.closed_at:
            if now - self.closed_at > limits.linger_s_max and self.transport is not None:
                self.transport.abort()
        elif self.session is None:
            if now - self.started_at > limits.login_s_max:
                self.fail("connection-timeout", "the login took too long")
        elif self._pauses:
            # We do not listen, so silence says nothing.
            self.heard_at = now
        else:
            self._watch(self.session, now)

    def _watch(self, session: Session, now: float) -> None:
        limits = self.hub.limits
        quiet = now - self.heard_at
        if quiet > limits.rest_s:
            self.reader.rest()
        if quiet > limits.quiet_s_max + limits.pong_s_max:
            log.info("server.peer_silent", extra=self._fields())
            self.drop("silent")
        elif quiet > limits.quiet_s_max and not self._pinged:
            self.ping(session)

    def ping(self, session: Session) -> None:
        """Ask for a sign of life (XEP-0199, or XEP-0198 where enabled)."""
        self._pinged = True
        if self.acks is not None:
            self.write(REQUEST)
            return
        domain = self.hub.settings.domain
        payload = f"<ping xmlns='{x.NS_PING}'/>"
        session.send(x.iq("get", "alive", to=session.address, from_=domain, payload=payload))

    def _fields(self) -> dict[str, object]:
        session = self.session.address if self.session is not None else ""
        return {"kind": self.kind, "address": self.address, "session": session}
