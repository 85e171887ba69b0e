"""Getting in: streams, SASL, STARTTLS, registration, binding, components; and being kept out."""

import asyncio
import hashlib
import re
import ssl

import pytest

from kestrel.errors import AuthenticationError, UsageError
from kestrel.server.certificate import ensure_certificate, fingerprint_of
from kestrel.xmpp.register import register
from kestrel.xmpp.sasl import decode, encode
from parts.server import DOMAIN, MANAGER, PATIENCE_S, SECRET, Raw, header, serving

SASL = "xmlns='urn:ietf:params:xml:ns:xmpp-sasl'"


async def secured(port, path):
    """A stream after STARTTLS, with its features seen."""
    raw = await Raw.open(port)
    raw.send("<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>")
    await raw.until("<proceed[^>]*/>")
    context = ssl.create_default_context(cafile=path)
    await raw.writer.start_tls(context, server_hostname=DOMAIN)
    raw.send(header())
    return raw, await raw.until("</stream:features>")


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "SCRAM-SHA-1"])
def test_a_password_is_proved_without_being_sent(mechanism):
    async def scene():
        async with serving() as server:
            raw = await Raw.open(server.c2s_port)
            await raw.authenticate("alice", "pw-alice", mechanism)
            raw.send("<iq type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>")
            assert f"<jid>alice@{DOMAIN}/" in await raw.until("</iq>")
            assert not server.hub.half_open_count
            await raw.close()

    asyncio.run(scene())


def test_plain_is_neither_offered_nor_taken_in_the_clear(tmp_path):
    async def scene():
        async with serving(tls_certificate=ensure_certificate(tmp_path, DOMAIN)) as server:
            raw = await Raw.connect(server.c2s_port)
            raw.send(header())
            features = await raw.until("</stream:features>")
            assert "<starttls" in features
            assert "<required" not in features
            assert "PLAIN" not in features
            text = encode(b"\0alice\0pw-alice")
            raw.send(f"<auth {SASL} mechanism='PLAIN'>{text}</auth>")
            assert "<invalid-mechanism/>" in await raw.until("</failure>")
            await raw.close()

    asyncio.run(scene())


def test_plain_under_tls_and_a_wrong_password_three_times(tmp_path):
    path = ensure_certificate(tmp_path, DOMAIN)

    async def scene():
        async with serving(tls_certificate=path, tls_required=True) as server:
            clear = await Raw.connect(server.c2s_port)
            clear.send(header())
            features = await clear.until("</stream:features>")
            assert "<required" in features
            assert "mechanism" not in features
            clear.send(f"<auth {SASL} mechanism='SCRAM-SHA-256'>=</auth>")
            assert "<encryption-required/>" in await clear.until("</failure>")
            clear.send("<iq type='get' id='1'><query xmlns='jabber:iq:register'/></iq>")
            assert "<policy-violation" in await clear.until("</iq>")
            await clear.close()
            raw, features = await secured(server.c2s_port, path)
            assert "PLAIN" in features
            assert "starttls" not in features
            for user in ("alice", "nobody"):
                raw.send(
                    f"<auth {SASL} mechanism='PLAIN'>{encode(f'{chr(0)}{user}{chr(0)}no'.encode())}</auth>"
                )
                assert "<not-authorized/>" in await raw.until("</failure>")
            raw.send(f"<auth {SASL} mechanism='PLAIN'>{encode(b'x')}</auth>")
            assert "<policy-violation" in await raw.to_the_end()
            raw, _ = await secured(server.c2s_port, path)
            raw.send(f"<auth {SASL} mechanism='PLAIN'/>")
            await raw.until("</challenge>")
            raw.send(f"<response {SASL}>{encode(bytes(1) + b'alice' + bytes(1) + b'pw-alice')}</response>")
            await raw.until("</success>")
            raw.send(header())
            assert "<bind" in await raw.until("</stream:features>")
            raw.abort()

    asyncio.run(scene())


@pytest.mark.parametrize("user", ["alice", "nobody"])
def test_wrong_names_and_wrong_passwords_look_the_same(user):
    async def scene():
        async with serving() as server:
            raw = await Raw.open(server.c2s_port)
            with pytest.raises(AssertionError, match="<not-authorized/></failure>"):
                await raw.authenticate(user, "wrong")
            raw.abort()

    asyncio.run(scene())


@pytest.mark.parametrize("names", [("alice", "ALICE"), ("nobody", "NOBODY"), ("stra\u00dfe", "STRASSE")])
def test_a_name_in_capitals_does_not_tell_whether_it_exists(names):
    """Accounts are found however their name is written; what is made up must be as steady."""

    async def scene():
        async with serving() as server:
            salts = []
            for name in names:
                raw = await Raw.open(server.c2s_port)
                first = encode(f"n,,n={name},r=0123456789abcdef".encode())
                raw.send(f"<auth {SASL} mechanism='SCRAM-SHA-256'>{first}</auth>")
                text = re.search(r"<challenge[^>]*>([^<]*)<", await raw.until("</challenge>"))[1]
                salts.append(decode(text).decode().partition(",")[2])
                await raw.close()
            assert salts[0] == salts[1]

    asyncio.run(scene())


def test_a_failed_login_is_answered_later_each_time():
    async def scene():
        async with serving(limits={"login_failure_delay_s": 0.2}) as server:
            loop = asyncio.get_running_loop()
            raw = await Raw.open(server.c2s_port)
            waits = []
            for _ in range(2):
                began = loop.time()
                # All at once: what comes meanwhile waits too.
                raw.send(f"<auth {SASL} mechanism='NONE'/>")
                await raw.until("</failure>")
                waits.append(loop.time() - began)
            assert waits[0] >= 0.19
            assert waits[1] >= 0.39
            raw.abort()

    asyncio.run(scene())


def test_data_behind_starttls_is_not_taken_as_if_it_were_encrypted(tmp_path):
    path = ensure_certificate(tmp_path, DOMAIN)

    async def scene():
        async with serving(tls_certificate=path) as server:
            raw = await Raw.open(server.c2s_port)
            raw.send("<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/><abort xmlns='urn:x'/>")
            assert "abort" not in await raw.until("<proceed[^>]*/>")
            context = ssl.create_default_context(cafile=path)
            await raw.writer.start_tls(context, server_hostname=DOMAIN)
            raw.send(header())
            assert "PLAIN" in await raw.until("</stream:features>")
            raw.abort()
            broken = await Raw.open(server.c2s_port)
            broken.send("<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>")
            await broken.until("<proceed[^>]*/>")
            broken.send("this is no TLS handshake at all")
            await broken.to_the_end()
            gone = await Raw.open(server.c2s_port)
            gone.send("<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>")
            await gone.until("<proceed[^>]*/>")
            gone.abort()

    asyncio.run(scene())


def test_an_invitation_makes_an_account_that_can_log_in(tmp_path):
    path = ensure_certificate(tmp_path, DOMAIN)

    async def scene():
        async with serving(tls_certificate=path, tls_required=True) as server:
            token = server.accounts.invite("worker", uses=2)
            where = ("127.0.0.1", server.c2s_port, DOMAIN)
            pin = {"fingerprint": fingerprint_of(path)}
            jid, password = await register(*where, token, username="w1", **pin)
            assert (jid, server.accounts.role("w1")) == (f"w1@{DOMAIN}", "worker")
            raw, _ = await secured(server.c2s_port, path)
            await raw.authenticate("w1", password)
            raw.abort()
            with pytest.raises(UsageError, match="taken"):
                await register(*where, token, username="alice", **pin)
            jid, _ = await register(*where, token, **pin)
            assert jid.startswith("w-")
            with pytest.raises(AuthenticationError):
                await register(*where, token, username="w3", **pin)
            with pytest.raises(AuthenticationError):
                await register(*where, "guess", username="alice", **pin)
            assert server.accounts.role("w3") is None

    asyncio.run(scene())


def test_guessing_tokens_ends_the_stream():
    async def scene():
        async with serving(limits={"registrations_max": 3}) as server:
            raw = await Raw.open(server.c2s_port)
            raw.send("<iq type='get' id='0'><query xmlns='jabber:iq:register'/></iq>")
            assert "urn:kestrel:invitation:0" in await raw.until("</iq>")
            guess = (
                "<iq type='set' id='{}'><query xmlns='jabber:iq:register'><username>x</username>"
                "<password>y</password><token xmlns='urn:kestrel:invitation:0'>{}</token></query></iq>"
            )
            raw.send(guess.format(1, "a"))
            assert "<not-authorized" in await raw.until("</iq>")
            raw.send(
                "<iq type='set' id='2'><query xmlns='jabber:iq:register'><username>x</username></query></iq>"
            )
            assert "<bad-request" in await raw.until("</iq>")
            raw.send(guess.format(3, "b"))
            end = await raw.to_the_end()
            assert "<not-authorized" in end
            assert "<policy-violation" in end

    asyncio.run(scene())


def test_a_changed_password_is_the_one_that_counts():
    async def scene():
        async with serving() as server:
            raw = await Raw.login(server.c2s_port, "alice")
            raw.send(
                "<iq type='set' id='1'><query xmlns='jabber:iq:register'>"
                "<username>alice</username><password>new</password></query></iq>"
            )
            assert "type='result'" in await raw.until("</iq>")
            again = await Raw.login(server.c2s_port, "alice", "other", password="new")
            await again.close()
            old = await Raw.open(server.c2s_port)
            with pytest.raises(AssertionError, match="not-authorized"):
                await old.authenticate("alice", "pw-alice")
            old.abort()
            await raw.close()

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("first", "condition"),
    [
        (header("elsewhere.example"), "host-unknown"),
        (header("@"), "host-unknown"),
        (header().replace(" version='1.0' ", " "), "unsupported-version"),
        (header(ns="jabber:server"), "invalid-namespace"),
        ("<html>", "invalid-namespace|bad-format"),
        ("POST / HTTP/1.1\r\n\r\n", "not-well-formed|bad-format"),
        (header() + "<message to='bob@x.localhost'/>", "not-authorized"),
        (
            header() + "<iq type='set' id='1'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>",
            "not-authorized",
        ),
        (header() + header(), "not-well-formed|bad-format"),
    ],
)
def test_streams_that_begin_wrongly_are_told_so_and_closed(first, condition):
    async def scene():
        async with serving() as server:
            raw = await Raw.connect(server.c2s_port)
            raw.send(first)
            end = await raw.to_the_end()
            assert end.startswith("<?xml version='1.0'?><stream:stream ")
            assert any(f"<{each} " in end for each in condition.split("|")), end
            assert end.endswith("</stream:stream>")

    asyncio.run(scene())


def test_a_component_needs_its_secret_and_its_domain():
    async def scene():
        async with serving() as server:
            first = await Raw.component(server.component_port)
            for domain, secret, condition in (
                (MANAGER, "wrong", "not-authorized"),
                ("unknown.x.localhost", "x", "host-unknown"),
            ):
                with pytest.raises(AssertionError, match=condition):
                    await Raw.component(server.component_port, domain, secret)
            assert "urn:xmpp:ping" not in first.seen
            await first.close()
            again = await Raw.component(server.component_port)
            await again.close()

    asyncio.run(scene())


def test_a_second_connection_of_a_component_is_refused_while_the_first_gives_signs_of_life():
    async def scene():
        async with serving(limits={"component_pong_s_max": PATIENCE_S}) as server:
            first = await Raw.component(server.component_port)
            for _ in range(2):
                second = asyncio.create_task(Raw.component(server.component_port))
                assert "urn:xmpp:ping" in await first.until("</iq>")
                with pytest.raises(AssertionError, match="conflict"):
                    await Raw.component(server.component_port)  # one may wait, no more
                await first.component_sync()
                with pytest.raises(AssertionError, match="conflict"):
                    await second
            await first.component_sync()
            await first.close()

    asyncio.run(scene())


@pytest.mark.parametrize("gone", ["silent", "reset"])
def test_a_second_connection_of_a_component_is_let_in_when_the_first_is_silent_or_goes(gone):
    async def scene():
        patience = 0.05 if gone == "silent" else PATIENCE_S
        async with serving(limits={"component_pong_s_max": patience}) as server:
            first = await Raw.component(server.component_port)
            worker = await Raw.login(server.c2s_port, "alice")
            worker.send(f"<presence to='{MANAGER}'/>")
            await first.until("<presence[^>]*/>")
            first.send(f"<presence from='{MANAGER}' to='{worker.address}'/>")
            await worker.until("<presence[^>]*/>")
            coming = asyncio.create_task(Raw.component(server.component_port))
            if gone == "reset":
                await first.until("urn:xmpp:ping")
                first.writer.transport.abort()
            second = await coming
            await worker.until("unavailable'></presence>")
            second.send(f"<presence from='{MANAGER}' to='{worker.address}'/>")
            assert "unavailable" not in await worker.until("<presence[^>]*/>")
            await worker.close()
            # The worker had shown itself to the component, whoever that is now.
            await second.until("unavailable'></presence>")
            await second.component_sync()
            await second.close()

    asyncio.run(scene())


def test_stanzas_of_a_component_that_had_to_wait_come_after_its_handshake():
    async def scene():
        async with serving(limits={"component_pong_s_max": 0.05}) as server:
            silent = await Raw.component(server.component_port)
            worker = await Raw.login(server.c2s_port, "alice")
            second = await Raw.connect(server.component_port)
            second.send(header(MANAGER, "jabber:component:accept"))
            number = re.search(" id='([^']+)'", await second.until("<stream:stream[^>]*>"))[1]
            proof = hashlib.sha1((number + SECRET).encode()).hexdigest()
            second.send(
                f"<handshake>{proof}</handshake><presence from='{MANAGER}' to='{worker.address}'/>"
                f"<message from='{MANAGER}' to='{worker.address}'><body>early</body></message>"
            )
            await second.until("<handshake/>")
            assert "<presence" in await worker.until("early")
            for raw in (silent, worker, second):
                raw.writer.transport.abort()

    asyncio.run(scene())


def test_a_server_that_stops_lets_nobody_in_who_waits():
    async def scene():
        async with serving(limits={"component_pong_s_max": PATIENCE_S}, check_empty=False) as server:
            first = await Raw.component(server.component_port)
            waiting = asyncio.create_task(Raw.component(server.component_port))
            await first.until("urn:xmpp:ping")
            await server.stop()
            with pytest.raises(AssertionError, match="system-shutdown"):
                await waiting

    asyncio.run(scene())


def test_a_worker_that_comes_back_takes_its_address_from_its_ghost():
    async def scene():
        async with serving() as server:
            manager = await Raw.component(server.component_port)
            ghost = await Raw.login(server.c2s_port, "alice")
            ghost.send(f"<presence to='{MANAGER}'/>")
            await manager.until("<presence[^>]*/>")
            back = await Raw.login(server.c2s_port, "alice")
            assert "<conflict " in await ghost.to_the_end()
            back.send(f"<presence to='{MANAGER}'/>")
            seen = await manager.until("<presence[^>]*/>")
            assert seen.count("<presence") == 2
            assert seen.index("unavailable") < seen.rindex("<presence")
            await back.close()
            await manager.until("unavailable")
            await manager.close()

    asyncio.run(scene())


def test_acknowledgements_are_counted_in_both_directions():
    async def scene():
        async with serving() as server:
            raw = await Raw.login(server.c2s_port, "alice")
            raw.send("<enable xmlns='urn:xmpp:sm:3' resume='true'/>")
            assert "resume" not in await raw.until("<enabled[^>]*>")
            for _ in range(3):
                await raw.sync()
            raw.send("<r xmlns='urn:xmpp:sm:3'/>")
            assert "h='3'" in await raw.until("<a [^>]*>")
            raw.send("<a xmlns='urn:xmpp:sm:3' h='3'/>")
            await raw.sync()
            raw.send("<enable xmlns='urn:xmpp:sm:3'/>")
            await raw.until("<failed.*</failed>")
            raw.send("<a xmlns='urn:xmpp:sm:3' h='99'/>")
            assert "99 stanzas were acknowledged" in await raw.to_the_end()

    asyncio.run(scene())


def test_a_hundred_logins_at_once_succeed():
    async def scene():
        async with serving() as server:
            raws = await asyncio.gather(
                *(Raw.login(server.c2s_port, "alice", f"r{number}") for number in range(100))
            )
            assert len(server.hub.router.tables.accounts["alice"]) == 100
            await asyncio.gather(*(raw.close() for raw in raws))

    asyncio.run(scene())
