"""How soon work goes on after a manager is gone, and how soon a manager is ready with a big store.

Run: `python benchmarks/takeover.py [--rounds 15] [--only WORDS] [--no-prosody] [--no-big]`. Linux only.

In each round the active manager is struck while tasks run and many are queued; measured from the strike:
the line `is up as` of the next one, the first start of a task that the next one gave out (from the
proof that the task wrote; an attempt id tells the life of the manager that gave it), and the longest time
around the strike in which no task started anywhere: workers go on with what they have in hand, which is
about a second of work. Target: kill -9, median <= 3 s. A round whose first start is missing ends it all.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from queue import SimpleQueue

sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "tools"))

from chaos.bag import SCRIPT
from chaos.checker import EPOCH_BITS
from chaos.reading import ProofsSoFar
from chaos.report import table
from kestrel.client import Client
from kestrel.client.connect import connected
from kestrel.core.effects import RecordJobEnded, RecordResult
from kestrel.core.model import JobState, TaskState
from kestrel.ports import AddJob, CommitDone, CommitFailed, JobRecord, Write
from kestrel.protocol import codec
from kestrel.protocol import messages as m
from kestrel.store.places import make_store
from realpool.on_server import ServerPool
from realpool.pool import NAME, UP, WAITS, PoolPlan, RealPool
from realpool.processes import Line, Process, now, until
from realpool.prosody import Prosody, prosody_program

PATIENCE_S = 60.0
TASK_S = 0.1
TASKS = 500_000
UNIT = 2_000
FINISHED, QUEUED, PER_JOB = 1_000_000, 100_000, 100_000


@dataclass(frozen=True, slots=True)
class Scene:
    """A pool, and what is done to its active manager."""

    where: str
    """`embedded`, `Prosody component`, `Prosody account`."""
    store: str
    lease: str
    strikes: tuple[str, ...]
    """`kill -9`, `SIGSTOP`, `SIGTERM`; with SQLite the manager is then started again at once."""


SCENES = (
    Scene("embedded", "postgres", "", ("kill -9", "SIGTERM", "SIGSTOP")),
    Scene("embedded", "postgres", "2s", ("kill -9", "SIGSTOP")),
    Scene("embedded", "sqlite", "", ("kill -9", "SIGTERM")),
    Scene("Prosody component", "postgres", "", ("kill -9",)),
    Scene("Prosody account", "postgres", "", ("kill -9",)),
)


@dataclass(frozen=True, slots=True)
class Round:
    """Seconds after the strike."""

    up_s: float
    start_s: float
    gap_s: float


# --------------------------------------------------------------------------------------------------
# Take-over


def play(scene: Scene, rounds: int, random_: random.Random) -> Iterator[tuple[str, list[Round]]]:
    """All rounds of a scene in one pool."""
    with tempfile.TemporaryDirectory(prefix="kestrel-takeover-") as name:
        scratch = Path(name)
        managers = 3 if scene.store == "postgres" else 1
        plan = PoolPlan(scene.store, managers=managers, workers=2, slots=2, lease=scene.lease)
        pool = (
            RealPool(scratch, plan)
            if scene.where == "embedded"
            else ServerPool(scratch, plan, Prosody(), account=scene.where.endswith("account"))
        )
        proofs = scratch / "proofs"
        proofs.mkdir()
        with pool:
            asyncio.run(submit(pool, proofs))
            seen = ProofsSoFar(proofs)
            for strike in scene.strikes:
                yield strike, [one_round(pool, seen, strike, random_) for _ in range(rounds)]


async def submit(pool: RealPool, proofs: Path) -> None:
    """Far more tasks than can end."""
    client = Client(pool.access.manager)
    async with connected(client, pool.access):
        command = ["sh", str(SCRIPT), "1", f"{TASK_S:g}"]
        await client.submit(
            m.Job(command=command, queue=TASKS, append_index=False, env={"PROOFS": str(proofs)})
        )


def one_round(pool: RealPool, seen: ProofsSoFar, strike: str, random_: random.Random) -> Round:
    """Strike the active manager, and measure until another one's tasks start."""
    settle(pool, seen)
    time.sleep(random_.uniform(0, 1))  # not always at the same moment between two renewals
    victim = pool.active
    assert victim is not None
    seen.look()
    old = max(proof.attempt for proof in seen.proofs) >> EPOCH_BITS
    struck = now()
    match strike:
        case "kill -9":
            victim.kill()
        case "SIGSTOP":
            victim.hold()
        case _:
            victim.end()
    if pool.plan.store == "sqlite":
        victim.start()
    first = first_start(pool, seen, old)
    up = min(line.at for line in up_lines(pool) if line.at > struck)
    gap = longest_gap(seen, struck - 0.5, first + 1.0)
    if strike == "SIGSTOP":
        victim.go_on()
        until(lambda: waits(victim, struck), f"{victim.name} stands by again", PATIENCE_S, seen=victim.log)
    elif pool.plan.store != "sqlite":
        pool.start_manager(victim.name)
    return Round(up - struck, first - struck, gap)


def waits(manager: Process, since: float) -> bool:
    return manager.line(WAITS, since=since) is not None


def up_lines(pool: RealPool) -> list[Line]:
    return [line for m in pool.managers.values() for line in list(m.lines) if UP in line.text]


def settle(pool: RealPool, seen: ProofsSoFar) -> None:
    """A manager is active, its tasks start, and all others stand by."""

    def settled() -> bool:
        fresh = [p for p in seen.look() if not p.end]
        return bool(fresh) and pool.active is not None and len(pool.standbys) == pool.plan.managers - 1

    until(settled, "the pool works and the others stand by", PATIENCE_S, seen=pool.describe)


def first_start(pool: RealPool, seen: ProofsSoFar, old: int) -> float:
    """When the first task was started that a later life of the manager gave out."""
    found: list[float] = []

    def started() -> bool:
        found.extend(p.at for p in seen.look() if not p.end and p.attempt >> EPOCH_BITS > old)
        return bool(found)

    until(started, "a task of the next manager starts", PATIENCE_S, seen=pool.describe)
    return min(found)


def longest_gap(seen: ProofsSoFar, begin: float, end: float) -> float:
    """Longest time between two starts of tasks, anywhere."""
    while now() < end:
        time.sleep(0.05)
    seen.look()
    starts = sorted(p.at for p in seen.proofs if not p.end and begin <= p.at <= end)
    return max((b - a for a, b in pairwise(starts)), default=end - begin)


def show(rows: Sequence[tuple[Scene, str, list[Round]]]) -> None:
    """Print the table."""
    cells = []
    for scene, strike, rounds in rows:
        lease = (scene.lease or "5s, the default") if scene.store == "postgres" else "-"
        what = f"{strike}, started again at once" if scene.store == "sqlite" else strike
        measured = [[r.up_s for r in rounds], [r.start_s for r in rounds], [r.gap_s for r in rounds]]
        numbers = [f"{statistics.median(each):.2f} / {max(each):.2f}" for each in measured]
        cells.append((scene.where, scene.store, lease, what, len(rounds), *numbers))
    head = ("server", "store", "lease", "the active manager", "rounds")
    print("\nSeconds from the strike, median / worst:\n")
    print(table((*head, "the next is up", "its first task starts", "no task started for"), cells))


# --------------------------------------------------------------------------------------------------
# A big store


def fill(place: str) -> float:
    """FINISHED and QUEUED tasks through the Store's own door; the last job has some of both. Seconds."""
    posted: SimpleQueue[Callable[[], None]] = SimpleQueue()
    store = make_store(place, posted.put, pool=NAME)
    began = time.perf_counter()
    store.open(lambda record: None)
    waiting = 0

    def done(answer: CommitDone | CommitFailed) -> None:
        nonlocal waiting
        waiting -= 1
        if isinstance(answer, CommitFailed):
            raise answer.problem

    for unit, writes in enumerate(content(), start=1):
        store.commit(writes, (), done, unit=unit)
        waiting += 1
        while waiting > 50:
            posted.get(timeout=PATIENCE_S)()
    while waiting:
        posted.get(timeout=PATIENCE_S)()
    store.close()
    return time.perf_counter() - began


def content() -> Iterator[list[Write]]:
    """Units of a manager that has been at work for long."""
    message = codec.encode(m.Job(command="./run_task.sh", queue=PER_JOB))
    jobs = FINISHED // PER_JOB
    for job in range(1, jobs + 1):
        size = PER_JOB + (QUEUED if job == jobs else 0)
        yield [AddJob(JobRecord(job, f"admin@{NAME}", f"id-{job}", message, size, False, 1.7e9))]
        for first in range(0, PER_JOB, UNIT):
            yield [result(job, task) for task in range(first, first + UNIT)]
        if job < jobs:
            yield [RecordJobEnded(job, JobState.COMPLETED)]


def result(job: int, task: int) -> RecordResult:
    attempt = (1 << EPOCH_BITS) + job * PER_JOB + task
    worker = f"w{task % 40}@{NAME}/worker"
    report = m.AttemptReport(
        job=job, task=task, attempt=attempt, started=1.7e9, wall_s=0.1, cpu_s=0.1, memory_kib=9000,
        out="a line of output that says that all is well\n", out_bytes=44,
    )  # fmt: skip
    return RecordResult(job, task, task + 1, TaskState.COMPLETED, attempt, worker, report)


def ready(kind: str, lives: int = 5) -> tuple[float, dict[str, list[float]]]:
    """Seconds to fill the store; how the last life ended → seconds from the start of a process to `is up`."""
    with tempfile.TemporaryDirectory(prefix="kestrel-takeover-") as name:
        pool = RealPool(Path(name), PoolPlan(kind, managers=0, workers=0))
        times: dict[str, list[float]] = {"SIGTERM": [], "kill -9": []}
        try:
            pool.start_store()
            pool.start_server()
            filled = fill(pool.place)
            for how, found in times.items():
                life(pool, how)
                found += [life(pool, how) for _ in range(lives)]
        finally:
            pool.end()
    return filled, times


def life(pool: RealPool, how: str) -> float:
    """Start a manager, and end it in this way when it is up."""
    manager = pool.process("manager", *pool.manager_words())
    manager.start()
    took = manager.wait_for(UP, PATIENCE_S).at - manager.started
    if how == "kill -9":
        manager.kill()
    manager.end()
    return took


def show_ready(kinds: Sequence[str]) -> None:
    rows = []
    for kind in kinds:
        filled, times = ready(kind)
        for how, found in times.items():
            row = (kind, how, f"{filled:.0f}", f"{statistics.median(found):.2f}", f"{max(found):.2f}")
            rows.append(row)
    print(f"\n{FINISHED:,} finished and {QUEUED:,} queued tasks; target: ready within 3 s.\n")
    head = ("store", "end of the last life", "filled in, s", "process start to `is up`: median of 5, s")
    print(table((*head, "worst, s"), rows))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--only", default="", help="scenes whose words contain this, e.g. `sqlite`, `account`"
    )
    parser.add_argument("--lease", default=None, help="play all PostgreSQL scenes with this lease instead")
    parser.add_argument("--no-prosody", action="store_true")
    parser.add_argument("--no-big", action="store_true", help="leave out the restart with a big store")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    random_ = random.Random(options.seed)
    rows: list[tuple[Scene, str, list[Round]]] = []
    for scene in SCENES:
        if options.lease is not None and scene.store == "postgres":
            scene = replace(scene, lease=options.lease)
        words = f"{scene.where} {scene.store} {scene.lease}"
        prosody = scene.where != "embedded"
        if options.only not in words or (prosody and (options.no_prosody or not prosody_program())):
            continue
        for strike, rounds in play(scene, options.rounds, random_):
            print(f"{words}: {strike}: first starts {[round(r.start_s, 2) for r in rounds]}", flush=True)
            rows.append((scene, strike, rounds))
    if rows:
        show(rows)
    if not options.no_big:
        show_ready(("sqlite", "postgres"))


if __name__ == "__main__":
    main()
