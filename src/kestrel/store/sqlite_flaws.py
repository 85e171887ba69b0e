"""What can be wrong with the tables of a SQLite store: damage of the file, and rows that fit to nothing.

Called by `kestrel.store.sqlite_archive`; reads only. Laws that hold for every maker are in
`kestrel.store.checking`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

import msgspec

from kestrel.core.model import TaskState
from kestrel.store.params import CHUNK_TASKS

INTEGRITY_FLAWS_MAX = 100
ROWS_AT_ONCE = 1000

_TERMINAL = ", ".join(str(s.value) for s in TaskState if s.terminal)
_WORDS = " ".join(f"WHEN {s.value} THEN '{s.name}'" for s in TaskState)
_JOINED = "results AS r JOIN reports AS p ON p.position = (r.job << 32 | r.seq)"
_NOWHERE = "NOT IN (SELECT job FROM jobs)"

_LAWS: tuple[tuple[str, str], ...] = (
    ("meta has {count} rows instead of one", "SELECT count(*), '' FROM meta HAVING count(*) <> 1"),
    *(
        (
            f"{{count}} rows of {table} are of no job (the first of job {{sample}})",
            f"SELECT count(*), min(job) FROM {table} WHERE job {_NOWHERE}",
        )
        for table in ("results", "params", "cancelled", "troubles")
    ),
    (
        "{count} reports are of no job (the first of job {sample})",
        f"SELECT count(*), min(position >> 32) FROM reports WHERE position >> 32 {_NOWHERE}",
    ),
    (
        "{count} results have no report (the first: job {sample})",
        "SELECT count(*), min(r.job || ' task ' || r.task) FROM results AS r"
        " WHERE NOT EXISTS (SELECT 1 FROM reports WHERE position = (r.job << 32 | r.seq))",
    ),
    (
        "{count} jobs have more reports than results, or less (the first: job {sample})",
        "SELECT count(*), min(j.job) FROM jobs AS j"
        " LEFT JOIN (SELECT job, count(*) AS n FROM results GROUP BY job) AS r ON r.job = j.job"
        " LEFT JOIN (SELECT position >> 32 AS job, count(*) AS n FROM reports GROUP BY position >> 32) AS p"
        " ON p.job = j.job WHERE coalesce(r.n, 0) <> coalesce(p.n, 0)",
    ),
    (
        "{count} numbers are those of two results (the first: job {sample})",
        "SELECT count(*), min(job || ' number ' || seq) FROM"
        " (SELECT job, seq FROM results GROUP BY job, seq HAVING count(*) > 1)",
    ),
    (
        "{count} results are of a task that is not there (the first: job {sample})",
        "SELECT count(*), min(r.job || ' task ' || r.task) FROM results AS r JOIN jobs AS j USING (job)"
        " WHERE r.task >= j.size OR r.task < 0",
    ),
    (
        "{count} results are no end of a task (the first: job {sample})",
        f"SELECT count(*), min(job || ' task ' || task) FROM results WHERE state NOT IN ({_TERMINAL})",
    ),
    (
        "{count} reports cannot be read (the first: job {sample})",
        "SELECT count(*), min((position >> 32) || ' number ' || (position & 4294967295)) FROM reports"
        " WHERE NOT json_valid(body)",
    ),
    (
        "{count} reports are of another task than their results (the first: job {sample})",
        f"SELECT count(*), min(r.job || ' task ' || r.task) FROM {_JOINED}"
        " WHERE CASE WHEN json_valid(p.body) THEN json_extract(p.body, '$.task') IS NOT r.task END",
    ),
    (
        "{count} reports tell of another end than their results (the first: job {sample})",
        f"SELECT count(*), min(r.job || ' task ' || r.task) FROM {_JOINED} WHERE CASE WHEN json_valid(p.body)"
        f" THEN coalesce(json_extract(p.body, '$.state'), 'COMPLETED') IS NOT CASE r.state {_WORDS} END END",
    ),
    (
        "{count} ranges of cancelled tasks cannot be (the first: job {sample})",
        "SELECT count(*), min(c.job || ' from task ' || c.first) FROM cancelled AS c"
        " JOIN jobs AS j USING (job) WHERE NOT (0 <= c.first AND c.first < c.stop AND c.stop <= j.size)",
    ),
    (
        "{count} ranges of cancelled tasks overlap (the first: job {sample})",
        "SELECT count(*), min(job || ' from task ' || next) FROM (SELECT job, stop, lead(first)"
        " OVER (PARTITION BY job ORDER BY first) AS next FROM cancelled) WHERE next < stop",
    ),
    (
        "{count} tasks were cancelled and have results, too (the first: job {sample})",
        "SELECT count(*), min(r.job || ' task ' || r.task) FROM cancelled AS c JOIN results AS r"
        " ON r.job = c.job AND r.task >= c.first AND r.task < c.stop",
    ),
    (
        "{count} tasks are counted as failed or lost, but are not there (the first: job {sample})",
        "SELECT count(*), min(t.job || ' task ' || t.task) FROM troubles AS t JOIN jobs AS j USING (job)"
        " WHERE t.task >= j.size OR t.task < 0",
    ),
)
"""What is wrong, and a query for how often and where first; nothing or 0: fine."""

_COUNTED = (
    "{count} lists of counted failures cannot be read (the first: job {sample})",
    "SELECT count(*), min(job || ' task ' || task) FROM troubles WHERE NOT json_valid(counted)",
)
_COUNTED_SINCE = 3

_decode_chunk = msgspec.msgpack.Decoder(list[list[str]]).decode


def flaws(connection: sqlite3.Connection, version: int) -> Iterator[str]:
    """All that is wrong with a file of this version of the schema, in words."""
    try:
        rows = connection.execute(f"PRAGMA integrity_check({INTEGRITY_FLAWS_MAX})").fetchall()
        yield from (f"the file is damaged: {text}" for (text,) in rows if text != "ok")
    except sqlite3.DatabaseError as problem:
        yield f"the file is damaged: {problem}"
    for text, query in (*_LAWS, *((_COUNTED,) if version >= _COUNTED_SINCE else ())):
        try:
            found = connection.execute(query).fetchone()
        except sqlite3.DatabaseError as problem:
            about = text.replace("{count} ", "").partition(" (")[0]
            yield f"it cannot be found out whether {about}: {problem}"
            continue
        if found and found[0]:
            yield text.format(count=found[0], sample=found[1])
    yield from _flaws_of_params(connection)


def _flaws_of_params(connection: sqlite3.Connection) -> Iterator[str]:
    wrong = 0
    where = ""
    try:
        cursor = connection.execute(
            "SELECT p.job, p.chunk, p.body, j.size FROM params AS p JOIN jobs AS j USING (job)"
        )
        while rows := cursor.fetchmany(ROWS_AT_ONCE):
            for job, chunk, body, size in rows:
                try:
                    tasks = len(_decode_chunk(body))
                except msgspec.DecodeError:
                    tasks = CHUNK_TASKS + 1
                if tasks > CHUNK_TASKS or chunk * CHUNK_TASKS + tasks > size:
                    wrong += 1
                    where = where or f"job {job} from task {chunk * CHUNK_TASKS} on"
    except sqlite3.DatabaseError as problem:
        yield f"not all parameters can be read: {problem}"
    if wrong:
        yield f"{wrong} groups of parameters cannot be read, or are of no task (the first: {where})"
