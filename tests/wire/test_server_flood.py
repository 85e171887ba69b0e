"""Floods: crowds that say nothing, words without end. Who is in keeps working, who comes is let in."""

import asyncio
import re
import resource
import socket
import ssl
import struct
import sys
from contextlib import ExitStack, contextmanager, suppress

import pytest
from test_server_hostile import healthy, talk
from test_server_one_port import hello
from test_server_websocket import request

from kestrel.server.certificate import ensure_certificate
from parts.need import need_that
from parts.served import served
from parts.server import DOMAIN, MANAGER, PATIENCE_S, Raw, header, serving
from parts.web import Web

if sys.platform != "linux":
    pytest.skip("looks into /proc, and needs many loopback addresses", allow_module_level=True)

MIB = 1024 * 1024
CROWD = 10_000
CROWD_ADDRESSES = [f"127.0.0.{number}" for number in range(2, 7)]
FILES = CROWD + 500
CHUNK = b"x" * 65_536


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    return ensure_certificate(tmp_path_factory.mktemp("certificate"), DOMAIN)


@contextmanager
def files():
    """So many open files, as long as this lasts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need_that(hard >= FILES, f"{FILES} open files are needed, and ulimit -Hn says {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, FILES), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def opened(port, address, words, stack):
    """A connection from that address that has said so much."""
    sock = stack.enter_context(socket.socket())
    sock.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT: ports are free for each target
    # Reset when it ends: thousands of closed ports would wait for a minute else.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.bind((address, 0))
    sock.connect(("127.0.0.1", port))
    with suppress(ConnectionError):
        sock.sendall(words)


def test_ten_thousand_who_say_nothing_useful_neither_stop_those_inside_nor_keep_others_out(certificate):
    stream, web, tls = header().encode(), request().encode(), hello(ssl.create_default_context())
    kinds = [b"", tls[:3], b"GET /x", web[:-2], stream[:50], stream, tls]

    async def scene(server, stack):
        manager = await Raw.component(server.component_port)
        alice = await Raw.login(server.c2s_port, "alice")
        before = server.resident_bytes
        for number in range(CROWD):
            address = CROWD_ADDRESSES[number * len(CROWD_ADDRESSES) // CROWD]
            opened(server.c2s_port, address, kinds[number % len(kinds)], stack)
            if number % 1_000 == 0:
                await talk(alice, manager)
        await talk(alice, manager)
        # While all of them are there: from elsewhere one still gets in, on each way.
        context = ssl.create_default_context(cafile=certificate)
        bob = await Raw.login(server.c2s_port, "bob")
        mallory = await Web.login(server.c2s_port, "mallory", context=context)
        assert server.resident_bytes - before < 150 * MIB
        await mallory.close()
        await bob.close()
        stack.close()
        await talk(alice, manager)
        await (await Raw.login(server.c2s_port, "bob")).close()
        await alice.close()
        await manager.close()

    with files(), served(certificate=certificate) as server, ExitStack() as stack:
        asyncio.run(scene(server, stack))


def test_a_place_is_given_up_by_the_address_that_has_most_of_them_and_its_oldest_goes():
    async def scene():
        async with healthy(limits={"half_open_max": 4, "tick_s": 0.01}) as (server, _, _):
            with ExitStack() as stack:
                crowd = []
                for _ in range(3):
                    opened(server.c2s_port, "127.0.0.2", b"", stack)
                    crowd += await newcomers(server, [*crowd])
                opened(server.c2s_port, "127.0.0.3", b"", stack)
                other = (await newcomers(server, crowd))[0]
                first = await Raw.open(server.c2s_port)
                assert [guest.closed_at > 0 for guest in crowd] == [True, False, False]
                second = await Raw.open(server.c2s_port)
                assert [guest.closed_at > 0 for guest in crowd] == [True, True, False]
                # Now who comes again has most itself, and nobody goes for its sake.
                refused = await Raw.connect(server.c2s_port)
                assert await refused.to_the_end() == ""
                assert [guest.closed_at > 0 for guest in crowd] == [True, True, False]
                assert not other.closed_at
                for raw in (first, second):
                    await raw.close()

    async def newcomers(server, known):
        while True:
            found = [each for each in server.hub.connections if each.half_open and each not in known]
            if found:
                return found
            await asyncio.sleep(0.001)

    asyncio.run(scene())


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("way", [Raw, Web], ids=["stream", "websocket"])
def test_a_client_that_is_silent_takes_little_memory(certificate, way, secure):
    async def scene(server):
        context = ssl.create_default_context(cafile=certificate) if secure else None

        async def clients(*names):
            return [await way.login(server.c2s_port, "alice", name, context=context) for name in names]

        warm = await clients(*(f"warm{number}" for number in range(20)))
        before = server.resident_bytes
        many = await clients(*(f"r{number}" for number in range(100)))
        # asyncio alone would give 256 KiB to each that comes in TLS.
        assert (server.resident_bytes - before) / len(many) < 80 * 1024
        for each in (*warm, *many):
            await each.close()

    with served(certificate=certificate) as server:
        asyncio.run(scene(server))


def lasting(start):
    """Words that go on for a GiB, lazily, and how many were taken."""

    async def send(writer):
        sent = 0
        with suppress(ConnectionError):
            writer.write(start)
            while sent < 1024 * MIB:
                writer.write(CHUNK)
                await writer.drain()
                sent += len(CHUNK)
        return sent

    return send


WITHOUT_END = {
    "before the login": b"<stream:stream xmlns='",
    "a hello": b"\x16\x03\x01\x20\x00\x01",
    "a larger hello": b"\x16\x03\x01\x40\x00\x01",
    "a request": b"GET /",
    "a header": request()[:-2].encode() + b"X: ",
    "white space": b" ",
}


@pytest.mark.parametrize("start", WITHOUT_END.values(), ids=WITHOUT_END)
def test_first_words_without_end_are_cut_off(certificate, start):
    async def scene(server):
        alice = await Raw.login(server.c2s_port, "alice")
        before = server.resident_bytes
        raw = await Raw.connect(server.c2s_port)
        async with asyncio.timeout(PATIENCE_S):
            sent = await lasting(start)(raw.writer)
        assert sent < 32 * MIB
        assert server.resident_bytes - before < 4 * MIB
        await alice.close()

    with served(certificate=certificate) as server:
        asyncio.run(scene(server))


def frame(size, first=0x81):
    """The head of a masked frame; with this mask the payload is as it is."""
    return struct.pack("!BBQ4s", first, 0xFF, size, bytes(4))


@pytest.mark.parametrize("how", ["stream", "frame", "fragments"])
def test_a_stanza_of_a_gib_is_cut_off_at_the_bound_and_memory_does_not_grow(certificate, how):
    message = b"<message xmlns='jabber:client'><body>"
    one_frame = frame(len(CHUNK), 0x00) + CHUNK

    async def scene(server):
        alice = await Raw.login(server.c2s_port, "alice")
        manager = await Raw.component(server.component_port)
        before = server.resident_bytes
        if how == "stream":
            writer = (await Raw.login(server.c2s_port, "mallory")).writer
            begin, chunk = message, CHUNK
        else:
            web = await Web.login(server.c2s_port, "mallory")
            writer, chunk = writing(web), CHUNK
            begin = frame(1024 * MIB) + message
            if how == "fragments":
                begin, chunk = frame(len(CHUNK), 0x01) + message + CHUNK[len(message) :], one_frame
        sent = 0
        async with asyncio.timeout(PATIENCE_S):
            with suppress(ConnectionError):
                writer.write(begin)
                while sent < 1024 * MIB and not writer.transport.is_closing():
                    writer.write(chunk)
                    await writer.drain()
                    sent += len(chunk)
        assert 262_144 < sent < 32 * MIB
        assert server.resident_bytes - before < 8 * MIB
        await talk(alice, manager)
        await alice.close()
        await manager.close()

    with served(certificate=certificate) as server:
        asyncio.run(scene(server))


def writing(web):
    """The socket below a WebSocket of the library, for what the library would not write."""
    transport = web.socket.transport
    transport.pause_reading()
    loop = asyncio.get_running_loop()
    protocol = asyncio.StreamReaderProtocol(asyncio.StreamReader())
    protocol.connection_made(transport)
    transport.set_protocol(protocol)
    return asyncio.StreamWriter(transport, protocol, None, loop)


@pytest.mark.parametrize(
    ("unit", "condition"),
    [
        (b"\x89\x80abcd", "policy-violation"),
        (b"\x8a\x80abcd", "policy-violation"),
        (b"\x81\x80abcd", "policy-violation"),
        (b"\x81\x81\0\0\0\0 ", "policy-violation"),
        (b"\x00\x80abcd", "policy-violation"),
        (b"\x89\xfe\x00\x7e\0\0\0\0" + b"x" * 126, "bad-format"),
        (b"\x88\x81\0\0\0\0x", "bad-format"),
        (b"\x83\x80abcd", "bad-format"),
        (b"\xc1\x80abcd", "bad-format"),
        (b"\x81\x05abcde", "bad-format"),
        (b"\x81\xff" + b"\xff" * 8 + b"abcd", "bad-format"),
        (b"\x81\x83\0\0\0\0\xff\xfe\xfd", "bad-format"),
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_frames_that_are_none_or_say_nothing_end_the_stream_and_others_do_not_notice(unit, condition, inside):
    async def scene():
        async with healthy() as (server, alice, manager):
            if inside:
                web = await Web.login(server.c2s_port, "mallory", ping_interval=None)
            else:
                web = await Web.open(server.c2s_port, ping_interval=None)
            flood = unit * 20_000
            if unit[0] == 0:
                flood = b"\x01\x80abcd" + flood
            web.socket.transport.write(flood)
            await talk(alice, manager)
            assert f"<{condition} " in (await web.to_the_end())[0]

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("asked", "inside"),
    [
        ("<iq type='get' id='1'><query xmlns='jabber:iq:register'/></iq>", False),
        ("<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='SCRAM-SHA-256'/>", False),
        ("<r xmlns='urn:xmpp:sm:3'/>", True),
    ],
)
def test_who_asks_on_and_takes_no_answers_is_dropped_before_they_fill_the_memory(asked, inside):
    async def ask_on(raw, many):
        for _ in range(64 * MIB // len(many)):
            raw.send(many)
            await raw.writer.drain()

    async def scene():
        with served() as server:
            if inside:
                raw = await Raw.login(server.c2s_port, "alice")
                raw.send("<enable xmlns='urn:xmpp:sm:3'/>")
                await raw.until("<enabled")
            else:
                raw = await Raw.open(server.c2s_port)
            before = server.resident_bytes
            raw.writer.transport.pause_reading()
            with pytest.raises(OSError):
                await ask_on(raw, asked * 4000)
            assert server.resident_bytes - before < 24 * MIB
            raw.abort()

    asyncio.run(scene())


def test_one_read_full_of_questions_with_long_answers_takes_little_memory_and_all_are_answered_in_order():
    """240 kB of questions for a roster of 160 kB: all answers together would take 600 MB at once."""

    async def scene(server):
        alice = await Raw.login(server.c2s_port, "alice")
        manager = await Raw.component(server.component_port)
        mallory = await Raw.login(server.c2s_port, "mallory")
        for n in range(40):
            item = f"<item jid='{n}@x.example' name='{'n' * 4000}'/>"
            mallory.send(f"<iq type='set' id='s'><query xmlns='jabber:iq:roster'>{item}</query></iq>")
        await mallory.sync()
        before = server.peak_bytes
        ask = "<iq type='get' id='q{}'><query xmlns='jabber:iq:roster'/></iq>"
        mallory.send("".join(map(ask.format, range(20))) + "<presence/>" * 20)
        assert re.findall("id='(q[0-9]+)'", await mallory.until("id='q19'")) == [f"q{n}" for n in range(20)]
        mallory.writer.transport.pause_reading()
        mallory.send(f"<presence to='{MANAGER}'/>" + "".join(map(ask.format, range(3700))))
        await talk(alice, manager)
        await manager.until(f"from='{mallory.address}'[^>]* type='unavailable'")
        await talk(alice, manager)
        mallory.abort()
        assert server.peak_bytes - before < 64 * MIB
        await alice.close()
        await manager.close()

    with served() as server:
        asyncio.run(scene(server))


def test_pings_are_not_answered_to_who_does_not_take_the_answers():
    async def scene(server):
        alice = await Raw.login(server.c2s_port, "alice")
        manager = await Raw.component(server.component_port)
        web = await Web.login(server.c2s_port, "mallory", ping_interval=None)
        before = server.resident_bytes
        writer = writing(web)
        ping = b"\x89\xfd\0\0\0\0" + b"x" * 125
        for _ in range(400):
            writer.write(ping * 500)
            if writer.transport.get_write_buffer_size():
                await talk(alice, manager)
        await talk(alice, manager)
        assert server.resident_bytes - before < 4 * MIB
        web.abort()
        await alice.close()
        await manager.close()

    with served() as server:
        asyncio.run(scene(server))


@pytest.mark.parametrize("way", ["stream", "tls", "hello", "request", "websocket"])
def test_a_slow_loris_is_sent_away_in_time_on_each_way_in(certificate, way):
    async def scene():
        limits = {"login_s_max": 0.4, "tls_handshake_s_max": 0.4}
        async with serving(tls_certificate=certificate, limits=limits) as server:
            context = ssl.create_default_context(cafile=certificate)
            words = {
                "stream": header().encode() * 100,
                "tls": header().encode() * 100,
                "hello": hello(context) + bytes(5_000),
                "request": b"GET /" + b"x" * 5_000,
                "websocket": request().encode() + frame(100_000) + b"<x>" * 5_000,
            }[way]
            raw = await Raw.connect(server.c2s_port, context=context if way == "tls" else None)
            dripped = asyncio.create_task(drip(raw, words))
            await raw.to_the_end()
            assert not dripped.done()
            dripped.cancel()

    async def drip(raw, words):
        at = 1 if words[0] == ord("<") else len(words) // 100
        raw.send(words[:at])
        while at < len(words):
            await asyncio.sleep(0.005)
            raw.send(words[at : at + 1])
            at += 1

    asyncio.run(scene())
