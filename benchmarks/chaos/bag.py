"""The submitting client of the chaos: a bag of short tasks, in several jobs, through thick and thin.

Each job is submitted with an id until an answer comes, and once more while it runs, as by a client that
missed the answer. Results are fetched as they come; the time of each page is the pool's progress.
Called by `chaos.run`, on its event loop.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from chaos.checker import Row, Submitted
from kestrel.client import Client
from kestrel.errors import KestrelError
from kestrel.protocol import messages as m
from realpool.processes import now

SCRIPT = Path(__file__).with_name("proof.sh")
AGAIN_S = 0.2
PAGE = 2000
OPEN_JOBS = 2
"""Jobs under way at once."""
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class BagPlan:
    """How many tasks, in how many jobs, how long."""

    tasks: int
    jobs: int = 20
    every: int = 50
    """Every so many tasks one takes a while …"""
    pause_s: float = 0.5
    """… this long."""


@dataclass(slots=True)
class Sight:
    """What the client has seen."""

    submitted: dict[str, tuple[int, list[int]]] = field(default_factory=dict)
    """Submission id → size, and the job of each answer."""
    rows: list[Row] = field(default_factory=list)
    progress: list[float] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    """Requests that were not answered with what was asked for, by code; each was repeated."""

    def submissions(self) -> list[Submitted]:
        return [Submitted(name, size, tuple(jobs)) for name, (size, jobs) in self.submitted.items()]


class Bag:
    """Submits and follows; `proofs` is the directory that tasks write into."""

    def __init__(self, client: Client, proofs: Path) -> None:
        self.sight = Sight()
        self._client = client
        self._proofs = proofs

    async def run(self, prefix: str, plan: BagPlan) -> float:
        """All of the bag, to its end; returns the seconds that it took."""
        began = now()
        size = math.ceil(plan.tasks / plan.jobs)
        places = asyncio.Semaphore(OPEN_JOBS)
        async with asyncio.TaskGroup() as group:
            for number, first in enumerate(range(0, plan.tasks, size)):
                await places.acquire()
                job = self._job(f"{prefix}-{number}", min(size, plan.tasks - first), plan)
                group.create_task(self._one(job)).add_done_callback(lambda _: places.release())
        return now() - began

    def _job(self, name: str, size: int, plan: BagPlan) -> m.Job:
        return m.Job(
            command=["sh", str(SCRIPT), str(plan.every), f"{plan.pause_s:g}"],
            id=name,
            name=name,
            queue=size,
            append_index=False,
            env={"PROOFS": str(self._proofs)},
        )

    async def _one(self, job: m.Job) -> None:
        assert job.queue is not None
        answers: list[int] = []
        self.sight.submitted[job.id] = (job.queue, answers)
        answers.append((await self._again(lambda: self._client.submit(job))).job)
        following = asyncio.create_task(self._follow(answers[0]))
        answers.append((await self._again(lambda: self._client.submit(job))).job)
        await following

    async def _follow(self, job: int) -> None:
        after, done = 0, False
        while not done:
            asked = m.Results(job=job, after=after, limit=PAGE, wait=True)
            page = await self._again(lambda asked=asked: self._client.request(asked, m.ResultPage))  # type: ignore[misc]
            if page.results:
                self.sight.progress.append(now())
            for seq, each in enumerate(page.results, start=after + 1):
                self.sight.rows.append(Row(job, each.task, seq, each.state, each.attempt, each.worker))
            after, done = page.last, page.done

    async def _again(self, ask: Callable[[], Awaitable[_T]]) -> _T:
        """Repeat a request until it is answered; whoever calls bounds the time."""
        while True:
            try:
                return await ask()
            except KestrelError as problem:
                self.sight.refused[problem.code] += 1
                await asyncio.sleep(AGAIN_S)
