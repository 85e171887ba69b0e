"""Reads a PostgreSQL store beside the manager that writes it: `kestrel.store.archive.Archive`.

It sees the store as it was when it was opened (one snapshot), waits for no lock and changes nothing. A
standby server (replica) will do, too. Called by `kestrel.store.places`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import psycopg

from kestrel.core.model import JobId
from kestrel.errors import StoreError
from kestrel.ports import JobRecord, ReadResults
from kestrel.protocol import messages as m
from kestrel.store import postgres_schema as schema
from kestrel.store.postgres_jobs import PostgresParams
from kestrel.store.postgres_reads import Reader, job_pages
from kestrel.store.postgres_session import Address, PostgresSettings, Session
from kestrel.store.sqlite_problems import DAMAGED

PAGE_RESULTS = 1000
PAGE_JOBS = 1000
PARAMS_CACHE_BYTES_MAX = 4 * 2**20
ANSWER_S = 600.0
"""For one statement, of which some look at whole tables."""

_FLAWS = (
    (
        "a result of job {0} is stored, but the job is not",
        "SELECT DISTINCT job FROM kestrel_results r"
        " WHERE NOT EXISTS (SELECT 1 FROM kestrel_jobs j WHERE j.job = r.job) LIMIT 100",
    ),
    (
        "cancelled tasks of job {0} are stored, but the job is not",
        "SELECT DISTINCT job FROM kestrel_cancelled c"
        " WHERE NOT EXISTS (SELECT 1 FROM kestrel_jobs j WHERE j.job = c.job) LIMIT 100",
    ),
    (
        "parameters of job {0} are stored, but the job is not",
        "SELECT DISTINCT job FROM kestrel_params p"
        " WHERE NOT EXISTS (SELECT 1 FROM kestrel_jobs j WHERE j.job = p.job) LIMIT 100",
    ),
    (
        "troubles of job {0} are stored, but the job is not",
        "SELECT DISTINCT job FROM kestrel_troubles t"
        " WHERE NOT EXISTS (SELECT 1 FROM kestrel_jobs j WHERE j.job = t.job) LIMIT 100",
    ),
    (
        "job {0}: task {1} has trouble on record, but the job has {2} tasks",
        "SELECT job, task, size FROM kestrel_troubles JOIN kestrel_jobs USING (job)"
        " WHERE task < 0 OR task >= size LIMIT 100",
    ),
    (
        "job {0}: task {1} is stored both with a result and as cancelled",
        "SELECT c.job, r.task FROM kestrel_cancelled c JOIN kestrel_results r"
        " ON r.job = c.job AND r.task >= c.first AND r.task < c.stop LIMIT 100",
    ),
    (
        "the lease is of epoch {0}, but what is written is guarded by epoch {1}",
        "SELECT l.epoch, w.epoch FROM kestrel_lease l, kestrel_meta w WHERE l.epoch <> w.epoch",
    ),
)


class PostgresArchive:
    """The database `dsn` as it is now. Raises `StoreError`."""

    def __init__(self, dsn: str) -> None:
        self._address = Address(dsn)
        with self._explained():
            self._session = Session(
                self._address, "archive", PostgresSettings(transaction_idle_s=0.0), ANSWER_S
            )
        try:
            with self._explained():
                self._session.send("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                self._open()
        except BaseException:
            self._session.close()
            raise

    def _open(self) -> None:
        place = self._address.place
        self.version = schema.check_owner(self._session, place, "", to_write=False)
        if not self.version:
            raise StoreError(
                f"the store {place} is empty: no manager has ever used it",
                hint="name the right database with --store",
                code="store_empty",
            )
        ((self.pool, self.epoch, self.next_job),) = self._session.ask(
            "SELECT pool, epoch, next_job FROM kestrel_meta"
        )

    def jobs(self) -> Iterator[JobRecord]:
        """All jobs, by number; read in pages."""
        pages = job_pages(self._session, PAGE_JOBS)
        while True:
            with self._explained():
                record = next(pages, None)
            if record is None:
                return
            yield record

    def results(self, job: JobId) -> Iterator[tuple[int, m.TaskResult]]:
        """(seq, result) by seq, with parameters; read in pages."""
        with self._explained():
            rows = self._session.ask("SELECT size FROM kestrel_jobs WHERE job = %s", (job,))
        size = rows[0][0] if rows else 0
        reader = Reader(self._session, PostgresParams(self._session, PARAMS_CACHE_BYTES_MAX), lambda _: size)
        after = 0
        while True:
            with self._explained():
                page = reader.answer(ReadResults(job, after, PAGE_RESULTS))
            if not page:
                return
            yield from page
            after = page[-1][0]

    def flaws(self) -> Iterator[str]:
        """Rows that belong to nothing, or contradict each other; of each kind the first hundred."""
        for words, query in _FLAWS:
            with self._explained():
                rows = self._session.ask(query)
            for row in rows:
                yield words.format(*row)

    def close(self) -> None:
        self._session.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """What the driver and decoders say, as the errors of this program."""
        try:
            yield
        except psycopg.Error as problem:
            raise self._address.explain(problem) from problem
        except (msgspec.MsgspecError, UnicodeDecodeError, ValueError, IndexError) as problem:
            raise StoreError(
                f"the store {self._address.place} is damaged: a row cannot be read: {problem}",
                hint="restore the database from a backup (pg_dump, or pg_basebackup and its log)",
                code=DAMAGED,
            ) from problem
