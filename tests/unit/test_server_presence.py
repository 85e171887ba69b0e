"""Whoever was told that somebody came is told, once, that it left; and nobody else is told anything."""

import pytest

from parts.router import DOMAIN, MANAGER, World


@pytest.fixture
def world():
    made = World()
    yield made
    for session in [*made.router.tables.quick.values()]:
        made.close(session)
    made.said()
    assert made.router.tables.empty
    made.accounts.close()


def gone(source, to):
    return f"<presence to='{to}' from='{source}' type='unavailable'></presence>"


def befriend(world, one, other):
    """A subscription in both directions, as two clients make it."""
    for a, b in ((one, other), (other, one)):
        world.send(a, f"<presence to='{b.bare}' type='subscribe'/>")
        world.send(b, f"<presence to='{a.bare}' type='subscribed'/>")
    world.said()


def test_directed_presence_is_taken_back_when_the_session_ends_once(world):
    worker, manager = world.client("alice"), world.component()
    world.send(worker, f"<presence to='{MANAGER}'><show>chat</show></presence>")
    assert world.said() == {
        MANAGER: [f"<presence from='{worker.address}' to='{MANAGER}'><show>chat</show></presence>"]
    }
    world.send(worker, f"<presence to='{MANAGER}'><show>dnd</show></presence>")
    world.said()
    world.close(worker)
    assert world.said() == {MANAGER: [gone(worker.address, MANAGER)]}
    world.close(worker)
    assert world.said() == {}
    assert manager.directed == {}


def test_who_took_its_directed_presence_back_is_not_announced_as_gone_again(world):
    worker, _ = world.client("alice"), world.component()
    world.send(worker, f"<presence to='{MANAGER}'/>", f"<presence to='{MANAGER}' type='unavailable'/>")
    assert len(world.said()[MANAGER]) == 2
    world.close(worker)
    assert world.said() == {}


def test_unavailable_broadcast_ends_directed_presence_too(world):
    worker, _ = world.client("alice", "r", "<presence/>"), world.component()
    world.send(worker, f"<presence to='{MANAGER}'/>")
    world.said()
    world.send(worker, "<presence type='unavailable'><status>bye</status></presence>")
    assert world.said() == {
        worker.address: [
            f"<presence from='{worker.address}' to='{worker.bare}' type='unavailable'>"
            "<status>bye</status></presence>"
        ],
        MANAGER: [
            f"<presence from='{worker.address}' to='{MANAGER}' type='unavailable'>"
            "<status>bye</status></presence>"
        ],
    }
    world.close(worker)
    assert world.said() == {}


def test_directed_presence_between_clients_ends_with_either(world):
    alice, bob = world.client("alice"), world.client("bob")
    world.send(alice, f"<presence to='{bob.address}'/>")
    assert world.said() == {bob.address: [f"<presence from='{alice.address}' to='{bob.address}'/>"]}
    world.close(bob)
    assert world.said() == {}
    assert alice.directed == {}
    bob = world.client("bob")
    world.send(alice, f"<presence to='{bob.address}'/>")
    world.said()
    world.close(alice)
    assert world.said() == {bob.address: [gone(alice.address, bob.address)]}
    assert bob.watchers == {}


def test_who_sees_a_session_in_several_ways_is_told_once(world):
    alice, bob = world.client("alice", "r", "<presence/>"), world.client("bob", "r", "<presence/>")
    befriend(world, alice, bob)
    world.send(alice, f"<presence to='{bob.address}'/>", f"<presence to='{bob.bare}'/>")
    world.said()
    world.close(alice)
    assert world.said() == {bob.address: [gone(alice.address, bob.bare)]}


def test_a_component_that_leaves_takes_all_its_addresses_along(world):
    alice, bob = world.client("alice", "r", "<presence/>"), world.client("bob")
    manager = world.component()
    for source, to in (
        (MANAGER, alice.address),
        (f"job-1@{MANAGER}", alice.bare),
        (f"job-1@{MANAGER}", alice.address),
        (f"job-2@{MANAGER}", bob.address),
        (f"job-3@{MANAGER}", bob.address),
    ):
        world.send(manager, f"<presence from='{source}' to='{to}'/>")
    world.send(manager, f"<presence from='job-3@{MANAGER}' to='{bob.address}' type='unavailable'/>")
    world.said()
    world.close(manager)
    assert world.said() == {
        alice.address: [gone(MANAGER, alice.address), gone(f"job-1@{MANAGER}", alice.bare)],
        bob.address: [gone(f"job-2@{MANAGER}", bob.address)],
    }


def test_who_showed_itself_to_a_component_and_had_no_answer_learns_that_it_left(world):
    hopeful, known, stranger = world.client("alice"), world.client("bob"), world.client("carol")
    manager = world.component()
    world.send(hopeful, f"<presence to='pool@{MANAGER}'/>", f"<presence to='{stranger.address}'/>")
    world.send(known, f"<presence to='{MANAGER}'/>")
    world.send(manager, f"<presence from='{MANAGER}' to='{known.address}'/>")
    world.said()
    world.close(manager)
    assert world.said() == {
        hopeful.address: [gone(f"pool@{MANAGER}", hopeful.address)],
        known.address: [gone(MANAGER, known.address)],
    }
    world.component()
    world.close(hopeful)
    assert world.said() == {
        MANAGER: [gone(hopeful.address, f"pool@{MANAGER}")],
        stranger.address: [gone(hopeful.address, stranger.address)],
    }


def test_a_component_does_not_collect_addresses_of_workers_that_are_gone(world):
    manager = world.component()
    for number in range(50):
        worker = world.client("alice", f"r{number}")
        world.send(manager, f"<presence from='{MANAGER}' to='{worker.address}'/>")
        world.close(worker)
    assert manager.directed == {}
    assert manager.directed_count == 0
    world.said()


def test_directed_presence_has_a_bound_that_is_answered():
    world = World(directed_max=2)
    alice, manager = world.client("alice"), world.component()
    for number in range(3):
        world.send(alice, f"<presence to='job-{number}@{MANAGER}'/>")
    said = world.said()
    assert len(said[MANAGER]) == 2
    assert "<resource-constraint" in said[alice.address][0]
    world.close(alice)
    assert len(world.said()[MANAGER]) == 2
    world.close(manager)


def test_presence_to_nobody_is_answered_only_where_that_tells_nothing(world):
    alice = world.client("alice")
    world.send(alice, f"<presence to='nobody@{DOMAIN}'/>", f"<presence to='bob@{DOMAIN}/gone'/>")
    assert world.said() == {}
    world.send(alice, f"<presence to='{MANAGER}'/>", "<presence to='a@elsewhere.example'/>")
    first, second = world.said()[alice.address]
    assert "<service-unavailable" in first
    assert "<remote-server-not-found" in second
    world.send(alice, f"<presence to='{MANAGER}' type='unavailable'/>", "<presence type='wrong'/>")
    assert "<bad-request" in "".join(world.said()[alice.address])


@pytest.mark.parametrize("priority", ["128", "-129", "1.5", "high", "99999999999999999999"])
def test_a_priority_that_is_none_is_refused(world, priority):
    alice = world.client("alice")
    world.send(alice, f"<presence><priority>{priority}</priority></presence>")
    assert not alice.available
    assert "<bad-request" in world.said()[alice.address][0]


def test_broadcast_presence_reaches_own_sessions_and_subscribers_only(world):
    alice, bob = world.client("alice", "1", "<presence/>"), world.client("bob", "r", "<presence/>")
    carol = world.client("carol", "r", "<presence/>")
    befriend(world, alice, bob)
    two = world.client("alice", "2")
    world.send(two, "<presence><show>away</show></presence>")
    shown = f"<presence from='{two.address}' to='{{}}'><show>away</show></presence>"
    assert world.said() == {
        two.address: [
            shown.format(two.bare),
            f"<presence from='{alice.address}' to='{two.bare}'/>",
            f"<presence from='{bob.address}' to='{two.address}'/>",
        ],
        alice.address: [shown.format(two.bare)],
        bob.address: [shown.format(bob.bare)],
    }
    world.close(two)
    assert world.said() == {
        alice.address: [gone(two.address, two.bare)],
        bob.address: [gone(two.address, bob.bare)],
    }
    assert carol.available


def test_subscribing_asks_is_granted_shown_and_pushed(world):
    alice, bob = world.client("alice", "r", "<presence/>"), world.client("bob", "r", "<presence/>")
    for each in (alice, bob):
        world.send(each, "<iq type='get' id='1'><query xmlns='jabber:iq:roster'/></iq>")
    world.said()
    world.send(alice, f"<presence to='{bob.address}' type='subscribe'/>")
    said = world.said()
    assert said[bob.address] == [f"<presence from='{alice.bare}' to='{bob.bare}' type='subscribe'/>"]
    assert f"<item jid='{bob.bare}' subscription='none' ask='subscribe'/>" in said[alice.address][0]
    assert len(said[alice.address]) == 1
    world.send(bob, f"<presence to='{alice.bare}' type='subscribed'/>")
    said = world.said()
    assert f"<item jid='{alice.bare}' subscription='from'/>" in said[bob.address][0]
    assert f"<item jid='{bob.bare}' subscription='to'/>" in said[alice.address][0]
    assert said[alice.address][1:] == [
        f"<presence from='{bob.bare}' to='{alice.bare}' type='subscribed'/>",
        f"<presence from='{bob.address}' to='{alice.bare}'/>",
    ]
    world.send(alice, f"<presence to='{bob.bare}' type='unsubscribe'/>")
    said = world.said()
    assert f"<item jid='{bob.bare}' subscription='none'/>" in said[alice.address][0]
    assert said[alice.address][1:] == [gone(bob.address, alice.bare)]
    assert said[bob.address][1:] == [f"<presence from='{alice.bare}' to='{bob.bare}' type='unsubscribe'/>"]


def test_a_request_waits_until_the_contact_comes(world):
    alice = world.client("alice", "r", "<presence/>")
    world.send(alice, f"<presence to='bob@{DOMAIN}' type='subscribe'/>")
    world.said()
    bob = world.client("bob")
    world.send(bob, "<presence/>")
    assert world.said()[bob.address][-1] == (
        f"<presence to='{bob.bare}' from='{alice.bare}' type='subscribe'></presence>"
    )
    world.send(bob, "<iq type='get' id='1'><query xmlns='jabber:iq:roster'/></iq>")
    assert "<item" not in world.said()[bob.address][0]
    world.send(bob, f"<presence to='{alice.bare}' type='unsubscribed'/>")
    assert (
        f"<presence from='{bob.bare}' to='{alice.bare}' type='unsubscribed'/>" in world.said()[alice.address]
    )
    world.close(bob)
    bob = world.client("bob")
    world.send(bob, "<presence/>")
    assert list(world.said()) == [bob.address]


def test_what_was_not_asked_for_is_not_granted(world):
    alice, bob = world.client("alice", "r", "<presence/>"), world.client("bob", "r", "<presence/>")
    world.send(alice, f"<presence to='{bob.bare}' type='subscribed'/>")
    world.send(alice, f"<presence to='{bob.bare}' type='unsubscribed'/>")
    world.send(alice, f"<presence to='nobody@{DOMAIN}' type='subscribe'/>")
    assert world.said() == {}
    world.send(alice, f"<presence to='{alice.bare}' type='subscribe'/>")
    assert "<bad-request" in world.said()[alice.address][0]


def test_a_component_may_be_a_contact(world):
    alice, manager = world.client("alice", "r", "<presence/>"), world.component()
    contact = f"job-7@{MANAGER}"
    world.send(alice, f"<presence to='{contact}' type='subscribe'/>")
    assert world.said() == {MANAGER: [f"<presence from='{alice.bare}' to='{contact}' type='subscribe'/>"]}
    world.send(manager, f"<presence from='{contact}' to='{alice.bare}' type='subscribed'/>")
    world.send(manager, f"<presence from='{contact}' to='{alice.bare}'><show>dnd</show></presence>")
    assert [text.split(" to=")[0] for text in world.said()[alice.address]] == [
        f"<presence from='{contact}'",
        f"<presence from='{contact}'",
    ]
    world.close(alice)
    alice = world.client("alice")
    world.send(alice, "<presence/>")
    assert (
        f"<presence to='{contact}' from='{alice.address}' type='probe'></presence>" in world.said()[MANAGER]
    )
    world.close(manager)
    assert world.said() == {alice.address: [gone(contact, alice.bare)]}


def test_a_component_that_was_away_is_asked_again(world):
    alice = world.client("alice", "r", "<presence/>")
    world.send(alice, f"<presence to='{MANAGER}' type='subscribe'/>")
    assert "<service-unavailable" in world.said()[alice.address][0]
    world.close(alice)
    world.component()
    alice = world.client("alice")
    world.send(alice, "<presence/>")
    assert world.said()[MANAGER] == [
        f"<presence to='{MANAGER}' from='{alice.bare}' type='subscribe'></presence>"
    ]


def test_a_probe_shows_presence_to_subscribers_only(world):
    bob, manager = world.client("bob", "r", "<presence/>"), world.component()
    probe = f"<presence from='{MANAGER}' to='{bob.bare}' type='probe'/>"
    world.send(manager, probe)
    assert world.said() == {
        MANAGER: [f"<presence to='{MANAGER}' from='{bob.bare}' type='unsubscribed'></presence>"]
    }
    world.send(manager, f"<presence from='{MANAGER}' to='{bob.bare}' type='subscribe'/>")
    world.send(bob, f"<presence to='{MANAGER}' type='subscribed'/>")
    world.said()
    world.send(manager, probe)
    assert world.said() == {MANAGER: [f"<presence from='{bob.address}' to='{MANAGER}'/>"]}


def test_rosters_last_and_a_removed_contact_is_cut_both_ways(world):
    alice, bob = world.client("alice", "r", "<presence/>"), world.client("bob", "r", "<presence/>")
    befriend(world, alice, bob)
    item = f"<item jid='{bob.bare}' name='B&amp;b'><group>g</group><group>g</group></item>"
    world.send(alice, f"<iq type='set' id='1'><query xmlns='jabber:iq:roster'>{item}</query></iq>")
    world.close(alice)
    world.said()
    alice = world.client("alice", "r", "<presence/>")
    world.send(alice, "<iq type='get' id='2'><query xmlns='jabber:iq:roster'/></iq>")
    assert world.said() == {
        alice.address: [
            f"<iq type='result' id='2' to='{alice.address}'><query xmlns='jabber:iq:roster'>"
            f"<item jid='{bob.bare}' name='B&amp;b' subscription='both'><group>g</group></item></query></iq>"
        ]
    }
    remove = f"<item jid='{bob.bare}' subscription='remove'/>"
    world.send(alice, f"<iq type='set' id='3'><query xmlns='jabber:iq:roster'>{remove}</query></iq>")
    said = world.said()
    kinds = ["unsubscribe", "unsubscribed"]
    assert said[bob.address][:2] == [
        f"<presence to='{bob.bare}' from='{alice.bare}' type='{kind}'></presence>" for kind in kinds
    ]
    assert gone(alice.address, bob.bare) in said[bob.address]
    assert gone(bob.address, alice.bare) in said[alice.address]
    assert any("subscription='remove'" in text for text in said[alice.address])
    world.send(bob, "<presence><show>xa</show></presence>")
    assert list(world.said()) == [bob.address]


@pytest.mark.parametrize(
    ("item", "condition"),
    [
        ("<item jid='@'/>", "jid-malformed"),
        ("<item/>", "jid-malformed"),
        ("<item jid='carol@x' subscription='remove'/>", "item-not-found"),
        (f"<item jid='alice@{DOMAIN}'/>", "not-allowed"),
        ("<item jid='a@b'><group/></item>", "not-acceptable"),
        (f"<item jid='a@b' name='{'x' * 5000}'/>", "not-acceptable"),
        ("<item jid='a@b'/><item jid='a@c'/>", "bad-request"),
        ("<item jid='a@d'/>", "resource-constraint"),
    ],
)
def test_roster_changes_that_cannot_be_are_refused(item, condition):
    world = World(roster_items_max=1)
    alice = world.client("alice")
    fill = "<item jid='full@b'/>"
    world.send(alice, f"<iq type='set' id='0'><query xmlns='jabber:iq:roster'>{fill}</query></iq>")
    world.said()
    world.send(alice, f"<iq type='set' id='1'><query xmlns='jabber:iq:roster'>{item}</query></iq>")
    texts = world.said()[alice.address]
    assert len(texts) == 1
    assert f"<{condition} " in texts[0]
    world.close(alice)


def test_nobodys_roster_is_anybody_elses_business(world):
    alice, _ = world.client("alice"), world.client("bob")
    world.send(alice, "<iq type='get' id='1' to='bob@x.localhost'><query xmlns='jabber:iq:roster'/></iq>")
    assert "<service-unavailable" in world.said()[alice.address][0]
