"""The store in one SQLite file: the default of a manager.

One thread owns the connection and runs all SQL; the event loop only puts units into a queue and gets
answers posted. Whatever waits in the queue goes into one transaction with one fsync (group commit), so a
busy manager pays little for each unit and an idle one waits for nobody.

A lock file beside the database keeps a second manager out; the database itself stays open to readers, so
that it can be checked, backed up and exported meanwhile.

It must never tell of a unit that is not on the disk (law 1), hold the event loop, or store half a unit.
Called by the manager's shell; `kestrel.store.places` makes it.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import msgspec

from kestrel.errors import InternalError, StoreError
from kestrel.locks import lock_file
from kestrel.ports import CommitFailed, JobRecord, Read, StoreContent, Write
from kestrel.store import reads as rd
from kestrel.store import schema
from kestrel.store.lives import keep_life, leap_if_older
from kestrel.store.sqlite_problems import explain, for_caller, in_use
from kestrel.store.sqlite_writer import Room, Writer
from kestrel.store.writing import Done, Post, UnitQueue

log = logging.getLogger("kestrel.store")

LOCK_RETRY_S = 0.05


@dataclass(frozen=True, slots=True)
class SqliteSettings:
    """Bounds of the store."""

    queue_units_max: int = 10_000
    """Units that may wait; one more is answered (in its turn) with `CommitFailed`, to be tried again."""
    group_writes_max: int = 50_000
    """Writes after which a transaction takes in no further unit."""
    lock_wait_s: float = 2.0
    """How long to wait for a manager that is just ending before the file counts as taken."""
    params_cache_bytes_max: int = 16 * 2**20
    """Encoded size of the parameters kept decoded."""
    wal_pages: int = 4000
    """Pages (of 4 KiB) in the write-ahead log before it is moved into the file."""
    wal_bytes_kept: int = 64 * 2**20
    """A log that grew beyond this is cut back."""
    file_bytes_max: int = 0
    """Largest size of the file; 0: as the disk allows."""
    reserve_bytes: int = 64 * 2**20
    """With less room nothing new is taken on (`shortage`); an eighth of what there is, if that is less."""
    room_check_s: float = 1.0
    """How often it is looked how much room is left."""


class SqliteStore:
    """`kestrel.ports.Store` in the file `path`. No two managers can have the same file open.

    `post` brings answers to the event loop's thread. `pool`: whose store it must be; a new one becomes that
    (empty: not checked). `durable`: survive a power cut too (fsync at every group commit); without it the
    file stays sound, but the last seconds may be missing after one.

    All answers are posted before `close` returns.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        post: Post,
        *,
        pool: str = "",
        durable: bool = True,
        settings: SqliteSettings | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.path = Path(path)
        self.settings = settings or SqliteSettings()
        self._pool = pool
        self._durable = durable
        self._wall = wall
        self._queue = UnitQueue(
            str(self.path), post, self.settings.queue_units_max, self.settings.group_writes_max
        )
        self._thread: threading.Thread | None = None
        self._shortage: StoreError | None = None

    # --- the role -------------------------------------------------------------------------------------

    def open(self, terms_of: Callable[[JobRecord], Any]) -> StoreContent:
        """Take the file, bring its schema up to date, count the epoch up, read it all.

        Blocks; raises `StoreError`.
        """
        if self._thread is not None:
            raise InternalError(f"the store {self.path} is open already")
        opened: Future[StoreContent] = Future()
        self._queue.open()
        self._thread = threading.Thread(
            target=self._run, args=(terms_of, opened), name="kestrel-store", daemon=True
        )
        self._thread.start()
        try:
            return opened.result()
        except BaseException:
            self.close()
            raise

    def commit(self, writes: Sequence[Write], reads: Sequence[Read], done: Done, *, unit: int = 0) -> None:
        """Queue one unit; the sequences must not be changed before `done` is called."""
        self._queue.put(writes, reads, done, unit)

    def shortage(self) -> StoreError | None:
        """Why nothing new should be taken on now, as was found out in the last `room_check_s`."""
        return self._shortage

    def close(self) -> None:
        """Store what waits, post the answers, give the file back. Blocks; may be called twice."""
        thread = self._thread
        if thread is None:
            return
        self._queue.close()
        thread.join()
        self._thread = None

    # --- on the writer's thread -----------------------------------------------------------------------

    def _run(self, terms_of: Callable[[JobRecord], Any], opened: Future[StoreContent]) -> None:
        lock: IO[str] | None = None
        connection: sqlite3.Connection | None = None
        settings = self.settings
        try:
            schema.check_place(self.path)
            lock = self._lock()
            schema.make_file(self.path)
            connection = sqlite3.connect(
                self.path, timeout=settings.lock_wait_s, isolation_level=None, cached_statements=256
            )
            content = self._take(connection, terms_of)
            writer = Writer(connection, self.path, content.epoch, settings.params_cache_bytes_max, self._wall)
            room = Room(connection, self.path, settings.reserve_bytes, settings.file_bytes_max)
            self._shortage = room.shortage()
        except BaseException as problem:  # noqa: BLE001 - handed to the caller of open()
            _release(connection, lock)
            opened.set_exception(_opening(problem, self.path))
            return
        opened.set_result(content)
        try:
            self._serve(writer, room)
        finally:
            _release(connection, lock)

    def _lock(self) -> IO[str]:
        """Beside the file itself, wherever that lies: two names for one file must not be two locks."""
        real = self.path.resolve()
        path = real.with_name(f"{real.name}.lock")
        until = time.monotonic() + self.settings.lock_wait_s
        pause = threading.Event()
        while True:
            try:
                return lock_file(path, lambda holder: in_use(self.path, holder))
            except StoreError:
                if time.monotonic() >= until:
                    raise
            pause.wait(LOCK_RETRY_S)  # nobody announces that a file lock is free

    def _take(self, connection: sqlite3.Connection, terms_of: Callable[[JobRecord], Any]) -> StoreContent:
        try:
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as problem:
            if problem.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
                raise in_use(self.path) from problem  # an older Kestrel, which locks the database itself
            raise
        version = schema.check_owner(connection, self.path, len(schema.MIGRATIONS))
        schema.check_pool(connection, self.path, version, self._pool)
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {'FULL' if self._durable else 'NORMAL'}")
        connection.execute(f"PRAGMA wal_autocheckpoint = {self.settings.wal_pages}")
        connection.execute(f"PRAGMA journal_size_limit = {self.settings.wal_bytes_kept}")
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute("PRAGMA cache_size = -32768")
        if self.settings.file_bytes_max:
            page_bytes = connection.execute("PRAGMA page_size").fetchone()[0]
            connection.execute(
                f"PRAGMA max_page_count = {max(1, self.settings.file_bytes_max // page_bytes)}"
            )
        schema.migrate(connection, self.path)
        # One transaction: a file that cannot be read is not written to either.
        connection.execute("BEGIN IMMEDIATE")
        rd.begin_life(connection, self._pool)
        leap_if_older(connection, self.path)
        content = rd.read_content(connection, terms_of)
        connection.execute("COMMIT")
        if self._durable:
            keep_life(self.path, content.epoch)
        return content

    def _serve(self, writer: Writer, room: Room) -> None:
        """Store groups of units until the store closes, and look at the room that is left now and then."""
        look_at = time.monotonic() + self.settings.room_check_s
        while True:
            units = self._queue.next_group(look_at)
            if units is None:
                return
            outcomes = writer.store(units) if units else []
            failed = any(isinstance(outcome, CommitFailed) for outcome in outcomes)
            if failed or time.monotonic() >= look_at:
                self._look(room)
                look_at = time.monotonic() + self.settings.room_check_s
            if units:
                self._queue.answer(units, outcomes)

    def _look(self, room: Room) -> None:
        try:
            found = room.shortage()
        except sqlite3.Error as problem:
            found = explain(problem, self.path)
        if (found is None) != (self._shortage is None):
            if found is None:
                log.info("store_room_again", extra={"path": str(self.path)})
            else:
                log.warning("store_short", extra={"path": str(self.path), "problem": found.text})
        self._shortage = found


def _release(connection: sqlite3.Connection | None, lock: IO[str] | None) -> None:
    """The lock last: until then the file is still being written to."""
    if connection is not None:
        connection.close()
    if lock is not None:
        lock.close()


def _opening(problem: BaseException, path: Path) -> BaseException:
    """What the caller of `open` is told."""
    if isinstance(problem, sqlite3.Error):
        return explain(problem, path)
    if isinstance(problem, msgspec.DecodeError):
        return for_caller(problem, path)
    if isinstance(problem, OSError):
        error = StoreError(
            f"the store {path} cannot be opened: {problem.strerror or problem}",
            hint=f"mend the permissions of {path.parent} and of what lies in it, or choose another place",
        )
        error.__cause__ = problem
        return error
    return problem
