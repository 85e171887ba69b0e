"""What every lasting store gives to those who only read: one suite over all of them (`parts.stores.MAKERS`).

Checks, exports and backups see what was stored when they began, beside a manager that goes on.
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import parts.postgres
from kestrel.core.effects import RecordCancelled, RecordJobEnded, RecordTrouble
from kestrel.core.model import JobState, TaskState
from kestrel.errors import EnvironmentProblem, UsageError
from kestrel.ports import ReadResults
from kestrel.store.backup import back_up
from kestrel.store.checking import check
from kestrel.store.export import exported
from kestrel.store.lives import EPOCHS_LEAPT, JOBS_LEAPT
from kestrel.store.places import make_store, open_archive, without_password
from kestrel.store.sqlite import SqliteStore
from parts.need import need
from parts.stores import LASTING, MAKERS, Bench, job, result, words


@dataclass
class Shelf:
    """A store that a manager has, and its name."""

    bench: Bench
    place: str


@pytest.fixture(params=LASTING)
def shelf(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shelf]:
    maker = MAKERS[request.param]
    bench = Bench.opened(maker, tmp_path, "blue")
    bench.done(
        job(1, 3, submission="s", params=words(0, 1, 2), message=b'{"type":"job","command":"a"}'),
        *(result(n, n + 1) for n in range(3)),
        RecordJobEnded(1, JobState.COMPLETED),
        job(2, 3000, open=True, message=b'{"type":"job","command":"b"}', params=words(*range(3000))),
        *(result(n, n + 1, TaskState(2 + n % 2), number=2) for n in range(2500)),
        RecordCancelled(2, [(2900, 2910), (2950, 2951)], 2501),
        RecordTrouble(2, 2800, 1, 2, True, (5,)),
        job(3, 0, user="bob@pool", open=True, message=b'{"type":"job","command":"c"}'),
    )
    yield Shelf(bench, maker.place(tmp_path))
    bench.store.close()


def test_an_archive_gives_what_the_manager_would_read(shelf: Shelf) -> None:
    archive = open_archive(shelf.place)
    assert (archive.pool, archive.epoch, archive.next_job) == ("blue", 1, 4)
    jobs = list(archive.jobs())
    for number in (1, 2, 3):
        assert list(archive.results(number)) == shelf.bench.read(ReadResults(number, 0, 10_000))
    assert list(archive.flaws()) == []
    archive.close()
    assert jobs == shelf.bench.reopen().jobs


def test_an_archive_shows_one_instant_while_the_manager_goes_on(shelf: Shelf) -> None:
    archive = open_archive(shelf.place)
    records = archive.jobs()
    first = next(records)
    shelf.bench.done(result(2500, 2512, number=2), job(4, 1), RecordCancelled(2, [(2600, 2700)], 2513))
    assert [first.job, *(r.job for r in records)] == [1, 2, 3]
    assert len(list(archive.results(2))) == 2511
    archive.close()
    later = open_archive(shelf.place)
    assert [r.job for r in later.jobs()] == [1, 2, 3, 4]
    assert len(list(later.results(2))) == 2612
    later.close()


def test_a_check_beside_the_manager_finds_the_store_sound(shelf: Shelf) -> None:
    report = check(shelf.place)
    assert report.sound, report.flaws
    assert (report.pool, report.epoch, report.jobs, report.results) == ("blue", 1, 3, 2514)
    assert report.store == without_password(shelf.place)


def test_an_export_is_complete_and_in_order(shelf: Shelf) -> None:
    archive = open_archive(shelf.place)
    records = list(exported(archive))
    only = list(exported(archive, 1))
    with pytest.raises(UsageError, match="no job 9"):
        list(exported(archive, 9))
    archive.close()
    assert [(r["job"], r.get("seq", 0)) for r in records] == [
        *((1, n) for n in range(4)),
        *((2, n) for n in range(2512)),
        (3, 0),
    ]
    assert only == records[:4]
    assert records[4]["specification"] == {"type": "job", "command": "b"}
    assert records[2]["params"] == words(1)[0]


def test_what_is_opened_by_its_name_is_the_same_store(shelf: Shelf) -> None:
    shelf.bench.store.close()
    store = make_store(shelf.place, lambda call: None, pool="blue")
    assert store.open(lambda record: None).epoch == 2
    store.close()


# --- backups of a database ----------------------------------------------------------------------------


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Shelf]:
    need("pg_dump")
    bench = Bench.opened(MAKERS["postgres"], tmp_path, "blue")
    bench.done(job(1, 50, submission="s", message=b'{"type":"job","command":"a"}', params=words(*range(50))))
    bench.done(*(result(n, n + 1) for n in range(40)))
    yield Shelf(bench, MAKERS["postgres"].place(tmp_path))
    bench.store.close()


def test_a_dump_beside_the_manager_is_restored_by_the_steps_that_are_printed(
    database: Shelf, tmp_path: Path
) -> None:
    made = back_up(database.place, tmp_path / "a dump")
    assert (made.jobs, made.results) == (1, 40)
    assert made.size_bytes == made.backup.stat().st_size > 1000
    database.bench.done(*(result(n, n + 1) for n in range(40, 50)), job(2, 1))
    database.bench.store.close()
    environment = {**os.environ, "PGPASSWORD": parts.postgres.PASSWORD}
    epoch, next_job = 1, 3
    for _ in range(2):  # what ran between the two must not be mistaken for what comes after the second
        done = subprocess.run(
            ["sh", "-ec", "\n".join(made.steps)], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        report = check(database.place)
        assert report.sound, report.flaws
        content = database.bench.open()
        database.bench.store.close()
        assert [r.counts.completed for r in content.jobs] == [40]
        assert content.epoch == epoch + EPOCHS_LEAPT + 1
        assert content.next_job == next_job + JOBS_LEAPT
        epoch, next_job = content.epoch, content.next_job


def test_no_password_is_shown_to_who_lists_processes(
    database: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    said = tmp_path / "said"
    script = f'#!/bin/sh\nprintf \'%s\\n\' "$@" >> {said}\nexec {need("pg_dump")} "$@"\n'
    (programs / "pg_dump").write_text(script)
    (programs / "pg_dump").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    made = back_up(database.place, tmp_path / "dump")
    words_said = said.read_text()
    assert "--dbname=" in words_said
    assert parts.postgres.PASSWORD not in words_said
    assert parts.postgres.PASSWORD not in "\n".join([made.store, *made.steps])


def test_without_pg_dump_the_command_is_told(
    database: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="not installed") as caught:
        back_up(database.place, tmp_path / "dump")
    assert "pg_dump -Fc" in caught.value.hint
    assert parts.postgres.PASSWORD not in str(caught.value)


def test_a_dump_that_fails_says_why_and_leaves_nothing(
    database: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "pg_dump").write_text("#!/bin/sh\necho 'server version mismatch' >&2\nexit 1\n")
    (programs / "pg_dump").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    with pytest.raises(EnvironmentProblem, match="server version mismatch") as caught:
        back_up(database.place, tmp_path / "dump")
    assert "version" in caught.value.hint
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == []


def test_a_flaw_of_a_database_is_found_with_what_to_do(database: Shelf) -> None:
    database.bench.store.close()
    parts.postgres.shared().execute("UPDATE kestrel_jobs SET completed = 41", database.place)
    report = check(database.place)
    assert report.flaws == ["job 1: 40 of its tasks are COMPLETED, but 41 are counted"]
    assert any("pg_restore" in step for step in report.steps)
    assert parts.postgres.PASSWORD not in "\n".join([report.store, *report.steps])


# --- a file under load --------------------------------------------------------------------------------


def test_archives_that_come_and_go_keep_no_writer_waiting(tmp_path: Path) -> None:
    """Each reader is quick here; the log of the file must not grow as if one had stayed."""
    bench = Bench.opened(MAKERS["sqlite"], tmp_path)
    assert isinstance(bench.store, SqliteStore)
    bench.done(job(1, 100_000, message=b'{"type":"job","command":"a"}'))
    stop = threading.Event()
    problems: list[Any] = []

    def read() -> None:
        while not stop.is_set():
            archive = open_archive(tmp_path / "store.db")
            seen = [seq for seq, _ in archive.results(1)]
            if seen != list(range(1, len(seen) + 1)) or len(seen) % 100:
                problems.append(seen)
            archive.close()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for unit in range(60):
            bench.done(*(result(n, n + 1) for n in range(unit * 100, unit * 100 + 100)))
    finally:
        stop.set()
        reader.join()
    bench.store.close()
    assert problems == []
    assert check(tmp_path / "store.db").results == 6000
