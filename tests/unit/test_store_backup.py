"""Backups are whole, checked, made beside a writing manager, and never mistaken for their store."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from kestrel.core.effects import RecordResult
from kestrel.core.model import TaskState
from kestrel.errors import EnvironmentProblem, StoreError, UsageError
from kestrel.ports import AddJob, AddTasks, CommitDone, JobRecord
from kestrel.protocol import messages as m
from kestrel.store import SqliteStore
from kestrel.store.backup import back_up
from kestrel.store.checking import check
from kestrel.store.lives import EPOCHS_LEAPT, JOBS_LEAPT
from parts.disk import SmallDisk, small_disk

__all__ = ["small_disk"]

MESSAGE = b'{"type":"job","command":"echo"}'


def result(task: int, out: str = "") -> RecordResult:
    report = m.AttemptReport(job=1, task=task, attempt=task + 1, out=out)
    return RecordResult(1, task, task + 1, TaskState.COMPLETED, task + 1, "w", report)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "store.db"
    store = SqliteStore(path, lambda call: None, pool="blue")
    store.open(lambda record: None)
    store.commit(
        [AddJob(JobRecord(1, "ann", "s", MESSAGE, 50, True, 1.5), [[str(n)] for n in range(50)])]
        + [result(task) for task in range(40)],
        (),
        lambda outcome: None,
    )
    store.close()
    return path


def test_a_backup_is_a_store_with_all_that_was_there(path: Path, tmp_path: Path) -> None:
    made = back_up(path, tmp_path / "copy.db")
    assert (made.jobs, made.results) == (1, 40)
    assert made.size_bytes == (tmp_path / "copy.db").stat().st_size
    assert check(tmp_path / "copy.db").sound
    copy = SqliteStore(tmp_path / "copy.db", lambda call: None, pool="blue")
    content = copy.open(lambda record: None)
    copy.close()
    original = SqliteStore(path, lambda call: None)
    expected = original.open(lambda record: None)
    original.close()
    assert content.jobs == expected.jobs
    assert content.unfinished == expected.unfinished


def test_a_restored_backup_gives_no_number_that_was_given_since_it_was_made(
    path: Path, tmp_path: Path
) -> None:
    """Workers may still hold attempts of later epochs, and results of jobs that the backup does not know."""
    back_up(path, tmp_path / "copy.db")
    store = SqliteStore(tmp_path / "copy.db", lambda call: None)
    content = store.open(lambda record: None)
    store.close()
    assert content.epoch == 1 + EPOCHS_LEAPT + 1
    assert content.next_job == 2 + JOBS_LEAPT
    assert (content.epoch + 100 * EPOCHS_LEAPT) << 32 < 2**53, "attempt ids must stay numbers in JSON"
    back_up(tmp_path / "copy.db", tmp_path / "again.db")
    assert check(tmp_path / "again.db").sound


def opened(path: Path) -> tuple[int, int]:
    """Epoch and next job of one more life."""
    store = SqliteStore(path, lambda call: None)
    content = store.open(lambda record: None)
    store.close()
    return content.epoch, content.next_job


@pytest.mark.parametrize("how", ["backup", "file"])
def test_a_copy_that_is_put_back_twice_gives_no_number_twice(path: Path, tmp_path: Path, how: str) -> None:
    """What ran between the two may be in workers' hands as well."""
    copy = tmp_path / "copy.db"
    if how == "backup":
        back_up(path, copy)
    else:
        shutil.copy(path, copy)
    lives = [opened(path) for _ in range(3)]
    for _ in range(3):
        shutil.copy(copy, path)
        epoch, job = opened(path)
        assert epoch > max(e for e, _ in lives)
        assert job >= max(j for _, j in lives) + JOBS_LEAPT
        lives += [(epoch, job), *(opened(path) for _ in range(2))]
    assert max(epoch for epoch, _ in lives) < 5 * EPOCHS_LEAPT
    path.unlink()
    assert opened(path)[0] > max(e for e, _ in lives), "a store that is made anew is a later one, too"


def test_what_says_which_life_was_the_last_may_be_damaged(path: Path) -> None:
    path.with_name("store.db.life").write_text("?")
    assert opened(path) == (2, 2)
    assert opened(path) == (3, 2)


def test_only_its_owner_may_read_a_backup(path: Path, tmp_path: Path) -> None:
    made = back_up(path, tmp_path / "copy.db")
    assert stat.S_IMODE(made.backup.stat().st_mode) == 0o600


def test_a_file_that_is_there_is_not_overwritten_unless_asked_for(path: Path, tmp_path: Path) -> None:
    destination = tmp_path / "precious"
    destination.write_text("precious")
    with pytest.raises(UsageError, match="precious exists") as caught:
        back_up(path, destination)
    assert "--force" in caught.value.hint
    assert destination.read_text() == "precious"
    back_up(path, destination, replace=True)
    assert check(destination).sound
    with pytest.raises(UsageError, match="directory"):
        back_up(path, tmp_path, replace=True)


def test_a_backup_that_fails_leaves_nothing_behind(path: Path, tmp_path: Path) -> None:
    place = tmp_path / "backups"
    with pytest.raises(EnvironmentProblem, match="cannot be written"):
        back_up(path, place / "copy.db")
    place.mkdir()
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("UPDATE jobs SET completed = 3")
    connection.close()
    with pytest.raises(StoreError, match=r"not sound.*3 are counted"):
        back_up(path, place / "copy.db")
    with pytest.raises(UsageError, match="no store"):
        back_up(tmp_path / "nowhere.db", place / "copy.db")
    assert list(place.iterdir()) == []


def test_a_full_disk_under_the_backup_is_named(path: Path, small_disk: SmallDisk) -> None:
    small_disk.fill(leave_bytes=8000)
    with pytest.raises(EnvironmentProblem) as caught:
        back_up(path, small_disk.path / "copy.db")
    assert str(small_disk.path) in caught.value.text
    assert [p.name for p in small_disk.path.iterdir()] == ["ballast"]
    small_disk.empty()
    assert back_up(path, small_disk.path / "copy.db").results == 40


def test_backups_under_load_are_whole_and_keep_nobody_waiting(tmp_path: Path) -> None:
    """Units of ten tasks with their results: a backup has all of a unit or nothing."""
    path = tmp_path / "store.db"
    stop = threading.Event()
    stored = 0

    async def manage() -> None:
        nonlocal stored
        loop = asyncio.get_running_loop()
        store = SqliteStore(path, loop.call_soon_threadsafe, durable=False)
        store.open(lambda record: None)
        unit: list[Any] = [AddJob(JobRecord(1, "ann", "s", MESSAGE, 10, True, 1.5), [["x"]] * 10)]
        ready.set()
        while not stop.is_set():
            answer: asyncio.Future[object] = loop.create_future()
            unit += [result(task, "x" * 200) for task in range(stored, stored + 10)]
            store.commit(unit, (), answer.set_result, unit=stored // 10 + 1)
            assert isinstance(await answer, CommitDone)
            stored += 10
            unit = [AddTasks(1, stored, [["x"]] * 10, last=False)]
        store.close()

    ready = threading.Event()
    manager = threading.Thread(target=lambda: asyncio.run(manage()))
    manager.start()
    try:
        assert ready.wait(60)
        counts = []
        for number in range(6):
            before = stored
            made = back_up(path, tmp_path / f"copy{number}.db")
            assert before <= made.results <= stored + 10
            assert made.results % 10 == 0
            counts.append(made.results)
    finally:
        stop.set()
        manager.join()
    assert counts == sorted(set(counts)), "the manager stored nothing while backups were made"


@pytest.mark.skipif(sys.platform == "win32", reason="sh")
def test_the_steps_to_restore_do_so(path: Path, tmp_path: Path) -> None:
    made = back_up(path, tmp_path / "a copy.db")
    path.write_bytes(b"rubbish")
    path.with_name("store.db-wal").write_bytes(b"rubbish")
    subprocess.run(["sh", "-ec", "\n".join(made.steps)], check=True)
    assert check(path).results == 40


def test_a_backup_that_was_killed_is_no_backup(path: Path, tmp_path: Path) -> None:
    """The name appears when the copy is whole: whatever else is left begins with a dot."""
    script = (
        "import os, signal, sys\n"
        "from kestrel.store import backup\n"
        "def killed(*_, **__): os.kill(os.getpid(), signal.SIGKILL)\n"
        "backup._named = killed\n"
        "backup.back_up(sys.argv[1], backup.Path(sys.argv[2]))\n"
    )
    words = [sys.executable, "-c", script, str(path), str(tmp_path / "copy.db")]
    assert subprocess.run(words, env={**os.environ}, check=False).returncode == -9
    assert not (tmp_path / "copy.db").exists()
    assert back_up(path, tmp_path / "copy.db").results == 40


def test_a_copied_lock_or_log_does_not_matter(path: Path, tmp_path: Path) -> None:
    store = SqliteStore(path, lambda call: None)
    store.open(lambda record: None)
    made = back_up(path, tmp_path / "copy.db")
    store.close()
    place = tmp_path / "elsewhere"
    place.mkdir()
    shutil.copy(made.backup, place / "store.db")
    assert sorted(p.name for p in place.iterdir()) == ["store.db"]
    assert check(place / "store.db").results == 40
