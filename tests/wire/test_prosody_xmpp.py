"""Our client and component against a real Prosody: login, TLS, presence, messages, faults, reconnecting."""

import asyncio
import json
from contextlib import asynccontextmanager

import pytest

from kestrel.errors import AuthenticationError, EnvironmentProblem, PeerError
from kestrel.ports import Show
from kestrel.xmpp import stanza as x
from kestrel.xmpp.client import ClientSettings, TlsMode, XmppClient
from kestrel.xmpp.component import ComponentSettings, XmppComponent
from kestrel.xmpp.link import UNREACHABLE, XmppLink
from kestrel.xmpp.register import register
from kestrel.xmpp.session import SessionSettings
from parts.prosody import Prosody

MANAGER = "mgr.localhost"
PATIENCE_S = 30
QUICK = SessionSettings(retry_s_min=0.1, retry_s_max=0.5)
PAYLOAD = json.dumps({"type": "x", "v": "<&>]]>'\"\u00e9\U0001f600" + "a" * 20_000}).encode()


class Told:
    """Keeps what a link tells, and waits for things to be told."""

    def __init__(self):
        self.seen = asyncio.Queue()

    async def until(self, kind):
        """The next event of this kind; others before it are dropped."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                event = await self.seen.get()
                if event[0] == kind:
                    return event[1:]

    def on_up(self, address):
        self.seen.put_nowait(("up", address))

    def on_down(self, reason):
        self.seen.put_nowait(("down", reason))

    def on_message(self, sender, payload, chat):
        self.seen.put_nowait(("message", sender, payload, chat))

    def on_available(self, sender, show, status):
        self.seen.put_nowait(("available", sender, show, status))

    def on_unavailable(self, sender, reason):
        self.seen.put_nowait(("unavailable", sender, reason))

    def on_heard(self, sender):
        self.seen.put_nowait(("heard", sender))


@asynccontextmanager
async def running(make):
    """A link on a running stream: (link, told, stream)."""
    link, told = XmppLink(), Told()
    link.deliver_to(told)
    stream = make(link)
    link.attach(stream)
    task = asyncio.create_task(stream.run())
    try:
        up = asyncio.create_task(stream.wait_connected())
        await asyncio.wait({task, up}, timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
        up.cancel()
        if task.done():
            task.result()
        assert stream.connected, stream.last_problem
        yield link, told, stream
    finally:
        await stream.close()
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(task, return_exceptions=True)


def client(server, name="alice", password="secret-alice", *, resource="r", **more):
    settings = ClientSettings(
        jid=f"{name}@localhost",
        password=password,
        host="127.0.0.1",
        port=server.port,
        resource=resource,
        **({"session": QUICK, "fingerprint": server.fingerprint} | more),
    )
    return lambda link: XmppClient(settings, link)


def component(server, secret="secret-mgr"):
    settings = ComponentSettings(MANAGER, secret, "127.0.0.1", server.component_port, QUICK)
    return lambda link: XmppComponent(settings, link)


@pytest.fixture(scope="module")
def server():
    accounts = {"alice": "secret-alice", "bob": "secret-bob"}
    with Prosody(accounts=accounts, components={MANAGER: "secret-mgr"}, tls=False) as prosody:
        yield prosody


@pytest.fixture(scope="module")
def secure():
    with Prosody(accounts={"alice": "secret-alice"}, require_tls=True) as prosody:
        yield prosody


def test_containers_bodies_and_words_travel_both_ways(server):
    async def scene():
        async with running(component(server)) as (m, m_told, _), running(client(server)) as (w, w_told, _):
            assert m.address == MANAGER
            assert w.address == "alice@localhost/r"
            w.send(MANAGER, PAYLOAD)
            sender, payload, chat = await m_told.until("message")
            assert (sender, json.loads(payload), chat) == (w.address, json.loads(PAYLOAD), False)
            m.send(sender, payload)
            assert await w_told.until("message") == (MANAGER, payload, False)
            w.send(MANAGER, b'{"a": "<&\xc3\xa9"}', chat=True)
            assert await m_told.until("message") == (w.address, b'{"a": "<&\xc3\xa9"}', True)
            m.say(w.address, "line 1\nline <2> & é")
            _, words, chat = await w_told.until("message")
            assert (words.decode(), chat) == ("line 1\nline <2> & é", True)

    asyncio.run(scene())


def test_order_is_kept_and_acknowledgements_flow(server):
    async def scene():
        async with (
            running(component(server)) as (_, m_told, _),
            running(client(server)) as (w, w_told, stream),
        ):
            assert stream._acks is not None
            for number in range(1000):
                w.send(MANAGER, b'{"n": %d}' % number)
            got = [json.loads((await m_told.until("message"))[1])["n"] for _ in range(1000)]
            assert got == list(range(1000))
            assert stream._acks.sent == 1000
            async with asyncio.timeout(PATIENCE_S):
                while stream._acks.acked < 768:
                    w.ping("localhost")
                    await w_told.until("heard")

    asyncio.run(scene())


def test_presence_is_told_and_an_abrupt_end_at_once(server):
    async def scene():
        async with (
            running(component(server)) as (m, m_told, _),
            running(client(server)) as (w, w_told, stream),
        ):
            w.announce(MANAGER, Show.CHAT, "3/4 slots <&>")
            assert await m_told.until("available") == (w.address, Show.CHAT, "3/4 slots <&>")
            m.announce(w.address, Show.ONLINE, "")
            assert await w_told.until("available") == (MANAGER, Show.ONLINE, "")
            w.announce(MANAGER, Show.DND, "full")
            assert (await m_told.until("available"))[1] is Show.DND
            w.withdraw(MANAGER)
            assert (await m_told.until("unavailable"))[0] == w.address
            w.announce(MANAGER, Show.ONLINE, "")
            await m_told.until("available")
            stream._wire._transport.abort()
            assert (await m_told.until("unavailable"))[0] == "alice@localhost/r"
            await w_told.until("down")
            await w_told.until("up")

    asyncio.run(scene())


def test_a_worker_learns_that_the_manager_has_gone(server):
    async def scene():
        async with running(client(server)) as (w, w_told, _):
            async with running(component(server)) as (m, m_told, _):
                w.announce(MANAGER, Show.CHAT, "")
                await m_told.until("available")
                m.announce(w.address, Show.ONLINE, "")
                await w_told.until("available")
                m.withdraw(w.address)
                assert (await w_told.until("unavailable"))[0] == MANAGER
            w.send(MANAGER, b"{}")
            sender, reason = await w_told.until("unavailable")
            assert sender == MANAGER
            assert reason in UNREACHABLE

    asyncio.run(scene())


def test_pings_are_answered_and_the_absent_are_told_so(server):
    async def scene():
        async with running(component(server)) as (m, m_told, _), running(client(server)) as (w, w_told, _):
            m.ping(w.address)
            assert await m_told.until("heard") == (w.address,)
            w.ping(MANAGER)
            assert await w_told.until("heard") == (MANAGER,)
            m.ping("alice@localhost/absent")
            assert (await m_told.until("unavailable"))[0] == "alice@localhost/absent"
            m.send("alice@localhost/absent", b"{}")
            assert (await m_told.until("unavailable"))[0] == "alice@localhost/absent"

    asyncio.run(scene())


def test_people_can_put_the_manager_into_their_roster(server):
    async def scene():
        async with (
            running(component(server)),
            running(client(server, priority=0)) as (w, w_told, stream),
        ):
            stream.send(x.presence(f"jobs@{MANAGER}", type="subscribe"))
            assert (await w_told.until("available"))[0] == f"jobs@{MANAGER}"
            assert w.address

    asyncio.run(scene())


def test_tls_with_a_pinned_certificate(secure):
    async def scene():
        shown = ":".join(secure.fingerprint[i : i + 2] for i in range(0, 64, 2)).upper()
        async with running(client(secure, fingerprint=shown)) as (w, told, stream):
            assert stream._wire.certificate is not None
            w.ping("localhost")
            assert await told.until("heard") == ("localhost",)

    asyncio.run(scene())


@pytest.mark.parametrize("pinned", ["00" * 32, ""])
def test_another_certificate_is_refused_and_named(secure, pinned):
    async def scene():
        with pytest.raises(AuthenticationError) as caught:
            async with running(client(secure, fingerprint=pinned)):
                pass
        assert secure.fingerprint in str(caught.value)
        assert caught.value.hint

    asyncio.run(scene())


def test_tls_is_not_forgone_when_it_is_required(server):
    async def scene():
        with pytest.raises(EnvironmentProblem) as caught:
            async with running(client(server, tls=TlsMode.REQUIRED)):
                pass
        assert caught.value.code == "no_tls"

    asyncio.run(scene())


@pytest.mark.parametrize(("name", "password"), [("alice", "wrong"), ("nobody", "secret-alice")])
def test_a_wrong_password_is_final(server, name, password):
    async def scene():
        with pytest.raises(AuthenticationError) as caught:
            async with running(client(server, name, password)):
                pass
        assert f"{name}@localhost" in str(caught.value)
        assert caught.value.hint

    asyncio.run(scene())


def test_a_wrong_component_secret_is_final(server):
    async def scene():
        with pytest.raises(AuthenticationError) as caught:
            async with running(component(server, "wrong")):
                pass
        assert MANAGER in str(caught.value)

    asyncio.run(scene())


def test_a_second_session_with_the_same_resource_ends_the_first_with_words(server):
    async def scene():
        link, told = XmppLink(), Told()
        link.deliver_to(told)
        first = client(server)(link)
        task = asyncio.create_task(first.run())
        await told.until("up")
        async with running(client(server)):
            with pytest.raises(EnvironmentProblem) as caught:
                await task
        assert caught.value.code == "conflict"

    asyncio.run(scene())


def test_sessions_come_back_after_a_restart_of_the_server(server):
    async def scene():
        accounts, components = {"alice": "secret-alice"}, {MANAGER: "secret-mgr"}
        with Prosody(accounts=accounts, components=components) as own:
            async with running(component(own)) as (_, m_told, _), running(client(own)) as (w, w_told, _):
                await m_told.until("up")
                await w_told.until("up")
                own.stop(kill=True)
                await m_told.until("down")
                await w_told.until("down")
                w.send(MANAGER, b'{"lost": true}')
                await asyncio.to_thread(own.start)
                await m_told.until("up")
                await w_told.until("up")
                w.send(MANAGER, b'{"back": true}')
                assert (await m_told.until("message"))[1] == b'{"back": true}'

    asyncio.run(scene())


def test_a_server_without_invitations_makes_no_account(server):
    async def scene():
        with pytest.raises(PeerError) as caught:
            await register("127.0.0.1", server.port, "localhost", "token")
        assert "service-unavailable" in str(caught.value)

    asyncio.run(scene())
