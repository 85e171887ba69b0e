"""Managers, workers and the server on a real Prosody are killed and come back: nobody has to be helped."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from parts.need import need
from realpool.on_prosody import ProsodyPool
from realpool.pool import PoolPlan
from realpool.processes import until

SOON_S = 10.0
"""Within this idle workers are back; a worker that only silence tells of its manager takes 30 s."""


@pytest.fixture(params=["component", "account"])
def pool(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ProsodyPool]:
    plan = PoolPlan(store="sqlite", managers=1, workers=2, slots=2)
    pool = ProsodyPool(tmp_path, plan, account=request.param == "account", program=need("prosody"))
    with pool:
        yield pool


def submit(pool: ProsodyPool, count: int, command: str) -> int:
    done = pool.run("submit", "--pool", pool.pool_word, "-n", str(count), "--json", "--", command)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split('"job":')[1].split(",")[0])


def waited(pool: ProsodyPool, job: int) -> subprocess.CompletedProcess[str]:
    return pool.run("wait", "--pool", pool.pool_word, str(job))


def restart_manager(pool: ProsodyPool) -> None:
    pool.managers["m1"].kill()
    pool.start_manager("m1")


def restart_server(pool: ProsodyPool) -> None:
    pool.prosody.stop(kill=True)
    pool.prosody.start()


RESTARTS = pytest.mark.parametrize("restart", [restart_manager, restart_server])


@RESTARTS
def test_idle_workers_are_back_soon(pool: ProsodyPool, restart) -> None:
    restart(pool)
    until(lambda: pool.seen_workers() == 2, "both workers are back", SOON_S, seen=pool.describe)
    job = submit(pool, 4, "true")
    assert waited(pool, job).returncode == 0


@RESTARTS
def test_what_runs_goes_on_and_is_not_run_again(pool: ProsodyPool, restart) -> None:
    ran, gate = pool.work / "ran", pool.work / "gate"
    job = submit(pool, 4, f"echo $KESTREL_TASK_ID >> {ran}; until [ -e {gate} ]; do sleep 0.05; done #")
    until(lambda: ran.exists() and len(ran.read_text().split()) == 4, "all run", SOON_S, seen=pool.describe)
    restart(pool)
    until(lambda: pool.seen_workers() == 2, "both workers are back", SOON_S, seen=pool.describe)
    gate.touch()
    assert waited(pool, job).returncode == 0
    assert Counter(ran.read_text().split()) == Counter(map(str, range(4)))


def test_results_that_a_killed_worker_had_when_nobody_listened_arrive_when_all_are_back(
    pool: ProsodyPool,
) -> None:
    ran, gate = pool.work / "ran", pool.work / "gate"
    command = f"until [ -e {gate} ]; do sleep 0.05; done; echo $KESTREL_TASK_ID >> {ran} #"
    job = submit(pool, 4, command)
    status = ("status", "--pool", pool.pool_word, str(job), "--json")
    until(lambda: '"running":4' in pool.run(*status).stdout.replace(" ", ""), "all run", SOON_S)
    pool.managers["m1"].kill()
    gate.touch()
    journals = [pool.scratch / "workers" / name / "finished.journal" for name in ("w1", "w2")]

    def spooled() -> bool:
        return sum(journal.read_bytes().count(b'"attempt"') for journal in journals) == 4

    until(spooled, "all results are on disk", SOON_S, seen=pool.describe)
    for worker in pool.workers.values():
        worker.kill()
    for name in list(pool.workers):
        pool.start_worker(name)
    pool.start_manager("m1")
    assert waited(pool, job).returncode == 0
    assert Counter(ran.read_text().split()) == Counter(map(str, range(4))), "each ran once"
    until(
        lambda: not any(b'"attempt"' in journal.read_bytes() for journal in journals), "acknowledged", SOON_S
    )


@RESTARTS
def test_who_waits_for_a_job_or_reads_its_results_does_not_notice(pool: ProsodyPool, restart) -> None:
    gate = pool.work / "gate"
    words = ["run", "--pool", pool.pool_word, "-k", "--"]
    words += [f"until [ -e {gate} ]; do sleep 0.05; done; echo {{}}", ":::", *map(str, range(8))]
    with subprocess.Popen(
        pool.process("run", *words).argv, env=pool.env, cwd=pool.work, stdout=subprocess.PIPE, text=True
    ) as run:
        jobs = ("status", "--pool", pool.pool_word, "--json")
        until(lambda: '"RUNNING"' in pool.run(*jobs).stdout, "the job runs", SOON_S, seen=pool.describe)
        restart(pool)
        gate.touch()
        out, _ = run.communicate(timeout=60)
    assert run.returncode == 0
    assert out.split() == list(map(str, range(8)))
