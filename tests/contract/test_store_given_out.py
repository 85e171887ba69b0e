"""Every store remembers that a task which must not run twice was given out, and that it came back."""

from __future__ import annotations

import queue
from collections.abc import Callable
from pathlib import Path

import pytest

from kestrel.core.effects import RecordTrouble
from kestrel.core.model import Trouble
from kestrel.ports import AddJob, CommitDone, JobRecord, Store
from kestrel.sim.clock import ProcessClock, Timeline
from kestrel.store.memory import MemoryStore
from kestrel.store.sqlite import SqliteStore


@pytest.fixture(params=["memory", "sqlite"])
def commit(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Callable[[list[RecordTrouble]], dict[int, Trouble]]:
    """Stores these in a new job, opens the store again, and tells what it knows of the job."""
    calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    timeline = Timeline()

    def make() -> Store:
        if request.param == "memory":
            return MemoryStore(ProcessClock(timeline))
        return SqliteStore(tmp_path / "store.db", calls.put)

    def store_and_reopen(troubles: list[RecordTrouble]) -> dict[int, Trouble]:
        store = make()
        store.open(lambda record: None)
        outcomes: list[object] = []
        job = JobRecord(
            job=1, user="ann@pool", submission="", message=b"{}", size=5, open=False, submitted=1.0
        )
        store.commit([AddJob(job), *troubles], [], outcomes.append)
        while not outcomes:
            if request.param == "memory":
                timeline.step()
            else:
                calls.get(timeout=60)()
        assert isinstance(outcomes[0], CommitDone)
        store.close()
        again = store if request.param == "memory" else make()
        content = again.open(lambda record: None)
        again.close()
        return content.unfinished[0].troubles

    return store_and_reopen


def test_what_was_given_out_is_known_to_the_next_life(
    commit: Callable[[list[RecordTrouble]], dict[int, Trouble]],
) -> None:
    known = commit([RecordTrouble(1, 2, 0, 0, True), RecordTrouble(1, 3, 1, 0)])
    assert known == {2: Trouble(0, 0, True), 3: Trouble(1, 0, False)}


def test_what_came_back_is_known_as_such(
    commit: Callable[[list[RecordTrouble]], dict[int, Trouble]],
) -> None:
    known = commit([RecordTrouble(1, 2, 0, 0, True), RecordTrouble(1, 2, 0, 0, False)])
    assert known == {2: Trouble(0, 0, False)}
