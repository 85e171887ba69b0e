"""The tables of the SQLite store, how they grow from version to version, and which files are refused.

Called by `kestrel.store.sqlite` when it opens a file. It must never write to a file that is not ours,
or that a newer Kestrel wrote. A migration, once released, is never edited: a new one is appended.

`meta` has one row: `epoch` (lives of managers), `unit` (the last numbered unit of this life that was stored),
`next_job`, `pool` (whose store it is; empty: nobody has said yet) and `workers_since`: the first life that
recorded who comes into the pool. A file of version 2 that was used before holds nothing of the workers of its
last life, so the life that upgrades it does not know them (`StoreContent.workers` is None): it has the number
`workers_since`. Those after it do. In a new file `workers_since` is 0: nobody was there, and that is known.

Tasks live in three places only: `results` holds the ends of tasks (16 bytes or so each, so that the
state of a million tasks is read in a blink), `reports` what workers said, `cancelled` whole ranges.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from kestrel.errors import StoreError

APPLICATION_ID = 0x4B53_5452
"""`KSTR`: in the header of every file of ours (sqlite.org/fileformat2.html section 1.3.12)."""

SEQ_BITS = 32
"""`reports.position` = job * 2**32 + seq: the reports of a job lie together, in the order of storing."""

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE meta (
            one INTEGER PRIMARY KEY CHECK (one = 1),
            epoch INTEGER NOT NULL,
            next_job INTEGER NOT NULL)""",
        "INSERT INTO meta VALUES (1, 0, 1)",
        """CREATE TABLE jobs (
            job INTEGER PRIMARY KEY,
            user TEXT NOT NULL,
            submission TEXT NOT NULL,
            message BLOB NOT NULL,
            size INTEGER NOT NULL,
            open INTEGER NOT NULL,
            is_cancelled INTEGER NOT NULL DEFAULT 0,
            submitted REAL NOT NULL,
            state TEXT NOT NULL,
            finished REAL NOT NULL,
            last INTEGER NOT NULL DEFAULT 0,
            completed INTEGER NOT NULL DEFAULT 0,
            failed INTEGER NOT NULL DEFAULT 0,
            cancelled INTEGER NOT NULL DEFAULT 0,
            timeout INTEGER NOT NULL DEFAULT 0,
            node_fail INTEGER NOT NULL DEFAULT 0)""",
        "CREATE UNIQUE INDEX jobs_submission ON jobs (user, submission) WHERE submission <> ''",
        """CREATE TABLE params (
            job INTEGER NOT NULL,
            chunk INTEGER NOT NULL,
            body BLOB NOT NULL,
            PRIMARY KEY (job, chunk))""",
        """CREATE TABLE results (
            job INTEGER NOT NULL,
            task INTEGER NOT NULL,
            seq INTEGER NOT NULL,
            state INTEGER NOT NULL,
            PRIMARY KEY (job, task)) WITHOUT ROWID""",
        "CREATE TABLE reports (position INTEGER PRIMARY KEY, body TEXT NOT NULL)",
        """CREATE TABLE cancelled (
            job INTEGER NOT NULL,
            first INTEGER NOT NULL,
            stop INTEGER NOT NULL,
            seq INTEGER NOT NULL,
            PRIMARY KEY (job, first)) WITHOUT ROWID""",
        "CREATE UNIQUE INDEX cancelled_seq ON cancelled (job, seq, first, stop)",
        """CREATE TABLE troubles (
            job INTEGER NOT NULL,
            task INTEGER NOT NULL,
            failures INTEGER NOT NULL,
            losses INTEGER NOT NULL,
            PRIMARY KEY (job, task)) WITHOUT ROWID""",
    ),
    ("ALTER TABLE troubles ADD COLUMN given_out INTEGER NOT NULL DEFAULT 0",),
    (
        "ALTER TABLE troubles ADD COLUMN counted TEXT NOT NULL DEFAULT '[]'",
        "CREATE TABLE workers (worker TEXT PRIMARY KEY) WITHOUT ROWID",
        "CREATE TABLE drained (worker TEXT PRIMARY KEY) WITHOUT ROWID",
        "ALTER TABLE meta ADD COLUMN unit INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE meta ADD COLUMN pool TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE meta ADD COLUMN workers_since INTEGER NOT NULL DEFAULT 0",
        "UPDATE meta SET workers_since = epoch + 1 WHERE epoch > 0",
    ),
    ("ALTER TABLE troubles ADD COLUMN cancelling INTEGER NOT NULL DEFAULT 0",),
)
"""`MIGRATIONS[n]` makes version n + 1 out of version n."""

POOL_SINCE = 3
"""The first version that says whose the file is."""


def check_place(path: Path) -> None:
    """Refuse, in plain words, a place where no store can be; raises `StoreError`."""
    try:
        if path.is_dir():
            raise StoreError(
                f"{path} is a directory, not a store file", hint=f"name a file in it: {path}/kestrel.db"
            )
        if not path.parent.exists():
            raise StoreError(
                f"the store {path} cannot be made: its directory does not exist",
                hint=f"mkdir -p {path.parent}",
            )
        if not path.parent.is_dir():
            raise StoreError(
                f"the store {path} cannot be made: {path.parent} is no directory",
                hint="choose another place for the store",
            )
        # Only asked, never opened: closing any descriptor of a file drops all POSIX locks that this process
        # holds on it (sqlite.org/howtocorrupt.html section 2.2).
        if not _permitted(path.parent, os.W_OK | os.X_OK) or (
            path.exists() and not _permitted(path, os.R_OK | os.W_OK)
        ):
            raise _forbidden(path)
    except PermissionError as problem:
        raise _forbidden(path) from problem
    except OSError as problem:
        raise StoreError(
            f"the store {path} cannot be opened: {problem.strerror or problem}",
            hint="choose another place for the store",
        ) from problem


def make_file(path: Path) -> None:
    """Make a new store if none is there. It gets its name when it is whole, so an empty file is a lost one.

    The caller has the lock. Raises `StoreError` for what was a store once, and `OSError`.
    """
    log = path.with_name(f"{path.name}-wal")
    if path.exists():
        if path.stat().st_size == 0:
            raise StoreError(
                f"the store {path} is empty: what was in it is lost",
                hint=f"put a backup in its place, or begin anew: rm -f {path} {log} {path}-shm",
                code="store_empty",
            )
        return
    if log.exists():
        raise StoreError(
            f"the store {path} is gone, only its log {log.name} is there",
            hint=f"bring back the file that belongs to it, or begin anew: rm -f {log} {path}-shm",
            code="store_empty",
        )
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    new.touch(mode=0o600)  # commands and their output are nobody else's business
    connection = sqlite3.connect(new, isolation_level=None)
    try:
        connection.execute("PRAGMA synchronous = FULL")
        migrate(connection, new)
    finally:
        connection.close()
    os.replace(new, path)


def check_readable(path: Path) -> None:
    """Refuse what is no file, or may not be read; raises `StoreError`."""
    if path.is_dir():
        raise StoreError(f"{path} is a directory, not a store file", hint=f"is it {path / 'store.db'}?")
    if not _permitted(path, os.R_OK):
        raise StoreError(
            f"no permission to read the store {path}", hint="do it as the user who runs the manager"
        )


def check_owner(connection: sqlite3.Connection, path: Path, version: int) -> int:
    """The version of the file (0: new and empty); raises `StoreError` if it is not for us to touch."""
    application = _number(connection, "PRAGMA application_id")
    found = _number(connection, "PRAGMA user_version")
    tables = _number(connection, "SELECT count(*) FROM sqlite_master")
    if application != APPLICATION_ID and (application or found or tables):
        raise StoreError(
            f"{path} is a database of another application (id {application:#x})",
            hint="choose another file for the store; this one was left as it was",
        )
    if found > version:
        raise StoreError(
            f"{path} was written by a newer Kestrel: its schema is version {found}, "
            f"this program knows up to version {version}",
            hint="start the newer Kestrel, or choose another file; this one was left as it was",
        )
    return found


def check_pool(connection: sqlite3.Connection, path: Path, version: int, pool: str) -> None:
    """Refuse, with `StoreError`, a file of this version that belongs to another pool; empty: any will do."""
    if version < POOL_SINCE or not pool:
        return
    (owner,) = connection.execute("SELECT pool FROM meta").fetchone()
    if owner not in ("", pool):
        raise other_pool(str(path), owner, pool)


def other_pool(place: str, owner: str, pool: str) -> StoreError:
    """The error for a store whose owner is another pool; for all makers."""
    return StoreError(
        f"the store {place} belongs to the pool {owner!r}, not to {pool!r}",
        hint=f"start the manager with --pool {owner}, or give the pool {pool!r} a store of its own (--store)",
        code="other_pool",
    )


def migrate(
    connection: sqlite3.Connection, path: Path, migrations: Sequence[Sequence[str]] = MIGRATIONS
) -> tuple[int, int]:
    """Bring the file to the newest version, each step in a transaction of its own → (before, after)."""
    before = check_owner(connection, path, len(migrations))
    for version, statements in enumerate(migrations[before:], before + 1):
        connection.execute("BEGIN IMMEDIATE")
        try:
            for statement in statements:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {version}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
    return before, len(migrations)


def _permitted(path: Path, mode: int) -> bool:
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


def _forbidden(path: Path) -> StoreError:
    return StoreError(
        f"no permission to read and write the store {path}",
        hint=f"chown or chmod {path} and {path.parent} for the user who runs the manager",
    )


def _number(connection: sqlite3.Connection, query: str) -> int:
    return int(connection.execute(query).fetchone()[0])
