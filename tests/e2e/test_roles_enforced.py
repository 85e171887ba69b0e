"""Roles from end to end: accounts of the embedded server, over real sockets, at a real manager."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kestrel.client import Client, RequestError
from kestrel.client.connect import connected
from kestrel.local.host import HostSettings, PoolHost
from kestrel.manager.settings import ManagerSettings
from kestrel.protocol import messages as m


@asynccontextmanager
async def pool(scratch: Path) -> AsyncIterator[PoolHost]:
    host = PoolHost(HostSettings(scratch, lasting=False, manager=ManagerSettings(pool="roles")))
    await host.start()
    try:
        yield host
    finally:
        await host.stop()


@asynccontextmanager
async def client(host: PoolHost, name: str, role: str) -> AsyncIterator[Client]:
    made = Client(host.manager_jid, answer_s_max=20)
    async with connected(made, host.account(name, role)):
        yield made


async def code_of(client: Client, message: m.UserToManager) -> str:
    """The code with which this is refused."""
    with pytest.raises(RequestError) as refused:
        await client.request(message, m.Message)
    return refused.value.code


async def jobs_of(client: Client) -> list[int]:
    """Numbers of its jobs; none if that is refused."""
    try:
        return [job.job for job in (await client.request(m.Status(), m.JobStatus)).jobs]
    except RequestError as refused:
        if refused.code != "not_allowed":
            raise
        return []


def test_each_account_may_what_its_role_allows(tmp_path: Path):
    async def scene() -> None:
        async with (
            pool(tmp_path) as host,
            client(host, "ann", "user") as ann,
            client(host, "bob", "user") as bob,
            client(host, "lab", "worker") as lab,
            client(host, "root", "admin") as root,
        ):
            job = (await ann.submit(m.Job(command="secret"))).job
            for question in (m.Status(), m.Pool(), m.Results(job=job), m.Cancel(job=job), m.Job(command="x")):
                assert await code_of(lab, question) == "not_allowed"
            for question in (m.Status(job=job), m.Results(job=job), m.Watch(job=job), m.Cancel(job=job)):
                assert await code_of(bob, question) == "not_owner"
            (shown,) = (await bob.request(m.Status(all=True), m.JobStatus)).jobs
            assert (shown.command, shown.user) == ("", f"ann@{host.domain}")
            (shown,) = (await root.request(m.Status(job=job), m.JobStatus)).jobs
            assert shown.command == "secret"
            assert (await root.request(m.Cancel(job=job), m.Accepted)).changed == 1

    asyncio.run(scene())


def test_a_role_that_changes_is_heeded_in_the_middle_of_a_session(tmp_path: Path):
    async def scene() -> None:
        async with pool(tmp_path) as host, client(host, "ann", "user") as ann:
            job = (await ann.submit(m.Job(command="true"))).job
            waiting = asyncio.create_task(code_of(ann, m.Results(job=job, wait=True, id="reader")))
            await ann.request(m.Watch(job=job), m.JobStatus)
            host.accounts.set_role("ann", "worker")
            assert await waiting == "not_allowed"
            assert await code_of(ann, m.Status()) == "not_allowed"
            host.accounts.set_role("ann", "user")
            while not (shown := await jobs_of(ann)):  # noqa: ASYNC110 - the server tells it soon
                await asyncio.sleep(0.02)
            assert shown == [job]

    asyncio.run(scene())
