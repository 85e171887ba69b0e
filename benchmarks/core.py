"""How fast the scheduler is, beside a plain loop measured in the same run.

    python benchmarks/core.py [--tasks 300000] [--workers 100]

Prints, for reading and (`--json`) for programs: task life-cycles per second (queued, handed out in
batches, reported in batches of 100, recorded), submission and cancellation of a million tasks with
their time and memory, and the time per event with few and with many idle workers, for jobs that name nobody
and for jobs that name their workers beside a thousand others that do. Exits with 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
import tracemalloc
from collections import deque

from kestrel.core import effects as fx
from kestrel.core import events as ev
from kestrel.core.addresses import Pattern
from kestrel.core.model import AttemptEnd, AttemptOutcome, JobTerms, SchedulerSettings, WorkerOffer
from kestrel.core.scheduler import Scheduler

MILLION = 1_000_000
REPORT_TASKS = 100


def loop_rate() -> float:
    """Turns per second of a plain loop that does a little of what schedulers do: the yardstick."""
    table: dict[int, int] = {}
    turns = 500_000
    began = time.perf_counter()
    for i in range(turns):
        table[i & 4095] = i
    return turns / (time.perf_counter() - began)


def life_cycles(tasks: int, workers: int) -> float:
    """Tasks per second from submission to the last record; making the events is included."""
    scheduler = Scheduler(SchedulerSettings(batch_max=REPORT_TASKS), epoch=1)
    now = 0.0
    joined = [ev.WorkerJoined(f"worker@pool/{i}", WorkerOffer(2)) for i in range(workers)]
    numbers = {join.worker: 0 for join in joined}
    scheduler.handle(joined, now)
    began = time.perf_counter()
    inbox = deque(scheduler.handle([ev.JobSubmitted(1, JobTerms("user"), tasks)], now))
    recorded = 0
    completed = AttemptEnd.COMPLETED
    while inbox:
        effect = inbox.popleft()
        if isinstance(effect, fx.AssignTasks):
            now += 0.001
            first = effect.attempt
            outcomes = [
                AttemptOutcome(1, task, number, completed, 0.001)
                for number, task in enumerate(effect.tasks, first)
            ]
            numbers[effect.worker] += 1
            report = ev.AttemptsReported(effect.worker, numbers[effect.worker], outcomes)
            for answer in scheduler.handle([report], now):
                if isinstance(answer, fx.RecordResult):
                    recorded += 1
                else:
                    inbox.append(answer)
    took_s = time.perf_counter() - began
    scheduler.check_invariants()
    if recorded != tasks:
        raise SystemExit(f"{recorded} of {tasks} tasks were recorded")
    return tasks / took_s


def submit_and_cancel() -> dict[str, float]:
    """A job of a million tasks: milliseconds to submit and to cancel it (best of 5), and its memory."""
    submit_ms, cancel_ms = [], []
    for _ in range(5):
        scheduler = Scheduler(SchedulerSettings(), epoch=1)
        began = time.perf_counter()
        scheduler.handle([ev.JobSubmitted(1, JobTerms("user"), MILLION)], 0.0)
        submitted = time.perf_counter()
        effects = scheduler.handle([ev.JobCancelled(1)], 1.0)
        cancelled = time.perf_counter()
        submit_ms.append((submitted - began) * 1e3)
        cancel_ms.append((cancelled - submitted) * 1e3)
        if fx.RecordCancelled(1, [(0, MILLION)], 1) not in effects:
            raise SystemExit("the cancellation was not recorded")
    scheduler = Scheduler(SchedulerSettings(), epoch=1)
    gc.collect()
    tracemalloc.start()
    scheduler.handle([ev.JobSubmitted(1, JobTerms("user"), MILLION)], 0.0)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return {
        "submit_ms": min(submit_ms),
        "cancel_ms": min(cancel_ms),
        "held_mb": held / 1e6,
        "peak_mb": peak / 1e6,
    }


def named_event_us(idle: int, rounds: int = 1000) -> float:
    """Microseconds from one more task of an open job, which names half of so many idle workers, to its end;
    beside a thousand open jobs that each name a few of them."""
    scheduler = Scheduler(SchedulerSettings(), epoch=1)
    scheduler.handle([ev.WorkerJoined(f"w{i}@pool/core{i % 2}", WorkerOffer(2)) for i in range(idle)], 0.0)
    for i in range(1000):
        few = (Pattern.parse(f"w{i}@pool"), Pattern.parse(f"w{i + 1}@pool/core0"))
        scheduler.handle([ev.JobSubmitted(i + 2, JobTerms("user@pool", workers=few), 0, True)], 0.0)
    half = (Pattern.parse("w*@pool/core1"),)
    scheduler.handle([ev.JobSubmitted(1, JobTerms("user@pool", workers=half), 0, True)], 0.0)
    best = float("inf")
    task = 0
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(rounds // 5):
            effects = scheduler.handle([ev.JobExtended(1, 1, False)], 1.0)
            given = next(e for e in effects if isinstance(e, fx.AssignTasks))
            outcome = AttemptOutcome(1, task, given.attempt, AttemptEnd.COMPLETED, 1.0)
            scheduler.handle([ev.AttemptsReported(given.worker, task + 1, [outcome])], 1.0)
            task += 1
        best = min(best, (time.perf_counter() - began) / (rounds // 5))
    return best * 1e6


def naming_ms(workers: int = 10_000) -> dict[str, float]:
    """Milliseconds to submit a job that names one account, or half of all by `*`, among so many workers."""
    scheduler = Scheduler(SchedulerSettings(), epoch=1)
    scheduler.handle([ev.WorkerJoined(f"w{i}@pool/core{i % 2}", WorkerOffer(2)) for i in range(workers)], 0.0)
    took: dict[str, float] = {}
    job = 0
    for name, text in (("one", "w{}@pool"), ("half", "w*@pool/*{}")):
        times = []
        for i in range(5):
            job += 1
            terms = JobTerms("user@pool", workers=(Pattern.parse(text.format(i % 2)),))
            began = time.perf_counter()
            scheduler.handle([ev.JobSubmitted(job, terms, 0, True)], 1.0)
            scheduler.handle([ev.JobCancelled(job)], 1.0)
            times.append(time.perf_counter() - began)
        took[f"naming_{name}_ms"] = min(times) * 1e3
    return took


def event_us(idle: int, rounds: int = 2000) -> float:
    """Microseconds per one-task job, from submission to its end, beside so many idle workers."""
    scheduler = Scheduler(SchedulerSettings(), epoch=1)
    scheduler.handle([ev.WorkerJoined(f"worker@pool/{i}", WorkerOffer(2)) for i in range(idle)], 0.0)
    terms = JobTerms("user")
    best = float("inf")
    job = 0
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(rounds // 5):
            job += 1
            effects = scheduler.handle([ev.JobSubmitted(job, terms, 1)], 1.0)
            given = next(e for e in effects if isinstance(e, fx.AssignTasks))
            outcome = AttemptOutcome(job, 0, given.attempt, AttemptEnd.COMPLETED, 1.0)
            scheduler.handle([ev.AttemptsReported(given.worker, job, [outcome])], 1.0)
            scheduler.forget(job)
        best = min(best, (time.perf_counter() - began) / (rounds // 5))
    return best * 1e6


def main() -> int:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    options.add_argument("--tasks", type=int, default=300_000)
    options.add_argument("--workers", type=int, default=100)
    options.add_argument("--json", action="store_true", help="print one JSON object")
    chosen = options.parse_args()
    loop, rate = 0.0, 0.0
    for _ in range(3):
        loop = max(loop, loop_rate())
        rate = max(rate, life_cycles(chosen.tasks, chosen.workers))
    few, many = event_us(10), event_us(10_000)
    named_few, named_many = named_event_us(1000), named_event_us(10_000)
    figures = {
        "life_cycles_per_s": rate,
        "loop_turns_per_s": loop,
        "loop_turns_per_life_cycle": loop / rate,
        **submit_and_cancel(),
        "event_us_10_idle": few,
        "event_us_10000_idle": many,
        "idle_ratio": many / few,
        "named_event_us_1000_idle": named_few,
        "named_event_us_10000_idle": named_many,
        "named_idle_ratio": named_many / named_few,
        **naming_ms(),
    }
    targets = {
        "life_cycles_per_s": rate >= 100_000,
        "submit_ms": figures["submit_ms"] <= 1.0,
        "peak_mb": figures["peak_mb"] <= 50.0,
        "idle_ratio": figures["idle_ratio"] <= 2.0,
        "named_idle_ratio": figures["named_idle_ratio"] <= 2.0,
    }
    if chosen.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            verdict = "" if name not in targets else "  met" if targets[name] else "  MISSED"
            print(f"{name:28} {value:14,.2f}{verdict}")
    return 0 if all(targets.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
