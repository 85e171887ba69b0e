"""How fast the launcher starts processes, beside a bare posix_spawn loop and `xargs`, in one run.

    python benchmarks/launcher.py [TASKS]

Runs `true` TASKS times (10,000), two at once: through `ProcessLauncher` (this process as the agent,
the launcher in a process of its own, output files, batches as the worker hands them over), through the
whole worker but XMPP (execution machine, spool, messages), in a bare os.posix_spawn + waitpid loop, and
by `xargs -P2 -n1 true`. Three rounds, interleaved; medians.
"""

from __future__ import annotations

import asyncio
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kestrel.clock import AsyncioClock
from kestrel.ports import ProcessEnded, Show, StartProcess
from kestrel.protocol import codec
from kestrel.protocol import messages as m
from kestrel.worker.agent import WorkerAgent
from kestrel.worker.launcher import LauncherSettings, ProcessLauncher
from kestrel.worker.settings import WorkerSettings
from kestrel.worker.spool import FileSpool

SLOTS = 2
IN_HAND = 40
"""What the worker hands over of tasks of about a millisecond."""


class Feeder:
    """A `LauncherEvents` that keeps the launcher supplied."""

    def __init__(
        self, launcher: ProcessLauncher, tasks: int, directory: str, done: asyncio.Future[None]
    ) -> None:
        self.launcher = launcher
        self.tasks = tasks
        self.directory = directory
        self.done = done
        self.started = 0
        self.ended = 0

    def feed(self) -> None:
        last = min(self.tasks, self.ended + IN_HAND)
        batch = range(self.started, last)
        self.started = last
        if batch:
            self.launcher.start([self._process(i) for i in batch])

    def _process(self, i: int) -> StartProcess:
        files = f"{self.directory}/out/1/{i}.out", f"{self.directory}/out/1/{i}.err"
        return StartProcess(i, ["true"], {"KESTREL_TASK_ID": str(i)}, self.directory, *files)

    def on_ended(self, ended: Sequence[ProcessEnded]) -> None:
        again = [self._process(end.attempt) for end in ended if end.unstarted]
        if again:  # the machine was busy with something else, and they were given back
            self.launcher.start(again)
        for end in ended:
            if end.exit_code != 0 and not end.unstarted:
                raise RuntimeError(f"true ended with {end}")
        self.ended += len(ended) - len(again)
        self.feed()
        if self.ended == self.tasks:
            self.done.set_result(None)

    def on_launcher_lost(self, attempts: Sequence[int]) -> None:
        raise RuntimeError(f"the launcher died with {len(attempts)} attempts")


async def through_launcher(tasks: int) -> float:
    with tempfile.TemporaryDirectory() as directory:
        launcher = ProcessLauncher(LauncherSettings(slots=SLOTS))
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        feeder = Feeder(launcher, tasks, directory, done)
        await launcher.open(feeder)
        began = time.perf_counter()
        feeder.feed()
        await done
        took = time.perf_counter() - began
        await launcher.close()
    return tasks / took


class NoManager:
    """A `Transport` whose other end gives 200 tasks at a time and acknowledges after 3 ms."""

    def __init__(self, tasks: int, done: asyncio.Future[None]) -> None:
        self.tasks = tasks
        self.done = done
        self.given = 0
        self.ended = 0
        self.agent: WorkerAgent

    def tell(self, message: m.Message) -> None:
        self.agent.on_message("manager", codec.encode(message), False)

    def feed(self) -> None:
        spec = m.TaskSpec(command=["true", "{}"])
        while self.given < self.tasks and self.given - self.ended < 1000:
            count = min(200, self.tasks - self.given)
            indices = list(range(self.given, self.given + count))
            params = [[str(i)] for i in indices]
            first = self.given == 0
            self.given += count
            self.tell(
                m.Tasks(
                    job=1, attempt=indices[0] + 1, tasks=indices, params=params, spec=spec if first else None
                )
            )

    def send(self, to: str, payload: bytes, *, chat: bool = False) -> None:
        message = codec.decode_to_manager(payload)
        if isinstance(message, m.Report):
            self.ended += len(message.attempts)
            asyncio.get_running_loop().call_later(0.003, self.acknowledge, message.n)
            if self.ended == self.tasks:
                self.done.set_result(None)

    def acknowledge(self, number: int) -> None:
        self.tell(m.Ack(n=number))
        self.feed()

    def announce(self, to: str, show: Show, status: str) -> None:
        """Nobody looks."""

    def say(self, to: str, text: str) -> None:
        raise RuntimeError(f"the worker talks to a person: {text}")

    def withdraw(self, to: str) -> None:
        """Nobody looks."""

    def ping(self, to: str) -> None:
        raise RuntimeError("the worker pings")


async def through_worker(tasks: int) -> float:
    """The whole worker but XMPP: messages, execution machine, spool, launcher."""
    loop = asyncio.get_running_loop()
    with tempfile.TemporaryDirectory() as directory:
        launcher = ProcessLauncher(LauncherSettings(slots=SLOTS))
        manager = NoManager(tasks, loop.create_future())
        settings = WorkerSettings("manager", m.Profile(cores=SLOTS), directory, f"{directory}/out")
        spool = FileSpool(Path(directory))
        manager.agent = WorkerAgent(AsyncioClock(loop), manager, launcher, spool, settings)
        await launcher.open(manager.agent)
        manager.agent.on_up("worker@example.org/x")
        manager.tell(m.Welcome(epoch=1))
        began = time.perf_counter()
        manager.feed()
        await manager.done
        took = time.perf_counter() - began
        manager.agent.close()
        await launcher.close()
        spool.close()
    return tasks / took


def bare(tasks: int) -> float:
    env = dict(os.environ)
    began = time.perf_counter()
    started = running = 0
    while started < tasks or running:
        while running < SLOTS and started < tasks:
            os.posix_spawn("/bin/true", ["true"], env)
            started += 1
            running += 1
        os.waitpid(-1, 0)
        running -= 1
    return tasks / (time.perf_counter() - began)


def xargs(tasks: int) -> float:
    numbers = "".join(f"{i}\n" for i in range(tasks))
    began = time.perf_counter()
    subprocess.run(["xargs", f"-P{SLOTS}", "-n1", "true"], input=numbers.encode(), check=True)
    return tasks / (time.perf_counter() - began)


@dataclass
class Row:
    name: str
    rates: list[float]


def main() -> None:
    tasks = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    rows = [
        Row("xargs -P2", []),
        Row("bare posix_spawn", []),
        Row("launcher", []),
        Row("worker, no XMPP", []),
    ]
    agent_s = 0.0
    for _ in range(3):
        rows[0].rates.append(xargs(tasks))
        rows[1].rates.append(bare(tasks))
        before = resource.getrusage(resource.RUSAGE_SELF)
        rows[2].rates.append(asyncio.run(through_launcher(tasks)))
        after = resource.getrusage(resource.RUSAGE_SELF)
        agent_s += after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        rows[3].rates.append(asyncio.run(through_worker(tasks)))
    for row in rows:
        rate = statistics.median(row.rates)
        spread = f"{min(row.rates):.0f} to {max(row.rates):.0f}"
        ratio = statistics.median(r / x for r, x in zip(row.rates, rows[0].rates, strict=True))
        print(f"{row.name:18} {rate:7.0f} tasks/s ({spread}), {ratio:.2f} of xargs (median of rounds)")
    print(f"agent's end: {agent_s / 3 / tasks * 1e6:.0f} us of CPU per task")


if __name__ == "__main__":
    main()
