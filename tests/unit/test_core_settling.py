"""After a restart of the manager: whom its jobs wait for, what is found again, what counts once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from core_rig import FIRST, OLD, Rig, ended, joined

from kestrel.core import effects as fx
from kestrel.core import events as ev
from kestrel.core.books import Books
from kestrel.core.model import (
    COUNTED_MAX,
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
from kestrel.errors import InternalError

QUEUED = TaskState.QUEUED


def result(job: int, task: int, seq: int, state: TaskState, attempt: int, worker: str) -> fx.RecordResult:
    return fx.RecordResult(job, task, seq, state, attempt, worker, f"report of {attempt}")


def restored(states: list[TaskState], *, restart: bool = True, **more: Any) -> ev.JobRestored:
    return ev.JobRestored(
        RestoredJob(1, JobTerms("ann", retries=2, restart=restart), bytearray(states), **more)
    )


def test_a_restored_job_waits_for_its_workers_but_a_new_one_does_not() -> None:
    rig = Rig(settle_s=3.0)
    done, waits = TaskState.COMPLETED, TaskState.QUEUED
    rig.expect(after=restored([done, waits, waits], troubles={1: Trouble(1, 1)}, reruns=1))
    assert rig.scheduler.counts(1) == JobCounts(queued=2, completed=1)
    assert (rig.scheduler.last_seq(1), rig.scheduler.reruns(1)) == (1, 1)
    assert rig.scheduler.trouble(1, 1) == (1, 1)
    rig.expect(
        fx.RecordWorker("a@p/1", True),
        fx.WelcomeWorker("a@p/1"),
        fx.AnnounceJob(1),
        after=joined("a@p/1", held=[HeldByWorker(1, 2, OLD)]),
    )
    assert rig.scheduler.task_worker(1, 2) == ("a@p/1", OLD)
    rig.join("b@p/1")
    assert [(a.worker, a.job) for a in rig.submit(2, 1)] == [("b@p/1", 2)]
    rig.now += 2.9
    rig.expect(after=ev.TimePassed())
    assert rig.scheduler.next_wake(rig.now) == pytest.approx(1003.0)
    rig.now += 0.1
    rig.join("c@p/1")
    assert rig.scheduler.task_worker(1, 1) == ("c@p/1", FIRST + 1)


def test_a_result_of_an_earlier_epoch_counts_once() -> None:
    rig = Rig(settle_s=3.0)
    rig.effects(restored([TaskState.QUEUED] * 2))
    rig.join("a@p/1")
    failed = rig.report("a@p/1", ended(1, 0, OLD, AttemptEnd.FAILED))
    rig.expect(
        fx.RecordTrouble(1, 0, 1, 0, False, (OLD,)),
        fx.AcknowledgeReport("a@p/1", 1),
        fx.AnnounceJob(1),
        after=failed,
    )
    rig.expect(fx.AcknowledgeReport("a@p/1", 1), after=failed)
    rig.expect(
        result(1, 1, 1, TaskState.COMPLETED, OLD + 1, "a@p/1"),
        fx.AcknowledgeReport("a@p/1", 2),
        fx.AnnounceJob(1),
        after=rig.report("a@p/1", ended(1, 1, OLD + 1)),
    )
    assert rig.scheduler.strays().late == 2
    assert rig.scheduler.strays().duplicates == 1
    assert rig.scheduler.strays().refused == 0


def test_a_job_restored_as_cancelled_ends_when_its_workers_had_time_to_come_back() -> None:
    rig = Rig(settle_s=3.0)
    rig.expect(after=restored([TaskState.QUEUED] * 3, cancelled=True))
    rig.expect(
        fx.RecordWorker("a@p/1", True),
        fx.WelcomeWorker("a@p/1"),
        fx.StopAttempts("a@p/1", [OLD]),
        fx.AnnounceJob(1),
        after=joined("a@p/1", held=[HeldByWorker(1, 1, OLD)]),
    )
    rig.now += 3.0
    rig.expect(fx.RecordCancelled(1, [(0, 1), (2, 3)], 1), fx.AnnounceJob(1), after=ev.TimePassed())
    rig.expect(
        result(1, 1, 3, TaskState.CANCELLED, OLD, "a@p/1"),
        fx.AcknowledgeReport("a@p/1", 1),
        fx.RecordJobEnded(1, JobState.CANCELLED),
        fx.AnnounceJob(1),
        after=rig.report("a@p/1", ended(1, 1, OLD, AttemptEnd.CANCELLED)),
    )


def test_a_restored_job_whose_tasks_are_all_found_again_ends_before_the_grace_period() -> None:
    rig = Rig(settle_s=3.0)
    rig.effects(restored([TaskState.QUEUED]))
    rig.join("a@p/1", held=[HeldByWorker(1, 0, OLD)])
    rig.expect(
        result(1, 0, 1, TaskState.COMPLETED, OLD, "a@p/1"),
        fx.AcknowledgeReport("a@p/1", 1),
        fx.RecordJobEnded(1, JobState.COMPLETED),
        fx.AnnounceJob(1),
        after=rig.report("a@p/1", ended(1, 0, OLD)),
    )
    assert rig.scheduler.next_wake(rig.now) == pytest.approx(rig.now + 5.0)


def test_running_tasks_are_never_restored() -> None:
    rig = Rig()
    with pytest.raises(InternalError, match="none are ever stored"):
        rig.scheduler.handle([restored([TaskState.RUNNING])], rig.now)
    assert rig.scheduler.job_ids() == []


# --- whom they wait for -------------------------------------------------------------------------------------


def test_tasks_are_given_out_as_soon_as_everybody_who_was_there_is_back() -> None:
    rig = Rig(settle_s=3.0)
    rig.expect(after=[restored([QUEUED] * 3), ev.WorkersExpected(["a@p/1", "b@p/1"])])
    assert rig.scheduler.expected() == {"a@p/1", "b@p/1"}
    rig.expect(
        fx.RecordWorker("a@p/1", True),
        fx.WelcomeWorker("a@p/1"),
        fx.AnnounceJob(1),
        after=joined("a@p/1", held=[HeldByWorker(1, 2, OLD)]),
    )
    assert rig.scheduler.expected() == {"b@p/1"}
    assert rig.scheduler.explain(1, 0, rig.now) == [
        "Task 1_0 is queued; 0 tasks of its job come before it.",
        "The manager was restarted; 1 worker may still run tasks and did not come back yet; "
        "at most 3.0 s more are waited.",
    ]
    rig.expect(
        fx.RecordWorker("b@p/1", True),
        fx.WelcomeWorker("b@p/1"),
        fx.AssignTasks("b@p/1", 1, FIRST, [0]),
        fx.AnnounceJob(1),
        after=joined("b@p/1"),
    )
    assert rig.scheduler.expected() == set()
    assert rig.scheduler.next_wake(rig.now) == rig.now + rig.settings.probe_s


def test_who_is_known_to_be_gone_is_recorded_and_not_waited_for() -> None:
    rig = Rig(settle_s=3.0)
    rig.effects(restored([QUEUED]), ev.WorkersExpected(["a@p/1", "b@p/1"]))
    rig.join("c@p/1")
    rig.expect(fx.RecordWorker("a@p/1", False), after=ev.WorkerLost("a@p/1", "not there"))
    rig.expect(after=[ev.WorkerLost("a@p/1", "not there"), ev.WorkerLost("x@p/1", "never was")])
    rig.expect(
        fx.RecordWorker("b@p/1", False),
        fx.AssignTasks("c@p/1", 1, FIRST, [0]),
        fx.AnnounceJob(1),
        after=ev.WorkerLost("b@p/1", "not there"),
    )


def test_after_the_grace_period_those_who_did_not_come_back_are_recorded_as_gone() -> None:
    rig = Rig(settle_s=3.0)
    rig.effects(restored([QUEUED]), ev.WorkersExpected(["a@p/1", "b@p/1", "c@p/1"]))
    rig.join("b@p/1")
    rig.now += 3.0
    rig.expect(
        fx.RecordWorker("a@p/1", False),
        fx.RecordWorker("c@p/1", False),
        fx.AssignTasks("b@p/1", 1, FIRST, [0]),
        fx.AnnounceJob(1),
        after=ev.TimePassed(),
    )
    assert rig.scheduler.expected() == set()
    rig.expect(
        fx.RecordWorker("a@p/1", True),
        fx.WelcomeWorker("a@p/1"),
        after=joined("a@p/1"),
    )


def test_without_jobs_the_missing_are_recorded_all_the_same() -> None:
    rig = Rig(settle_s=3.0)
    rig.expect(after=ev.WorkersExpected(["a@p/1"]))
    assert rig.scheduler.next_wake(rig.now) == rig.now + 3.0
    rig.now += 3.0
    rig.expect(fx.RecordWorker("a@p/1", False), after=ev.TimePassed())
    assert rig.scheduler.next_wake(rig.now) is None


def test_if_nobody_was_there_nothing_is_waited_for() -> None:
    rig = Rig(settle_s=3.0)
    rig.expect(fx.AnnounceJob(1), after=[restored([QUEUED]), ev.WorkersExpected([])])
    assert rig.scheduler.next_wake(rig.now) is None
    assert rig.join("a@p/1")[0].tasks == [0]


def test_if_nobody_knows_who_was_there_the_whole_time_is_waited() -> None:
    rig = Rig(settle_s=3.0)
    rig.expect(after=[restored([QUEUED]), ev.WorkersExpected(None)])
    assert rig.join("a@p/1") == []
    rig.now += 2.9
    rig.expect(after=[ev.WorkerHeard("a@p/1"), ev.TimePassed()])
    rig.now += 0.1
    rig.expect(fx.AssignTasks("a@p/1", 1, FIRST, [0]), fx.AnnounceJob(1), after=ev.TimePassed())


def test_a_worker_that_came_back_before_the_list_is_not_awaited() -> None:
    rig = Rig(settle_s=3.0)
    rig.join("a@p/1")
    rig.expect(
        fx.AssignTasks("a@p/1", 1, FIRST, [0]),
        fx.AnnounceJob(1),
        after=[restored([QUEUED]), ev.WorkersExpected(["a@p/1"])],
    )
    with pytest.raises(InternalError, match="named twice"):
        rig.scheduler.handle([ev.WorkersExpected([])], rig.now)


def test_a_returned_worker_that_is_lost_again_is_recorded_as_gone_once() -> None:
    rig = Rig(settle_s=3.0)
    rig.effects(restored([QUEUED]), ev.WorkersExpected(["a@p/1", "b@p/1"]))
    rig.join("a@p/1", held=[HeldByWorker(1, 0, OLD)])
    rig.expect(
        fx.RecordTrouble(1, 0, 0, 1),
        fx.RecordWorker("a@p/1", False),
        fx.AnnounceWorkerLost("a@p/1", "gone", 1),
        fx.AnnounceJob(1),
        after=ev.WorkerLost("a@p/1", "gone"),
    )
    assert rig.scheduler.expected() == {"b@p/1"}
    rig.now += 3.0
    rig.expect(fx.RecordWorker("b@p/1", False), fx.AnnounceJob(1), after=ev.TimePassed())


def test_what_must_not_run_twice_is_set_aside_when_nobody_came_back_with_it() -> None:
    rig = Rig(settle_s=3.0)
    troubles = {0: Trouble(given_out=True), 1: Trouble(given_out=True)}
    rig.effects(
        restored([QUEUED] * 3, restart=False, troubles=troubles), ev.WorkersExpected(["a@p/1", "b@p/1"])
    )
    rig.expect(
        fx.RecordWorker("a@p/1", True),
        fx.WelcomeWorker("a@p/1"),
        fx.AnnounceJob(1),
        after=joined("a@p/1", held=[HeldByWorker(1, 1, OLD + 1)]),
    )
    reason = (
        "it was given out before the manager was restarted, and no worker came back with it; "
        "it must not run twice"
    )
    rig.expect(
        fx.RecordWorker("b@p/1", False),
        fx.RecordResult(1, 0, 1, TaskState.NODE_FAIL, 0, "", None, reason),
        fx.AnnounceJob(1),
        after=ev.WorkerLost("b@p/1", "not there"),
    )
    rig.expect(
        fx.RecordResult(1, 1, 2, TaskState.COMPLETED, OLD + 1, "a@p/1", f"report of {OLD + 1}"),
        fx.AcknowledgeReport("a@p/1", 1),
        fx.RecordTrouble(1, 2, 0, 0, True),
        fx.AssignTasks("a@p/1", 1, FIRST, [2]),
        fx.AnnounceJob(1),
        after=rig.report("a@p/1", ended(1, 1, OLD + 1)),
    )


def test_time_in_which_the_manager_stood_still_does_not_shorten_the_grace_period() -> None:
    rig = Rig(settle_s=3.0, probe_s=5.0)
    rig.effects(restored([QUEUED]), ev.WorkersExpected(["a@p/1"]))
    rig.now += 60.0
    rig.expect(after=ev.TimePassed())
    assert rig.scheduler.next_wake(rig.now) == rig.now + 3.0
    rig.now += 2.9
    rig.expect(
        fx.RecordWorker("a@p/1", True),
        fx.WelcomeWorker("a@p/1"),
        fx.AnnounceJob(1),
        after=joined("a@p/1", held=[HeldByWorker(1, 0, OLD)]),
    )


def test_a_standstill_shorter_than_a_lease_lengthens_the_grace_period_by_what_is_beyond_a_pause() -> None:
    rig = Rig(settle_s=3.0, probe_s=5.0, standstill_s=1.0)
    rig.effects(restored([QUEUED]), ev.WorkersExpected(["a@p/1"]))
    began = rig.now
    rig.now += 4.0
    rig.expect(after=ev.TimePassed())
    assert rig.scheduler.next_wake(rig.now) == began + 3.0 + 3.0
    rig.now += 0.9
    rig.expect(after=ev.TimePassed())
    assert rig.scheduler.next_wake(rig.now) == began + 6.0


# --- what counts once ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [AttemptEnd.FAILED, AttemptEnd.TIMEOUT, AttemptEnd.LOST])
def test_an_end_that_was_dealt_with_before_the_restart_changes_nothing_when_it_is_told_again(
    end: AttemptEnd,
) -> None:
    rig = Rig(settle_s=3.0)
    trouble = Trouble(1, 1, counted=(OLD, OLD + 5))
    rig.effects(restored([QUEUED], troubles={0: trouble}), ev.WorkersExpected(["a@p/1"]))
    rig.expect(
        fx.RecordWorker("a@p/1", True),
        fx.WelcomeWorker("a@p/1"),
        fx.StopAttempts("a@p/1", [OLD, OLD + 5]),
        fx.AssignTasks("a@p/1", 1, FIRST, [0]),
        fx.AnnounceJob(1),
        after=joined("a@p/1", held=[HeldByWorker(1, 0, OLD), HeldByWorker(1, 0, OLD + 5)]),
    )
    report = rig.report("a@p/1", ended(1, 0, OLD, end), ended(1, 0, OLD + 5, end))
    rig.expect(fx.AcknowledgeReport("a@p/1", 1), after=report)
    assert rig.scheduler.trouble(1, 0) == (1, 1)
    assert rig.scheduler.strays().duplicates == 2
    rig.expect(
        fx.RecordTrouble(1, 0, 2, 1, False, (OLD, OLD + 5, FIRST)),
        fx.AcknowledgeReport("a@p/1", 2),
        fx.AssignTasks("a@p/1", 1, FIRST + 1, [0]),
        fx.AnnounceJob(1),
        after=rig.report("a@p/1", ended(1, 0, FIRST, AttemptEnd.FAILED)),
    )


def test_the_late_success_of_an_attempt_that_was_lost_before_the_restart_still_counts() -> None:
    rig = Rig(settle_s=3.0)
    rig.effects(restored([QUEUED], troubles={0: Trouble(0, 1)}), ev.WorkersExpected(["a@p/1"]))
    rig.expect(
        fx.RefuseWorker("a@p/1", REFUSAL),
        result(1, 0, 1, TaskState.COMPLETED, OLD, "a@p/1"),
        fx.AcknowledgeReport("a@p/1", 1),
        fx.RecordJobEnded(1, JobState.COMPLETED),
        fx.AnnounceJob(1),
        after=rig.report("a@p/1", ended(1, 0, OLD)),
    )
    assert rig.scheduler.strays().late == 1


def test_a_late_failure_counts_once_though_its_worker_was_given_up() -> None:
    rig = Rig()
    rig.submit(1, 1, retries=3)
    rig.join("a@p/1")
    rig.effects(ev.WorkerLost("a@p/1", "gone"))
    report = rig.report("a@p/1", ended(1, 0, FIRST, AttemptEnd.FAILED))
    rig.expect(
        fx.RefuseWorker("a@p/1", REFUSAL),
        fx.RecordTrouble(1, 0, 1, 1, False, (FIRST,)),
        fx.AcknowledgeReport("a@p/1", 1),
        fx.AnnounceJob(1),
        after=report,
    )
    rig.expect(fx.RefuseWorker("a@p/1", REFUSAL), fx.AcknowledgeReport("a@p/1", 1), after=report)
    assert rig.scheduler.strays().duplicates == 1
    rig.expect(
        fx.RecordWorker("a@p/1", True),
        fx.WelcomeWorker("a@p/1"),
        fx.StopAttempts("a@p/1", [FIRST]),
        fx.AssignTasks("a@p/1", 1, FIRST + 1, [0]),
        fx.AnnounceJob(1),
        after=joined("a@p/1", held=[HeldByWorker(1, 0, FIRST)]),
    )


def test_the_ends_that_are_remembered_of_a_task_are_bounded() -> None:
    rig = Rig()
    rig.submit(1, 1, retries=100)
    rig.join("a@p/1")
    counted: tuple[int, ...] = ()
    for number in range(COUNTED_MAX + 2):
        effects = rig.effects(rig.report("a@p/1", ended(1, 0, FIRST + number, AttemptEnd.FAILED)))
        counted = tuple(range(FIRST + max(0, number - COUNTED_MAX + 1), FIRST + number + 1))
        assert effects[0] == fx.RecordTrouble(1, 0, number + 1, 0, False, counted)
    assert len(counted) == COUNTED_MAX


def _settles_alone(books: Books) -> None:
    books.settling.jobs.clear()


def _awaits_one_that_is_there(books: Books) -> None:
    books.settling.awaited["a@p/1"] = None


def _nobody_is_awaited(books: Books) -> None:
    books.settling.awaited.clear()


@pytest.mark.parametrize("fault", [_settles_alone, _awaits_one_that_is_there, _nobody_is_awaited])
def test_the_invariant_check_finds_a_planted_fault_of_settling(fault: Callable[[Books], None]) -> None:
    rig = Rig(settle_s=3.0)
    rig.effects(restored([QUEUED]), ev.WorkersExpected(["a@p/1", "b@p/1"]))
    rig.join("a@p/1")
    fault(rig.scheduler._books)
    with pytest.raises(InternalError):
        rig.scheduler.check_invariants()
