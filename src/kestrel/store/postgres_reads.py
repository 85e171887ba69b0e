"""What reads find in the tables of the PostgreSQL store, and what a manager finds when it starts.

Called by `kestrel.store.postgres_writer` on its thread, by `kestrel.store.postgres` when it opens the
store, and by the archive. Pages of results are glued together inside PostgreSQL and come back as one row.
"""

from __future__ import annotations

import sys
from array import array
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
from kestrel.store.postgres_session import Row, Session, from_text, int_array

_LIVE = (JobState.PENDING, JobState.RUNNING)
_decode_page = msgspec.json.Decoder(list[m.TaskResult]).decode
_decode_attempts = msgspec.json.Decoder(tuple[int, ...]).decode

_GLUE = "SELECT array_agg(seq), '[' || string_agg(body, ',') || ']' FROM "

_JOBS = (
    "SELECT job, owner, submission, message, size, open, submitted, state, finished, last, completed, failed,"
    " cancelled, timeout, node_fail, is_cancelled, coalesce(t.losses, 0) FROM kestrel_jobs LEFT JOIN"
    " (SELECT job, sum(losses)::int8 AS losses FROM kestrel_troubles GROUP BY job) t USING (job)"
)


class Reader:
    """Answers reads; sees what the open transaction has written. `size_of` raises for an unknown job."""

    def __init__(self, session: Session, params: ParamChunks, size_of: Callable[[JobId], int]) -> None:
        self._session = session
        self._params = params
        self._size_of = size_of

    def answer(self, read: Read) -> Any:
        """The answer as `kestrel.ports` describes it; raises `StoreError` for jobs and tasks that are not."""
        size = self._size_of(read.job)
        match read:
            case ReadParams(job, tasks):
                for task in tasks:
                    if not 0 <= task < size:
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
            "(SELECT seq, body FROM kestrel_results WHERE job = %s AND seq > %s"
            " ORDER BY seq LIMIT %s) AS page",
            (job, after, limit),
        )
        ranges = self._session.ask(
            "SELECT first, stop, seq FROM kestrel_cancelled WHERE job = %s AND seq >= coalesce(("
            " SELECT max(seq) FROM kestrel_cancelled WHERE job = %s AND seq <= %s), 0) ORDER BY seq LIMIT %s",
            (job, job, after + 1, limit + 1),
        )
        left = limit
        for first, stop, seq in ranges:
            skip = max(0, after + 1 - seq)
            tasks = range(first + skip, min(stop, first + skip + left))
            found += [(seq + task - first, cancelled_result(task)) for task in tasks]
            left -= len(tasks)
        found.sort(key=lambda item: item[0])
        return found[:limit]

    def _of_tasks(self, job: JobId, tasks: Iterable[int]) -> Answer:
        wanted = int_array(sorted(set(tasks)))
        found = self._glued(
            "kestrel_results WHERE job = %s AND task = ANY(%s::int8[])",
            (job, wanted),
        )
        cancelled = self._session.ask(
            "SELECT k.task, c.seq + k.task - c.first FROM unnest(%s::int8[]) AS k(task) CROSS JOIN LATERAL ("
            " SELECT first, stop, seq FROM kestrel_cancelled WHERE job = %s AND first <= k.task"
            " ORDER BY first DESC LIMIT 1) AS c WHERE c.stop > k.task",
            (wanted, job),
        )
        found += [(seq, cancelled_result(task)) for task, seq in cancelled]
        return sorted(found, key=lambda item: item[1].task)

    def _range(self, job: JobId, first: int, states: frozenset[str], limit: int) -> Answer:
        numbers = [s.value for s in TaskState if not states or s.name in states]
        found = self._glued(
            "(SELECT seq, body FROM kestrel_results WHERE job = %s AND task >= %s"
            " AND state = ANY(%s::int2[]) ORDER BY task LIMIT %s) AS page",
            (job, first, int_array(numbers), limit),
        )
        if TaskState.CANCELLED in numbers:
            ranges = self._session.ask(
                "SELECT first, stop, seq FROM kestrel_cancelled WHERE job = %s AND first >= coalesce(("
                " SELECT max(first) FROM kestrel_cancelled WHERE job = %s AND first <= %s), 0)"
                " ORDER BY first LIMIT %s",
                (job, job, first, limit + 1),
            )
            left = limit
            for start, stop, seq in ranges:
                begin = max(start, first)
                tasks = range(begin, min(stop, begin + left))
                found += [(seq + task - start, cancelled_result(task)) for task in tasks]
                left -= len(tasks)
        found.sort(key=lambda item: item[1].task)
        return found[:limit]

    def _glued(self, source: str, values: Sequence[object]) -> Answer:
        ((seqs, bodies),) = self._session.ask(_GLUE + source, values)
        if seqs is None:
            return []
        return list(zip(seqs, _decode_page(bodies), strict=True))

    def _with_params(self, job: JobId, found: Answer) -> Answer:
        params = self._params.get(job, [result.task for _, result in found])
        return [
            (seq, msgspec.structs.replace(result, params=own) if own else result)
            for (seq, result), own in zip(found, params, strict=True)
        ]


def read_content(
    session: Session, epoch: int, terms_of: Callable[[JobRecord], Any], states_at_once: int
) -> StoreContent:
    """All that a starting manager needs."""
    ((next_job,),) = session.ask("SELECT next_job FROM kestrel_meta")
    jobs: list[JobRecord] = []
    live: list[tuple[JobRecord, bool]] = []
    for row in session.ask(_JOBS + " ORDER BY job"):
        record = job_record(row)
        jobs.append(record)
        if record.state in _LIVE:
            live.append((record, row[15]))
    states = _states(session, [record for record, _ in live], states_at_once)
    troubles = _troubles(session, [record.job for record, _ in live])
    return StoreContent(
        epoch=epoch,
        next_job=next_job,
        jobs=jobs,
        unfinished=[
            RestoredJob(
                job=record.job,
                terms=terms_of(record),
                states=states[record.job],
                open=record.open,
                cancelled=cancelled,
                troubles=troubles.get(record.job, {}),
                reruns=record.reruns,
            )
            for record, cancelled in live
        ],
        workers=_names(session, "kestrel_workers"),
        drained=frozenset(_names(session, "kestrel_drained")),
    )


def job_pages(session: Session, page: int) -> Iterator[JobRecord]:
    """All jobs by number, fetched by so many."""
    after = -1
    while rows := session.ask(_JOBS + " WHERE job > %s ORDER BY job LIMIT %s", (after, page)):
        yield from map(job_record, rows)
        after = rows[-1][0]


def job_record(row: Row) -> JobRecord:
    return JobRecord(
        job=row[0],
        user=from_text(row[1]),
        submission=from_text(row[2]),
        message=row[3],
        size=row[4],
        open=row[5],
        submitted=row[6],
        state=JobState(row[7]),
        finished=row[8],
        last=row[9],
        counts=m.TaskCounts(
            completed=row[10], failed=row[11], cancelled=row[12], timeout=row[13], node_fail=row[14]
        ),
        reruns=row[16],
    )


def _states(session: Session, records: Sequence[JobRecord], at_once: int) -> dict[JobId, bytearray]:
    """The state of each task of these jobs. Tasks of a state come as one string of bytes, in no order."""
    states = {record.job: bytearray(record.size) for record in records}
    for jobs, first, stop in _slices(records, at_once):
        rows = session.ask(
            "SELECT job, state, string_agg(int8send(task), '') FROM kestrel_results"
            " WHERE job = ANY(%s::int8[]) AND task >= %s AND task < %s GROUP BY job, state",
            (int_array(jobs), first, stop),
        )
        for job, state, packed in rows:
            tasks = array("q", packed)
            if sys.byteorder == "little":
                tasks.byteswap()
            _mark(states[job], tasks, state)
    wanted = int_array(list(states))
    for job, start, end in session.ask(
        "SELECT job, first, stop FROM kestrel_cancelled WHERE job = ANY(%s::int8[])", (wanted,)
    ):
        states[job][start:end] = bytes([TaskState.CANCELLED]) * (end - start)
    return states


def _mark(states: bytearray, tasks: array[int], state: int) -> None:
    for task in tasks:
        states[task] = state


def _slices(records: Sequence[JobRecord], at_once: int) -> Iterator[tuple[list[JobId], int, int]]:
    """Jobs and ranges of their tasks, so that each holds about as many tasks as may be fetched at once."""
    small: list[JobId] = []
    room = at_once
    for record in records:
        if record.size > at_once:
            for first in range(0, record.size, at_once):
                yield [record.job], first, first + at_once
            continue
        if record.size > room:
            yield small, 0, at_once
            small, room = [], at_once
        small.append(record.job)
        room -= record.size
    if small:
        yield small, 0, at_once


def _troubles(session: Session, jobs: Sequence[JobId]) -> dict[JobId, dict[int, Trouble]]:
    found: dict[JobId, dict[int, Trouble]] = {}
    for job, task, failures, losses, given, counted, cancelling in session.ask(
        "SELECT job, task, failures, losses, given_out, counted, cancelling FROM kestrel_troubles"
        " WHERE job = ANY(%s::int8[])",
        (int_array(jobs),),
    ):
        trouble = Trouble(failures, losses, given, _decode_attempts(counted), cancelling)
        found.setdefault(job, {})[task] = trouble
    return found


def _names(session: Session, table: str) -> tuple[WorkerId, ...]:
    return tuple(sorted(from_text(name) for (name,) in session.ask(f"SELECT worker FROM {table}")))
