"""Puts pool, bag, strikes and checker together, within bounds of time. Called by `__main__`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chaos import report
from chaos.bag import Bag, BagPlan
from chaos.checker import Evidence, Verdict, check
from chaos.reading import read_proofs, read_store
from chaos.strikes import DECK, Chaos, ChaosPlan
from kestrel.client import Client
from kestrel.client.connect import connected
from realpool.pool import PoolPlan, RealPool
from realpool.processes import Hung, now

ANSWER_S_MAX = 15.0
"""The client repeats a request (a submission by its id) that was not answered for so long."""
RETURN_S_MAX = 60.0
"""After the end of the bag, how long workers may take to be back with what they spooled."""
EXIT_UNSOUND = 1
EXIT_HUNG = 2


@dataclass(frozen=True, slots=True)
class Options:
    """The command line."""

    bag: BagPlan
    pool: PoolPlan
    chaos: ChaosPlan
    seed: int
    calm: float
    stall_s: float
    limit_s: float
    keep: bool


def options_of(words: list[str] | None = None) -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python benchmarks/chaos", description=__doc__)
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--jobs", type=int, default=20, help="how many jobs the tasks are divided into")
    parser.add_argument("--slow-every", type=int, default=50, help="every so many tasks one takes a while")
    parser.add_argument("--slow-s", type=float, default=0.5, help="and so long")
    parser.add_argument("--store", choices=("postgres", "sqlite"), default="postgres")
    parser.add_argument("--managers", type=int, default=3, help="with sqlite: always one")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--slots", type=int, default=2, help="slots of each worker")
    parser.add_argument("--lease", default="", help="of the managers, e.g. 2s (default: theirs)")
    parser.add_argument("--every", type=float, default=4.0, help="seconds between strikes, on average")
    parser.add_argument("--long-stop", type=float, default=8.0, help="seconds of every third SIGSTOP")
    parser.add_argument("--only", default="", help="kinds of strikes that contain this, e.g. `kill active`")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--calm", type=float, default=0.1, help="share of the tasks for the run without chaos"
    )
    parser.add_argument("--stall", type=float, default=60.0, help="so long without a result: it hangs")
    parser.add_argument("--limit", type=float, default=1800.0, help="seconds for all of it")
    parser.add_argument("--keep", action="store_true", help="keep the scratch directory, with all logs")
    read = parser.parse_args(words)
    if not ChaosPlan(store=read.store, only=read.only).deck():
        parser.error(f"no kind of strike contains {read.only!r}; there are: {', '.join(DECK)}")
    return Options(
        bag=BagPlan(read.tasks, read.jobs, read.slow_every, read.slow_s),
        pool=PoolPlan(
            store=read.store,
            managers=read.managers if read.store == "postgres" else 1,
            workers=read.workers,
            slots=read.slots,
            lease=read.lease,
        ),
        chaos=ChaosPlan(every_s=read.every, long_stop_s=read.long_stop, store=read.store, only=read.only),
        seed=read.seed,
        calm=read.calm,
        stall_s=read.stall,
        limit_s=read.limit,
        keep=read.keep,
    )


def main(words: list[str] | None = None) -> int:
    """Run and print; exit code 0 if all that must be zero is, 1 if not, 2 if something hung."""
    options = options_of(words)
    scratch = Path(tempfile.mkdtemp(prefix="kestrel-chaos-"))
    try:
        return asyncio.run(_Trial(options, scratch).run())
    finally:
        if options.keep:
            print(f"\nkept: {scratch}")
        else:
            shutil.rmtree(scratch, ignore_errors=True)


class _Trial:
    def __init__(self, options: Options, scratch: Path) -> None:
        self.options = options
        self.scratch = scratch
        self.proofs = scratch / "proofs"
        self.proofs.mkdir()
        self.pool = RealPool(scratch, options.pool)
        self.chaos = Chaos(self.pool, options.chaos, options.seed)
        self.calm_rate = 0.0
        self.took_s = 0.0
        self.bag: Bag

    async def run(self) -> int:
        try:
            async with asyncio.timeout(self.options.limit_s):
                return await self._whole()
        except (Hung, TimeoutError) as problem:
            self._tell_what_hangs(problem)
            return EXIT_HUNG
        finally:
            await self.chaos.mend()
            await asyncio.to_thread(self.pool.end)

    async def _whole(self) -> int:
        began = now()
        await asyncio.to_thread(self.pool.start)
        plan = self.options.bag
        self._say(f"the pool is up after {now() - began:.1f} s: {self.options.pool}")
        access = self.pool.access
        client = Client(access.manager)
        client.answer_s_max = ANSWER_S_MAX
        async with connected(client, access):
            self.bag = Bag(client, self.proofs)
            calm = BagPlan(
                int(plan.tasks * self.options.calm), max(1, plan.jobs // 10), plan.every, plan.pause_s
            )
            async with self._watched(self.chaos.supervise()):
                if calm.tasks:
                    self.calm_rate = calm.tasks / await self.bag.run("calm", calm)
                    self._say(f"calm: {calm.tasks:,} tasks, {self.calm_rate:,.0f}/s; now the chaos")
                self.bag.sight.progress.clear()
                async with self._watched(self.chaos.run()):
                    self.took_s = await self.bag.run("bag", plan)
                self._say(f"chaos: {plan.tasks:,} tasks in {self.took_s:.1f} s")
                await self.chaos.mend()
                await self._all_are_back()
        await asyncio.to_thread(self.pool.end_workers_and_managers)
        return self._judge()

    @contextlib.asynccontextmanager
    async def _watched(self, *others: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
        """Run something beside the block; a stall of the bag, or an error there, ends the block."""
        block = asyncio.current_task()
        assert block is not None
        beside = [asyncio.create_task(other) for other in others]
        beside.append(asyncio.create_task(self._notice_a_stall()))
        broken: list[BaseException] = []

        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (problem := task.exception()) is not None:
                broken.append(problem)
                block.cancel()

        for task in beside:
            task.add_done_callback(ended)
        try:
            yield
        except asyncio.CancelledError:
            if broken:
                raise broken[0] from None
            raise
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)

    async def _notice_a_stall(self) -> None:
        began = now()
        while True:
            await asyncio.sleep(1)
            last = self.bag.sight.progress[-1] if self.bag.sight.progress else began
            if now() - max(last, began) > self.options.stall_s:
                raise Hung(f"no new result for {self.options.stall_s:g} s")

    async def _all_are_back(self) -> None:
        """Workers that were away deliver what they spooled: it must not count twice."""
        end = now() + RETURN_S_MAX
        while await asyncio.to_thread(self.pool.seen_workers) < self.options.pool.workers:
            if now() > end:
                raise Hung(f"not all workers are back {RETURN_S_MAX:g} s after the end")
            await asyncio.sleep(0.5)

    def _judge(self) -> int:
        proofs, torn = read_proofs(self.proofs)
        rows, ids = read_store(self.pool.place)
        sight = self.bag.sight
        evidence = Evidence(
            submitted=sight.submissions(),
            proofs=proofs,
            torn=torn,
            rows=rows,
            seen=sight.rows,
            ids_of_jobs=ids,
            strikes=self.chaos.strikes,
            progress=sight.progress,
        )
        verdict = check(evidence)
        self._print(verdict)
        return 0 if verdict.sound else EXIT_UNSOUND

    def _print(self, verdict: Verdict) -> None:
        print()
        print(report.verdict_table(verdict, self.took_s, self.options.bag.tasks, self.calm_rate))
        print()
        print(report.strike_table(verdict, self.chaos.strikes))
        print()
        refused = ", ".join(f"{n} {code}" for code, n in sorted(self.bag.sight.refused.items()))
        print(f"Requests of the client that were repeated: {refused or 'none'}.")
        print(report.deaths_text(self.chaos.deaths))
        for text in self.pool.stubborn:
            print(f"Had to be killed at the end: {text}")
        for strike in self.chaos.strikes if self.options.keep else ():
            print(f"strike at {strike.at:.2f} until {strike.until:.2f}: {strike.kind} ({strike.target})")
        print(f"Seed {self.options.seed}; a strike every {self.options.chaos.every_s:g} s on average.")
        for problem in verdict.problems:
            print(f"PROBLEM: {problem}")
        print("SOUND" if verdict.sound else "NOT SOUND")

    def _tell_what_hangs(self, problem: BaseException) -> None:
        text = str(problem) or f"all of it took more than {self.options.limit_s:g} s"
        print(f"\nHUNG: {text}\n")
        print(self.pool.describe())
        for strike in self.chaos.strikes[-10:]:
            print(f"strike: {strike}")
        print(report.deaths_text(self.chaos.deaths))
        if hasattr(self, "bag"):
            sight = self.bag.sight
            print(f"client: {len(sight.rows):,} results, repeated {dict(sight.refused)}")
            for name, (size, jobs) in sight.submitted.items():
                have = sum(row.job in jobs for row in sight.rows)
                if have < size:
                    print(f"  submission {name}: jobs {jobs}, {have} of {size} results")

    def _say(self, text: str) -> None:
        print(text, flush=True)
