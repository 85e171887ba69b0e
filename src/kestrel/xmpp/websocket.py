"""XMPP within WebSockets (RFC 7395), for either end: bytes of a connection to stanzas, and back.

Pure: no sockets, no time. `ClientHandshake` and `ServerHandshake` lead to a `Framing`; from then on that
stands where a `StreamReader` stands elsewhere, and renders what is to be sent. Above it nothing changes:
`<open/>` becomes a stream header, `<close/>` the end of the stream, and the other way round. It must never
let a message through that is not exactly one element, nor send one that means nothing by itself.

Imported on the first WebSocket only: it brings wsproto and h11. Called by `wire` and the embedded server.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wsproto import ConnectionType, WSConnection
from wsproto import events as ws
from wsproto.connection import ConnectionState
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from kestrel.errors import EnvironmentProblem, PeerError
from kestrel.xmpp import stanza as x
from kestrel.xmpp.incoming import OPENING_TAG
from kestrel.xmpp.stream import Event, Stanza, StreamEnd, StreamError, StreamReader

if TYPE_CHECKING:
    from wsproto.connection import Connection

SUBPROTOCOL = "xmpp"
NS_FRAMING = "urn:ietf:params:xml:ns:xmpp-framing"
FRAGMENTS_MAX = 1024
"""Frames of one message. Its size is bounded by the `stanza_bytes_max` of the reader."""
IDLE_FRAMES_MAX = 2 * FRAGMENTS_MAX
"""Frames that are read at once and say nothing: pings, empty messages, fragments."""
HANDSHAKE_BYTES_MAX = 16384
"""The other end's part of the handshake; its time is bounded by the caller."""

_NS_FRAMING = NS_FRAMING.encode()
_HEADER_START = x.stream_header(version="")[:-1]
_ERROR_START, _FEATURES_START = b"<stream:error", b"<stream:features"
_STREAM_PREFIX = f" xmlns:stream='{x.NS_STREAM}'".encode()
_CLIENT = f" xmlns='{x.NS_CLIENT}'".encode()
_CLOSE = f"<close xmlns='{NS_FRAMING}'/>"
_QUOTED = rb"(?:\"[^\"]*\"|'[^']*')"
_NAME = re.compile(rb"<[^\s/>:]+(?=[\s/>])")
"""The start of an element without prefix."""
_DEFAULT_DECLARED = re.compile(
    rb"<[^\s/>]+(?:\s+(?!xmlns[\s=])[^\s=]+\s*=\s*" + _QUOTED + rb")*\s+xmlns\s*=", re.DOTALL
)


class Framing:
    """One end of an open WebSocket: reads as a `StreamReader` does, and renders what is sent."""

    __slots__ = ("_connection", "_ended", "_fragments", "_message", "_send", "_stream")

    def __init__(self, stream: StreamReader, connection: Connection, send: Callable[[bytes], None]) -> None:
        """`send` takes what the WebSocket itself has to say (answers to pings and to its closing).

        It is called during `feed`, at most twice each time. It may leave out what the other end does not
        take; everything else is sent by the caller, who asks `frame` for the bytes.
        What came behind the handshake is in `connection` already: `feed(b"")` reads it.
        """
        self._stream = stream
        self._connection = connection
        self._send = send
        self._message = bytearray()
        self._fragments = 0
        self._ended = False
        """Whether the other end has closed the stream or the WebSocket."""

    # ----------------------------------------------------------------------------------------------
    # as a `StreamReader`

    @property
    def stanza_bytes_max(self) -> int:
        return self._stream.stanza_bytes_max

    @stanza_bytes_max.setter
    def stanza_bytes_max(self, size: int) -> None:
        self._stream.stanza_bytes_max = size

    @property
    def at_boundary(self) -> bool:
        return self._stream.at_boundary and not self._message

    @property
    def pending_bytes(self) -> int:
        return len(self._message)

    def reset(self) -> None:
        """Expect a new `<open/>`, as after SASL."""
        self._stream.reset()

    def rest(self) -> None:
        self._stream.rest()

    def close(self) -> None:
        self._ended = True
        self._message.clear()
        self._stream.close()

    def feed(self, data: bytes) -> list[Event]:
        """What has become complete with `data`. Raises `StreamError`."""
        if self._ended:
            return []
        events: list[Event] = []
        try:
            self._connection.receive_data(data)
            self._read(events)
        except StreamError as problem:
            problem.events = [*events, *problem.events]
            self._ended = True
            raise
        return events

    def _read(self, events: list[Event]) -> None:
        ping: ws.Ping | None = None
        idle = said = 0
        for event in self._connection.events():
            idle, said = (idle + 1 if len(events) == said else 0), len(events)
            if idle > IDLE_FRAMES_MAX:
                raise StreamError("policy-violation", f"{IDLE_FRAMES_MAX} frames that say nothing")
            match event:
                case ws.TextMessage():
                    self._on_text(event, events)
                case ws.Ping():
                    ping = event  # the last one stands for all (RFC 6455 section 5.5.3)
                case ws.CloseConnection():
                    if self._connection.state is ConnectionState.OPEN:
                        raise StreamError("bad-format", f"broken WebSocket frames: {event.reason}")
                    self._on_closed(event, events)
                case ws.BytesMessage():
                    raise StreamError("bad-format", "a binary message")
                case _:
                    continue
            if self._ended:
                break
        if ping is not None and self._connection.state is ConnectionState.OPEN:
            self._send(self._connection.send(ping.response()))

    def _on_text(self, event: ws.TextMessage, events: list[Event]) -> None:
        self._message += event.data.encode()
        if len(self._message) > self._stream.stanza_bytes_max:
            self._message.clear()
            raise StreamError(
                "policy-violation", f"a message is larger than {self._stream.stanza_bytes_max} bytes"
            )
        if event.frame_finished:
            self._fragments += 1
        if self._fragments > FRAGMENTS_MAX:
            raise StreamError("policy-violation", f"a message in more than {FRAGMENTS_MAX} fragments")
        if event.message_finished:
            message, self._message, self._fragments = bytes(self._message), bytearray(), 0
            self._on_message(message, events)

    def _on_message(self, message: bytes, events: list[Event]) -> None:
        opening = OPENING_TAG.match(message)
        if opening is None:
            if message.strip():
                raise StreamError("bad-format", "a message that does not begin with an element")
            return
        if _NS_FRAMING in opening[0] and (framing := _alone(message)).ns == NS_FRAMING:
            self._on_framing(framing, events)
            return
        found = self._stream.feed(message)
        events += found
        if len(found) != 1 or not self._stream.at_boundary:
            raise StreamError("bad-format", "a message that is not exactly one element")

    def _on_framing(self, element: Stanza, events: list[Event]) -> None:
        attrs = element.attrs
        if element.name == "open":
            if self._stream.at_boundary:
                raise StreamError("bad-format", "the stream is open already")
            header = x.stream_header(
                to=attrs.get("to", ""),
                from_=attrs.get("from", ""),
                id=attrs.get("id", ""),
                version=attrs.get("version", ""),
                xml_lang=attrs.get(f"{x.NS_XML} lang", ""),
            )
            events += self._stream.feed(header)
        elif element.name == "close":
            elsewhere = attrs.get("see-other-uri")
            if elsewhere:
                events.append(_see_other(elsewhere))
            events.append(StreamEnd())
            self._ended = True
        else:
            raise StreamError("bad-format", f"a framing element {element.name!r}")

    def _on_closed(self, event: ws.CloseConnection, events: list[Event]) -> None:
        """The other end closes the WebSocket; with or without `<close/>`, that ends the stream."""
        self._ended = True
        events.append(StreamEnd())
        if self._connection.state is ConnectionState.REMOTE_CLOSING:
            self._send(self._connection.send(event.response()))

    # ----------------------------------------------------------------------------------------------
    # sending

    def frame(self, data: bytes) -> bytes:
        """The bytes that say this: ONE stanza or other element, a stream header, the end of a stream, or a
        stream error with the end behind it, as `kestrel.xmpp.stanza` renders them.

        Empty if the WebSocket is closed.
        """
        if data.startswith(_HEADER_START):
            return self._text(f"<open xmlns='{NS_FRAMING}'".encode() + data[len(_HEADER_START) : -1] + b"/>")
        if data == x.STREAM_END:
            return self._end()
        for start in (_ERROR_START, _FEATURES_START):
            if data.startswith(start):
                error = data.removesuffix(x.STREAM_END)
                declared = start + _STREAM_PREFIX + error[len(start) :]
                return self._text(declared) + (self._end() if error != data else b"")
        name = _NAME.match(data)
        if name is not None and _DEFAULT_DECLARED.match(data) is None:
            data = name[0] + _CLIENT + data[name.end() :]
        return self._text(data)

    def _text(self, data: bytes) -> bytes:
        if self._connection.state is not ConnectionState.OPEN:
            return b""
        return self._connection.send(ws.TextMessage(data.decode()))

    def _end(self) -> bytes:
        """`<close/>`; who answers one, or is the server, closes the WebSocket behind it (section 3.6)."""
        said = self._text(_CLOSE.encode())
        if not said or (self._connection_is_client and not self._ended):
            return said
        return said + self._connection.send(ws.CloseConnection(CloseReason.NORMAL_CLOSURE))

    @property
    def _connection_is_client(self) -> bool:
        return bool(self._connection.client)


def _alone(message: bytes) -> Stanza:
    """The element of a message that needs no stream. Raises `StreamError`."""
    reader = StreamReader()
    events = reader.feed(x.stream_header() + message)
    if len(events) != 2 or not isinstance(events[1], Stanza) or not reader.at_boundary:
        raise StreamError("bad-format", "a message that is not exactly one element")
    reader.close()
    return events[1]


def _see_other(uri: str) -> Stanza:
    """`<close see-other-uri=…/>` in the words of a stream error."""
    words = (
        f"it wants us to go to {uri[:200]}, and nobody checked that address: use it yourself if it is right"
    )
    return _alone(
        f"<stream:error><see-other-host xmlns='{x.NS_STREAM_ERRORS}'/>"
        f"<text xmlns='{x.NS_STREAM_ERRORS}'>{x.escape_text(words)}</text></stream:error>".encode()
    )


# --------------------------------------------------------------------------------------------------
# Handshakes


class ClientHandshake:
    """Asks an HTTP server for a WebSocket that carries XMPP (RFC 6455 section 4.1, RFC 7395 section 3.1)."""

    def __init__(self, host: str, path: str) -> None:
        """`host` as in the URL, with the port unless it is the usual one."""
        self._ws = WSConnection(ConnectionType.CLIENT)
        self._bytes = 0
        self._where = f"{host}{path}"
        self.request = self._ws.send(ws.Request(host=host, target=path, subprotocols=[SUBPROTOCOL]))
        """What to send."""

    def feed(self, data: bytes) -> Connection | None:
        """The open connection, or None as long as the answer is not complete.

        Raises `PeerError` and `EnvironmentProblem` if there will be none.
        """
        self._bytes += len(data)
        try:
            self._ws.receive_data(data)
            # Not `events()`: what came behind the handshake is left to the framing.
            event = next(self._ws.handshake.events(), None)
        except (RemoteProtocolError, UnicodeError) as problem:
            raise PeerError(
                f"{self._where} did not answer as a WebSocket does: {problem}.",
                hint="Are address and port right? Is it a WebSocket for XMPP?",
                code="no_websocket",
            ) from None
        match event:
            case None:
                if self._bytes > HANDSHAKE_BYTES_MAX:
                    raise PeerError(f"{self._where} answers with more than {HANDSHAKE_BYTES_MAX} bytes.")
                return None
            case ws.AcceptConnection(subprotocol=protocol) if protocol == SUBPROTOCOL:
                return self._ws.connection
            case ws.AcceptConnection():
                raise PeerError(
                    f"The WebSocket at {self._where} does not speak XMPP.",
                    hint="Check the path.",
                    code="no_websocket",
                )
            case ws.RejectConnection(status_code=status):
                raise _rejection(self._where, status, dict(event.headers))
            case _:
                raise PeerError(f"{self._where} did not answer as a WebSocket does.", code="no_websocket")


def _rejection(where: str, status: int, headers: dict[bytes, bytes]) -> PeerError | EnvironmentProblem:
    if status in (502, 503, 504):
        return EnvironmentProblem(
            f"There is no server behind {where} at the moment (HTTP {status}).",
            hint="Is the XMPP server running?",
            code="unreachable",
            retry=True,
        )
    if status // 100 == 3:
        there = headers.get(b"location", b"").decode("latin-1")[:200]
        return PeerError(
            f"{where} sends us elsewhere (HTTP {status}): {there}",
            hint="Use that address if it is right; Kestrel does not follow it by itself.",
            code="no_websocket",
        )
    return PeerError(
        f"There is no WebSocket at {where} (HTTP {status}).",
        hint="Check the path; is the server's WebSocket switched on?",
        code="no_websocket",
    )


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server's end of a handshake says."""

    send: bytes
    connection: Connection | None
    """None: refused; the connection is to be closed once the answer is sent."""


class ServerHandshake:
    """Answers who asks for a WebSocket; everything else is refused as HTTP does it."""

    def __init__(self, paths: frozenset[str]) -> None:
        """`paths` at which there is a WebSocket."""
        self._ws = WSConnection(ConnectionType.SERVER)
        self._paths = paths
        self._bytes = 0

    def feed(self, data: bytes) -> Answer | None:
        """The answer, or None as long as the request is not complete."""
        self._bytes += len(data)
        try:
            self._ws.receive_data(data)
            event = next(self._ws.events(), None)
        except RemoteProtocolError as problem:
            hint = problem.event_hint
            status = hint.status_code if isinstance(hint, ws.RejectConnection) else 400
            headers = hint.headers if isinstance(hint, ws.RejectConnection) else []
            return self._refuse(status, headers)
        except (UnicodeError, ValueError):
            return self._refuse(400)
        if event is None:
            return self._refuse(431) if self._bytes > HANDSHAKE_BYTES_MAX else None
        if not isinstance(event, ws.Request):
            return self._refuse(400)
        if event.target.partition("?")[0] not in self._paths:
            return self._refuse(404)
        if SUBPROTOCOL not in event.subprotocols:
            return self._refuse(501)
        answer = self._ws.send(ws.AcceptConnection(subprotocol=SUBPROTOCOL))
        assert self._ws.connection is not None
        return Answer(answer, self._ws.connection)

    def _refuse(self, status: int, headers: list[tuple[bytes, bytes]] | None = None) -> Answer:
        said = [*(headers or []), (b"connection", b"close")]
        try:
            return Answer(self._ws.send(ws.RejectConnection(status_code=status, headers=said)), None)
        except LocalProtocolError:
            return Answer(b"", None)
