"""What reads find in the tables of the SQLite store, and what a manager finds when it starts.

Called by `kestrel.store.sqlite` on its writer thread. Pages of results are glued together inside SQLite and
come back in one step, for the reason told in `kestrel.store.tables`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, assert_never

import msgspec

from kestrel.core.model import JobId, JobState, RestoredJob, TaskState, Trouble, WorkerId
from kestrel.ports import (
    JobRecord,
    Read,
    ReadParams,
    ReadResults,
    ReadTaskRange,
    ReadTaskResults,
    StoreContent,
)
from kestrel.protocol import messages as m
from kestrel.store.ends import Answer, cancelled_result, misuse
from kestrel.store.params import ParamChunks
from kestrel.store.schema import SEQ_BITS
from kestrel.store.tables import unknown_job

ROWS_FETCHED_AT_ONCE = 10_000

_SEQ_MAX = (1 << SEQ_BITS) - 1

_encode = msgspec.json.Encoder().encode
_decode_page = msgspec.json.Decoder(list[m.TaskResult]).decode
_decode_seqs = msgspec.json.Decoder(list[int]).decode
_decode_attempts = msgspec.json.Decoder(tuple[int, ...]).decode

_GLUE = "SELECT '[' || group_concat(seq) || ']', '[' || group_concat(body) || ']' FROM "
_JOINED = "results AS r JOIN reports AS p ON p.position = (r.job << 32 | r.seq)"


class Reader:
    """Answers reads; sees what the open transaction has written."""

    def __init__(self, connection: sqlite3.Connection, params: ParamChunks) -> None:
        self._connection = connection
        self._params = params

    def answer(self, read: Read) -> Any:
        """The answer as `kestrel.ports` describes it; raises `StoreError` for jobs and tasks that are not."""
        row = self._connection.execute("SELECT size FROM jobs WHERE job = ?", (read.job,)).fetchone()
        if row is None:
            raise unknown_job(read.job)
        match read:
            case ReadParams(job, tasks):
                for task in tasks:
                    if not 0 <= task < row[0]:
                        raise misuse(f"job {job} has no task {task}, but its parameters were asked for")
                return self._params.get(job, tasks)
            case ReadResults(job, after, limit):
                return self._with_params(job, self._by_seq(job, after, limit))
            case ReadTaskResults(job, tasks):
                return self._with_params(job, self._of_tasks(job, tasks))
            case ReadTaskRange(job, first, states, limit):
                return self._with_params(job, self._range(job, first, states, limit))
            case _:
                assert_never(read)

    def _by_seq(self, job: JobId, after: int, limit: int) -> Answer:
        found = self._glued(
            "(SELECT position & 4294967295 AS seq, body FROM reports"
            " WHERE position > ? AND position <= ? ORDER BY position LIMIT ?)",
            (job << 32 | min(after, _SEQ_MAX), job << 32 | _SEQ_MAX, limit),
        )
        ranges = self._connection.execute(
            "SELECT first, stop, seq FROM cancelled WHERE job = ?1 AND seq >= coalesce("
            " (SELECT max(seq) FROM cancelled WHERE job = ?1 AND seq <= ?2), 0) ORDER BY seq LIMIT ?3",
            (job, after + 1, limit + 1),
        ).fetchall()
        left = limit
        for first, stop, seq in ranges:
            skip = max(0, after + 1 - seq)
            tasks = range(first + skip, min(stop, first + skip + left))
            found += [(seq + task - first, cancelled_result(task)) for task in tasks]
            left -= len(tasks)
        found.sort(key=lambda item: item[0])
        return found[:limit]

    def _of_tasks(self, job: JobId, tasks: Iterable[int]) -> Answer:
        wanted = _encode(sorted(set(tasks))).decode()
        found = self._glued(
            f"(SELECT r.seq AS seq, p.body AS body FROM json_each(?2) AS k CROSS JOIN {_JOINED}"
            " WHERE r.job = ?1 AND r.task = k.value)",
            (job, wanted),
        )
        cancelled = self._connection.execute(
            "SELECT k.value, c.seq + k.value - c.first FROM json_each(?2) AS k"
            " CROSS JOIN cancelled AS c ON c.job = ?1"
            " AND c.first = (SELECT max(first) FROM cancelled WHERE job = ?1 AND first <= k.value)"
            " WHERE c.stop > k.value",
            (job, wanted),
        ).fetchall()
        found += [(seq, cancelled_result(task)) for task, seq in cancelled]
        return sorted(found, key=lambda item: item[1].task)

    def _range(self, job: JobId, first: int, states: frozenset[str], limit: int) -> Answer:
        numbers = [s.value for s in TaskState if not states or s.name in states]
        found = self._glued(
            f"(SELECT r.seq AS seq, p.body AS body FROM {_JOINED} WHERE r.job = ? AND r.task >= ?"
            " AND r.state IN (SELECT value FROM json_each(?)) ORDER BY r.task LIMIT ?)",
            (job, first, _encode(numbers).decode(), limit),
        )
        if TaskState.CANCELLED in numbers:
            ranges = self._connection.execute(
                "SELECT first, stop, seq FROM cancelled WHERE job = ?1 AND first >= coalesce("
                " (SELECT max(first) FROM cancelled WHERE job = ?1 AND first <= ?2), 0)"
                " ORDER BY first LIMIT ?3",
                (job, first, limit + 1),
            ).fetchall()
            left = limit
            for start, stop, seq in ranges:
                begin = max(start, first)
                tasks = range(begin, min(stop, begin + left))
                found += [(seq + task - start, cancelled_result(task)) for task in tasks]
                left -= len(tasks)
        found.sort(key=lambda item: item[1].task)
        return found[:limit]

    def _glued(self, source: str, values: Sequence[object]) -> Answer:
        seqs, bodies = self._connection.execute(_GLUE + source, values).fetchone()
        if seqs is None:
            return []
        return list(zip(_decode_seqs(seqs), _decode_page(bodies), strict=True))

    def _with_params(self, job: JobId, found: Answer) -> Answer:
        params = self._params.get(job, [result.task for _, result in found])
        return [
            (seq, msgspec.structs.replace(result, params=own) if own else result)
            for (seq, result), own in zip(found, params, strict=True)
        ]


def unreadable(what: str) -> sqlite3.DatabaseError:
    """The error for a row that no Kestrel has written, as SQLite's own for a page that is damaged."""
    error = sqlite3.DatabaseError(what)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def begin_life(connection: sqlite3.Connection, pool: str) -> None:
    """Count the epoch up, stored before anything else happens in it; what was nobody's is now the pool's."""
    connection.execute(
        "UPDATE meta SET epoch = epoch + 1, unit = 0, pool = CASE pool WHEN '' THEN ? ELSE pool END", (pool,)
    )


def read_content(connection: sqlite3.Connection, terms_of: Callable[[JobRecord], Any]) -> StoreContent:
    """All that a starting manager needs."""
    meta = connection.execute("SELECT epoch, next_job, workers_since FROM meta").fetchone()
    epoch, next_job, workers_since = meta
    jobs: list[JobRecord] = []
    unfinished: list[RestoredJob] = []
    for record, is_cancelled in list(job_records(connection)):
        jobs.append(record)
        if record.state in (JobState.PENDING, JobState.RUNNING):
            unfinished.append(
                RestoredJob(
                    job=record.job,
                    terms=terms_of(record),
                    states=_states(connection, record),
                    open=record.open,
                    cancelled=is_cancelled,
                    troubles=_troubles(connection, record.job),
                    reruns=record.reruns,
                )
            )
    return StoreContent(
        epoch=epoch,
        next_job=next_job,
        jobs=jobs,
        unfinished=unfinished,
        workers=_names(connection, "workers") if epoch > workers_since else None,
        drained=frozenset(_names(connection, "drained")),
    )


def job_records(connection: sqlite3.Connection) -> Iterator[tuple[JobRecord, bool]]:
    """All jobs by number, and whether each was cancelled as a whole."""
    reruns = dict(connection.execute("SELECT job, sum(losses) FROM troubles GROUP BY job").fetchall())
    cursor = connection.execute(
        "SELECT job, user, submission, message, size, open, submitted, state, finished, last,"
        " completed, failed, cancelled, timeout, node_fail, is_cancelled FROM jobs ORDER BY job"
    )
    while rows := cursor.fetchmany(ROWS_FETCHED_AT_ONCE):
        for row in rows:
            record = JobRecord(
                job=row[0],
                user=row[1],
                submission=row[2],
                message=row[3],
                size=row[4],
                open=bool(row[5]),
                submitted=row[6],
                state=_state(row[0], row[7]),
                finished=row[8],
                last=row[9],
                counts=m.TaskCounts(
                    completed=row[10], failed=row[11], cancelled=row[12], timeout=row[13], node_fail=row[14]
                ),
                reruns=reruns.get(row[0], 0),
            )
            yield record, bool(row[15])


def _names(connection: sqlite3.Connection, table: str) -> tuple[WorkerId, ...]:
    return tuple(name for (name,) in connection.execute(f"SELECT worker FROM {table} ORDER BY 1").fetchall())


def _state(job: JobId, word: str) -> JobState:
    try:
        return JobState(word)
    except ValueError:
        raise unreadable(f"job {job} is in the state {word!r}") from None


def _states(connection: sqlite3.Connection, record: JobRecord) -> bytearray:
    states = bytearray(record.size)
    cursor = connection.execute("SELECT task, state FROM results WHERE job = ?", (record.job,))
    try:
        while rows := cursor.fetchmany(ROWS_FETCHED_AT_ONCE):
            for task, state in rows:
                states[task] = state
    except (IndexError, TypeError, ValueError) as problem:
        raise unreadable(f"job {record.job} has a result that cannot be: {problem}") from problem
    for first, stop in connection.execute("SELECT first, stop FROM cancelled WHERE job = ?", (record.job,)):
        if stop > record.size:
            raise unreadable(f"job {record.job} of {record.size} tasks has cancelled ones up to {stop}")
        states[first:stop] = bytes([TaskState.CANCELLED]) * (stop - first)
    return states


def _troubles(connection: sqlite3.Connection, job: JobId) -> dict[int, Trouble]:
    rows = connection.execute(
        "SELECT task, failures, losses, given_out, counted, cancelling FROM troubles WHERE job = ?", (job,)
    )
    return {
        task: Trouble(failures, losses, bool(given), _decode_attempts(counted), bool(cancelling))
        for task, failures, losses, given, counted, cancelling in rows.fetchall()
    }
