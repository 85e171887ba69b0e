"""No number of a life or a job is used twice, not even when a store is put back from an older copy.

Workers may still hold attempts of lives that such a copy does not know, and results of its later jobs. So
epochs and job numbers leap: in a backup as it is made, in a database by the steps that restore it. A SQLite
store also has a small file beside it with the number of its last life, which is part of no copy: so one that
is put back twice, or was copied by other means, or is made anew in its place, is found to be older.

Called by `kestrel.store.sqlite` when it opens a file, by `backup` and by `checking`.
"""

from __future__ import annotations

import logging
import os
import shlex
import sqlite3
from pathlib import Path

log = logging.getLogger("kestrel.store")

EPOCHS_LEAPT = 10_000
"""Attempt ids hold the epoch in 21 bits (2**53 >> 32): room for 200 restored backups of restored backups."""
JOBS_LEAPT = 1_000_000


def leap_if_older(connection: sqlite3.Connection, path: Path) -> None:
    """In the transaction that has counted the epoch up: leave behind what was used in this place before."""
    last = _last_life(path)
    (epoch,) = connection.execute("SELECT epoch FROM meta").fetchone()
    if epoch > last:
        return
    ahead = last + EPOCHS_LEAPT - epoch
    jobs = JOBS_LEAPT * (ahead // EPOCHS_LEAPT)  # each time that the same copy is put back, one leap more
    connection.execute("UPDATE meta SET epoch = epoch + ?, next_job = next_job + ?", (ahead, jobs))
    log.warning(
        "store_was_put_back",
        extra={
            "path": str(path),
            "last_life": last,
            "epoch": epoch + ahead,
            "hint": "the file is older than its last manager; new jobs get numbers far above the old ones",
        },
    )


def keep_life(path: Path, epoch: int) -> None:
    """This life has begun."""
    place = _place(path)
    new = place.with_name(f"{place.name}.new")
    try:
        new.write_text(f"{epoch}\n", encoding="ascii")
        os.replace(new, place)
    except OSError as problem:  # it only matters for an older copy that is put back
        log.warning("store_life_not_kept", extra={"path": str(place), "problem": str(problem)})


def restore_database_steps(shown: str, copy: str) -> list[str]:
    """Commands that put a dump back into the database `shown`; both are words for a shell."""

    def old(column: str) -> str:
        query = shlex.quote(f"SELECT {column} FROM kestrel_meta")
        return f"$(psql {shown} -XAtc {query} 2>/dev/null || echo 0)"

    return [
        "# stop all managers of the store, then",
        f"EPOCH={old('epoch')} JOB={old('next_job')}",
        f"pg_restore --clean --if-exists --single-transaction -d {shown} {copy}",
        f'psql {shown} -c "UPDATE kestrel_meta SET epoch = greatest(epoch, ${{EPOCH:-0}}) + {EPOCHS_LEAPT},'
        f" next_job = greatest(next_job, ${{JOB:-0}}) + {JOBS_LEAPT};"
        " UPDATE kestrel_lease SET epoch = (SELECT epoch FROM kestrel_meta), holder = ''\"",
    ]


def _place(path: Path) -> Path:
    """Beside the file itself, as its lock."""
    real = path.resolve()
    return real.with_name(f"{real.name}.life")


def _last_life(path: Path) -> int:
    try:
        return int(_place(path).read_text(encoding="ascii"))
    except (OSError, ValueError):  # the first here, or the file is damaged: then the store alone knows
        return 0
