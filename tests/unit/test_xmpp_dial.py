"""Where to connect, and when a connection may go unencrypted."""

import asyncio

import pytest

from kestrel.errors import AuthenticationError, EnvironmentProblem, UsageError
from kestrel.xmpp.client import ClientSettings, XmppClient
from kestrel.xmpp.dial import Endpoint, SrvRecord, TlsMode, is_loopback, srv_order, targets_of
from kestrel.xmpp.jid import JidError


def targets(endpoint, records=()):
    async def lookup(name):
        assert name == f"_xmpp-client._tcp.{endpoint.domain}"
        return list(records)

    return asyncio.run(targets_of(endpoint, lookup))


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


def test_a_given_host_needs_no_lookup():
    assert targets(Endpoint("x.org", host="h")) == [("h", 5222)]
    assert targets(Endpoint("x.org", host="h", port=1)) == [("h", 1)]
    assert targets(Endpoint("x.localhost")) == [("x.localhost", 5222)]
    assert targets(Endpoint("x.org", port=7)) == [("x.org", 7)]


def test_records_come_before_the_domain_itself():
    records = [SrvRecord(2, 0, 5269, "b.x.org."), SrvRecord(1, 0, 5222, "a.x.org.")]
    assert targets(Endpoint("x.org"), records) == [("a.x.org", 5222), ("b.x.org", 5269), ("x.org", 5222)]
    assert targets(Endpoint("x.org"), []) == [("x.org", 5222)]
    assert targets(Endpoint("x.org"), [SrvRecord(1, 0, 5222, "x.org.")]) == [("x.org", 5222)]
    with pytest.raises(EnvironmentProblem):
        targets(Endpoint("x.org"), [SrvRecord(0, 0, 0, ".")])


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


def test_bad_settings_are_refused_at_once():
    async def scene():
        handler = object()
        with pytest.raises(JidError):
            XmppClient(ClientSettings("a b@x", "p"), handler)
        with pytest.raises(AuthenticationError):
            XmppClient(ClientSettings("x.org", "p"), handler)
        with pytest.raises(UsageError):
            XmppClient(ClientSettings("a@x.org", "p", tls=TlsMode.NEVER), handler)

    asyncio.run(scene())


def test_a_password_is_not_shown():
    assert "hunter2" not in repr(ClientSettings("a@x.org", "hunter2"))
