"""How long after a worker is lost its task runs somewhere else: each way to be lost, on each server.

On the embedded server, Prosody and ejabberd, one after the other in one run: `kill -9` of the worker, its
machine gone silent (all packets dropped), the worker stopped (SIGSTOP), and a worker that leaves at once when
it is asked to. Each machine is a network namespace of its own. A one-task job whose command writes the time
and stays is started; its worker is struck; the second line is written by the run elsewhere. From the strike
to that line detection, re-queueing, storing, dispatch and the start of the process all count. The same run
prints what going from one task to the next takes, and the times as multiples of it.

Run as root: `python benchmarks/loss_detection.py [--rounds 5] [--slow-rounds 2] [--lost-after 15s 2s]`.
Without root everything happens on loopback, and the silent machine is left out loudly. Targets: kill at most
100 ms; silent at most 15 s with the default, and settable down to 2 s. After the strikes two workers have all
cores busy for some seconds: if one is lost then, the benchmark fails.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

from realpool.ejabberd import Ejabberd, ejabberd_program
from realpool.embedded import EmbeddedProcess
from realpool.live import LiveServer
from realpool.networks import Machine, Network, missing
from realpool.on_server import ServerPool
from realpool.pool import PoolPlan, RealPool
from realpool.processes import until
from realpool.prosody import Prosody, prosody_program

HUB = "192.0.2.1"
WORKERS = ("w1", "w2")
PATIENCE_S = 60.0
KILLED, LEFT, SILENT, STOPPED = "killed (kill -9)", "left at once", "silent (packets dropped)", "SIGSTOP"
LEAVING = "worker_leaving"
"""What a worker's log says."""
QUICK, SLOW = (KILLED, LEFT), (SILENT, STOPPED)


class SpreadPool(ServerPool):
    """A pool whose workers are on machines of their own; `machines` is empty without root."""

    def __init__(self, machines: dict[str, Machine], *args: Any, **wanted: Any) -> None:
        self.machines = machines
        super().__init__(*args, **wanted)

    def seen_workers(self) -> int:
        # This process is on none of those machines: a command there asks.
        return RealPool.seen_workers(self)

    def within(self, name: str) -> list[str]:
        """Workers have machines of their own, all else is on the hub."""
        machine = self.machines.get(name) or self.machines.get("hub")
        return machine.words() if machine else []


@dataclass(slots=True)
class Case:
    """Times in milliseconds of one way to be lost, on one server."""

    server: str
    way: str
    lost_after: str
    delays_ms: list[float] = field(default_factory=list)
    starts_ms: list[float] = field(default_factory=list)


def lines_of(path: Path, count: int) -> list[int]:
    """The first `count` times (ns) in the file, once they are there."""
    found: list[str] = []

    def there() -> bool:
        found[:] = path.read_text().split() if path.exists() else []
        return len(found) >= count

    until(there, f"run number {count}", PATIENCE_S)
    return [int(word) for word in found]


def said(pool: SpreadPool, *words: str) -> Any:
    """The JSON that a command prints."""
    done = pool.run(*words, "--pool", pool.pool_word, "--json")
    if done.returncode:
        raise SystemExit(f"kestrel {' '.join(words)} failed: {done.stderr}\n{pool.describe()}")
    return json.loads(done.stdout)


def worker_of(pool: SpreadPool, job: str) -> str:
    """The name of the worker that has the only task of the job."""
    return str(said(pool, "tasks", job)[0]["worker"]).rpartition("/")[2]


def strike(pool: SpreadPool, name: str, way: str) -> int:
    """Lose this worker; returns when that was (ns)."""
    worker = pool.workers[name]
    began = time.time_ns()
    match way:
        case _ if way == KILLED:
            worker.kill()
        case _ if way == LEFT:
            leaving = worker.log().count(LEAVING)
            worker.ask_to_end()  # once: it would finish what it has
            until(lambda: worker.log().count(LEAVING) > leaving, f"{name} leaves", PATIENCE_S)
            began = time.time_ns()
            worker.ask_to_end()
        case _ if way == SILENT:
            pool.machines[name].cut()
        case _:
            worker.hold()
    return began


def repair(pool: SpreadPool, name: str, way: str) -> None:
    """Have it back."""
    worker = pool.workers[name]
    match way:
        case _ if way in QUICK:
            worker.end()
            pool.start_worker(name)
        case _ if way == SILENT:
            pool.machines[name].heal()
        case _:
            worker.go_on()
    pool.wait_for_workers(len(WORKERS))


def one_round(pool: SpreadPool, case: Case, number: int) -> None:
    """One job, one loss, one run elsewhere."""
    file = pool.work / f"{case.way.partition(' ')[0]}-{number}"
    text = pool.run("submit", "--pool", pool.pool_word, "--json", "--", _task(file)).stdout
    job = str(json.loads(text)["job"])
    lines_of(file, 1)
    victim = worker_of(pool, job)
    began = strike(pool, victim, case.way)
    case.delays_ms.append((lines_of(file, 2)[1] - began) / 1e6)
    pool.run("cancel", "--pool", pool.pool_word, job)
    repair(pool, victim, case.way)


def _task(file: Path) -> str:
    # `exec`: the task is one process, and ends with its worker.
    return f"date +%s%N >> {file}; exec sleep 600"


def start_of_a_task(pool: SpreadPool, number: int) -> float:
    """Milliseconds from one task's end until the next one of the same job has written its time.

    On an idle pool with one slot in use: dispatch and start of a process, without the start of a command.
    """
    file = pool.work / f"start-{number}"
    words = ["run", "-j", "1", "--", f": {{}}; date +%s%N >> {file}", ":::", *map(str, range(20))]
    done = subprocess.run(
        [*pool.within("hub"), sys.executable, "-m", "kestrel", *words],
        env=pool.env,
        cwd=pool.work,
        capture_output=True,
        timeout=PATIENCE_S,
        check=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0
    times = [int(word) for word in file.read_text().split()]
    return statistics.median((b - a) / 1e6 for a, b in itertools.pairwise(times))


@contextmanager
def served(kind: str, lost_after: str) -> Iterator[SpreadPool]:
    """A pool with two workers on this server."""
    with ExitStack() as held:
        scratch = Path(held.enter_context(tempfile.TemporaryDirectory()))
        machines: dict[str, Machine] = {}
        host, within = "127.0.0.1", tuple[str, ...]()
        if not missing():
            network = held.enter_context(Network())
            lan = network.lan("all")
            for number, name in enumerate(("hub", *WORKERS), 1):
                machines[name] = network.machine(name).plug(lan, f"192.0.2.{number}/24")
            host, within = HUB, tuple(machines["hub"].words())
        server = server_of(kind, host, within)
        plan = PoolPlan(store="sqlite", managers=1, workers=len(WORKERS))
        options = ("--lost-after", lost_after)
        with SpreadPool(machines, scratch, plan, server, manager_options=options) as pool:
            yield pool


def server_of(kind: str, host: str, within: tuple[str, ...]) -> LiveServer:
    """One that is not started."""
    match kind:
        case "embedded":
            return EmbeddedProcess(host=host, within=within)
        case "prosody":
            return Prosody(program=prosody_program(), host=host, within=within)
        case _:
            return Ejabberd(host=host, within=within)


def installed(kind: str) -> bool:
    """Whether there is such a server here; says so if not."""
    there = {"embedded": "here", "prosody": prosody_program(), "ejabberd": ejabberd_program()}
    if kind not in there:
        raise SystemExit(f"there is no server {kind!r}: use {', '.join(there)}")
    if not there[kind]:
        print(f"LEFT OUT: {kind} is not installed", file=sys.stderr)
    return bool(there[kind])


def never_lost(pool: SpreadPool) -> None:
    """All cores busy for three leases, and nobody is lost. Ends the benchmark if somebody is."""
    lost = said(pool, "pool").get("lost", [])
    words = ["submit", "--pool", pool.pool_word, "--queue", "2", "--json", "--"]
    text = pool.run(*words, "timeout 8 sh -c 'while :; do :; done'; true").stdout
    job = str(json.loads(text)["job"])
    pool.run("wait", "--pool", pool.pool_word, job)
    now = said(pool, "pool").get("lost", [])
    if now != lost:
        raise SystemExit(f"FALSE LOSS of a worker that was merely busy: {now}")


def trial(kind: str, lost_after: str, ways: Sequence[str], rounds: int) -> list[Case]:
    """All ways to be lost on one server."""
    found = []
    with served(kind, lost_after) as pool:
        start = start_of_a_task(pool, 0)
        for way in ways:
            if way == SILENT and not pool.machines:
                print(f"LEFT OUT: {SILENT} ({missing()})", file=sys.stderr)
                continue
            case = Case(kind, way, lost_after, starts_ms=[start])
            for number in range(rounds):
                one_round(pool, case, number)
            found.append(case)
        never_lost(pool)
    return found


def report(found: list[Case]) -> None:
    """Print the table."""
    print("| server | the worker was | --lost-after | median | worst | rounds | starts of a task |")
    print("|---|---|---|---|---|---|---|")
    for case in found:
        median, start = statistics.median(case.delays_ms), case.starts_ms[0]
        after = case.lost_after if case.way in SLOW else "any"
        print(
            f"| {case.server} | {case.way} | {after} | {_time(median)} | {_time(max(case.delays_ms))} "
            f"| {len(case.delays_ms)} | {median / start:,.0f} x {start:.1f} ms |"
        )


def _time(ms: float) -> str:
    return f"{ms:.0f} ms" if ms < 1000 else f"{ms / 1000:.1f} s"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slow-rounds", type=int, default=2)
    parser.add_argument("--lost-after", nargs="+", default=["15s", "2s"])
    parser.add_argument("--servers", default="embedded,prosody,ejabberd")
    options = parser.parse_args()
    found = []
    for kind in filter(installed, options.servers.split(",")):
        found += trial(kind, options.lost_after[0], QUICK, options.rounds)
        for lost_after in options.lost_after:
            found += trial(kind, lost_after, SLOW, options.slow_rounds)
    report(found)


if __name__ == "__main__":
    main()
