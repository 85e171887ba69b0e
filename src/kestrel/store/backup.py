"""A consistent copy of a store, made while a manager runs, and checked before it gets its name.

A copy of a SQLite store counts epoch and job numbers on by a leap: when a manager starts with it, nothing
that happened after the backup (attempts in workers' hands, jobs that the copy does not know) can be mistaken
for something new (`lives`). A dump of a database is as it is; the steps to restore it do the same.

Called by `kestrel store backup`. It must never leave half a copy under the name that was asked for.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sqlite3
import subprocess
from dataclasses import dataclass
from pathlib import Path

from kestrel.errors import EnvironmentProblem, StoreError, UsageError
from kestrel.store import checking
from kestrel.store.lives import EPOCHS_LEAPT, JOBS_LEAPT, restore_database_steps
from kestrel.store.places import file_of, is_database, open_archive, without_password
from kestrel.store.sqlite_archive import connect_to_read
from kestrel.store.sqlite_problems import explain

_DESTINATION_FAILED = {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_READONLY,
}


@dataclass(frozen=True, slots=True)
class Backup:
    """What was written."""

    store: str
    backup: Path
    size_bytes: int
    jobs: int
    results: int
    steps: list[str]
    """How to restore it: commands, and words after `#`."""


def back_up(place: str | os.PathLike[str], destination: Path, *, replace: bool = False) -> Backup:
    """Copy the store in this place into a new file.

    Raises `UsageError` if the file is there already (unless `replace`), `StoreError` if the store is damaged,
    `EnvironmentProblem` if it cannot be written.
    """
    if destination.is_dir():
        raise UsageError(f"{destination} is a directory", hint=f"name a file: {destination / 'store.backup'}")
    if destination.exists() and not replace:
        raise UsageError(f"{destination} exists", hint="choose another name, or overwrite it with --force")
    part = destination.with_name(f".{destination.name}.{os.getpid()}.part")
    try:
        try:
            # A store holds commands and their output, which are nobody else's business.
            os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            jobs, results = (_dump if is_database(place) else _copy)(place, part)
            _named(part, destination, replace=replace)
        except OSError as problem:
            raise EnvironmentProblem(
                f"the backup {destination} cannot be written: {problem.strerror or problem}",
                hint="choose a directory that exists, is yours and has room",
            ) from problem
    finally:
        part.unlink(missing_ok=True)
    return Backup(
        without_password(place),
        destination,
        destination.stat().st_size,
        jobs,
        results,
        _restore_steps(place, destination),
    )


# --- SQLite -------------------------------------------------------------------------------------------


def _copy(place: str | os.PathLike[str], part: Path) -> tuple[int, int]:
    open_archive(place).close()  # says in better words than SQLite what is no store
    path = file_of(place)
    source = connect_to_read(path)
    try:
        source.execute("PRAGMA query_only = 0")  # which forbids writing into a new file, too
        # One read transaction: it keeps no writer waiting (sqlite.org/lang_vacuum.html).
        source.execute("VACUUM INTO ?", (str(part),))
    except sqlite3.Error as problem:
        code = getattr(problem, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        raise explain(problem, part if code in _DESTINATION_FAILED else path) from problem
    finally:
        source.close()
    _leap(part)
    report = checking.check(part)
    if not report.sound:
        raise StoreError(
            f"the copy of the store {path} is not sound: {report.flaws[0]}",
            hint=f"see what is wrong: kestrel store check --store {shlex.quote(str(path))}",
            code="store_damaged",
        )
    return report.jobs, report.results


def _leap(part: Path) -> None:
    connection = sqlite3.connect(part, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute(
            "UPDATE meta SET epoch = epoch + ?, next_job = next_job + ?", (EPOCHS_LEAPT, JOBS_LEAPT)
        )
    except sqlite3.Error as problem:
        raise explain(problem, part) from problem
    finally:
        connection.close()


# --- PostgreSQL ---------------------------------------------------------------------------------------


def _dump(place: str | os.PathLike[str], part: Path) -> tuple[int, int]:
    """By the database's own program, which is consistent and keeps nobody waiting."""
    open_archive(place).close()
    program = shutil.which("pg_dump")
    if program is None:
        shown = shlex.quote(without_password(place))
        raise UsageError(
            "pg_dump, which makes backups of a store in PostgreSQL, is not installed here",
            hint=f"install postgresql-client, or where it is: pg_dump -Fc -t 'kestrel_*' -f FILE {shown}",
        )
    _run([program, "-Fc", "-t", "kestrel_*", "-f", str(part)], place)
    restore = shutil.which("pg_restore", path=os.path.dirname(program)) or shutil.which("pg_restore")
    if restore is not None:
        _run([restore, "--list", str(part)], None)
    report_jobs, report_results = 0, 0
    archive = open_archive(place)
    try:
        for record in archive.jobs():
            report_jobs += 1
            report_results += record.last
    finally:
        archive.close()
    return report_jobs, report_results


def _run(words: list[str], place: str | os.PathLike[str] | None) -> None:
    environment = dict(os.environ)
    if place is not None:
        from psycopg.conninfo import conninfo_to_dict, make_conninfo

        # Whoever lists the processes of this machine sees the words, but not the environment.
        parts = conninfo_to_dict(str(place))
        password = parts.pop("password", None)
        if password is not None:
            environment["PGPASSWORD"] = str(password)
        words = [*words, f"--dbname={make_conninfo('', **parts)}"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EnvironmentProblem(
            f"{os.path.basename(words[0])} failed: {done.stderr.strip() or f'exit code {done.returncode}'}",
            hint="is it as new as the server? It must be of the server's version or a later one",
        )


# --- both ---------------------------------------------------------------------------------------------


def _named(part: Path, destination: Path, *, replace: bool) -> None:
    """Durable first, then under its name; what came there meanwhile is not overwritten."""
    _sync(part, os.O_RDWR)
    try:
        (os.replace if replace else os.link)(part, destination)
    except FileExistsError:
        raise UsageError(f"{destination} exists", hint="choose another name, or use --force") from None
    except OSError:
        if replace or destination.exists():
            raise
        os.replace(part, destination)  # a disk without links (FAT, some network disks)
    if hasattr(os, "O_DIRECTORY"):
        _sync(destination.parent, os.O_RDONLY)


def _sync(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _restore_steps(place: str | os.PathLike[str], destination: Path) -> list[str]:
    copy = shlex.quote(str(destination))
    if is_database(place):
        return restore_database_steps(shlex.quote(without_password(place)), copy)
    file = shlex.quote(str(file_of(place)))
    return [
        "# stop the manager, put the old file aside or remove it with its log, then",
        f"rm -f {file} {file}-wal {file}-shm && cp {copy} {file}",
        "# new jobs get numbers far above the old ones, so that none is taken for one made since the backup",
    ]
