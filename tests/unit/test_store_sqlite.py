"""What is special about the SQLite store: files it refuses, full disks, the queue, the thread."""

from __future__ import annotations

import asyncio
import gc
import queue
import shutil
import sqlite3
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kestrel.core.effects import RecordResult
from kestrel.core.model import TaskState
from kestrel.errors import InternalError, StoreError
from kestrel.ports import (
    AddJob,
    AddTasks,
    CommitDone,
    CommitFailed,
    JobRecord,
    ReadParams,
    ReadResults,
    StoreContent,
)
from kestrel.protocol import messages as m
from kestrel.store import SqliteSettings, SqliteStore, schema

Outcome = CommitDone | CommitFailed


class Desk:
    """A store whose answers are fetched by hand."""

    def __init__(self, path: Path, **settings: Any) -> None:
        self.calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.store = SqliteStore(path, self.calls.put, settings=SqliteSettings(**settings))
        self.outcomes: list[Outcome] = []

    def open(self) -> StoreContent:
        return self.store.open(lambda record: record.user)

    def commit(self, *writes: Any, reads: Any = ()) -> Outcome:
        expected = len(self.outcomes) + 1
        self.store.commit(writes, reads, self.outcomes.append)
        self.fetch(expected)
        return self.outcomes[-1]

    def fetch(self, expected: int) -> None:
        while len(self.outcomes) < expected:
            self.calls.get(timeout=60)()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
def desk(path: Path) -> Iterator[Desk]:
    desk = Desk(path)
    desk.open()
    yield desk
    desk.store.close()


def job(number: int = 1, size: int = 100_000) -> AddJob:
    return AddJob(JobRecord(number, "ann", "", b"", size, False, 1.0))


def result(task: int, out: str = "") -> RecordResult:
    report = m.AttemptReport(job=1, task=task, attempt=task + 1, out=out)
    return RecordResult(1, task, task + 1, TaskState.COMPLETED, task + 1, "w", report)


def refusal(path: Path) -> StoreError:
    with pytest.raises(StoreError) as caught:
        Desk(path, lock_wait_s=0.05).open()
    assert str(path) in str(caught.value)
    assert caught.value.hint
    return caught.value


# --- files that are refused ---------------------------------------------------------------------------


def test_a_file_that_is_no_database_is_refused_and_left_alone(path: Path) -> None:
    content = b"Dear diary, today nothing happened. " * 100
    path.write_bytes(content)
    assert "not a store" in refusal(path).text
    assert path.read_bytes() == content


def test_a_database_of_another_application_is_refused_and_left_alone(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE songs (title)")
    connection.commit()
    connection.close()
    content = path.read_bytes()
    assert "another application" in refusal(path).text
    assert path.read_bytes() == content


def test_a_file_of_a_newer_kestrel_is_refused_and_both_versions_named(desk: Desk, path: Path) -> None:
    desk.store.close()
    connection = sqlite3.connect(path)
    newer = len(schema.MIGRATIONS) + 41
    connection.execute(f"PRAGMA user_version = {newer}")
    connection.close()
    content = path.read_bytes()
    text = refusal(path).text
    assert f"version {newer}" in text
    assert f"version {len(schema.MIGRATIONS)}" in text
    assert path.read_bytes() == content


def test_a_store_that_another_manager_has_is_refused_until_it_is_free(desk: Desk, path: Path) -> None:
    problem = refusal(path)
    assert "another manager" in problem.text
    assert "stop the other manager" in problem.hint
    desk.store.close()
    assert desk.open().epoch == 2


def test_a_store_that_another_process_has_is_refused(desk: Desk, path: Path) -> None:
    script = (
        "import sys; from kestrel.store import SqliteStore, SqliteSettings\n"
        "from kestrel.errors import StoreError\n"
        "store = SqliteStore(sys.argv[1], print, settings=SqliteSettings(lock_wait_s=0.05))\n"
        "try: store.open(str)\n"
        "except StoreError as problem: print(problem)\n"
    )
    refusal(path)  # a try from the same process must not take its lock away
    said = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True
    )
    assert "another manager" in said.stdout
    assert isinstance(desk.commit(job()), CommitDone)


def test_a_directory_is_refused(tmp_path: Path) -> None:
    assert "is a directory" in refusal(tmp_path).text


def test_a_place_in_a_directory_that_is_not_there_is_refused(tmp_path: Path) -> None:
    problem = refusal(tmp_path / "nowhere" / "store.db")
    assert "does not exist" in problem.text
    assert "mkdir" in problem.hint


def test_a_place_below_a_file_is_refused(path: Path) -> None:
    path.write_text("")
    with pytest.raises(StoreError, match="no directory"):
        Desk(path / "store.db").open()


def as_nobody(path: Path) -> str:
    """What a user without rights is told: a process of another user, for root may do everything."""
    script = (
        "import os, sys\n"
        "from kestrel.store import SqliteStore; from kestrel.errors import StoreError\n"
        "if os.getuid() == 0: os.setgid(65534); os.setuid(65534)\n"
        "try: SqliteStore(sys.argv[1], print).open(str)\n"
        "except StoreError as problem: print(problem)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of POSIX")
@pytest.mark.parametrize(
    "kind", ["read-only file", "unreadable file", "unreadable directory", "closed directory"]
)
def test_what_may_not_be_read_or_written_is_refused(kind: str, tmp_path: Path) -> None:
    for parent in [tmp_path, *tmp_path.parents]:
        if parent.name.startswith("pytest-"):
            parent.chmod(0o755)
    place = tmp_path / "place"
    place.mkdir()
    path = place / "store.db"
    if kind != "closed directory":
        desk = Desk(path)
        desk.open()
        desk.store.close()
    place.chmod({"unreadable directory": 0o000, "closed directory": 0o555}.get(kind, 0o755))
    if path.parent.stat().st_mode & 0o500 and path.exists():
        path.chmod({"read-only file": 0o444, "unreadable file": 0o000}.get(kind, 0o644))
    said = as_nobody(path)
    place.chmod(0o755)
    assert str(path) in said
    assert "hint:" in said
    assert "permission" in said or "cannot be opened" in said


# --- full disks ---------------------------------------------------------------------------------------


def test_a_full_store_fails_whole_units_and_goes_on_when_there_is_room(path: Path) -> None:
    desk = Desk(path, file_bytes_max=300_000)
    desk.open()
    assert isinstance(desk.commit(job()), CommitDone)
    for unit in range(100):
        outcome = desk.commit(*(result(unit * 10 + n, "x" * 4000) for n in range(10)))
        if isinstance(outcome, CommitFailed):
            break
    else:
        pytest.fail("4 MB went into 300 kB")
    problem = outcome.problem
    assert isinstance(problem, StoreError)
    assert problem.retry
    assert str(path) in problem.text
    assert "free space" in problem.hint
    small = desk.commit(result(99_999))
    assert isinstance(small, CommitDone | CommitFailed)
    desk.store.close()
    roomy = Desk(path)
    content = roomy.open()
    stored = unit * 10 + isinstance(small, CommitDone)
    assert content.jobs[0].counts.completed == stored
    assert content.unfinished[0].states.count(TaskState.COMPLETED) == stored
    assert isinstance(roomy.commit(*(result(unit * 10 + n, "x" * 4000) for n in range(10))), CommitDone)
    roomy.store.close()


def test_of_a_group_that_does_not_fit_the_small_units_are_stored(path: Path) -> None:
    desk = Desk(path, file_bytes_max=300_000)
    desk.open()
    desk.commit(job())
    desk.store.commit([result(0)], [], desk.outcomes.append)
    desk.store.commit([result(1, "x" * 1_000_000)], [], desk.outcomes.append)
    desk.store.commit([result(2)], [ReadResults(1, 0, 9)], desk.outcomes.append)
    desk.fetch(4)
    assert [type(o) for o in desk.outcomes[1:]] == [CommitDone, CommitFailed, CommitDone]
    last = desk.outcomes[3]
    assert isinstance(last, CommitDone)
    assert [r.task for _, r in last.answers[0]] == [0, 2]
    desk.store.close()


FULL_DISK = """
import os, queue, sys
sys.path[:0] = sys.argv[2].split(os.pathsep)
from kestrel.store import SqliteStore
from kestrel.ports import *
from kestrel.core.effects import RecordResult
from kestrel.core.model import TaskState
from kestrel.protocol.messages import AttemptReport
place = sys.argv[1]
calls = queue.SimpleQueue()
store = SqliteStore(place + "/store.db", calls.put)
store.open(str)
def commit(*writes):
    told = []
    store.commit(writes, (), told.append)
    while not told:
        calls.get(timeout=60)()
    return told[0]
def unit(n):
    reports = [AttemptReport(job=1, task=t, attempt=1, out="x" * 4000) for t in range(n * 20, n * 20 + 20)]
    return [RecordResult(1, r.task, r.task + 1, TaskState.COMPLETED, 1, "w", r) for r in reports]
assert isinstance(commit(AddJob(JobRecord(1, "ann", "", b"", 100000, False, 1.0))), CommitDone)
with open(place + "/ballast", "wb") as ballast:
    ballast.write(bytes(2_000_000))
n = 0
while isinstance(answer := commit(*unit(n)), CommitDone):
    n += 1
print(answer.problem.retry, answer.problem)
os.unlink(place + "/ballast")
again = commit(*unit(n))
if not isinstance(again, CommitDone):
    print("still", again.problem)
print("stored", n + isinstance(again, CommitDone))
store.close()
content = store.open(str)
print("found", content.jobs[0].counts.completed // 20, content.unfinished[0].states.count(2) // 20)
store.close()
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="no unshare: a tiny disk cannot be made")
def test_a_disk_that_is_really_full_loses_nothing_and_recovers(tmp_path: Path) -> None:
    mount = f'mount -t tmpfs -o size=4m none {tmp_path} && exec {sys.executable} -c "$0" {tmp_path} "$1"'
    tried = subprocess.run(
        ["unshare", "-rm", "sh", "-c", f"mount -t tmpfs none {tmp_path}"], check=False, capture_output=True
    )
    if tried.returncode:
        pytest.skip(f"no tiny disk can be made here: {tried.stderr.decode().strip()}")
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", mount, FULL_DISK, ":".join(sys.path)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    told, *_, stored, found = done.stdout.splitlines()
    assert told.startswith("True no room left for the store")
    assert "still" not in done.stdout
    count = stored.split()[1]
    assert int(count) > 5
    assert found == f"found {count} {count}"


# --- queue, thread, answers ---------------------------------------------------------------------------


class Gate:
    """Writes that hold the writer thread until the test lets it go on."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    def __iter__(self) -> Iterator[Any]:
        self.reached.set()
        assert self.opened.wait(60)
        return iter(())

    def __len__(self) -> int:
        return 1


def test_units_beyond_the_bound_are_refused_in_their_turn(path: Path) -> None:
    desk = Desk(path, queue_units_max=2)
    desk.open()
    gate = Gate()
    desk.store.commit(gate, (), desk.outcomes.append)  # type: ignore[arg-type]
    assert gate.reached.wait(60)
    for number, writes in enumerate(([job()], [result(0)], [result(1)], [result(2)]), 1):
        desk.store.commit(writes, (), desk.outcomes.append, unit=number)
    gate.opened.set()
    desk.fetch(5)
    kinds = [type(o) for o in desk.outcomes]
    assert kinds == [CommitDone, CommitDone, CommitDone, CommitFailed, CommitFailed]
    refused = desk.outcomes[3]
    assert isinstance(refused, CommitFailed)
    assert isinstance(refused.problem, StoreError)
    assert refused.problem.retry
    assert refused.problem.code == "store_behind"
    for number in (3, 4):
        desk.store.commit([result(number - 2)], (), desk.outcomes.append, unit=number)
    desk.fetch(7)
    assert [type(o) for o in desk.outcomes[5:]] == [CommitDone, CommitDone]
    desk.store.close()
    assert desk.open().jobs[0].counts.completed == 3
    desk.store.close()


def test_everything_that_waits_is_one_transaction(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    statements: list[str] = []
    connect = sqlite3.connect

    def traced(*args: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*args, **options)
        connection.set_trace_callback(statements.append)
        return connection

    monkeypatch.setattr(sqlite3, "connect", traced)
    desk = Desk(path)
    desk.open()
    gate = Gate()
    desk.store.commit(gate, (), desk.outcomes.append)  # type: ignore[arg-type]
    assert gate.reached.wait(60)
    statements.clear()
    desk.store.commit([job()], (), desk.outcomes.append)
    for n in range(200):
        desk.store.commit([result(n)], (), desk.outcomes.append)
    gate.opened.set()
    desk.fetch(202)
    desk.store.close()
    # One COMMIT ends the unit at the gate, the other everything that waited behind it.
    assert statements.count("COMMIT") == 2
    assert len([s for s in statements if s.startswith("INSERT INTO results")]) <= 8


def test_a_unit_that_cannot_be_written_fails_and_the_thread_lives_on(desk: Desk) -> None:
    desk.commit(job())
    outcome = desk.commit(result(0, out="\ud800"))
    assert isinstance(outcome, CommitFailed)
    assert isinstance(outcome.problem, InternalError)
    assert isinstance(desk.commit(job(number=2**70)), CommitFailed)
    assert isinstance(desk.commit(result(0)), CommitDone)


def test_a_callback_that_raises_costs_no_other_its_answer(desk: Desk) -> None:
    def fail(outcome: Outcome) -> None:
        raise RuntimeError("a bug in the callback")

    gate = Gate()
    desk.store.commit(gate, (), desk.outcomes.append)  # type: ignore[arg-type]
    assert gate.reached.wait(60)
    desk.store.commit([job()], (), fail)
    desk.store.commit([result(0)], (), desk.outcomes.append)
    desk.store.commit([result(1)], (), desk.outcomes.append)
    gate.opened.set()
    desk.fetch(1)
    with pytest.raises(RuntimeError, match="a bug in the callback"):
        desk.fetch(2)
    desk.fetch(3)


def test_what_came_in_is_stored_even_if_the_event_loop_is_closed(path: Path) -> None:
    loop = asyncio.new_event_loop()
    store = SqliteStore(path, loop.call_soon_threadsafe)
    store.open(lambda r: None)
    loop.close()
    store.commit([job(), result(0)], (), lambda _: None)
    store.close()
    assert store.open(lambda r: None).jobs[0].counts.completed == 1
    store.close()


def test_answers_arrive_on_the_thread_of_the_event_loop(path: Path) -> None:
    async def scenario() -> tuple[str, Outcome]:
        loop = asyncio.get_running_loop()
        store = SqliteStore(path, loop.call_soon_threadsafe)
        store.open(lambda r: None)
        answer: asyncio.Future[tuple[str, Outcome]] = loop.create_future()
        store.commit([job()], (), lambda o: answer.set_result((threading.current_thread().name, o)))
        try:
            return await answer
        finally:
            store.close()

    thread, outcome = asyncio.run(scenario())
    assert thread == threading.current_thread().name
    assert isinstance(outcome, CommitDone)


def test_nothing_is_left_behind(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        desk = Desk(path)
        desk.open()
        desk.commit(job())
        desk.store.close()
        refusal(path.parent)
        del desk
        gc.collect()
    assert not any(t.name == "kestrel-store" for t in threading.enumerate())
    # Removing the lock file would let two managers lock two files of the same name.
    names = [path.name, f"{path.name}.life", f"{path.name}.lock"]
    assert sorted(p.name for p in path.parent.iterdir()) == names


def test_opening_twice_is_a_bug_and_a_failing_caller_gets_the_file_back(desk: Desk) -> None:
    with pytest.raises(InternalError):
        desk.open()
    desk.commit(job())
    desk.store.close()

    def fail(record: JobRecord) -> Any:
        raise ValueError(record.job)

    with pytest.raises(ValueError, match="1"):
        desk.store.open(fail)
    assert desk.open().jobs[0].job == 1


def test_parameters_survive_a_cache_that_holds_next_to_nothing(path: Path) -> None:
    desk = Desk(path, params_cache_bytes_max=1)
    desk.open()
    desk.commit(AddJob(JobRecord(1, "ann", "", b"", 0, True, 1.0), []))
    for at in range(0, 2000, 100):
        desk.commit(AddTasks(1, at, [[str(n)] for n in range(at, at + 100)], last=False))
    outcome = desk.commit(reads=[ReadParams(1, range(2000))])
    assert isinstance(outcome, CommitDone)
    assert outcome.answers[0] == [[str(n)] for n in range(2000)]
    desk.store.close()


def test_the_cache_forgets_what_was_rolled_back(desk: Desk) -> None:
    desk.commit(AddJob(JobRecord(1, "ann", "", b"", 1, True, 1.0), [["kept"]]))
    add = AddTasks(1, 1, [["dropped"]], last=False)
    failed = desk.commit(add, reads=[ReadParams(1, [0, 1]), ReadParams(1, [2])])
    assert isinstance(failed, CommitFailed)
    desk.commit(AddTasks(1, 1, [["new"]], last=False))
    outcome = desk.commit(reads=[ReadParams(1, [0, 1])])
    assert isinstance(outcome, CommitDone)
    assert outcome.answers[0] == [["kept"], ["new"]]
