"""The life of jobs and tasks in the scheduler: all effects of each step."""

from __future__ import annotations

import pytest
from core_rig import EPOCH, FIRST, Rig, ended, joined, submitted

from kestrel.core import effects as fx
from kestrel.core import events as ev
from kestrel.core.model import (
    AttemptEnd,
    JobCounts,
    JobState,
    TaskState,
)
from kestrel.errors import InternalError, UsageError


def result(job: int, task: int, seq: int, state: TaskState, attempt: int, worker: str) -> fx.RecordResult:
    return fx.RecordResult(job, task, seq, state, attempt, worker, f"report of {attempt}")


def test_a_task_is_queued_given_out_recorded_and_ends_its_job() -> None:
    rig = Rig()
    rig.expect(fx.AnnounceJob(1), after=submitted(1, 1))
    assert rig.scheduler.job_state(1) is JobState.PENDING
    rig.expect(
        fx.RecordWorker("a@p/1", True),
        fx.WelcomeWorker("a@p/1"),
        fx.AssignTasks("a@p/1", 1, FIRST, [0]),
        fx.AnnounceJob(1),
        after=joined("a@p/1"),
    )
    assert rig.scheduler.job_state(1) is JobState.RUNNING
    assert rig.scheduler.task_worker(1, 0) == ("a@p/1", FIRST)
    assert rig.scheduler.running(1) == [0]
    rig.expect(
        result(1, 0, 1, TaskState.COMPLETED, FIRST, "a@p/1"),
        fx.AcknowledgeReport("a@p/1", 1),
        fx.RecordJobEnded(1, JobState.COMPLETED),
        fx.AnnounceJob(1),
        after=rig.report("a@p/1", ended(1, 0, FIRST)),
    )
    assert rig.scheduler.counts(1) == JobCounts(completed=1)
    assert rig.scheduler.last_seq(1) == 1
    rig.scheduler.forget(1)
    assert not rig.scheduler.has_job(1)


def test_a_repeated_report_is_acknowledged_and_changes_nothing() -> None:
    rig = Rig()
    rig.submit(1, 2)
    rig.join("a@p/1")
    report = rig.report("a@p/1", ended(1, 0, FIRST))
    rig.effects(report)
    rig.expect(fx.AcknowledgeReport("a@p/1", 1), after=report)
    assert rig.scheduler.strays().duplicates == 1
    assert rig.scheduler.last_seq(1) == 1


def test_a_failed_task_is_tried_again_at_the_end_until_its_retries_are_used_up() -> None:
    rig = Rig()
    rig.submit(1, 2, retries=1)
    rig.join("a@p/1")
    # two in hand: one runs, one more because the length of the tasks is not known
    rig.expect(
        fx.RecordTrouble(1, 0, 1, 0, False, (FIRST,)),
        fx.AcknowledgeReport("a@p/1", 1),
        fx.AnnounceJob(1),
        after=rig.report("a@p/1", ended(1, 0, FIRST, AttemptEnd.FAILED)),
    )
    rig.expect(
        result(1, 1, 1, TaskState.COMPLETED, FIRST + 1, "a@p/1"),
        fx.AcknowledgeReport("a@p/1", 2),
        fx.AssignTasks("a@p/1", 1, FIRST + 2, [0]),
        fx.AnnounceJob(1),
        after=rig.report("a@p/1", ended(1, 1, FIRST + 1)),
    )
    rig.expect(
        result(1, 0, 2, TaskState.TIMEOUT, FIRST + 2, "a@p/1"),
        fx.AcknowledgeReport("a@p/1", 3),
        fx.RecordJobEnded(1, JobState.FAILED),
        fx.AnnounceJob(1),
        after=rig.report("a@p/1", ended(1, 0, FIRST + 2, AttemptEnd.TIMEOUT)),
    )


def test_a_launcher_that_dies_counts_as_a_loss_and_the_third_makes_poison() -> None:
    rig = Rig()
    rig.submit(1, 1)
    rig.join("a@p/1")
    for losses in (1, 2):
        attempt = FIRST + losses - 1
        rig.expect(
            fx.RecordTrouble(1, 0, 0, losses, False, tuple(range(FIRST, attempt + 1))),
            fx.AcknowledgeReport("a@p/1", losses),
            fx.AssignTasks("a@p/1", 1, attempt + 1, [0]),
            fx.AnnounceJob(1),
            after=rig.report("a@p/1", ended(1, 0, attempt, AttemptEnd.LOST)),
        )
    assert rig.scheduler.reruns(1) == 2
    effects = rig.effects(rig.report("a@p/1", ended(1, 0, FIRST + 2, AttemptEnd.LOST)))
    reason = "the worker's launcher died; it was lost with its worker 3 times, so it is set aside"
    assert effects == [
        fx.RecordResult(1, 0, 1, TaskState.NODE_FAIL, FIRST + 2, "a@p/1", None, reason),
        fx.AcknowledgeReport("a@p/1", 3),
        fx.RecordJobEnded(1, JobState.FAILED),
        fx.AnnounceJob(1),
    ]


def test_what_a_worker_stops_by_itself_is_queued_again_without_a_loss() -> None:
    rig = Rig()
    rig.submit(1, 1)
    rig.join("a@p/1")
    rig.expect(
        fx.AcknowledgeReport("a@p/1", 1),
        fx.AssignTasks("a@p/1", 1, FIRST + 1, [0]),
        fx.AnnounceJob(1),
        after=rig.report("a@p/1", ended(1, 0, FIRST, AttemptEnd.CANCELLED)),
    )
    assert rig.scheduler.trouble(1, 0) == (0, 0)


def test_what_must_not_run_twice_fails_when_its_worker_stops_it_after_the_start() -> None:
    rig = Rig()
    rig.submit(1, 2, restart=False)
    assert [a.tasks for a in rig.join("a@p/1", 2)] == [[0, 1]]
    started = ended(1, 0, FIRST, AttemptEnd.CANCELLED, wall_s=2.0)
    waiting = ended(1, 1, FIRST + 1, AttemptEnd.CANCELLED, wall_s=0.0)
    reason = "the worker stopped it; it must not run twice"
    rig.expect(
        fx.RecordResult(1, 0, 1, TaskState.NODE_FAIL, FIRST, "a@p/1", f"report of {FIRST}", reason),
        fx.RecordTrouble(1, 1, 0, 0, False),
        fx.AcknowledgeReport("a@p/1", 1),
        fx.RecordTrouble(1, 1, 0, 0, True),
        fx.AssignTasks("a@p/1", 1, FIRST + 2, [1]),
        fx.AnnounceJob(1),
        after=rig.report("a@p/1", started, waiting),
    )


def test_cancelling_a_job_ends_what_waits_and_stops_what_runs() -> None:
    rig = Rig()
    rig.join("a@p/1", 2)
    rig.submit(1, 1000)
    rig.expect(
        fx.RecordCancelled(1, [(3, 1000)], 1),
        fx.StopAttempts("a@p/1", [FIRST, FIRST + 1, FIRST + 2]),
        fx.AnnounceJob(1),
        after=ev.JobCancelled(1),
    )
    assert rig.scheduler.counts(1) == JobCounts(running=3, cancelled=997)
    rig.expect(after=ev.JobCancelled(1))
    rig.expect(
        result(1, 0, 998, TaskState.COMPLETED, FIRST, "a@p/1"),
        result(1, 1, 999, TaskState.CANCELLED, FIRST + 1, "a@p/1"),
        fx.AcknowledgeReport("a@p/1", 1),
        fx.AnnounceJob(1),
        after=rig.report("a@p/1", ended(1, 0, FIRST), ended(1, 1, FIRST + 1, AttemptEnd.CANCELLED)),
    )
    rig.expect(
        fx.RecordResult(1, 2, 1000, TaskState.CANCELLED, FIRST + 2, "a@p/1", None, "gone"),
        fx.RecordWorker("a@p/1", False),
        fx.AnnounceWorkerLost("a@p/1", "gone", 0),
        fx.RecordJobEnded(1, JobState.CANCELLED),
        fx.AnnounceJob(1),
        after=ev.WorkerLost("a@p/1", "gone"),
    )


def test_cancelling_some_tasks_leaves_the_others() -> None:
    rig = Rig()
    rig.submit(1, 10)
    rig.expect(
        fx.RecordCancelled(1, [(2, 5), (7, 8)], 1),
        fx.AnnounceJob(1),
        after=ev.JobCancelled(1, [2, 3, 4, 7, 7, 99]),
    )
    assert [a.tasks for a in rig.join("a@p/1", 4)] == [[0, 1, 5, 6, 8, 9]]
    rig.expect(
        fx.RecordTrouble(1, 1, 0, 0, False, (), True),
        fx.StopAttempts("a@p/1", [FIRST + 1]),
        fx.AnnounceJob(1),
        after=ev.JobCancelled(1, [1, 2]),
    )
    rig.expect(after=ev.JobCancelled(1, [1]))
    rig.expect(
        result(1, 1, 5, TaskState.CANCELLED, FIRST + 1, "a@p/1"),
        fx.AcknowledgeReport("a@p/1", 1),
        fx.AnnounceJob(1),
        after=rig.report("a@p/1", ended(1, 1, FIRST + 1, AttemptEnd.CANCELLED)),
    )


def test_an_open_job_ends_only_when_it_is_closed() -> None:
    rig = Rig()
    rig.join("a@p/1")
    rig.expect(fx.AnnounceJob(1), after=submitted(1, 0, is_open=True))
    rig.expect(fx.AssignTasks("a@p/1", 1, FIRST, [0]), fx.AnnounceJob(1), after=ev.JobExtended(1, 1))
    rig.expect(
        result(1, 0, 1, TaskState.COMPLETED, FIRST, "a@p/1"),
        fx.AcknowledgeReport("a@p/1", 1),
        fx.AnnounceJob(1),
        after=rig.report("a@p/1", ended(1, 0, FIRST)),
    )
    assert rig.scheduler.is_open(1)
    rig.expect(
        fx.RecordJobEnded(1, JobState.COMPLETED), fx.AnnounceJob(1), after=ev.JobExtended(1, 0, last=True)
    )


@pytest.mark.parametrize("size", [0, 3])
def test_an_open_job_that_is_cancelled_ends_as_cancelled(size: int) -> None:
    rig = Rig()
    rig.submit(1, size, is_open=True)
    rig.effects(ev.JobCancelled(1))
    assert rig.scheduler.job_state(1) is JobState.CANCELLED


def test_a_closed_job_without_tasks_ends_at_once() -> None:
    rig = Rig()
    rig.expect(fx.RecordJobEnded(1, JobState.COMPLETED), fx.AnnounceJob(1), after=submitted(1, 0))


@pytest.mark.parametrize(
    "event",
    [submitted(1, 5), ev.JobExtended(1, 1), ev.JobExtended(9, 1)],
    ids=["submitted twice", "extended though closed", "extended though unknown"],
)
def test_an_impossible_event_changes_nothing(event: ev.Event) -> None:
    rig = Rig()
    rig.submit(1, 2)
    with pytest.raises(InternalError, match="job"):
        rig.scheduler.handle([event], rig.now)
    rig.scheduler.check_invariants()
    assert rig.scheduler.size(1) == 2
    assert rig.scheduler.job_ids() == [1]


def test_only_ended_jobs_can_be_forgotten() -> None:
    rig = Rig()
    rig.submit(1, 1)
    with pytest.raises(UsageError, match="has not ended"):
        rig.scheduler.forget(1)
    with pytest.raises(UsageError, match="knows no job 2"):
        rig.scheduler.counts(2)


def test_attempt_ids_contain_the_epoch() -> None:
    rig = Rig(epoch=EPOCH + 5)
    rig.submit(1, 1)
    assert [a.attempt >> 32 for a in rig.join("a@p/1")] == [EPOCH + 5]
