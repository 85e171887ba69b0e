"""Roles: components are told them before anything else of an account, and nobody else is told."""

from dataclasses import replace

from kestrel.server.accounts import Account
from parts.router import DOMAIN, MANAGER, World


def told(name, role, to=MANAGER):
    head = f"<message from='{DOMAIN}' to='{to}' type='headline'>"
    return to, f"{head}<role xmlns='urn:kestrel:role:0' jid='{name}@{DOMAIN}'>{role}</role></message>"


def test_a_component_is_told_the_role_with_each_session_and_clients_are_not():
    world = World()
    world.component()
    bob = world.client("bob")
    assert world.said() == {}
    assert world.told == [told("bob", "user")]
    world.client("bob", "second")
    world.said()
    assert world.told == [told("bob", "user")] * 2
    world.close(bob)
    world.said()
    assert len(world.told) == 2


def test_the_role_comes_before_the_first_stanza_of_the_session():
    world = World()
    manager = world.component()
    alice = world.client("alice")
    world.send(alice, f"<presence to='{MANAGER}'/>")
    first, second = manager.outbox
    assert b"<role" in first
    assert second.startswith(b"<presence")


def test_a_component_that_comes_later_is_told_of_each_account_once():
    world = World()
    world.client("alice", "1")
    world.client("alice", "2")
    world.client("bob")
    gone = world.client("carol")
    world.close(gone)
    world.component("other.x.localhost")
    world.said()
    assert world.told == [
        told("alice", "user", "other.x.localhost"),
        told("bob", "user", "other.x.localhost"),
    ]


def test_a_change_is_told_once_and_an_account_that_is_gone_loses_its_sessions():
    world = World()
    world.component()
    alice, other, bob = world.client("alice", "1"), world.client("alice", "2"), world.client("bob")
    world.said()
    world.told.clear()
    world.accounts.set_role("bob", "admin")
    accounts = {each.local: each for each in world.accounts.everyone()}
    world.router.accounts_changed(accounts)
    world.router.accounts_changed(accounts)
    world.said()
    assert world.told == [told("bob", "admin")]
    assert not bob.link.failed
    world.told.clear()
    world.accounts.remove("alice")
    world.router.accounts_changed({each.local: each for each in world.accounts.everyone()})
    world.said()
    assert world.told == [told("alice", "none")]
    assert alice.link.failed == other.link.failed == ["not-authorized"]
    assert set(world.router.tables.accounts) == {"bob"}


def test_an_account_that_was_made_anew_is_another_one():
    world = World()
    alice = world.client("alice")
    old = world.accounts.account("alice")
    world.router.accounts_changed({"alice": replace(old, created=old.created + 1)})
    assert alice.link.failed == ["not-authorized"]
    assert world.router.roles.empty


def test_what_is_told_of_a_strange_name_is_well_formed():
    world = World()
    world.component()
    world.router.open_client(world.client("bob").link, Account("o'neil&", "user", 0.0), "r")
    world.said()
    assert "jid='o&apos;neil&amp;@x.localhost'" in world.told[-1][1]
