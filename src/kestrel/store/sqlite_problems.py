"""What SQLite says is wrong, in words that name the file and the cure.

Called by the SQLite store and by the commands that look into its file.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from kestrel.errors import InternalError, KestrelError, StoreError
from kestrel.ports import IN_USE

DAMAGED = "store_damaged"
"""Code of the `StoreError` for a file whose content is not what was written."""


def for_caller(problem: Exception, path: Path) -> Exception:
    """The problem of a unit as the manager is told it."""
    if isinstance(problem, KestrelError):
        return problem
    if isinstance(problem, sqlite3.Error) and hasattr(problem, "sqlite_errorcode"):
        return explain(problem, path)
    bug = InternalError(f"the store {path} cannot take a unit: {problem!r}")
    bug.__cause__ = problem
    return bug


def explain(problem: sqlite3.Error, path: Path) -> StoreError:
    """SQLite's error as one that names the file and the cure (codes: sqlite.org/rescode.html)."""
    code = getattr(problem, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    text, hint, retry = _EXPLANATIONS.get(
        code,
        ("the store {path} failed: {problem}", "check the disk, then: kestrel store check {path}", False),
    )
    error = StoreError(
        text.format(path=path, problem=problem),
        hint=hint.format(path=path),
        code=DAMAGED if code == sqlite3.SQLITE_CORRUPT else "",
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


def repair_hint(path: Path) -> str:
    """What to do about a damaged file, word for word."""
    return (
        f"stop the manager and keep the file (mv {path} {path}.damaged); then put a backup in its place, or "
        f"save what can be read: sqlite3 {path}.damaged .recover | sqlite3 {path} && kestrel store check "
        f"--store {path}"
    )


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
    sqlite3.SQLITE_CORRUPT: (
        "the store {path} is damaged: {problem}",
        "see what is left: kestrel store check --store {path}",
        False,
    ),
}
