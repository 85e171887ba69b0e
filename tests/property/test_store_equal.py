"""Any sequence of writes leaves the same in memory and in SQLite: answers, content, counters, refusals.

The memory store is the model; SQLite gets its units in groups of chance, and is closed and opened again.
"""

from __future__ import annotations

import queue
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kestrel.core.effects import RecordCancelled, RecordJobEnded, RecordResult, RecordTrouble
from kestrel.core.model import JobState, TaskState
from kestrel.ports import (
    AddJob,
    AddTasks,
    CloseJob,
    CommitDone,
    CommitFailed,
    JobRecord,
    ReadParams,
    ReadResults,
    ReadTaskRange,
    ReadTaskResults,
    Store,
    StoreContent,
)
from kestrel.protocol import messages as m
from kestrel.store import MemoryStore, SqliteSettings, SqliteStore


class Loop:
    """Calls wait in a queue until the test runs them."""

    def __init__(self) -> None:
        self.calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def now(self) -> float:
        return 0.0

    def wall(self) -> float:
        return 77.0

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Any:
        self.calls.put(callback)


jobs = st.integers(1, 3)
tasks = st.integers(0, 24)
seqs = st.integers(1, 40)
words = st.lists(st.lists(st.text(max_size=3), max_size=2), max_size=6)
terminal = st.sampled_from([s for s in TaskState if s.terminal])
reports = st.none() | st.builds(
    m.AttemptReport,
    job=jobs,
    task=tasks,
    attempt=st.integers(1, 2**53),
    exit_code=st.none() | st.integers(0, 255),
    started=st.floats(0, 1e12),
    cpu_s=st.floats(0, 1e300),
    out=st.text(max_size=5),
    reason=st.text(max_size=3),
)


@st.composite
def add_job(draw: st.DrawFn) -> AddJob:
    params = draw(st.none() | words)
    record = JobRecord(
        job=draw(jobs),
        user=draw(st.sampled_from(["ann", "bob"])),
        submission=draw(st.sampled_from(["", "a", "b"])),
        message=draw(st.binary(max_size=4)),
        size=draw(st.integers(0, 25)) if params is None else len(params),
        open=draw(st.booleans()),
        submitted=draw(st.floats(0, 1e10)),
    )
    return AddJob(record, params)


ranges = st.lists(st.tuples(tasks, st.integers(0, 4)).map(lambda r: (r[0], r[0] + r[1])), max_size=3)
writes = st.one_of(
    add_job(),
    st.builds(AddTasks, jobs, st.integers(0, 25), words, st.booleans()),
    st.builds(CloseJob, jobs, st.booleans()),
    st.builds(RecordResult, jobs, tasks, seqs, terminal, st.integers(0, 9), st.text(max_size=3), reports),
    st.builds(RecordResult, st.just(1), tasks, seqs, terminal),
    st.builds(RecordTrouble, jobs, tasks, st.integers(0, 5), st.integers(0, 5)),
    st.builds(RecordCancelled, jobs, ranges, seqs),
    st.builds(RecordJobEnded, jobs, st.sampled_from([JobState.COMPLETED, JobState.FAILED])),
)
states = st.frozensets(st.sampled_from([s.name for s in TaskState]), max_size=3)
reads = st.one_of(
    st.builds(ReadParams, jobs, st.lists(tasks, max_size=4)),
    st.builds(ReadResults, jobs, st.integers(0, 30), st.integers(1, 9)),
    st.builds(ReadTaskResults, jobs, st.lists(tasks, max_size=6)),
    st.builds(ReadTaskRange, jobs, tasks, states, st.integers(1, 9)),
)
units = st.tuples(st.lists(writes, max_size=4), st.lists(reads, max_size=2))
lives = st.lists(st.tuples(st.lists(units, max_size=8), st.booleans()), min_size=1, max_size=3)


def run(store: Store, loop: Loop, life: list[Any], grouped: bool) -> list[CommitDone | CommitFailed]:
    outcomes: list[CommitDone | CommitFailed] = []
    for number, (unit_writes, unit_reads) in enumerate(life, 1):
        store.commit(unit_writes, unit_reads, outcomes.append)
        while not grouped and len(outcomes) < number:
            loop.calls.get(timeout=60)()
    while len(outcomes) < len(life):
        loop.calls.get(timeout=60)()
    return outcomes


def comparable(outcome: CommitDone | CommitFailed) -> Any:
    if isinstance(outcome, CommitFailed):
        return getattr(outcome.problem, "code", outcome.problem)
    return outcome.duplicates, list(outcome.answers)


def recount(path: Path) -> dict[int, tuple[m.TaskCounts, int]]:
    """The counters of every job, from its rows."""
    connection = sqlite3.connect(path)
    try:
        found = {}
        for (job,) in connection.execute("SELECT job FROM jobs").fetchall():
            counts = dict.fromkeys((s.name.lower() for s in TaskState if s.terminal), 0)
            last = 0
            for state, seq in connection.execute("SELECT state, seq FROM results WHERE job = ?", (job,)):
                counts[TaskState(state).name.lower()] += 1
                last = max(last, seq)
            for start, stop, seq in connection.execute(
                "SELECT first, stop, seq FROM cancelled WHERE job = ?", (job,)
            ):
                counts["cancelled"] += stop - start
                last = max(last, seq + stop - start - 1)
            found[job] = (m.TaskCounts(**counts), last)
        return found
    finally:
        connection.close()


def open_both(memory: Store, sqlite: Store) -> StoreContent:
    in_memory, on_disk = memory.open(lambda r: r.user), sqlite.open(lambda r: r.user)
    assert on_disk == in_memory
    return on_disk


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(lives)
def test_sqlite_does_what_memory_does(lives: list[tuple[list[Any], bool]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "store.db"
        memory_loop, sqlite_loop = Loop(), Loop()
        memory = MemoryStore(memory_loop)
        sqlite = SqliteStore(
            path,
            sqlite_loop.calls.put,
            durable=False,
            settings=SqliteSettings(params_cache_bytes_max=40),
            wall=sqlite_loop.wall,
        )
        setup = ([AddJob(JobRecord(1, "ann", "", b"", 20, False, 1.0))], [])
        for number, (life, grouped) in enumerate(lives):
            open_both(memory, sqlite)
            life = [setup, *life] if number == 0 else life
            expected = [comparable(o) for o in run(memory, memory_loop, life, grouped)]
            found = [comparable(o) for o in run(sqlite, sqlite_loop, life, grouped)]
            memory.close()
            sqlite.close()
            assert found == expected
        counted = recount(path)
        content = open_both(memory, sqlite)
        memory.close()
        sqlite.close()
        assert {r.job: (r.counts, r.last) for r in content.jobs} == counted
