"""Who has connected to the one port, and has not shown yet what it speaks.

The first byte tells: `<` begins a stream, 0x16 a TLS hello (XEP-0368), `GET ` a WebSocket (RFC 7395); after
TLS it is asked again. Everybody waits here as cheaply as can be: there is no parser, no login and no TLS
before the first words are whole, and whoever takes longer than `login_s_max` is sent away. It must never
keep more than `first_words_bytes_max` of them. Made by the service for each connection to the client port;
it ends by putting another protocol in its own place, so it costs nothing later on.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, cast

from kestrel.server.client_connection import ClientConnection
from kestrel.server.hub import Hub
from kestrel.server.origin import origin_of

if TYPE_CHECKING:
    from kestrel.xmpp.websocket import Answer

log = logging.getLogger("kestrel.server")

HTTP_START = b"GET "
HTTP_END = b"\r\n\r\n"
TLS_HANDSHAKE = 0x16
TLS_RECORD_HEADER = 5
TLS_CLIENT_HELLO = (3, 1)
"""Major version of the record, kind of handshake message (RFC 8446 sections 5.1 and 4)."""
TLS_REFUSAL = b"\x15\x03\x01\x00\x02\x02\x28"
"""A fatal alert, `handshake_failure` (RFC 8446 section 6.2)."""


class Doorman(asyncio.Protocol):
    """One connection, until it is known what it is."""

    __slots__ = (
        "_held",
        "address",
        "closed_at",
        "encrypted",
        "half_open",
        "hub",
        "origin",
        "securing",
        "started_at",
        "transport",
    )

    kind = "client"

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.transport: asyncio.Transport | None = None
        self.address = self.origin = ""
        self.half_open = False
        self.encrypted = False
        self.securing = False
        """While TLS is being negotiated."""
        self.started_at = hub.loop.time()
        self.closed_at = 0.0
        self._held = b""
        """The first words, as far as they have come."""

    # ----------------------------------------------------------------------------------------------
    # called by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        self.address = peer[0] if peer else ""
        self.origin = origin_of(self.address)
        if not self.hub.admit(self):
            self.drop("refused")

    def data_received(self, data: bytes) -> None:
        if self.closed_at:
            return
        self._held = self._held + data if self._held else data
        if not self.securing:
            self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed_at = self.closed_at or self.hub.loop.time()
        self.hub.leave(self)
        self.transport = None
        self._held = b""

    # ----------------------------------------------------------------------------------------------
    # what is it?

    def _look(self) -> None:
        held = self._held
        if not held:
            return
        if held[0] == TLS_HANDSHAKE and not self.encrypted:
            self._on_hello(held)
        elif HTTP_START.startswith(held[: len(HTTP_START)]):
            self._on_request(held)
        else:
            # Whatever it is, the stream's reader says in words what is wrong with it.
            self._let_in(ClientConnection(self.hub))

    def _let_in(self, connection: ClientConnection) -> None:
        """It takes our place, with all that has come."""
        held, self._held = self._held, b""
        transport, self.transport = self.transport, None
        assert transport is not None
        self.closed_at = self.hub.loop.time()
        connection.encrypted = self.encrypted
        connection.take_place(self, transport, self.started_at)
        if held:
            connection.data_received(held)

    # ----------------------------------------------------------------------------------------------
    # TLS from the first byte (XEP-0368)

    def _on_hello(self, held: bytes) -> None:
        """TLS costs memory and time, so it begins only when a client's hello is whole."""
        if len(held) <= TLS_RECORD_HEADER:
            return
        size = TLS_RECORD_HEADER + int.from_bytes(held[3:5], "big")
        is_hello = (held[1], held[TLS_RECORD_HEADER]) == TLS_CLIENT_HELLO and size > TLS_RECORD_HEADER
        if self.hub.context is None or not is_hello or size > self.hub.limits.first_words_bytes_max:
            log.info(
                "server.tls_refused",
                extra={"address": self.address, "certificate": self.hub.context is not None, "bytes": size},
            )
            assert self.transport is not None
            self.transport.write(TLS_REFUSAL)
            self.close()
        elif len(held) >= size:
            self.securing = True
            self.hub.spawn(self._secure())

    async def _secure(self) -> None:
        hub, transport = self.hub, self.transport
        assert transport is not None
        hello, self._held = self._held, b""
        try:
            secured = await hub.secure(transport, self, hello)
        except (OSError, EOFError) as problem:
            log.info("server.tls_failed", extra={"address": self.address, "reason": str(problem)})
            secured = None
        except asyncio.CancelledError:
            self._lost()
            raise
        if secured is None:
            # asyncio does not tell the protocol when a TLS handshake fails.
            self._lost()
            return
        self.transport = secured
        self.encrypted = True
        self.securing = False
        if self.closed_at:
            secured.abort()
        else:
            self._look()

    def _lost(self) -> None:
        self.drop("tls")
        self.connection_lost(None)

    # ----------------------------------------------------------------------------------------------
    # HTTP, which leads to a WebSocket (RFC 7395) or to nothing

    def _on_request(self, held: bytes) -> None:
        from kestrel.server import web
        from kestrel.server.websocket_connection import WebSocketConnection

        hub = self.hub
        end = held.find(HTTP_END, 0, hub.limits.first_words_bytes_max) + len(HTTP_END)
        if end < len(HTTP_END):
            if len(held) >= hub.limits.first_words_bytes_max:
                self._refuse(web.too_long())
            return
        may_enter = self.encrypted or not hub.requires_tls(self.address)
        answer = web.answer_to(held[:end], domain=hub.settings.domain, may_enter=may_enter)
        if answer.connection is None:
            self._refuse(answer)
            return
        assert self.transport is not None
        self.transport.write(answer.send)
        self._held = held[end:]
        self._let_in(WebSocketConnection(hub, answer.connection))

    def _refuse(self, answer: Answer) -> None:
        log.info("server.http_refused", extra={"address": self.address, "answer": answer.send[9:12].decode()})
        assert self.transport is not None
        self.transport.write(answer.send)
        self.close()

    # ----------------------------------------------------------------------------------------------
    # ending

    def fail(self, condition: str, text: str = "") -> None:
        """Send it away, with words if it could understand them."""
        if self.closed_at:
            return
        if not self.securing and HTTP_START.startswith(self._held[: len(HTTP_START)] or b"-"):
            from kestrel.server import web

            self._refuse(web.too_late())
            return
        if self.securing or self._held:
            self.drop(condition)
            return
        connection = ClientConnection(self.hub)
        self._let_in(connection)
        connection.fail(condition, text)

    def drop(self, reason: str) -> None:
        """Close at once."""
        self.closed_at = self.closed_at or self.hub.loop.time()
        self._held = b""
        if self.transport is not None:
            self.transport.abort()

    def close(self) -> None:
        """Close when what was written has been taken."""
        self.closed_at = self.hub.loop.time()
        self._held = b""
        if self.transport is not None:
            self.transport.close()

    # ----------------------------------------------------------------------------------------------
    # time

    def tick(self, now: float) -> None:
        """Called every `tick_s`."""
        limits = self.hub.limits
        if self.closed_at:
            if now - self.closed_at > limits.linger_s_max and self.transport is not None:
                self.transport.abort()
        elif now - self.started_at > limits.login_s_max:
            self.fail("connection-timeout", "the login took too long")
