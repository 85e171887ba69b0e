"""An independent client logs in, talks, subscribes and leaves: slixmpp against the embedded server."""

import asyncio
import sys
import warnings

import pytest

from kestrel.server.certificate import ensure_certificate
from parts.server import DOMAIN, MANAGER, PATIENCE_S, Raw, serving

if sys.platform != "linux":
    pytest.skip("slixmpp has wheels for Linux only", allow_module_level=True)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import slixmpp
    from slixmpp.exceptions import IqError


class Bot(slixmpp.ClientXMPP):
    """A slixmpp client whose events wait in queues."""

    def __init__(self, name, password, **options):
        address = f"{name}@{DOMAIN}/{options.pop('resource', 'slix')}"
        clear = {"feature_mechanisms": {"unencrypted_scram": True}}
        super().__init__(address, password, plugin_config=clear)
        self.queues = {}
        for plugin in ("xep_0030", "xep_0199", "xep_0198", "xep_0077", "xep_0092"):
            self.register_plugin(plugin)
        self["xep_0077"].create_account = False
        for key, value in options.items():
            setattr(self, key, value)
        self.auto_authorize = None
        self.auto_subscribe = False

    def collect(self, event):
        queue = self.queues[event] = asyncio.Queue()
        self.add_event_handler(event, queue.put_nowait)

    async def next(self, event):
        async with asyncio.timeout(PATIENCE_S):
            return await self.queues[event].get()

    async def start(self, port):
        for event in (
            "session_start",
            "message",
            "presence_available",
            "presence_dnd",
            "presence_unavailable",
            "presence_subscribe",
            "presence_subscribed",
            "roster_update",
            "failed_all_auth",
            "disconnected",
        ):
            self.collect(event)
        await self.connect("127.0.0.1", port)

    async def started(self, port):
        await self.start(port)
        await self.next("session_start")
        return self

    async def leave(self):
        self.disconnect()
        await self.next("disconnected")


def play(scene):
    """Run it; what slixmpp itself leaves behind or deprecates is no concern of ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        asyncio.run(scene())


def plain(name, **options):
    return Bot(
        name, f"pw-{name}", enable_direct_tls=False, enable_starttls=False, enable_plaintext=True, **options
    )


def test_it_logs_in_in_the_clear_with_scram_and_talks():
    async def scene():
        async with serving() as server:
            alice = await plain("alice").started(server.c2s_port)
            bob = await plain("bob").started(server.c2s_port)
            alice.send_message(bob.boundjid.full, "hello <&>", mtype="chat")
            message = await bob.next("message")
            assert (message["body"], message["from"].full) == ("hello <&>", alice.boundjid.full)
            bob.send_presence()
            await bob.next("presence_available")
            alice.send_message(bob.boundjid.bare, "to whoever is there")
            assert (await bob.next("message"))["body"] == "to whoever is there"
            await alice.leave()
            await bob.leave()

    play(scene)


def test_it_logs_in_with_starttls_and_a_pinned_certificate(tmp_path):
    path = ensure_certificate(tmp_path, DOMAIN)

    async def scene():
        async with serving(tls_certificate=path, tls_required=True) as server:
            bot = Bot("alice", "pw-alice", enable_direct_tls=False, ca_certs=path)
            await bot.started(server.c2s_port)
            assert bot.boundjid.full == f"alice@{DOMAIN}/slix"
            assert server.hub.router.tables.quick[bot.boundjid.full].link.encrypted
            await bot.leave()

    play(scene)


def test_a_wrong_password_is_refused():
    async def scene():
        async with serving() as server:
            bot = plain("alice")
            bot.password = "wrong"
            await bot.start(server.c2s_port)
            await bot.next("failed_all_auth")
            bot.abort()
            await bot.next("disconnected")

    play(scene)


def test_it_discovers_pings_and_keeps_a_roster():
    async def scene():
        async with serving() as server:
            manager = await Raw.component(server.component_port)
            bot = await plain("alice").started(server.c2s_port)
            info = await bot["xep_0030"].get_info(jid=DOMAIN)
            assert ("server", "im", None, "Kestrel") in info["disco_info"]["identities"]
            assert "urn:xmpp:ping" in info["disco_info"]["features"]
            items = await bot["xep_0030"].get_items(jid=DOMAIN)
            assert [item[0] for item in items["disco_items"]["items"]] == [MANAGER]
            assert await bot["xep_0199"].ping(DOMAIN) >= 0
            assert (await bot["xep_0092"].get_version(DOMAIN))["software_version"]["name"] == "Kestrel"
            await bot.get_roster()
            await bot.update_roster(f"jobs@{MANAGER}", name="Jobs", groups=["pool"])
            await bot.get_roster()
            assert bot.client_roster[f"jobs@{MANAGER}"]["name"] == "Jobs"
            await bot.del_roster_item(f"jobs@{MANAGER}")
            with pytest.raises(IqError) as caught:
                await bot["xep_0199"].send_ping(f"bob@{DOMAIN}/gone")
            assert caught.value.condition == "service-unavailable"
            await bot.leave()
            await manager.close()

    play(scene)


def test_subscriptions_show_presence_and_hide_it():
    async def scene():
        async with serving() as server:
            alice, bob = [await plain(name).started(server.c2s_port) for name in ("alice", "bob")]
            for bot in (alice, bob):
                await bot.get_roster()
                bot.send_presence()
                await bot.next("presence_available")
            alice.send_presence_subscription(bob.boundjid.bare, ptype="subscribe")
            asked = await bob.next("presence_subscribe")
            assert asked["from"].full == alice.boundjid.bare
            bob.send_presence_subscription(alice.boundjid.bare, ptype="subscribed")
            await alice.next("presence_subscribed")
            assert (await alice.next("presence_available"))["from"].full == bob.boundjid.full
            bob.send_presence(pshow="dnd", pstatus="busy")
            seen = await alice.next("presence_dnd")
            assert (seen["from"].full, seen["show"], seen["status"]) == (bob.boundjid.full, "dnd", "busy")
            bob.abort()
            gone = await alice.next("presence_unavailable")
            assert gone["from"].full == bob.boundjid.full
            await alice.leave()

    play(scene)


def test_directed_presence_ends_when_the_connection_breaks():
    async def scene():
        async with serving() as server:
            manager = await Raw.component(server.component_port)
            worker = await plain("alice", resource="w1").started(server.c2s_port)
            worker.send_presence(pto=MANAGER, pshow="chat")
            assert f"from='alice@{DOMAIN}/w1'" in await manager.until("<presence.*?</presence>")
            worker.abort()
            seen = await manager.until("<presence[^>]*>")
            assert f"from='alice@{DOMAIN}/w1'" in seen
            assert "unavailable" in seen
            await manager.close()

    play(scene)


def test_it_changes_its_password():
    async def scene():
        async with serving() as server:
            bot = await plain("alice").started(server.c2s_port)
            await bot["xep_0077"].change_password("brand new", jid=DOMAIN)
            await bot.leave()
            again = await Raw.login(server.c2s_port, "alice", password="brand new")
            await again.close()

    play(scene)
