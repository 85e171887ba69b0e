"""A manager's service that cannot start leaves nothing behind; hosts prepare the names they are given."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path

import pytest

from kestrel.config import Invitation
from kestrel.errors import EnvironmentProblem, KestrelError, StoreError, UsageError
from kestrel.local.host import HostSettings, PoolHost
from kestrel.manager.service import ManagerService
from kestrel.manager.settings import ManagerSettings
from kestrel.store.sqlite import SqliteStore
from kestrel.xmpp.link import XmppLink, XmppStream


class Silent:
    """A stream that never gets through, or one that ends with a problem."""

    last_problem = "nobody answers"

    def __init__(self, problem: Exception | None = None) -> None:
        self.problem = problem

    async def run(self) -> None:
        if self.problem is not None:
            raise self.problem
        await asyncio.Event().wait()

    async def wait_connected(self) -> None:
        await asyncio.Event().wait()

    async def close(self) -> None: ...

    def send(self, stanza: bytes) -> None: ...


def refused(_link: XmppLink) -> XmppStream:
    raise UsageError("this is no address")


@pytest.mark.parametrize(
    "make", [refused, lambda _link: Silent(EnvironmentProblem("refused for good"))], ids=["address", "login"]
)
def test_a_service_that_cannot_start_gives_its_store_back(tmp_path: Path, make: object):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        store = SqliteStore(tmp_path / "store.db", loop.call_soon_threadsafe)
        service = ManagerService(make, store, ManagerSettings())  # type: ignore[arg-type]
        with pytest.raises(KestrelError):
            await service.start()
        again = SqliteStore(tmp_path / "store.db", loop.call_soon_threadsafe)
        assert again.open(lambda _record: None).epoch == 2
        again.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_a_failure_that_comes_while_stopping_is_not_called_unretrieved(tmp_path: Path):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        loud: list[object] = []
        loop.set_exception_handler(lambda _loop, context: loud.append(context))
        store = SqliteStore(tmp_path / "store.db", loop.call_soon_threadsafe)
        service = ManagerService(lambda _link: Silent(EnvironmentProblem("no")), store, ManagerSettings())
        starting = asyncio.create_task(service.start())
        await asyncio.sleep(0)
        service._on_failed(StoreError("damaged"))
        with pytest.raises(KestrelError):
            await starting
        del service, starting
        gc.collect()
        assert loud == []

    asyncio.run(main())


def test_a_host_listens_on_the_named_address_with_tls_and_invites_there(tmp_path: Path):
    async def main() -> None:
        settings = HostSettings(
            tmp_path, domain="Kestrel.LocalHost", host="127.0.0.2", public_host="pool.example.org"
        )
        host = PoolHost(settings)
        await host.start()
        try:
            invitation = Invitation.parse(str(host.invite("worker", uses=1, expires_s=60)))
            assert (invitation.host, invitation.domain) == ("pool.example.org", "kestrel.localhost")
            assert invitation.manager == "manager.kestrel.localhost"
            assert len(invitation.fingerprint) == 64
            access = host.account("admin", "admin")
            assert (access.jid, access.host) == ("admin@kestrel.localhost", "127.0.0.2")
            assert (access.public_host, Path(access.accounts)) == (
                "pool.example.org",
                tmp_path / "accounts.db",
            )
        finally:
            await host.stop()

    asyncio.run(main())


@pytest.mark.parametrize("domain", ["", "a b", "a/b", "a@b", "-a", "a..b"])
def test_what_is_no_domain_is_refused(tmp_path: Path, domain: str):
    with pytest.raises(UsageError, match="no domain"):
        PoolHost(HostSettings(tmp_path, domain=domain))
