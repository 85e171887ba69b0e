"""Managers that share a store: one acts, the others stand by and take over, over a real XMPP server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from kestrel.errors import EnvironmentProblem, StoreError
from kestrel.local.hosted import HostedServer, HostedServerSettings
from kestrel.manager.leadership import LeaseSettings
from kestrel.manager.service import ManagerService
from kestrel.manager.settings import ManagerSettings
from kestrel.ports import FENCED, IN_USE
from kestrel.store.sqlite import SqliteStore
from kestrel.xmpp.component import ComponentSettings, XmppComponent
from kestrel.xmpp.link import XmppLink, XmppStream
from kestrel.xmpp.session import SessionSettings
from parts.shared import Database, SharedStore

LEASE = LeaseSettings.of(1.0)
PATIENCE_S = 20.0


class Cluster:
    """A server, a database, and managers as asked for."""

    def __init__(self, server: HostedServer) -> None:
        self.server = server
        self.database = Database(asyncio.get_running_loop())
        self.services: list[ManagerService] = []
        self.stores: list[SharedStore] = []
        self.streams: list[XmppStream] = []

    def service(self) -> ManagerService:
        store = SharedStore(self.database)
        service = ManagerService(self.stream, store, ManagerSettings(), LEASE)
        service.holder = f"m{len(self.services) + 1}"
        self.services.append(service)
        self.stores.append(store)
        return service

    def stream(self, link: XmppLink) -> XmppStream:
        settings = ComponentSettings(
            domain=self.server.manager_jid,
            secret=self.server.secret,
            port=self.server.server.component_port,
            session=SessionSettings(retry_s_min=0.05, retry_s_max=0.1),
        )
        stream = XmppComponent(settings, link)
        self.streams.append(stream)
        return stream


def run(tmp_path: Path, story: Callable[[Cluster], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        server = HostedServer(HostedServerSettings(tmp_path, lasting=False))
        await server.start()
        cluster = Cluster(server)
        try:
            async with asyncio.timeout(PATIENCE_S):
                await story(cluster)
        finally:
            for service in cluster.services:
                await service.stop()
            await server.stop()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


async def taken_over(service: ManagerService) -> int:
    await service.stand_by()
    return (await service.start()).epoch


def test_a_second_manager_stands_by_and_takes_over_when_the_first_leaves_in_order(tmp_path: Path):
    async def story(cluster: Cluster) -> None:
        first, second = cluster.service(), cluster.service()
        assert (await first.start()).epoch == 1
        told: asyncio.Queue[str] = asyncio.Queue()
        waiting = asyncio.create_task(second.stand_by(told.put_nowait))
        assert await told.get() == "m1"
        await first.stop()
        assert cluster.stores[0].closed
        await waiting
        manager = await second.start()
        assert (manager.epoch, manager.address) == (2, cluster.server.manager_jid)
        assert told.empty()

    run(tmp_path, story)


def test_a_standby_gets_in_though_the_server_sees_its_dead_predecessor_for_a_while(tmp_path: Path):
    async def story(cluster: Cluster) -> None:
        first, second = cluster.service(), cluster.service()
        await first.start()
        waiting = asyncio.create_task(taken_over(second))
        # Killed where the database sees it, but its connection to the server stays.
        assert first._leadership is not None
        first._leadership.close()
        cluster.stores[0].die()
        assert [await cluster.database.taken.get() for _ in range(2)] == [1, 2]
        assert not waiting.done()
        await first.stop()
        assert await waiting == 2

    run(tmp_path, story)


def test_a_manager_that_is_replaced_ends_with_that_reason_and_the_other_acts(tmp_path: Path):
    async def story(cluster: Cluster) -> None:
        first, second = cluster.service(), cluster.service()
        await first.start()
        cluster.stores[0].renew = lambda epoch, done: None  # type: ignore[method-assign]
        await second.stand_by()
        assert first._leadership is not None
        assert first._leadership.lapsed()
        assert first.manager is not None
        assert first.manager.is_lapsed
        del cluster.stores[0].renew
        first._leadership._renew()
        with pytest.raises(StoreError) as ended:
            await first.wait()
        assert ended.value.code == FENCED
        await first.stop()
        assert cluster.database.row.holder == "m2", "who was replaced gives nothing back"
        assert (await second.start()).epoch == 2

    run(tmp_path, story)


def test_a_manager_that_does_not_stand_by_is_refused_while_another_one_acts(tmp_path: Path):
    async def story(cluster: Cluster) -> None:
        first, second = cluster.service(), cluster.service()
        await first.start()
        with pytest.raises(StoreError, match="in use by the manager m1") as refused:
            await second.start()
        assert refused.value.code == IN_USE
        assert cluster.database.row.epoch == 1

    run(tmp_path, story)


def test_a_manager_that_does_not_stand_by_follows_a_dead_one(tmp_path: Path):
    async def story(cluster: Cluster) -> None:
        first, second = cluster.service(), cluster.service()
        await first.start()
        assert first._leadership is not None
        first._leadership.close()
        cluster.stores[0].die()
        starting = asyncio.create_task(second.start())
        assert [await cluster.database.taken.get() for _ in range(2)] == [1, 2]
        await first.stop()
        assert (await starting).epoch == 2

    run(tmp_path, story)


def test_a_database_that_is_not_ours_ends_the_waiting(tmp_path: Path):
    async def story(cluster: Cluster) -> None:
        service = cluster.service()
        cluster.database.problem = StoreError("the database belongs to pool 'other'")
        with pytest.raises(StoreError, match="belongs to pool"):
            await service.stand_by()

    run(tmp_path, story)


def test_a_database_that_is_away_is_waited_for(tmp_path: Path):
    async def story(cluster: Cluster) -> None:
        service = cluster.service()
        cluster.database.problem = StoreError("no route", retry=True)
        waiting = asyncio.create_task(service.stand_by())
        await cluster.database.failed.wait()
        assert not waiting.done()
        cluster.database.problem = None
        await waiting

    run(tmp_path, story)


def test_stopping_ends_the_waiting_and_leaves_the_lease_alone(tmp_path: Path):
    async def story(cluster: Cluster) -> None:
        first, second = cluster.service(), cluster.service()
        await first.start()
        told = asyncio.Event()
        waiting = asyncio.create_task(second.stand_by(lambda _: told.set()))
        await told.wait()
        await second.stop()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert cluster.stores[1].closed
        assert cluster.database.row.holder == "m1"

    run(tmp_path, story)


def test_a_lease_that_cannot_be_used_is_given_back(tmp_path: Path):
    async def story(cluster: Cluster) -> None:
        def unreachable(_link: XmppLink) -> XmppStream:
            raise EnvironmentProblem("the server is not there")

        service = cluster.service()
        service._make_stream = unreachable
        await service.stand_by()
        assert cluster.database.row.holder == "m1"
        with pytest.raises(EnvironmentProblem, match="not there"):
            await service.start()
        assert cluster.database.row.holder == ""
        fresh = cluster.service()
        await fresh.stand_by()
        await fresh.stop()
        assert (cluster.database.row.epoch, cluster.database.row.holder) == (2, "")

    run(tmp_path, story)


def test_a_file_is_waited_for_too(tmp_path: Path):
    async def story(cluster: Cluster) -> None:
        post = asyncio.get_running_loop().call_soon_threadsafe
        path = tmp_path / "store.db"
        stores = [SqliteStore(path, post), SqliteStore(path, post)]
        first, second = (ManagerService(cluster.stream, s, ManagerSettings(), LEASE) for s in stores)
        cluster.services += [first, second]
        await first.start()
        with pytest.raises(StoreError) as refused:
            await ManagerService(cluster.stream, SqliteStore(path, post), ManagerSettings()).start()
        assert refused.value.code == IN_USE
        told = asyncio.Event()
        waiting: Awaitable[int] = asyncio.create_task(_after(second.stand_by(lambda _: told.set()), second))
        await told.wait()
        await first.stop()
        assert await waiting == 2

    run(tmp_path, story)


async def _after(standing_by: Awaitable[None], service: ManagerService) -> int:
    await standing_by
    return (await service.start()).epoch
