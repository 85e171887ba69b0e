"""WebSockets (RFC 7395) on the one port, judged by a library that is not ours."""

import asyncio
import ssl
from contextlib import asynccontextmanager
from xml.etree import ElementTree

import pytest
import websockets

from kestrel.config import WEBSOCKET_PATH
from kestrel.server.certificate import ensure_certificate
from kestrel.xmpp.acks import REQUEST_EVERY
from parts.server import DOMAIN, MANAGER, Raw, serving
from parts.web import OPEN, Web

STREAMS = "http://etherx.jabber.org/streams"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    return ensure_certificate(tmp_path_factory.mktemp("certificate"), DOMAIN)


@asynccontextmanager
async def opened(**more):
    """A server, a component and a client on a WebSocket."""
    async with serving(**more) as server:
        manager = await Raw.component(server.component_port)
        alice = await Web.login(server.c2s_port, "alice")
        yield server, manager, alice
        await alice.close()
        await manager.close()


def request(path=WEBSOCKET_PATH, *, method="GET", without="", **headers):
    """The head of a request for a WebSocket, with some of it changed."""
    fields = {
        "Host": DOMAIN,
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Protocol": "xmpp",
    } | {name.replace("_", "-"): value for name, value in headers.items()}
    fields.pop(without, None)
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n"


@pytest.mark.parametrize("secure", [False, True])
def test_a_client_logs_in_through_a_websocket_and_talks_to_all_others(certificate, secure):
    async def scene():
        context = ssl.create_default_context(cafile=certificate) if secure else None
        async with serving(tls_certificate=certificate, tls_required=secure or None) as server:
            manager = await Raw.component(server.component_port)
            alice = await Web.login(server.c2s_port, "alice", context=context)
            assert alice.socket.subprotocol == "xmpp"
            assert server.hub.router.tables.quick[alice.address].link.encrypted == secure
            assert not server.hub.half_open_count
            body = "<body>hi &amp; ho</body>"
            await alice.send(f"<message xmlns='jabber:client' to='{MANAGER}'>{body}</message>")
            seen = await manager.until("</body></message>")
            assert f"from='{alice.address}'" in seen
            assert body in seen
            assert "jabber:client" not in seen
            for text in ("one", "two", "<x xmlns='urn:y'/>"):
                manager.send(f"<message from='{MANAGER}' to='{alice.address}'><body>{text}</body></message>")
            for text in ("one", "two"):
                assert ElementTree.fromstring(await alice.next("message"))[0].text == text
            assert "urn:y" in await alice.next("message")
            await alice.close()
            await manager.close()

    asyncio.run(scene())


def test_clients_on_either_way_send_each_other_whatever_xml_allows():
    async def scene():
        async with opened() as (server, _, alice):
            bob = await Raw.login(server.c2s_port, "bob")
            inside = "<p:x xmlns:p='urn:p' p:a='1'><y xmlns=''/>\u00e9\U0001f985&#13;</p:x>"
            bob.send(f"<message to='{alice.address}'>{inside}<body>x</body></message>")
            message = ElementTree.fromstring(await alice.next("message"))
            assert message[0].tag == "{urn:p}x"
            assert message[0][0].tag == "y"
            assert message[0][0].tail == "\u00e9\U0001f985\r"
            assert message[1].tag == "{jabber:client}body"
            prefixed = f"<c:message xmlns:c='jabber:client' to='{bob.address}'><c:body>x</c:body></c:message>"
            await alice.send(prefixed)
            assert "<body>x</body>" in await bob.until("</message>")
            await bob.close()

    asyncio.run(scene())


def test_features_come_with_their_namespace_and_never_offer_starttls(certificate):
    async def scene():
        async with serving(tls_certificate=certificate) as server:
            web = await Web.connect(server.c2s_port)
            await web.send(OPEN)
            await web.next("open", "urn:ietf:params:xml:ns:xmpp-framing")
            features = await web.next("features", STREAMS)
            assert "SCRAM-SHA-256" in features
            assert "starttls" not in features
            await web.send("<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>")
            await web.next("failure", "urn:ietf:params:xml:ns:xmpp-tls")
            await web.to_the_end()

    asyncio.run(scene())


def test_acknowledgements_work():
    async def scene():
        async with opened() as (server, manager, alice):
            await alice.send("<enable xmlns='urn:xmpp:sm:3'/>")
            await alice.next("enabled", "urn:xmpp:sm:3")
            await alice.send(f"<message xmlns='jabber:client' to='{MANAGER}'/>")
            await alice.send("<r xmlns='urn:xmpp:sm:3'/>")
            assert "h='1'" in await alice.next("a", "urn:xmpp:sm:3")
            for _ in range(REQUEST_EVERY):
                manager.send(f"<message from='{MANAGER}' to='{alice.address}'/>")
            for _ in range(REQUEST_EVERY):
                await alice.next("message")
            # The question is a message of its own.
            await alice.next("r", "urn:xmpp:sm:3")
            await alice.send(f"<a xmlns='urn:xmpp:sm:3' h='{REQUEST_EVERY}'/>")
            await alice.sync()
            assert server.hub.router.tables.quick[alice.address].link.acks.unacked == 1

    asyncio.run(scene())


def test_a_wrong_domain_is_an_unknown_host():
    async def scene():
        async with serving() as server:
            web = await Web.connect(server.c2s_port)
            await web.send(OPEN.replace(DOMAIN, "elsewhere.example"))
            await web.next("open", "urn:ietf:params:xml:ns:xmpp-framing")
            said, code = await web.to_the_end()
            assert "<host-unknown " in said
            assert said.endswith("<close xmlns='urn:ietf:params:xml:ns:xmpp-framing'/>")
            assert code == 1000

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("message", "condition"),
    [
        ("<message xmlns='jabber:client'/><message xmlns='jabber:client'/>", "bad-format"),
        ("<message xmlns='jabber:client'>", "bad-format"),
        ("no element", "bad-format"),
        ("<message xmlns='jabber:client'><body></message>", "not-well-formed"),
        ("<!DOCTYPE x [<!ENTITY a 'ha'>]><message xmlns='jabber:client'>&a;</message>", "not-well-formed"),
        ("<message xmlns='jabber:client'>&lol;</message>", "restricted-xml"),
        ("<message xmlns='jabber:client'>" + "<a>" * 200 + "</a>" * 200 + "</message>", "policy-violation"),
        ("<message xmlns='jabber:client'><body>" + "x" * 300_000 + "</body></message>", "policy-violation"),
        (b"<message xmlns='jabber:client'/>", "bad-format"),
        ("<message xmlns='jabber:client' from='bob@x.localhost/r' to='bob@x.localhost'/>", "invalid-from"),
        (OPEN, "bad-format"),
        ("<open xmlns='urn:ietf:params:xml:ns:xmpp-framing'>", "bad-format"),
        ("<stream:stream/>", "unsupported-stanza-type"),
        (["<message xmlns='jabber:client'>", *["x"] * 1100, "</message>"], "policy-violation"),
    ],
)
def test_a_client_that_breaks_the_rules_loses_its_stream_and_is_announced_as_gone(message, condition):
    async def scene():
        async with opened() as (server, manager, _):
            mallory = await Web.login(server.c2s_port, "mallory")
            await mallory.send(f"<presence xmlns='jabber:client' to='{MANAGER}'/>")
            await manager.until("<presence[^>]*/>")
            await mallory.send(message)
            said, code = await mallory.to_the_end()
            assert f"<{condition} " in said
            assert code == 1000
            assert mallory.address in await manager.until("type='unavailable'[^>]*>")

    asyncio.run(scene())


@pytest.mark.parametrize("how", ["close", "websocket", "reset"])
def test_every_kind_of_ending_is_told_once(how):
    async def scene():
        async with opened() as (server, manager, _):
            bob = await Web.login(server.c2s_port, "bob")
            await bob.send(f"<presence xmlns='jabber:client' to='{MANAGER}'/>")
            await manager.until("<presence[^>]*/>")
            match how:
                case "close":
                    await bob.close()
                case "websocket":
                    await bob.socket.close()
                case "reset":
                    bob.abort()
            assert bob.address in await manager.until("type='unavailable'[^>]*>")
            assert "unavailable" not in await manager.component_sync()

    asyncio.run(scene())


def test_who_is_silent_is_asked_in_a_message_and_pings_of_the_websocket_count_as_life():
    async def scene():
        limits = {"quiet_s_max": 0.3, "pong_s_max": 0.3, "rest_s": 0.1}
        async with serving(limits=limits) as server:
            silent = await Web.login(server.c2s_port, "alice", ping_interval=None)
            living = await Web.login(server.c2s_port, "bob", ping_interval=0.1)
            assert "urn:xmpp:ping" in await silent.next("iq")
            assert (await silent.to_the_end())[0] == ""
            await living.sync()
            await living.close()

    asyncio.run(scene())


def test_a_stop_says_so():
    async def scene():
        async with serving(check_empty=False) as server:
            alice = await Web.login(server.c2s_port, "alice")
            await server.stop()
            said, _ = await alice.to_the_end()
            assert "<system-shutdown " in said

    asyncio.run(scene())


# --------------------------------------------------------------------------------------------------
# before there is a WebSocket


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", 200, f"This is the XMPP server of {DOMAIN}"),
        ("GET /?a=b HTTP/1.0\r\n\r\n", 200, "XMPP"),
        ("GET /favicon.ico HTTP/1.1\r\nHost: x\r\n\r\n", 404, WEBSOCKET_PATH),
        (request("/other"), 404, WEBSOCKET_PATH),
        (request("/"), 404, WEBSOCKET_PATH),
        (request(without="Upgrade"), 426, "RFC 7395"),
        (request(without="Sec-WebSocket-Protocol"), 400, "Sec-WebSocket-Protocol"),
        (request(Sec_WebSocket_Protocol="chat, mqtt"), 400, "'xmpp'"),
        (request(Sec_WebSocket_Version="8"), 426, ""),
        (request(without="Sec-WebSocket-Key"), 400, ""),
        (request(without="Connection"), 400, ""),
        (request(Content_Length="5"), 400, "no body"),
        ("GET \r\n\r\n", 400, "no HTTP request"),
        ("GET  \r\nx\r\n\r\n", 400, ""),
        ("GET / HTTP/9.9\r\n\r\n", 200, ""),
        (request(X="y" * 9_000), 431, "too long"),
        (request(**{f"X_{n}": "y" for n in range(100)}), 431, "too long"),
        ("GET /" + "a" * 9_000, 431, "too long"),
        ("GET /\xff\x00 HTTP/1.1\r\n: \r\n::\r\n\r\n", 404, ""),
    ],
)
def test_a_request_that_leads_nowhere_is_told_why(words, status, text):
    async def scene():
        async with serving() as server:
            raw = await Raw.connect(server.c2s_port)
            raw.send(words)
            answer = await raw.to_the_end()
            assert answer.startswith(f"HTTP/1.1 {status} ")
            assert text in answer
            assert "Connection: close".lower() in answer.lower()

    asyncio.run(scene())


def test_a_request_may_come_byte_by_byte_with_more_behind_it():
    async def scene():
        async with serving() as server:
            raw = await Raw.connect(server.c2s_port)
            words = request().encode() + b"\x81\x80abcd"
            for at in range(len(words)):
                raw.send(words[at : at + 1])
                await asyncio.sleep(0)
            answer = await raw.until("\r\n\r\n")
            assert answer.startswith("HTTP/1.1 101 ")
            assert "sec-websocket-protocol: xmpp" in answer.lower()
            raw.abort()

    asyncio.run(scene())


def test_in_the_clear_only_who_needs_no_encryption_is_let_in(certificate):
    async def scene():
        async with serving(tls_certificate=certificate, tls_required=True) as server:
            with pytest.raises(websockets.InvalidStatus) as caught:
                await Web.connect(server.c2s_port)
            assert caught.value.response.status_code == 403
            assert b"wss://" in caught.value.response.body
            context = ssl.create_default_context(cafile=certificate)
            web = await Web.login(server.c2s_port, "alice", context=context)
            await web.close()

    asyncio.run(scene())


@pytest.mark.parametrize("origin", ["https://evil.example", "null"])
def test_a_page_in_a_browser_is_let_in_as_far_as_everybody_is(origin):
    async def scene():
        async with serving() as server:
            web = await Web.connect(server.c2s_port, origin=origin)
            assert "mechanisms" in await web.open_stream()
            await web.send("<message xmlns='jabber:client'/>")
            said, _ = await web.to_the_end()
            assert "<not-authorized " in said

    asyncio.run(scene())


@pytest.mark.parametrize("first", ["G", "GET", request()[:-2], request(), request() + "\x81\xff"])
def test_who_does_not_go_on_is_sent_away(first):
    async def scene():
        async with serving(limits={"login_s_max": 0.2}) as server:
            raw = await Raw.connect(server.c2s_port)
            raw.send(first.encode("latin-1"))
            end = await raw.to_the_end()
            assert ("connection-timeout" in end) == ("\r\n\r\n" in first)
            assert end.startswith("HTTP/1.1 101 " if "\r\n\r\n" in first else "HTTP/1.1 408 ")

    asyncio.run(scene())
