"""One manager has a store file, others are kept out; readers are let in; a death frees it."""

from __future__ import annotations

import queue
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kestrel.errors import StoreError
from kestrel.locks import lock_file
from kestrel.ports import FENCED, IN_USE, AddJob, CommitDone, CommitFailed, JobRecord
from kestrel.store import SqliteSettings, SqliteStore

HOLDER = """
import sys
sys.path[:0] = sys.argv[2].split("|")
from kestrel.store import SqliteStore
store = SqliteStore(sys.argv[1], print)
store.open(lambda record: None)
print("open", flush=True)
sys.stdin.read()
store.close()
"""

OLD_KESTREL = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=0.05, isolation_level=None)
connection.execute("PRAGMA locking_mode = EXCLUSIVE")
connection.execute("BEGIN EXCLUSIVE")
connection.execute("COMMIT")
connection.execute("PRAGMA journal_mode = WAL")
connection.execute("UPDATE meta SET epoch = epoch + 1")
print("open", flush=True)
sys.stdin.read()
"""
"""What versions before lock files do when they open a store."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "store.db"
    store = SqliteStore(path, lambda call: None)
    store.open(lambda record: None)
    store.close()
    return path


@pytest.fixture
def start() -> Iterator[Callable[[str, Path], subprocess.Popen[str]]]:
    """Starts a program that has the store when it says `open`, and gives it back when its input ends."""
    started: list[subprocess.Popen[str]] = []

    def start_one(program: str, path: Path) -> subprocess.Popen[str]:
        words = [sys.executable, "-c", program, str(path), "|".join(sys.path)]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, text=True))
        return started[-1]

    yield start_one
    for process in started:
        process.kill()
        process.communicate()


Start = Callable[[str, Path], "subprocess.Popen[str]"]


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def candidate(path: Path) -> SqliteStore:
    return SqliteStore(path, lambda call: None, settings=SqliteSettings(lock_wait_s=0.05))


def refusal(path: Path) -> StoreError:
    with pytest.raises(StoreError) as caught:
        candidate(path).open(lambda record: None)
    assert caught.value.code == IN_USE
    assert caught.value.retry
    return caught.value


def test_who_has_the_store_is_named(path: Path, start: Start) -> None:
    holder = start(HOLDER, path)
    assert said(holder) == "open\n"
    assert f"process {holder.pid}" in refusal(path).text


def test_a_kill_9_frees_the_store_at_once(path: Path, start: Start) -> None:
    for life in range(3):
        holder = start(HOLDER, path)
        assert said(holder) == "open\n"
        refusal(path)
        holder.kill()
        holder.wait()
        store = candidate(path)
        assert store.open(lambda record: None).epoch == 3 + 2 * life
        store.close()


def test_a_manager_that_is_just_ending_is_waited_for(path: Path, start: Start) -> None:
    holder = start(HOLDER, path)
    assert said(holder) == "open\n"
    assert holder.stdin is not None
    holder.stdin.close()
    store = SqliteStore(path, lambda call: None, settings=SqliteSettings(lock_wait_s=60))
    assert store.open(lambda record: None).epoch == 3
    store.close()
    holder.stdin = None


def test_an_older_kestrel_that_locks_the_database_itself_is_noticed(path: Path, start: Start) -> None:
    holder = start(OLD_KESTREL, path)
    assert said(holder) == "open\n"
    refusal(path)


def test_an_older_kestrel_cannot_get_in(path: Path, start: Start) -> None:
    store = candidate(path)
    store.open(lambda record: None)
    older = start(OLD_KESTREL, path)
    assert "database is locked" in older.communicate()[1]
    store.close()


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links")
def test_a_second_name_for_the_file_is_no_second_store(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere"
    other.mkdir()
    (other / "link.db").symlink_to(path)
    store = candidate(path)
    store.open(lambda record: None)
    refusal(other / "link.db")
    store.close()
    through_link = candidate(other / "link.db")
    assert through_link.open(lambda record: None).epoch == 3
    refusal(path)
    through_link.close()


def test_readers_are_let_in_while_a_manager_writes(path: Path) -> None:
    calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    store = SqliteStore(path, calls.put)
    store.open(lambda record: None)
    outcomes: list[CommitDone | CommitFailed] = []
    reader = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)
    seen = []
    for number in range(1, 4):
        reader.execute("BEGIN")
        seen.append(reader.execute("SELECT count(*) FROM jobs").fetchone()[0])
        store.commit([AddJob(JobRecord(number, "ann", "", b"", 1, False, 1.0))], (), outcomes.append)
        while len(outcomes) < number:
            calls.get(timeout=60)()
        seen.append(reader.execute("SELECT count(*) FROM jobs").fetchone()[0])
        reader.execute("COMMIT")
    reader.close()
    store.close()
    assert [type(o) for o in outcomes] == [CommitDone] * 3
    assert seen == [0, 0, 1, 1, 2, 2]


def test_another_program_that_writes_for_long_is_waited_for(path: Path) -> None:
    calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    store = SqliteStore(path, calls.put, settings=SqliteSettings(lock_wait_s=0.05))
    store.open(lambda record: None)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    outcomes: list[CommitDone | CommitFailed] = []
    unit = [AddJob(JobRecord(1, "ann", "", b"", 1, False, 1.0))]
    store.commit(unit, (), outcomes.append, unit=1)
    while not outcomes:
        calls.get(timeout=60)()
    other.execute("ROLLBACK")
    other.close()
    store.commit(unit, (), outcomes.append, unit=1)
    while len(outcomes) < 2:
        calls.get(timeout=60)()
    store.close()
    failed, done = outcomes
    assert isinstance(failed, CommitFailed)
    assert isinstance(failed.problem, StoreError)
    assert failed.problem.retry
    assert "another program" in failed.problem.text
    assert isinstance(done, CommitDone)


def test_who_got_in_past_the_lock_fences_the_manager(path: Path) -> None:
    """Locks of some network disks are forgotten; then two managers must not both write."""
    calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    store = SqliteStore(path, calls.put)
    store.open(lambda record: None)
    other = sqlite3.connect(path)
    with other:
        other.execute("UPDATE meta SET epoch = epoch + 1, unit = 0")
    outcomes: list[CommitDone | CommitFailed] = []
    store.commit([AddJob(JobRecord(1, "ann", "", b"", 1, False, 1.0))], (), outcomes.append, unit=1)
    store.commit([AddJob(JobRecord(1, "ann", "", b"", 1, False, 1.0))], (), outcomes.append)
    store.commit([], (), outcomes.append, unit=1)
    store.close()
    while len(outcomes) < 3:
        calls.get(timeout=60)()
    for outcome in outcomes:
        assert isinstance(outcome, CommitFailed)
        assert isinstance(outcome.problem, StoreError)
        assert (outcome.problem.code, outcome.problem.retry) == (FENCED, False)
    assert other.execute("SELECT count(*) FROM jobs").fetchone() == (0,)
    other.close()


def test_a_lock_is_free_again_when_it_is_closed(tmp_path: Path) -> None:
    def in_use(holder: str) -> StoreError:
        return StoreError(f"held by {holder}")

    first = lock_file(tmp_path / "lock", in_use)
    with pytest.raises(StoreError, match="held by"):
        lock_file(tmp_path / "lock", in_use)
    first.close()
    lock_file(tmp_path / "lock", in_use).close()
    with pytest.raises(OSError, match="No such file"):
        lock_file(tmp_path / "nowhere" / "lock", in_use)
