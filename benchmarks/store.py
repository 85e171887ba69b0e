"""How fast the SQLite store takes results in, and how fast a manager starts from a big one.

Run: python benchmarks/store.py [--results N] [--open-results N]

Results arrive in units of 100, as a manager commits them. The yardstick is `executemany` of the same rows
(results and encoded reports) into a bare table by the same sqlite3 in this run, with a transaction for
each unit and with one for as many units as the store has in flight; and all of it again while another
thread keeps the interpreter busy, as a manager's event loop does.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from kestrel.core.effects import RecordResult
from kestrel.core.model import JobTerms, TaskState
from kestrel.ports import AddJob, AddTasks, CommitDone, CommitFailed, JobRecord, Read, ReadParams, Write
from kestrel.protocol import messages as m
from kestrel.store import SqliteSettings, SqliteStore
from kestrel.store.ends import task_result

UNIT = 100
EXTEND = 5_000
IN_FLIGHT = 64


def record(job: int, size: int, *, is_open: bool = False) -> JobRecord:
    return JobRecord(job, "ann@pool", "", b'{"type":"job","command":"true"}', size, is_open, 1.0)


def results(count: int, job: int = 1) -> list[RecordResult]:
    return [
        RecordResult(
            job,
            task,
            task + 1,
            TaskState.COMPLETED,
            (1 << 32) + task,
            f"worker@pool/{task % 40}",
            m.AttemptReport(
                job=job,
                task=task,
                attempt=(1 << 32) + task,
                started=1.7e9 + task / 1000,
                wall_s=0.123,
                cpu_s=0.1,
                memory_kib=9000,
                out="a line of output that says that all is well\n",
                out_bytes=44,
            ),
        )
        for task in range(count)
    ]


@contextmanager
def busy_thread(busy: bool) -> Iterator[None]:
    """A thread that computes all the time, if asked for."""
    stop = threading.Event()

    def compute() -> None:
        while not stop.is_set():
            sum(range(500))

    thread = threading.Thread(target=compute)
    if busy:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        if busy:
            thread.join()


def raw(path: Path, writes: Sequence[RecordResult], rows_each: int, *, busy: bool) -> float:
    """Rows a second of plain `executemany`, `rows_each` a transaction; rows are made in the same loop."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE bare (job, task, seq, state, body)")
    encode = msgspec.json.Encoder().encode
    with busy_thread(busy):
        begun = time.perf_counter()
        for at in range(0, len(writes), rows_each):
            rows = [
                (w.job, w.task, w.seq, w.state.value, encode(task_result(w)).decode())
                for w in writes[at : at + rows_each]
            ]
            connection.execute("BEGIN")
            connection.executemany("INSERT INTO bare VALUES (?, ?, ?, ?, ?)", rows)
            connection.execute("COMMIT")
        rate = len(writes) / (time.perf_counter() - begun)
    connection.close()
    return rate


async def drive(
    store: SqliteStore, units: Sequence[tuple[Sequence[Write], Sequence[Read]]], in_flight: int = IN_FLIGHT
) -> tuple[float, float]:
    """Commit the units, `in_flight` at a time → (seconds, longest time the event loop was held)."""
    ended = asyncio.get_running_loop().create_future()
    waiting = iter(units)
    left = len(units)
    held = 0.0

    def commit_next() -> None:
        unit = next(waiting, None)
        if unit is not None:
            store.commit(unit[0], unit[1], done)

    def done(outcome: CommitDone | CommitFailed) -> None:
        nonlocal left
        assert isinstance(outcome, CommitDone), outcome
        left -= 1
        commit_next()
        if left == 0:
            ended.set_result(None)

    async def feel_the_pulse() -> None:
        nonlocal held
        while not ended.done():
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            held = max(held, time.perf_counter() - before - 0.001)

    pulse = asyncio.create_task(feel_the_pulse())
    begun = time.perf_counter()
    for _ in range(in_flight):
        commit_next()
    await ended
    took = time.perf_counter() - begun
    await pulse
    return took, held


async def with_store(
    path: Path, use: Callable[[SqliteStore], object], *, durable: bool = True
) -> SqliteStore:
    loop = asyncio.get_running_loop()
    store = SqliteStore(path, loop.call_soon_threadsafe, durable=durable, settings=SqliteSettings())
    store.open(lambda _: JobTerms("ann@pool"))
    use(store)
    return store


async def take_results(
    path: Path, writes: Sequence[RecordResult], *, busy: bool = False, in_flight: int = IN_FLIGHT
) -> tuple[float, float]:
    store = await with_store(path, lambda s: None)
    await drive(store, [([AddJob(record(1, len(writes)))], [])])
    units = [(writes[at : at + UNIT], ()) for at in range(0, len(writes), UNIT)]
    with busy_thread(busy):
        took, held = await drive(store, units, in_flight)
    store.close()
    return len(writes) / took, held


async def submit(path: Path, count: int) -> tuple[float, float]:
    """Store the parameters of a big job, then read them as dispatch does → (seconds, seconds)."""
    store = await with_store(path, lambda s: None)
    await drive(store, [([AddJob(record(1, 0, is_open=True), [])], [])])
    adds = [
        ([AddTasks(1, at, [[f"file-{task}.dat"] for task in range(at, at + EXTEND)], False)], ())
        for at in range(0, count, EXTEND)
    ]
    took, _ = await drive(store, adds)
    reads = [((), [ReadParams(1, range(at, at + UNIT))]) for at in range(0, count, UNIT)]
    read_took, _ = await drive(store, reads)
    store.close()
    return took, read_took


async def big_open(path: Path, finished: int, queued: int) -> float:
    """Seconds to open a store with a job of so many finished and queued tasks."""
    store = await with_store(path, lambda s: None, durable=False)
    await drive(store, [([AddJob(record(1, finished + queued))], [])])
    writes = results(finished)
    await drive(store, [(writes[at : at + 1000], ()) for at in range(0, finished, 1000)])
    store.close()
    begun = time.perf_counter()
    content = store.open(lambda _: JobTerms("ann@pool"))
    took = time.perf_counter() - begun
    assert content.unfinished[0].states.count(TaskState.COMPLETED) == finished
    store.close()
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--results", type=int, default=200_000)
    parser.add_argument(
        "--busy-results", type=int, default=3_000, help="for the yardstick beside a busy thread"
    )
    parser.add_argument("--open-results", type=int, default=1_000_000)
    parser.add_argument("--dir", default=None, help="directory on the disk to be measured")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir) as name:
        place = Path(name)
        writes = results(options.results)
        gc.freeze()  # or the collector walks through the made-up results and holds the event loop
        for busy in (False, True):
            yard = writes[: options.busy_results] if busy else writes
            bare = raw(place / f"raw{busy}.db", yard, UNIT, busy=busy)
            grouped = raw(place / f"grouped{busy}.db", yard, UNIT * IN_FLIGHT, busy=busy)
            rate, held = asyncio.run(take_results(place / f"store{busy}.db", writes, busy=busy))
            print(
                f"{'busy interpreter' if busy else 'idle interpreter'}: store {rate:,.0f} results/s, "
                f"raw executemany {bare:,.0f} rows/s, ratio {rate / bare:.2f} "
                f"(raw in groups {grouped:,.0f}, ratio {rate / grouped:.2f}); "
                f"event loop held at most {held * 1000:.1f} ms"
            )
        # A manager that waits for one unit before it commits the next pays for one fsync a unit.
        rate, _ = asyncio.run(take_results(place / "one.db", writes[:50_000], in_flight=1))
        print(f"one unit of {UNIT} in flight at a time: {rate:,.0f} results/s")
        took, read_took = asyncio.run(submit(place / "params.db", options.open_results))
        print(
            f"{options.open_results:,} parameters: stored in {took:.2f} s, "
            f"read by {UNIT} in {read_took:.2f} s"
        )
        queued = options.open_results // 10
        took = asyncio.run(big_open(place / "big.db", options.open_results, queued))
        size_mb = os.path.getsize(place / "big.db") / 1e6
        print(
            f"open() of {options.open_results:,} finished + {queued:,} queued: "
            f"{took:.2f} s ({size_mb:.0f} MB)"
        )


if __name__ == "__main__":
    main()
