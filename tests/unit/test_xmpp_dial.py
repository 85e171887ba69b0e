"""Where to connect, and when a connection may go unencrypted."""

import asyncio
import socket

import pytest

from kestrel.config import PoolAccess
from kestrel.errors import AuthenticationError, EnvironmentProblem, UsageError
from kestrel.xmpp.access import client_settings
from kestrel.xmpp.client import ClientSettings, XmppClient
from kestrel.xmpp.dial import dial
from kestrel.xmpp.endpoint import Endpoint, TlsMode, is_loopback
from kestrel.xmpp.jid import JidError
from kestrel.xmpp.lookup import SrvRecord, srv_order, targets_of


def targets(endpoint, records=(), secure=()):
    """Where it is looked for, as text; `secure` are the records for direct TLS."""

    async def lookup(name):
        known = {
            f"_xmpp-client._tcp.{endpoint.domain}": records,
            f"_xmpps-client._tcp.{endpoint.domain}": secure,
        }
        return list(known[name])

    return [str(target) for target in asyncio.run(targets_of(endpoint, lookup))]


NOTHING = [SrvRecord(0, 0, 0, ".")]
GUESS = "wss://x.org/xmpp-websocket"


def test_lower_priorities_come_first_and_weights_share():
    records = [SrvRecord(20, 0, 1, "c"), SrvRecord(10, 30, 2, "a"), SrvRecord(10, 10, 3, "b")]
    assert [r.target for r in srv_order(records, lambda most: 0)] == ["b", "a", "c"]
    assert [r.target for r in srv_order(records, lambda most: most)] == ["a", "b", "c"]
    drawn = []
    for mark in range(41):
        marks = iter([mark])
        drawn.append(srv_order(records, lambda most, marks=marks: next(marks, 0))[0].target)
    assert drawn.count("b") == 11
    assert drawn.count("a") == 30


@pytest.mark.parametrize(
    ("endpoint", "place"),
    [
        (Endpoint("x.org", host="h"), "h:5222"),
        (Endpoint("x.org", host="h", port=1), "h:1"),
        (Endpoint("x.localhost"), "x.localhost:5222"),
        (Endpoint("x.org", port=7), "x.org:7"),
        (Endpoint("x.org", host="h", via="tls"), "xmpps://h:5223"),
        (Endpoint("x.org", host="::1", port=443, via="tls"), "xmpps://[::1]:443"),
        (Endpoint("x.org", host="h", via="wss"), "wss://h/xmpp-websocket"),
        (Endpoint("x.org", host="h", port=8443, via="wss", path="/ws"), "wss://h:8443/ws"),
        (Endpoint("x.org", via="wss"), "wss://x.org/xmpp-websocket"),
        (Endpoint("localhost", port=5280, via="ws"), "ws://localhost:5280/xmpp-websocket"),
    ],
)
def test_a_given_place_needs_no_lookup(endpoint, place):
    async def lookup(name):
        raise AssertionError(name)

    assert [str(target) for target in asyncio.run(targets_of(endpoint, lookup))] == [place]


def test_records_of_both_kinds_are_tried_in_one_order_and_a_websocket_last():
    plain = [SrvRecord(3, 0, 5269, "c.x.org."), SrvRecord(1, 0, 5222, "a.x.org.")]
    secure = [SrvRecord(2, 0, 443, "b.x.org.")]
    assert targets(Endpoint("x.org"), plain, secure) == [
        "a.x.org:5222",
        "xmpps://b.x.org:443",
        "c.x.org:5269",
        GUESS,
    ]
    assert targets(Endpoint("x.org", via="tls"), plain, secure) == ["xmpps://b.x.org:443"]


def test_without_records_the_usual_ports_are_tried():
    assert targets(Endpoint("x.org")) == ["x.org:5222", "xmpps://x.org:5223", GUESS]
    assert targets(Endpoint("x.org", via="tls")) == ["xmpps://x.org:5223"]


def test_a_kind_that_is_said_to_be_absent_is_not_tried():
    secure = [SrvRecord(0, 0, 443, "b.x.org.")]
    assert targets(Endpoint("x.org"), NOTHING, secure) == ["xmpps://b.x.org:443", GUESS]
    assert targets(Endpoint("x.org"), [], NOTHING) == ["x.org:5222", GUESS]
    for endpoint, plain in ((Endpoint("x.org"), NOTHING), (Endpoint("x.org", via="tls"), [])):
        with pytest.raises(EnvironmentProblem):
            targets(endpoint, plain, NOTHING)
    with pytest.raises(EnvironmentProblem):
        targets(Endpoint("x.org"), NOTHING, [])


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("a.localhost.", True),
        ("10.0.0.1", False), ("localhost.example.org", False), ("example.org", False), ("", False),
    ],
)  # fmt: skip
def test_loopback_is_known(host, loopback):
    assert is_loopback(host) is loopback


def test_secrets_never_go_over_a_network_in_the_clear():
    assert Endpoint("x.org").tls_mode is TlsMode.REQUIRED
    assert Endpoint("x.org", host="127.0.0.1").tls_mode is TlsMode.IF_OFFERED
    assert Endpoint("localhost").tls_mode is TlsMode.IF_OFFERED
    assert Endpoint("x.org", host="::1", tls=TlsMode.NEVER).tls_mode is TlsMode.NEVER
    assert Endpoint("localhost", fingerprint="ab").tls_mode is TlsMode.REQUIRED
    for mode in (TlsMode.IF_OFFERED, TlsMode.NEVER):
        with pytest.raises(UsageError):
            _ = Endpoint("x.org", tls=mode).tls_mode
        with pytest.raises(UsageError):
            _ = Endpoint("localhost", host="10.0.0.1", tls=mode).tls_mode


@pytest.mark.parametrize(
    ("endpoint", "words"),
    [
        (Endpoint("x.org", via="ws"), "loopback only"),
        (Endpoint("localhost", host="10.0.0.1", via="ws"), "loopback only"),
        (Endpoint("localhost", via="ws", fingerprint="ab"), "no certificate"),
        (Endpoint("localhost", via="ws", tls=TlsMode.REQUIRED), "no certificate"),
        (Endpoint("localhost", via="wss", tls=TlsMode.NEVER), "is TLS"),
        (Endpoint("localhost", via="tls", tls=TlsMode.IF_OFFERED), "is TLS"),
        (Endpoint("x.org", via="wss", path="/a b"), "no path"),
        (Endpoint("x.org", via="wss", path="/a\r\nHost: b"), "no path"),
        (Endpoint("x.org", via="wss", path="a"), "no path"),
    ],
)
def test_ways_in_that_are_not_safe_are_refused(endpoint, words):
    with pytest.raises(UsageError) as caught:
        _ = endpoint.tls_mode
    assert words in str(caught.value)


def test_ways_in_with_tls_require_it_on_loopback_too():
    assert Endpoint("localhost", via="tls").tls_mode is TlsMode.REQUIRED
    assert Endpoint("localhost", via="wss", path="/a?b=c").tls_mode is TlsMode.REQUIRED
    assert Endpoint("localhost", via="ws").tls_mode is TlsMode.NEVER


def test_what_is_kept_about_a_pool_says_the_way_in():
    access = PoolAccess("m@x.org", "a@x.org", "p", host="h", port=443, via="wss", path="/ws")
    settings = client_settings(access)
    assert (settings.host, settings.port, settings.via, settings.path) == ("h", 443, "wss", "/ws")


def test_bad_settings_are_refused_at_once():
    async def scene():
        handler = object()
        with pytest.raises(JidError):
            XmppClient(ClientSettings("a b@x", "p"), handler)
        with pytest.raises(AuthenticationError):
            XmppClient(ClientSettings("x.org", "p"), handler)
        with pytest.raises(UsageError):
            XmppClient(ClientSettings("a@x.org", "p", tls=TlsMode.NEVER), handler)
        with pytest.raises(UsageError):
            XmppClient(ClientSettings("a@x.org", "p", via="ws"), handler)

    asyncio.run(scene())


def test_a_password_is_not_shown():
    assert "hunter2" not in repr(ClientSettings("a@x.org", "hunter2"))


@pytest.mark.parametrize("via", ["", "ws"])
def test_a_name_of_this_machine_that_leads_elsewhere_is_not_dialled_without_encryption(via, monkeypatch):
    """Not every resolver knows what `localhost` is reserved for; the DNS may say anything."""

    async def scene():
        async def resolver(host, port, **_):
            assert host == "pool.localhost"
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", port))]

        async def connection(*_, **__):
            raise AssertionError("it was dialled")

        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "getaddrinfo", resolver)
        monkeypatch.setattr(loop, "create_connection", connection)
        with pytest.raises(EnvironmentProblem, match=r"leads to 192\.0\.2\.1, not to this machine"):
            await dial(Endpoint("pool.localhost", via=via))
        with pytest.raises(AssertionError, match="it was dialled"):
            await dial(Endpoint("pool.localhost", fingerprint="ab" * 32))

    asyncio.run(scene())
