"""How long after `kill -9` of a worker its task runs somewhere else.

A pool with real processes on loopback; each round starts a one-task job whose command writes the time
and stays, kills the worker that has it, and waits for the second line that the task writes elsewhere.
Measured from the kill to the time that the second run wrote: detection, re-queueing, storing, dispatch,
and the start of the process all count. Run: `python benchmarks/loss.py [--kills 20]`.
Target: median <= 100 ms. The same run prints what starting an idle task takes, for comparison.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import statistics
import tempfile
import time
from pathlib import Path

from kestrel.client import Client
from kestrel.local import LocalPool
from kestrel.protocol import messages as m


async def lines_of(path: Path, count: int, patience_s: float = 20.0) -> list[int]:
    """The first `count` times (ns) in the file, once they are there."""
    until = time.monotonic() + patience_s
    while time.monotonic() < until:
        found = path.read_text().split() if path.exists() else []
        if len(found) >= count:
            return [int(word) for word in found]
        await asyncio.sleep(0.001)
    raise SystemExit(f"no run number {count} within {patience_s} s")


async def worker_of(client: Client, job: int) -> str:
    """The name of the worker that has the only task of the job."""
    tasks = await client.request(m.ListTasks(job=job), m.TaskList)
    return tasks.tasks[0].worker.partition("@")[0]


async def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    options = parser.parse_args()
    delays_ms, starts_ms = [], []
    with tempfile.TemporaryDirectory() as scratch:
        async with LocalPool(slots=1) as pool:
            processes = {"local1": pool.workers[0]}
            processes["spare0"] = pool.start_worker(1, "spare0")
            for turn in range(options.kills):
                file = Path(scratch) / f"{turn}"
                command = f"date +%s%N >> {file}; exec sleep 600"
                began = time.time_ns()
                job = (await pool.client.submit(m.Job(command=command))).job
                first = (await lines_of(file, 1))[0]
                starts_ms.append((first - began) / 1e6)
                victim = await worker_of(pool.client, job)
                killed = time.time_ns()
                os.kill(processes.pop(victim).pid, signal.SIGKILL)
                second = (await lines_of(file, 2))[1]
                delays_ms.append((second - killed) / 1e6)
                await pool.client.request(m.Cancel(job=job), m.Accepted)
                await pool.client.wait(job)
                name = f"spare{turn + 1}"
                processes[name] = pool.start_worker(1, name)
                with contextlib.suppress(TimeoutError):
                    await workers_present(pool.client, 2)
    report(sorted(delays_ms), sorted(starts_ms))


def report(delays_ms: list[float], starts_ms: list[float]) -> None:
    """Print the table."""
    delay, start = statistics.median(delays_ms), statistics.median(starts_ms)
    print("| ms | median | worst |\n|---|---|---|")
    print(f"| submission to the first line of an idle worker's task | {start:.1f} | {starts_ms[-1]:.1f} |")
    print(f"| kill -9 to the task's line elsewhere | {delay:.1f} | {delays_ms[-1]:.1f} |")
    print(f"\n{len(delays_ms)} kills; a lost worker costs {delay / start:.1f} x a start (target: 100 ms)")


async def workers_present(client: Client, count: int, patience_s: float = 15.0) -> None:
    """Wait until the manager sees so many workers."""
    async with asyncio.timeout(patience_s):
        while (await client.request(m.Pool(), m.PoolStatus)).count < count:  # noqa: ASYNC110
            await asyncio.sleep(0.02)  # there is no event for it: the pool is asked


if __name__ == "__main__":
    asyncio.run(main())
