#!/usr/bin/env python3
"""Render a fractal on four workers, lose one on the way, and show what happened.

    make demo        or        .venv/bin/python examples/fractal/demo.py

Starts a pool with `kestrel up`, four workers with `kestrel worker --join`, submits one job of 600
tiles (each a run of tile.py, which knows nothing of Kestrel), kills one of the workers with SIGKILL
when a third is done, waits until the pool shows it gone, starts a fresh one, waits for the rest, and
ends with the picture, a time line of who did what, and a table. Exit code 0 if every tile is there.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import assemble
import story
import timeline
from kestrel.client import Client
from kestrel.client.connect import connected
from kestrel.config import PoolAccess
from kestrel.errors import KestrelError
from kestrel.protocol import messages as m
from process_pool import PoolError, ProcessPool
from tile import parse_tiles

HERE = Path(__file__).resolve().parent
SLOTS = 1
"""Per worker: one lane of the time line each."""
JOIN_S_MAX = 60.0
GONE_S_MAX = 60.0
ASK_AGAIN_S = 0.02


@dataclass
class Options:
    """What to render, where, and on how many workers."""

    width: int
    height: int
    tiles: tuple[int, int]
    workers: int
    out: Path

    @property
    def tasks(self) -> int:
        return self.tiles[0] * self.tiles[1]


@dataclass
class Outcome:
    """What the demo saw."""

    results: list[m.TaskResult] = field(default_factory=list)
    marks: list[dict[str, Any]] = field(default_factory=list)
    kill: story.Kill | None = None
    gone_s: float = 0.0
    """From the kill to the manager's own note that the worker is lost."""
    requeued: int = 0
    began: float = 0.0
    took_s: float = 0.0


class Demo:
    """One run, from an empty pool to the finished job."""

    def __init__(self, options: Options, pool: ProcessPool, client: Client, console: Console) -> None:
        self.options = options
        self.pool = pool
        self.client = client
        self.console = console
        self.outcome = Outcome()
        self.enough_done = asyncio.Event()

    async def run(self) -> m.JobInfo:
        """Everything between the start of the pool and the end of the job."""
        names = [f"worker-{i + 1}" for i in range(self.options.workers)]
        await asyncio.gather(*(self.join(name) for name in names))
        self.console.print(f"{len(names)} workers have joined over XMPP.")
        job = await self.submit()
        self.outcome.began = time.time()
        watching = asyncio.create_task(self.collect(job))
        try:
            await self._first_of(self.enough_done.wait(), watching)
            await self.kill(job, names[len(names) // 2])
            await self.join(f"worker-{len(names) + 1}")
            self.console.print(f"worker-{len(names) + 1}, a fresh one, has joined.")
            await watching
        finally:
            watching.cancel()
        self.outcome.took_s = time.time() - self.outcome.began
        return await self.client.info(job)

    async def join(self, name: str) -> None:
        """Start a worker and wait until the pool shows it."""
        self.pool.add_worker(name, SLOTS)

        async def there() -> bool:
            self.pool.check_alive(name)
            return name in await self.present()

        await _eventually(there, JOIN_S_MAX, f"{name} joins")
        self.outcome.marks.append(story.mark(name, "joined", time.time()))

    async def present(self) -> dict[str, m.WorkerInfo]:
        """Who is in the pool, by name."""
        status = await self.client.request(m.Pool(), m.PoolStatus)
        return {story.label(w.worker): w for w in status.workers}

    async def submit(self) -> int:
        """One job; the index of the tile becomes the last word of the command."""
        columns, rows = self.options.tiles
        command = [sys.executable, str(HERE / "tile.py")]
        command += ["--width", str(self.options.width), "--height", str(self.options.height)]
        command += ["--tiles", f"{columns}x{rows}", "--out", str(self.options.out / "tiles")]
        submission = await self.client.submit(
            m.Job(command=command, queue=self.options.tasks, name="fractal", retries=1)
        )
        size = f"{self.options.width}x{self.options.height}"
        self.console.print(f"Job {submission.job}: {submission.size} tiles of a picture of {size} pixels.")
        return submission.job

    async def collect(self, job: int) -> None:
        """Fetch results as they are stored, and show how far it is."""
        columns = (TextColumn("rendering"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console, transient=True) as progress:
            bar = progress.add_task("tiles", total=self.options.tasks)
            async for page in self.client.results(job):
                self.outcome.results.extend(page)
                progress.update(bar, completed=len(self.outcome.results))
                if len(self.outcome.results) >= self.options.tasks // 3:
                    self.enough_done.set()

    async def kill(self, job: int, name: str) -> None:
        """SIGKILL a worker while it works; see how long the pool shows it, and what it takes along."""
        running = m.ListTasks(job=job, states=["RUNNING"], limit=10_000)
        tasks = (await self.client.request(running, m.TaskList)).tasks
        held = [(t.task, t.attempt) for t in tasks if story.label(t.worker) == name]
        at = time.time()
        os.kill(self.pool.pid(name), signal.SIGKILL)
        self.outcome.kill = story.Kill(name, at, SLOTS, held)
        self.outcome.marks.append(story.mark(name, "killed", at))

        async def gone() -> bool:
            status = await self.client.request(m.Pool(), m.PoolStatus)
            for lost in status.lost:
                if story.label(lost.worker) == name:
                    self.outcome.gone_s = max(0.0, lost.lost - at)
                    self.outcome.requeued = lost.requeued
                    return True
            return False

        await _eventually(gone, GONE_S_MAX, f"the pool shows that {name} is gone")
        self.outcome.marks.append(story.mark(name, "lost", at + self.outcome.gone_s))
        self.console.print(
            f"Killed {name} (kill -9). The manager knew after {1000 * self.outcome.gone_s:.0f} ms "
            f"and queued {self.outcome.requeued} tasks again."
        )

    async def _first_of(self, event: Awaitable[Any], watching: asyncio.Task[None]) -> None:
        """Wait for the event; if the watching ends first, say why."""
        waiting = asyncio.ensure_future(event)
        await asyncio.wait({waiting, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            waiting.cancel()
            watching.result()
            raise PoolError("the job ended before a third of it was done")


async def _eventually(question: Callable[[], Awaitable[bool]], patience_s: float, what: str) -> None:
    """Ask again, at least 20 ms apart, until the answer is yes."""
    until = time.monotonic() + patience_s
    while not await question():
        if time.monotonic() > until:
            raise PoolError(f"in {patience_s:g} s this did not happen: {what}")
        await asyncio.sleep(ASK_AGAIN_S)


def draw(options: Options, outcome: Outcome) -> tuple[Path, Path]:
    """Join the tiles, write the records, draw the time line; returns the two pictures."""
    picture, line = options.out / "fractal.png", options.out / "timeline.png"
    assemble.assemble(options.out / "tiles", picture, options.width, options.height, *options.tiles)
    records = [*story.completed_records(outcome.results), *outcome.marks]
    if outcome.kill is not None:
        records += story.lost_records(outcome.results, outcome.kill)
    lines = [json.dumps(record) for record in records]
    (options.out / "records.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    timeline.write_timeline(lines, line, "Which worker rendered which tile when")
    return picture, line


def table(options: Options, outcome: Outcome, info: m.JobInfo) -> Table:
    """The numbers of the run."""
    cpu_s = sum(r.cpu_s for r in outcome.results)
    rows = [
        ("tasks", f"{info.size}"),
        ("completed", f"{info.counts.completed}"),
        ("attempts", f"{info.size + info.reruns}"),
        ("lost with the killed worker and run again", f"{info.reruns}"),
        ("waiting at the killed worker and given to others", f"{outcome.requeued - info.reruns}"),
        ("kill -9 until the manager knew", f"{1000 * outcome.gone_s:.0f} ms"),
        ("wall time of the job", f"{outcome.took_s:.1f} s"),
        ("processor time of the tasks", f"{cpu_s:.1f} s"),
        ("tasks per second", f"{info.size / outcome.took_s:.1f}"),
    ]
    result = Table(show_header=False, title=f"{options.workers} workers, one killed, one fresh")
    result.add_column(justify="left")
    result.add_column(justify="right", style="bold")
    for row in rows:
        result.add_row(*row)
    return result


async def play(options: Options, pool: ProcessPool, console: Console) -> int:
    """The whole demo on a pool that is up; returns the exit code."""
    access = PoolAccess.load(pool.access_file)
    client = Client(access.manager)
    async with connected(client, access):
        demo = Demo(options, pool, client, console)
        info = await demo.run()
    console.print(table(options, demo.outcome, info))
    if info.state != "COMPLETED":
        failed = next(r for r in demo.outcome.results if r.state != "COMPLETED")
        console.print(f"The job ended as {info.state}: task {failed.task}: {failed.reason} {failed.err}")
        return 1
    for path in draw(options, demo.outcome):
        console.print(f"{path.name:<13} {path}", soft_wrap=True, highlight=False)
    return 0


def parse(arguments: list[str] | None) -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--width", type=int, default=3000)
    parser.add_argument("--height", type=int, default=2000)
    parser.add_argument("--tiles", type=parse_tiles, default=(30, 20), metavar="COLUMNSxROWS")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--out", type=Path, default=HERE / "out", help="directory for the pictures")
    return Options(**vars(parser.parse_args(arguments)))


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    options.out = options.out.resolve()
    console = Console()
    shutil.rmtree(options.out / "tiles", ignore_errors=True)
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="kestrel-demo-") as scratch:
        pool = ProcessPool(Path(scratch))
        try:
            pool.start()
            console.print("The pool is up: an XMPP server and a manager on this machine.")
            return asyncio.run(play(options, pool, console))
        except (PoolError, KestrelError, ValueError) as problem:
            console.print(f"demo: {problem}", markup=False)
            return 1
        except KeyboardInterrupt:
            console.print("interrupted")
            return 130
        finally:
            pool.stop()


if __name__ == "__main__":
    sys.exit(main())
