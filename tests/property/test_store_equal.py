"""Any sequence of writes leaves the same in every store: answers, content, counters, refusals.

The memory store is the model; the others get their units in groups of chance, and are closed and
opened again.
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

import parts.postgres
from kestrel.core.effects import RecordCancelled, RecordJobEnded, RecordResult, RecordTrouble, RecordWorker
from kestrel.core.model import JobState, TaskState
from kestrel.ports import (
    AddJob,
    AddTasks,
    CloseJob,
    CommitDone,
    CommitFailed,
    DrainWorker,
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


names = st.sampled_from(["a", "b", "c", "", "ünï@pool/'✓\""])
ranges = st.lists(st.tuples(tasks, st.integers(0, 4)).map(lambda r: (r[0], r[0] + r[1])), max_size=3)
writes = st.one_of(
    add_job(),
    st.builds(AddTasks, jobs, st.integers(0, 25), words, st.booleans()),
    st.builds(CloseJob, jobs, st.booleans()),
    st.builds(RecordResult, jobs, tasks, seqs, terminal, st.integers(0, 9), st.text(max_size=3), reports),
    st.builds(RecordResult, st.just(1), tasks, seqs, terminal),
    st.builds(
        RecordTrouble,
        jobs,
        tasks,
        st.integers(0, 5),
        st.integers(0, 5),
        st.booleans(),
        st.lists(st.integers(1, 2**53), max_size=3).map(tuple),
        st.booleans(),
    ),
    st.builds(RecordCancelled, jobs, ranges, seqs),
    st.builds(RecordJobEnded, jobs, st.sampled_from([JobState.COMPLETED, JobState.FAILED])),
    st.builds(RecordWorker, names, st.booleans()),
    st.builds(DrainWorker, names, st.booleans()),
)
states = st.frozensets(st.sampled_from([s.name for s in TaskState]), max_size=3)
reads = st.one_of(
    st.builds(ReadParams, jobs, st.lists(tasks, max_size=4)),
    st.builds(ReadResults, jobs, st.integers(0, 30), st.integers(1, 9)),
    st.builds(ReadTaskResults, jobs, st.lists(tasks, max_size=6)),
    st.builds(ReadTaskRange, jobs, tasks, states, st.integers(1, 9)),
)
chances = st.integers(0, 9)
"""What number a unit gets; see `numbered`."""
units = st.tuples(st.lists(writes, max_size=4), st.lists(reads, max_size=2), chances)
lives = st.lists(st.tuples(st.lists(units, max_size=8), st.booleans(), st.booleans()), min_size=1, max_size=3)
"""Units; whether they come in groups; whether they have numbers (then one refusal stops those after it)."""


def run(store: Store, loop: Loop, life: list[Any], grouped: bool) -> list[CommitDone | CommitFailed]:
    outcomes: list[CommitDone | CommitFailed] = []
    for number, (unit_writes, unit_reads, unit) in enumerate(life, 1):
        store.commit(unit_writes, unit_reads, outcomes.append, unit=unit)
        while not grouped and len(outcomes) < number:
            loop.calls.get(timeout=60)()
    while len(outcomes) < len(life):
        loop.calls.get(timeout=60)()
    return outcomes


def numbered(life: list[Any]) -> list[Any]:
    """The units with numbers as a manager gives them, or nearly: some come again, too early, or without."""
    found = []
    last = 0
    for unit_writes, unit_reads, chance in life:
        unit = {0: 0, 1: max(1, last - 1), 2: last, 3: last + 2}.get(chance, last + 1)
        last = last + 1 if chance > 3 else last
        found.append((unit_writes, unit_reads, unit))
    return found


def comparable(outcome: CommitDone | CommitFailed) -> Any:
    if isinstance(outcome, CommitFailed):
        return getattr(outcome.problem, "code", outcome.problem)
    return outcome.duplicates, list(outcome.answers)


def recount(
    query: Callable[[str], list[tuple[Any, ...]]], prefix: str
) -> dict[int, tuple[m.TaskCounts, int]]:
    """The counters of every job, from its rows."""
    found = {}
    for (job,) in query(f"SELECT job FROM {prefix}jobs"):
        counts = dict.fromkeys((s.name.lower() for s in TaskState if s.terminal), 0)
        last = 0
        for state, seq in query(f"SELECT state, seq FROM {prefix}results WHERE job = {job}"):
            counts[TaskState(state).name.lower()] += 1
            last = max(last, seq)
        for start, stop, seq in query(f"SELECT first, stop, seq FROM {prefix}cancelled WHERE job = {job}"):
            counts["cancelled"] += stop - start
            last = max(last, seq + stop - start - 1)
        found[job] = (m.TaskCounts(**counts), last)
    return found


def open_both(memory: Store, other: Store) -> StoreContent:
    in_memory, kept = memory.open(lambda r: r.user), other.open(lambda r: r.user)
    assert kept == in_memory
    return kept


def compare(lives: list[tuple[list[Any], bool, bool]], other: Store, other_loop: Loop) -> StoreContent:
    """Live these lives in memory and in the other store → what is there in the end."""
    memory_loop = Loop()
    memory = MemoryStore(memory_loop)
    setup = ([AddJob(JobRecord(1, "ann", "", b"", 20, False, 1.0))], [], 9)
    for number, (life, grouped, with_numbers) in enumerate(lives):
        open_both(memory, other)
        life = [setup, *life] if number == 0 else life
        life = numbered(life) if with_numbers else [(*unit[:2], 0) for unit in life]
        expected = [comparable(o) for o in run(memory, memory_loop, life, grouped)]
        found = [comparable(o) for o in run(other, other_loop, life, grouped)]
        memory.close()
        other.close()
        assert found == expected
    content = open_both(memory, other)
    memory.close()
    other.close()
    return content


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(lives)
def test_sqlite_does_what_memory_does(lives: list[tuple[list[Any], bool, bool]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "store.db"
        loop = Loop()
        content = compare(
            lives,
            SqliteStore(
                path,
                loop.calls.put,
                durable=False,
                settings=SqliteSettings(params_cache_bytes_max=40),
                wall=loop.wall,
            ),
            loop,
        )
        connection = sqlite3.connect(path)
        counted = recount(lambda query: connection.execute(query).fetchall(), "")
        connection.close()
        assert {r.job: (r.counts, r.last) for r in content.jobs} == counted


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(lives)
def test_postgres_does_what_memory_does(lives: list[tuple[list[Any], bool, bool]]) -> None:
    server = parts.postgres.shared()
    from kestrel.store.postgres import PostgresSettings, PostgresStore

    with server.scratch_place() as place:
        loop = Loop()
        content = compare(
            lives,
            PostgresStore(
                place,
                loop.calls.put,
                settings=PostgresSettings(
                    params_cache_bytes_max=40,
                    jobs_cached_max=2,
                    statement_bytes_max=250,
                    states_read_at_once=10,
                ),
                wall=loop.wall,
            ),
            loop,
        )
        counted = recount(lambda query: server.execute(query, place), "kestrel_")
        assert {r.job: (r.counts, r.last) for r in content.jobs} == counted
