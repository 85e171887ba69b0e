"""What every store must do: one suite over all makers (`parts.stores.MAKERS`).

What only makers can do that two managers may reach at once is in `test_store_fencing`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kestrel.core.effects import RecordCancelled, RecordJobEnded, RecordResult, RecordTrouble, RecordWorker
from kestrel.core.model import COUNTED_MAX, JobState, TaskState, Trouble
from kestrel.errors import InternalError, StoreError
from kestrel.ports import (
    IN_USE,
    AddTasks,
    CloseJob,
    CommitDone,
    CommitFailed,
    DrainWorker,
    ReadParams,
    ReadResults,
    ReadTaskRange,
    ReadTaskResults,
    StoreContent,
    Write,
)
from kestrel.protocol import messages as m
from parts.stores import ENDED_AT, LASTING, MAKERS, Bench, ends, job, report, result, words


@pytest.fixture(params=MAKERS)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    bench = Bench.opened(MAKERS[request.param], tmp_path)
    yield bench
    bench.store.close()


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
    bench = Bench.opened(MAKERS["sqlite"], tmp_path)
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
    bench.done(RecordWorker("w@pool/1", present=True))
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
        RecordWorker("late@pool/1", present=True),
        RecordWorker("w@pool/1", present=False),
        DrainWorker("late@pool/1", drained=True),
        RecordJobEnded(77, JobState.FAILED),
        reads=[],
    )
    assert bench.done(reads=everything).answers == answers
    after = bench.reopen()
    assert after == replace(before, epoch=after.epoch)
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


def test_what_was_given_out_wanted_gone_and_counted_is_known_to_the_next_life(bench: Bench) -> None:
    many = tuple((7 << 32) + n for n in range(COUNTED_MAX))
    bench.done(
        job(),
        RecordTrouble(1, 2, 0, 0, True),
        RecordTrouble(1, 3, 1, 0, False, (4 << 32,)),
        RecordTrouble(1, 4, 0, 0, True),
        RecordTrouble(1, 5, 9, 9, True, many),
        RecordTrouble(1, 6, 0, 0, cancelling=True),
    )
    bench.done(RecordTrouble(1, 4, 0, 0, False))
    expected = {
        2: Trouble(0, 0, True),
        3: Trouble(1, 0, False, (4 << 32,)),
        4: Trouble(),
        5: Trouble(9, 9, True, many),
        6: Trouble(cancelling=True),
    }
    assert bench.reopen().unfinished[0].troubles == expected


# --- workers ------------------------------------------------------------------------------------------


def present(*names: str, there: bool = True) -> list[RecordWorker]:
    return [RecordWorker(name, there) for name in names]


def test_the_next_life_knows_who_was_there(bench: Bench) -> None:
    assert bench.content.workers == ()
    bench.done(*present("a@pool/1", "b@pool/1", "ünï@pool/✓"))
    bench.done(*present("a@pool/1"), *present("b@pool/1", "nobody@pool/1", there=False))
    workers = bench.reopen().workers
    assert workers is not None
    assert sorted(workers) == ["a@pool/1", "ünï@pool/✓"]
    workers = bench.reopen().workers
    assert workers is not None
    assert sorted(workers) == ["a@pool/1", "ünï@pool/✓"]


def test_of_a_worker_that_comes_and_goes_in_one_unit_the_last_word_counts(bench: Bench) -> None:
    bench.done(*present("a", "b"), *present("a", there=False), *present("c", there=False), *present("c"))
    workers = bench.reopen().workers
    assert workers is not None
    assert sorted(workers) == ["b", "c"]


def test_drains_are_kept_whether_the_worker_is_there_or_not(bench: Bench) -> None:
    bench.done(*present("a"), *(DrainWorker(name, drained=True) for name in ("a", "b", "c")))
    bench.done(*present("a", there=False), DrainWorker("b", drained=False), DrainWorker("x", drained=False))
    content = bench.reopen()
    assert content.workers == ()
    assert content.drained == {"a", "c"}


def test_ten_thousand_workers_are_kept(bench: Bench) -> None:
    names = [f"worker-{n}@pool/{n}" for n in range(10_000)]
    bench.done(*present(*names), *(DrainWorker(name, drained=True) for name in names))
    bench.done(
        *present(*names[100:], there=False), *(DrainWorker(name, drained=False) for name in names[:9_000])
    )
    content = bench.reopen()
    assert content.workers is not None
    assert set(content.workers) == set(names[:100])
    assert content.drained == set(names[9_000:])


# --- numbered units -----------------------------------------------------------------------------------

EACH_KIND: list[Write] = [
    job(2, 3, submission="s", params=words(0, 1, 2)),
    AddTasks(1, 10, words(10, 11), last=False),
    AddTasks(1, 10, words(10), last=True),
    CloseJob(1, cancelled=True),
    result(5, 2),
    RecordTrouble(1, 5, 1, 1, True, (3,)),
    RecordCancelled(1, [(5, 7), (9, 10)], 2),
    RecordJobEnded(1, JobState.CANCELLED),
    RecordWorker("new@pool/1", present=True),
    RecordWorker("old@pool/1", present=False),
    DrainWorker("new@pool/1", drained=True),
    DrainWorker("old@pool/1", drained=False),
]


@pytest.mark.parametrize("write", EACH_KIND, ids=lambda w: type(w).__name__)
def test_a_unit_committed_again_under_its_number_is_stored_once(bench: Bench, write: Write) -> None:
    everything = [ReadResults(1, 0, 99), ReadParams(1, range(10))]
    bench.done(
        job(open=True, params=words(*range(10))),
        result(0, 1),
        RecordWorker("old@pool/1", present=True),
        DrainWorker("old@pool/1", drained=True),
        unit=1,
    )
    first = bench.done(write, reads=everything, unit=2)
    again = bench.done(write, reads=everything, unit=2)
    assert again.answers == first.answers
    assert again.duplicates == 0
    # A later unit changes the same things; then nothing of the earlier one may come back.
    bench.done(RecordWorker("new@pool/1", present=False), DrainWorker("new@pool/1", drained=False), unit=3)
    assert bench.done(write, reads=everything, unit=2).answers == first.answers
    content = bench.reopen()
    assert content.workers is not None
    assert "new@pool/1" not in content.workers
    assert "new@pool/1" not in content.drained
    assert len(content.jobs[0].message) > 0
    assert content.jobs[0].last == first.answers[0][-1][0]


def test_the_writes_of_a_recognised_unit_are_not_even_looked_at(bench: Bench) -> None:
    bench.done(job(), unit=1)
    outcome = bench.done(result(0, 1), job(), result(77, 1), reads=[ReadResults(1, 0, 9)], unit=1)
    assert outcome.answers == [[]]


def test_units_are_recognised_after_a_group_was_stored(bench: Bench) -> None:
    bench.done(job(size=60), unit=1)
    units = [([result(n, n)], [ReadTaskResults(1, [n])], n + 1) for n in range(1, 51)]
    first = bench.commit_all(units)
    again = bench.commit_all(units[20:])
    assert [type(o) for o in (*first, *again)] == [CommitDone] * 80
    assert again == first[20:]
    bench.done(result(51, 51), unit=52)
    assert bench.reopen().jobs[0].counts.completed == 51


def test_a_new_life_numbers_its_units_from_one_again(bench: Bench) -> None:
    for life in range(1, 4):
        bench.done(job(life), unit=1)
        bench.done(result(0, 1, number=life), unit=2)
        content = bench.reopen()
        assert len(content.jobs) == life
        assert content.jobs[-1].counts.completed == 1


def test_units_that_only_read_have_their_numbers_too(bench: Bench) -> None:
    bench.done(job(), unit=1)
    read = ReadResults(1, 0, 9)
    assert bench.done(reads=[read], unit=2).answers == [[]]
    assert len(bench.done(result(0, 1), reads=[read], unit=3).answers[0]) == 1
    assert len(bench.done(reads=[read], unit=2).answers[0]) == 1
    assert bench.done(unit=4) == CommitDone([], 0)


def test_a_refused_unit_does_not_use_its_number_up(bench: Bench) -> None:
    bench.done(job(), unit=1)
    bench.refused(result(77, 1), unit=2)
    bench.done(result(0, 1), unit=2)
    assert bench.reopen().jobs[0].counts.completed == 1


def test_a_unit_whose_predecessor_is_not_stored_has_to_wait_for_it(bench: Bench) -> None:
    bench.done(job(), unit=1)
    assert bench.failed(result(2, 2), unit=3).retry
    outcomes = bench.commit_all(
        [([result(0, 1)], (), 2), ([result(77, 2)], (), 3), ([result(1, 2)], (), 4), ([result(2, 3)], (), 5)]
    )
    assert [type(o) for o in outcomes] == [CommitDone, CommitFailed, CommitFailed, CommitFailed]
    problems = [o.problem for o in outcomes if isinstance(o, CommitFailed)]
    assert [getattr(p, "retry", None) for p in problems] == [False, True, True]
    # Had unit 4 been taken, unit 3 would look stored now, and would be lost.
    bench.done(result(3, 2), unit=3)
    bench.done(result(1, 3), unit=4)
    assert ends(bench.read(ReadResults(1, 0, 9))) == [
        (1, 0, "COMPLETED"),
        (2, 3, "COMPLETED"),
        (3, 1, "COMPLETED"),
    ]


def test_units_without_a_number_come_between_numbered_ones(bench: Bench) -> None:
    bench.done(job(), unit=1)
    bench.done(result(0, 1))
    bench.done(result(1, 2), unit=2)
    bench.done(result(2, 3))
    bench.done(result(9, 9), unit=1)
    assert bench.reopen().jobs[0].counts.completed == 3


# --- whose it is --------------------------------------------------------------------------------------


def test_there_is_room_unless_it_is_said_that_there_is_none(bench: Bench) -> None:
    assert bench.store.shortage() is None


@pytest.mark.parametrize("name", LASTING)
def test_a_store_that_a_manager_has_is_refused_and_the_manager_goes_on(name: str, tmp_path: Path) -> None:
    first = Bench.opened(MAKERS[name], tmp_path)
    first.done(job(), unit=1)
    second = Bench(MAKERS[name], tmp_path)
    for _ in range(2):
        with pytest.raises(StoreError) as caught:
            second.open()
        assert caught.value.code == IN_USE
        assert caught.value.retry
        assert caught.value.hint
    first.done(result(0, 1), unit=2)
    first.store.close()
    content = second.open()
    assert content.epoch == 2
    assert content.jobs[0].counts.completed == 1
    second.store.close()


@pytest.mark.parametrize("name", LASTING)
def test_a_store_of_another_pool_is_refused_and_stays_as_it_was(name: str, tmp_path: Path) -> None:
    blue = Bench.opened(MAKERS[name], tmp_path, "blue")
    blue.done(job())
    blue.store.close()
    green = Bench(MAKERS[name], tmp_path, "green")
    with pytest.raises(StoreError) as caught:
        green.open()
    assert caught.value.code == "other_pool"
    assert not caught.value.retry
    assert "'blue'" in caught.value.text
    assert "'green'" in caught.value.text
    for pool in ("blue", ""):
        again = Bench.opened(MAKERS[name], tmp_path, pool)
        assert [r.job for r in again.content.jobs] == [1]
        again.store.close()
    assert again.content.epoch == 3


@pytest.mark.parametrize("name", LASTING)
def test_a_store_of_nobody_becomes_the_pools_that_names_itself_first(name: str, tmp_path: Path) -> None:
    Bench.opened(MAKERS[name], tmp_path).store.close()
    Bench.opened(MAKERS[name], tmp_path, "blue").store.close()
    with pytest.raises(StoreError, match="'blue'"):
        Bench.opened(MAKERS[name], tmp_path, "green")
