"""Whoever misbehaves harms only itself: after every attack a healthy pair still exchanges messages."""

import asyncio
import socket
from contextlib import asynccontextmanager

import pytest

from kestrel.xmpp.client import ClientSettings, XmppClient
from parts.server import DOMAIN, MANAGER, PATIENCE_S, Raw, header, serving

LIMITS = {"outgoing_bytes_max": 200_000, "congestion_bytes": 100_000}


@asynccontextmanager
async def healthy(**more):
    """A server with a component and a client that talk to each other before and after what happens."""
    limits = LIMITS | more.pop("limits", {})
    async with serving(limits=limits, **more) as server:
        manager = await Raw.component(server.component_port)
        alice = await Raw.login(server.c2s_port, "alice")
        await talk(alice, manager)
        yield server, alice, manager
        await talk(alice, manager)
        await alice.close()
        await manager.close()


async def talk(alice, manager):
    alice.send(f"<message to='{MANAGER}'><body>there</body></message>")
    await manager.until(f"from='{alice.address}'[^>]*><body>there</body></message>")
    manager.send(f"<message from='{MANAGER}' to='{alice.address}'><body>back</body></message>")
    await alice.until("<body>back</body></message>")


@pytest.mark.parametrize(
    ("attack", "condition"),
    [
        ("<message><body></message>", "not-well-formed"),
        ("<message to='a' to='b'/>", "not-well-formed"),
        ("<message>&unknown;</message>", "restricted-xml"),
        ("<!-- a comment -->", "restricted-xml"),
        ("<?php evil ?>", "restricted-xml"),
        ("<message><![CDATA[x]]></message><message to='x", ""),
        ("plain text", "bad-format"),
        ("<message>" + "<a>" * 200, "policy-violation"),
        ("<message><body>" + "x" * 300_000, "policy-violation"),
        ("<message to='" + "x" * 300_000, "policy-violation"),
        ("<message " + " ".join(f"a{n}='1'" for n in range(100)) + "/>", "policy-violation"),
        (b"<message>\xff\xfe</message>", "not-well-formed"),
        (b"<message>\x00</message>", "not-well-formed"),
        ("<message from='alice@x.localhost/r' to='alice@x.localhost/r'/>", "invalid-from"),
        ("<message><stream:error/></message>", "invalid-namespace"),
        ("<stream:stream/>", "unsupported-stanza-type"),
        ("<unknown/>", "unsupported-stanza-type"),
        ("</message>", "not-well-formed"),
    ],
)
def test_a_bound_client_that_breaks_the_rules_loses_its_stream_and_is_announced_as_gone(attack, condition):
    async def scene():
        async with healthy() as (server, _, manager):
            mallory = await Raw.login(server.c2s_port, "mallory")
            mallory.send(f"<presence to='{MANAGER}'/>")
            await manager.until("<presence[^>]*/>")
            mallory.send(attack)
            if condition:
                end = await mallory.to_the_end()
                assert any(f"<{each} " in end for each in condition.split("|")), end
                assert end.endswith("</stream:stream>")
            else:
                mallory.abort()
            gone = await manager.until("type='unavailable'[^>]*>")
            assert mallory.address in gone
            assert gone.count("unavailable") == 1

    asyncio.run(scene())


@pytest.mark.parametrize(
    "attack",
    [
        "<!DOCTYPE stream [<!ENTITY a 'ha'><!ENTITY b '&a;&a;&a;&a;'>]><stream:stream/>",
        '<!DOCTYPE x SYSTEM "file:///etc/passwd"><x/>',
        "<?xml version='1.0' encoding='utf-16'?>",
        "\ufeff" * 100_000,
        "<" * 1000,
        "x" * 50_000,
        header()[:-1] + "".join(f" xmlns:n{n}='urn:{n}'" for n in range(5000)) + ">",
    ],
)
def test_what_comes_before_a_stream_is_checked_as_well(attack):
    async def scene():
        async with healthy() as (server, _, _):
            raw = await Raw.connect(server.c2s_port)
            raw.send(attack)
            assert "<stream:error>" in await raw.to_the_end()

    asyncio.run(scene())


@pytest.mark.parametrize("how", ["close", "eof", "reset", "error"])
@pytest.mark.parametrize("who", ["client", "component"])
def test_every_kind_of_ending_is_told_once(how, who):
    async def scene():
        async with serving() as server:
            manager = await Raw.component(server.component_port)
            worker = await Raw.login(server.c2s_port, "alice")
            worker.send(f"<presence to='{MANAGER}'/>")
            await manager.until("<presence[^>]*/>")
            manager.send(f"<presence from='{MANAGER}' to='{worker.address}'/>")
            await worker.until("<presence[^>]*/>")
            leaver, stayer = (worker, manager) if who == "client" else (manager, worker)
            match how:
                case "close":
                    await leaver.close()
                case "eof":
                    leaver.writer.write_eof()
                    await leaver.to_the_end()
                case "reset":
                    leaver.writer.get_extra_info("socket").setsockopt(
                        socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"
                    )
                    leaver.abort()
                case "error":
                    leaver.send("<message></body>")
                    await leaver.to_the_end()
            gone = await stayer.until("type='unavailable'[^>]*>")
            assert f"from='{leaver.address}'" in gone
            rest = await (stayer.component_sync() if stayer is manager else stayer.sync())
            assert "unavailable" not in rest
            await stayer.close()

    asyncio.run(scene())


def test_whoever_falls_silent_is_pinged_and_then_announced_as_gone():
    async def scene():
        limits = {"quiet_s_max": 0.3, "pong_s_max": 0.3, "rest_s": 0.1}
        async with serving(limits=limits) as server:
            manager = await Raw.component(server.component_port)
            worker = await Raw.login(server.c2s_port, "alice")
            acking = await Raw.login(server.c2s_port, "bob")
            acking.send("<enable xmlns='urn:xmpp:sm:3'/>")
            await acking.until("<enabled[^>]*>")
            worker.send(f"<presence to='{MANAGER}'/>")
            acking.send(f"<presence to='{MANAGER}'/>")

            async def answer_pings():
                seen = ""
                while seen.count("unavailable") < 2:
                    part = await manager.until("<iq[^>]*>.*?</iq>|<presence[^>]*(?:/>|>.*?</presence>)")
                    seen += part
                    if "urn:xmpp:ping" in part:
                        manager.send(f"<iq type='result' id='alive' from='{MANAGER}' to='{DOMAIN}'/>")
                return seen

            answers = asyncio.create_task(answer_pings())
            assert "urn:xmpp:ping" in await worker.to_the_end()
            assert "<r xmlns='urn:xmpp:sm:3'/>" in await acking.to_the_end()
            async with asyncio.timeout(PATIENCE_S):
                seen = await answers
            assert worker.address in seen
            assert acking.address in seen
            await manager.close()

    asyncio.run(scene())


def test_a_slow_reader_is_dropped_and_nobody_waits_for_it():
    async def scene():
        async with healthy() as (server, alice, manager):
            slow = await Raw.login(server.c2s_port, "mallory")
            slow.send(f"<presence to='{MANAGER}'/>")
            await manager.until("<presence[^>]*/>")
            slow.reader._transport.pause_reading()
            stanza = f"<message from='{MANAGER}' to='{slow.address}'><body>{'x' * 50_000}</body></message>"
            for _ in range(400):
                manager.send(stanza)
            seen = await manager.until("type='unavailable'[^>]*>|service-unavailable")
            assert slow.address in seen
            await talk(alice, manager)
            slow.abort()
            # What was still on its way bounces; the healthy pair's words come behind it.
            await manager.component_sync()

    asyncio.run(scene())


def test_a_fast_sender_waits_for_a_slow_component_and_memory_does_not_grow(monkeypatch):
    async def scene():
        async with serving(limits=LIMITS) as server:
            manager = await Raw.component(server.component_port)
            alice = await Raw.login(server.c2s_port, "alice")
            manager.reader._transport.pause_reading()
            count, stanza = 2_000, f"<message to='{MANAGER}'><body>{'x' * 10_000}</body></message>".encode()
            link = server.hub.router.tables.components[MANAGER].link
            client = server.hub.router.tables.quick[alice.address].link
            assert client.session is not None
            most = 0

            async def watch():
                nonlocal most
                while True:
                    most = max(most, link.transport.get_write_buffer_size())
                    await asyncio.sleep(0)

            watcher = asyncio.create_task(watch())
            for _ in range(count):
                alice.send(stanza)
            paused = asyncio.Event()
            pause = type(client).pause
            monkeypatch.setattr(
                type(client), "pause", lambda self, reason: (pause(self, reason), paused.set())[0]
            )
            async with asyncio.timeout(PATIENCE_S):
                await paused.wait()
            manager.reader._transport.resume_reading()
            seen = 0
            async with asyncio.timeout(PATIENCE_S):
                while seen < count:
                    seen += (await manager.until("</message>")).count("</message>")
            watcher.cancel()
            assert 100_000 < most < 2_000_000
            await alice.close()
            await manager.close()

    asyncio.run(scene())


def test_a_client_above_its_rate_is_read_slower_and_loses_nothing():
    async def scene():
        async with serving(limits={"stanzas_per_s": 200.0, "burst_s": 0.1}) as server:
            alice = await Raw.login(server.c2s_port, "alice")
            loop = asyncio.get_running_loop()
            began = loop.time()
            for _ in range(5):
                alice.send(f"<message to='{alice.address}'/>" * 20)
                await alice.sync()
            assert loop.time() - began >= 0.3
            await alice.close()

    asyncio.run(scene())


def test_half_open_connections_are_bounded_and_time_out():
    async def scene():
        limits = {"half_open_max": 20, "login_s_max": 0.5}
        async with healthy(limits=limits) as (server, _, _):
            raws = [await Raw.connect(server.c2s_port) for _ in range(40)]
            ends = await asyncio.gather(*(raw.to_the_end() for raw in raws))
            assert sum("<connection-timeout " in end for end in ends) == 20
            assert ends.count("") == 20
            assert server.hub.half_open_count == 0

    asyncio.run(scene())


def test_connections_of_one_address_are_bounded():
    async def scene():
        async with healthy(limits={"connections_per_address_max": 4}) as (server, _, _):
            bobs = [await Raw.login(server.c2s_port, "bob", f"r{number}") for number in range(2)]
            refused = await Raw.connect(server.c2s_port)
            assert await refused.to_the_end() == ""
            for bob in bobs:
                await bob.close()

    asyncio.run(scene())


def test_a_login_that_stops_half_way_times_out():
    async def scene():
        async with healthy(limits={"login_s_max": 0.3}) as (server, _, _):
            for first in ("", header(), header() + "<auth"):
                raw = await Raw.connect(server.c2s_port)
                raw.send(first)
                assert "<connection-timeout " in await raw.to_the_end()

    asyncio.run(scene())


def test_a_component_cannot_speak_for_others_and_is_told_so():
    async def scene():
        async with serving() as server:
            alice = await Raw.login(server.c2s_port, "alice")
            manager = await Raw.component(server.component_port)
            manager.send(f"<message from='bob@{DOMAIN}' to='{alice.address}'><body>x</body></message>")
            assert "<invalid-from " in await manager.to_the_end()
            assert "<message" not in await alice.sync()
            await alice.close()

    asyncio.run(scene())


def test_a_fault_of_ours_ends_one_stream_only(monkeypatch, caplog):
    async def scene():
        async with healthy() as (server, alice, _):
            mallory = await Raw.login(server.c2s_port, "mallory")
            real = server.hub.router.queries.answer

            def broken(sender, *rest):
                if sender.local == "mallory":
                    raise RuntimeError("a planted bug")
                real(sender, *rest)

            monkeypatch.setattr(server.hub.router.queries, "answer", broken)
            mallory.send("<iq type='get' id='1'><ping xmlns='urn:xmpp:ping'/></iq>")
            assert "<internal-server-error " in await mallory.to_the_end()
            await alice.sync()

    asyncio.run(scene())
    assert "a planted bug" in caplog.text


class Inbox:
    """What a Kestrel client's session tells."""

    def __init__(self):
        self.stanzas = asyncio.Queue()
        self.downs = []

    def on_connected(self, address):
        self.address = address

    def on_disconnected(self, reason):
        self.downs.append(reason)

    def on_stanza(self, stanza):
        self.stanzas.put_nowait(stanza)


def test_the_largest_stanza_that_is_let_in_does_not_cost_its_recipient_the_stream():
    async def scene():
        async with serving() as server:
            inbox = Inbox()
            settings = ClientSettings(f"bob@{DOMAIN}", "pw-bob", "127.0.0.1", server.c2s_port, "r")
            bob = XmppClient(settings, inbox)
            running = asyncio.create_task(bob.run())
            async with asyncio.timeout(PATIENCE_S):
                await bob.wait_connected()
            mallory = await Raw.login(server.c2s_port, "mallory", "m" * 900)
            room = server.settings.limits.stanza_bytes_max
            head, tail = f"<message to='{inbox.address}'><body>", "</body></message>"
            mallory.send(head + "x" * (room - len(head) - len(tail)) + tail)
            async with asyncio.timeout(PATIENCE_S):
                stanza = await inbox.stanzas.get()
            assert len(stanza.raw) > room
            assert inbox.downs == []
            await bob.close()
            await running
            await mallory.close()

    asyncio.run(scene())
