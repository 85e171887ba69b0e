"""Passwords and invitations tried in a loop: slowed, refused, logged; and their owners come in."""

import asyncio
import re
import ssl

import pytest

from kestrel.server.certificate import ensure_certificate
from kestrel.xmpp.client import ClientSettings, XmppClient
from kestrel.xmpp.sasl import SaslClient, encode
from kestrel.xmpp.session import SessionSettings
from parts.server import DOMAIN, PATIENCE_S, Raw, header, serving

SASL = "xmlns='urn:ietf:params:xml:ns:xmpp-sasl'"
REFUSES = {"guard_failures": 3.0, "guard_hold_s_max": 0.0, "login_failures_max": 100}
ELSEWHERE = "127.0.0.2"
GUESSED = "server.logins_guessed"


class Nobody:
    """Hears everything and says nothing."""

    def on_connected(self, address): ...

    def on_disconnected(self, reason): ...

    def on_stanza(self, stanza): ...


async def from_elsewhere(port):
    raw = Raw(*await asyncio.open_connection("127.0.0.1", port, local_addr=(ELSEWHERE, 0)))
    raw.send(header())
    await raw.until("</stream:features>")
    return raw


async def guess(raw, password="wrong", user="alice"):
    """The condition with which one try ends; empty: it was right."""
    exchange = SaslClient(["SCRAM-SHA-256"], user, password, encrypted=True)
    raw.send(f"<auth {SASL} mechanism='SCRAM-SHA-256'>{exchange.first}</auth>")
    while True:
        answer = await raw.until("</challenge>|</success>|</failure>")
        if "<success" in answer:
            return ""
        if "<failure" in answer:
            return re.search(r"<failure[^>]*><([a-z-]+)/>", answer)[1]
        challenge = re.search(">([^<]*)</challenge>", answer)[1]
        raw.send(f"<response {SASL}>{exchange.on_challenge(challenge)}</response>")


def test_a_guesser_is_refused_unseen_and_the_owner_comes_in_from_elsewhere(caplog):
    async def scene():
        async with serving(limits=REFUSES | {"guard_report_s": 0.0}) as server:
            one, other = await Raw.open(server.c2s_port), await Raw.open(server.c2s_port)
            assert [await guess(raw) for raw in (one, other, one)] == ["not-authorized"] * 3
            # One more has its turn; from then on not even the right password would be looked at.
            assert await guess(other) == "not-authorized"
            assert await guess(one, "pw-alice") == "temporary-auth-failure"
            # The same name in other letters is the same account.
            assert await guess(one, "pw-alice", "ALICE") == "temporary-auth-failure"
            assert await guess(one, "pw-bob", "bob") == ""
            bystander = await Raw.login(server.c2s_port, "mallory")
            owner = await from_elsewhere(server.c2s_port)
            assert await guess(owner, "pw-alice") == ""
            async with asyncio.timeout(PATIENCE_S):
                while not (told := [each for each in caplog.records if each.message == GUESSED]):
                    await bystander.sync()
            assert (told[0].origin, told[0].accounts) == ("127.0.0.1", 1)
            for raw in (one, other, owner, bystander):
                raw.abort()

    with caplog.at_level("INFO", "kestrel.server"):
        asyncio.run(scene())
    assert "wrong" not in caplog.text


def test_who_waits_for_a_turn_gets_it():
    async def scene():
        limits = {
            "guard_failures": 2.0,
            "guard_pace_s": 0.05,
            "guard_hold_s_max": PATIENCE_S,
            "login_failures_max": 9,
        }
        async with serving(limits=limits) as server:
            raws = [await Raw.open(server.c2s_port) for _ in range(4)]
            assert await asyncio.gather(*map(guess, raws)) == ["not-authorized"] * 4
            assert await guess(raws[0], "pw-alice") == ""
            for raw in raws:
                raw.abort()

    asyncio.run(scene())


def test_a_client_with_the_right_password_tries_again_until_it_has_its_turn():
    async def scene():
        limits = REFUSES | {"guard_pace_s": 0.5}
        async with serving(limits=limits) as server:
            raw = await Raw.open(server.c2s_port)
            while await guess(raw) != "temporary-auth-failure":
                pass
            settings = ClientSettings(
                f"alice@{DOMAIN}",
                "pw-alice",
                host="127.0.0.1",
                port=server.c2s_port,
                session=SessionSettings(retry_s_max=0.1),
            )
            client = XmppClient(settings, Nobody())
            async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
                running = group.create_task(client.run())
                await client.wait_connected()
                await client.close()
                await running
            raw.abort()

    asyncio.run(scene())


def test_who_hangs_up_before_the_answer_has_tried_all_the_same(tmp_path):
    path = ensure_certificate(tmp_path, DOMAIN)

    async def scene():
        async with serving(limits=REFUSES, tls_certificate=path) as server:
            context = ssl.create_default_context(cafile=path)
            text = encode(b"\0alice\0wrong")
            tried = f"<auth {SASL} mechanism='PLAIN'>{text}</auth>"
            for _ in range(3):
                _, writer = await asyncio.open_connection(
                    "127.0.0.1", server.c2s_port, ssl=context, server_hostname=DOMAIN
                )
                writer.write((header() + tried).encode())
                writer.close()
                await writer.wait_closed()
            bystander = await Raw.login(server.c2s_port, "mallory")
            async with asyncio.timeout(PATIENCE_S):
                while server.hub.guard.hold_s("127.0.0.1", "alice", server.hub.loop.time()) is not None:
                    await bystander.sync()
            bystander.abort()

    asyncio.run(scene())


def registration(name, token):
    return (
        "<iq type='set' id='r'><query xmlns='jabber:iq:register'>"
        f"<username>{name}</username><password>a good one</password>"
        f"<token xmlns='urn:kestrel:invitation:0'>{token}</token></query></iq>"
    )


def test_without_an_invitation_nobody_learns_which_names_exist():
    async def scene():
        async with serving() as server:
            raw = await Raw.open(server.c2s_port)
            answers = []
            for name in ("alice", "nobody-of-this-name"):
                raw.send(registration(name, "guessed"))
                answers.append(await raw.until("</iq>"))
            assert answers[0] == answers[1]
            assert "not-authorized" in answers[0]
            token = server.accounts.invite("user")
            raw.send(registration("alice", token))
            assert "<conflict" in await raw.until("</iq>")
            raw.abort()

    asyncio.run(scene())


def test_invitations_tried_in_a_loop_are_refused_unseen_and_others_get_in():
    async def scene():
        limits = {"guard_origin_failures": 3.0, "guard_hold_s_max": 0.0, "registrations_max": 100}
        async with serving(limits=limits | {"guard_origin_pace_s": 3600.0}) as server:
            raw = await Raw.open(server.c2s_port)
            seen = []
            for number in range(6):
                raw.send(registration("x", f"guess-{number}"))
                seen.append("resource-constraint" in await raw.until("</iq>"))
            assert seen == [False] * 4 + [True] * 2
            other = await from_elsewhere(server.c2s_port)
            other.send(registration("x", server.accounts.invite("user")))
            assert "type='result'" in await other.until("<iq[^>]*>")
            raw.abort()
            other.abort()

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda accounts, token: accounts.revoke(token), "unknown or was revoked"),
        (lambda accounts, token: accounts.redeem(token, "first", {}), "used up"),
        (
            lambda accounts, token: accounts.connection.execute("UPDATE invitations SET expires = 1"),
            "expired",
        ),
    ],
)
def test_an_invitation_that_is_worth_nothing_any_more_says_why(spoil, words):
    async def scene():
        async with serving() as server:
            token = server.accounts.invite("worker")
            spoil(server.accounts, token)
            raw = await Raw.open(server.c2s_port)
            raw.send(registration("late", token))
            answer = await raw.until("</iq>")
            assert words in answer
            assert "not-authorized" in answer
            assert server.accounts.account("late") is None
            raw.abort()

    asyncio.run(scene())
