"""The check of a store finds each kind of flaw, tells what to do about it, and changes nothing."""

from __future__ import annotations

import os
import queue
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kestrel.core.effects import RecordCancelled, RecordJobEnded, RecordResult, RecordTrouble
from kestrel.core.model import JobState, TaskState
from kestrel.errors import StoreError, UsageError
from kestrel.ports import AddJob, CommitDone, JobRecord
from kestrel.protocol import messages as m
from kestrel.store import SqliteStore, schema
from kestrel.store.checking import FLAWS_KEPT_MAX, FLAWS_PER_JOB_MAX, Report, check
from parts.need import need

MESSAGE = b'{"type":"job","command":"echo"}'
PAGE = 4096


def result(job: int, task: int, seq: int, state: TaskState = TaskState.COMPLETED) -> RecordResult:
    report = m.AttemptReport(job=job, task=task, attempt=task + 1, out="x" * 100)
    return RecordResult(job, task, seq, state, task + 1, "w", report)


def fill(path: Path, pool: str = "blue") -> None:
    """An ended job, a running one with some of everything, and one that waits."""
    calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    store = SqliteStore(path, calls.put, pool=pool)
    store.open(lambda record: None)
    outcomes: list[Any] = []
    params = [[f"argument {task}"] for task in range(600)]
    writes: list[Any] = [
        AddJob(JobRecord(1, "ann", "s", MESSAGE, 3, False, 1.5)),
        *(result(1, task, task + 1) for task in range(3)),
        RecordJobEnded(1, JobState.COMPLETED),
        AddJob(JobRecord(2, "ann", "t", MESSAGE, 600, False, 2.5), params),
        *(result(2, task, task + 1, TaskState(2 + task % 2)) for task in range(400)),
        RecordCancelled(2, [(500, 510), (520, 530)], 401),
        RecordTrouble(2, 450, 1, 1, True, (7,)),
        AddJob(JobRecord(3, "bob", "s", MESSAGE, 0, True, 3.5)),
    ]
    store.commit(writes, (), outcomes.append)
    while not outcomes:
        calls.get(timeout=60)()
    assert isinstance(outcomes[0], CommitDone), outcomes
    store.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "store.db"
    fill(path)
    return path


def change(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path)
    with connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


def test_a_sound_store_is_said_to_be_sound(path: Path) -> None:
    assert check(path) == Report(str(path), pool="blue", epoch=1, jobs=3, results=423)
    assert check(path).sound


def test_a_check_leaves_everything_as_it_was(path: Path) -> None:
    before = {p.name: p.read_bytes() for p in path.parent.iterdir()}
    check(path)
    assert {p.name: p.read_bytes() for p in path.parent.iterdir()} == before


def test_a_store_that_a_manager_writes_to_is_checked_as_it_is_now(path: Path) -> None:
    calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    store = SqliteStore(path, calls.put)
    store.open(lambda record: None)
    outcomes: list[object] = []
    for unit in range(20):
        first = 400 + unit
        store.commit([result(2, first, 421 + unit)], (), outcomes.append)
        report = check(path)
        assert report.sound, report.flaws
        assert 423 <= report.results <= 424 + unit
    store.close()
    assert check(path).results == 443


def test_the_log_of_a_manager_that_was_killed_is_checked_too(path: Path, tmp_path: Path) -> None:
    calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    store = SqliteStore(path, calls.put)
    store.open(lambda record: None)
    outcomes: list[object] = []
    store.commit([result(2, 400, 421)], (), outcomes.append)
    while not outcomes:
        calls.get(timeout=60)()
    left = tmp_path / "left"
    left.mkdir()
    for name in ("store.db", "store.db-wal"):
        (left / name).write_bytes((tmp_path / name).read_bytes())
    store.close()
    report = check(left / "store.db")
    assert report.sound
    assert (report.epoch, report.results) == (2, 424)


FLAWS = {
    "a result is missing": (
        [
            "DELETE FROM results WHERE job = 2 AND task = 7",
            "DELETE FROM reports WHERE position = (2 << 32) + 8",
        ],
        ["the results 8 to 8 are missing", "199 of its tasks are FAILED, but 200 are counted"],
    ),
    "a report is missing": (
        ["DELETE FROM reports WHERE position = (2 << 32) + 8"],
        ["1 results have no report (the first: job 2 task 7)", "1 jobs have more reports than results"],
    ),
    "a report too many": (
        ["INSERT INTO reports VALUES ((2 << 32) + 900, '{\"task\":599}')"],
        ["1 jobs have more reports than results", "its last result has the number 900, but 420 are counted"],
    ),
    "a report of nothing": (
        ["INSERT INTO reports VALUES (9 << 32, '{\"task\":1}')"],
        ["1 reports are of no job (the first of job 9)"],
    ),
    "a result of nothing": (
        ["INSERT INTO results VALUES (9, 0, 1, 2)"],
        ["1 rows of results are of no job (the first of job 9)"],
    ),
    "parameters of nothing": (
        ["INSERT INTO params VALUES (9, 0, x'90')"],
        ["1 rows of params are of no job (the first of job 9)"],
    ),
    "a range of nothing": (
        ["INSERT INTO cancelled VALUES (9, 0, 1, 1)"],
        ["1 rows of cancelled are of no job (the first of job 9)"],
    ),
    "trouble of nothing": (
        ["INSERT INTO troubles VALUES (9, 0, 1, 1, 0, '[]', 0)"],
        ["1 rows of troubles are of no job (the first of job 9)"],
    ),
    "a result of a task that is not there": (
        ["INSERT INTO results VALUES (2, 600, 999, 2)"],
        ["1 results are of a task that is not there (the first: job 2 task 600)"],
    ),
    "two results with a number": (
        ["UPDATE results SET seq = 1 WHERE job = 2 AND task = 1"],
        ["1 numbers are those of two results (the first: job 2 number 1)", "another task than their results"],
    ),
    "a state that is no end": (
        ["UPDATE results SET state = 1 WHERE job = 2 AND task = 4"],
        ["1 results are no end of a task (the first: job 2 task 4)", "1 reports tell of another end"],
    ),
    "a state that is another one": (
        ["UPDATE results SET state = 5 WHERE job = 2 AND task IN (4, 5)"],
        ["2 reports tell of another end than their results (the first: job 2 task 4)"],
    ),
    "a report of another task": (
        ["UPDATE reports SET body = '{\"task\":5}' WHERE position = (2 << 32) + 5"],
        ["1 reports are of another task", "task 5 has two results"],
    ),
    "a report with a strange end": (
        ['UPDATE reports SET body = \'{"task":4,"state":"DONE"}\' WHERE position = (2 << 32) + 5'],
        ["task 4 ended as 'DONE'"],
    ),
    "a report that cannot be read": (
        ["UPDATE reports SET body = '{\"task' WHERE position = (2 << 32) + 5"],
        ["1 reports cannot be read (the first: job 2 number 5)", "its results from 1 on cannot be read"],
    ),
    "a range that cannot be": (
        ["INSERT INTO cancelled VALUES (2, 598, 601, 421)"],
        ["1 ranges of cancelled tasks cannot be (the first: job 2 from task 598)"],
    ),
    "ranges that overlap": (
        ["INSERT INTO cancelled VALUES (2, 505, 507, 421)"],
        ["1 ranges of cancelled tasks overlap (the first: job 2 from task 505)", "task 505 has two results"],
    ),
    "a range over a result": (
        ["INSERT INTO cancelled VALUES (2, 399, 401, 421)"],
        ["1 tasks were cancelled and have results, too (the first: job 2 task 399)"],
    ),
    "a number of a range and of a result": (
        ["INSERT INTO cancelled VALUES (2, 540, 541, 7)"],
        ["there are two results with the number 7"],
    ),
    "trouble of a task that is not there": (
        ["UPDATE troubles SET task = 600"],
        ["1 tasks are counted as failed or lost, but are not there (the first: job 2 task 600)"],
    ),
    "counted failures that cannot be read": (
        ["UPDATE troubles SET counted = '[1,'"],
        ["1 lists of counted failures cannot be read (the first: job 2 task 450)"],
    ),
    "parameters that cannot be read": (
        ["UPDATE params SET body = x'c1' WHERE chunk = 1"],
        ["1 groups of parameters cannot be read, or are of no task (the first: job 2 from task 256 on)"],
    ),
    "parameters of tasks that are not there": (
        ["UPDATE params SET chunk = 9 WHERE chunk = 2"],
        ["1 groups of parameters cannot be read, or are of no task (the first: job 2 from task 2304 on)"],
    ),
    "a count that is wrong": (
        ["UPDATE jobs SET failed = failed + 1 WHERE job = 2"],
        ["job 2: 200 of its tasks are FAILED, but 201 are counted"],
    ),
    "a last number that is wrong": (
        ["UPDATE jobs SET last = 421 WHERE job = 2"],
        ["job 2: its last result has the number 420, but 421 are counted"],
    ),
    "a job that ended too early": (
        ["UPDATE jobs SET state = 'FAILED' WHERE job = 2"],
        ["job 2 has ended, but only 420 of its 600 tasks have"],
    ),
    "an ended job that is open": (
        ["UPDATE jobs SET open = 1 WHERE job = 1"],
        ["job 1 has ended, but is open"],
    ),
    "a completed job with a failure": (
        ["UPDATE jobs SET completed = 2, failed = 1 WHERE job = 1"],
        ["job 1 is completed, but only 2 of its 3 tasks are"],
    ),
    "a job that will come twice": (
        ["UPDATE meta SET next_job = 3"],
        ["the next job would get the number 3, but there is a job 3"],
    ),
    "a submission of two jobs": (
        ["DROP INDEX jobs_submission", "UPDATE jobs SET user = 'ann' WHERE job = 3"],
        ["job 3: its submission id belongs to another job of ann, too"],
    ),
    "a specification that cannot be read": (
        ["UPDATE jobs SET message = x'7b' WHERE job = 3"],
        ["job 3: its specification cannot be read"],
    ),
    "a job in a strange state": (
        ["UPDATE jobs SET state = 'ASLEEP' WHERE job = 3"],
        ["job 3 is in the state 'ASLEEP'"],
    ),
}


@pytest.mark.parametrize("kind", FLAWS)
def test_each_kind_of_flaw_is_found(kind: str, path: Path) -> None:
    statements, expected = FLAWS[kind]
    change(path, *statements)
    report = check(path)
    assert not report.sound
    text = "\n".join(report.flaws)
    for words in expected:
        assert words in text
    assert any("kestrel store check" in step for step in report.steps)


def spoil(path: Path, table: str) -> None:
    connection = sqlite3.connect(path)
    (root,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()
    connection.close()
    content = bytearray(path.read_bytes())
    content[(root - 1) * PAGE : root * PAGE] = b"\xaa" * PAGE
    path.write_bytes(content)


@pytest.mark.parametrize("table", ["meta", "jobs", "params", "results", "reports", "cancelled", "troubles"])
def test_a_damaged_page_is_found_and_the_rest_is_still_looked_at(table: str, path: Path) -> None:
    spoil(path, table)
    content = path.read_bytes()
    report = check(path)
    assert any("damaged" in flaw for flaw in report.flaws)
    assert report.steps
    assert path.read_bytes() == content
    assert report.jobs == (0 if table in ("meta", "jobs", "troubles") else 3)


def test_a_file_that_lost_its_beginning_or_all_is_found(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(bytes(16) + content[16:])
    report = check(path)
    assert "not a store" in report.flaws[0]
    assert report.steps
    path.write_bytes(b"")
    assert "empty" in check(path).flaws[0]


def test_what_is_no_store_of_ours_is_no_flaw_but_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no store"):
        check(tmp_path / "nowhere.db")
    with pytest.raises(StoreError, match="directory"):
        check(tmp_path)
    connection = sqlite3.connect(tmp_path / "songs.db")
    connection.execute("CREATE TABLE songs (title)")
    connection.commit()
    connection.close()
    with pytest.raises(StoreError, match="another application"):
        check(tmp_path / "songs.db")
    with pytest.raises(UsageError, match="no kind of store"):
        check("mysql://somewhere/else")


def test_older_files_are_checked_without_being_upgraded(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    for version in range(1, len(schema.MIGRATIONS) + 1):
        connection = sqlite3.connect(path, isolation_level=None)
        schema.migrate(connection, path, schema.MIGRATIONS[:version])
        connection.execute(
            "INSERT OR IGNORE INTO jobs (job, user, submission, message, size, open, submitted,"
            " state, finished) VALUES (1, 'ann', '', ?, 5, 0, 1.0, 'PENDING', 0)",
            (MESSAGE,),
        )
        connection.execute("UPDATE meta SET next_job = 2")
        connection.close()
        content = path.read_bytes()
        assert check(path).flaws == []
        assert path.read_bytes() == content


def test_what_is_reported_is_bounded(path: Path) -> None:
    change(path, "UPDATE jobs SET state = 'FAILED', last = 999 WHERE job = 2")
    change(
        path,
        *(
            "INSERT INTO jobs (job, user, submission, message, size, open, submitted, state, finished, last)"
            f" VALUES ({job}, 'ann', '', x'7b7d', 5, 1, 1.0, 'FAILED', 0, 7)"
            for job in range(10, 10 + FLAWS_KEPT_MAX)
        ),
    )
    report = check(path)
    assert len(report.flaws) == FLAWS_KEPT_MAX
    assert report.flaws_left_out > FLAWS_KEPT_MAX
    change(
        path,
        "DELETE FROM jobs WHERE job >= 10",
        "DELETE FROM results WHERE job = 2 AND seq % 2",
        "DELETE FROM reports WHERE position > 2 << 32 AND position % 2",
    )
    report = check(path)
    of_results = [flaw for flaw in report.flaws if "are missing" in flaw]
    assert len(of_results) == FLAWS_PER_JOB_MAX
    assert report.flaws_left_out > 100


def test_the_steps_that_are_printed_save_what_can_be_read(path: Path) -> None:
    """Word for word, but for the one that needs a backup."""
    need("sqlite3")
    spoil(path, "params")
    steps = [s for s in check(path).steps if not s.startswith(("#", "cp ", "kestrel "))]
    done = subprocess.run(["sh", "-ec", "\n".join(steps)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(f"{path}.damaged")) == ["store.db"]
    report = check(path)
    assert not any("the file is damaged" in flaw for flaw in report.flaws)
    assert report.jobs == 3
    store = SqliteStore(path, lambda call: None, pool="blue")
    assert [r.job for r in store.open(lambda record: None).jobs] == [1, 2, 3]
    store.close()


def test_steps_are_right_for_names_with_spaces(tmp_path: Path) -> None:
    need("sqlite3")
    place = tmp_path / "my 'own' $HOME"
    place.mkdir()
    path = place / "store.db"
    fill(path)
    spoil(path, "params")
    steps = [s for s in check(path).steps if not s.startswith(("#", "cp ", "kestrel "))]
    done = subprocess.run(["sh", "-ec", "\n".join(steps)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert check(path).jobs == 3
