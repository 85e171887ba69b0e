"""A database in memory that several managers of one process share: their jobs, and the lease."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from kestrel.clock import AsyncioClock
from kestrel.errors import StoreError
from kestrel.manager.leadership import replaced
from kestrel.ports import CommitDone, CommitFailed, JobRecord, LeaseView, Read, StoreContent, Write
from kestrel.store import MemoryStore
from parts.leases import Row


class Database:
    """What all of them see."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.row = Row()
        self.clock = AsyncioClock(loop)
        self.memory = MemoryStore(self.clock)
        self.problem: StoreError | None = None
        """Every question about the lease fails with it."""
        self.failed = asyncio.Event()
        """A question failed."""
        self.taken: asyncio.Queue[int] = asyncio.Queue()
        """The epochs, as they begin."""


class SharedStore:
    """`Store` and `LeaseBook` of one manager; a session ends when it is closed or killed."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.epoch = 0
        self.closed = False

    def look(self, done: Callable[[LeaseView | StoreError], None]) -> None:
        row = self.database.row
        view = LeaseView(row.epoch, row.beat, row.holder, row.session is not None)
        self._answer(done, view)

    def take(self, seen: LeaseView, holder: str, done: Callable[[int | StoreError | None], None]) -> None:
        row = self.database.row
        if (row.epoch, row.beat) != (seen.epoch, seen.beat):
            self._answer(done, None)
            return
        row.epoch, row.beat, row.holder, row.session = row.epoch + 1, 0, holder, self
        self.epoch = row.epoch
        self.database.taken.put_nowait(row.epoch)
        self._answer(done, row.epoch)

    def renew(self, epoch: int, done: Callable[[bool | StoreError], None]) -> None:
        row = self.database.row
        if row.epoch == epoch and self.database.problem is None:
            row.beat, row.session = row.beat + 1, self
        self._answer(done, row.epoch == epoch)

    def release(self, epoch: int, done: Callable[[bool | StoreError], None]) -> None:
        row = self.database.row
        if row.epoch == epoch:
            row.beat, row.holder, row.session = row.beat + 1, "", None
        self._answer(done, row.epoch == epoch)

    def open(self, terms_of: Callable[[JobRecord], Any]) -> StoreContent:
        assert self.epoch == self.database.row.epoch, "the store is opened by who has the lease"
        return replace(self.database.memory.open(terms_of), epoch=self.epoch)

    def commit(
        self,
        writes: Sequence[Write],
        reads: Sequence[Read],
        done: Callable[[CommitDone | CommitFailed], None],
        *,
        unit: int = 0,
    ) -> None:
        if self.epoch == self.database.row.epoch:
            self.database.memory.commit(writes, reads, done, unit=unit)
        else:
            self.database.clock.call_later(0, lambda: done(CommitFailed(replaced())))

    def shortage(self) -> StoreError | None:
        return None

    def close(self) -> None:
        self.closed = True
        row = self.database.row
        if row.epoch == self.epoch:
            row.beat, row.holder, row.session = row.beat + 1, "", None

    def die(self) -> None:
        """As after kill -9 of its process: the database sees the session go."""
        if self.database.row.session is self:
            self.database.row.session = None

    def _answer(self, done: Callable[[Any], None], answer: object) -> None:
        problem = self.database.problem
        if problem is not None:
            self.database.failed.set()
        self.database.clock.call_later(0, lambda: done(problem or answer))
