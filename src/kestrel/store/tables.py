"""What writes do to the tables of the SQLite store: one `Transaction` at a time over many units.

Called by `kestrel.store.sqlite` on its writer thread only.

Every statement gives the interpreter's lock away and must win it back; while the event loop is busy that
costs up to 5 ms each time, whatever the statement does. So nothing here runs once per row: results are
gathered over units and stored by statements of up to 1,024 rows (`executemany` is once per row inside;
beside a busy thread it stored 770 rows/s where one statement of many rows stored 100,000).
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain
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
from kestrel.store.schema import SEQ_BITS

ROWS_PER_STATEMENT_MAX = 1024
"""Rows in one INSERT; statements come in powers of two up to this, so that few shapes are prepared."""
RESULTS_GATHERED_MAX = 4096
"""Results that wait for one another inside a transaction."""

_TERMINAL = tuple(s for s in TaskState if s.terminal)
_COLUMNS = tuple(s.name.lower() for s in _TERMINAL)
_encode = msgspec.json.Encoder().encode

_FIND_ENDED = """
SELECT k.value FROM json_each(?1) AS k WHERE EXISTS (
    SELECT 1 FROM results WHERE job = (k.value >> 32) AND task = (k.value & 4294967295)
) OR (
    SELECT stop FROM cancelled WHERE job = (k.value >> 32) AND first <= (k.value & 4294967295)
    ORDER BY first DESC LIMIT 1
) > (k.value & 4294967295)"""

_FIND_OVERLAP = """
SELECT json_extract(k.value, '$[0]') FROM json_each(?2) AS k WHERE EXISTS (
    SELECT 1 FROM results WHERE job = ?1
        AND task >= json_extract(k.value, '$[0]') AND task < json_extract(k.value, '$[1]')
) OR (
    SELECT stop FROM cancelled WHERE job = ?1 AND first < json_extract(k.value, '$[1]')
    ORDER BY first DESC LIMIT 1
) > json_extract(k.value, '$[0]') LIMIT 1"""

_FIND_SEQ_TAKEN = """
SELECT 1 WHERE EXISTS (SELECT 1 FROM reports WHERE position >= ?1 << 32 | ?2 AND position < ?1 << 32 | ?3)
    OR (
        SELECT seq + stop - first FROM cancelled WHERE job = ?1 AND seq < ?3 ORDER BY seq DESC LIMIT 1
    ) > ?2"""

_FIND_SEQ_CANCELLED = """
SELECT k.value FROM json_each(?1) AS k WHERE (
    SELECT seq + stop - first FROM cancelled WHERE job = (k.value >> 32) AND seq <= (k.value & 4294967295)
    ORDER BY seq DESC LIMIT 1
) > (k.value & 4294967295) LIMIT 1"""

_ADD_COUNTS = f"""
UPDATE jobs SET last = max(last, ?), {", ".join(f"{column} = {column} + ?" for column in _COLUMNS)}
WHERE job = ? AND size > ?"""


class RowWriter:
    """INSERTs of many rows in few statements."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._variables_max = connection.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER)

    def insert(self, head: str, rows: Sequence[Sequence[object]]) -> None:
        """Run `head` VALUES … with these rows, in their order."""
        if not rows:
            return
        width = len(rows[0])
        size = ROWS_PER_STATEMENT_MAX
        while size * width > self._variables_max:
            size //= 2
        mark = "(" + ",".join("?" * width) + ")"
        done = 0
        while done < len(rows):
            while size > len(rows) - done:
                size //= 2
            values = list(chain.from_iterable(rows[done : done + size]))
            self._connection.execute(f"{head} VALUES {','.join([mark] * size)}", values)
            done += size


class SqliteParams(ParamChunks):
    """The parameters of tasks in a SQLite file."""

    def __init__(self, connection: sqlite3.Connection, rows: RowWriter, cache_bytes_max: int) -> None:
        super().__init__(cache_bytes_max)
        self._connection = connection
        self._rows = rows

    def _fetch(self, job: int, numbers: Sequence[int]) -> list[tuple[int, bytes]]:
        return self._connection.execute(
            "SELECT chunk, body FROM params WHERE job = ? AND chunk IN (SELECT value FROM json_each(?))",
            (job, _encode(numbers).decode()),
        ).fetchall()

    def _save(self, rows: Sequence[tuple[int, int, bytes]]) -> None:
        self._rows.insert("INSERT OR REPLACE INTO params (job, chunk, body)", rows)


class _Delta:
    """What a transaction adds to the counters of one job."""

    __slots__ = ("counts", "last", "task_max")

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()
        self.last = 0
        self.task_max = -1


class Transaction:
    """The writes of one transaction. Wants an open transaction; `finish` must be the last call.

    After any error the caller rolls back and drops this object.
    """

    def __init__(
        self, connection: sqlite3.Connection, params: ParamChunks, rows: RowWriter, wall: Callable[[], float]
    ) -> None:
        self._connection = connection
        self._params = params
        self._rows = rows
        self._wall = wall
        self._results: list[tuple[int, RecordResult]] = []
        self._troubles: list[RecordTrouble] = []
        self._workers: dict[WorkerId, bool] = {}
        self._drained: dict[WorkerId, bool] = {}
        self._deltas: dict[JobId, _Delta] = {}
        self.duplicates: Counter[int] = Counter()
        """Ignored results by number of their unit; complete after `flush`."""

    def write(self, unit: int, writes: Sequence[Write]) -> None:
        """Carry out the writes of unit number `unit`, or gather them."""
        for write in writes:
            match write:
                case RecordResult():
                    self._results.append((unit, write))
                    if len(self._results) >= RESULTS_GATHERED_MAX:
                        self._flush_results()
                case RecordTrouble():
                    self._troubles.append(write)
                case RecordCancelled():
                    self._flush_results()
                    self._cancel(write)
                case AddJob():
                    self._add_job(write)
                case AddTasks():
                    self._add_tasks(write)
                case CloseJob(job, cancelled):
                    self._change(
                        job,
                        "UPDATE jobs SET open = 0, is_cancelled = max(is_cancelled, ?) WHERE job = ?",
                        (cancelled, job),
                    )
                case RecordJobEnded():
                    self._end_job(write)
                case RecordWorker(worker, present):
                    self._workers[worker] = present
                case DrainWorker(worker, drained):
                    self._drained[worker] = drained
                case _:
                    assert_never(write)

    def flush(self) -> None:
        """Make what was gathered visible to reads."""
        self._flush_results()
        self._flush_troubles()

    def finish(self) -> None:
        """Flush, and bring the counters of the jobs up to date."""
        self.flush()
        self._put_names("workers", self._workers)
        self._put_names("drained", self._drained)
        for job, delta in self._deltas.items():
            counts = [delta.counts[s] for s in _TERMINAL]
            changed = self._connection.execute(_ADD_COUNTS, (delta.last, *counts, job, delta.task_max))
            if changed.rowcount != 1:
                raise misuse(f"job {job} has no task {delta.task_max}, but something was recorded for it")

    # --- ends of tasks --------------------------------------------------------------------------------

    def _flush_results(self) -> None:
        if not self._results:
            return
        fresh: dict[int, RecordResult] = {}
        for unit, write in self._results:
            key = write.job << SEQ_BITS | write.task
            if key in fresh:
                self.duplicates[unit] += 1
            else:
                fresh[key] = write
        keys = _encode(list(fresh)).decode()
        ended = {key for (key,) in self._connection.execute(_FIND_ENDED, (keys,)).fetchall()}
        if ended:
            for unit, write in self._results:
                key = write.job << SEQ_BITS | write.task
                if key in ended and fresh.get(key) is write:
                    del fresh[key]
                    self.duplicates[unit] += 1
        self._results.clear()
        self._insert_results(list(fresh.values()))

    def _insert_results(self, writes: Sequence[RecordResult]) -> None:
        places, reports = [], []
        for write in writes:
            position = write.job << SEQ_BITS | write.seq
            places.append((write.job, write.task, write.seq, write.state.value))
            reports.append((position, _encode(task_result(write)).decode()))
            delta = self._delta(write.job, write.task)
            delta.counts[write.state] += 1
            if write.seq > delta.last:
                delta.last = write.seq
        positions = _encode([position for position, _ in reports]).decode()
        if self._connection.execute(_FIND_SEQ_CANCELLED, (positions,)).fetchone():
            raise misuse("a result got a number that a cancelled task of the same job has")
        self._rows.insert("INSERT INTO results (job, task, seq, state)", places)
        try:
            self._rows.insert("INSERT INTO reports (position, body)", reports)
        except sqlite3.IntegrityError as problem:
            raise misuse("two results of a job have the same number") from problem

    def _cancel(self, write: RecordCancelled) -> None:
        ranges = numbered(write.ranges, write.seq)
        delta = self._delta(write.job, max((stop for _, stop, _ in ranges), default=0) - 1)
        if not ranges:
            return
        total = sum(stop - first for first, stop, _ in ranges)
        text = _encode(ranges).decode()
        overlap = self._connection.execute(_FIND_OVERLAP, (write.job, text)).fetchone()
        if overlap:
            raise misuse(
                f"job {write.job}: of the tasks cancelled from {overlap[0]} on, some have ended before"
            )
        stop_seq = write.seq + total
        if self._connection.execute(_FIND_SEQ_TAKEN, (write.job, write.seq, stop_seq)).fetchone():
            raise misuse(f"job {write.job}: a number from {write.seq} on is used by another result")
        self._connection.execute(
            "INSERT INTO cancelled (job, first, stop, seq) SELECT ?1, json_extract(value, '$[0]'),"
            " json_extract(value, '$[1]'), json_extract(value, '$[2]') FROM json_each(?2)",
            (write.job, text),
        )
        delta.counts[TaskState.CANCELLED] += total
        delta.last = max(delta.last, stop_seq - 1)

    def _flush_troubles(self) -> None:
        if not self._troubles:
            return
        latest = {
            (t.job, t.task): (
                t.job,
                t.task,
                t.failures,
                t.losses,
                t.given_out,
                _encode(t.counted).decode() if t.counted else "[]",
                t.cancelling,
            )
            for t in self._troubles
        }
        self._troubles.clear()
        for job, task in latest:
            self._delta(job, task)
        self._rows.insert(
            "INSERT OR REPLACE INTO troubles (job, task, failures, losses, given_out, counted, cancelling)",
            list(latest.values()),
        )

    # --- workers --------------------------------------------------------------------------------------

    def _put_names(self, table: str, names: dict[WorkerId, bool]) -> None:
        """What was said last of each name counts."""
        if not names:
            return
        self._rows.insert(
            f"INSERT OR IGNORE INTO {table} (worker)", [(name,) for name, there in names.items() if there]
        )
        gone = [name for name, there in names.items() if not there]
        if gone:
            self._connection.execute(
                f"DELETE FROM {table} WHERE worker IN (SELECT value FROM json_each(?))",
                (_encode(gone).decode(),),
            )

    # --- jobs -----------------------------------------------------------------------------------------

    def _add_job(self, write: AddJob) -> None:
        record = write.record
        self._check_recorded(record.job, -1)
        if write.params is not None and len(write.params) != record.size:
            raise misuse(f"job {record.job} of {record.size} tasks came with {len(write.params)} parameters")
        try:
            self._connection.execute(
                "INSERT INTO jobs (job, user, submission, message, size, open, submitted, state, finished)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    record.job,
                    record.user,
                    record.submission,
                    record.message,
                    record.size,
                    record.open,
                    record.submitted,
                    record.state.value,
                    record.finished,
                ),
            )
        except sqlite3.IntegrityError as problem:
            raise misuse(
                f"job {record.job} of {record.user} exists already, or its submission id "
                f"{record.submission!r} belongs to another job"
            ) from problem
        self._connection.execute("UPDATE meta SET next_job = max(next_job, ?)", (record.job + 1,))
        self._params.append(record.job, 0, write.params or ())

    def _add_tasks(self, write: AddTasks) -> None:
        row = self._connection.execute("SELECT size, open FROM jobs WHERE job = ?", (write.job,)).fetchone()
        if row is None:
            raise unknown_job(write.job)
        size, is_open = row
        self._check_recorded(write.job, size)
        if write.offset > size:
            raise misuse(f"job {write.job} has {size} tasks, but more were added from {write.offset} on")
        fresh = write.params[size - write.offset :]
        if fresh and not is_open:
            raise misuse(f"job {write.job} is closed, but tasks were added")
        self._params.append(write.job, size, fresh)
        self._connection.execute(
            "UPDATE jobs SET size = ?, open = ? WHERE job = ?",
            (size + len(fresh), bool(is_open and not write.last), write.job),
        )

    def _end_job(self, write: RecordJobEnded) -> None:
        live = (JobState.PENDING.value, JobState.RUNNING.value)
        self._change(
            write.job,
            "UPDATE jobs SET open = 0, finished = CASE WHEN state IN (?, ?) THEN ? ELSE finished END,"
            " state = CASE WHEN state IN (?, ?) THEN ? ELSE state END WHERE job = ?",
            (*live, self._wall(), *live, write.state.value, write.job),
        )

    def _change(self, job: JobId, statement: str, values: Sequence[object]) -> None:
        if self._connection.execute(statement, values).rowcount != 1:
            raise unknown_job(job)

    def _check_recorded(self, job: JobId, size: int) -> None:
        """Before a job grows beyond `size` tasks (-1: is added): nothing may have been recorded for more."""
        self.flush()
        delta = self._deltas.get(job)
        if delta is not None and delta.task_max >= size:
            raise misuse(
                f"something was recorded for job {job} and its tasks up to {delta.task_max} too early"
            )

    def _delta(self, job: JobId, task: int) -> _Delta:
        delta = self._deltas.get(job)
        if delta is None:
            delta = self._deltas[job] = _Delta()
        if task > delta.task_max:
            delta.task_max = task
        return delta


def unknown_job(job: JobId) -> Exception:
    """The error for a job that was never added."""
    return misuse(f"the store knows no job {job}")
