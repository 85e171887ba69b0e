"""The store in one SQLite file: the default of a manager.

One thread owns the connection and runs all SQL; the event loop only puts units into a queue and gets
answers posted. Whatever waits in the queue goes into one transaction with one fsync (group commit), so a
busy manager pays little for each unit and an idle one waits for nobody.

It must never tell of a unit that is not on the disk (law 1), hold the event loop, or store half a unit.
Called by the manager's shell; the command line makes it.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from kestrel.errors import InternalError, KestrelError, StoreError
from kestrel.ports import CommitDone, CommitFailed, JobRecord, Read, StoreContent, Write
from kestrel.store import reads as rd
from kestrel.store import schema
from kestrel.store.params import ParamChunks
from kestrel.store.tables import RowWriter, Transaction

log = logging.getLogger("kestrel.store")

Done: TypeAlias = Callable[[CommitDone | CommitFailed], None]
Post: TypeAlias = Callable[[Callable[[], None]], object]
"""Has a function called on the event loop's thread; `loop.call_soon_threadsafe` is one."""


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


@dataclass(frozen=True, slots=True)
class _Unit:
    writes: Sequence[Write]
    reads: Sequence[Read]
    done: Done
    refused: StoreError | None = None


class SqliteStore:
    """`kestrel.ports.Store` in the file `path`. No two managers can have the same file open.

    `post` brings answers to the event loop's thread. `durable`: survive a power cut too (fsync at every
    group commit); without it the file stays sound, but the last seconds may be missing after one.
    All answers are posted before `close` returns.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        post: Post,
        *,
        durable: bool = True,
        settings: SqliteSettings | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.path = Path(path)
        self.settings = settings or SqliteSettings()
        self._post = post
        self._durable = durable
        self._wall = wall
        self._wake = threading.Condition()
        self._waiting: deque[_Unit] = deque()
        self._closing = False
        self._answers: deque[tuple[Done, CommitDone | CommitFailed]] = deque()
        self._thread: threading.Thread | None = None

    # --- the role -------------------------------------------------------------------------------------

    def open(self, terms_of: Callable[[JobRecord], Any]) -> StoreContent:
        """Take the file, bring its schema up to date, count the epoch up, read it all.

        Blocks; raises `StoreError`.
        """
        if self._thread is not None:
            raise InternalError(f"the store {self.path} is open already")
        opened: Future[StoreContent] = Future()
        self._closing = False
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
        with self._wake:
            if self._thread is None or self._closing:
                raise InternalError(f"a unit was committed to the store {self.path}, which is not open")
            if len(self._waiting) >= self.settings.queue_units_max:
                entry = _Unit((), (), done, self._overfull())
            else:
                entry = _Unit(writes, reads, done)
            self._waiting.append(entry)
            self._wake.notify()

    def shortage(self) -> StoreError | None:
        """Nothing is short."""
        return None

    def close(self) -> None:
        """Store what waits, post the answers, give the file back. Blocks; may be called twice."""
        thread = self._thread
        if thread is None:
            return
        with self._wake:
            self._closing = True
            self._wake.notify()
        thread.join()
        self._thread = None

    # --- on the loop's thread -------------------------------------------------------------------------

    def _deliver(self) -> None:
        """Call what is answered, in order. A callback that raises must not cost the others theirs."""
        while self._answers:
            done, outcome = self._answers.popleft()
            try:
                done(outcome)
            except BaseException:
                if self._answers:
                    self._post(self._deliver)
                raise

    # --- on the writer's thread -----------------------------------------------------------------------

    def _run(self, terms_of: Callable[[JobRecord], Any], opened: Future[StoreContent]) -> None:
        connection: sqlite3.Connection | None = None
        try:
            schema.check_place(self.path)
            self.path.touch(mode=0o600)  # commands and their output are nobody else's business
            connection = sqlite3.connect(
                self.path, timeout=self.settings.lock_wait_s, isolation_level=None, cached_statements=256
            )
            content = self._take(connection, terms_of)
        except BaseException as problem:  # noqa: BLE001 - handed to the caller of open()
            if connection is not None:
                connection.close()
            if isinstance(problem, sqlite3.Error):
                problem = explain(problem, self.path)
            opened.set_exception(problem)
            return
        opened.set_result(content)
        writer = _Writer(connection, self.path, self.settings, self._wall)
        try:
            while units := self._next_group():
                self._answer(units, writer.store(units))
        finally:
            connection.close()

    def _take(self, connection: sqlite3.Connection, terms_of: Callable[[JobRecord], Any]) -> StoreContent:
        # The lock comes first, and stays: between looking and writing nobody may step in.
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("BEGIN EXCLUSIVE")
        schema.check_owner(connection, self.path, len(schema.MIGRATIONS))
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
        rd.count_epoch(connection)
        return rd.read_content(connection, terms_of)

    def _next_group(self) -> list[_Unit]:
        """What waits, up to the bound of a group; blocks while nothing does; empty: the store closes."""
        with self._wake:
            while not self._waiting and not self._closing:
                self._wake.wait()
            units: list[_Unit] = []
            room = self.settings.group_writes_max
            while self._waiting and room > 0:
                unit = self._waiting.popleft()
                room -= len(unit.writes)
                units.append(unit)
            return units

    def _answer(self, units: Sequence[_Unit], outcomes: Sequence[CommitDone | CommitFailed]) -> None:
        self._answers.extend((unit.done, outcome) for unit, outcome in zip(units, outcomes, strict=True))
        try:
            self._post(self._deliver)
        except RuntimeError as problem:
            # The event loop is closed: nobody is left to tell, but what came in is still to be stored.
            log.warning("store_answer_undeliverable", extra={"units": len(units), "problem": str(problem)})

    def _overfull(self) -> StoreError:
        return StoreError(
            f"{self.settings.queue_units_max} units wait for the store {self.path} already",
            hint="the disk is too slow for this load; put the store on a faster one or raise queue_units_max",
            code="store_behind",
            retry=True,
        )


class _Writer:
    """Runs groups of units as transactions. Lives on the writer's thread."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        path: Path,
        settings: SqliteSettings,
        wall: Callable[[], float],
    ) -> None:
        self._connection = connection
        self._path = path
        self._wall = wall
        self._rows = RowWriter(connection)
        self._params = ParamChunks(connection, self._rows.insert, settings.params_cache_bytes_max)
        self._reader = rd.Reader(connection, self._params)

    def store(self, units: Sequence[_Unit]) -> list[CommitDone | CommitFailed]:
        """One transaction for all; if that fails, one for each, so that only the guilty fail."""
        outcome = self._attempt(units)
        if not isinstance(outcome, CommitFailed):
            return outcome
        if len(units) == 1:
            return [outcome]
        outcomes: list[CommitDone | CommitFailed] = []
        for unit in units:
            alone = self._attempt([unit])
            outcomes += [alone] if isinstance(alone, CommitFailed) else alone
        return outcomes

    def _attempt(self, units: Sequence[_Unit]) -> list[CommitDone | CommitFailed] | CommitFailed:
        try:
            return self._transaction(units)
        except Exception as problem:  # noqa: BLE001 - the boundary of a unit: whatever it is, the unit is told
            return CommitFailed(_for_caller(problem, self._path))

    def _transaction(self, units: Sequence[_Unit]) -> list[CommitDone | CommitFailed]:
        try:
            self._connection.execute("BEGIN")
            transaction = Transaction(self._connection, self._params, self._rows, self._wall)
            answers: list[list[Any]] = []
            for number, unit in enumerate(units):
                transaction.write(number, unit.writes)
                if unit.reads:
                    transaction.flush()
                answers.append([self._reader.answer(read) for read in unit.reads])
            transaction.finish()
            self._connection.execute("COMMIT")
        except BaseException:
            self._params.forget()
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        return [
            CommitFailed(unit.refused)
            if unit.refused is not None
            else CommitDone(answers[number], transaction.duplicates[number])
            for number, unit in enumerate(units)
        ]


def _for_caller(problem: Exception, path: Path) -> Exception:
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
        code, ("the store {path} failed: {problem}", "check the disk; restore the file from a backup", False)
    )
    error = StoreError(text.format(path=path, problem=problem), hint=hint.format(path=path), retry=retry)
    error.__cause__ = problem
    return error


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
        "the store {path} is in use by another manager",
        "stop the other manager, or give this one a store of its own",
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
        "choose another file for the store; this one was left as it was",
        False,
    ),
    sqlite3.SQLITE_CORRUPT: (
        "the store {path} is damaged: {problem}",
        "restore it from a backup, or save what is left: sqlite3 {path} .recover | sqlite3 new.db",
        False,
    ),
}
