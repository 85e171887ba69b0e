"""One port for all: the first bytes tell whether it is a stream, TLS or a WebSocket."""

import asyncio
import socket
import ssl
import struct
import warnings
from contextlib import suppress

import pytest
from test_server_slixmpp import Bot, play

from kestrel.server.certificate import ensure_certificate
from parts.server import DOMAIN, PASSWORDS, PATIENCE_S, Raw, header, serving


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    return ensure_certificate(tmp_path_factory.mktemp("certificate"), DOMAIN)


def trusting(certificate, *protocols):
    context = ssl.create_default_context(cafile=certificate)
    if protocols:
        context.set_alpn_protocols(list(protocols))
    return context


def hello(context):
    """The first words of a TLS client, without a client."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname=DOMAIN).do_handshake()
    return outgoing.read()


@pytest.mark.parametrize("offered", [(), ("xmpp-client",), ("xmpp-client", "http/1.1"), ("h2",)])
def test_tls_may_come_first_whatever_the_client_says_it_will_speak(certificate, offered):
    async def scene():
        async with serving(tls_certificate=certificate, tls_required=True) as server:
            alice = await Raw.connect(server.c2s_port, context=trusting(certificate, *offered))
            chosen = alice.writer.get_extra_info("ssl_object").selected_alpn_protocol()
            assert chosen == ("xmpp-client" if "xmpp-client" in offered else None)
            alice.send(header())
            features = await alice.until("</stream:features>")
            assert "starttls" not in features
            assert "<mechanism>PLAIN</mechanism>" in features
            await alice.authenticate("alice", PASSWORDS["alice"])
            alice.send("<iq type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>")
            await alice.until("</iq>")
            await alice.sync()
            await alice.close()

    asyncio.run(scene())


def test_an_independent_client_comes_by_direct_tls(certificate):
    async def scene():
        async with serving(tls_certificate=certificate, tls_required=True) as server:
            bot = Bot("alice", "pw-alice", enable_starttls=False, ca_certs=certificate)
            bot.tls_services = {("xmpps-client", "tcp")}
            await bot.started(server.c2s_port)
            assert server.hub.router.tables.quick[bot.boundjid.full].link.encrypted
            await bot["xep_0199"].ping(DOMAIN)
            await bot.leave()

    play(scene)


def test_a_hello_may_come_byte_by_byte_and_costs_no_tls_until_it_is_whole(certificate):
    async def scene():
        async with serving(tls_certificate=certificate) as server:
            context = trusting(certificate)
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = context.wrap_bio(incoming, outgoing, server_hostname=DOMAIN)
            with pytest.raises(ssl.SSLWantReadError):
                tls.do_handshake()
            raw = await Raw.connect(server.c2s_port)
            words = outgoing.read()
            for at in range(len(words) - 1):
                raw.send(words[at : at + 1])
                await asyncio.sleep(0)
            await quiet(server)
            (guest,) = server.hub.connections
            assert not guest.securing
            raw.send(words[-1:])
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    incoming.write(await raw.reader.read(65536))
                    try:
                        tls.do_handshake()
                        break
                    except ssl.SSLWantReadError:
                        continue
            assert tls.version() == "TLSv1.3"
            raw.send(outgoing.read())
            tls.write(b"</stream:stream>")
            raw.send(outgoing.read())
            seen = b""
            async with asyncio.timeout(PATIENCE_S):
                while b"<not-well-formed " not in seen:
                    incoming.write(await raw.reader.read(65536))
                    with suppress(ssl.SSLWantReadError):
                        while data := tls.read():
                            seen += data
            raw.abort()

    asyncio.run(scene())


async def quiet(server):
    """Until the server has read all that another connection, which comes later, can see."""
    probe = await Raw.connect(server.c2s_port)
    probe.send("<x/>")
    await probe.to_the_end()


@pytest.mark.parametrize(
    "words",
    [
        b"\x16\x03\x01\x40\x00" + bytes(9_000),
        b"\x16\x03\x01\xff\xff\x01",
        b"\x16\x03\x01\x00\x00\x01",
        b"\x16\x03\x01\x00\x10\x02",
        b"\x16\x7f\x01\x00\x10\x01",
        b"\x16\x03\x01\x00\x04\x01\x00\x00\x00",
        b"\x16\x03\x01\x00\x05hello" + bytes(70_000),
    ],
)
def test_a_hello_that_is_none_is_refused_at_once(certificate, words):
    async def scene():
        async with serving(tls_certificate=certificate) as server:
            raw = await Raw.connect(server.c2s_port)
            raw.send(words)
            end = await raw.to_the_end()
            assert "<" not in end

    asyncio.run(scene())


def test_without_a_certificate_tls_is_refused_in_its_own_words():
    async def scene():
        async with serving() as server:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)
                context = ssl.create_default_context()
                with pytest.raises(ssl.SSLError, match=r"(?i)handshake.failure"):
                    await Raw.connect(server.c2s_port, context=context)

    asyncio.run(scene())


def test_a_client_that_does_not_trust_the_certificate_leaves_and_nothing_stays(certificate):
    async def scene():
        async with serving(tls_certificate=certificate) as server:
            with pytest.raises(ssl.SSLCertVerificationError):
                await Raw.connect(server.c2s_port, context=ssl.create_default_context())

    asyncio.run(scene())


def test_tls_below_1_2_is_refused(certificate):
    async def scene():
        async with serving(tls_certificate=certificate) as server:
            context = trusting(certificate)
            context.set_ciphers("ALL:@SECLEVEL=0")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await Raw.connect(server.c2s_port, context=context)

    asyncio.run(scene())


def test_a_handshake_that_stops_after_the_hello_times_out(certificate):
    async def scene():
        limits = {"tls_handshake_s_max": 0.2}
        async with serving(tls_certificate=certificate, limits=limits) as server:
            raw = await Raw.connect(server.c2s_port)
            raw.send(hello(trusting(certificate)))
            await raw.to_the_end()

    asyncio.run(scene())


@pytest.mark.parametrize("first", [b"", b"\x16", b"\x16\x03\x01\x02\x00" + bytes(100), b" ", b"<str"])
def test_who_does_not_finish_its_first_words_is_sent_away(certificate, first):
    async def scene():
        limits = {"login_s_max": 0.2}
        async with serving(tls_certificate=certificate, limits=limits) as server:
            raw = await Raw.connect(server.c2s_port)
            raw.send(first)
            end = await raw.to_the_end()
            assert ("<connection-timeout " in end) == (first[:1] != b"\x16")

    asyncio.run(scene())


def test_time_runs_on_through_tls_and_login(certificate):
    async def scene():
        limits = {"login_s_max": 0.5}
        async with serving(tls_certificate=certificate, limits=limits) as server:
            raw = await Raw.connect(server.c2s_port, context=trusting(certificate))
            (guest,) = server.hub.connections
            began = guest.started_at
            raw.send(header())
            await raw.until("</stream:features>")
            (guest,) = server.hub.connections
            assert guest.started_at == began
            assert "<connection-timeout " in await raw.to_the_end()

    asyncio.run(scene())


def test_a_stop_tells_those_who_have_said_nothing(certificate):
    async def scene():
        async with serving(tls_certificate=certificate, check_empty=False) as server:
            silent = await Raw.connect(server.c2s_port)
            secure = await Raw.connect(server.c2s_port, context=trusting(certificate))
            half = await Raw.connect(server.c2s_port)
            half.send(b"\x16\x03")
            await quiet(server)
            await server.stop()
            assert "<system-shutdown " in await silent.to_the_end()
            assert "<system-shutdown " in await secure.to_the_end()
            assert await half.to_the_end() == ""

    asyncio.run(scene())


def test_a_reset_at_every_stage_leaves_nothing(certificate):
    words = hello(trusting(certificate))

    async def scene():
        async with serving(tls_certificate=certificate) as server:
            for first in (b"", words[:1], words[:-1], words, words + b"x", b"<", b"<stream:stream"):
                raw = await Raw.connect(server.c2s_port)
                raw.send(first)
                await asyncio.sleep(0)
                sock = raw.writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                raw.abort()

    asyncio.run(scene())
