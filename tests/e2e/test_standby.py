"""Managers that stand by for each other on one PostgreSQL: real processes, real signals, real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from chaos.bag import SCRIPT
from chaos.checker import EPOCH_BITS, Row
from chaos.reading import ProofsSoFar, read_store
from kestrel.client import Client
from kestrel.client.connect import connected
from kestrel.protocol import messages as m
from parts.postgres import need_postgres
from parts.servers import make_server
from realpool.on_server import ServerPool
from realpool.pool import UP, WAITS, PoolPlan, RealPool
from realpool.postgres import PrivatePostgres
from realpool.processes import Process, until

PATIENCE_S = 30.0
LEASE_S = 2.0
PLAN = PoolPlan(managers=2, workers=2, slots=2, lease=f"{LEASE_S:g}s")


@pytest.fixture(scope="module")
def postgres() -> Iterator[PrivatePostgres]:
    need_postgres()
    with PrivatePostgres() as server:
        yield server


@pytest.fixture
def pool(tmp_path: Path, postgres: PrivatePostgres) -> Iterator[RealPool]:
    with RealPool(tmp_path, PLAN, postgres=postgres) as running:
        yield running


class Trial:
    """Jobs whose tasks prove that they ran."""

    def __init__(self, pool: RealPool) -> None:
        self.pool = pool
        directory = pool.scratch / "proofs"
        directory.mkdir()
        self.seen = ProofsSoFar(directory)
        self._directory = directory

    def job(self, name: str, count: int, pause_s: float) -> m.Job:
        return m.Job(
            command=["sh", str(SCRIPT), "1", f"{pause_s:g}"],
            id=name,
            queue=count,
            append_index=False,
            env={"PROOFS": str(self._directory)},
        )

    def submit(self, name: str, count: int, pause_s: float = 0.0) -> int:
        async def talk() -> int:
            client = Client(self.pool.access.manager)
            async with connected(client, self.pool.access):
                return (await client.submit(self.job(name, count, pause_s))).job

        return asyncio.run(talk())

    def starts(self, job: int) -> list[tuple[int, int]]:
        """(task, attempt) of each start so far."""
        self.seen.look()
        return [(p.task, p.attempt) for p in self.seen.proofs if p.job == job and not p.end]

    def wait_for_starts(self, job: int, count: int) -> None:
        until(
            lambda: len(self.starts(job)) >= count,
            f"{count} tasks of job {job} start",
            PATIENCE_S,
            seen=self.pool.describe,
        )

    def finish(self, job: int) -> None:
        """The job ends well."""
        done = self.pool.run("wait", "--pool", self.pool.pool_word, str(job))
        assert done.returncode == 0, done.stdout + done.stderr + self.pool.describe()


def active(pool: RealPool) -> Process:
    manager = pool.active
    assert manager is not None, pool.describe()
    return manager


def other(pool: RealPool, manager: Process) -> Process:
    return next(each for each in pool.managers.values() if each is not manager)


def results_of(pool: RealPool, job: int) -> list[Row]:
    return [row for row in read_store(pool.place)[0] if row.job == job]


def epochs(rows: list[Row]) -> set[int]:
    return {row.attempt >> EPOCH_BITS for row in rows}


def test_a_standby_takes_over_from_a_killed_manager_and_adopts_what_runs(pool: RealPool):
    trial = Trial(pool)
    long = trial.submit("long", 3, pause_s=4)
    trial.wait_for_starts(long, 3)
    short = trial.submit("short", 20, pause_s=0.1)
    victim = active(pool)
    heir = other(pool, victim)
    victim.kill()
    heir.wait_for(UP, PATIENCE_S)
    trial.finish(short)
    trial.finish(long)
    assert sorted(task for task, _ in trial.starts(long)) == [0, 1, 2], "a task that ran was run again"
    assert sorted(task for task, _ in trial.starts(short)) == list(range(20))
    rows = results_of(pool, long)
    assert {row.state for row in rows} == {"COMPLETED"}
    assert sorted((row.task, row.attempt) for row in rows) == sorted(trial.starts(long))
    assert len(epochs(rows)) == 1
    assert max(epochs(results_of(pool, short))) > max(epochs(rows)), "the heir gave out nothing"


def test_a_manager_that_stood_still_finds_itself_replaced_and_writes_nothing(pool: RealPool):
    trial = Trial(pool)
    running = trial.submit("running", 2, pause_s=3)
    trial.wait_for_starts(running, 2)
    sleeper = active(pool)
    heir = other(pool, sleeper)
    sleeper.hold()
    heir.wait_for(UP, PATIENCE_S)
    trial.finish(running)
    trial.finish(trial.submit("while-it-sleeps", 10))
    before = read_store(pool.place)
    sleeper.go_on()
    replaced = sleeper.wait_for("has taken over", PATIENCE_S)
    sleeper.wait_for(WAITS, PATIENCE_S, since=replaced.at)
    assert read_store(pool.place) == before
    assert sorted(task for task, _ in trial.starts(running)) == [0, 1], "a task that ran was run again"
    trial.finish(trial.submit("afterwards", 10))
    assert active(pool) is heir
    heir.kill()
    sleeper.wait_for(UP, PATIENCE_S, since=replaced.at)
    trial.finish(trial.submit("and-back", 10))


def test_a_rolling_upgrade_is_not_noticed_by_who_submits(pool: RealPool):
    trial = Trial(pool)
    first = active(pool)

    async def submit_all(count: int) -> dict[str, set[int]]:
        """Each submission is made twice, as by somebody who did not hear the answer."""
        client = Client(pool.access.manager)
        answers: dict[str, set[int]] = {}
        async with connected(client, pool.access):
            for number in range(count):
                if number == count // 2:
                    first.ask_to_end()
                job = trial.job(f"id-{number}", 2, 0.0)
                both = await asyncio.gather(client.submit(job), client.submit(job))
                answers[job.id] = {each.job for each in both}
            for jobs in answers.values():
                for job_number in jobs:
                    await client.wait(job_number)
        return answers

    answers = asyncio.run(asyncio.wait_for(submit_all(100), 2 * PATIENCE_S))
    assert first.end(), "it had to be killed"
    assert first.exit_code == 0
    assert all(len(jobs) == 1 for jobs in answers.values())
    rows, ids = read_store(pool.place)
    assert ids == {job: name for name, (job,) in answers.items()}
    assert sorted((row.job, row.task) for row in rows) == [
        (job, task) for job in sorted(ids) for task in (0, 1)
    ]
    assert {row.state for row in rows} == {"COMPLETED"}


def test_submissions_in_flight_when_the_manager_is_killed_are_one_job_each(pool: RealPool):
    trial = Trial(pool)
    victim = active(pool)
    jobs = [trial.job(f"id-{number}", 1, 0.0) for number in range(40)]

    async def talk() -> tuple[list[int], list[int]]:
        client = Client(pool.access.manager)
        async with connected(client, pool.access):
            asked = [asyncio.create_task(client.submit(job)) for job in jobs]
            await asked[0]
            victim.kill()
            firsts = [(await each).job for each in asked]
            again = [(await client.submit(job)).job for job in jobs]
            for job in firsts:
                await client.wait(job)
        return firsts, again

    firsts, again = asyncio.run(asyncio.wait_for(talk(), 2 * PATIENCE_S))
    assert firsts == again
    rows, ids = read_store(pool.place)
    assert ids == {job: f"id-{number}" for number, job in enumerate(firsts)}
    assert len(rows) == len(jobs)


def test_the_database_may_be_killed_and_come_back(tmp_path: Path):
    need_postgres()
    with PrivatePostgres() as own, RealPool(tmp_path, PLAN, postgres=own) as pool:
        trial = Trial(pool)
        job = trial.submit("bag", 60, pause_s=0.2)
        trial.wait_for_starts(job, 4)
        own.kill()
        # Workers go on with what they have; nobody can be told that it is stored.
        own.start()
        trial.finish(job)
        assert sorted(task for task, _ in trial.starts(job)) == list(range(60))
        assert len(results_of(pool, job)) == 60
        assert all(manager.running for manager in pool.managers.values()), pool.describe()


@pytest.mark.parametrize("account", [False, True], ids=["component", "account"])
@pytest.mark.parametrize("kind", ["prosody", "ejabberd"])
def test_managers_on_other_servers_take_over(
    tmp_path: Path, postgres: PrivatePostgres, kind: str, account: bool
):
    with ServerPool(tmp_path, PLAN, make_server(kind), account=account, postgres=postgres) as pool:
        trial = Trial(pool)
        long = trial.submit("long", 2, pause_s=3)
        trial.wait_for_starts(long, 2)
        victim = active(pool)
        victim.kill()
        other(pool, victim).wait_for(UP, PATIENCE_S)
        trial.finish(trial.submit("short", 10))
        trial.finish(long)
        assert sorted(task for task, _ in trial.starts(long)) == [0, 1], "a task that ran was run again"


@pytest.mark.parametrize(
    ("kind", "account"),
    [("prosody", False), ("prosody", True), ("ejabberd", True)],
    ids=["prosody-component", "prosody-account", "ejabberd-account"],
)
def test_the_heir_takes_the_place_of_a_manager_that_stands_still(
    tmp_path: Path, postgres: PrivatePostgres, kind: str, account: bool
):
    """Not for a component on ejabberd, which shares messages out among all who are connected as it."""
    with ServerPool(tmp_path, PLAN, make_server(kind), account=account, postgres=postgres) as pool:
        trial = Trial(pool)
        sleeper = active(pool)
        heir = other(pool, sleeper)
        sleeper.hold()
        heir.wait_for(UP, PATIENCE_S)
        trial.finish(trial.submit("while-it-sleeps", 10))
        sleeper.go_on()
        sleeper.wait_for(WAITS, PATIENCE_S)
        trial.finish(trial.submit("afterwards", 10))
        assert active(pool) is heir


class TestMistakes:
    """Each is answered in words that name the thing and the cure, and never show a password."""

    @pytest.fixture
    def half(self, tmp_path: Path, postgres: PrivatePostgres) -> Iterator[RealPool]:
        """Server and database, without managers."""
        pool = RealPool(tmp_path, PoolPlan(managers=0, workers=0), postgres=postgres)
        with ExitStack() as stack:
            stack.callback(pool.end)
            pool.start_store()
            pool.start_server()
            yield pool

    def manager(self, pool: RealPool, place: str = "", *options: str) -> tuple[int, str]:
        """Exit code and words of a manager with these options, the last of each kind counting."""
        words = [*pool.manager_words(), "--store", place or pool.place, *options]
        done = pool.run(*words, patience_s=PATIENCE_S)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout + done.stderr

    def test_nobody_listens_there(self, half: RealPool):
        code, said = self.manager(half, "postgresql://kestrel:hush@127.0.0.1:1/none", "--no-standby")
        assert code == 255
        assert "127.0.0.1" in said
        assert "hint" in said
        assert "hush" not in said

    def test_who_stands_by_waits_for_a_database_that_is_away_and_says_so(self, half: RealPool):
        words = [*half.manager_words(), "--store", "postgresql://kestrel:hush@127.0.0.1:1/none"]
        manager = half.process("waits", *words)
        manager.start()
        until(lambda: "127.0.0.1" in manager.log(), "it says what it waits for", PATIENCE_S, seen=manager.log)
        assert manager.running
        assert manager.end()
        assert manager.exit_code == 0
        assert "hush" not in manager.log()

    def test_a_database_that_does_not_exist(self, half: RealPool):
        assert half.postgres is not None
        code, said = self.manager(half, half.postgres.dsn("no-such-database"))
        assert code == 255
        assert "no-such-database" in said
        assert "hint" in said

    def test_a_database_of_another_pool(self, half: RealPool):
        half.start_manager("m1").end()
        code, said = self.manager(half, "", "--pool", "other")
        assert code == 255
        assert "trial" in said
        assert "other" in said

    def test_a_second_manager_that_may_not_wait(self, half: RealPool):
        half.start_manager("m1")
        code, said = self.manager(half, "", "--no-standby")
        assert code == 255
        assert "stand" in said
