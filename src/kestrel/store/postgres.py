"""The store in a PostgreSQL database, which several managers may share: one writes, the others stand by.

Two threads with a session each: the writer stores units in groups (group commit), as the SQLite store does,
and the keeper answers questions about the lease, so that a long transaction never delays a renewal. The
event loop only puts units and questions into queues and gets answers posted.

It must never tell of a unit that is not committed (law 1), store anything for a manager that was replaced,
hold the event loop, or show the password of the database. Called by the manager's shell;
`kestrel.store.places` makes it. Needs psycopg, the extra `postgres`.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import psycopg

from kestrel.errors import InternalError, StoreError
from kestrel.ports import (
    IN_USE,
    JobRecord,
    LeaseView,
    Read,
    StoreContent,
    Write,
)
from kestrel.store.postgres_keeper import Keeper
from kestrel.store.postgres_reads import read_content
from kestrel.store.postgres_session import Address, PostgresSettings
from kestrel.store.postgres_writer import Writer
from kestrel.store.writing import Done, Post, UnitQueue

__all__ = ["PostgresSettings", "PostgresStore"]

log = logging.getLogger("kestrel.store")


class PostgresStore:
    """`kestrel.ports.Store` and `kestrel.ports.LeaseBook` in the database `dsn` (as libpq understands it).

    `post` brings answers to the event loop's thread. `pool`: whose store it must be; a new one becomes that
    (empty: not checked). All answers are posted before `close` returns, which also gives the lease back.
    Raises `StoreError` for an address that is none.
    """

    def __init__(
        self,
        dsn: str,
        post: Post,
        *,
        pool: str = "",
        settings: PostgresSettings | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.settings = settings or PostgresSettings()
        self._address = Address(dsn)
        self._wall = wall
        self._queue = UnitQueue(
            self.place, post, self.settings.queue_units_max, self.settings.group_writes_max
        )
        self._keeper = Keeper(self._address, pool, self.settings, post)
        self._writer: Writer | None = None
        self._thread: threading.Thread | None = None

    @property
    def place(self) -> str:
        """The address as it may be shown."""
        return self._address.place

    # --- the store ------------------------------------------------------------------------------------

    def open(self, terms_of: Callable[[JobRecord], Any]) -> StoreContent:
        """Read it all, for the life of the lease that was taken; takes the lease itself if nobody has it.

        Blocks; raises `StoreError`.
        """
        if self._thread is not None:
            raise InternalError(f"the store {self.place} is open already")
        if self._keeper.taken is None:
            self._take()
        epoch = self._keeper.taken
        assert epoch is not None
        writer = Writer(self._address, self.settings, epoch, self._wall)
        try:
            session = writer.connect()
            session.set_bound(self.settings.open_s)
            content = read_content(session, epoch, terms_of, self.settings.states_read_at_once)
            session.set_bound(self.settings.answer_s)
        except BaseException as problem:
            writer.close()
            if isinstance(problem, psycopg.Error):
                raise self._address.explain(problem) from problem
            raise
        self._writer = writer
        self._queue.open()
        self._thread = threading.Thread(
            target=writer.serve, args=(self._queue,), name="kestrel-store", daemon=True
        )
        self._thread.start()
        return content

    def commit(self, writes: Sequence[Write], reads: Sequence[Read], done: Done, *, unit: int = 0) -> None:
        """Queue one unit; the sequences must not be changed before `done` is called."""
        self._queue.put(writes, reads, done, unit)

    def shortage(self) -> StoreError | None:
        """Why nothing new should be taken on now: the last that was written found no room."""
        return None if self._writer is None else self._writer.shortage

    def close(self) -> None:
        """Store what waits, post the answers, give the lease back. Blocks; may be called twice."""
        self._queue.close()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        epoch, self._keeper.taken = self._keeper.taken, None
        if epoch is not None:
            try:
                self._keeper.ask(lambda: self._keeper.release(epoch))
            except StoreError as problem:
                # It runs out by itself, and the database sees that we are gone.
                log.warning("lease_not_released", extra={"place": self.place, "problem": problem.text})
        self._keeper.close()

    def _take(self) -> None:
        keeper = self._keeper
        view = keeper.ask(keeper.look)
        holder = f"{socket.gethostname()}, process {os.getpid()}"
        if (view.holder and view.connected) or keeper.ask(lambda: keeper.take(view, holder)) is None:
            view = keeper.ask(keeper.look)
            keeper.close()
            raise StoreError(
                f"the store {self.place} is in use by another manager ({view.holder or 'unknown'})",
                hint="stop the other manager, stand by for it (kestrel manager --standby), "
                "or give this one a database of its own",
                code=IN_USE,
                retry=True,
            )

    # --- the lease ------------------------------------------------------------------------------------

    def look(self, done: Callable[[LeaseView | StoreError], None]) -> None:
        """Read the row; an empty database gets its tables first."""
        self._keeper.put(self._keeper.look, done)

    def take(self, seen: LeaseView, holder: str, done: Callable[[int | StoreError | None], None]) -> None:
        """Take the lease if it is still as seen; the former holder's session is ended if it stands still."""
        self._keeper.put(lambda: self._keeper.take(seen, holder), done)

    def renew(self, epoch: int, done: Callable[[bool | StoreError], None]) -> None:
        """Count the beat up, if the lease is still ours."""
        self._keeper.put(lambda: self._keeper.renew(epoch), done)

    def release(self, epoch: int, done: Callable[[bool | StoreError], None]) -> None:
        """Give the lease back, if it is still ours."""
        self._keeper.put(lambda: self._keeper.release(epoch), done)
