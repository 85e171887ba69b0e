"""Our client against servers that misbehave: scripts over real sockets, nothing left behind."""

import asyncio
import base64
import logging

import pytest

from kestrel.errors import AuthenticationError, EnvironmentProblem
from kestrel.xmpp import stanza as x
from kestrel.xmpp.client import ClientSettings, XmppClient
from kestrel.xmpp.component import ComponentSettings, XmppComponent
from kestrel.xmpp.sasl import SCRAM_SHA_256, ScramServer, make_keys
from kestrel.xmpp.session import SessionSettings
from kestrel.xmpp.stream import Stanza, StreamEnd, StreamReader

PATIENCE_S = 20
FEATURES = (
    f"<stream:features><mechanisms xmlns='{x.NS_SASL}'><mechanism>{SCRAM_SHA_256}</mechanism>"
    "</mechanisms></stream:features>"
).encode()
BIND = f"<stream:features><bind xmlns='{x.NS_BIND}'/><sm xmlns='{x.NS_ACKS}'/></stream:features>".encode()
KEYS = make_keys(SCRAM_SHA_256, "pencil", b"0123456789abcdef")


class Peer:
    """The server's end of one connection, driven by a script."""

    def __init__(self, reader, writer):
        self.stream = StreamReader(namespaces=frozenset((x.NS_CLIENT, x.NS_COMPONENT)))
        self.reader, self.writer = reader, writer
        self.events = []

    async def next(self):
        while not self.events:
            data = await self.reader.read(65536)
            if not data:
                raise ConnectionError
            self.events += self.stream.feed(data)
        event = self.events.pop(0)
        if isinstance(event, StreamEnd):
            raise ConnectionError
        return event

    def say(self, data):
        self.writer.write(data)

    async def header(self, features):
        await self.next()
        self.say(x.stream_header(from_="localhost", id="s1") + features)

    async def log_in(self, *, signature=None):
        await self.header(FEATURES)
        exchange = ScramServer(SCRAM_SHA_256, lambda user: KEYS, b"secret")
        auth = await self.next()
        challenge = exchange.on_first("".join(auth.tree().itertext()))
        self.say(f"<challenge xmlns='{x.NS_SASL}'>{challenge}</challenge>".encode())
        response = await self.next()
        _, success = exchange.on_final("".join(response.tree().itertext()))
        self.say(f"<success xmlns='{x.NS_SASL}'>{signature or success}</success>".encode())
        self.stream.reset()
        await self.header(BIND)
        bind = await self.next()
        payload = f"<bind xmlns='{x.NS_BIND}'><jid>user@localhost/r</jid></bind>"
        self.say(x.iq("result", bind.attrs["id"], payload=payload))
        assert (await self.next()).name == "enable"
        self.say(f"<enabled xmlns='{x.NS_ACKS}'/>".encode())


class Handler:
    def __init__(self):
        self.seen = asyncio.Queue()
        self.fail = False

    def on_connected(self, address):
        self.seen.put_nowait(("up", address))

    def on_disconnected(self, reason):
        self.seen.put_nowait(("down", reason))

    def on_stanza(self, stanza):
        if self.fail:
            self.fail = False
            raise RuntimeError("planted")
        self.seen.put_nowait(("stanza", stanza.name))

    async def until(self, kind):
        async with asyncio.timeout(PATIENCE_S):
            while (event := await self.seen.get())[0] != kind:
                pass
        return event[1]


def play(script, scene, *, component=False, **bounds):
    """Serve `script` to every connection while `scene(session, handler, task)` runs."""

    async def main():
        faults, peers = [], set()
        asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))

        async def serve(reader, writer):
            peers.add(asyncio.current_task())
            try:
                await script(Peer(reader, writer))
            except (ConnectionError, asyncio.CancelledError):
                pass
            finally:
                writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        settings = SessionSettings(**({"retry_s_min": 0.01, "retry_s_max": 0.05} | bounds))
        handler = Handler()
        if component:
            session = XmppComponent(
                ComponentSettings("c.localhost", "s", "127.0.0.1", port, settings), handler
            )
        else:
            session = XmppClient(
                ClientSettings("user@localhost", "pencil", "127.0.0.1", port, session=settings), handler
            )
        before = asyncio.all_tasks()
        task = asyncio.create_task(session.run())
        try:
            async with asyncio.timeout(PATIENCE_S):
                await scene(session, handler, task)
        finally:
            await session.close()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            server.close()
            left = asyncio.all_tasks() - before - peers
            for peer in peers:
                peer.cancel()
            await asyncio.gather(*peers, return_exceptions=True)
        assert not left
        assert not faults

    asyncio.run(main())


async def problem(session, words):
    """Until the session says that this was the problem."""
    while words not in session.last_problem:  # noqa: ASYNC110  (there is no event for this)
        await asyncio.sleep(0.01)


async def idle(peer):
    await peer.log_in()
    while True:
        await peer.next()


def test_a_silent_server_is_pinged_and_then_given_up():
    pings = []

    async def script(peer):
        await peer.log_in()
        while True:
            pings.append((await peer.next()).children[0][:2])

    async def scene(session, handler, task):
        await handler.until("up")
        assert "silent" in await handler.until("down")
        await handler.until("up")
        assert pings == [(x.NS_PING, "ping")]

    play(script, scene, quiet_s_max=0.05, pong_s_max=0.05)


def test_an_answered_ping_keeps_the_link_and_is_not_handed_on():
    answered = asyncio.Event()

    async def script(peer):
        await peer.log_in()
        for _ in range(2):
            ping = await peer.next()
            peer.say(x.iq("result", ping.attrs["id"], from_="localhost"))
        answered.set()
        await peer.next()

    async def scene(session, handler, task):
        await answered.wait()
        assert handler.seen.get_nowait()[0] == "up"
        assert handler.seen.empty()

    play(script, scene, quiet_s_max=0.02, pong_s_max=0.5)


@pytest.mark.parametrize(("settings", "told"), [({}, 0.5), ({"quiet_s_max": 0.05, "pong_s_max": 0.05}, 1000)])
def test_a_link_can_be_doubted_sooner_than_the_settings_say_but_not_later(settings, told):
    async def scene(session, handler, task):
        await handler.until("up")
        session.expect_sign_of_life(told)  # with the settings alone it would take longer than our patience
        assert "silent" in await handler.until("down")
        await handler.until("up")
        assert "silent" in await handler.until("down")

    play(idle, scene, **settings)


def test_who_gives_signs_of_life_in_time_keeps_the_link():
    pinged = asyncio.Event()

    async def script(peer):
        await peer.log_in()
        for _ in range(3):
            ping = await peer.next()
            peer.say(x.iq("result", ping.attrs["id"], from_="localhost"))
        pinged.set()
        await peer.next()

    async def scene(session, handler, task):
        await handler.until("up")
        session.expect_sign_of_life(0.5)
        await pinged.wait()
        assert handler.seen.empty()
        assert session.connected

    play(script, scene)


def test_acknowledgements_are_answered_with_what_was_received():
    answers = []
    done = asyncio.Event()

    async def script(peer):
        await peer.log_in()
        peer.say(b"<message/><presence/><r xmlns='urn:xmpp:sm:3'/><message/><r xmlns='urn:xmpp:sm:3'/>")
        answers.extend([(await peer.next()).attrs["h"], (await peer.next()).attrs["h"]])
        done.set()

    async def scene(session, handler, task):
        await done.wait()
        assert answers == ["2", "3"]

    play(script, scene)


def test_a_lying_acknowledgement_ends_the_link():
    async def script(peer):
        await peer.log_in()
        peer.say(b"<a xmlns='urn:xmpp:sm:3' h='7'/>")
        await peer.next()

    async def scene(session, handler, task):
        await handler.until("up")
        assert "7" in await handler.until("down")

    play(script, scene)


def test_a_server_that_does_not_prove_itself_is_refused():
    async def script(peer):
        await peer.log_in(signature=base64.b64encode(b"v=" + base64.b64encode(b"x" * 32)).decode())

    async def scene(session, handler, task):
        with pytest.raises(AuthenticationError):
            await task

    play(script, scene)


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x16\x03\x01\x02",
        b"<message/>",
        x.stream_header() + b"<!-- hi -->",
        x.stream_header() + b"<message/>",
        x.stream_header() + FEATURES + b"<message/>" * 1000,
        x.stream_header() + x.stream_error("host-unknown", "no such host"),
        x.stream_header() + x.STREAM_END,
        b"",
    ],
)
def test_rubbish_at_the_start_is_survived_and_tried_again(data):
    tries = []
    again = asyncio.Event()

    async def script(peer):
        tries.append(None)
        if len(tries) < 3:
            peer.say(data)
            return
        again.set()
        await idle(peer)

    async def scene(session, handler, task):
        assert await handler.until("up") == "user@localhost/r"
        assert again.is_set()
        assert session.last_problem

    play(script, scene)


def test_broken_xml_ends_the_link_with_a_stream_error():
    errors = []

    async def script(peer):
        await peer.log_in()
        if not errors:
            peer.say(b"<message/><message><oops></message>")
            errors.append(await peer.next())
        await peer.next()

    async def scene(session, handler, task):
        assert await handler.until("stanza") == "message"
        assert "not-well-formed" in await handler.until("down")
        await handler.until("up")
        assert isinstance(errors[0], Stanza)
        assert errors[0].children[0][1] == "not-well-formed"

    play(script, scene)


def test_a_handler_that_fails_costs_one_stanza_only(caplog):
    async def script(peer):
        await peer.log_in()
        await peer.next()
        peer.say(b"<message/><presence/>")
        await peer.next()

    async def scene(session, handler, task):
        await handler.until("up")
        handler.fail = True
        session.send(b"<message/>")
        assert await handler.until("stanza") == "presence"

    with caplog.at_level(logging.ERROR, "kestrel.xmpp"):
        play(script, scene)
    assert [record.message for record in caplog.records] == ["xmpp.handler_failed"]


def test_a_server_that_does_not_read_costs_the_link_not_the_memory():
    async def script(peer):
        await peer.log_in()
        peer.reader._transport.pause_reading()
        await asyncio.sleep(PATIENCE_S)

    async def scene(session, handler, task):
        await handler.until("up")
        payload = x.message_json("a", b'"' + b"x" * 100_000 + b'"')
        while session.connected:
            for _ in range(10):
                session.send(payload)
            await asyncio.sleep(0)
        assert "takes too little" in await handler.until("down")
        session.send(payload)

    play(script, scene, outgoing_bytes_max=1_000_000)


def test_a_burst_above_the_bound_in_one_turn_is_given_up_too():
    async def scene(session, handler, task):
        await handler.until("up")
        for _ in range(20):
            session.send(b"<message>" + b"x" * 100_000 + b"</message>")
        assert "takes too little" in await handler.until("down")

    play(idle, scene, outgoing_bytes_max=1_000_000)


def test_a_login_that_hangs_is_given_up_in_time():
    async def script(peer):
        await peer.header(FEATURES)
        await asyncio.sleep(PATIENCE_S)

    async def scene(session, handler, task):
        await problem(session, "within")

    play(script, scene, login_s_max=0.05)


def test_closing_while_the_login_hangs_returns_at_once():
    arrived = asyncio.Event()

    async def script(peer):
        await peer.header(FEATURES)
        arrived.set()
        await asyncio.sleep(PATIENCE_S)

    async def scene(session, handler, task):
        await arrived.wait()
        await session.close()
        await task

    play(script, scene)


def test_a_server_that_is_not_there_is_named():
    async def scene(session, handler, task):
        session._endpoint = type(session._endpoint)("localhost", "127.0.0.1", 1)
        await problem(session, "127.0.0.1:1")
        assert not task.done()

    async def script(peer):
        return

    play(script, scene)


@pytest.mark.parametrize(("condition", "retried"), [("not-authorized", False), ("conflict", True)])
def test_a_component_is_told_why_it_is_refused(condition, retried):
    async def script(peer):
        await peer.next()
        peer.say(x.stream_header(x.NS_COMPONENT, id="1"))
        await peer.next()
        peer.say(x.stream_error(condition))

    async def scene(session, handler, task):
        if not retried:
            with pytest.raises(AuthenticationError):
                await task
            return
        await problem(session, "connected already")
        assert not task.done()

    play(script, scene, component=True)


def test_an_address_that_is_taken_is_tried_again_soon_for_its_holder_may_be_dead():
    attempts = []

    async def script(peer):
        attempts.append(peer)
        await peer.next()
        peer.say(x.stream_header(x.NS_COMPONENT, id="1"))
        await peer.next()
        if len(attempts) < 20:  # by then the pause for ordinary failures would be an hour
            peer.say(x.stream_error("conflict"))
            return
        peer.say(b"<handshake/>")
        await asyncio.sleep(PATIENCE_S)

    async def scene(session, handler, task):
        assert await handler.until("up") == "c.localhost"

    play(script, scene, component=True, retry_s_max=3600.0)


def test_being_replaced_is_final_so_that_two_do_not_fight():
    async def script(peer):
        await peer.log_in()
        peer.say(x.stream_error("conflict", "replaced"))

    async def scene(session, handler, task):
        with pytest.raises(EnvironmentProblem) as caught:
            await task
        assert caught.value.code == "conflict"
        assert not caught.value.retry

    play(script, scene)
