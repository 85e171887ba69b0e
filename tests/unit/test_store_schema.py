"""Files of every released schema version open, and steps forward are whole or not taken."""

from __future__ import annotations

import queue
import sqlite3
from pathlib import Path

import pytest

from kestrel.core.effects import RecordWorker
from kestrel.core.model import JobState, TaskState, Trouble
from kestrel.errors import StoreError
from kestrel.ports import CommitDone, JobRecord, ReadResults
from kestrel.protocol import messages as m
from kestrel.store import SqliteStore, schema

VERSION_1 = """
PRAGMA application_id = 1263752274;
PRAGMA user_version = 1;
CREATE TABLE meta (
    one INTEGER PRIMARY KEY CHECK (one = 1), epoch INTEGER NOT NULL, next_job INTEGER NOT NULL);
CREATE TABLE jobs (
    job INTEGER PRIMARY KEY, user TEXT NOT NULL, submission TEXT NOT NULL, message BLOB NOT NULL,
    size INTEGER NOT NULL, open INTEGER NOT NULL, is_cancelled INTEGER NOT NULL DEFAULT 0,
    submitted REAL NOT NULL, state TEXT NOT NULL, finished REAL NOT NULL,
    last INTEGER NOT NULL DEFAULT 0, completed INTEGER NOT NULL DEFAULT 0,
    failed INTEGER NOT NULL DEFAULT 0, cancelled INTEGER NOT NULL DEFAULT 0,
    timeout INTEGER NOT NULL DEFAULT 0, node_fail INTEGER NOT NULL DEFAULT 0);
CREATE UNIQUE INDEX jobs_submission ON jobs (user, submission) WHERE submission <> '';
CREATE TABLE params (
    job INTEGER NOT NULL, chunk INTEGER NOT NULL, body BLOB NOT NULL, PRIMARY KEY (job, chunk));
CREATE TABLE results (
    job INTEGER NOT NULL, task INTEGER NOT NULL, seq INTEGER NOT NULL, state INTEGER NOT NULL,
    PRIMARY KEY (job, task)) WITHOUT ROWID;
CREATE TABLE reports (position INTEGER PRIMARY KEY, body TEXT NOT NULL);
CREATE TABLE cancelled (
    job INTEGER NOT NULL, first INTEGER NOT NULL, stop INTEGER NOT NULL, seq INTEGER NOT NULL,
    PRIMARY KEY (job, first)) WITHOUT ROWID;
CREATE UNIQUE INDEX cancelled_seq ON cancelled (job, seq, first, stop);
CREATE TABLE troubles (
    job INTEGER NOT NULL, task INTEGER NOT NULL, failures INTEGER NOT NULL, losses INTEGER NOT NULL,
    PRIMARY KEY (job, task)) WITHOUT ROWID;
INSERT INTO meta VALUES (1, 41, 6);
INSERT INTO jobs VALUES (4, 'ann@pool', 's', x'7b7d', 1, 0, 0, 1.5, 'COMPLETED', 2.5, 1, 1, 0, 0, 0, 0);
INSERT INTO jobs VALUES (5, 'bob@pool', '', x'7b7d', 6, 1, 1, 3.5, 'PENDING', 0, 3, 0, 1, 2, 0, 0);
INSERT INTO params VALUES (5, 0, x'9391a16191a16291a163');
INSERT INTO results VALUES (4, 0, 1, 2);
INSERT INTO results VALUES (5, 2, 1, 3);
INSERT INTO reports VALUES (4 << 32 | 1, '{"task":0}');
INSERT INTO reports VALUES (5 << 32 | 1, '{"task":2,"state":"FAILED","exit_code":3,"out":"x"}');
INSERT INTO cancelled VALUES (5, 3, 5, 2);
INSERT INTO troubles VALUES (5, 1, 2, 3);
"""
"""A file as version 1 wrote it. Never edit it: it stands for the files that people have."""


VERSION_2 = (
    VERSION_1.replace("user_version = 1", "user_version = 2")
    + """
ALTER TABLE troubles ADD COLUMN given_out INTEGER NOT NULL DEFAULT 0;
INSERT INTO troubles VALUES (5, 5, 0, 0, 1);
"""
)
"""As version 2 wrote it."""

VERSION_3 = (
    VERSION_2.replace("user_version = 2", "user_version = 3")
    + """
ALTER TABLE troubles ADD COLUMN counted TEXT NOT NULL DEFAULT '[]';
UPDATE troubles SET counted = '[17179869185]' WHERE task = 5;
CREATE TABLE workers (worker TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE drained (worker TEXT PRIMARY KEY) WITHOUT ROWID;
INSERT INTO workers VALUES ('w@pool/1');
INSERT INTO drained VALUES ('d@pool/1');
ALTER TABLE meta ADD COLUMN unit INTEGER NOT NULL DEFAULT 0;
ALTER TABLE meta ADD COLUMN pool TEXT NOT NULL DEFAULT '';
ALTER TABLE meta ADD COLUMN workers_since INTEGER NOT NULL DEFAULT 0;
UPDATE meta SET unit = 9, pool = 'blue', workers_since = 40;
"""
)
"""As version 3 wrote it."""

VERSION_4 = (
    VERSION_3.replace("user_version = 3", "user_version = 4")
    + """
ALTER TABLE troubles ADD COLUMN cancelling INTEGER NOT NULL DEFAULT 0;
UPDATE troubles SET cancelling = 1 WHERE task = 5;
"""
)
"""As version 4 wrote it."""

VERSIONS = {1: VERSION_1, 2: VERSION_2, 3: VERSION_3, 4: VERSION_4}


def write_version(path: Path, version: int) -> None:
    connection = sqlite3.connect(path)
    connection.executescript(VERSIONS[version])
    connection.close()


def described(path: Path) -> list[tuple[str, ...]]:
    """Every table and index with its columns and their properties."""
    connection = sqlite3.connect(path)
    try:
        names = connection.execute("SELECT type, name FROM sqlite_master ORDER BY type, name").fetchall()
        return [
            (kind, name, *map(str, connection.execute(f"PRAGMA {kind}_xinfo({name})").fetchall()))
            for kind, name in names
        ]
    finally:
        connection.close()


def test_every_version_is_tested() -> None:
    assert list(VERSIONS) == list(range(1, len(schema.MIGRATIONS) + 1))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_file_of_an_older_version_is_read_in_full(version: int, tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    write_version(path, version)
    calls: queue.SimpleQueue[object] = queue.SimpleQueue()
    store = SqliteStore(path, calls.put)
    content = store.open(lambda record: record.user)
    outcomes: list[object] = []
    store.commit([], [ReadResults(5, 0, 9)], outcomes.append)
    store.close()
    while not outcomes:
        calls.get(timeout=60)()  # type: ignore[operator]
    assert (content.epoch, content.next_job) == (42, 6)
    assert content.jobs == [
        JobRecord(
            4, "ann@pool", "s", b"{}", 1, False, 1.5, JobState.COMPLETED, 2.5, 1, m.TaskCounts(completed=1), 0
        ),
        JobRecord(
            5,
            "bob@pool",
            "",
            b"{}",
            6,
            True,
            3.5,
            last=3,
            counts=m.TaskCounts(failed=1, cancelled=2),
            reruns=3,
        ),
    ]
    (restored,) = content.unfinished
    assert restored.terms == "bob@pool"
    queued, failed, cancelled = TaskState.QUEUED, TaskState.FAILED, TaskState.CANCELLED
    assert restored.states == bytearray([queued, queued, failed, cancelled, cancelled, queued])
    assert (restored.open, restored.cancelled, restored.reruns) == (True, True, 3)
    expected = {1: Trouble(2, 3)}
    if version > 1:
        expected[5] = Trouble(0, 0, True, (1 << 34 | 1,) if version > 2 else (), version > 3)
    assert restored.troubles == expected
    assert (content.workers, content.drained) == (
        (("w@pool/1",), {"d@pool/1"}) if version > 2 else (None, set())
    )
    (outcome,) = outcomes
    assert isinstance(outcome, CommitDone)
    assert outcome.answers[0] == [
        (1, m.TaskResult(task=2, state="FAILED", exit_code=3, out="x", params=["c"])),
        (2, m.TaskResult(task=3, state="CANCELLED", exit_code=None)),
        (3, m.TaskResult(task=4, state="CANCELLED", exit_code=None)),
    ]


@pytest.mark.parametrize("version", VERSIONS)
def test_an_upgraded_file_has_the_tables_of_a_new_one(version: int, tmp_path: Path) -> None:
    old, new = tmp_path / "old.db", tmp_path / "new.db"
    write_version(old, version)
    for path in (old, new):
        store = SqliteStore(path, lambda call: None)
        store.open(lambda record: None)
        store.close()
    assert described(old) == described(new)


@pytest.mark.parametrize("version", [1, 2])
def test_who_was_there_before_an_upgrade_is_unknown_once_and_known_from_then_on(
    version: int, tmp_path: Path
) -> None:
    path = tmp_path / "store.db"
    write_version(path, version)
    calls: queue.SimpleQueue[object] = queue.SimpleQueue()
    store = SqliteStore(path, calls.put)
    assert store.open(lambda record: None).workers is None
    store.commit([RecordWorker("w@pool/1", True)], [], lambda outcome: None)
    store.close()
    for _ in range(2):
        assert store.open(lambda record: None).workers == ("w@pool/1",)
        store.close()


def test_an_old_file_that_was_never_used_had_nobody(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    connection = sqlite3.connect(path, isolation_level=None)
    schema.migrate(connection, path, schema.MIGRATIONS[:2])
    connection.close()
    store = SqliteStore(path, lambda call: None)
    assert store.open(lambda record: None).workers == ()
    store.close()


def test_each_step_is_taken_once_and_a_failing_one_leaves_the_version_before(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    first, second = ("CREATE TABLE a (x)",), ("CREATE TABLE b (x)", "INSERT INTO b VALUES (7)")
    broken = ("CREATE TABLE c (x)", "INSERT INTO nowhere VALUES (1)")
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        assert schema.migrate(connection, path, [first]) == (0, 1)
        with pytest.raises(sqlite3.OperationalError):
            schema.migrate(connection, path, [first, second, broken])
        assert connection.execute("PRAGMA user_version").fetchone() == (2,)
        assert schema.migrate(connection, path, [first, second]) == (2, 2)
        assert connection.execute("SELECT x FROM b").fetchall() == [(7,)]
        assert connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'c'").fetchone() == (0,)
        with pytest.raises(StoreError, match=r"version 2.*up to version 1"):
            schema.migrate(connection, path, [first])
    finally:
        connection.close()
