"""A pool of real processes on each server: workers come and go, all is killed, nobody needs help."""

from __future__ import annotations

import asyncio
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from kestrel.client import Client
from kestrel.protocol import messages as m
from parts.servers import LiveServer, WayIn, server_fixture
from realpool.on_server import WORKERS, ServerPool
from realpool.pool import PoolPlan
from realpool.processes import until

SOON_S = 10.0
"""Within this all are back; a worker that only silence tells of its manager takes longer."""
server = server_fixture()
PATIENCE_S = 60.0
MakePool = Callable[..., AbstractContextManager[ServerPool]]
BY_BOTH = pytest.mark.parametrize("account", [False, True], ids=["component", "account"])


@pytest.fixture
def make_pool(server: LiveServer, tmp_path: Path) -> MakePool:
    """A manager and two workers with two slots each; `pool` takes what `ServerPool` takes."""

    @contextmanager
    def pool(**wanted: Any) -> Iterator[ServerPool]:
        plan = PoolPlan(store="sqlite", managers=1, workers=2, slots=2)
        with ServerPool(tmp_path, plan, server, **wanted) as running:
            yield running

    return pool


class Gate:
    """Tasks that note that they run, and end when they may."""

    def __init__(self, pool: ServerPool) -> None:
        self._pool = pool
        self._ran = pool.work / "ran"
        self._gate = pool.work / "gate"

    @property
    def command(self) -> str:
        return f"echo $KESTREL_TASK_ID >> {self._ran}; until [ -e {self._gate} ]; do sleep 0.05; done #"

    def starts(self) -> Counter[str]:
        return Counter(self._ran.read_text().split() if self._ran.exists() else ())

    def wait_for_starts(self, count: int) -> None:
        until(lambda: self.starts().total() >= count, f"{count} starts", SOON_S * 2, seen=self._pool.describe)

    def open(self) -> None:
        self._gate.touch()


def submit(pool: ServerPool, count: int, command: str) -> int:
    job = m.Job(command=command, queue=count, workdir=str(pool.work))
    return pool.talk(lambda client: client.submit(job)).job


def finish(pool: ServerPool, job: int) -> None:
    async def wait(client: Client) -> m.JobInfo:
        async with asyncio.timeout(PATIENCE_S):
            return await client.wait(job)

    info = pool.talk(wait)
    assert info.state == "COMPLETED", f"{info}\n{pool.describe()}"


def names(pool: ServerPool) -> set[str]:
    """Resources of the workers that are there."""
    status = pool.pool_status()
    return {each.worker.partition("/")[2] for each in status.workers} if status else set()


def wait_for_names(pool: ServerPool, *wanted: str) -> None:
    until(lambda: names(pool) == set(wanted), f"the workers are {wanted}", 2 * SOON_S, seen=pool.describe)


@pytest.mark.parametrize(
    ("account", "way"), [(False, "tls"), (True, "wss")], ids=["component-tls", "account-websocket"]
)
def test_workers_come_work_and_go(make_pool: MakePool, account: bool, way: WayIn):
    with make_pool(account=account, via=way) as pool:
        status = pool.pool_status()
        assert status is not None
        jid = f"{WORKERS}@{pool.live.domain}"
        assert {each.worker for each in status.workers} == {f"{jid}/w1", f"{jid}/w2"}
        job = submit(pool, 20, "echo hello")
        finish(pool, job)
        assert pool.run("cat", "--pool", pool.pool_word, f"{job}_19").stdout == "hello 19\n"
        gate = Gate(pool)
        job = submit(pool, 4, gate.command)
        gate.wait_for_starts(4)
        pool.workers["w1"].kill()
        wait_for_names(pool, "w2")
        pool.start_worker("w1")
        gate.wait_for_starts(6)
        gate.open()
        finish(pool, job)
        assert sorted(gate.starts().values()) == [1, 1, 2, 2], "what ran on the killed worker ran again"
        assert pool.workers["w2"].end(), pool.describe()
        wait_for_names(pool, "w1")


def kill_manager(pool: ServerPool) -> None:
    pool.managers["m1"].kill()
    pool.start_manager("m1")


def stop_server(pool: ServerPool) -> None:
    pool.live.restart()


def kill_server(pool: ServerPool) -> None:
    pool.live.restart(kill=True)


@BY_BOTH
def test_what_runs_goes_on_through_restarts_and_who_waits_does_not_notice(make_pool: MakePool, account: bool):
    with make_pool(account=account) as pool:
        gate = Gate(pool)
        words = ["run", "--pool", pool.pool_word, "-k", "--", f"{gate.command.removesuffix('#')}; echo {{}}"]
        words += [":::", *map(str, range(8))]
        with subprocess.Popen(
            pool.process("run", *words).argv, env=pool.env, cwd=pool.work, stdout=subprocess.PIPE, text=True
        ) as run:
            try:
                gate.wait_for_starts(4)
                for restart in (kill_manager, kill_server, stop_server):
                    restart(pool)
                    until(
                        lambda: pool.seen_workers() == 2, "the workers are back", SOON_S, seen=pool.describe
                    )
                gate.open()
                out, _ = run.communicate(timeout=60)
            finally:
                run.kill()
        assert run.returncode == 0, pool.describe()
        assert out.split() == list(map(str, range(8)))
        assert set(gate.starts().values()) == {1}, "a task that ran was run again"


def test_results_that_a_killed_worker_had_when_nobody_listened_arrive_when_all_are_back(make_pool: MakePool):
    with make_pool() as pool:
        gate = Gate(pool)
        job = submit(pool, 4, gate.command)
        gate.wait_for_starts(4)
        pool.managers["m1"].kill()
        gate.open()
        journals = [pool.scratch / "workers" / name / "finished.journal" for name in ("w1", "w2")]

        def kept() -> int:
            return sum(journal.read_bytes().count(b'"attempt"') for journal in journals)

        until(lambda: kept() == 4, "all results are on disk", SOON_S, seen=pool.describe)
        for worker in pool.workers.values():
            worker.kill()
        pool.live.stop(kill=True)
        pool.live.start()
        for name in list(pool.workers):
            pool.start_worker(name)
        pool.start_manager("m1")
        finish(pool, job)
        assert set(gate.starts().values()) == {1}, "each ran once"
        until(lambda: kept() == 0, "acknowledged", SOON_S, seen=pool.describe)


def test_a_worker_that_has_gone_silent_is_lost_soon_and_no_other(make_pool: MakePool):
    """Its connection stays: only the manager's pings tell. The others are busy with all their slots."""
    with make_pool(manager_options=("--lost-after", "2s")) as pool:
        gate = Gate(pool)
        job = submit(pool, 4, gate.command)
        gate.wait_for_starts(4)
        sleeper = pool.workers["w1"]
        sleeper.hold()
        wait_for_names(pool, "w2")
        sleeper.go_on()
        wait_for_names(pool, "w1", "w2")
        gate.open()
        finish(pool, job)
        assert set(gate.starts()) == set("0123")


def test_batches_of_large_tasks_and_results_arrive_as_they_were(make_pool: MakePool):
    """Some 800 kB each way: the manager and the worker cut them into messages of the largest size."""
    with make_pool() as pool:
        texts = [f"{number:03}-{'x' * 1900}-é" for number in range(400)]
        done = subprocess.run(
            pool.process("run", "run", "--pool", pool.pool_word, "-k", "--", "echo", "{}").argv,
            env=pool.env,
            cwd=pool.work,
            input="\n".join(texts),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr + pool.describe()
        assert done.stdout.splitlines() == texts
