"""Many seeds on all cores: what became of each, in the order of the seeds.

Seeds are independent, so they are played in processes of their own, a few at a time; only verdicts come
back. Nothing is written to disk. Called by the command, by `make soak` and by the tests.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

from kestrel.sim.world import Outcome, run_seed

CHUNK = 5
"""Seeds that one process plays between two reports."""
AHEAD = 3
"""Chunks that wait for each process."""
STORY_LINES = 40
GC_THRESHOLD = 100_000
"""A world is a large heap full of cycles: looking for garbage less often is a seventh faster."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one seed, small enough to travel between processes."""

    seed: int
    ok: bool
    steps: int
    runs: int
    story: str = ""
    """Of a failing seed: what broke, and the end of the log."""
    struck: dict[str, int] = field(default_factory=dict)
    """Faults that struck, by name."""
    states: frozenset[str] = frozenset()
    """Ends of tasks that users saw."""
    lives: int = 0
    """Epoch of the last manager."""
    late: int = 0
    """Late results that the last manager met."""

    @property
    def replay(self) -> str:
        """The command that plays it again, with its log."""
        return f"python -m kestrel.sim --seed {self.seed} --verbose"

    @property
    def head(self) -> str:
        """The first line of its story."""
        return self.story.partition("\n")[0]


def verdict_of(outcome: Outcome) -> Verdict:
    """The part of an outcome that others need."""
    world = outcome.world
    manager = world.manager.manager
    return Verdict(
        seed=outcome.seed,
        ok=outcome.ok,
        steps=world.steps,
        runs=len(world.ledger.runs),
        story="" if outcome.ok else outcome.story(STORY_LINES),
        struck=dict(world.faults.struck),
        states=frozenset(r.state for user in world.users for plan in user.plans for r in plan.seen),
        lives=0 if manager is None else manager.epoch,
        late=0 if manager is None else manager.scheduler.strays().late,
    )


def play_all(seeds: Iterable[int], jobs: int | None = None) -> Generator[Verdict, None, None]:
    """Play these seeds (there may be no end of them) in `jobs` processes (None: one for each core).

    Verdicts come in the order of the seeds. Closing the iterator ends the processes.
    """
    jobs = jobs or os.cpu_count() or 1
    numbers = iter(seeds)
    chunks = iter(lambda: list(islice(numbers, CHUNK)), [])
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _begin)
    waiting: deque[Future[list[Verdict]]] = deque()
    try:
        for chunk in islice(chunks, jobs * AHEAD):
            waiting.append(pool.submit(play_chunk, chunk))
        while waiting:
            verdicts = waiting.popleft().result()
            for chunk in islice(chunks, 1):
                waiting.append(pool.submit(play_chunk, chunk))
            yield from verdicts
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def play_chunk(seeds: Iterable[int]) -> list[Verdict]:
    """Play these seeds one after another."""
    return [verdict_of(run_seed(seed)) for seed in seeds]


def _begin() -> None:
    """In each process: Ctrl-C is for the parent, which ends the others in order."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.set_threshold(GC_THRESHOLD, 50, 50)
