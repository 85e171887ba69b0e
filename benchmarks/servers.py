"""What 1,000 workers cost each XMPP server: logins per second, memory, the time to join, tasks per second.

The embedded server, Prosody and ejabberd, each with the configuration that `kestrel server config` prints,
one after the other in one run, each with a real manager process that is its component; the workers are
light sessions in this process (real XMPP, real protocol, tasks that end at once). Ratios are against the
embedded server. Servers that are not installed are left out loudly.

Run: `python benchmarks/servers.py [--workers 1000] [--via starttls|tls|wss] [--servers embedded,prosody]`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

from realpool.crowd import Crowd, CrowdSettings
from realpool.ejabberd import Ejabberd, ejabberd_program
from realpool.embedded import EmbeddedProcess
from realpool.live import LiveServer, WayIn
from realpool.on_server import WORKERS, ServerPool
from realpool.pool import PoolPlan
from realpool.processes import tree
from realpool.prosody import Prosody, prosody_program

TASKS_PER_WORKER = 100
VIAS: dict[str, WayIn] = {"starttls": "", "tls": "tls", "wss": "wss"}


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured on one server."""

    name: str
    logins_per_s: float
    joined_s: float
    """From the first introduction until all are welcomed."""
    server_kib: float
    """Resident memory per worker, of the server."""
    manager_kib: float
    seen: int
    """Workers in the manager's view."""
    tasks_per_s: float


def resident_kib(pid: int) -> int:
    """Resident memory of a process and all that it started."""
    total = 0
    for each in tree(pid):
        for line in Path(f"/proc/{each}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                total += int(line.split()[1])
    return total


def server_of(name: str) -> LiveServer | None:
    """One that is not started; None: it is not installed."""
    match name:
        case "embedded":
            return EmbeddedProcess()
        case "prosody":
            return Prosody(program=prosody_program()) if prosody_program() else None
        case "ejabberd":
            return Ejabberd() if ejabberd_program() else None
        case _:
            raise SystemExit(f"there is no server {name!r}: use embedded, prosody, ejabberd")


async def measure(pool: ServerPool, workers: int, via: WayIn) -> Figures:
    """Fill a pool that has a manager and no workers."""
    server, manager = pool.live, pool.managers["m1"]
    access = server.access(WORKERS, via=via, manager=pool.manager_jid)
    before = resident_kib(server.pid), resident_kib(manager.pid)
    async with Crowd(access, CrowdSettings(workers)) as crowd:
        began = time.monotonic()
        await crowd.log_in()
        logged_in = time.monotonic() - began
        began = time.monotonic()
        await crowd.join()
        joined = time.monotonic() - began
        after = resident_kib(server.pid), resident_kib(manager.pid)
        seen = await asyncio.to_thread(pool.seen_workers)
        tasks = workers * TASKS_PER_WORKER
        submitted = await asyncio.to_thread(
            pool.run, "submit", "--pool", pool.pool_word, "--queue", str(tasks), "--json", "--", "true"
        )
        began = time.monotonic()
        if submitted.returncode:
            raise SystemExit(f"the submission failed: {submitted.stderr}")
        job = str(json.loads(submitted.stdout)["job"])
        waited = await asyncio.to_thread(pool.run, "wait", "--pool", pool.pool_word, job, patience_s=120)
        ran = time.monotonic() - began
        if waited.returncode:
            raise SystemExit(f"the job failed: {waited.stdout}{waited.stderr}")
    return Figures(
        server.kind,
        workers / logged_in,
        joined,
        (after[0] - before[0]) / workers,
        (after[1] - before[1]) / workers,
        seen,
        tasks / ran,
    )


def report(found: list[Figures], workers: int, via: str) -> None:
    """Print the table; ratios are against the first line."""
    first = found[0]
    print(f"{workers} workers by {via}, {TASKS_PER_WORKER} tasks each\n")
    print("| server | logins/s | joined after | server KiB/worker | manager KiB/worker | in view | tasks/s |")
    print("|---|---|---|---|---|---|---|")
    for each in found:
        ratio = first.logins_per_s / each.logins_per_s
        print(
            f"| {each.name} | {each.logins_per_s:,.0f} ({first.name}: {ratio:.1f} x) | {each.joined_s:.2f} s "
            f"| {each.server_kib:.1f} ({each.server_kib / first.server_kib:.1f} x) | {each.manager_kib:.1f} "
            f"| {each.seen:,} | {each.tasks_per_s:,.0f} |"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--via", choices=VIAS, default="starttls")
    parser.add_argument("--servers", default="embedded,prosody,ejabberd")
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, options.workers + 1024), hard))
    found = []
    for name in options.servers.split(","):
        server = server_of(name)
        if server is None:
            print(f"LEFT OUT: {name} is not installed", file=sys.stderr)
            continue
        with tempfile.TemporaryDirectory() as scratch:
            plan = PoolPlan(store="sqlite", managers=1, workers=0)
            with ServerPool(Path(scratch), plan, server) as pool:
                found.append(asyncio.run(measure(pool, options.workers, VIAS[options.via])))
    if found:
        report(found, options.workers, options.via)


if __name__ == "__main__":
    main()
