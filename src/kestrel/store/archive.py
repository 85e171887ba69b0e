"""The read-only role of a store: what is in it, for checks and exports beside a running manager.

Makers: `kestrel.store.sqlite_archive.SqliteArchive(path)`,
`kestrel.store.postgres_archive.PostgresArchive(dsn)`. Chosen by `kestrel.store.places.open_archive`, called
by `kestrel store`. An archive never writes, and never keeps a manager waiting.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from kestrel.core.model import JobId
from kestrel.ports import JobRecord
from kestrel.protocol import messages as m


class Archive(Protocol):
    """One view of the store as it was at one instant; made by opening it, which raises `StoreError`.

    All reading may raise `StoreError`. Memory is bounded: pages, never a whole job.
    """

    pool: str
    """Whose store it is; empty: nobody has said."""
    epoch: int
    next_job: JobId

    def jobs(self) -> Iterator[JobRecord]:
        """All jobs, by number."""
        ...

    def results(self, job: JobId) -> Iterator[tuple[int, m.TaskResult]]:
        """(seq, result) of all tasks that have ended, with their parameters, by seq."""
        ...

    def flaws(self) -> Iterator[str]:
        """What is wrong with the tables themselves, in words: whatever only this maker can look for.

        Laws that `jobs` and `results` show are checked by `kestrel.store.checking`, for all makers alike.
        """
        ...

    def close(self) -> None: ...
