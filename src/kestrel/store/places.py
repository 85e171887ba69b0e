"""Which maker of the store a place names: a path is a SQLite file, `postgresql://…` a database.

Called by the command line and by the hosts of a manager. psycopg is imported only for a database: those who
use a file need not have it.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from kestrel.errors import UsageError
from kestrel.ports import Store
from kestrel.store.archive import Archive
from kestrel.store.sqlite import SqliteSettings, SqliteStore

DATABASE_PREFIXES = ("postgresql://", "postgres://")


def is_database(place: str | os.PathLike[str]) -> bool:
    """Whether the place is a database on a server, which managers may share."""
    return str(place).startswith(DATABASE_PREFIXES)


def make_store(
    place: str | os.PathLike[str],
    post: Callable[[Callable[[], None]], object],
    *,
    pool: str = "",
    durable: bool = True,
) -> Store:
    """The store in this place, not yet open. `pool`: whose it must be; empty: not checked.

    `post` and `durable` as in `SqliteStore`; a database is as durable as its server is told to be. One in a
    database is a `LeaseBook`, too. Raises `UsageError` for a place that cannot be one.
    """
    if is_database(place):
        store: Store = _postgres("postgres").PostgresStore(str(place), post, pool=pool)
        return store
    # What need not last is scratch of a run that is going on: nothing else is to be kept room for.
    settings = SqliteSettings() if durable else SqliteSettings(reserve_bytes=0)
    return SqliteStore(file_of(place), post, pool=pool, durable=durable, settings=settings)


def open_archive(place: str | os.PathLike[str]) -> Archive:
    """What is in this store, to be read beside a running manager. Raises `UsageError` and `StoreError`."""
    if is_database(place):
        archive: Archive = _postgres("postgres_archive").PostgresArchive(str(place))
        return archive
    from kestrel.store.sqlite_archive import SqliteArchive

    return SqliteArchive(file_of(place))


def without_password(place: str | os.PathLike[str]) -> str:
    """The place as it may be shown and logged."""
    shown = str(place)
    if not is_database(place):
        return shown
    shown = re.sub(r"(://[^/?@]*?):[^/?]*@", r"\1@", shown)
    return re.sub(r"([?&]password=)[^&]*", r"\1…", shown)


def file_of(place: str | os.PathLike[str]) -> Path:
    """The path of a store file; raises `UsageError` for the address of a database that we do not know."""
    text = str(place)
    if "://" in text:
        scheme = text.partition("://")[0]
        raise UsageError(
            f"there is no kind of store called {scheme!r}",
            hint="name a file, or a database as postgresql://USER@HOST/DATABASE",
        )
    if not text:
        raise UsageError("the place of the store is empty", hint="name a file or a database with --store")
    return Path(text)


def _postgres(name: str) -> ModuleType:
    try:
        importlib.import_module("psycopg")
    except ImportError as problem:
        raise UsageError(
            f"a store in PostgreSQL needs psycopg, which cannot be imported here ({problem})",
            hint="pip install 'kestrel-mtc[postgres]'",
        ) from problem
    return importlib.import_module(f"kestrel.store.{name}")
