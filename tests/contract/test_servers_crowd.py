"""Five hundred workers join a real manager on each server, and work; those that vanish are missed at once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from kestrel.client import Client
from kestrel.client.connect import connected
from kestrel.protocol import messages as m
from parts.servers import LiveServer, server_fixture
from realpool.crowd import Crowd, CrowdSettings
from realpool.on_server import WORKERS, ServerPool
from realpool.pool import PoolPlan

WORKERS_COUNT = 500
LOST_COUNT = 100
PATIENCE_S = 120.0
server = server_fixture()


@pytest.fixture
def pool(server: LiveServer, tmp_path: Path):
    with ServerPool(tmp_path, PoolPlan(store="sqlite", managers=1, workers=0), server) as running:
        yield running


def test_five_hundred_workers_of_one_account_join_work_and_are_missed(pool: ServerPool):
    async def seen(client: Client) -> int:
        return (await client.request(m.Pool(), m.PoolStatus)).count

    async def scene() -> None:
        access = pool.live.access(WORKERS)
        client = Client(pool.manager_jid)
        async with (
            asyncio.timeout(PATIENCE_S),
            connected(client, pool.access),
            Crowd(access, CrowdSettings(WORKERS_COUNT)) as crowd,
        ):
            await crowd.log_in()
            await crowd.join()
            assert await seen(client) == WORKERS_COUNT
            submitted = await client.submit(m.Job(command="true", queue=WORKERS_COUNT))
            info = await client.wait(submitted.job)
            assert info.state == "COMPLETED", info
            assert [member.done for member in crowd.members] == [1] * WORKERS_COUNT
            for member in crowd.members[:LOST_COUNT]:
                member.stream._wire._transport.abort()
                await member.stream.close()
            while await seen(client) != WORKERS_COUNT - LOST_COUNT:
                pass  # each question is a round trip
            submitted = await client.submit(m.Job(command="true", queue=WORKERS_COUNT))
            assert (await client.wait(submitted.job)).state == "COMPLETED"

    asyncio.run(scene())
