"""Roles over real sockets: order, changes by other processes, and nobody else can tell them."""

import asyncio
import sqlite3

import pytest

from kestrel.server.accounts import Accounts
from parts.server import DOMAIN, MANAGER, Raw, serving

ROLE = "<role xmlns='urn:kestrel:role:0' jid='{jid}'>{role}</role>"


def test_a_client_cannot_tell_roles():
    async def scene():
        async with serving() as server:
            manager = await Raw.component(server.component_port)
            mallory = await Raw.login(server.c2s_port, "mallory")
            forged = ROLE.format(jid=f"mallory@{DOMAIN}", role="admin")
            mallory.send(f"<message to='{MANAGER}' type='headline'>{forged}</message>")
            seen = await manager.until("admin</role></message>")
            # It comes with the name of who sent it, behind the true one.
            assert f"jid='mallory@{DOMAIN}'>user</role>" in seen.partition("admin")[0]
            assert f"<message from='mallory@{DOMAIN}/r' " in seen.partition("</message>")[2]
            mallory.send(f"<message to='{MANAGER}' from='{DOMAIN}' type='headline'>{forged}</message>")
            assert "<invalid-from" in await mallory.to_the_end()
            assert "<role" not in await manager.component_sync()
            manager.abort()

    asyncio.run(scene())


def test_what_another_process_changes_is_noticed(tmp_path):
    path = tmp_path / "accounts.db"

    async def scene():
        async with serving(accounts=Accounts(path)) as server:
            manager = await Raw.component(server.component_port)
            alice = await Raw.login(server.c2s_port, "alice")
            bob = await Raw.login(server.c2s_port, "bob")
            alice.send(f"<presence to='{MANAGER}'/>")
            await manager.until("<presence")
            other = Accounts(path)
            other.set_role("bob", "worker")
            await manager.until(f"jid='bob@{DOMAIN}'>worker</role>")
            other.remove("alice")
            seen = await manager.until(f"<presence[^>]* from='alice@{DOMAIN}/r'[^>]* type='unavailable'")
            assert f"jid='alice@{DOMAIN}'>none</role>" in seen
            assert "<not-authorized" in await alice.to_the_end()
            other.close()
            # The others go on.
            bob.send(f"<message to='{MANAGER}'><body>still here</body></message>")
            await manager.until("still here")
            bob.abort()
            manager.abort()

    asyncio.run(scene())


def test_an_account_that_is_removed_while_it_logs_in_is_not_let_in(tmp_path):
    path = tmp_path / "accounts.db"

    async def scene():
        async with serving(accounts=Accounts(path), limits={"tick_s": 3600.0}) as server:
            raw = await Raw.open(server.c2s_port)
            await raw.authenticate("alice", "pw-alice")
            other = Accounts(path)
            other.remove("alice")
            other.close()
            raw.send("<iq type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>")
            assert "<not-authorized" in await raw.to_the_end()

    asyncio.run(scene())


def test_a_file_of_accounts_that_cannot_be_read_ends_nobodys_session_and_refuses_nobody_for_good(
    tmp_path, caplog
):
    path = tmp_path / "accounts.db"

    async def scene():
        accounts = Accounts(path)
        async with serving(accounts=accounts) as server:
            alice = await Raw.login(server.c2s_port, "alice")
            blocker = sqlite3.connect(path)
            blocker.execute("ALTER TABLE accounts RENAME TO hidden")
            while "server.accounts_unreadable" not in {record.message for record in caplog.records}:
                await alice.sync()
            blocker.execute("ALTER TABLE keys RENAME TO lost")
            bob = await Raw.open(server.c2s_port)
            with pytest.raises(AssertionError, match="<temporary-auth-failure/>"):
                await bob.authenticate("bob", "pw-bob")
            blocker.execute("ALTER TABLE lost RENAME TO keys")
            blocker.execute("ALTER TABLE hidden RENAME TO accounts")
            await bob.authenticate("bob", "pw-bob")
            bob.abort()
            blocker.close()
            assert "sync" in await alice.sync()
            alice.abort()

    with caplog.at_level("ERROR", "kestrel.server"):
        asyncio.run(scene())


@pytest.mark.parametrize("role", ["worker", "user", "admin"])
def test_a_component_that_comes_back_is_told_again(role):
    async def scene():
        async with serving() as server:
            server.accounts.set_role("alice", role)
            alice = await Raw.login(server.c2s_port, "alice")
            for _ in range(2):
                manager = await Raw.component(server.component_port)
                assert f">{role}</role>" in await manager.until("</role>")
                await manager.close()
            alice.abort()

    asyncio.run(scene())
