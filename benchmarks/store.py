"""How fast a store takes results in, and how fast a manager starts from a big one.

Run: python benchmarks/store.py [--results N] [--open-results N] [--postgres]

SQLite, or with `--postgres` PostgreSQL: on a private server, which is as durable as Debian's.

Results arrive in units of 100, as a manager commits them. The yardstick is `executemany` of the same rows
(results and encoded reports) into a bare table by the same sqlite3 in this run (by the same psycopg, and
COPY as well), with a transaction for each unit and with one for as many units as the store has in flight;
and all of it again while another thread keeps the interpreter busy, as a manager's event loop does.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import os
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "tools"))

import msgspec

from kestrel.core.effects import RecordResult
from kestrel.core.model import JobTerms, TaskState
from kestrel.ports import (
    AddJob,
    AddTasks,
    CommitDone,
    CommitFailed,
    JobRecord,
    Read,
    ReadParams,
    Store,
    Write,
)
from kestrel.protocol import messages as m
from kestrel.store.ends import task_result
from kestrel.store.places import make_store
from realpool.postgres import PrivatePostgres

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


def raw_postgres(
    dsn: str, writes: Sequence[RecordResult], rows_each: int, *, copy: bool, busy: bool = False
) -> float:
    """Rows a second of plain `executemany` or COPY, `rows_each` a transaction; rows are made in the loop."""
    import psycopg

    encode = msgspec.json.Encoder().encode
    with psycopg.connect(dsn) as connection, connection.cursor() as cursor, busy_thread(busy):
        cursor.execute("DROP TABLE IF EXISTS bare")
        cursor.execute("CREATE TABLE bare (job int8, task int8, seq int8, state int2, body text)")
        connection.commit()
        begun = time.perf_counter()
        for at in range(0, len(writes), rows_each):
            rows = [
                (w.job, w.task, w.seq, w.state.value, encode(task_result(w)).decode())
                for w in writes[at : at + rows_each]
            ]
            if copy:
                with cursor.copy("COPY bare FROM STDIN") as into:
                    for row in rows:
                        into.write_row(row)
            else:
                cursor.executemany("INSERT INTO bare VALUES (%s, %s, %s, %s, %s)", rows)
            connection.commit()
        return len(writes) / (time.perf_counter() - begun)


async def drive(
    store: Store, units: Sequence[tuple[Sequence[Write], Sequence[Read]]], in_flight: int = IN_FLIGHT
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


def opened(place: Path | str, *, durable: bool = True) -> Store:
    """The store in this place; call it on the event loop."""
    store = make_store(place, asyncio.get_running_loop().call_soon_threadsafe, durable=durable)
    store.open(lambda _: JobTerms("ann@pool"))
    return store


async def take_results(
    place: Path | str, writes: Sequence[RecordResult], *, busy: bool = False, in_flight: int = IN_FLIGHT
) -> tuple[float, float]:
    store = opened(place)
    await drive(store, [([AddJob(record(1, len(writes)))], [])])
    units = [(writes[at : at + UNIT], ()) for at in range(0, len(writes), UNIT)]
    with busy_thread(busy):
        took, held = await drive(store, units, in_flight)
    store.close()
    return len(writes) / took, held


async def submit(place: Path | str, count: int) -> tuple[float, float]:
    """Store the parameters of a big job, then read them as dispatch does → (seconds, seconds)."""
    store = opened(place)
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


async def big_open(place: Path | str, finished: int, queued: int) -> float:
    """Seconds to open a store with a job of so many finished and queued tasks."""
    store = opened(place, durable=False)
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


def on_sqlite(place: Path, writes: Sequence[RecordResult], busy_results: int) -> None:
    """Results into files in this directory."""
    for busy in (False, True):
        yard = writes[:busy_results] if busy else writes
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


def on_postgres(new_place: Callable[[], str], writes: Sequence[RecordResult], busy_results: int) -> None:
    """Results into databases of a server; each place is an empty one."""
    dsn = new_place()
    for busy in (False, True):
        yard = writes[:busy_results] if busy else writes[:50_000]
        bare = raw_postgres(dsn, yard, UNIT, copy=False, busy=busy)
        copied = raw_postgres(dsn, yard, UNIT, copy=True, busy=busy)
        grouped = raw_postgres(dsn, yard, UNIT * IN_FLIGHT, copy=True, busy=busy)
        rate, held = asyncio.run(take_results(new_place(), writes, busy=busy))
        print(
            f"{'busy interpreter' if busy else 'idle interpreter'}: store {rate:,.0f} results/s, "
            f"raw executemany {bare:,.0f} rows/s, ratio {rate / bare:.2f}, "
            f"raw COPY {copied:,.0f} rows/s, ratio {rate / copied:.2f} "
            f"(raw COPY in groups {grouped:,.0f}, ratio {rate / grouped:.2f}); "
            f"event loop held at most {held * 1000:.1f} ms"
        )
        # A manager that waits for one unit before it commits the next pays for one fsync a unit.
        rate, _ = asyncio.run(take_results(new_place(), writes[:20_000], busy=busy, in_flight=1))
        print(f"  one unit of {UNIT} in flight at a time: {rate:,.0f} results/s")


def big_ones(new_place: Callable[[], Path | str], count: int) -> None:
    """A big submission, and a big store that is opened."""
    took, read_took = asyncio.run(submit(new_place(), count))
    print(f"{count:,} parameters: stored in {took:.2f} s, read by {UNIT} in {read_took:.2f} s")
    place = new_place()
    took = asyncio.run(big_open(place, count, count // 10))
    size = f" ({os.path.getsize(place) / 1e6:.0f} MB)" if isinstance(place, Path) else ""
    print(f"open() of {count:,} finished + {count // 10:,} queued: {took:.2f} s{size}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--results", type=int, default=200_000)
    parser.add_argument(
        "--busy-results", type=int, default=3_000, help="for the yardstick beside a busy thread"
    )
    parser.add_argument("--open-results", type=int, default=1_000_000)
    parser.add_argument("--dir", default=None, help="directory on the disk to be measured (SQLite)")
    parser.add_argument("--postgres", action="store_true", help="PostgreSQL, on a private server")
    options = parser.parse_args()
    writes = results(options.results)
    gc.freeze()  # or the collector walks through the made-up results and holds the event loop
    numbers = itertools.count(1)
    print(f"load of the machine before: {os.getloadavg()[0]:.1f}")
    if options.postgres:
        with PrivatePostgres() as server:
            on_postgres(server.database, writes, options.busy_results)
            big_ones(server.database, options.open_results)
        return
    with tempfile.TemporaryDirectory(dir=options.dir) as name:
        place = Path(name)
        on_sqlite(place, writes, options.busy_results)
        big_ones(lambda: place / f"big{next(numbers)}.db", options.open_results)


if __name__ == "__main__":
    main()
