"""Every maker of the store, and a store driven as a manager drives it, for the tests of the contract.

A new maker is one line in `MAKERS`.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import parts.postgres
from kestrel.core.effects import RecordResult
from kestrel.core.model import TaskState
from kestrel.errors import StoreError
from kestrel.ports import (
    AddJob,
    CommitDone,
    CommitFailed,
    JobRecord,
    Read,
    Store,
    StoreContent,
    Write,
)
from kestrel.protocol import messages as m
from kestrel.store import MemoryStore, SqliteSettings, SqliteStore

ENDED_AT = 1234.5


class Loop:
    """Clock and event loop in one: calls wait in a queue until the test runs them."""

    def __init__(self) -> None:
        self.calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def now(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return ENDED_AT

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Any:
        assert delay_s == 0
        self.calls.put(callback)

    def run_one(self) -> None:
        self.calls.get(timeout=60)()


@dataclass(frozen=True)
class Maker:
    """How to make a store whose answers come through `loop`, in the scratch directory `path`, for a pool."""

    make: Callable[[Loop, Path, str], Store]
    """Two that are made in one directory are the same store."""
    place: Callable[[Path], str] = str
    """What `kestrel.store.places` calls the one of this directory."""
    lasting: bool = True
    """What one object has stored is there for another one."""
    shared: bool = False
    """Two managers may reach it: it is a `LeaseBook`, too, and who takes the lease fences the other."""


def sqlite_place(path: Path) -> str:
    return str(path / "store.db")


def postgres_place(path: Path) -> str:
    return parts.postgres.shared().place(path)


def sqlite(loop: Loop, path: Path, pool: str, *, durable: bool = True) -> Store:
    quick = SqliteSettings(lock_wait_s=0.05)
    place = sqlite_place(path)
    return SqliteStore(place, loop.calls.put, pool=pool, durable=durable, settings=quick, wall=loop.wall)


def postgres(loop: Loop, path: Path, pool: str) -> Store:
    place = postgres_place(path)
    from kestrel.store.postgres import PostgresStore

    return PostgresStore(place, loop.calls.put, pool=pool, wall=loop.wall)


MAKERS: dict[str, Maker] = {
    "memory": Maker(lambda loop, _, __: MemoryStore(loop), lasting=False),
    "sqlite": Maker(sqlite, sqlite_place),
    "sqlite-not-durable": Maker(
        lambda loop, path, pool: sqlite(loop, path, pool, durable=False), sqlite_place
    ),
    "postgres": Maker(postgres, postgres_place, shared=True),
}
LASTING = [name for name, maker in MAKERS.items() if maker.lasting]


class Bench:
    """A store with its loop, driven as a manager drives it."""

    def __init__(self, maker: Maker, path: Path, pool: str = "") -> None:
        self.loop = Loop()
        self.store = maker.make(self.loop, path, pool)

    @classmethod
    def opened(cls, maker: Maker, path: Path, pool: str = "") -> Bench:
        bench = cls(maker, path, pool)
        bench.content = bench.open()
        return bench

    content: StoreContent

    def open(self) -> StoreContent:
        return self.store.open(lambda record: ("terms of", record.job))

    def reopen(self) -> StoreContent:
        self.store.close()
        return self.open()

    def commit(self, *writes: Write, reads: Sequence[Read] = (), unit: int = 0) -> CommitDone | CommitFailed:
        return self.commit_all([(writes, reads, unit)])[0]

    def commit_all(
        self, units: Sequence[tuple[Sequence[Write], Sequence[Read], int]]
    ) -> list[CommitDone | CommitFailed]:
        """All at once, as fast as the store takes them in."""
        outcomes: list[CommitDone | CommitFailed] = []
        for writes, reads, unit in units:
            self.store.commit(writes, reads, outcomes.append, unit=unit)
        while len(outcomes) < len(units):
            self.loop.run_one()
        return outcomes

    def done(self, *writes: Write, reads: Sequence[Read] = (), unit: int = 0) -> CommitDone:
        outcome = self.commit(*writes, reads=reads, unit=unit)
        assert isinstance(outcome, CommitDone), outcome
        return outcome

    def refused(self, *writes: Write, reads: Sequence[Read] = (), unit: int = 0) -> StoreError:
        problem = self.failed(*writes, reads=reads, unit=unit)
        assert not problem.retry
        return problem

    def failed(self, *writes: Write, reads: Sequence[Read] = (), unit: int = 0) -> StoreError:
        outcome = self.commit(*writes, reads=reads, unit=unit)
        assert isinstance(outcome, CommitFailed), outcome
        assert isinstance(outcome.problem, StoreError)
        return outcome.problem

    def read(self, read: Read) -> Any:
        return self.done(reads=[read]).answers[0]


def job(number: int = 1, size: int = 10, **fields: Any) -> AddJob:
    params = fields.pop("params", None)
    given = {
        "user": "ann@pool",
        "submission": "",
        "message": b'{"type":"job"}',
        "open": False,
        "submitted": 1.5,
    }
    return AddJob(JobRecord(job=number, size=size, **{**given, **fields}), params)


def report(task: int, **fields: Any) -> m.AttemptReport:
    return m.AttemptReport(job=1, task=task, attempt=100 + task, **fields)


def result(task: int, seq: int, state: TaskState = TaskState.COMPLETED, number: int = 1) -> RecordResult:
    return RecordResult(number, task, seq, state, 100 + task, "w@pool/1", report(task, out=f"out {task}"))


def words(*tasks: int) -> list[list[str]]:
    return [[f"arg{task}", "ünï\0 ✓"] for task in tasks]


def ends(found: list[tuple[int, m.TaskResult]]) -> list[tuple[int, int, str]]:
    return [(seq, r.task, r.state) for seq, r in found]
