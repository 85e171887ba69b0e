"""A manager that is killed loses nothing that it was told is stored, and stores nothing by halves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kestrel.core.model import TaskState
from kestrel.store import SqliteStore

UNIT = 20

WRITER = """
import asyncio, sys
sys.path[:0] = sys.argv[2].split("|")
from kestrel.store import SqliteStore
from kestrel.ports import *
from kestrel.core.effects import RecordResult
from kestrel.core.model import TaskState
from kestrel.protocol.messages import AttemptReport
UNIT = int(sys.argv[3])
async def main():
    store = SqliteStore(sys.argv[1], asyncio.get_running_loop().call_soon_threadsafe)
    epoch = store.open(str).epoch
    size = 0
    def told(n):
        def done(outcome):
            assert isinstance(outcome, CommitDone), outcome
            sys.stdout.write(f"{n}\\n")
            sys.stdout.flush()
            commit()
        return done
    def commit():
        nonlocal size
        n = size // UNIT
        params = [[f"{epoch}-{task}"] for task in range(size, size + UNIT)]
        if n == 0:
            writes = [AddJob(JobRecord(epoch, "ann", str(epoch), b"", UNIT, True, 1.0), params)]
        else:
            writes = [AddTasks(epoch, size, params, False)]
        for task in range(size, size + UNIT):
            report = AttemptReport(job=epoch, task=task, attempt=1, out="x" * 300)
            writes.append(RecordResult(epoch, task, task + 1, TaskState.COMPLETED, 1, "w", report))
        size += UNIT
        store.commit(writes, [], told(n))
    for _ in range(8):
        commit()
    await asyncio.Event().wait()
asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9")
def test_every_acknowledged_unit_survives_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    for life in range(1, 6):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), "|".join(sys.path), str(UNIT)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        with process, process.stdout:
            for _ in range(30 * life):
                assert process.stdout.readline().endswith("\n")
            process.kill()
            rest = process.stdout.read()
        acknowledged = 30 * life + rest.count("\n")
        check(path, 2 * life - 1, acknowledged)
        assert not os.path.exists(f"{path}-wal")


def check(path: Path, job: int, acknowledged: int) -> None:
    answers: list[object] = []
    store = SqliteStore(path, answers.append)
    content = store.open(lambda record: None)
    store.close()
    assert content.epoch == job + 1
    record, restored = content.jobs[-1], content.unfinished[-1]
    assert record.job == job
    assert record.size >= acknowledged * UNIT
    assert record.size % UNIT == 0
    assert record.counts.completed == record.last == record.size
    assert restored.states == bytearray([TaskState.COMPLETED]) * record.size
