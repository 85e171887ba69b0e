"""A real PostgreSQL for tests: `realpool.postgres`, or a skip that says what is missing.

`shared()` is one server for the whole run of tests, started when the first test asks; who kills, freezes or
restarts servers makes one of their own.
"""

from __future__ import annotations

import atexit
import hashlib
import importlib.util
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from realpool.postgres import PASSWORD, USER, PrivatePostgres, postgres_programs

__all__ = ["PASSWORD", "USER", "Postgres", "frozen", "need_postgres", "need_psycopg", "shared"]

_scratches = itertools.count(1)


def need_postgres() -> None:
    """The server, or no test: a skip, a failure where `CI` is set."""
    if postgres_programs() is None:
        text = "postgres is missing: apt-get install postgresql (see CONTRIBUTING.md)"
        if os.environ.get("CI"):
            pytest.fail(text)
        pytest.skip(text)


def need_psycopg() -> None:
    """The driver, or no test: a skip, a failure where `CI` is set."""
    if importlib.util.find_spec("psycopg") is None:
        text = "psycopg is missing: pip install 'kestrel-mtc[postgres]'"
        if os.environ.get("CI"):
            pytest.fail(text)
        pytest.skip(text)


class Postgres(PrivatePostgres):
    """`with Postgres() as server: server.database() …`; `fsync` off where nothing is killed or measured."""

    def __init__(self, **wanted: Any) -> None:
        need_postgres()
        super().__init__(**wanted)
        self._schemas: set[str] = set()

    freeze = PrivatePostgres.hold
    thaw = PrivatePostgres.go_on

    def place(self, key: object) -> str:
        """DSN of a schema of its own in one database, made when first asked for; cheaper than a database."""
        name = f"kestrel_{hashlib.sha256(str(key).encode()).hexdigest()[:16]}"
        if name not in self._schemas:
            self.execute(f"CREATE SCHEMA {name}")
            self._schemas.add(name)
        return f"{self.dsn()}?options=-csearch_path%3D{name}"

    @contextmanager
    def scratch_place(self) -> Iterator[str]:
        """DSN of an empty schema, which is dropped in the end."""
        key = f"scratch {next(_scratches)}"
        place = self.place(key)
        try:
            yield place
        finally:
            self.execute(
                "DO $$ BEGIN EXECUTE 'DROP SCHEMA ' || current_schema() || ' CASCADE'; END $$", place
            )

    def __enter__(self) -> Postgres:
        super().__enter__()
        return self


_shared: Postgres | None = None


def shared() -> Postgres:
    """The server of this run, for tests that do it no harm. Without fsync, for none of them kills it."""
    global _shared
    if _shared is None:
        need_psycopg()
        server = Postgres(fsync=False, connections=100)
        atexit.register(server.__exit__)
        server.start()
        _shared = server
    return _shared


@contextmanager
def frozen(server: Postgres) -> Iterator[None]:
    """Inside, the server stands still."""
    server.freeze()
    try:
        yield
    finally:
        server.thaw()
