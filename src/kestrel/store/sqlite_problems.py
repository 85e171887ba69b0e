"""What SQLite says is wrong, in words that name the file and the cure.

Called by the SQLite store and by the commands that look into its file.
"""

from __future__ import annotations

import shlex
import sqlite3
from pathlib import Path

import msgspec

from kestrel.errors import InternalError, KestrelError, StoreError
from kestrel.ports import IN_USE
from kestrel.store.schema import APPLICATION_ID

DAMAGED = "store_damaged"
"""Code of the `StoreError` for a file whose content is not what was written."""
NOT_A_STORE = "not_a_store"
"""Code of the `StoreError` for a file that no store of ours begins like."""


def for_caller(problem: Exception, path: Path) -> Exception:
    """The problem of a unit as the manager is told it."""
    if isinstance(problem, KestrelError):
        return problem
    if isinstance(problem, sqlite3.Error) and hasattr(problem, "sqlite_errorcode"):
        return explain(problem, path)
    if isinstance(problem, msgspec.DecodeError):
        return damaged(path, f"what is stored cannot be read: {problem}", problem)
    bug = InternalError(f"the store {path} cannot take a unit: {problem!r}")
    bug.__cause__ = problem
    return bug


def explain(problem: sqlite3.Error, path: Path) -> StoreError:
    """SQLite's error as one that names the file and the cure (codes: sqlite.org/rescode.html)."""
    code = getattr(problem, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if code == sqlite3.SQLITE_CORRUPT:
        return damaged(path, str(problem), problem)
    text, hint, retry = _EXPLANATIONS.get(
        code,
        (
            "the store {path} failed: {problem}",
            "check the disk, then: kestrel store check --store {path}",
            False,
        ),
    )
    error = StoreError(
        text.format(path=path, problem=problem),
        hint=hint.format(path=path),
        code=NOT_A_STORE if code == sqlite3.SQLITE_NOTADB else "",
        retry=retry,
    )
    error.__cause__ = problem
    return error


def in_use(path: Path, holder: str = "") -> StoreError:
    """The error for a store that another manager has; `holder` is its process id, if known."""
    who = f" (process {holder})" if holder else ""
    return StoreError(
        f"the store {path} is in use by another manager{who}",
        hint="stop the other manager, or give this one a store of its own",
        code=IN_USE,
        retry=True,
    )


def damaged(path: Path, what: str, cause: Exception | None = None) -> StoreError:
    """The error for a file whose content is not what was written."""
    error = StoreError(
        f"the store {path} is damaged: {what}",
        hint=f"see what is left, and what to do: kestrel store check --store {shlex.quote(str(path))}",
        code=DAMAGED,
    )
    error.__cause__ = cause
    return error


def repair_steps(path: Path) -> list[str]:
    """What to do about a damaged file: commands, and words after `#`."""
    file = shlex.quote(str(path))
    aside = shlex.quote(f"{path}.damaged")
    return [
        "# first of all: is this the right file? If it never was a store, leave it alone",
        "# stop the manager, and put the damaged file aside with its log",
        f"mkdir {aside} && mv {file} {aside}/store.db",
        f"for x in wal shm; do test ! -e {file}-$x || mv {file}-$x {aside}/store.db-$x; done",
        "# then put a backup in its place, if there is one",
        f"cp BACKUP {file}",
        "# or save what can still be read (the program sqlite3 is needed)",
        f"(sqlite3 {aside}/store.db .dump | sed 's/^ROLLBACK;.*/COMMIT;/'; "
        f'echo "PRAGMA application_id = {APPLICATION_ID};"; '
        f"sqlite3 {aside}/store.db 'PRAGMA user_version' | sed 's/.*/PRAGMA user_version = &;/')"
        f" | sqlite3 {file}",
        "# and see whether it is sound",
        f"kestrel store check --store {file}",
    ]


_EXPLANATIONS = {
    sqlite3.SQLITE_FULL: (
        "no room left for the store {path}: {problem}",
        "free space on the disk of {path}; what waits is stored as soon as there is room",
        True,
    ),
    sqlite3.SQLITE_IOERR: (
        "the disk of the store {path} cannot be written or read: {problem}",
        "check the space and the health of the disk of {path}",
        True,
    ),
    sqlite3.SQLITE_BUSY: (
        "the store {path} is locked by another program: {problem}",
        "end the program that writes to {path}; the manager goes on as soon as it can",
        True,
    ),
    sqlite3.SQLITE_READONLY: (
        "the store {path} cannot be written: {problem}",
        "make {path} and its directory writable for the user who runs the manager",
        False,
    ),
    sqlite3.SQLITE_PERM: (
        "no permission to use the store {path}: {problem}",
        "make {path} and its directory writable for the user who runs the manager",
        False,
    ),
    sqlite3.SQLITE_CANTOPEN: (
        "the store {path} cannot be opened: {problem}",
        "check that the directory of {path} exists and that the manager's user may write there",
        False,
    ),
    sqlite3.SQLITE_NOTADB: (
        "{path} is not a store of Kestrel: {problem}",
        "choose another file for the store; if this one was a store, its beginning is damaged: put a backup "
        "in its place",
        False,
    ),
}
