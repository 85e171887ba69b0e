"""What writes do to the tables of the PostgreSQL store: one `Transaction` at a time over many units.

Called by `kestrel.store.postgres_writer` on its thread only.

Statements are collected and travel together (`kestrel.store.postgres_session`), and results are gathered
over units and stored by one statement for thousands. What can be known without the server, the sizes of
jobs, is known from `Jobs`: nobody else writes while the epoch is ours.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import assert_never

import msgspec

from kestrel.core.effects import (
    RecordCancelled,
    RecordJobEnded,
    RecordResult,
    RecordTrouble,
    RecordWorker,
)
from kestrel.core.model import JobId, JobState, TaskState, WorkerId
from kestrel.ports import AddJob, AddTasks, CloseJob, DrainWorker, Write
from kestrel.store.ends import misuse, numbered, task_result
from kestrel.store.params import ParamChunks
from kestrel.store.postgres_jobs import Jobs, KnownJob
from kestrel.store.postgres_session import Row, Session, int_array, text_array, to_text

RESULTS_GATHERED_MAX = 8192
"""Results that wait for one another inside a transaction."""

_TERMINAL = tuple(s for s in TaskState if s.terminal)
_COLUMNS = tuple(s.name.lower() for s in _TERMINAL)
_LIVE = f"state IN ('{JobState.PENDING.value}', '{JobState.RUNNING.value}')"
_encode = msgspec.json.Encoder().encode

_GIVEN = """WITH given AS MATERIALIZED (
    SELECT * FROM unnest(%s::int8[], %s::int8[], %s::int8[], %s::int2[], %s::text[])
    WITH ORDINALITY AS g(job, task, seq, state, body, place))"""

# Rows come back for results that are not stored, because their tasks have ended before.
_INSERT_RESULTS = f"""{_GIVEN}, stored AS (
    INSERT INTO kestrel_results (job, task, seq, state, body)
    SELECT job, task, seq, state, body FROM given
    ON CONFLICT (job, task) DO NOTHING RETURNING job, task)
SELECT g.place FROM given g LEFT JOIN stored s ON s.job = g.job AND s.task = g.task WHERE s.job IS NULL"""

_INSERT_RESULTS_BESIDE_CANCELLED = f"""{_GIVEN}, stored AS (
    INSERT INTO kestrel_results (job, task, seq, state, body)
    SELECT job, task, seq, state, body FROM given g WHERE coalesce((
        SELECT c.stop FROM kestrel_cancelled c WHERE c.job = g.job AND c.first <= g.task
        ORDER BY c.first DESC LIMIT 1), 0) <= g.task
    ON CONFLICT (job, task) DO NOTHING RETURNING job, task)
SELECT g.place FROM given g LEFT JOIN stored s ON s.job = g.job AND s.task = g.task WHERE s.job IS NULL"""

_FIND_SEQ_CANCELLED = """
SELECT k.seq FROM unnest(%s::int8[], %s::int8[]) AS k(job, seq) WHERE (
    SELECT c.seq + c.stop - c.first FROM kestrel_cancelled c WHERE c.job = k.job AND c.seq <= k.seq
    ORDER BY c.seq DESC LIMIT 1) > k.seq LIMIT 1"""

_FIND_OVERLAP = """
SELECT r.first FROM unnest(%s::int8[], %s::int8[]) AS r(first, stop) WHERE EXISTS (
    SELECT 1 FROM kestrel_results t WHERE t.job = %s AND t.task >= r.first AND t.task < r.stop
) OR (
    SELECT c.stop FROM kestrel_cancelled c WHERE c.job = %s AND c.first < r.stop
    ORDER BY c.first DESC LIMIT 1) > r.first LIMIT 1"""

_FIND_SEQ_TAKEN = """
SELECT 1 WHERE EXISTS (SELECT 1 FROM kestrel_results WHERE job = %s AND seq >= %s AND seq < %s) OR (
    SELECT seq + stop - first FROM kestrel_cancelled WHERE job = %s AND seq < %s
    ORDER BY seq DESC LIMIT 1) > %s"""

_ADD_COUNTS = f"""
UPDATE kestrel_jobs AS j SET last = greatest(j.last, d.last),
    {", ".join(f"{column} = j.{column} + d.{column}" for column in _COLUMNS)}
FROM unnest(%s::int8[], %s::int8[], {", ".join(["%s::int8[]"] * len(_COLUMNS))})
    AS d(job, last, {", ".join(_COLUMNS)}) WHERE j.job = d.job"""


class _Delta:
    """What a transaction adds to the counters of one job."""

    __slots__ = ("counts", "last")

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()
        self.last = 0


class Transaction:
    """The writes of one transaction. Wants an open transaction; `finish` must be the last call.

    After any error the caller rolls back and drops this object.
    """

    def __init__(
        self,
        session: Session,
        params: ParamChunks,
        jobs: Jobs,
        wall: Callable[[], float],
        statement_bytes_max: int,
    ) -> None:
        self._session = session
        self._params = params
        self._jobs = jobs
        self._wall = wall
        self._statement_bytes_max = statement_bytes_max
        self._results: list[tuple[int, RecordResult]] = []
        self._troubles: dict[tuple[int, int], RecordTrouble] = {}
        self._workers: dict[WorkerId, bool] = {}
        self._drained: dict[WorkerId, bool] = {}
        self._deltas: dict[JobId, _Delta] = {}
        self._next_job = 0
        self.duplicates: Counter[int] = Counter()
        """Ignored results by place of their unit; complete after `finish`."""

    def write(self, place: int, writes: Sequence[Write]) -> None:
        """Carry out the writes of the unit in this place of the group, or gather them."""
        for write in writes:
            match write:
                case RecordResult():
                    self._check(write.job, write.task)
                    self._results.append((place, write))
                    if len(self._results) >= RESULTS_GATHERED_MAX:
                        self.flush()
                case RecordTrouble():
                    self._check(write.job, write.task)
                    self._troubles[write.job, write.task] = write
                case RecordCancelled():
                    self.flush()
                    self._cancel(write)
                case AddJob():
                    self._add_job(write)
                case AddTasks():
                    self._add_tasks(write)
                case CloseJob(job, cancelled):
                    self._jobs.get(job).open = False
                    self._session.send(
                        "UPDATE kestrel_jobs SET open = false, is_cancelled = is_cancelled OR %s"
                        " WHERE job = %s",
                        (cancelled, job),
                    )
                case RecordJobEnded(job, state):
                    self._jobs.get(job).open = False
                    self._session.send(
                        f"UPDATE kestrel_jobs SET open = false,"
                        f" finished = CASE WHEN {_LIVE} THEN %s ELSE finished END,"
                        f" state = CASE WHEN {_LIVE} THEN %s ELSE state END WHERE job = %s",
                        (self._wall(), state.value, job),
                    )
                case RecordWorker(worker, present):
                    self._workers[worker] = present
                case DrainWorker(worker, drained):
                    self._drained[worker] = drained
                case _:
                    assert_never(write)

    def flush(self) -> None:
        """Make the results that were gathered visible to statements that follow."""
        if not self._results:
            return
        gathered, self._results = self._results, []
        fresh: dict[tuple[int, int], tuple[int, RecordResult]] = {}
        for place, write in gathered:
            key = (write.job, write.task)
            if key in fresh:
                self.duplicates[place] += 1
            else:
                fresh[key] = (place, write)
        entries: list[tuple[int, RecordResult]] = []
        bodies: list[bytes] = []
        room = self._statement_bytes_max
        for place, write in fresh.values():
            body = _encode(task_result(write))
            room -= len(body)
            if room < 0 and bodies:
                self._store(entries, bodies)
                entries, bodies, room = [], [], self._statement_bytes_max - len(body)
            entries.append((place, write))
            bodies.append(body)
        self._store(entries, bodies)

    def finish(self) -> None:
        """Store what was gathered, and bring the counters up to date; the last statements are only sent."""
        self.flush()
        self._flush_troubles()
        for table, names in (("kestrel_workers", self._workers), ("kestrel_drained", self._drained)):
            self._flush_names(table, names)
        if self._next_job:
            self._session.send("UPDATE kestrel_meta SET next_job = greatest(next_job, %s)", (self._next_job,))
        self._session.flush()
        if self._deltas:
            deltas = self._deltas.values()
            self._session.send(
                _ADD_COUNTS,
                (
                    int_array(list(self._deltas)),
                    int_array([d.last for d in deltas]),
                    *(int_array([d.counts[s] for d in deltas]) for s in _TERMINAL),
                ),
            )

    # --- ends of tasks --------------------------------------------------------------------------------

    def _store(self, entries: Sequence[tuple[int, RecordResult]], bodies: Sequence[bytes]) -> None:
        """Insert results of tasks that differ; ignore those of tasks that have ended before."""
        writes = [write for _, write in entries]
        values = (
            int_array([w.job for w in writes]),
            int_array([w.task for w in writes]),
            int_array([w.seq for w in writes]),
            int_array([w.state.value for w in writes]),
            text_array(bodies),
        )
        if not any(self._jobs.get(job).cancelled for job in {w.job for w in writes}):
            self._session.send(_INSERT_RESULTS, values, lambda rows, _: self._count(entries, rows))
            return
        ignored = self._session.ask(_INSERT_RESULTS_BESIDE_CANCELLED, values)
        stored = self._count(entries, ignored)
        given = (int_array([w.job for w in stored]), int_array([w.seq for w in stored]))
        if self._session.ask(_FIND_SEQ_CANCELLED, given):
            raise misuse("a result got a number that a cancelled task of the same job has")

    def _count(
        self, entries: Sequence[tuple[int, RecordResult]], ignored: Sequence[Row]
    ) -> list[RecordResult]:
        """Count what was stored, and what was there before (numbers of entries, from 1) → the stored ones."""
        left_out = {number - 1 for (number,) in ignored}
        stored = []
        for number, (place, write) in enumerate(entries):
            if number in left_out:
                self.duplicates[place] += 1
                continue
            stored.append(write)
            delta = self._delta(write.job)
            delta.counts[write.state] += 1
            if write.seq > delta.last:
                delta.last = write.seq
        return stored

    def _cancel(self, write: RecordCancelled) -> None:
        job = write.job
        known = self._jobs.get(job)
        ranges = numbered(write.ranges, write.seq)
        if not ranges:
            return
        self._check(job, max(stop for _, stop, _ in ranges) - 1)
        total = sum(stop - first for first, stop, _ in ranges)
        end = write.seq + total
        firsts, stops, seqs = (int_array(column) for column in zip(*ranges, strict=True))

        def refuse_overlap(rows: list[Row], _: int) -> None:
            if rows:
                raise misuse(
                    f"job {job}: of the tasks cancelled from {rows[0][0]} on, some have ended before"
                )

        def refuse_number(rows: list[Row], _: int) -> None:
            if rows:
                raise misuse(f"job {job}: a number from {write.seq} on is used by another result")

        self._session.send(_FIND_OVERLAP, (firsts, stops, job, job), refuse_overlap)
        self._session.send(_FIND_SEQ_TAKEN, (job, write.seq, end, job, end, write.seq), refuse_number)
        self._session.flush()
        self._session.send(
            "INSERT INTO kestrel_cancelled (job, first, stop, seq)"
            " SELECT %s, * FROM unnest(%s::int8[], %s::int8[], %s::int8[])",
            (job, firsts, stops, seqs),
        )
        known.cancelled = True
        delta = self._delta(job)
        delta.counts[TaskState.CANCELLED] += total
        delta.last = max(delta.last, end - 1)

    def _flush_troubles(self) -> None:
        if not self._troubles:
            return
        latest = list(self._troubles.values())
        self._troubles = {}
        self._session.send(
            "INSERT INTO kestrel_troubles (job, task, failures, losses, given_out, counted, cancelling)"
            " SELECT * FROM unnest("
            " %s::int8[], %s::int8[], %s::int8[], %s::int8[], %s::bool[], %s::text[], %s::bool[])"
            " ON CONFLICT (job, task) DO UPDATE SET failures = excluded.failures, losses = excluded.losses,"
            " given_out = excluded.given_out, counted = excluded.counted, cancelling = excluded.cancelling",
            (
                int_array([t.job for t in latest]),
                int_array([t.task for t in latest]),
                int_array([t.failures for t in latest]),
                int_array([t.losses for t in latest]),
                [t.given_out for t in latest],
                text_array([_encode(t.counted) for t in latest]),
                [t.cancelling for t in latest],
            ),
        )

    # --- workers --------------------------------------------------------------------------------------

    def _flush_names(self, table: str, names: dict[WorkerId, bool]) -> None:
        there = [name for name, is_there in names.items() if is_there]
        gone = [name for name, is_there in names.items() if not is_there]
        if there:
            self._session.send(
                f"INSERT INTO {table} (key, worker) SELECT * FROM unnest(%s::bytea[], %s::text[])"
                " ON CONFLICT (key) DO NOTHING",
                ([_key(name) for name in there], text_array([to_text(name).encode() for name in there])),
            )
        if gone:
            self._session.send(
                f"DELETE FROM {table} WHERE key = ANY(%s::bytea[])", ([_key(name) for name in gone],)
            )
        names.clear()

    # --- jobs -----------------------------------------------------------------------------------------

    def _add_job(self, write: AddJob) -> None:
        record = write.record
        if write.params is not None and len(write.params) != record.size:
            raise misuse(f"job {record.job} of {record.size} tasks came with {len(write.params)} parameters")

        def refuse_second(_: list[Row], count: int) -> None:
            if count != 1:
                raise misuse(
                    f"job {record.job} of {record.user} exists already, or its submission id "
                    f"{record.submission!r} belongs to another job"
                )

        if record.job in self._jobs:
            refuse_second([], 0)
        self._jobs.add(record.job, KnownJob(record.size, record.open, False))
        self._session.send(
            "INSERT INTO kestrel_jobs (job, owner, submission, submission_key, message, size, open,"
            " submitted, state, finished) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
            " ON CONFLICT DO NOTHING",
            (
                record.job,
                to_text(record.user),
                to_text(record.submission),
                _key(record.user, record.submission) if record.submission else None,
                record.message,
                record.size,
                record.open,
                record.submitted,
                record.state.value,
                record.finished,
            ),
            refuse_second,
        )
        self._next_job = max(self._next_job, record.job + 1)
        self._params.append(record.job, 0, write.params or ())

    def _add_tasks(self, write: AddTasks) -> None:
        known = self._jobs.get(write.job)
        size = known.size
        if write.offset > size:
            raise misuse(f"job {write.job} has {size} tasks, but more were added from {write.offset} on")
        fresh = write.params[size - write.offset :]
        if fresh and not known.open:
            raise misuse(f"job {write.job} is closed, but tasks were added")
        self._params.append(write.job, size, fresh)
        known.size = size + len(fresh)
        known.open = known.open and not write.last
        self._session.send(
            "UPDATE kestrel_jobs SET size = %s, open = %s WHERE job = %s", (known.size, known.open, write.job)
        )

    def _check(self, job: JobId, task: int) -> None:
        if task >= self._jobs.get(job).size:
            raise misuse(f"job {job} has no task {task}, but something was recorded for it")

    def _delta(self, job: JobId) -> _Delta:
        delta = self._deltas.get(job)
        if delta is None:
            delta = self._deltas[job] = _Delta()
        return delta


def _key(*words: str) -> bytes:
    """A key of fixed length for texts of any length."""
    return hashlib.sha256(_encode(words)).digest()
