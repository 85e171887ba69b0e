"""A client's connection through a WebSocket (RFC 7395): everything as ever, in frames.

`Framing` stands where the stream's reader stands elsewhere, and each thing that is said becomes a message
of its own. There is no STARTTLS within: what shall be encrypted was so before the WebSocket. Made by the
doorman.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kestrel.server.client_connection import ClientConnection
from kestrel.server.hub import Hub
from kestrel.server.sessions import Session
from kestrel.xmpp.acks import REQUEST
from kestrel.xmpp.websocket import Framing

if TYPE_CHECKING:
    from wsproto.connection import Connection as WebSocket

FINAL_TEXT = b"\x81"
"""The first byte of a message that is one frame (RFC 6455 section 5.2)."""


class WebSocketConnection(ClientConnection):
    """One client, from the opened WebSocket to the last message."""

    __slots__ = ("_framing",)

    ack_request = FINAL_TEXT + bytes((len(REQUEST),)) + REQUEST
    way = "websocket"
    takes_starttls = False

    def __init__(self, hub: Hub, websocket: WebSocket) -> None:
        super().__init__(hub)
        self._framing = Framing(self._make_reader(), websocket, self._say)
        self.reader = self._framing

    def write(self, data: bytes) -> None:
        """Send one element, a header or an end, now."""
        super().write(self._framing.frame(data))

    def write_together(self, parts: tuple[bytes, ...]) -> None:
        """Send several elements now, a message for each, with one write."""
        super().write(b"".join(map(self._framing.frame, parts)))

    def write_outbox(self, session: Session) -> None:
        """Send what the router has for this session: a message for each stanza, with one write."""
        frame = self._framing.frame
        session.outbox[:] = [frame(stanza) for stanza in session.outbox]
        super().write_outbox(session)

    def _say(self, data: bytes) -> None:
        """What the WebSocket itself answers; who takes nothing gets no answers to its pings either."""
        if not self.choked:
            super().write(data)
