"""Another manager takes over while workers run on: poison, what must not run twice, cancels, late returns."""

from __future__ import annotations

from typing import Any

import pytest
from core_rig import FIRST, OLD, Rig, ended, joined

from kestrel.core import effects as fx
from kestrel.core import events as ev
from kestrel.core.model import (
    AttemptEnd,
    HeldByWorker,
    JobCounts,
    JobState,
    JobTerms,
    RestoredJob,
    TaskState,
    Trouble,
)
from kestrel.core.scheduler import REFUSAL

A, B = "a@p/1", "b@p/1"
QUEUED = TaskState.QUEUED
UNSURE = (
    "it was given out before the manager was restarted, and no worker came back with it; "
    "it must not run twice"
)


def taken_over(
    size: int = 1,
    troubles: dict[int, Trouble] | None = None,
    expected: tuple[str, ...] = (A, B),
    *,
    restart: bool = True,
    retries: int = 0,
) -> Rig:
    """A new manager with one job, whose tasks may still run on the workers it expects."""
    rig = Rig(settle_s=3.0)
    terms = JobTerms("ann", restart=restart, retries=retries)
    job = RestoredJob(1, terms, bytearray([QUEUED] * size), troubles=troubles or {})
    effects = rig.effects(ev.JobRestored(job), ev.WorkersExpected(expected))
    assert not effects or not expected
    return rig


def came(name: str, *after_welcome: fx.Effect) -> list[fx.Effect]:
    return [fx.RecordWorker(name, True), fx.WelcomeWorker(name), *after_welcome]


def back(name: str, *held: tuple[int, int], slots: int = 1) -> ev.WorkerJoined:
    """It comes back with these tasks and attempts."""
    return joined(name, slots, held=[HeldByWorker(1, task, attempt) for task, attempt in held])


def result(task: int, seq: int, state: TaskState, attempt: int, worker: str, **more: Any) -> fx.RecordResult:
    return fx.RecordResult(1, task, seq, state, attempt, worker, f"report of {attempt}", **more)


# --- poison -------------------------------------------------------------------------------------------------


def test_losses_add_up_over_the_lives_of_the_manager_until_the_task_is_set_aside() -> None:
    rig = taken_over(troubles={0: Trouble(losses=2)}, expected=(A,))
    rig.expect(*came(A), fx.AnnounceJob(1), after=back(A, (0, OLD)))
    reason = "gone; it was lost with its worker 3 times, so it is set aside"
    rig.expect(
        fx.RecordResult(1, 0, 1, TaskState.NODE_FAIL, OLD, A, None, reason),
        fx.RecordWorker(A, False),
        fx.AnnounceWorkerLost(A, "gone", 0),
        fx.RecordJobEnded(1, JobState.FAILED),
        fx.AnnounceJob(1),
        after=ev.WorkerLost(A, "gone"),
    )
    rig.expect(
        fx.RefuseWorker(A, REFUSAL),
        fx.AcknowledgeReport(A, 1),
        after=rig.report(A, ended(1, 0, OLD)),
    )
    assert rig.scheduler.strays().duplicates == 1


def test_a_worker_that_did_not_come_back_is_no_loss_of_its_tasks() -> None:
    """Assignments are not stored, so nobody knows what it had."""
    rig = taken_over(expected=(A, B))
    rig.expect(*came(B), after=back(B))
    rig.expect(
        fx.RecordWorker(A, False),
        fx.AssignTasks(B, 1, FIRST, [0]),
        fx.AnnounceJob(1),
        after=ev.WorkerLost(A, "not there"),
    )
    assert rig.scheduler.trouble(1, 0) == (0, 0)
    assert rig.scheduler.reruns(1) == 0


# --- what must not run twice --------------------------------------------------------------------------------


def test_what_must_not_run_twice_is_found_again_and_fails_with_its_worker() -> None:
    rig = taken_over(troubles={0: Trouble(given_out=True)}, expected=(A,), restart=False)
    rig.expect(*came(A), fx.AnnounceJob(1), after=back(A, (0, OLD)))
    reason = "gone; it must not run twice"
    rig.expect(
        fx.RecordResult(1, 0, 1, TaskState.NODE_FAIL, OLD, A, None, reason),
        fx.RecordWorker(A, False),
        fx.AnnounceWorkerLost(A, "gone", 0),
        fx.RecordJobEnded(1, JobState.FAILED),
        fx.AnnounceJob(1),
        after=ev.WorkerLost(A, "gone"),
    )


def test_what_must_not_run_twice_is_not_taken_from_a_worker_that_comes_too_late() -> None:
    """It was told as lost, so it stays lost; the worker is stopped, and its result is no second one."""
    rig = taken_over(troubles={0: Trouble(given_out=True)}, expected=(A,), restart=False)
    rig.now += 3.0
    rig.expect(
        fx.RecordWorker(A, False),
        fx.RecordResult(1, 0, 1, TaskState.NODE_FAIL, 0, "", None, UNSURE),
        fx.RecordJobEnded(1, JobState.FAILED),
        fx.AnnounceJob(1),
        after=ev.TimePassed(),
    )
    rig.expect(*came(A), fx.StopAttempts(A, [OLD]), after=back(A, (0, OLD)))
    rig.expect(fx.AcknowledgeReport(A, 1), after=rig.report(A, ended(1, 0, OLD)))
    assert rig.scheduler.counts(1) == JobCounts(node_fail=1)


def test_what_was_not_given_out_may_run_once_though_the_job_must_not_run_twice() -> None:
    rig = taken_over(2, {0: Trouble(given_out=True)}, expected=(), restart=False)
    assert rig.scheduler.counts(1) == JobCounts(queued=1, node_fail=1)
    rig.expect(
        *came(A),
        fx.RecordTrouble(1, 1, 0, 0, True),
        fx.AssignTasks(A, 1, FIRST, [1]),
        fx.AnnounceJob(1),
        after=back(A),
    )


def test_a_worker_that_is_back_without_the_task_does_not_free_it_for_a_second_run() -> None:
    rig = taken_over(troubles={0: Trouble(given_out=True)}, restart=False)
    rig.expect(*came(A), after=back(A))
    rig.expect(
        *came(
            B,
            fx.RecordResult(1, 0, 1, TaskState.NODE_FAIL, 0, "", None, UNSURE),
            fx.RecordJobEnded(1, JobState.FAILED),
            fx.AnnounceJob(1),
        ),
        after=back(B),
    )


@pytest.mark.parametrize("introduced", [True, False])
def test_a_failure_told_to_the_next_manager_lets_it_be_tried_again(introduced: bool) -> None:
    """Whether the worker has introduced itself yet or not: it says that the task has ended."""
    rig = taken_over(troubles={0: Trouble(given_out=True)}, restart=False, retries=1)
    if introduced:
        rig.expect(*came(A), fx.AnnounceJob(1), after=back(A, (0, OLD)))
    refused = [] if introduced else [fx.RefuseWorker(A, REFUSAL)]
    rig.expect(
        *refused,
        fx.RecordTrouble(1, 0, 1, 0, True, (OLD,)),
        fx.RecordTrouble(1, 0, 1, 0, False, (OLD,)),
        fx.AcknowledgeReport(A, 1),
        fx.AnnounceJob(1),
        after=rig.report(A, ended(1, 0, OLD, AttemptEnd.FAILED)),
    )
    if not introduced:
        rig.expect(*came(A), after=back(A))
    rig.expect(
        fx.RecordWorker(B, False),
        fx.RecordTrouble(1, 0, 1, 0, True, (OLD,)),
        fx.AssignTasks(A, 1, FIRST, [0]),
        fx.AnnounceJob(1),
        after=ev.WorkerLost(B, "not there"),
    )


def test_what_is_given_back_unstarted_to_the_next_manager_may_be_given_out_again() -> None:
    rig = taken_over(2, {0: Trouble(given_out=True), 1: Trouble(given_out=True)}, restart=False)
    rig.expect(*came(A), fx.AnnounceJob(1), after=back(A, (0, OLD), (1, OLD + 1)))
    rig.expect(
        fx.RecordTrouble(1, 1, 0, 0, False),
        fx.AnnounceJob(1),
        after=ev.AttemptsRevoked(A, 1, [OLD + 1]),
    )
    rig.expect(
        *came(B, fx.RecordTrouble(1, 1, 0, 0, True), fx.AssignTasks(B, 1, FIRST, [1]), fx.AnnounceJob(1)),
        after=back(B),
    )


# --- attempts that outlive their lease ----------------------------------------------------------------------


def test_two_workers_that_come_back_with_the_same_task_both_go_on_and_the_first_result_counts() -> None:
    """The last manager had given a up, and its task to b; then it went itself."""
    rig = taken_over(troubles={0: Trouble(losses=1)})
    rig.expect(*came(B), fx.AnnounceJob(1), after=back(B, (0, OLD + 1)))
    rig.expect(*came(A), fx.AnnounceJob(1), after=back(A, (0, OLD)))
    assert rig.scheduler.task_worker(1, 0) == (B, OLD + 1)
    rig.expect(
        result(0, 1, TaskState.COMPLETED, OLD, A),
        fx.StopAttempts(B, [OLD + 1]),
        fx.AcknowledgeReport(A, 1),
        fx.RecordJobEnded(1, JobState.COMPLETED),
        fx.AnnounceJob(1),
        after=rig.report(A, ended(1, 0, OLD)),
    )
    rig.expect(fx.AcknowledgeReport(B, 1), after=rig.report(B, ended(1, 0, OLD + 1, AttemptEnd.CANCELLED)))
    assert rig.scheduler.totals() == (2, 2, 0)


def test_an_attempt_belongs_to_the_worker_that_named_it_first() -> None:
    rig = taken_over()
    rig.expect(*came(A), fx.AnnounceJob(1), after=back(A, (0, OLD)))
    rig.expect(*came(B), fx.StopAttempts(B, [OLD]), fx.AnnounceJob(1), after=back(B, (0, OLD)))
    rig.expect(fx.AcknowledgeReport(B, 1), after=rig.report(B, ended(1, 0, OLD)))
    assert rig.scheduler.strays().refused == 1
    assert rig.scheduler.task_worker(1, 0) == (A, OLD)


def test_a_worker_that_comes_back_after_its_task_was_given_to_another_goes_on_beside_it() -> None:
    rig = taken_over(expected=(A,))
    rig.expect(*came(B), after=back(B))
    rig.now += 3.0
    rig.expect(
        fx.RecordWorker(A, False), fx.AssignTasks(B, 1, FIRST, [0]), fx.AnnounceJob(1), after=ev.TimePassed()
    )
    rig.expect(*came(A), fx.AnnounceJob(1), after=back(A, (0, OLD)))
    rig.expect(
        result(0, 1, TaskState.COMPLETED, FIRST, B),
        fx.StopAttempts(A, [OLD]),
        fx.AcknowledgeReport(B, 1),
        fx.RecordJobEnded(1, JobState.COMPLETED),
        fx.AnnounceJob(1),
        after=rig.report(B, ended(1, 0, FIRST)),
    )


def test_an_adopted_attempt_is_lost_found_and_counted_like_any_other() -> None:
    rig = taken_over(expected=(A,))
    rig.expect(*came(A), fx.AnnounceJob(1), after=back(A, (0, OLD)))
    rig.expect(
        fx.RecordTrouble(1, 0, 0, 1),
        fx.RecordWorker(A, False),
        fx.AnnounceWorkerLost(A, "gone", 1),
        fx.AnnounceJob(1),
        after=ev.WorkerLost(A, "gone"),
    )
    rig.expect(*came(A, fx.RecordTrouble(1, 0, 0, 0)), fx.AnnounceJob(1), after=back(A, (0, OLD)))
    rig.expect(
        result(0, 1, TaskState.FAILED, OLD, A),
        fx.AcknowledgeReport(A, 1),
        fx.RecordJobEnded(1, JobState.FAILED),
        fx.AnnounceJob(1),
        after=rig.report(A, ended(1, 0, OLD, AttemptEnd.FAILED)),
    )


def test_what_an_idle_worker_could_do_is_asked_back_from_one_that_came_back_with_it() -> None:
    """Attempts of earlier lives are revoked like others, for the worker knows them by their ids."""
    rig = taken_over(4, expected=(A,))
    held = [(task, OLD + task) for task in range(4)]
    rig.expect(*came(A), fx.AnnounceJob(1), after=back(A, *held))
    rig.effects(rig.report(A, ended(1, 0, OLD)))
    rig.expect(*came(B), fx.RevokeTasks(A, 1, 1), after=back(B))
    rig.expect(fx.AssignTasks(B, 1, FIRST, [3]), fx.AnnounceJob(1), after=ev.AttemptsRevoked(A, 1, [OLD + 3]))


# --- cancels ------------------------------------------------------------------------------------------------


def cancelled(expected: tuple[str, ...] = (A,)) -> Rig:
    """The last manager had promised to cancel task 0 of two, and could not tell the worker."""
    return taken_over(2, {0: Trouble(cancelling=True)}, expected)


def test_a_cancel_of_a_running_task_is_honoured_by_the_next_manager() -> None:
    rig = cancelled()
    rig.expect(
        *came(A, fx.StopAttempts(A, [OLD])),
        fx.AnnounceJob(1),
        after=back(A, (0, OLD), (1, OLD + 1), slots=2),
    )
    rig.expect(
        result(0, 1, TaskState.CANCELLED, OLD, A),
        fx.AcknowledgeReport(A, 1),
        fx.AnnounceJob(1),
        after=rig.report(A, ended(1, 0, OLD, AttemptEnd.CANCELLED)),
    )
    assert rig.scheduler.counts(1) == JobCounts(running=1, cancelled=1)


def test_a_cancelled_task_that_no_worker_came_back_with_ends_with_the_grace_period() -> None:
    rig = cancelled()
    rig.expect(
        *came(
            A,
            fx.RecordCancelled(1, [(0, 1)], 1),
            fx.AssignTasks(A, 1, FIRST, [1]),
            fx.AnnounceJob(1),
        ),
        after=back(A),
    )


def test_the_result_of_a_cancelled_task_counts_if_it_was_there_first() -> None:
    rig = cancelled()
    rig.expect(
        fx.RefuseWorker(A, REFUSAL),
        result(0, 1, TaskState.COMPLETED, OLD, A),
        fx.AcknowledgeReport(A, 1),
        fx.AnnounceJob(1),
        after=rig.report(A, ended(1, 0, OLD)),
    )


def test_a_cancelled_task_whose_worker_is_lost_is_not_tried_again() -> None:
    rig = cancelled()
    rig.expect(
        *came(A, fx.StopAttempts(A, [OLD]), fx.AssignTasks(A, 1, FIRST, [1])),
        fx.AnnounceJob(1),
        after=back(A, (0, OLD), slots=2),
    )
    rig.expect(
        fx.RecordTrouble(1, 1, 0, 1),
        fx.RecordResult(1, 0, 1, TaskState.CANCELLED, OLD, A, None, "gone"),
        fx.RecordWorker(A, False),
        fx.AnnounceWorkerLost(A, "gone", 1),
        fx.AnnounceJob(1),
        after=ev.WorkerLost(A, "gone"),
    )


def test_a_task_cancelled_while_its_job_waits_for_workers_is_stopped_when_one_comes_back_with_it() -> None:
    rig = taken_over(2, expected=(A,))
    rig.expect(fx.RecordCancelled(1, [(0, 1)], 1), fx.AnnounceJob(1), after=ev.JobCancelled(1, [0]))
    rig.expect(
        *came(A, fx.StopAttempts(A, [OLD])),
        fx.AnnounceJob(1),
        after=back(A, (0, OLD), (1, OLD + 1)),
    )
