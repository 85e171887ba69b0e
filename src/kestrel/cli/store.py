"""`kestrel store`: look after what a manager has stored, while it runs or after a crash."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click

from kestrel.cli.options import json_option
from kestrel.cli.output import TIME_FIELDS, Output, iso_time, plain
from kestrel.config import data_home, pool_access_path
from kestrel.errors import EnvironmentProblem, StoreError

_F = TypeVar("_F", bound=Callable[..., Any])
LINES_AT_ONCE_BYTES = 2**18


def place_options(command: _F) -> _F:
    """`--store PLACE` or `--pool NAME`: which store."""
    command = click.option(
        "--pool",
        default="default",
        show_default=True,
        metavar="NAME",
        help="Whose store, as `kestrel up` and `kestrel manager` keep it on this machine.",
    )(command)
    return click.option(
        "--store",
        "place",
        envvar="KESTREL_STORE",
        metavar="PLACE",
        help="The store: a file, or postgresql://USER@HOST/DATABASE.  "
        "[default: $KESTREL_STORE, or ~/.local/share/kestrel/POOL/store.db]",
    )(command)


@click.group()
def store() -> None:
    """Check, back up or export what a manager has stored.

    All of it can be done while the manager runs, and none of it keeps the manager waiting.
    """


@store.command()
@place_options
@json_option
def check(place: str | None, pool: str, as_json: bool) -> None:
    """Say whether a store is sound, and if not, what to do.

    Looks for damage of the file, and whether what is in it agrees: results are numbered without gaps, no
    task has two, counts are right. Changes nothing.
    """
    from kestrel.store.checking import check as examine

    report = examine(_place(place, pool))
    out = Output("json" if as_json else "table")
    if as_json:
        out.document({"sound": report.sound, **plain(report)})
        if not report.sound:
            raise click.exceptions.Exit(255)
        return
    if report.sound:
        whose = f" of pool {report.pool!r}" if report.pool else ""
        out.line(
            f"The store {report.store}{whose} is sound: {report.jobs:,} jobs, "
            f"{report.results:,} tasks that have ended."
        )
        return
    for flaw in report.flaws:
        out.line(flaw)
    if report.flaws_left_out:
        out.line(f"… and {report.flaws_left_out:,} more")
    out.line("")
    out.line("What to do:")
    for step in report.steps:
        out.line(f"  {step}")
    raise StoreError(
        f"the store {report.store} is not sound", hint="see above what to do", code="store_damaged"
    )


@store.command()
@click.argument("destination", type=click.Path(path_type=Path, dir_okay=True))
@click.option("--force", is_flag=True, help="Overwrite DESTINATION.")
@place_options
@json_option
def backup(destination: Path, force: bool, place: str | None, pool: str, as_json: bool) -> None:
    """Copy a store into the file DESTINATION, and check the copy.

    The copy of a file is a store itself: `kestrel up --store DESTINATION` would run with it. A database is
    dumped by pg_dump, to be restored by pg_restore.
    """
    from kestrel.store.backup import back_up

    made = back_up(_place(place, pool), destination, replace=force)
    out = Output("json" if as_json else "table")
    if as_json:
        out.document(made)
        return
    out.line(
        f"Backed up {made.jobs:,} jobs with {made.results:,} results from {made.store} to {made.backup} "
        f"({made.size_bytes / 2**20:.1f} MiB). To restore it:"
    )
    for step in made.steps:
        out.line(f"  {step}")


@store.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to write.  [default: stdout]",
)
@click.option("--job", type=click.IntRange(1), metavar="N", help="Only this job.")
@place_options
def export(output: Path | None, job: int | None, place: str | None, pool: str) -> None:
    """Print all jobs with all their results as lines of JSON.

    Each job is a line with `"type":"job"`, followed by a line with `"type":"result"` for each of its tasks
    that has ended, in the order in which they were stored.
    """
    out = Output("json")
    chunks = _chunks(_place(place, pool), job)
    if output is None:
        for chunk in chunks:
            out.write(chunk)
        out.flush()
        return
    part = output.with_name(f".{output.name}.{os.getpid()}.part")
    try:
        with open(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
            for chunk in chunks:
                file.write(chunk)
        os.replace(part, output)
    except OSError as problem:
        raise EnvironmentProblem(
            f"cannot write {output}: {problem.strerror or problem}",
            hint="choose a directory that exists, is yours and has room",
        ) from problem
    finally:
        part.unlink(missing_ok=True)


def _chunks(place: str, job: int | None) -> Iterator[bytes]:
    """The lines, some hundred kilobytes at a time."""
    import msgspec

    from kestrel.store.export import exported
    from kestrel.store.places import open_archive

    encode = msgspec.json.Encoder().encode
    archive = open_archive(place)
    try:
        lines = bytearray()
        for record in exported(archive, job):
            for name in TIME_FIELDS & record.keys():
                record[name] = iso_time(record[name]) or None
            lines += encode(record) + b"\n"
            if len(lines) >= LINES_AT_ONCE_BYTES:
                yield bytes(lines)
                lines.clear()
        yield bytes(lines)
    finally:
        archive.close()


def _place(place: str | None, pool: str) -> str:
    """As `kestrel up` chooses it; with both options, the store must be the pool's."""
    pool_access_path(pool)  # refuses what is no name
    if not place:
        return str(data_home() / pool / "store.db")
    source = click.get_current_context().get_parameter_source("pool")
    if source is click.core.ParameterSource.COMMANDLINE:
        _check_owner(place, pool)
    return place


def _check_owner(place: str, pool: str) -> None:
    from kestrel.store.places import open_archive, without_password
    from kestrel.store.schema import other_pool

    try:
        archive = open_archive(place)
    except StoreError:
        return  # it cannot say whose it is; the command will say what is wrong with it
    owner = archive.pool
    archive.close()
    if owner not in ("", pool):
        raise other_pool(without_password(place), owner, pool)
