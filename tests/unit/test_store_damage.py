"""A store file that is damaged or lost is refused with the cure, never written to and never begun anew."""

from __future__ import annotations

import queue
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kestrel.core.effects import RecordResult
from kestrel.core.model import TaskState
from kestrel.errors import StoreError
from kestrel.ports import AddJob, CommitDone, CommitFailed, JobRecord, Read, ReadParams, ReadResults
from kestrel.protocol import messages as m
from kestrel.store import SqliteStore
from kestrel.store.sqlite_problems import DAMAGED

TASKS = 2000
PAGE = 4096


def result(task: int) -> RecordResult:
    report = m.AttemptReport(job=1, task=task, attempt=1, out="x" * 200)
    return RecordResult(1, task, task + 1, TaskState.COMPLETED, 1, "w", report)


class Shelf:
    """A store file with one job of many results."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.store = SqliteStore(path, self.calls.put)
        self.store.open(lambda record: None)
        params = [[f"argument {task}"] for task in range(TASKS)]
        self.commit(AddJob(JobRecord(1, "ann", "s", b"{}", TASKS, False, 1.0), params))
        self.commit(*(result(task) for task in range(TASKS - 1)))
        self.store.close()

    def commit(self, *writes: Any, reads: tuple[Read, ...] = ()) -> CommitDone | CommitFailed:
        outcomes: list[CommitDone | CommitFailed] = []
        self.store.commit(writes, reads, outcomes.append)
        while not outcomes:
            self.calls.get(timeout=60)()
        return outcomes[0]

    def run(self, statement: str, *values: object) -> None:
        connection = sqlite3.connect(self.path)
        with connection:
            assert connection.execute(statement, values).rowcount
        connection.close()

    def spoil_pages(self, table: str) -> None:
        """Overwrite a page of the table with what is none."""
        connection = sqlite3.connect(self.path)
        (root,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()
        connection.close()
        content = bytearray(self.path.read_bytes())
        content[(root - 1) * PAGE : root * PAGE] = b"\xaa" * PAGE
        self.path.write_bytes(content)

    def refusal(self) -> StoreError:
        """What a manager is told; the file stays as it is."""
        content = self.path.read_bytes() if self.path.exists() else None
        with pytest.raises(StoreError) as caught:
            self.store.open(lambda record: None)
        assert not caught.value.retry
        assert str(self.path) in caught.value.text
        assert caught.value.hint
        assert (self.path.read_bytes() if self.path.exists() else None) == content
        return caught.value


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "store.db")


def test_a_file_with_a_damaged_beginning_is_refused(shelf: Shelf) -> None:
    content = bytearray(shelf.path.read_bytes())
    content[:16] = bytes(16)
    shelf.path.write_bytes(content)
    problem = shelf.refusal()
    assert "not a store" in problem.text
    assert "backup" in problem.hint


@pytest.mark.parametrize("table", ["jobs", "results", "meta", "troubles"])
def test_a_file_with_a_damaged_page_that_a_manager_needs_is_refused(shelf: Shelf, table: str) -> None:
    shelf.spoil_pages(table)
    problem = shelf.refusal()
    assert problem.code == DAMAGED
    assert "kestrel store check" in problem.hint


def test_a_file_that_was_cut_off_is_refused(shelf: Shelf) -> None:
    content = shelf.path.read_bytes()
    shelf.path.write_bytes(content[: len(content) // 3 // PAGE * PAGE])
    assert shelf.refusal().code == DAMAGED


def test_a_file_that_has_become_empty_is_not_begun_anew(shelf: Shelf) -> None:
    shelf.path.write_bytes(b"")
    problem = shelf.refusal()
    assert problem.code == "store_empty"
    assert "backup" in problem.hint


def test_a_log_whose_file_is_gone_is_not_put_into_a_new_one(shelf: Shelf) -> None:
    shelf.path.rename(shelf.path.with_name("store.db-wal"))
    problem = shelf.refusal()
    assert problem.code == "store_empty"
    assert "store.db-wal" in problem.text


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE jobs SET state = 'ASLEEP'",
        "UPDATE results SET task = 99999 WHERE task = 7",
        "UPDATE results SET state = 999 WHERE task = 7",
        "INSERT INTO cancelled VALUES (1, 1999, 3000, 5000)",
        "INSERT INTO troubles VALUES (1, 1999, 0, 0, 0, '[x', 0)",
    ],
)
def test_rows_that_no_manager_has_written_are_damage(shelf: Shelf, statement: str) -> None:
    shelf.run(statement)
    assert shelf.refusal().code == DAMAGED


@pytest.mark.parametrize("kind", ["page", "text", "word"])
def test_a_damaged_report_is_told_to_who_reads_it_and_not_taken_for_a_bug(shelf: Shelf, kind: str) -> None:
    if kind == "page":
        shelf.spoil_pages("reports")
    else:
        body = '{"task":' if kind == "text" else '{"task":5,"state":7}'
        shelf.run("UPDATE reports SET body = ? WHERE position = (1 << 32) + 6", body)
    shelf.store.open(lambda record: None)
    failed = shelf.commit(reads=(ReadResults(1, 0, 10),))
    assert isinstance(failed, CommitFailed)
    assert isinstance(failed.problem, StoreError)
    assert (failed.problem.code, failed.problem.retry) == (DAMAGED, False)
    shelf.store.close()


def test_damaged_parameters_are_told_to_who_reads_them(shelf: Shelf) -> None:
    shelf.run("UPDATE params SET body = x'c1' WHERE chunk = 1")
    shelf.store.open(lambda record: None)
    failed = shelf.commit(reads=(ReadParams(1, [300]),))
    assert isinstance(failed, CommitFailed)
    assert isinstance(failed.problem, StoreError)
    assert failed.problem.code == DAMAGED
    assert isinstance(shelf.commit(reads=(ReadParams(1, [3]),)), CommitDone)
    shelf.store.close()


@pytest.mark.parametrize("part", [0.0, 0.3, 0.6, 0.99])
def test_of_a_log_that_was_cut_off_whole_units_are_left(part: float, tmp_path: Path) -> None:
    """As a disk does that loses the end of a file in a power cut."""
    path = tmp_path / "store.db"
    calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    store = SqliteStore(path, calls.put)
    store.open(lambda record: None)
    told: list[object] = []
    store.commit([AddJob(JobRecord(1, "ann", "s", b"{}", TASKS, False, 1.0))], (), told.append)
    for unit in range(20):
        store.commit([result(task) for task in range(unit * 10, unit * 10 + 10)], (), told.append)
        while len(told) < unit + 2:
            calls.get(timeout=60)()
    left = tmp_path / "left"
    left.mkdir()
    log = path.with_name("store.db-wal").read_bytes()
    (left / "store.db").write_bytes(path.read_bytes())
    (left / "store.db-wal").write_bytes(log[: int(len(log) * part)])
    store.close()
    again = SqliteStore(left / "store.db", calls.put)
    content = again.open(lambda record: None)
    again.close()
    assert content.epoch in (1, 2)
    completed = content.jobs[0].counts.completed if content.jobs else 0
    assert completed % 10 == 0
    assert completed < 200
    if content.jobs:
        assert content.unfinished[0].states == bytearray(
            [TaskState.COMPLETED] * completed + [TaskState.QUEUED] * (TASKS - completed)
        )
