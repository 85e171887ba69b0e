"""Starting and stopping: ports, certificates, clear words when it cannot be, nothing left when it ends."""

import asyncio
import socket

import pytest

from kestrel.errors import EnvironmentProblem, UsageError
from kestrel.server.accounts import Accounts
from kestrel.server.certificate import ensure_certificate
from kestrel.server.service import EmbeddedServer, ServerSettings
from parts.server import DOMAIN, MANAGER, PASSWORDS, SECRET, Raw


@pytest.fixture
def accounts():
    made = Accounts(":memory:")
    for name, password in PASSWORDS.items():
        made.add(name, password, "user")
    yield made
    made.close()


def answers(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_it_can_be_stopped_and_started_again_on_the_same_port(accounts):
    async def scene():
        server = EmbeddedServer(ServerSettings(DOMAIN, components={MANAGER: SECRET}), accounts)
        await server.start()
        port = server.c2s_port
        with pytest.raises(UsageError, match="running already"):
            await server.start()
        alice = await Raw.login(port, "alice")
        manager = await Raw.component(server.component_port)
        hub = server.hub
        await server.stop()
        assert "<system-shutdown " in await alice.to_the_end()
        assert "<system-shutdown " in await manager.to_the_end()
        assert hub.empty
        assert not server.running
        assert not answers(port)
        await server.stop()
        server.settings = ServerSettings(DOMAIN, c2s_port=port)
        await server.start()
        assert server.c2s_port == port
        alice = await Raw.login(port, "alice")
        await alice.close()
        await server.stop()

    asyncio.run(scene())


@pytest.mark.parametrize("taken", ["c2s_port", "component_port"])
def test_a_taken_port_is_named_with_the_cure_and_nothing_stays_open(accounts, taken):
    async def scene():
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            settings = ServerSettings(DOMAIN, components={MANAGER: SECRET}, **{taken: port})
            server = EmbeddedServer(settings, accounts)
            with pytest.raises(EnvironmentProblem, match=f"port {port} .* is taken") as caught:
                await server.start()
            assert "port" in caught.value.hint
            assert caught.value.code == "port_taken"
            assert not server.running
            if taken == "component_port":
                assert not answers(server.c2s_port)

    asyncio.run(scene())


def test_an_address_that_is_not_ours_is_named(accounts, tmp_path):
    async def scene():
        path = ensure_certificate(tmp_path, DOMAIN)
        server = EmbeddedServer(ServerSettings(DOMAIN, host="192.0.2.1", tls_certificate=path), accounts)
        with pytest.raises(EnvironmentProblem, match=r"192\.0\.2\.1"):
            await server.start()

    asyncio.run(scene())


def test_beyond_loopback_a_certificate_is_needed(accounts, tmp_path):
    async def scene():
        with pytest.raises(UsageError, match="certificate"):
            await EmbeddedServer(ServerSettings(DOMAIN, host="0.0.0.0"), accounts).start()
        missing = ServerSettings(DOMAIN, tls_certificate=tmp_path / "missing.pem")
        with pytest.raises(EnvironmentProblem, match=r"missing\.pem"):
            await EmbeddedServer(missing, accounts).start()

    asyncio.run(scene())


@pytest.mark.parametrize("domain", ["", "a b", "x@y", "x/y", "UPPER.example"])
def test_domains_that_are_none_are_refused(domain):
    with pytest.raises(UsageError):
        ServerSettings(domain)


def test_a_component_cannot_have_the_servers_domain():
    with pytest.raises(UsageError, match="own domain"):
        ServerSettings(DOMAIN, components={DOMAIN: "x"})


def test_secrets_are_not_shown():
    assert "hush" not in repr(ServerSettings(DOMAIN, components={MANAGER: "hush"}))


def test_it_listens_on_ipv6_loopback(accounts):
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")

    async def scene():
        server = EmbeddedServer(ServerSettings(DOMAIN, host="::1"), accounts)
        try:
            await server.start()
        except EnvironmentProblem:
            pytest.skip("no IPv6 loopback here")
        reader, writer = await asyncio.open_connection("::1", server.c2s_port)
        writer.write(b"<x/>")
        assert b"<stream:error>" in await reader.read()
        writer.close()
        await server.stop()

    asyncio.run(scene())
