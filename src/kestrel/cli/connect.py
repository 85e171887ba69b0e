"""Which pool a user's command talks to, and the connection to it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from kestrel.cli.logs import tell_in_words
from kestrel.client import Client
from kestrel.client.connect import connected
from kestrel.config import PoolAccess, pool_access_path

DEFAULT_POOL = "default"


def pool_name(pool: str | None) -> str:
    """The pool that was asked for, else `KESTREL_POOL`, else `default`."""
    return pool or os.environ.get("KESTREL_POOL") or DEFAULT_POOL


def access_of(pool: str | None) -> PoolAccess:
    """How this user reaches the pool: by name, or by the path of an access file."""
    name = pool_name(pool)
    return PoolAccess.load(Path(name) if "/" in name else pool_access_path(name))


@asynccontextmanager
async def connected_client(pool: str | None = None, *, answer_s_max: float = 30.0) -> AsyncIterator[Client]:
    """A connected client of a pool's manager. Raises `KestrelError` with what is wrong and the cure."""
    tell_in_words()
    access = access_of(pool)
    client = Client(access.manager, answer_s_max=answer_s_max)
    async with connected(client, access):
        yield client
