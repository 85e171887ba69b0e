"""A store that runs out of room says so early, keeps the rest for what runs already, and notices new room."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from kestrel.core.effects import RecordResult
from kestrel.core.model import TaskState
from kestrel.ports import AddJob, CommitDone, CommitFailed, JobRecord
from kestrel.protocol import messages as m
from kestrel.store import SqliteSettings, SqliteStore
from parts.disk import SmallDisk, small_disk
from parts.pool import eventually

__all__ = ["small_disk"]


def result(task: int, size: int) -> RecordResult:
    report = m.AttemptReport(job=1, task=task, attempt=1, out="x" * size)
    return RecordResult(1, task, task + 1, TaskState.COMPLETED, 1, "w", report)


class Desk:
    """An open store with one job, whose answers are fetched by hand."""

    def __init__(self, path: Path, settings: SqliteSettings) -> None:
        self.calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.store = SqliteStore(path, self.calls.put, settings=settings)
        self.store.open(lambda record: None)
        self.unit = 0
        assert isinstance(self.commit(AddJob(JobRecord(1, "ann", "", b"", 100_000, False, 1.0))), CommitDone)

    def commit(self, *writes: RecordResult | AddJob, again: bool = False) -> CommitDone | CommitFailed:
        outcomes: list[CommitDone | CommitFailed] = []
        self.unit += not again
        self.store.commit(writes, (), outcomes.append, unit=self.unit)
        while not outcomes:
            self.calls.get(timeout=60)()
        return outcomes[0]


def test_a_store_that_may_not_grow_further_is_short_before_it_is_full(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "store.db", SqliteSettings(file_bytes_max=400_000, room_check_s=0.0))
    assert desk.store.shortage() is None
    for task in range(100):
        assert isinstance(desk.commit(result(task, 4000)), CommitDone), "full before it was short"
        short = desk.store.shortage()
        if short is not None:
            break
    else:
        pytest.fail("400 kB went into 400 kB, and it was never short")
    assert short.retry
    assert short.code == "store_short"
    assert "may not grow" in short.text
    assert str(tmp_path) in short.hint
    assert isinstance(desk.commit(result(task + 1, 4000)), CommitDone), "what runs goes on"
    desk.store.close()


def test_a_disk_that_fills_up_makes_the_store_short_and_idle_stores_notice_too(
    small_disk: SmallDisk, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "kestrel.store")
    desk = Desk(small_disk.path / "store.db", SqliteSettings(room_check_s=0.01))
    assert desk.store.shortage() is None
    small_disk.fill(leave_bytes=small_disk.size_bytes // 10)
    short = eventually(desk.store.shortage, "an idle store notices that the disk is nearly full")
    assert "on the disk" in short.text
    assert isinstance(desk.commit(result(0, 100)), CommitDone)
    small_disk.empty()
    eventually(lambda: desk.store.shortage() is None, "an idle store notices that there is room again")
    desk.store.close()
    assert [r.message for r in caplog.records] == ["store_short", "store_room_again"]


def test_a_unit_that_met_a_full_disk_goes_through_when_there_is_room(small_disk: SmallDisk) -> None:
    desk = Desk(small_disk.path / "store.db", SqliteSettings(room_check_s=60.0))
    small_disk.fill(leave_bytes=200_000)
    stored = 0
    while isinstance(outcome := desk.commit(*(result(stored + n, 4000) for n in range(10))), CommitDone):
        stored += 10
        assert stored < 10_000
    assert getattr(outcome.problem, "retry", False)
    assert desk.store.shortage() is not None, "a full disk is noticed at once, not at the next look"
    assert isinstance(desk.commit(*(result(stored + n, 4000) for n in range(10)), again=True), CommitFailed)
    small_disk.empty()
    assert isinstance(desk.commit(*(result(stored + n, 4000) for n in range(10)), again=True), CommitDone)
    desk.store.close()
    content = desk.store.open(lambda record: None)
    desk.store.close()
    assert content.jobs[0].counts.completed == stored + 10


def test_a_store_without_a_reserve_is_never_short_of_disk(small_disk: SmallDisk) -> None:
    desk = Desk(small_disk.path / "store.db", SqliteSettings(room_check_s=0.0, reserve_bytes=0))
    small_disk.fill(leave_bytes=100_000)
    assert isinstance(desk.commit(result(0, 10)), CommitDone)
    assert desk.store.shortage() is None
    desk.store.close()


def test_the_event_loop_never_asks_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that hangs would hang the manager, and all its workers' leases."""
    import shutil

    asked: list[str] = []
    usage = shutil.disk_usage

    def watched(path: Path) -> object:
        asked.append(threading.current_thread().name)
        return usage(path)

    monkeypatch.setattr(shutil, "disk_usage", watched)
    desk = Desk(tmp_path / "store.db", SqliteSettings(room_check_s=0.0))
    for task in range(5):
        desk.commit(result(task, 10))
        desk.store.shortage()
    desk.store.close()
    assert set(asked) == {"kestrel-store"}
