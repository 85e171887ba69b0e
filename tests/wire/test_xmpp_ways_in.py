"""Every way into real servers: STARTTLS, direct TLS, WebSocket; certificates, proxies, registration."""

import asyncio
import os
import socket
import ssl
import subprocess
import sys
import tempfile
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

import kestrel.xmpp.dial as dialling
from kestrel.errors import AuthenticationError, EnvironmentProblem, KestrelError, UsageError
from kestrel.xmpp import stanza as x
from kestrel.xmpp.access import client_settings
from kestrel.xmpp.certificates import tls_context
from kestrel.xmpp.client import ClientSettings, XmppClient
from kestrel.xmpp.dial import _negotiated, _reach, dial
from kestrel.xmpp.endpoint import Endpoint
from kestrel.xmpp.lookup import SrvRecord, Target
from kestrel.xmpp.register import register
from kestrel.xmpp.session import SessionSettings
from kestrel.xmpp.stream import StreamReader
from kestrel.xmpp.websocket_wire import WebSocketWire
from parts.need import need
from parts.prosody import free_port, make_certificate
from parts.proxy import NAME, Tinyproxy
from parts.servers import WAYS, Prosody, server_fixture

PATIENCE_S = 30
DOMAIN = NAME
"""Of the Prosody of this file: nobody finds it but the proxy."""
WRONG = "ab" * 32
QUICK = SessionSettings(retry_s_max=0.1)
PROXY_VARIABLES = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY")

server = server_fixture({"alice": "secret-alice", "bob": "secret-bob"})


@pytest.fixture(autouse=True)
def without_proxies(monkeypatch):
    for variable in PROXY_VARIABLES:
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def open_directory():
    """One that another user can read."""
    with tempfile.TemporaryDirectory(prefix="kestrel-") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def prosody():
    accounts = {"alice": "secret-alice"}
    with Prosody(program=need("prosody"), domain=DOMAIN, accounts=accounts, invites=True) as running:
        yield running


class Told:
    def __init__(self):
        self.stanzas = asyncio.Queue()

    def on_connected(self, address): ...

    def on_disconnected(self, reason): ...

    def on_stanza(self, stanza):
        self.stanzas.put_nowait(stanza)

    async def until(self, kind):
        async with asyncio.timeout(PATIENCE_S):
            while (stanza := await self.stanzas.get()).name != kind:
                pass
        return stanza


@asynccontextmanager
async def connected(access):
    """A session and what it was told."""
    told = Told()
    session = XmppClient(client_settings(access), told)
    running = asyncio.create_task(session.run())
    up = asyncio.create_task(session.wait_connected())
    try:
        await asyncio.wait({running, up}, timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
        assert session.connected, session.last_problem
        yield session, told
    finally:
        up.cancel()
        await session.close()
        await asyncio.gather(running, return_exceptions=True)


def refusal(endpoint):
    """Why nobody is let in there."""

    with pytest.raises(KestrelError) as caught:
        asyncio.run(dial(endpoint))
    return caught.value


def endpoint_of(server, via, **more):
    known = {"host": "127.0.0.1", "port": server.port_of(via), "via": via, "fingerprint": server.fingerprint}
    return Endpoint(server.domain, **(known | more))


@pytest.mark.parametrize("via", WAYS)
def test_stanzas_of_any_size_travel_by_every_way(server, via):
    words = "é<&>" * 15_000

    async def scene():
        alice = server.access("alice", via=via, resource="a")
        bob = server.access("bob", via="", resource="b")
        async with connected(alice) as (a, a_told), connected(bob) as (b, b_told):
            assert a.address == f"alice@{server.domain}/a"
            for number in range(50):
                a.send(x.message_body(b.address, f"{number}"))
            a.send(x.message_json(b.address, b'{"a": "\xc3\xa9 < &"}'))
            a.send(x.message_body(b.address, words))
            for number in range(50):
                assert (await b_told.until("message")).body() == f"{number}"
            assert (await b_told.until("message")).json() == b'{"a": "\xc3\xa9 \\u003c \\u0026"}'
            big = await b_told.until("message")
            assert (big.body(), big.attrs["from"]) == (words, a.address)
            b.send(x.message_body(a.address, words))
            b.send(x.message_json(a.address, b"[1]"))
            assert (await a_told.until("message")).body() == words
            assert (await a_told.until("message")).json() == b"[1]"

    asyncio.run(scene())


@pytest.mark.parametrize("via", WAYS)
def test_a_certificate_that_is_not_the_pinned_one_is_refused_and_named(server, via):
    problem = refusal(endpoint_of(server, via, fingerprint=WRONG))
    assert isinstance(problem, AuthenticationError)
    assert problem.code == "certificate"
    assert server.fingerprint in problem.text
    assert "not the pinned one" in problem.text


@pytest.mark.parametrize("via", WAYS)
def test_a_certificate_that_nobody_vouches_for_is_refused_and_named(server, via):
    problem = refusal(endpoint_of(server, via, fingerprint=""))
    assert isinstance(problem, AuthenticationError)
    assert server.fingerprint in problem.text
    assert "pin this fingerprint" in problem.hint


@contextmanager
def vouched(tmp_path, monkeypatch, name, address):
    """A server whose certificate is an authority here; it says this name and this address."""
    make_certificate(tmp_path, name, address=address)
    files = (f"{tmp_path}/cert.pem", f"{tmp_path}/key.pem")
    tmp_path.chmod(0o755)
    for file in files:
        Path(file).chmod(0o644)  # the server is another user, if we are root
    monkeypatch.setenv("SSL_CERT_FILE", files[0])
    tls_context.cache_clear()
    try:
        with Prosody(program=need("prosody"), domain=DOMAIN, certificate=files) as server:
            yield server
    finally:
        tls_context.cache_clear()


def answer(endpoint):
    """The features of who is there, encrypted."""

    async def scene():
        dialled = await dial(endpoint)
        assert dialled.encrypted
        await dialled.wire.close()
        return dialled.features

    return asyncio.run(scene())


def test_a_certificate_of_the_domain_is_good_for_xmpp_and_one_of_the_host_for_websockets(
    open_directory, monkeypatch
):
    good, bad = ("", "tls"), ("wss",)
    with vouched(open_directory, monkeypatch, DOMAIN, "127.0.0.2") as server:
        for via in good:
            assert answer(endpoint_of(server, via, fingerprint="")).has_child(x.NS_SASL, "mechanisms")
        for via in bad:
            problem = refusal(endpoint_of(server, via, fingerprint=""))
            assert "The certificate of 127.0.0.1 is not trusted: IP address mismatch" in problem.text
            assert server.fingerprint in problem.text


def test_a_certificate_of_the_host_is_good_for_websockets_only(open_directory, monkeypatch):
    with vouched(open_directory, monkeypatch, "other.invalid", "127.0.0.1") as server:
        assert answer(endpoint_of(server, "wss", fingerprint="")).has_child(x.NS_SASL, "mechanisms")
        for via in ("", "tls"):
            problem = refusal(endpoint_of(server, via, fingerprint=""))
            assert f"The certificate of {DOMAIN} is not trusted: Hostname mismatch" in problem.text
            assert server.fingerprint in problem.text


def test_what_expects_tls_never_talks_to_who_has_none(prosody):
    for via in ("tls", "wss"):
        problem = refusal(endpoint_of(prosody, via, port=prosody.port))
        assert isinstance(problem, EnvironmentProblem)
        assert "TLS" in problem.text
        assert "port" in problem.hint


def test_a_path_without_a_websocket_is_told(prosody):
    problem = refusal(endpoint_of(prosody, "wss", path="/other"))
    assert f"no WebSocket at 127.0.0.1:{prosody.https_port}/other (HTTP 404)" in problem.text
    assert problem.code == "no_websocket"
    assert "path" in problem.hint


# --------------------------------------------------------------------------------------------------
# records


@pytest.fixture
def silent_port(monkeypatch):
    """A port whose packets are dropped: nobody accepts, and its queue is full."""
    monkeypatch.setattr(dialling, "CONNECT_S_MAX", 0.1)
    monkeypatch.setattr(dialling, "CONNECT_S_MIN", 0.1)
    with socket.socket() as listener, ExitStack() as callers:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            caller = callers.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


def records(plain=(), secure=()):
    """A DNS that knows these ports of 127.0.0.1, in this order."""

    async def lookup(name):
        ports = secure if name.startswith("_xmpps-client") else plain
        return [SrvRecord(number, 0, port, "127.0.0.1") for number, port in ports]

    return lookup


def test_what_is_closed_or_silent_is_passed_over_for_what_answers(prosody, silent_port):
    lookup = records(plain=[(1, free_port()), (2, silent_port)], secure=[(3, prosody.tls_port)])

    async def scene():
        settings = ClientSettings(
            f"alice@{DOMAIN}", "secret-alice", fingerprint=prosody.fingerprint, session=QUICK
        )
        told = Told()
        client = XmppClient(settings, told, lookup=lookup)
        running = asyncio.create_task(client.run())
        async with asyncio.timeout(PATIENCE_S):
            await client.wait_connected()
            assert client._found_at == Target("127.0.0.1", prosody.tls_port, "tls")
            await client.close()
            await running
        dialled = await dial(
            Endpoint(DOMAIN, fingerprint=prosody.fingerprint),
            lookup=records(plain=[(1, prosody.port)], secure=[(3, prosody.tls_port)]),
            first=client._found_at,
        )
        assert dialled.target == client._found_at, "where we were last time comes first"
        dialled.wire.drop(EnvironmentProblem("That was all."))

    asyncio.run(scene())


def test_a_firewall_that_takes_every_connection_and_then_says_nothing_is_passed_over(prosody, monkeypatch):
    monkeypatch.setattr(dialling, "ENTER_S_MAX", 1.0)

    async def scene():
        with socket.create_server(("127.0.0.1", 0)) as dumb:  # the kernel takes connections for it
            lookup = records(plain=[(1, dumb.getsockname()[1])], secure=[(2, prosody.tls_port)])
            async with asyncio.timeout(PATIENCE_S):
                dialled = await dial(Endpoint(DOMAIN, fingerprint=prosody.fingerprint), lookup=lookup)
            assert dialled.target.port == prosody.tls_port
            dialled.wire.drop(EnvironmentProblem("That was all."))

    asyncio.run(scene())


def test_each_place_that_was_tried_is_told_with_its_fault(prosody, silent_port):
    closed = free_port()
    lookup = records(plain=[(1, closed), (2, silent_port)], secure=[(3, prosody.port)])
    with pytest.raises(EnvironmentProblem) as caught:
        asyncio.run(dial(Endpoint(DOMAIN, fingerprint=prosody.fingerprint), lookup=lookup))
    faults = caught.value.text.partition("(")[2].split("; ")
    assert faults[0] == f"127.0.0.1:{closed}: Connection refused"
    assert faults[1] == f"127.0.0.1:{silent_port}: no answer in 0.1 s"
    assert faults[2].startswith(f"xmpps://127.0.0.1:{prosody.port}: TLS with the server of {DOMAIN} failed")
    assert faults[3].startswith(f"wss://{DOMAIN}/xmpp-websocket: ")
    assert len(faults) == 4
    assert caught.value.retry


def test_a_wrong_guess_is_a_place_that_does_not_answer_and_no_alarm(prosody):
    guess = Target("127.0.0.1", prosody.https_port, "wss", "/xmpp-websocket", guessed=True)

    def make_wire(_):
        return WebSocketWire(StreamReader())

    for pin in ("", WRONG):

        async def enter(wire, target, pin=pin):
            return await _negotiated(wire, Endpoint(DOMAIN, fingerprint=pin), target, "")

        with pytest.raises(EnvironmentProblem) as caught:
            asyncio.run(_reach([guess, guess], make_wire, enter))
        assert caught.value.code == "unreachable"
        assert caught.value.text.count("is not trusted") == 2


# --------------------------------------------------------------------------------------------------
# proxies


@pytest.fixture(scope="module")
def proxy(prosody):
    with Tinyproxy(ports=[prosody.port, prosody.tls_port, prosody.https_port]) as running:
        yield running


@pytest.mark.parametrize("via", WAYS)
def test_a_proxy_leads_to_a_server_that_is_out_of_reach(prosody, proxy, via, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", proxy.url)

    async def scene():
        access = replace(prosody.access("alice", via=via, resource="p"), host=NAME)
        async with connected(access) as (session, told):
            session.send(x.message_body(session.address, "to myself"))
            assert (await told.until("message")).body() == "to myself"
        assert f"{NAME}:{prosody.port_of(via)}" in proxy.asked

    asyncio.run(scene())


@pytest.mark.parametrize("via", WAYS)
def test_loopback_is_reached_without_the_proxy(prosody, proxy, via, monkeypatch):
    monkeypatch.setenv("ALL_PROXY", proxy.url)
    before = proxy.asked

    async def scene():
        async with connected(prosody.access("alice", via=via)):
            assert proxy.asked == before

    asyncio.run(scene())


def test_the_certificate_behind_a_proxy_is_checked_too(prosody, proxy, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", proxy.url)
    for via in WAYS:
        problem = refusal(endpoint_of(prosody, via, host=NAME, fingerprint=WRONG))
        assert prosody.fingerprint in problem.text


@pytest.mark.parametrize("via", WAYS)
def test_a_proxy_that_does_not_let_through_is_told_with_a_cure(prosody, via, monkeypatch):
    with Tinyproxy(ports=[1]) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        problem = refusal(endpoint_of(prosody, via, host=NAME))
    assert f"by the proxy 127.0.0.1:{proxy.port}: it does not let us through (403" in problem.text
    assert "wss://" in problem.hint


def test_a_proxy_that_wants_a_login_gets_it_or_says_so(prosody, monkeypatch):
    with Tinyproxy(ports=[prosody.https_port], login="user:hunter2") as proxy:
        where = proxy.url.removeprefix("http://")
        for login, words in (("", "wants a login"), ("user:wrong-hunter@", "does not accept the login")):
            monkeypatch.setenv("HTTPS_PROXY", f"http://{login}{where}")
            problem = refusal(endpoint_of(prosody, "wss", host=NAME))
            # tinyproxy answers a wrong login with 401, as if it were a web server
            assert words in problem.text or (login and "no tunnel (401" in problem.text)
            assert "hunter" not in str(problem)
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:hunter2@{where}")

        async def scene():
            dialled = await dial(endpoint_of(prosody, "wss", host=NAME))
            await dialled.wire.close()

        asyncio.run(scene())


def test_a_proxy_that_is_not_there_is_told(prosody, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://user:hunter2@127.0.0.1:1")
    problem = refusal(endpoint_of(prosody, "wss", host=NAME))
    assert "the proxy itself cannot be reached: Connection refused" in problem.text
    assert "HTTPS_PROXY" in problem.hint
    assert "hunter2" not in str(problem)


@pytest.mark.parametrize("via", WAYS)
def test_the_way_to_the_proxy_may_be_encrypted_too(prosody, proxy, via, open_directory, monkeypatch):
    """TLS within TLS: a real proxy, and in front of it who does its TLS, as its users see it."""
    make_certificate(open_directory, "proxy.invalid")
    files = (f"{open_directory}/cert.pem", f"{open_directory}/key.pem")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(*files)
    monkeypatch.setenv("SSL_CERT_FILE", files[0])
    tls_context.cache_clear()

    async def pump(reader, writer):
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
        writer.close()

    async def front(reader, writer):
        with suppress(asyncio.CancelledError):
            down_reader, down = await asyncio.open_connection("127.0.0.1", proxy.port)
            await asyncio.gather(pump(reader, down), pump(down_reader, writer))

    async def scene():
        server = await asyncio.start_server(front, "127.0.0.1", 0, ssl=tls)
        monkeypatch.setenv("HTTPS_PROXY", f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        before = asyncio.all_tasks()
        access = replace(prosody.access("alice", via=via, resource="q"), host=NAME)
        async with connected(access) as (session, told):
            words = "é" * 50_000
            session.send(x.message_body(session.address, words))
            assert (await told.until("message")).body() == words
        server.close()
        if fronts := asyncio.all_tasks() - before:
            await asyncio.wait(fronts, timeout=PATIENCE_S)

    try:
        asyncio.run(scene())
    finally:
        tls_context.cache_clear()


def test_an_encrypted_proxy_that_nobody_vouches_for_gets_nothing(prosody, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", f"https://user:hunter2@127.0.0.1:{prosody.tls_port}")
    problem = refusal(endpoint_of(prosody, "wss", host=NAME))
    assert f"by the proxy 127.0.0.1:{prosody.tls_port}: its certificate is not trusted" in problem.text
    assert "hunter2" not in str(problem)


# --------------------------------------------------------------------------------------------------
# registration


def invitation(prosody):
    """A token as the administrator of a Prosody makes one."""
    as_server = []
    if os.geteuid() == 0:
        as_server = ["setpriv", f"--reuid={prosody.user}", f"--regid={prosody.group}", "--clear-groups"]
    ctl = [need("prosodyctl"), "--config", str(prosody.config)]
    made = subprocess.run(
        [*as_server, *ctl, "mod_invites", "generate", prosody.domain],
        capture_output=True,
        text=True,
        check=True,
    )
    return made.stdout.strip().rpartition("preauth=")[2]


@pytest.mark.parametrize("via", WAYS)
def test_an_invitation_of_prosody_makes_one_account_by_every_way(prosody, via):
    token = invitation(prosody)
    where = ("127.0.0.1", prosody.port_of(via), DOMAIN)
    how = {"fingerprint": prosody.fingerprint, "via": via}

    async def scene():
        with pytest.raises(UsageError, match="taken"):
            await register(*where, token, username="alice", **how)
        jid, password = await register(*where, token, **how)
        async with connected(replace(prosody.access("alice", via=via), jid=jid, password=password)) as (
            session,
            _,
        ):
            assert session.address.startswith(f"{jid}/")
        for spent in (token, "guess'<&"):
            with pytest.raises(AuthenticationError) as caught:
                await register(*where, spent, **how)
            assert caught.value.code == "bad_invitation"

    asyncio.run(scene())


def test_who_needs_no_websocket_does_not_pay_for_it():
    code = (
        "import sys, kestrel.xmpp.client; sys.exit(any(m in sys.modules for m in ('wsproto', 'h11', 'dns')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
