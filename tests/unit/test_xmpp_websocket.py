"""XMPP in WebSockets: both ends of the framing against each other, and against what no peer should send."""

import struct

import pytest
from wsproto.utilities import generate_accept_token

from kestrel.errors import EnvironmentProblem, PeerError
from kestrel.xmpp import stanza as x
from kestrel.xmpp.stream import Stanza, StreamEnd, StreamError, StreamHeader, StreamReader
from kestrel.xmpp.websocket import (
    FRAGMENTS_MAX,
    HANDSHAKE_BYTES_MAX,
    NS_FRAMING,
    ClientHandshake,
    Framing,
    ServerHandshake,
)

PATH = "/xmpp-websocket"


class End:
    """One end: what it said by itself is in `said`."""

    def __init__(self, connection, **bounds):
        self.said = []
        self.framing = Framing(StreamReader(**bounds), connection, self.said.append)


def ends(**bounds):
    """A client and a server that have shaken hands."""
    client = ClientHandshake("x.org", PATH)
    answer = ServerHandshake(frozenset((PATH,))).feed(client.request)
    return End(client.feed(answer.send), **bounds), End(answer.connection, **bounds)


def opened(**bounds):
    client, server = ends(**bounds)
    client.framing.feed(server.framing.frame(x.stream_header(from_="x.org", id="7")))
    server.framing.feed(client.framing.frame(x.stream_header(to="x.org")))
    return client, server


def raw_frame(opcode, payload=b"", *, fin=True, length=None):
    """A frame as a server sends it (not masked)."""
    size = len(payload) if length is None else length
    head = bytes([(0x80 if fin else 0) | opcode])
    if size < 126:
        head += bytes([size])
    elif size < 65536:
        head += b"\x7e" + struct.pack("!H", size)
    else:
        head += b"\x7f" + struct.pack("!Q", size)
    return head + payload


def refused(framing, data, condition):
    with pytest.raises(StreamError) as caught:
        framing.feed(data)
    assert caught.value.condition == condition
    return caught.value


def test_headers_stanzas_and_the_end_arrive_as_on_a_plain_stream():
    client, _ = ends()
    said = b"".join(
        client.framing.frame(data)
        for data in (
            x.stream_header(to="x.org", from_="a@x.org"),
            x.message_body("b@x.org", "hé <&> 'q'"),
            x.presence(),
            b"<r xmlns='urn:xmpp:sm:3'/>",
            x.STREAM_END,
        )
    )
    for step in (1, 7, len(said)):
        _, end = ends()
        events = [
            event for at in range(0, len(said), step) for event in end.framing.feed(said[at : at + step])
        ]
        header, message, presence, nonza, last = events
        assert isinstance(header, StreamHeader)
        assert (header.ns, header.attrs["to"], header.attrs["version"]) == (x.NS_CLIENT, "x.org", "1.0")
        assert (message.tag, message.body()) == (f"{x.NS_CLIENT} message", "hé <&> 'q'")
        assert (presence.tag, nonza.tag) == (f"{x.NS_CLIENT} presence", f"{x.NS_ACKS} r")
        assert isinstance(last, StreamEnd)
        assert end.framing.feed(b"more") == []


def test_a_server_says_features_and_errors_so_that_each_stands_alone():
    client, server = opened()
    features = b"<stream:features><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></stream:features>"
    (event,) = client.framing.feed(server.framing.frame(features))
    assert event.tag == f"{x.NS_STREAM} features"
    assert event.has_child(x.NS_BIND, "bind")
    error, end = client.framing.feed(server.framing.frame(x.stream_error("conflict", "again")))
    assert (error.tag, error.child_text(x.NS_STREAM_ERRORS, "text")) == (f"{x.NS_STREAM} error", "again")
    assert isinstance(end, StreamEnd)


@pytest.mark.parametrize(
    ("stanza", "said"),
    [
        (b"<message to='a'/>", b"<message xmlns='jabber:client' to='a'/>"),
        (b"<iq>x</iq>", b"<iq xmlns='jabber:client'>x</iq>"),
        (b"<iq xmlns = 'jabber:client'/>", b"<iq xmlns = 'jabber:client'/>"),
        (b"<iq id=\" xmlns=\" to='>'/>", b"<iq xmlns='jabber:client' id=\" xmlns=\" to='>'/>"),
        (b"<iq xmlns:a='b'/>", b"<iq xmlns='jabber:client' xmlns:a='b'/>"),
        (b"<iq id='1' xmlns='c'/>", b"<iq id='1' xmlns='c'/>"),
        (b"<iq id='1'\nxmlns='c'/>", b"<iq id='1'\nxmlns='c'/>"),
    ],
)
def test_each_element_says_its_namespace_once(stanza, said):
    client, server = opened()
    assert server.framing.frame(stanza)[2:] == said
    assert len(client.framing.feed(server.framing.frame(stanza))) == 1


def test_the_stream_begins_anew_after_a_reset():
    client, server = opened()
    client.framing.reset()
    (header,) = client.framing.feed(server.framing.frame(x.stream_header(from_="x.org", id="8")))
    assert header.attrs["id"] == "8"


def test_who_is_asked_to_close_closes_the_websocket_too():
    client, server = opened()
    (end,) = server.framing.feed(client.framing.frame(x.STREAM_END))
    assert isinstance(end, StreamEnd)
    answer = server.framing.frame(x.STREAM_END)
    assert f"<close xmlns='{NS_FRAMING}'/>".encode() in answer
    assert answer.endswith(b"\x88\x02" + struct.pack("!H", 1000))
    assert isinstance(client.framing.feed(answer)[0], StreamEnd)
    assert server.framing.frame(x.presence()) == b""


def test_a_websocket_that_is_closed_ends_the_stream_and_is_answered():
    client, _ = opened()
    (end,) = client.framing.feed(raw_frame(8, struct.pack("!H", 1001)))
    assert isinstance(end, StreamEnd)
    assert len(client.said) == 1
    assert client.framing.frame(x.presence()) == b""


def test_another_address_is_told_and_not_followed():
    client, _ = opened()
    error, end = client.framing.feed(
        raw_frame(1, f"<close xmlns='{NS_FRAMING}' see-other-uri='wss://evil/x'/>".encode())
    )
    assert error.has_child(x.NS_STREAM_ERRORS, "see-other-host")
    assert "wss://evil/x" in error.child_text(x.NS_STREAM_ERRORS, "text")
    assert isinstance(end, StreamEnd)


def test_pings_are_answered_once_for_each_read():
    client, _ = opened()
    assert client.framing.feed(raw_frame(9, b"1") + raw_frame(9, b"2") + raw_frame(10, b"?")) == []
    (pong,) = client.said
    assert pong[0] == 0x8A
    client.framing.feed(raw_frame(9, b"3"))
    assert len(client.said) == 2


def test_fragments_make_one_message_and_pings_may_come_between():
    client, _ = opened()
    parts = (
        raw_frame(1, b"<message><body>h\xc3", fin=False)
        + raw_frame(9)
        + raw_frame(0, b"\xa9</body></message>")
    )
    (message,) = client.framing.feed(parts)
    assert message.body() == "hé"
    assert len(client.said) == 1


@pytest.mark.parametrize(
    "message",
    [b"<a xmlns='b'/><c xmlns='b'/>", b"<message>", b"</message>", b"text", b"<a xmlns='b'/>text",
     b"<!-- -->", b"<?xml version='1.0'?>", b"</stream:stream>",
     b"<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams'>",
     f"<open xmlns='{NS_FRAMING}'/>".encode(), f"<open xmlns='{NS_FRAMING}'>".encode(),
     f"<close xmlns='{NS_FRAMING}'/><message/>".encode(), f"<x xmlns='{NS_FRAMING}'/>".encode(),
     f"<open xmlns='{NS_FRAMING}'><!DOCTYPE a></open>".encode()],
)  # fmt: skip
def test_a_message_that_is_not_one_whole_element_ends_the_stream(message):
    client, _ = opened()
    with pytest.raises(StreamError):
        client.framing.feed(raw_frame(1, message))
    assert client.framing.feed(raw_frame(1, b"<message/>")) == []


def test_what_came_before_the_fault_is_told():
    client, _ = opened()
    problem = refused(client.framing, raw_frame(1, b"<presence/>") + raw_frame(1, b"junk"), "bad-format")
    assert [event.name for event in problem.events if isinstance(event, Stanza)] == ["presence"]
    assert client.framing.frame(x.stream_error("bad-format"))


@pytest.mark.parametrize("data", [raw_frame(2, b"<message/>"), raw_frame(3), raw_frame(0, b"x"), b"\xc1\x00",
                                  raw_frame(1, b"\xff<"), b"\x81\x80abcd"])  # fmt: skip
def test_frames_that_are_not_text_end_the_stream(data):
    refused(opened()[0].framing, data, "bad-format")


def test_a_huge_message_is_refused_before_it_has_come():
    client, _ = opened(stanza_bytes_max=1000)
    begun = raw_frame(1, b"<message>" + b"x" * 500, length=2**30)
    assert client.framing.feed(begun) == []
    refused(client.framing, b"x" * 500, "policy-violation")
    assert client.framing.pending_bytes == 0


def test_endless_fragments_are_refused():
    client, _ = opened()
    assert client.framing.feed(raw_frame(1, b"<", fin=False)) == []
    refused(client.framing, raw_frame(0, b"", fin=False) * FRAGMENTS_MAX, "policy-violation")


# --------------------------------------------------------------------------------------------------
# the handshake


def answered(text, *, piece=10**6):
    handshake = ClientHandshake("x.org", PATH)
    key = handshake.request.partition(b"Sec-WebSocket-Key: ")[2].split(b"\r\n")[0]
    data = text.replace("KEY", generate_accept_token(key).decode()).replace("\n", "\r\n").encode()
    for at in range(0, len(data), piece):
        if connection := handshake.feed(data[at : at + piece]):
            return connection
    return None


GOOD = "HTTP/1.1 101 Go\nUpgrade: websocket\nConnection: upgrade\nSec-WebSocket-Accept: KEY\n"


def test_the_request_names_host_path_and_xmpp():
    request = ClientHandshake("x.org:8443", "/ws?a=b").request
    assert request.startswith(b"GET /ws?a=b HTTP/1.1\r\nHost: x.org:8443\r\n")
    assert b"Sec-WebSocket-Protocol: xmpp\r\n" in request


def test_an_answer_in_pieces_opens_the_websocket():
    assert answered(GOOD + "Sec-WebSocket-Protocol: xmpp\n\n", piece=1) is not None
    assert answered(GOOD + "Sec-WebSocket-Protocol: xmpp\n") is None


def test_what_came_with_the_answer_is_not_lost():
    connection = answered(GOOD + "Sec-WebSocket-Protocol: xmpp\n\n\x81\x02<<")
    with pytest.raises(StreamError):
        End(connection).framing.feed(b"")


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        (GOOD + "\n", PeerError, "does not speak XMPP"),
        (GOOD + "Sec-WebSocket-Protocol: chat\n\n", PeerError, "did not answer"),
        (GOOD.replace("KEY", "x") + "\n", PeerError, "did not answer"),
        ("SSH-2.0-OpenSSH_9\n\n", PeerError, "did not answer"),
        ("HTTP/1.1 404 Not Found\nContent-Length: 0\n\n", PeerError, "no WebSocket at x.org/xmpp-websocket"),
        ("HTTP/1.1 302 Go\nLocation: http://evil/\n\n", PeerError, "http://evil/"),
        ("HTTP/1.1 200 OK\n\nIt works!", PeerError, "HTTP 200"),
        ("HTTP/1.1 503 Away\n\n", EnvironmentProblem, "at the moment"),
        ("HTTP/1.1 101 Go\nX: " + "x" * 2 * HANDSHAKE_BYTES_MAX, PeerError, ""),
    ],
)
def test_every_other_answer_is_told(text, kind, words):
    with pytest.raises(kind) as caught:
        answered(text)
    assert words in caught.value.text


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ((b"xmpp-websocket", b"other"), b"404"),
        ((b"Protocol: xmpp", b"Protocol: chat"), b"501"),
        ((b"Version: 13", b"Version: 8"), b"426"),
        ((b"Upgrade: websocket", b"Upgrade: h2c"), b"400"),
        ((b"GET", b"POST"), b"400"),
        ((b"GET /", b"GET \xff"), b"400"),
        ((b"\r\n\r\n", b"\r\nX: " + b"x" * 2 * HANDSHAKE_BYTES_MAX), b"4"),
    ],
)
def test_a_server_refuses_in_http_what_it_does_not_offer(change, status):
    request = ClientHandshake("x.org", PATH).request
    assert change[0] in request
    answer = ServerHandshake(frozenset((PATH,))).feed(request.replace(*change))
    assert answer.connection is None
    assert answer.send == b"" or answer.send.startswith(b"HTTP/1.1 " + status)


def test_a_server_waits_for_the_whole_request():
    request = ClientHandshake("x.org", PATH).request
    server = ServerHandshake(frozenset((PATH,)))
    assert [server.feed(request[at : at + 1]) for at in range(len(request) - 1)] == [None] * (
        len(request) - 1
    )
    assert server.feed(request[-1:]).connection is not None
