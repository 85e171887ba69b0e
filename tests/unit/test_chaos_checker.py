"""The judge of the chaos must find what is planted, and call nothing wrong that is right."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chaos.checker import Evidence, Proof, Row, Strike, Submitted, check, epochs_of
from chaos.reading import proof_of

EPOCH = 1 << 32


def worker(number: int) -> str:
    return f"w{number}@kestrel.localhost/worker"


def run(task: int, attempt: int, *, by: int = 1, at: float = 0.0, ended: bool = True) -> list[Proof]:
    proofs = [Proof(False, 1, task, attempt, worker(by), at)]
    return [*proofs, Proof(True, 1, task, attempt, worker(by), at + 1.0)] if ended else proofs


def row(task: int, attempt: int, *, seq: int | None = None, by: int = 1, state: str = "COMPLETED") -> Row:
    return Row(1, task, task + 1 if seq is None else seq, state, attempt, worker(by))


def evidence() -> Evidence:
    """Three tasks that each ran once."""
    attempts = [EPOCH + 1 + task for task in range(3)]
    rows = [row(task, attempt) for task, attempt in enumerate(attempts)]
    return Evidence(
        submitted=[Submitted("bag", 3, (1, 1))],
        proofs=[p for task, attempt in enumerate(attempts) for p in run(task, attempt, at=float(task))],
        torn=[],
        rows=rows,
        seen=list(rows),
        ids_of_jobs={1: "bag"},
        progress=[0.0, 1.0, 2.0],
    )


def with_rows(good: Evidence, rows: list[Row]) -> Evidence:
    return replace(good, rows=rows, seen=list(rows))


def test_what_is_right_is_called_sound():
    verdict = check(evidence())
    assert verdict.sound
    assert verdict.problems == []
    assert (verdict.tasks, verdict.runs, verdict.extras) == (3, 3, [])
    assert verdict.states == {"COMPLETED": 3}
    assert (verdict.useful_s, verdict.extra_s) == (3.0, 0.0)


def test_nothing_at_all_is_not_sound():
    assert not check(Evidence([], [], [], [], [], {})).sound


def test_a_task_without_a_stored_result_is_lost():
    good = evidence()
    verdict = check(replace(good, rows=good.rows[:2]))
    assert (verdict.lost, verdict.sound) == (1, False)
    assert "1_2 has no result at the store" in verdict.problems[0]


def test_a_task_whose_result_the_client_never_saw_is_lost():
    good = evidence()
    verdict = check(replace(good, seen=good.seen[:2]))
    assert (verdict.lost, verdict.sound) == (1, False)
    assert "1_2 has no result at the client" in verdict.problems[0]


def test_a_whole_submission_that_the_store_does_not_have_is_lost():
    good = evidence()
    verdict = check(replace(good, rows=[], ids_of_jobs={}))
    assert verdict.lost >= 3
    assert not verdict.sound


def test_a_submission_that_was_never_answered_is_lost():
    good = evidence()
    verdict = check(replace(good, submitted=[*good.submitted, Submitted("other", 5, ())]))
    assert (verdict.lost, verdict.sound) == (5, False)


@pytest.mark.parametrize("where", ["rows", "seen"])
def test_a_result_that_is_there_twice_is_counted(where: str):
    good = evidence()
    doubled = [*getattr(good, where), row(1, EPOCH + 9, seq=4)]
    verdict = check(replace(good, **{where: doubled}))
    assert (verdict.twice, verdict.sound) == (1, False)
    assert "1_1 twice: seq 2 and 4" in verdict.problems[0]


def test_a_result_of_a_task_that_nobody_submitted_is_one_too_many():
    good = evidence()
    verdict = check(with_rows(good, [*good.rows, row(3, EPOCH + 9)]))
    assert (verdict.twice, verdict.sound) == (2, False)  # the store's and the client's


def test_one_submission_that_became_two_jobs_is_found_by_its_answers():
    good = evidence()
    verdict = check(replace(good, submitted=[Submitted("bag", 3, (1, 2))], ids_of_jobs={1: "bag", 2: "bag"}))
    assert verdict.twice == 1
    assert not verdict.sound


def test_one_submission_that_became_two_jobs_is_found_in_the_store():
    verdict = check(replace(evidence(), ids_of_jobs={1: "bag", 2: "bag"}))
    assert (verdict.twice, verdict.sound) == (1, False)


def test_a_job_that_nobody_submitted_is_found():
    verdict = check(replace(evidence(), ids_of_jobs={1: "bag", 2: "stranger"}))
    assert (verdict.twice, verdict.sound) == (1, False)


@pytest.mark.parametrize("seqs", [(1, 2, 4), (1, 2, 2), (2, 3, 4), (0, 1, 2)])
def test_numbers_with_a_gap_or_used_twice_are_found(seqs: tuple[int, ...]):
    good = evidence()
    rows = [replace(each, seq=seq) for each, seq in zip(good.rows, seqs, strict=True)]
    verdict = check(with_rows(good, rows))
    assert verdict.gaps > 0
    assert not verdict.sound


@pytest.mark.parametrize(
    "planted",
    [
        lambda p: p.task == 1,  # no proof at all
        lambda p: p.task == 1 and p.end,  # it was started only
    ],
)
def test_a_result_without_a_finished_proof_is_found(planted):
    good = evidence()
    verdict = check(replace(good, proofs=[p for p in good.proofs if not planted(p)]))
    assert (verdict.unproven, verdict.sound) == (1, False)


def test_a_result_of_another_attempt_or_worker_than_the_proof_is_found():
    good = evidence()
    wrong = [row(0, EPOCH + 77), row(1, EPOCH + 2, by=5), good.rows[2]]
    verdict = check(with_rows(good, wrong))
    assert (verdict.unproven, verdict.sound) == (2, False)


def test_a_result_that_the_client_saw_otherwise_is_found():
    good = evidence()
    verdict = check(replace(good, seen=[good.seen[0], good.seen[1], replace(good.seen[2], state="FAILED")]))
    assert (verdict.disagreeing, verdict.sound) == (1, False)


def test_an_attempt_that_was_started_twice_is_found():
    good = evidence()
    verdict = check(replace(good, proofs=[*good.proofs, Proof(False, 1, 0, EPOCH + 1, worker(2), 9.0)]))
    assert (verdict.restarted, verdict.sound) == (1, False)


def test_a_torn_line_is_found():
    verdict = check(replace(evidence(), torn=["S 1 0 42949"]))
    assert (verdict.torn, verdict.sound) == (1, False)


def rerun(first: list[Proof], strikes: list[Strike], *, again_at: float = 5.0) -> Evidence:
    """Task 0 ran first as given, then on worker 2, which counted."""
    good = evidence()
    second = run(0, EPOCH + 100, by=2, at=again_at)
    proofs = [*first, *second, *(p for p in good.proofs if p.task != 0)]
    rows = [row(0, EPOCH + 100, by=2), *good.rows[1:]]
    return replace(with_rows(good, rows), proofs=proofs, strikes=strikes)


CAUSES = [
    ([Strike("kill worker", "w1", 0.5, 2.0)], "kill worker"),
    ([Strike("stop worker", "w1", 0.5, 9.0)], "stop worker"),
    ([Strike("kill worker", "w3", 0.5, 2.0)], "unexplained"),
    ([Strike("kill worker", "w1", 50.0, 51.0)], "unexplained"),
    ([Strike("kill worker", "w3", 0.5, 2.0), Strike("kill active", "m1", 0.7, 2.0)], "kill active"),
    ([Strike("kill worker", "w1", 0.5, 2.0), Strike("kill active", "m1", 0.7, 2.0)], "kill worker"),
    ([Strike("kill server", "server", 0.2), Strike("stop postgres", "postgres", 0.7, 3.0)], "stop postgres"),
    ([], "unexplained"),
]


@pytest.mark.parametrize(("strikes", "cause"), CAUSES, ids=[f"{i}-{c}" for i, (_, c) in enumerate(CAUSES)])
def test_an_extra_run_is_no_error_and_has_a_cause(strikes: list[Strike], cause: str):
    verdict = check(rerun(run(0, EPOCH + 1, ended=False), strikes))
    assert verdict.sound
    assert [(e.task, e.cause) for e in verdict.extras] == [((1, 0), cause)]
    assert verdict.runs == 4


def test_the_cost_of_a_killed_run_ends_with_its_worker():
    verdict = check(rerun(run(0, EPOCH + 1, ended=False), [Strike("kill worker", "w1", 0.5, 2.0)]))
    assert verdict.extra_s == pytest.approx(0.5)


def test_the_cost_of_a_run_that_ended_but_did_not_count_is_its_length():
    verdict = check(rerun(run(0, EPOCH + 1), [Strike("stop worker", "w1", 0.5, 9.0)]))
    assert verdict.extra_s == pytest.approx(1.0)


def test_the_longest_gap_and_the_pause_after_each_strike_are_measured():
    strikes = [Strike("kill active", "m1", 10.0, 11.0), Strike("kill worker", "w1", 20.0, 21.0)]
    progress = [9.0, 9.9, 10.1, 12.6, 12.7, 19.9, 20.2, 20.3]
    verdict = check(replace(evidence(), strikes=strikes, progress=progress))
    assert verdict.longest_gap_s == pytest.approx(7.2)
    assert verdict.longest_gap_at == 12.7
    assert verdict.pauses["kill active"] == [pytest.approx(7.2)]
    assert verdict.pauses["kill worker"] == [pytest.approx(0.2)]


def test_a_strike_in_the_middle_of_a_pause_does_not_answer_for_it():
    strikes = [Strike("stop server", "server", 10.0, 18.0), Strike("kill worker", "w1", 13.0, 14.0)]
    verdict = check(replace(evidence(), strikes=strikes, progress=[9.9, 18.1, 18.2]))
    assert verdict.pauses == {"stop server": [pytest.approx(8.1)], "kill worker": [pytest.approx(0.1)]}


def test_the_first_start_of_each_epoch_is_found():
    later = Proof(False, 1, 0, (2 << 32) + 1, worker(1), 8.0)
    assert epochs_of([*evidence().proofs, later]) == {1: 0.0, 2: 8.0}


def test_a_line_of_proof_is_read():
    line = "E 3 17 4294967300 w1@kestrel.localhost/worker 12163.21"
    assert proof_of(line) == Proof(True, 3, 17, 4294967300, worker(1), 12163.21)


@pytest.mark.parametrize(
    "line", ["", "S 1 2 3", "X 1 2 3 w 4.0", "S 1 2 3 w 4.0 S 1 2 3 w 4.0", "S a 2 3 w 4"]
)
def test_what_is_no_line_of_proof_is_told(line: str):
    assert proof_of(line) is None
