"""Runs groups of units as transactions of the PostgreSQL store, and makes broken connections anew.

Called by `kestrel.store.postgres` on its writer thread only. Every transaction begins by moving the number
of the last unit on, in the row that also holds the epoch: for a manager that was replaced there is no such
row. Its lock makes a take-over wait for the commit, and a new connection of ours for what an old one left
under way.

It must never store anything for an epoch that is not the latest, nor a unit twice.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import psycopg

from kestrel.core.effects import RecordWorker
from kestrel.core.model import JobId
from kestrel.errors import StoreError
from kestrel.ports import FENCED, AddJob, CommitDone, CommitFailed, DrainWorker, ReadParams
from kestrel.store.ends import check_unit, misuse
from kestrel.store.postgres_jobs import Jobs, PostgresParams
from kestrel.store.postgres_problems import FULL
from kestrel.store.postgres_reads import Reader
from kestrel.store.postgres_schema import RESULTS_SEQ
from kestrel.store.postgres_session import Address, PostgresSettings, Row, Session, for_caller
from kestrel.store.postgres_tables import Transaction
from kestrel.store.writing import Unit, UnitQueue

log = logging.getLogger("kestrel.store")

_CONNECTION_STATES = ("25006", "57P01", "57P02", "57P03")
"""SQLSTATEs after which a session is of no use."""


def fenced(place: str) -> StoreError:
    """The error for a manager whose place another one has taken."""
    return StoreError(
        f"another manager has taken over the store {place}",
        hint="nothing is lost: the other one goes on with what is stored; this one can stand by again",
        code=FENCED,
    )


class Writer:
    """Writes for one life of a manager, which has the number `epoch`. `session` may be lost at any time."""

    def __init__(
        self,
        address: Address,
        settings: PostgresSettings,
        epoch: int,
        wall: Callable[[], float],
    ) -> None:
        self._address = address
        self._settings = settings
        self._epoch = epoch
        self._wall = wall
        self._stored = 0
        """Number of the last unit of this life that is known to be stored. Units that only read are counted
        here, but leave no trace in the database."""
        self._session: Session | None = None
        self._former: tuple[int, datetime] | None = None
        self._jobs: Jobs
        self._params: PostgresParams
        self._reader: Reader
        self._problem: StoreError | None = None
        self._committing = False
        """Whether a COMMIT was sent whose answer is not known."""
        self._end: StoreError | None = None
        """Another manager has taken over, for good."""
        self._pause_s = settings.reconnect_s
        self._due = 0.0
        self.shortage: StoreError | None = None
        """Why nothing new should be taken on now."""

    # --- connections ----------------------------------------------------------------------------------

    def connect(self) -> Session:
        """A session that may write in this epoch. Raises psycopg's errors, or `StoreError` `FENCED`."""
        session = Session(self._address, "writer", self._settings, self._settings.answer_s)
        try:
            if self._former is not None:
                # It may still hold locks: a connection can be broken for us, but not for the server.
                session.ask(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE pid = %s AND backend_start = %s",
                    self._former,
                )
            rows = session.ask(
                "UPDATE kestrel_meta SET writer_pid = %s, writer_since = %s WHERE epoch = %s RETURNING unit",
                (session.pid, session.since, self._epoch),
            )
            if not rows:
                raise fenced(self._address.place)
        except BaseException:
            session.close()
            raise
        self._former = (session.pid, session.since)
        self._stored = max(self._stored, rows[0][0])
        self._session = session
        self._jobs = Jobs(session, self._settings.jobs_cached_max)
        self._params = PostgresParams(session, self._settings.params_cache_bytes_max)
        self._reader = Reader(session, self._params, lambda job: self._jobs.get(job).size)
        return session

    def serve(self, queue: UnitQueue) -> None:
        """Store groups of units until the queue is closed, and reconnect in between."""
        while True:
            units = queue.next_group(None if self._session is not None else self._due)
            if units is None:
                return
            if self._session is None and time.monotonic() >= self._due:
                self._reconnect()
            if units:
                queue.answer(units, self.store(units))

    def close(self) -> None:
        """Drop the connection."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def _reconnect(self) -> bool:
        """Whether units can be stored again."""
        try:
            self.connect()
        except StoreError as problem:
            self._out_of_order(problem)
            return False
        except psycopg.Error as problem:
            self._out_of_order(self._address.explain(problem))
            return False
        log.info("store_connected_again", extra={"place": self._address.place})
        self._problem = None
        self._pause_s = self._settings.reconnect_s
        return True

    def _out_of_order(self, told: StoreError) -> None:
        """From now on units are refused, until a connection is made again."""
        self.close()
        if told.code == FENCED:
            self._end = told
        else:
            told.retry = True  # it has worked before: what is wrong now may be mended while we run
        if self._problem is None:
            log.warning("store_connection_lost", extra={"place": self._address.place, "problem": told.text})
        self._problem = told
        self._due = time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, self._settings.reconnect_s_max)

    # --- transactions ---------------------------------------------------------------------------------

    def store(self, units: Sequence[Unit]) -> list[CommitDone | CommitFailed]:
        """One transaction for all; if that fails, one for each, so that only the guilty fail.

        A connection that turns out to be broken, as after a restart of the server in a quiet hour, is made
        anew at once, and the units are tried again, unless some may have been stored unrecognisably.
        """
        worked = self._session is not None
        outcome = self._attempt(units)
        broke = worked and self._session is None
        if broke and (not self._committing or all(u.number for u in units)) and self._reconnect():
            outcome = self._attempt(units)
        if not isinstance(outcome, CommitFailed):
            return outcome
        if len(units) == 1 or self._end is not None:
            return [outcome] * len(units)
        outcomes: list[CommitDone | CommitFailed] = []
        for unit in units:
            alone = self._attempt([unit])
            outcomes += [alone] if isinstance(alone, CommitFailed) else alone
        return outcomes

    def _attempt(self, units: Sequence[Unit]) -> list[CommitDone | CommitFailed] | CommitFailed:
        session = self._session
        if self._end is not None:
            return CommitFailed(self._end)
        if session is None:
            assert self._problem is not None
            return CommitFailed(self._problem)
        try:
            done = self._transaction(session, units)
        except Exception as problem:  # noqa: BLE001 - the boundary of a unit: whatever it is, the unit is told
            return CommitFailed(self._failed(session, problem))
        return done

    def _failed(self, session: Session, problem: Exception) -> Exception:
        """Bring the session into order again, or drop it → what the unit is told."""
        told = _same_number(problem) or for_caller(problem, self._address)
        if isinstance(told, StoreError):
            if told.code == FENCED:
                self._end = told
            elif told.code == FULL:
                self.shortage = told
        state = getattr(problem, "sqlstate", None)
        if not session.lost and state not in _CONNECTION_STATES:
            self._params.forget()
            self._jobs.forget()
            try:
                session.undo()
            except psycopg.Error as worse:
                log.warning("store_rollback_failed", extra={"problem": str(self._address.explain(worse))})
                session.close()
        if session.lost or state in _CONNECTION_STATES:
            self._out_of_order(told if isinstance(told, StoreError) else _gone(self._address))
            assert self._problem is not None
            return self._problem
        return told

    def _transaction(self, session: Session, units: Sequence[Unit]) -> list[CommitDone | CommitFailed]:
        stored = self._stored
        fresh: list[bool] = []
        try:
            for unit in units:
                fresh.append(check_unit(unit.number, stored))
                if fresh[-1]:
                    stored = unit.number or stored
        except StoreError:
            self._begin(session, None)
            session.flush()  # who was replaced is told that, and nothing else
            raise
        writes = any(unit.writes and is_fresh for unit, is_fresh in zip(units, fresh, strict=True))
        self._committing = False
        self._begin(session, stored if writes else None)
        self._jobs.load(_jobs_of(units))
        transaction = Transaction(
            session, self._params, self._jobs, self._wall, self._settings.statement_bytes_max
        )
        answers: list[list[Any]] = []
        for place, unit in enumerate(units):
            if fresh[place]:
                transaction.write(place, unit.writes)
            if any(not isinstance(read, ReadParams) for read in unit.reads):
                transaction.flush()
            answers.append([self._reader.answer(read) for read in unit.reads])
        if writes:
            transaction.finish()
        self._committing = writes
        session.send("COMMIT")
        session.flush()
        self._stored = stored
        if writes:
            self.shortage = None
        return [CommitDone(answers[place], transaction.duplicates[place]) for place in range(len(units))]

    def _begin(self, session: Session, unit: int | None) -> None:
        """Open the transaction, with the fence as its first statement; `unit`: None if nothing is written."""
        if unit is None:
            session.send("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            session.send("SELECT 1 FROM kestrel_meta WHERE epoch = %s", (self._epoch,), self._refuse_fenced)
            return
        session.send("BEGIN ISOLATION LEVEL READ COMMITTED")
        session.send(
            "UPDATE kestrel_meta SET unit = %s WHERE epoch = %s",
            (unit, self._epoch),
            self._refuse_fenced,
        )

    def _refuse_fenced(self, _: list[Row], count: int) -> None:
        if count != 1:
            raise fenced(self._address.place)


def _jobs_of(units: Sequence[Unit]) -> set[JobId]:
    """Jobs that these units name."""
    jobs = {read.job for unit in units for read in unit.reads}
    for unit in units:
        for write in unit.writes:
            if isinstance(write, AddJob):
                jobs.add(write.record.job)
            elif not isinstance(write, (RecordWorker, DrainWorker)):
                jobs.add(write.job)
    return jobs


def _same_number(problem: Exception) -> StoreError | None:
    if isinstance(problem, psycopg.errors.UniqueViolation) and problem.diag.constraint_name == RESULTS_SEQ:
        return misuse("two results of a job have the same number")
    return None


def _gone(address: Address) -> StoreError:
    return address.explain(psycopg.OperationalError("it broke during a transaction"))
