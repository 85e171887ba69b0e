"""Reads a SQLite store beside the manager that writes it: `kestrel.store.archive.Archive`.

It sees the store as it was when it was opened, waits for no lock and changes nothing. Called by
`kestrel.store.places`.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import msgspec

from kestrel.core.model import JobId
from kestrel.errors import StoreError, UsageError
from kestrel.ports import JobRecord, ReadResults
from kestrel.protocol import messages as m
from kestrel.store import schema
from kestrel.store.reads import Reader, job_records
from kestrel.store.sqlite_flaws import flaws
from kestrel.store.sqlite_problems import damaged, explain
from kestrel.store.tables import RowWriter, SqliteParams

PAGE_RESULTS = 1000
PARAMS_CACHE_BYTES_MAX = 2**18
"""Encoded; decoded it is some ten times as much."""


class SqliteArchive:
    """The store file `path` as it is now. Raises `UsageError` if it is not there, and `StoreError`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection = connect_to_read(path)
        try:
            with explained(path):
                self._connection.execute("BEGIN")
                self.version = schema.check_owner(self._connection, path, len(schema.MIGRATIONS))
                if not self.version:
                    raise StoreError(
                        f"the store {path} is empty: no manager has ever used it",
                        hint="name the right file with --store, or put a backup in its place",
                        code="store_empty",
                    )
                self.epoch, self.next_job = self._connection.execute(
                    "SELECT epoch, next_job FROM meta"
                ).fetchone()
                self.pool = ""
                if self.version >= schema.POOL_SINCE:
                    (self.pool,) = self._connection.execute("SELECT pool FROM meta").fetchone()
        except BaseException:
            self._connection.close()
            raise

    def jobs(self) -> Iterator[JobRecord]:
        """All jobs, by number."""
        with explained(self.path):
            for record, _ in job_records(self._connection):
                yield record

    def results(self, job: JobId) -> Iterator[tuple[int, m.TaskResult]]:
        """(seq, result) by seq, with parameters; read in pages."""
        params = SqliteParams(self._connection, RowWriter(self._connection), PARAMS_CACHE_BYTES_MAX)
        reader = Reader(self._connection, params)
        after = 0
        while True:
            with explained(self.path):
                page = reader.answer(ReadResults(job, after, PAGE_RESULTS))
            if not page:
                return
            yield from page
            after = page[-1][0]

    def flaws(self) -> Iterator[str]:
        """Damage of the file, and rows that belong to nothing."""
        yield from flaws(self._connection, self.version)

    def close(self) -> None:
        self._connection.close()


def connect_to_read(path: Path) -> sqlite3.Connection:
    """A connection that changes nothing.

    While there is a write-ahead log, for reading only. Without one the store is closed, and SQLite would
    leave behind the log and the index that it makes to read; so it gets the right to remove them again.
    """
    if not path.exists():
        raise UsageError(
            f"there is no store {path}", hint="name it with --store, or its pool with --pool", code="no_store"
        )
    schema.check_readable(path)
    log = path.with_name(f"{path.name}-wal")
    writable = os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)
    mode = "ro" if log.exists() or not writable else "rw"
    with explained(path):
        connection = sqlite3.connect(
            f"file:{quote(str(path.absolute()))}?mode={mode}", uri=True, isolation_level=None
        )
        connection.execute("PRAGMA query_only = 1")
    return connection


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """What SQLite and decoders say, as the errors of this program."""
    try:
        yield
    except sqlite3.Error as problem:
        raise explain(problem, path) from problem
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError, IndexError) as problem:
        raise damaged(path, f"a row cannot be read: {problem}", problem) from problem
