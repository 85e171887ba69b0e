"""What the writer of the PostgreSQL store knows of jobs without asking: their sizes, and parameters of tasks.

Called by `kestrel.store.postgres_writer` and `kestrel.store.postgres_tables` on the writer thread, and by the
archive. It may be believed because nobody else writes while the epoch is ours; after a rollback it must be
dropped (`forget`), for it may hold what was never stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kestrel.core.model import JobId
from kestrel.store.params import ParamChunks
from kestrel.store.postgres_session import Session, int_array
from kestrel.store.tables import unknown_job


@dataclass(slots=True)
class KnownJob:
    """What the writer must know of a job."""

    size: int
    open: bool
    cancelled: bool
    """Whether tasks of it were cancelled before any worker had them."""


class Jobs:
    """Sizes of jobs as they are in the open transaction; dropped (`forget`) after a rollback."""

    def __init__(self, session: Session, jobs_max: int) -> None:
        self._session = session
        self._jobs_max = jobs_max
        self._known: dict[JobId, KnownJob] = {}

    def load(self, jobs: Iterable[JobId]) -> None:
        """Make these known, as far as they exist. Called once, before the first write of a transaction."""
        wanted = set(jobs)
        if len(self._known) + len(wanted) > self._jobs_max:
            self._known.clear()
        missing = [job for job in wanted if job not in self._known]
        if not missing:
            return
        rows = self._session.ask(
            "SELECT job, size, open, EXISTS (SELECT 1 FROM kestrel_cancelled c WHERE c.job = j.job)"
            " FROM kestrel_jobs j WHERE job = ANY(%s::int8[])",
            (int_array(missing),),
        )
        for job, size, is_open, cancelled in rows:
            self._known[job] = KnownJob(size, is_open, cancelled)

    def get(self, job: JobId) -> KnownJob:
        """Raises `StoreError` for a job that is not."""
        known = self._known.get(job)
        if known is None:
            raise unknown_job(job)
        return known

    def add(self, job: JobId, known: KnownJob) -> None:
        self._known[job] = known

    def __contains__(self, job: JobId) -> bool:
        return job in self._known

    def forget(self) -> None:
        self._known.clear()


class PostgresParams(ParamChunks):
    """The parameters of tasks."""

    def __init__(self, session: Session, cache_bytes_max: int) -> None:
        super().__init__(cache_bytes_max)
        self._session = session

    def _fetch(self, job: int, numbers: Sequence[int]) -> list[tuple[int, bytes]]:
        rows = self._session.ask(
            "SELECT chunk, body FROM kestrel_params WHERE job = %s AND chunk = ANY(%s::int8[])",
            (job, int_array(numbers)),
        )
        return [(chunk, body) for chunk, body in rows]

    def _save(self, rows: Sequence[tuple[int, int, bytes]]) -> None:
        jobs, chunks, bodies = zip(*rows, strict=True)
        self._session.send(
            "INSERT INTO kestrel_params (job, chunk, body)"
            " SELECT * FROM unnest(%s::int8[], %s::int8[], %s::bytea[])"
            " ON CONFLICT (job, chunk) DO UPDATE SET body = excluded.body",
            (int_array(jobs), int_array(chunks), list(bodies)),
        )
