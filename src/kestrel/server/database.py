"""Opens the SQLite file of accounts and rosters, makes its tables, refuses files that are not ours.

It must never write to a file of another application or of a newer Kestrel, and never leave the file
readable for others. A migration, once released, is never edited: a new one is appended. Called by
`kestrel.server.accounts`.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from kestrel.errors import EnvironmentProblem

APPLICATION_ID = 0x4B53_4143
"""`KSAC`, in the header of the file (sqlite.org/fileformat2.html section 1.3.12)."""
BUSY_S_MAX = 2.0
"""How long a write waits for another process that writes (`kestrel invite`)."""

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE meta (one INTEGER PRIMARY KEY CHECK (one = 1), secret BLOB NOT NULL)",
        "INSERT INTO meta VALUES (1, randomblob(32))",
        """CREATE TABLE accounts (
            local TEXT PRIMARY KEY,
            role TEXT NOT NULL,
            created REAL NOT NULL) WITHOUT ROWID""",
        """CREATE TABLE keys (
            local TEXT NOT NULL REFERENCES accounts (local) ON DELETE CASCADE,
            mechanism TEXT NOT NULL,
            salt BLOB NOT NULL,
            iterations INTEGER NOT NULL,
            stored_key BLOB NOT NULL,
            server_key BLOB NOT NULL,
            PRIMARY KEY (local, mechanism)) WITHOUT ROWID""",
        """CREATE TABLE invitations (
            hash TEXT PRIMARY KEY,
            role TEXT NOT NULL,
            uses_left INTEGER NOT NULL,
            expires REAL NOT NULL,
            created REAL NOT NULL) WITHOUT ROWID""",
        """CREATE TABLE roster (
            local TEXT NOT NULL REFERENCES accounts (local) ON DELETE CASCADE,
            contact TEXT NOT NULL,
            name TEXT NOT NULL,
            groups TEXT NOT NULL,
            receives INTEGER NOT NULL,
            sends INTEGER NOT NULL,
            asked INTEGER NOT NULL,
            pending INTEGER NOT NULL,
            listed INTEGER NOT NULL,
            PRIMARY KEY (local, contact)) WITHOUT ROWID""",
    ),
    (
        "ALTER TABLE accounts ADD COLUMN invitation TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE invitations ADD COLUMN name TEXT NOT NULL DEFAULT ''",
    ),
)
"""`MIGRATIONS[n]` makes version n + 1 out of version n."""


def open_database(
    path: Path | str, *, migrations: Sequence[Sequence[str]] = MIGRATIONS
) -> sqlite3.Connection:
    """A connection in autocommit mode to the file, or to `:memory:`; raises `EnvironmentProblem`."""
    try:
        if str(path) != ":memory:":
            _make_private(Path(path))
        connection = sqlite3.connect(path, timeout=BUSY_S_MAX, isolation_level=None)
    except (OSError, sqlite3.Error) as problem:
        raise _unusable(path, problem) from problem
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        _migrate(connection, path, migrations)
    except sqlite3.Error as problem:
        connection.close()
        raise _unusable(path, problem) from problem
    except BaseException:
        connection.close()
        raise
    return connection


def _make_private(path: Path) -> None:
    """The file with mode 0600: made if missing, so that no other mode is ever seen."""
    if path.exists():
        if os.name == "posix" and path.stat().st_mode & 0o077 and path.is_file():
            path.chmod(0o600)
    else:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))


def _migrate(connection: sqlite3.Connection, path: Path | str, migrations: Sequence[Sequence[str]]) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = _check_owner(connection, path, len(migrations))
        for statements in migrations[version:]:
            for statement in statements:
                connection.execute(statement)
        if version < len(migrations):
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {len(migrations)}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _check_owner(connection: sqlite3.Connection, path: Path | str, newest: int) -> int:
    """The version of the file (0: new and empty); raises `EnvironmentProblem` if it is not ours."""
    application = _number(connection, "PRAGMA application_id")
    version = _number(connection, "PRAGMA user_version")
    tables = _number(connection, "SELECT count(*) FROM sqlite_master")
    if application != APPLICATION_ID and (application or version or tables):
        raise EnvironmentProblem(
            f"{path} is a database of another application (id {application:#x})",
            hint="choose another file for the accounts; this one was left as it was",
        )
    if version > newest:
        raise EnvironmentProblem(
            f"{path} was written by a newer Kestrel: its schema is version {version}, "
            f"this program knows up to version {newest}",
            hint="start the newer Kestrel, or choose another file; this one was left as it was",
        )
    return version


def _number(connection: sqlite3.Connection, query: str) -> int:
    return int(connection.execute(query).fetchone()[0])


def _unusable(path: Path | str, problem: Exception) -> EnvironmentProblem:
    reason = getattr(problem, "strerror", None) or problem
    return EnvironmentProblem(
        f"the accounts file {path} cannot be used: {reason}",
        hint="check that the path is right, that you may read and write there, and that the disk has space",
    )
