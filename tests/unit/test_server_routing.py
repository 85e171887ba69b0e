"""Messages and queries reach whom RFC 6121 section 8 says, stamped and otherwise as they came."""

import pytest

from kestrel.xmpp.stream import StreamError
from parts.router import DOMAIN, MANAGER, World

ERRORS = "xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'"
PING = "<ping xmlns='urn:xmpp:ping'/>"


@pytest.fixture
def world():
    made = World()
    yield made
    for session in [*made.router.tables.quick.values()]:
        made.close(session)
    made.said()
    assert made.router.tables.empty
    assert made.router.rosters.remembered == 0
    made.accounts.close()


def error(to, condition, *, name="message", id="", from_=""):
    kinds = {
        "service-unavailable": "cancel",
        "remote-server-not-found": "cancel",
        "bad-request": "modify",
        "jid-malformed": "modify",
        "not-allowed": "cancel",
        "item-not-found": "cancel",
    }
    head = f"<{name} type='error'" + (f" id='{id}'" if id else "") + f" to='{to}'"
    head += f" from='{from_}'>" if from_ else ">"
    return f"{head}<error type='{kinds[condition]}'><{condition} {ERRORS}/></error></{name}>"


def test_a_message_to_a_full_address_is_stamped_and_its_inside_kept_as_it_came(world):
    alice, bob = world.client("alice"), world.client("bob")
    inside = '<body  xml:lang="de">a &lt; b &#65;</body><x xmlns="urn:x" a="1"><y/></x>'
    world.send(
        alice, f"<message to='{bob.address}' id='7' from='alice@x.localhost' bogus='1'>{inside}</message>"
    )
    assert world.said() == {
        bob.address: [f"<message from='{alice.address}' to='{bob.address}' id='7'>{inside}</message>"]
    }


@pytest.mark.parametrize("kind", ["normal", "chat", "headline", "groupchat", "error", "nonsense"])
def test_a_connected_full_address_gets_every_type_whatever_its_presence(world, kind):
    alice, bob = world.client("alice"), world.client("bob")
    world.send(alice, f"<message to='{bob.address}' type='{kind}'/>")
    assert list(world.said()) == [bob.address]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("normal", ["high1", "high2"]),
        ("chat", ["high1", "high2"]),
        ("headline", ["high1", "high2", "low"]),
        ("groupchat", None),
        ("error", []),
    ],
)
def test_a_bare_address_means_the_highest_priorities_that_are_not_negative(world, kind, expected):
    alice = world.client("alice")
    for resource, priority in (("high1", 5), ("high2", 5), ("low", 0), ("never", -1)):
        world.client("bob", resource, f"<presence><priority>{priority}</priority></presence>")
    world.client("bob", "silent")
    world.send(alice, f"<message to='bob@{DOMAIN}' type='{kind}'><body>x</body></message>")
    said = world.said()
    if expected is None:
        assert said == {alice.address: [error(alice.address, "service-unavailable", from_=f"bob@{DOMAIN}")]}
    else:
        assert sorted(said) == [f"bob@{DOMAIN}/{resource}" for resource in expected]
        for texts in said.values():
            assert texts == [
                f"<message from='{alice.address}' to='bob@{DOMAIN}' type='{kind}'><body>x</body></message>"
            ]


def test_a_chat_message_to_a_full_address_that_is_gone_counts_as_one_to_the_bare_address(world):
    alice = world.client("alice")
    there = world.client("bob", "there", "<presence/>")
    world.send(alice, f"<message to='bob@{DOMAIN}/gone' type='chat'/>")
    assert list(world.said()) == [there.address]


@pytest.mark.parametrize(
    ("kind", "bounces"), [("normal", 1), ("groupchat", 1), ("headline", 0), ("error", 0)]
)
def test_other_messages_to_a_full_address_that_is_gone_do_not_reach_anybody_else(world, kind, bounces):
    alice = world.client("alice")
    world.client("bob", "there", "<presence/>")
    world.send(alice, f"<message to='bob@{DOMAIN}/gone' type='{kind}' id='i'/>")
    bounce = error(alice.address, "service-unavailable", id="i", from_=f"bob@{DOMAIN}/gone")
    assert world.said() == ({alice.address: [bounce]} if bounces else {})


@pytest.mark.parametrize("to", [f"bob@{DOMAIN}", f"nobody@{DOMAIN}", DOMAIN])
def test_nothing_is_stored_for_whom_nobody_is_there(world, to):
    alice = world.client("alice")
    world.client("bob", "negative", "<presence><priority>-5</priority></presence>")
    world.send(alice, f"<message to='{to}'/>", f"<message to='{to}' type='error'/>")
    assert world.said() == {alice.address: [error(alice.address, "service-unavailable", from_=to)]}


def test_a_message_without_recipient_is_for_the_own_account(world):
    alice = world.client("alice", "r", "<presence/>")
    world.send(alice, "<message type='chat'/>")
    assert world.said() == {
        alice.address: [f"<message from='{alice.address}' to='alice@{DOMAIN}' type='chat'/>"]
    }


def test_addresses_are_compared_in_their_prepared_form(world):
    alice, bob = world.client("alice"), world.client("bob")
    world.send(alice, "<message to='BOB@X.LocalHost/r'/>")
    assert world.said() == {bob.address: [f"<message from='{alice.address}' to='{bob.address}'/>"]}
    world.send(alice, "<message to='bob@x.localhost/R'/>")
    assert list(world.said()) == [alice.address]


def test_a_malformed_recipient_is_answered_and_the_stream_goes_on(world):
    alice = world.client("alice")
    world.send(alice, "<message to='a@b@c' id='1'/>", "<message type='error' to='@'/>")
    assert world.said() == {alice.address: [error(alice.address, "jid-malformed", id="1", from_=DOMAIN)]}


def test_other_domains_and_absent_components_are_told_apart(world):
    alice = world.client("alice")
    world.send(alice, "<message to='a@elsewhere.example'/>", f"<message to='{MANAGER}'/>")
    assert world.said() == {
        alice.address: [
            error(alice.address, "remote-server-not-found", from_="a@elsewhere.example"),
            error(alice.address, "service-unavailable", from_=MANAGER),
        ]
    }


@pytest.mark.parametrize("to", [MANAGER, f"pool@{MANAGER}", f"job-17@{MANAGER}/x", f"{MANAGER}/y"])
def test_every_address_of_a_components_domain_reaches_the_component(world, to):
    alice, manager = world.client("alice"), world.component()
    for _ in range(2):
        world.send(alice, f"<message to='{to}'><body>x</body></message>")
        assert world.said() == {
            MANAGER: [f"<message from='{alice.address}' to='{to}'><body>x</body></message>"]
        }
    assert alice.toward is manager


def test_a_components_addresses_are_forgotten_with_it_and_at_the_bound():
    world = World(route_cache_max=3)
    alice, manager = world.client("alice"), world.component()
    for number in range(20):
        world.send(alice, f"<message to='job-{number}@{MANAGER}'/>")
        assert len(manager.routes) <= 3
    assert len(world.said()[MANAGER]) == 20
    world.close(manager)
    world.send(alice, f"<message to='job-19@{MANAGER}'/>")
    assert list(world.said()) == [alice.address]
    world.close(alice)
    assert world.router.tables.empty


def test_content_namespaces_are_translated_between_clients_and_components(world):
    alice, manager = world.client("alice"), world.component()
    world.send(alice, f"<message to='{MANAGER}'><body xmlns='jabber:client'>x</body></message>")
    assert "jabber:client" not in world.said()[MANAGER][0]
    world.send(
        manager,
        f"<message from='{MANAGER}' to='{alice.address}'><b xmlns='jabber:component:accept'/></message>",
    )
    assert "component" not in world.said()[alice.address][0]


def test_a_foreign_from_ends_the_stream_and_reaches_nobody(world):
    alice, bob = world.client("alice"), world.client("bob")
    for claimed in ("bob@x.localhost/r", "alice@x.localhost/other", MANAGER, "@"):
        with pytest.raises(StreamError) as caught:
            world.send(alice, f"<message from='{claimed}' to='{bob.address}'/>")
        assert caught.value.condition == "invalid-from"
    assert world.said() == {}
    world.send(alice, f"<message from='ALICE@x.localhost/r' to='{bob.address}'/>")
    assert world.said() == {bob.address: [f"<message from='{alice.address}' to='{bob.address}'/>"]}


def test_a_component_speaks_for_its_domain_only(world):
    alice, manager = world.client("alice"), world.component()
    world.send(manager, f"<message from='job-1@{MANAGER}/x' to='{alice.address}'/>")
    world.send(manager, f"<message to='{alice.address}'/>")
    assert world.said() == {
        alice.address: [
            f"<message from='job-1@{MANAGER}/x' to='{alice.address}'/>",
            f"<message from='{MANAGER}' to='{alice.address}'/>",
        ]
    }
    for claimed in ("alice@x.localhost", f"x.{MANAGER}", DOMAIN, "@"):
        with pytest.raises(StreamError) as caught:
            world.send(manager, f"<message from='{claimed}' to='{alice.address}'/>")
        assert caught.value.condition == "invalid-from"
    world.send(manager, "<message/>", "<message to='a@b@c'/>")
    assert [text.count("jid-malformed") for text in world.said()[MANAGER]] == [1, 1]


def test_what_is_no_stanza_ends_the_stream(world):
    alice = world.client("alice")
    with pytest.raises(StreamError) as caught:
        world.send(alice, "<letter/>")
    assert caught.value.condition == "unsupported-stanza-type"


def test_queries_reach_full_addresses_and_are_answered_by_the_server_otherwise(world):
    alice, bob = world.client("alice"), world.client("bob", "r", "<presence/>")
    world.send(alice, f"<iq type='get' id='1' to='{bob.address}'>{PING}</iq>")
    assert world.said() == {
        bob.address: [f"<iq from='{alice.address}' to='{bob.address}' type='get' id='1'>{PING}</iq>"]
    }
    for to in (f"bob@{DOMAIN}", f"bob@{DOMAIN}/gone", f"nobody@{DOMAIN}", f"nobody@{DOMAIN}/r"):
        world.send(alice, f"<iq type='set' id='2' to='{to}'>{PING}</iq>")
        expected = error(alice.address, "service-unavailable", name="iq", id="2", from_=to)
        assert world.said() == {alice.address: [expected]}
        world.send(alice, f"<iq type='result' id='2' to='{to}'/>", f"<iq type='error' id='2' to='{to}'/>")
        assert world.said() == {}


@pytest.mark.parametrize(
    "stanza",
    [
        f"<iq type='get'>{PING}</iq>",
        f"<iq type='fetch' id='1'>{PING}</iq>",
        f"<iq id='1'>{PING}</iq>",
        "<iq type='get' id='1'/>",
        f"<iq type='set' id='1'>{PING}{PING}</iq>",
        f"<iq type='get' id='1' to='{MANAGER}'/>",
    ],
)
def test_queries_that_are_none_are_refused(world, stanza):
    alice = world.client("alice")
    world.component()
    world.send(alice, stanza)
    said = world.said()
    assert list(said) == [alice.address]
    assert len(said[alice.address]) == 1
    assert "<bad-request" in said[alice.address][0]


def test_the_server_answers_ping_version_and_discovery(world):
    alice, manager = world.client("alice"), world.component()
    ask = "<iq type='get' id='1' to='{}'>{}</iq>"
    info = "<query xmlns='http://jabber.org/protocol/disco#info'/>"
    items = "<query xmlns='http://jabber.org/protocol/disco#items'/>"
    for sender in (alice, manager):
        for payload, part in (
            (PING, f"<iq type='result' id='1' to='{sender.address}' from='{DOMAIN}'></iq>"),
            ("<query xmlns='jabber:iq:version'/>", "<name>Kestrel</name>"),
            (info, "<identity category='server' type='im'"),
            (items, f"<item jid='{MANAGER}'/>"),
        ):
            world.send(sender, ask.format(DOMAIN, payload))
            said = world.said()
            assert list(said) == [sender.address]
            assert part in said[sender.address][0]
    world.send(alice, ask.format(DOMAIN, info.replace("/>", " node='x'/>")))
    assert "<item-not-found" in world.said()[alice.address][0]
    world.send(alice, ask.format(DOMAIN, "<query xmlns='urn:unknown'/>"))
    assert "<service-unavailable" in world.said()[alice.address][0]


def test_an_account_may_be_discovered_by_its_owner_only(world):
    alice, bob = world.client("alice", "r", "<presence/>"), world.client("bob")
    ask = "<iq type='get' id='1' to='alice@x.localhost'><query xmlns='http://jabber.org/protocol/disco#{}'/></iq>"
    world.send(alice, ask.format("items"))
    assert f"<item jid='{alice.address}'/>" in world.said()[alice.address][0]
    world.send(alice, ask.format("info"))
    assert "category='account' type='registered'" in world.said()[alice.address][0]
    for what in ("info", "items"):
        world.send(bob, ask.format(what))
        assert "<service-unavailable" in world.said()[bob.address][0]


def test_the_legacy_session_is_granted(world):
    alice = world.client("alice")
    world.send(alice, "<iq type='set' id='1'><session xmlns='urn:ietf:params:xml:ns:xmpp-session'/></iq>")
    assert world.said() == {alice.address: [f"<iq type='result' id='1' to='{alice.address}'></iq>"]}


def test_a_password_is_changed_for_oneself_only(world):
    alice = world.client("alice")
    change = "<iq type='set' id='1'><query xmlns='jabber:iq:register'>{}</query></iq>"
    both = "<username>{}</username><password>new</password>"
    world.send(alice, change.format(both.format("bob")))
    assert "<not-allowed" in world.said()[alice.address][0]
    world.send(alice, change.format("<remove/>"))
    assert "<not-allowed" in world.said()[alice.address][0]
    world.send(alice, change.format("<username>alice</username>"))
    assert "<bad-request" in world.said()[alice.address][0]
    assert world.passwords == []
    world.send(alice, change.format(both.format("Alice")))
    assert world.passwords == [("alice", "new")]
    assert world.said() == {}


def test_the_older_session_of_an_address_is_closed_and_its_ending_told_first(world):
    old, manager = world.client("alice"), world.component()
    world.send(old, f"<presence to='{MANAGER}'/>")
    world.said()
    new = world.client("alice")
    assert old.link.failed == ["conflict"]
    assert world.said() == {
        MANAGER: [f"<presence to='{MANAGER}' from='{old.address}' type='unavailable'></presence>"]
    }
    world.send(manager, f"<message to='{new.address}'/>")
    assert new.outbox
    assert not old.outbox
    world.close(old)
    assert list(world.said()) == [new.address]


def test_a_full_disk_costs_the_sender_an_answer_and_nobody_the_stream(world):
    alice = world.client("alice")
    world.accounts.connection.execute("PRAGMA query_only = ON")
    item = "<item jid='carol@x.localhost'/>"
    from kestrel.errors import EnvironmentProblem

    with pytest.raises(EnvironmentProblem, match="cannot be written"):
        world.send(alice, f"<iq type='set' id='1'><query xmlns='jabber:iq:roster'>{item}</query></iq>")
    assert "<resource-constraint" in world.said()[alice.address][0]
