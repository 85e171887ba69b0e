"""Our client and component against each server: login, TLS, presence, messages, faults, reconnecting."""

from __future__ import annotations

import asyncio
import json

import pytest

from kestrel.errors import AuthenticationError, EnvironmentProblem, PeerError
from kestrel.ports import Show
from kestrel.protocol.codec import wire_size
from kestrel.xmpp import stanza as x
from kestrel.xmpp.client import TlsMode
from kestrel.xmpp.link import UNREACHABLE, XmppLink
from kestrel.xmpp.register import register
from parts.links import PATIENCE_S, Told, client, component, running
from parts.servers import KINDS, WAYS, LiveServer, WayIn, make_server, server_fixture

server = server_fixture({"alice": "secret-alice", "bob": "secret-bob"})
BY_EACH_WAY = pytest.mark.parametrize("way", WAYS, ids=["starttls", "direct-tls", "websocket"])
WORDS = "<&>]]>'\"\u00e9\U0001f600"
MESSAGE_BYTES_MAX = 200_000
"""What managers and workers send at most."""


def payload_of(size: int) -> bytes:
    """JSON that is almost so large on the wire."""
    head = json.dumps({"type": "x", "v": WORDS}, ensure_ascii=False).encode()
    text = json.dumps({"type": "x", "v": WORDS, "w": "a" * (size - wire_size(head) - 20)}, ensure_ascii=False)
    assert size - 40 < wire_size(text.encode()) <= size
    return text.encode()


@BY_EACH_WAY
def test_by_each_way_in_messages_travel_both_ways_and_losses_are_told(server: LiveServer, way: WayIn):
    async def scene() -> None:
        async with (
            running(component(server)) as (m, m_told, _),
            running(client(server, way=way)) as (w, w_told, stream),
        ):
            address = w.address
            assert (m.address, address) == (server.component, f"alice@{server.domain}/r")
            assert stream._wire.certificate is not None
            payload = payload_of(20_000)
            w.send(m.address, payload)
            sender, got, chat = await m_told.until("message")
            assert (sender, json.loads(got), chat) == (w.address, json.loads(payload), False)
            m.send(sender, got)
            assert await w_told.until("message") == (m.address, got, False)
            w.announce(m.address, Show.CHAT, "3/4 slots <&>")
            assert await m_told.until("available") == (w.address, Show.CHAT, "3/4 slots <&>")
            stream._wire._transport.abort()
            assert (await m_told.until("unavailable"))[0] == address
            await w_told.until("down")
            assert await w_told.until("up") == (address,)

    asyncio.run(scene())


@BY_EACH_WAY
def test_messages_of_the_largest_size_pass(server: LiveServer, way: WayIn):
    async def scene() -> None:
        async with (
            running(component(server)) as (m, m_told, _),
            running(client(server, way=way)) as (w, w_told, _),
        ):
            payload = payload_of(MESSAGE_BYTES_MAX)
            for _ in range(3):
                w.send(m.address, payload)
                m.send(w.address, payload)
            for _ in range(3):
                assert json.loads((await m_told.until("message"))[1]) == json.loads(payload)
                assert json.loads((await w_told.until("message"))[1]) == json.loads(payload)

    asyncio.run(scene())


def test_people_are_spoken_to_in_bodies(server: LiveServer):
    async def scene() -> None:
        async with running(component(server)) as (m, m_told, _), running(client(server)) as (w, w_told, _):
            w.send(m.address, b'{"a": "<&\xc3\xa9"}', chat=True)
            assert await m_told.until("message") == (w.address, b'{"a": "<&\xc3\xa9"}', True)
            m.say(w.address, "line 1\nline <2> & é")
            _, words, chat = await w_told.until("message")
            assert (words.decode(), chat) == ("line 1\nline <2> & é", True)

    asyncio.run(scene())


def test_order_is_kept_and_acknowledgements_flow(server: LiveServer):
    async def scene() -> None:
        async with (
            running(component(server)) as (m, m_told, _),
            running(client(server)) as (w, w_told, stream),
        ):
            assert stream._acks is not None
            for number in range(1000):
                w.send(m.address, b'{"n": %d}' % number)
            got = [json.loads((await m_told.until("message"))[1])["n"] for _ in range(1000)]
            assert got == list(range(1000))
            assert stream._acks.sent == 1000
            async with asyncio.timeout(PATIENCE_S):
                while stream._acks.acked < 768:
                    w.ping(server.domain)
                    await w_told.until("heard")

    asyncio.run(scene())


def test_presence_is_told_and_withdrawn(server: LiveServer):
    async def scene() -> None:
        async with running(component(server)) as (m, m_told, _), running(client(server)) as (w, w_told, _):
            w.announce(m.address, Show.CHAT, "")
            assert await m_told.until("available") == (w.address, Show.CHAT, "")
            m.announce(w.address, Show.ONLINE, "")
            assert await w_told.until("available") == (m.address, Show.ONLINE, "")
            w.announce(m.address, Show.DND, "full")
            assert await m_told.until("available") == (w.address, Show.DND, "full")
            w.withdraw(m.address)
            assert (await m_told.until("unavailable"))[0] == w.address

    asyncio.run(scene())


def test_directed_presence_is_seen_by_those_addressed_and_by_nobody_else(server: LiveServer):
    async def scene() -> None:
        async with (
            running(component(server)) as (m, m_told, _),
            running(client(server, "bob", resource="manager", priority=0)) as (b, b_told, _),
            running(client(server, "bob", resource="other", priority=0)) as (o, o_told, _),
        ):
            async with running(client(server, resource="w")) as (w, w_told, _):
                address = w.address
                w.announce(m.address, Show.CHAT, "for the component")
                assert (await m_told.until("available"))[2] == "for the component"
                w.announce(b.address, Show.CHAT, "for the account")
                while (seen := await b_told.until("available"))[0] != address:
                    pass  # its own other session
                assert seen[2] == "for the account"
                w.ping(server.domain)
                await w_told.until("heard")
            assert (await m_told.until("unavailable"))[0] == address
            assert (await b_told.until("unavailable"))[0] == address
            o.ping(server.domain)
            assert [event for event in await events_until_heard(o_told) if address in event] == []

    async def events_until_heard(told: Told) -> list[tuple[object, ...]]:
        seen = []
        async with asyncio.timeout(PATIENCE_S):
            while (event := await told.seen.get())[0] != "heard":
                seen.append(event)
        return seen

    asyncio.run(scene())


def test_a_worker_learns_that_the_manager_has_gone(server: LiveServer):
    async def scene() -> None:
        async with running(client(server)) as (w, w_told, _):
            async with running(component(server)) as (m, m_told, _):
                w.announce(m.address, Show.CHAT, "")
                await m_told.until("available")
                m.announce(w.address, Show.ONLINE, "")
                await w_told.until("available")
                m.withdraw(w.address)
                assert (await w_told.until("unavailable"))[0] == m.address
            w.send(server.component, b"{}")
            while (event := await w_told.until("unavailable"))[1] in ("", "unavailable"):
                pass  # the server may say that it has gone, too
            assert event[0] == server.component
            assert event[1] in {*UNREACHABLE, "forbidden"}

    asyncio.run(scene())


def test_pings_are_answered_and_the_absent_are_told_so(server: LiveServer):
    async def scene() -> None:
        async with running(component(server)) as (m, m_told, _), running(client(server)) as (w, w_told, _):
            m.ping(w.address)
            assert await m_told.until("heard") == (w.address,)
            w.ping(m.address)
            assert await w_told.until("heard") == (m.address,)
            absent = f"alice@{server.domain}/absent"
            m.ping(absent)
            assert (await m_told.until("unavailable"))[0] == absent
            m.send(absent, b"{}")
            assert (await m_told.until("unavailable"))[0] == absent

    asyncio.run(scene())


def test_people_can_put_the_manager_into_their_roster(server: LiveServer):
    async def scene() -> None:
        async with running(component(server)), running(client(server, priority=0)) as (_, w_told, stream):
            stream.send(x.presence(f"jobs@{server.component}", type="subscribe"))
            assert (await w_told.until("available"))[0] == f"jobs@{server.component}"

    asyncio.run(scene())


def test_a_fingerprint_may_be_written_as_certificate_tools_print_it(server: LiveServer):
    async def scene() -> None:
        shown = ":".join(server.fingerprint[i : i + 2] for i in range(0, 64, 2)).upper()
        async with running(client(server, fingerprint=shown)) as (w, told, _):
            w.ping(server.domain)
            assert await told.until("heard") == (server.domain,)

    asyncio.run(scene())


@BY_EACH_WAY
@pytest.mark.parametrize("pinned", ["00" * 32, ""], ids=["another", "none"])
def test_a_certificate_that_nobody_vouches_for_is_refused_and_shown(
    server: LiveServer, pinned: str, way: WayIn
):
    async def scene() -> None:
        with pytest.raises(AuthenticationError) as caught:
            async with running(client(server, way=way, fingerprint=pinned)):
                pass
        assert server.fingerprint in str(caught.value)
        assert caught.value.hint

    asyncio.run(scene())


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "embedded"])
def test_tls_is_not_forgone_when_it_is_required(kind: str):
    async def scene() -> None:
        with make_server(kind, accounts={"alice": "secret-alice"}, tls=False) as bare:
            with pytest.raises(EnvironmentProblem) as caught:
                async with running(client(bare, tls=TlsMode.REQUIRED)):
                    pass
            assert caught.value.code == "no_tls"

    asyncio.run(scene())


@pytest.mark.parametrize("name", ["alice", "nobody"])
def test_a_wrong_password_is_final(server: LiveServer, name: str):
    async def scene() -> None:
        with pytest.raises(AuthenticationError) as caught:
            async with running(client(server, jid=f"{name}@{server.domain}", password="wrong")):
                pass
        assert f"{name}@{server.domain}" in str(caught.value)
        assert caught.value.hint

    asyncio.run(scene())


def test_a_wrong_component_secret_is_final(server: LiveServer):
    async def scene() -> None:
        with pytest.raises(AuthenticationError) as caught:
            async with running(component(server, secret="wrong")):
                pass
        assert server.component in str(caught.value)
        assert caught.value.hint

    asyncio.run(scene())


def test_a_component_that_the_server_does_not_know_is_told_so(server: LiveServer):
    async def scene() -> None:
        link = XmppLink()
        stream = component(server, domain=f"other.{server.domain}")(link)
        link.attach(stream)
        task = asyncio.create_task(stream.run())
        async with asyncio.timeout(PATIENCE_S):
            while not stream.last_problem and not task.done():
                await asyncio.wait({task}, timeout=0.02)
        problem = task.exception() if task.done() else stream.last_problem
        await stream.close()
        await asyncio.gather(task, return_exceptions=True)
        assert f"other.{server.domain}" in str(problem)

    asyncio.run(scene())


def test_a_second_session_with_the_same_resource_ends_the_first_with_words(server: LiveServer):
    async def scene() -> None:
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


@pytest.mark.parametrize(
    ("way", "kill"), [("", False), ("", True), ("wss", True)], ids=["in-order", "killed", "websocket-killed"]
)
def test_sessions_come_back_after_a_restart_of_the_server(server: LiveServer, kill: bool, way: WayIn):
    async def scene() -> None:
        async with (
            running(component(server)) as (m, m_told, _),
            running(client(server, way=way)) as (w, w_told, _),
        ):
            await m_told.until("up")
            await w_told.until("up")
            await asyncio.to_thread(server.stop, kill=kill)
            await m_told.until("down")
            await w_told.until("down")
            w.send(m.address, b'{"lost": true}')
            await asyncio.to_thread(server.start)
            await m_told.until("up")
            await w_told.until("up")
            w.send(m.address, b'{"back": true}')
            assert (await m_told.until("message"))[1] == b'{"back": true}'

    asyncio.run(scene())


def test_nobody_makes_an_account_without_an_invitation(server: LiveServer):
    async def scene() -> None:
        with pytest.raises((PeerError, AuthenticationError)):
            await register(
                server.host, server.port, server.domain, "token", fingerprint=server.fingerprint or None
            )

    asyncio.run(scene())
