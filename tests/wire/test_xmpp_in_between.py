"""Somebody in between, or a server that means harm: a client gives nothing away, and gives up in time."""

import asyncio
import struct
from contextlib import asynccontextmanager

import pytest
from wsproto.utilities import generate_accept_token

import kestrel.xmpp.dial as dialling
from kestrel.errors import EnvironmentProblem, KestrelError, PeerError
from kestrel.xmpp import stanza as x
from kestrel.xmpp.client import ClientSettings, XmppClient
from kestrel.xmpp.dial import STANZA_BYTES_MAX, Endpoint, dial
from kestrel.xmpp.register import register
from kestrel.xmpp.session import SessionSettings
from kestrel.xmpp.websocket import HANDSHAKE_BYTES_MAX
from parts.server import DOMAIN, PASSWORDS, serving

PATIENCE_S = 20
PIN = "ab" * 32
NS_FRAMING = "urn:ietf:params:xml:ns:xmpp-framing"
STARTTLS = f"<starttls xmlns='{x.NS_TLS}'/>".encode()


@asynccontextmanager
async def listening(script):
    """A server that does what the script says with each connection; yields its port."""
    faults, tasks = [], set()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))

    async def serve(reader, writer):
        tasks.add(asyncio.current_task())
        try:
            await script(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert not faults


def refusal(script, **how):
    """Why the server with this script was left."""

    async def scene():
        async with listening(script) as port:
            with pytest.raises(KestrelError) as caught:
                await dial(Endpoint(DOMAIN, "127.0.0.1", port, **how))
        return caught.value

    return asyncio.run(scene())


# --------------------------------------------------------------------------------------------------
# somebody in between


def relayed(change, meddle):
    """The problem of a client with somebody in between, who `change`s what the server says; and all it said.

    `meddle(client, server)` is called first, with the streams of both sides.
    """
    said = bytearray()

    async def scene():
        async with serving(check_empty=False) as server:

            async def relay(reader, writer):
                upstream, down = await asyncio.open_connection("127.0.0.1", server.c2s_port)

                async def forth():
                    while data := await reader.read(65536):
                        said.extend(data)
                        if not await meddle(data, writer):
                            down.write(data)
                    down.close()

                task = asyncio.create_task(forth())
                try:
                    while data := await upstream.read(65536):
                        writer.write(change(data))
                finally:
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
                    down.close()

            async with listening(relay) as port:
                settings = ClientSettings(
                    f"alice@{DOMAIN}", PASSWORDS["alice"], "127.0.0.1", port, fingerprint=PIN
                )
                with pytest.raises(KestrelError) as caught:
                    await XmppClient(settings, None)._log_in()
                # registration sends a secret in its first stanza
                with pytest.raises(KestrelError):
                    await register("127.0.0.1", port, DOMAIN, "the-token", fingerprint=PIN)
        return caught.value

    return asyncio.run(scene()), bytes(said)


async def nothing(data, writer):
    return False


def test_a_server_that_offers_no_tls_gets_no_secret_from_who_requires_it():
    problem, said = relayed(lambda data: data, nothing)
    assert problem.code == "no_tls"
    assert not problem.retry
    assert b"<auth" not in said
    assert b"the-token" not in said


def test_an_offer_of_tls_that_somebody_answers_with_no_is_not_worked_around():
    def offering(data):
        return data.replace(b"<stream:features>", b"<stream:features>" + STARTTLS)

    async def refusing(data, writer):
        if b"<starttls" in data:
            writer.write(f"<failure xmlns='{x.NS_TLS}'/></stream:stream>".encode())
            return True
        return False

    problem, said = relayed(offering, refusing)
    assert "refuses to start TLS" in problem.text
    assert b"<starttls" in said
    assert b"<auth" not in said
    assert b"the-token" not in said


def test_what_is_said_in_the_clear_behind_the_agreement_to_tls_is_not_taken():
    def offering(data):
        return data.replace(b"<stream:features>", b"<stream:features>" + STARTTLS)

    async def injecting(data, writer):
        if b"<starttls" in data:
            writer.write(f"<proceed xmlns='{x.NS_TLS}'/><message><body>trust me</body></message>".encode())
            return True
        return False

    problem, said = relayed(offering, injecting)
    assert isinstance(problem, PeerError)
    assert "in the clear" in problem.text
    assert b"<auth" not in said


@pytest.mark.parametrize("via", ["tls", "wss"])
def test_who_has_no_tls_is_not_spoken_to_in_the_clear(via):
    heard = []

    async def script(reader, writer):
        heard.append(await reader.read(1000))
        writer.write(x.stream_header(from_=DOMAIN, id="1") + b"<stream:features/>")
        await reader.read()

    problem = refusal(script, via=via)
    assert isinstance(problem, EnvironmentProblem)
    assert "TLS" in problem.text
    assert [data[:1] for data in heard] == [b"\x16"], "a TLS handshake, and nothing else"


# --------------------------------------------------------------------------------------------------
# hostile WebSockets


async def shaken(reader, writer, *, answer="101 Yes"):
    request = (await reader.readuntil(b"\r\n\r\n")).decode()
    key = request.partition("Sec-WebSocket-Key: ")[2].split("\r\n")[0]
    proof = generate_accept_token(key.encode()).decode()
    writer.write(
        f"HTTP/1.1 {answer}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {proof}\r\n"
        "Sec-WebSocket-Protocol: xmpp\r\n\r\n".encode()
    )


def text(data):
    data = data.encode()
    size = bytes([len(data)]) if len(data) < 126 else b"\x7e" + struct.pack("!H", len(data))
    return b"\x81" + size + data


def test_a_huge_message_is_refused_long_before_it_has_come():
    sent = []

    async def script(reader, writer):
        await shaken(reader, writer)
        writer.write(b"\x81\x7f" + struct.pack("!Q", 2**40) + b"<a>")
        for _ in range(1000):
            writer.write(b"x" * 2**20)
            sent.append(2**20)
            await writer.drain()

    problem = refusal(script, via="ws")
    assert isinstance(problem, PeerError)
    assert "larger than" in problem.text
    assert sum(sent) < 4 * STANZA_BYTES_MAX


def test_an_endless_answer_to_the_handshake_is_refused():
    async def script(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 101 Yes\r\n")
        while True:
            writer.write(b"X-More: " + b"x" * 1000 + b"\r\n")
            await writer.drain()

    problem = refusal(script, via="ws")
    assert "did not answer as a WebSocket does" in problem.text or str(HANDSHAKE_BYTES_MAX) in problem.text


def test_who_never_finishes_the_handshake_is_left(monkeypatch):
    monkeypatch.setattr(dialling, "HANDSHAKE_S_MAX", 0.2)

    async def script(reader, writer):
        writer.write(b"HTTP/1.1 101 ")
        await reader.read()
        await asyncio.Event().wait()

    assert "did not answer within 0.2 s" in refusal(script, via="ws").text


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (
            f"<close xmlns='{NS_FRAMING}' see-other-uri='wss://elsewhere.example/x'/>",
            "wss://elsewhere.example/x",
        ),
        (f"<close xmlns='{NS_FRAMING}'/>", "closed the stream"),
        ("<features xmlns='http://etherx.jabber.org/streams'/>", "not acceptable"),
        ("no XML", "not acceptable"),
        ("<!DOCTYPE a [<!ENTITY b 'c'>]><open/>", "not acceptable"),
    ],
)
def test_other_answers_than_an_open_stream_are_told(message, words):
    async def script(reader, writer):
        await shaken(reader, writer)
        writer.write(text(message))
        await reader.read()

    assert words in refusal(script, via="ws").text


# --------------------------------------------------------------------------------------------------
# and one that is in order


def test_on_loopback_a_websocket_in_the_clear_will_do():
    async def scene():
        async with serving() as server:
            session = SessionSettings(retry_s_max=0.1)
            where = {"host": "127.0.0.1", "port": server.c2s_port, "via": "ws"}
            token = server.accounts.invite("worker", uses=1)
            jid, password = await register("127.0.0.1", server.c2s_port, DOMAIN, token, via="ws")

            class Told:
                def on_connected(self, address): ...

                def on_disconnected(self, reason): ...

                def on_stanza(self, stanza): ...

            client = XmppClient(ClientSettings(jid, password, session=session, **where), Told())
            running = asyncio.create_task(client.run())
            async with asyncio.timeout(PATIENCE_S):
                await client.wait_connected()
                assert client.address.startswith(f"{jid}/")
                await client.close()
                await running

    asyncio.run(scene())
