"""Runs groups of units as transactions of the SQLite store, and knows how much room is left.

Called by `kestrel.store.sqlite` on its writer thread only.
"""

from __future__ import annotations

import logging
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kestrel.errors import StoreError
from kestrel.ports import FENCED, CommitDone, CommitFailed
from kestrel.store.ends import check_unit
from kestrel.store.reads import Reader
from kestrel.store.sqlite_problems import for_caller
from kestrel.store.tables import RowWriter, SqliteParams, Transaction
from kestrel.store.writing import Unit

log = logging.getLogger("kestrel.store")

MEBIBYTE = 2**20
SMALL_PART = 8
"""Of a small disk, or of a store that may not grow, this part is kept free at most."""


class Writer:
    """Writes for one life of a manager, which has the number `epoch`."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        path: Path,
        epoch: int,
        params_cache_bytes_max: int,
        wall: Callable[[], float],
    ) -> None:
        self._connection = connection
        self._path = path
        self._epoch = epoch
        self._wall = wall
        self._stored = 0
        """Number of the last unit of this life that is stored."""
        self._rows = RowWriter(connection)
        self._params = SqliteParams(connection, self._rows, params_cache_bytes_max)
        self._reader = Reader(connection, self._params)

    def store(self, units: Sequence[Unit]) -> list[CommitDone | CommitFailed]:
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

    def _attempt(self, units: Sequence[Unit]) -> list[CommitDone | CommitFailed] | CommitFailed:
        try:
            return self._transaction(units)
        except Exception as problem:  # noqa: BLE001 - the boundary of a unit: whatever it is, the unit is told
            return CommitFailed(for_caller(problem, self._path))

    def _transaction(self, units: Sequence[Unit]) -> list[CommitDone | CommitFailed]:
        stored = self._stored
        wrote = False
        try:
            self._connection.execute("BEGIN")
            transaction = Transaction(self._connection, self._params, self._rows, self._wall)
            answers: list[list[Any]] = []
            for place, unit in enumerate(units):
                if check_unit(unit.number, stored):
                    stored = unit.number or stored
                    wrote = True
                    transaction.write(place, unit.writes)
                if unit.reads:
                    transaction.flush()
                answers.append([self._reader.answer(read) for read in unit.reads])
            transaction.finish()
            if wrote:
                self._keep_number(stored)
            self._connection.execute("COMMIT")
        except BaseException:
            self._params.forget()
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        self._stored = stored
        return [CommitDone(found, transaction.duplicates[place]) for place, found in enumerate(answers)]

    def _keep_number(self, stored: int) -> None:
        """Also the fence: a file whose lock was lost (some network disks) may have another owner now."""
        kept = self._connection.execute(
            "UPDATE meta SET unit = ? WHERE epoch = ? AND unit <= ?", (stored, self._epoch, stored)
        )
        if kept.rowcount != 1:
            raise StoreError(
                f"another manager has taken the store {self._path} over",
                hint="let only one manager use a store file, on a disk of its own machine",
                code=FENCED,
            )


class Room:
    """How much may still be written."""

    def __init__(
        self, connection: sqlite3.Connection, path: Path, reserve_bytes: int, file_bytes_max: int
    ) -> None:
        self._connection = connection
        self._path = path
        self._reserve_bytes = reserve_bytes
        self._file_bytes_max = file_bytes_max
        self._unknown = False

    def shortage(self) -> StoreError | None:
        """Why nothing new should be taken on now."""
        if self._file_bytes_max:
            reserve = min(self._reserve_bytes, self._file_bytes_max // SMALL_PART)
            left = self._file_bytes_max - self._file_bytes()
            if left < reserve:
                return self._short(left, reserve, f"in the store {self._path}, which may not grow further")
        try:
            disk = shutil.disk_usage(self._path.parent)
        except OSError as problem:
            if not self._unknown:
                log.warning("store_room_unknown", extra={"path": str(self._path), "problem": str(problem)})
            self._unknown = True
            return None
        reserve = min(self._reserve_bytes, disk.total // SMALL_PART)
        if disk.free < reserve:
            return self._short(disk.free, reserve, f"on the disk of the store {self._path}")
        return None

    def _file_bytes(self) -> int:
        page, count, free = (
            int(self._connection.execute(f"PRAGMA {name}").fetchone()[0])
            for name in ("page_size", "page_count", "freelist_count")
        )
        return page * (count - free)

    def _short(self, left: int, reserve: int, where: str) -> StoreError:
        return StoreError(
            f"only {left / MEBIBYTE:.1f} MiB are left {where}, and {reserve / MEBIBYTE:.1f} MiB are kept "
            "for the jobs that run already",
            hint=f"free space on the disk of {self._path}, then submit again",
            code="store_short",
            retry=True,
        )
