"""What every store must do: one suite over all makers. A new maker is one line in `MAKERS`."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from kestrel.core.effects import RecordCancelled, RecordJobEnded, RecordResult, RecordTrouble
from kestrel.core.model import JobState, TaskState, Trouble
from kestrel.errors import InternalError, StoreError
from kestrel.ports import (
    AddJob,
    AddTasks,
    CloseJob,
    CommitDone,
    CommitFailed,
    JobRecord,
    Read,
    ReadParams,
    ReadResults,
    ReadTaskRange,
    ReadTaskResults,
    Store,
    StoreContent,
    Write,
)
from kestrel.protocol import messages as m
from kestrel.store import MemoryStore, SqliteStore

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


MAKERS: dict[str, Callable[[Loop, Path], Store]] = {
    "memory": lambda loop, _: MemoryStore(loop),
    "sqlite": lambda loop, path: SqliteStore(path / "store.db", loop.calls.put, wall=loop.wall),
    "sqlite-not-durable": lambda loop, path: SqliteStore(
        path / "store.db", loop.calls.put, durable=False, wall=loop.wall
    ),
}


class Bench:
    """A store with its loop, driven as a manager drives it."""

    def __init__(self, make: Callable[[Loop, Path], Store], path: Path) -> None:
        self.loop = Loop()
        self.store = make(self.loop, path)
        self.content = self.open()

    def open(self) -> StoreContent:
        return self.store.open(lambda record: ("terms of", record.job))

    def reopen(self) -> StoreContent:
        self.store.close()
        return self.open()

    def commit(self, *writes: Write, reads: Sequence[Read] = ()) -> CommitDone | CommitFailed:
        outcomes: list[CommitDone | CommitFailed] = []
        self.store.commit(writes, reads, outcomes.append)
        while not outcomes:
            self.loop.run_one()
        return outcomes[0]

    def done(self, *writes: Write, reads: Sequence[Read] = ()) -> CommitDone:
        outcome = self.commit(*writes, reads=reads)
        assert isinstance(outcome, CommitDone), outcome
        return outcome

    def refused(self, *writes: Write, reads: Sequence[Read] = ()) -> StoreError:
        outcome = self.commit(*writes, reads=reads)
        assert isinstance(outcome, CommitFailed), outcome
        assert isinstance(outcome.problem, StoreError)
        assert not outcome.problem.retry
        return outcome.problem

    def read(self, read: Read) -> Any:
        return self.done(reads=[read]).answers[0]


@pytest.fixture(params=MAKERS)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(MAKERS[request.param], tmp_path)
    yield bench
    bench.store.close()


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


def test_a_new_store_is_empty_and_in_its_first_epoch(bench: Bench) -> None:
    assert bench.content == StoreContent(epoch=1, next_job=1, jobs=[], unfinished=[])


def test_each_opening_is_a_new_epoch(bench: Bench) -> None:
    assert [bench.reopen().epoch for _ in range(3)] == [2, 3, 4]


def test_a_job_comes_back_after_reopening(bench: Bench) -> None:
    bench.done(job(7, 3, submission="s", open=True, params=words(0, 1, 2)))
    content = bench.reopen()
    assert content.next_job == 8
    (record,) = content.jobs
    assert record == job(7, 3, submission="s", open=True).record
    (restored,) = content.unfinished
    assert restored.job == 7
    assert restored.terms == ("terms of", 7)
    assert restored.states == bytearray(3)
    assert restored.open
    assert not restored.cancelled
    assert bench.read(ReadParams(7, [2, 0])) == words(2, 0)


def test_answers_never_come_from_inside_commit_and_come_in_order(bench: Bench) -> None:
    bench.done(job(size=100))
    heard: list[int] = []
    for n in range(50):
        bench.store.commit([result(n, n + 1)], [], lambda _, n=n: heard.append(n))  # type: ignore[misc]
        assert heard == []
    while len(heard) < 50:
        bench.loop.run_one()
    assert heard == list(range(50))


def test_close_posts_every_answer(bench: Bench) -> None:
    outcomes: list[CommitDone | CommitFailed] = []
    bench.store.commit([job()], [], outcomes.append)
    for n in range(10):
        bench.store.commit([result(n, n + 1)], [ReadTaskResults(1, [n])], outcomes.append)
    bench.store.close()
    while not bench.loop.calls.empty():
        bench.loop.run_one()
    assert [type(o) for o in outcomes] == [CommitDone] * 11
    assert bench.open().jobs[0].counts.completed == 10


def test_a_closed_store_takes_nothing_and_may_be_closed_again(bench: Bench) -> None:
    bench.store.close()
    bench.store.close()
    with pytest.raises(InternalError):
        bench.store.commit([], [], lambda _: None)


def test_reads_see_the_writes_of_their_unit_and_of_earlier_ones_only(bench: Bench) -> None:
    bench.done(job())
    seen: list[Any] = []
    for n in range(3):
        bench.store.commit(
            [result(n, n + 1)],
            [ReadResults(1, 0, 10)],
            lambda o: seen.append(ends(o.answers[0])),  # type: ignore[union-attr]
        )
    while len(seen) < 3:
        bench.loop.run_one()
    assert [len(s) for s in seen] == [1, 2, 3]


def test_a_result_keeps_all_that_the_worker_said(bench: Bench) -> None:
    said = report(
        3,
        state="failed",
        exit_code=None,
        signal=9,
        started=1763826939.1234567,
        wall_s=0.1,
        cpu_s=1 / 3,
        memory_kib=2**40,
        out='NUL \0, quote ", ünï ✓ \U0001f986\r\n',
        err="</x>]]>\x1b[0m",
        out_bytes=2**53,
        err_bytes=7,
        reason="killed",
    )
    attempt = (5 << 32) + 1
    bench.done(job(params=words(*range(10))))
    bench.done(RecordResult(1, 3, 1, TaskState.FAILED, attempt, "w@pool/1", said))
    expected = m.TaskResult(
        task=3,
        attempt=attempt,
        worker="w@pool/1",
        state="FAILED",
        exit_code=None,
        signal=9,
        started=1763826939.1234567,
        wall_s=0.1,
        cpu_s=1 / 3,
        memory_kib=2**40,
        out=said.out,
        err=said.err,
        out_bytes=2**53,
        err_bytes=7,
        reason="killed",
        params=words(3)[0],
    )
    assert bench.read(ReadResults(1, 0, 9)) == [(1, expected)]
    bench.reopen()
    assert bench.read(ReadTaskResults(1, [3])) == [(1, expected)]
    assert bench.read(ReadTaskRange(1, 0, frozenset({"FAILED"}), 9)) == [(1, expected)]


def test_a_result_without_a_report_has_no_exit_code(bench: Bench) -> None:
    bench.done(job(), RecordResult(1, 0, 1, TaskState.NODE_FAIL, 9, "w", None, "lost 3 workers"))
    expected = m.TaskResult(
        task=0, attempt=9, worker="w", state="NODE_FAIL", exit_code=None, reason="lost 3 workers"
    )
    assert bench.read(ReadResults(1, 0, 9)) == [(1, expected)]


def test_a_result_recorded_twice_is_ignored_and_counted(bench: Bench) -> None:
    first = result(0, 1)
    assert bench.done(job(), first, result(1, 2), first).duplicates == 1
    assert bench.done(result(0, 3, TaskState.FAILED), result(2, 4), result(1, 5)).duplicates == 2
    assert bench.done(result(2, 4)).duplicates == 1
    assert ends(bench.read(ReadResults(1, 0, 9))) == [
        (1, 0, "COMPLETED"),
        (2, 1, "COMPLETED"),
        (4, 2, "COMPLETED"),
    ]
    assert bench.reopen().jobs[0].counts == m.TaskCounts(completed=3)


def test_duplicates_are_counted_for_the_unit_that_brought_them(bench: Bench) -> None:
    bench.done(job())
    counts: list[int] = []
    for writes in ([result(0, 1)], [result(0, 2), result(1, 3)], [result(0, 4), result(1, 5)]):
        bench.store.commit(writes, [], lambda o: counts.append(o.duplicates))  # type: ignore[union-attr]
    while len(counts) < 3:
        bench.loop.run_one()
    assert counts == [0, 1, 2]


def test_two_results_with_one_number_are_refused(bench: Bench) -> None:
    bench.done(job(), result(0, 1))
    assert "same number" in bench.refused(result(1, 1)).text
    bench.refused(result(2, 2), result(3, 2))
    assert bench.reopen().jobs[0].counts == m.TaskCounts(completed=1)


def test_results_are_paged_by_number(bench: Bench) -> None:
    bench.done(job(), *(result(9 - n, n + 1) for n in range(10)))
    assert [t for _, t, _ in ends(bench.read(ReadResults(1, 0, 4)))] == [9, 8, 7, 6]
    assert [t for _, t, _ in ends(bench.read(ReadResults(1, 4, 4)))] == [5, 4, 3, 2]
    assert [t for _, t, _ in ends(bench.read(ReadResults(1, 8, 4)))] == [1, 0]
    for after in (10, 2**32, 2**40, 2**53):
        assert bench.read(ReadResults(1, after, 4)) == []


def test_cancelled_ranges_read_as_one_result_for_each_task(bench: Bench) -> None:
    bench.done(job(size=20), result(5, 1), result(12, 2))
    assert bench.done(RecordCancelled(1, [(13, 16), (0, 3), (7, 7)], 3), result(4, 9)).duplicates == 0
    expected = [(1, 5, "COMPLETED"), (2, 12, "COMPLETED")]
    expected += [(3, 13, "CANCELLED"), (4, 14, "CANCELLED"), (5, 15, "CANCELLED")]
    expected += [(6, 0, "CANCELLED"), (7, 1, "CANCELLED"), (8, 2, "CANCELLED"), (9, 4, "COMPLETED")]
    assert ends(bench.read(ReadResults(1, 0, 99))) == expected
    for after in range(10):
        for limit in range(1, 6):
            assert ends(bench.read(ReadResults(1, after, limit))) == expected[after : after + limit]
    by_task = sorted(expected, key=lambda e: e[1])
    assert ends(bench.read(ReadTaskResults(1, [2, 15, 3, 12, 0, 0, 19, 4, 10**15]))) == [
        e for e in by_task if e[1] in (0, 2, 4, 12, 15)
    ]
    for first in range(21):
        rest = [e for e in by_task if e[1] >= first]
        assert ends(bench.read(ReadTaskRange(1, first, frozenset(), 4))) == rest[:4]
        cancelled = [e for e in rest if e[2] == "CANCELLED"]
        assert ends(bench.read(ReadTaskRange(1, first, frozenset({"CANCELLED"}), 2))) == cancelled[:2]
    assert bench.read(ReadTaskRange(1, 0, frozenset({"RUNNING"}), 9)) == []
    (record,) = bench.reopen().jobs
    assert record.last == 9
    assert record.counts == m.TaskCounts(completed=3, cancelled=6)


def test_cancelled_tasks_show_their_parameters_and_no_exit_code(bench: Bench) -> None:
    bench.done(job(size=3, params=words(0, 1, 2)), RecordCancelled(1, [(1, 2)], 1))
    expected = m.TaskResult(task=1, state="CANCELLED", exit_code=None, params=words(1)[0])
    assert bench.read(ReadResults(1, 0, 9)) == [(1, expected)]


def test_a_late_result_of_a_cancelled_task_is_a_duplicate(bench: Bench) -> None:
    bench.done(job(), RecordCancelled(1, [(0, 3), (5, 6)], 1))
    assert bench.done(result(2, 5), result(5, 6), result(3, 7)).duplicates == 2
    assert bench.reopen().jobs[0].counts == m.TaskCounts(cancelled=4, completed=1)


@pytest.mark.parametrize(
    ("ranges", "seq"),
    [
        ([(0, 1)], 5),
        ([(2, 9)], 5),
        ([(5, 7)], 6),
        ([(4, 5), (6, 8), (7, 9)], 6),
        ([(8, 9)], 1),
        ([(8, 9)], 3),
        ([(7, 10)], 9999),
    ],
)
def test_ranges_that_touch_what_has_ended_are_refused(
    bench: Bench, ranges: list[tuple[int, int]], seq: int
) -> None:
    bench.done(job(size=9), result(0, 1), RecordCancelled(1, [(5, 6), (2, 3)], 2))
    bench.refused(result(1, 4), RecordCancelled(1, ranges, seq))
    assert bench.reopen().jobs[0].counts == m.TaskCounts(completed=1, cancelled=2)


def test_a_result_with_the_number_of_a_cancelled_task_is_refused(bench: Bench) -> None:
    bench.done(job(), RecordCancelled(1, [(3, 6)], 2))
    bench.refused(result(0, 4))
    bench.done(result(0, 1), result(1, 5))


def test_a_million_tasks_are_cancelled_and_read_in_ranges(tmp_path: Path) -> None:
    bench = Bench(MAKERS["sqlite"], tmp_path)
    bench.done(job(size=1_000_000), RecordCancelled(1, [(0, 500_000), (500_001, 1_000_000)], 1))
    assert ends(bench.read(ReadResults(1, 499_999, 2))) == [
        (500_000, 499_999, "CANCELLED"),
        (500_001, 500_001, "CANCELLED"),
    ]
    (restored,) = bench.reopen().unfinished
    assert restored.states.count(TaskState.CANCELLED) == 999_999
    assert restored.states[500_000] == TaskState.QUEUED
    bench.store.close()
    assert (tmp_path / "store.db").stat().st_size < 200_000


@pytest.mark.parametrize("sizes", [[10, 10], [256, 256], [255, 2, 255, 600], [0, 1, 1, 1000]])
def test_tasks_are_added_at_any_offset(bench: Bench, sizes: list[int]) -> None:
    bench.done(job(size=sizes[0], open=True, params=words(*range(sizes[0]))))
    size = sizes[0]
    for more in sizes[1:]:
        bench.done(AddTasks(1, size, words(*range(size, size + more)), last=False))
        size += more
    assert bench.read(ReadParams(1, range(size))) == words(*range(size))
    content = bench.reopen()
    assert content.jobs[0].size == size
    assert len(content.unfinished[0].states) == size
    assert content.jobs[0].open
    assert bench.read(ReadParams(1, range(size))) == words(*range(size))


def test_tasks_added_twice_are_there_once(bench: Bench) -> None:
    bench.done(job(size=2, open=True, params=words(0, 1)))
    for _ in range(2):
        bench.done(AddTasks(1, 2, words(2, 3), last=False))
    bench.done(AddTasks(1, 3, words(3, 4), last=True))
    bench.done(AddTasks(1, 3, words(3, 4), last=True))
    assert bench.read(ReadParams(1, range(5))) == words(*range(5))
    (record,) = bench.reopen().jobs
    assert (record.size, record.open) == (5, False)


def test_a_gap_is_refused_and_so_is_adding_to_a_closed_job(bench: Bench) -> None:
    bench.done(job(1, 2, open=True, params=words(0, 1)), job(2, 2, params=words(0, 1)))
    assert "2 tasks" in bench.refused(AddTasks(1, 3, words(3), last=False)).text
    assert "closed" in bench.refused(AddTasks(2, 2, words(2), last=False)).text
    bench.refused(AddTasks(3, 0, words(0), last=False))
    assert [r.size for r in bench.reopen().jobs] == [2, 2]


def test_a_job_without_parameters_reads_empty_ones_until_some_are_added(bench: Bench) -> None:
    bench.done(job(size=300, open=True))
    assert bench.read(ReadParams(1, [0, 299])) == [[], []]
    bench.done(AddTasks(1, 300, words(300, 301), last=True))
    assert bench.read(ReadParams(1, [0, 299, 300, 301])) == [[], [], *words(300, 301)]


def test_parameters_of_tasks_that_are_not_there_are_refused(bench: Bench) -> None:
    bench.done(job(size=2, params=words(0, 1)))
    bench.refused(reads=[ReadParams(1, [2])])
    bench.refused(reads=[ReadParams(1, [-1])])
    for read in (ReadParams(9, []), ReadResults(9, 0, 1), ReadTaskResults(9, [0])):
        assert "no job 9" in bench.refused(reads=[read]).text


def test_a_refused_unit_leaves_no_trace(bench: Bench) -> None:
    bench.done(job(1, 3, open=True, params=words(0, 1, 2)), result(0, 1), RecordTrouble(1, 1, 1, 0))
    before = bench.reopen()
    everything = [ReadParams(1, range(3)), ReadResults(1, 0, 99)]
    answers = bench.done(reads=everything).answers
    bench.refused(
        AddTasks(1, 3, words(3), last=True),
        job(2, 5, submission="x"),
        result(1, 2),
        RecordTrouble(1, 1, 2, 2),
        RecordTrouble(1, 2, 2, 2),
        RecordCancelled(1, [(2, 3)], 3),
        CloseJob(1, cancelled=True),
        RecordJobEnded(1, JobState.FAILED),
        RecordJobEnded(77, JobState.FAILED),
        reads=[],
    )
    assert bench.done(reads=everything).answers == answers
    after = bench.reopen()
    assert (after.jobs, after.unfinished, after.next_job) == (before.jobs, before.unfinished, before.next_job)
    bench.done(job(2, 5, submission="x"))


@pytest.mark.parametrize(
    "write",
    [
        result(10, 2),
        result(0, 2, number=9),
        RecordTrouble(1, 10, 1, 1),
        RecordTrouble(9, 0, 1, 1),
        RecordCancelled(1, [(9, 11)], 2),
        RecordCancelled(9, [(0, 1)], 2),
        CloseJob(9, cancelled=False),
        RecordJobEnded(9, JobState.FAILED),
        job(1, 1),
        job(2, 3, params=words(0)),
        job(2, 1, submission="taken"),
    ],
    ids=lambda w: type(w).__name__,
)
def test_writes_that_cannot_be_are_refused(bench: Bench, write: Write) -> None:
    bench.done(job(submission="taken"))
    bench.refused(write)
    content = bench.reopen()
    assert [r.job for r in content.jobs] == [1]
    assert content.unfinished[0].states == bytearray(10)
    assert content.unfinished[0].troubles == {}


def test_a_guilty_unit_fails_alone(bench: Bench) -> None:
    bench.done(job())
    outcomes: list[CommitDone | CommitFailed] = []
    for writes in ([result(0, 1)], [result(1, 2), result(99, 3)], [result(2, 3)]):
        bench.store.commit(writes, [], outcomes.append)
    while len(outcomes) < 3:
        bench.loop.run_one()
    assert [type(o) for o in outcomes] == [CommitDone, CommitFailed, CommitDone]
    assert ends(bench.read(ReadResults(1, 0, 9))) == [(1, 0, "COMPLETED"), (3, 2, "COMPLETED")]


def test_a_submission_id_is_unique_for_each_user(bench: Bench) -> None:
    bench.done(job(1, submission="s"), job(2, submission="s", user="bob@pool"), job(3), job(4))
    assert "'s'" in bench.refused(job(5, submission="s")).text


def test_an_ended_job_is_kept_but_not_restored(bench: Bench) -> None:
    bench.done(job(1, 1), job(2, 1), result(0, 1), RecordJobEnded(1, JobState.COMPLETED))
    bench.done(RecordJobEnded(1, JobState.FAILED))
    content = bench.reopen()
    ended = content.jobs[0]
    assert (ended.state, ended.finished, ended.open) == (JobState.COMPLETED, ENDED_AT, False)
    assert [r.job for r in content.unfinished] == [2]
    assert content.jobs[1].finished == 0


def test_a_closed_and_a_cancelled_job_come_back_as_such(bench: Bench) -> None:
    bench.done(
        job(1, open=True), job(2, open=True), CloseJob(1, cancelled=True), CloseJob(2, cancelled=False)
    )
    bench.done(CloseJob(1, cancelled=False))
    assert [(r.open, r.cancelled) for r in bench.reopen().unfinished] == [(False, True), (False, False)]


def test_troubles_come_back_and_losses_count_as_reruns(bench: Bench) -> None:
    bench.done(job(), RecordTrouble(1, 3, 0, 1), RecordTrouble(1, 4, 1, 0), RecordTrouble(1, 3, 1, 1))
    bench.done(RecordTrouble(1, 3, 1, 2))
    content = bench.reopen()
    assert content.unfinished[0].troubles == {3: Trouble(1, 2), 4: Trouble(1, 0)}
    assert content.jobs[0].reruns == content.unfinished[0].reruns == 2


def test_states_come_back_exactly(bench: Bench) -> None:
    states = [s for s in TaskState if s.terminal]
    bench.done(job(size=3000))
    bench.done(*(result(n, n + 1, states[n % 5]) for n in range(2500) if n % 7))
    content = bench.reopen()
    expected = bytearray(states[n % 5] if n % 7 and n < 2500 else 0 for n in range(3000))
    assert content.unfinished[0].states == expected
    assert content.jobs[0].counts == m.TaskCounts(**{s.name.lower(): expected.count(s) for s in states})
    assert content.jobs[0].last == 2499
