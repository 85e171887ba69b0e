"""Workers that leave, come back, keep silent, repeat themselves or lie."""

from __future__ import annotations

import pytest
from core_rig import FIRST, Rig, ended, joined

from kestrel.core import effects as fx
from kestrel.core import events as ev
from kestrel.core.model import AttemptEnd, HeldByWorker, JobState, TaskState, WorkerOffer
from kestrel.core.scheduler import REFUSAL


def lost(rig: Rig, name: str) -> list[fx.Effect]:
    return rig.effects(ev.WorkerLost(name, "gone"))


def test_the_tasks_of_a_lost_worker_go_first_to_the_next_and_only_the_oldest_count_as_losses() -> None:
    rig = Rig()
    rig.submit(1, 10)
    assert rig.join("a@p/1", 2)[0].tasks == [0, 1, 2]
    rig.expect(
        fx.RecordTrouble(1, 1, 0, 1),
        fx.RecordTrouble(1, 0, 0, 1),
        fx.RecordWorker("a@p/1", False),
        fx.AnnounceWorkerLost("a@p/1", "gone", 3),
        fx.AnnounceJob(1),
        after=ev.WorkerLost("a@p/1", "gone"),
    )
    assert rig.join("b@p/1", 4)[0].tasks == [0, 1, 2, 3, 4, 5]
    assert rig.scheduler.reruns(1) == 2
    departed = rig.scheduler.lost_workers()
    assert [(d.worker, d.reason, d.requeued, d.at) for d in departed] == [("a@p/1", "gone", 3, rig.now)]
    rig.expect(after=ev.WorkerLost("a@p/1", "gone"))


def test_a_lost_workers_task_is_dispatched_elsewhere_in_the_same_turn() -> None:
    rig = Rig()
    rig.submit(1, 1)
    rig.join("a@p/1")
    rig.join("b@p/1")
    rig.expect(
        fx.RecordTrouble(1, 0, 0, 1),
        fx.RecordWorker("a@p/1", False),
        fx.AnnounceWorkerLost("a@p/1", "gone", 1),
        fx.AssignTasks("b@p/1", 1, FIRST + 1, [0]),
        fx.AnnounceJob(1),
        after=ev.WorkerLost("a@p/1", "gone"),
    )


def test_what_must_not_run_twice_fails_with_its_worker_and_never_travels_ahead() -> None:
    rig = Rig()
    rig.submit(1, 5, restart=False)
    assert rig.join("a@p/1", 2)[0].tasks == [0, 1]
    reason = "gone; it must not run twice"
    rig.expect(
        fx.RecordResult(1, 1, 1, TaskState.NODE_FAIL, FIRST + 1, "a@p/1", None, reason),
        fx.RecordResult(1, 0, 2, TaskState.NODE_FAIL, FIRST, "a@p/1", None, reason),
        fx.RecordWorker("a@p/1", False),
        fx.AnnounceWorkerLost("a@p/1", "gone", 0),
        fx.AnnounceJob(1),
        after=ev.WorkerLost("a@p/1", "gone"),
    )
    rig.expect(
        fx.RecordWorker("a@p/1", True),
        fx.WelcomeWorker("a@p/1"),
        fx.StopAttempts("a@p/1", [FIRST]),
        fx.RecordTrouble(1, 2, 0, 0, True),
        fx.RecordTrouble(1, 3, 0, 0, True),
        fx.AssignTasks("a@p/1", 1, FIRST + 2, [2, 3]),
        fx.AnnounceJob(1),
        after=joined("a@p/1", 2, held=[HeldByWorker(1, 0, FIRST)]),
    )


def test_a_task_that_loses_three_workers_is_set_aside() -> None:
    rig = Rig(losses_max=3)
    rig.submit(1, 1)
    for number in range(2):
        rig.join(f"w@p/{number}")
        lost(rig, f"w@p/{number}")
    rig.join("w@p/2")
    reason = "gone; it was lost with its worker 3 times, so it is set aside"
    rig.expect(
        fx.RecordResult(1, 0, 1, TaskState.NODE_FAIL, FIRST + 2, "w@p/2", None, reason),
        fx.RecordWorker("w@p/2", False),
        fx.AnnounceWorkerLost("w@p/2", "gone", 0),
        fx.RecordJobEnded(1, JobState.FAILED),
        fx.AnnounceJob(1),
        after=ev.WorkerLost("w@p/2", "gone"),
    )


# --- late results and rejoining -----------------------------------------------------------------------------


def two_attempts() -> Rig:
    """Task 0 was lost with a and now runs on b under FIRST + 1."""
    rig = Rig()
    rig.submit(1, 1)
    rig.join("a@p/1")
    rig.join("b@p/1")
    lost(rig, "a@p/1")
    assert rig.scheduler.task_worker(1, 0) == ("b@p/1", FIRST + 1)
    return rig


def test_the_late_result_of_a_lost_worker_counts_if_it_is_first() -> None:
    rig = two_attempts()
    rig.expect(
        fx.RefuseWorker("a@p/1", REFUSAL),
        fx.RecordResult(1, 0, 1, TaskState.COMPLETED, FIRST, "a@p/1", f"report of {FIRST}"),
        fx.StopAttempts("b@p/1", [FIRST + 1]),
        fx.AcknowledgeReport("a@p/1", 1),
        fx.RecordJobEnded(1, JobState.COMPLETED),
        fx.AnnounceJob(1),
        after=rig.report("a@p/1", ended(1, 0, FIRST)),
    )
    assert rig.scheduler.strays().late == 1
    assert rig.scheduler.workers()["b@p/1"].used == 1
    rig.scheduler.forget(1)
    rig.expect(
        fx.AcknowledgeReport("b@p/1", 1),
        after=rig.report("b@p/1", ended(1, 0, FIRST + 1, AttemptEnd.CANCELLED)),
    )
    assert rig.scheduler.workers()["b@p/1"].used == 0


def test_the_late_result_of_a_lost_worker_is_ignored_if_it_is_second() -> None:
    rig = two_attempts()
    rig.effects(rig.report("b@p/1", ended(1, 0, FIRST + 1)))
    rig.expect(
        fx.RefuseWorker("a@p/1", REFUSAL),
        fx.AcknowledgeReport("a@p/1", 1),
        after=rig.report("a@p/1", ended(1, 0, FIRST)),
    )
    assert rig.scheduler.strays().duplicates == 1


def test_a_worker_that_comes_back_with_its_task_gets_it_again_if_nobody_has_it() -> None:
    rig = Rig()
    rig.submit(1, 1)
    rig.join("a@p/1")
    lost(rig, "a@p/1")
    rig.expect(
        fx.RecordWorker("a@p/1", True),
        fx.WelcomeWorker("a@p/1"),
        fx.RecordTrouble(1, 0, 0, 0),
        fx.AnnounceJob(1),
        after=joined("a@p/1", held=[HeldByWorker(1, 0, FIRST)]),
    )
    assert rig.scheduler.task_worker(1, 0) == ("a@p/1", FIRST)


@pytest.mark.parametrize(("winner", "loser"), [("a", "b"), ("b", "a")])
def test_a_task_that_two_workers_have_ends_with_the_first_result(winner: str, loser: str) -> None:
    rig = two_attempts()
    rig.expect(
        fx.RecordWorker("a@p/1", True),
        fx.WelcomeWorker("a@p/1"),
        fx.RecordTrouble(1, 0, 0, 0),
        fx.AnnounceJob(1),
        after=joined("a@p/1", held=[HeldByWorker(1, 0, FIRST)]),
    )
    attempts = {"a": FIRST, "b": FIRST + 1}
    rig.expect(
        fx.RecordResult(
            1, 0, 1, TaskState.COMPLETED, attempts[winner], f"{winner}@p/1", f"report of {attempts[winner]}"
        ),
        fx.StopAttempts(f"{loser}@p/1", [attempts[loser]]),
        fx.AcknowledgeReport(f"{winner}@p/1", 1),
        fx.RecordJobEnded(1, JobState.COMPLETED),
        fx.AnnounceJob(1),
        after=rig.report(f"{winner}@p/1", ended(1, 0, attempts[winner])),
    )


def test_a_task_that_two_workers_have_survives_the_loss_of_one() -> None:
    rig = two_attempts()
    rig.join("a@p/1", held=[HeldByWorker(1, 0, FIRST)])
    rig.expect(
        fx.RecordTrouble(1, 0, 0, 1),
        fx.RecordWorker("b@p/1", False),
        fx.AnnounceWorkerLost("b@p/1", "gone", 0),
        fx.AnnounceJob(1),
        after=ev.WorkerLost("b@p/1", "gone"),
    )
    assert rig.scheduler.task_worker(1, 0) == ("a@p/1", FIRST)


def test_a_worker_that_comes_back_without_its_tasks_loses_them_and_is_told_to_stop_them() -> None:
    rig = Rig()
    rig.submit(1, 3)
    assert rig.join("a@p/1", 2)[0].tasks == [0, 1, 2]
    rig.expect(
        fx.WelcomeWorker("a@p/1"),
        fx.RecordTrouble(1, 1, 0, 1),
        fx.StopAttempts("a@p/1", [FIRST + 1, FIRST + 2]),
        fx.AssignTasks("a@p/1", 1, FIRST + 3, [1, 2]),
        fx.AnnounceJob(1),
        after=joined("a@p/1", 2, held=[HeldByWorker(1, 0, FIRST)]),
    )
    assert rig.scheduler.task_worker(1, 0) == ("a@p/1", FIRST)


@pytest.mark.parametrize(
    "held",
    [
        HeldByWorker(9, 0, FIRST),
        HeldByWorker(1, 99, FIRST),
        HeldByWorker(1, -1, FIRST),
        HeldByWorker(1, 1, FIRST + 77),
        HeldByWorker(1, 1, FIRST),
        HeldByWorker(1, 1, 0),
    ],
    ids=["unknown job", "no such task", "negative", "never given out", "another's attempt", "no attempt"],
)
def test_what_a_joining_worker_was_never_given_is_stopped(held: HeldByWorker) -> None:
    rig = Rig()
    rig.submit(1, 3, requires="gpu")
    rig.join("a@p/1", 1, "gpu")
    rig.expect(
        fx.RecordWorker("b@p/1", True),
        fx.WelcomeWorker("b@p/1"),
        fx.StopAttempts("b@p/1", [held.attempt]),
        after=joined("b@p/1", held=[held]),
    )


def test_a_report_of_an_attempt_that_the_sender_never_had_is_refused() -> None:
    rig = Rig()
    rig.submit(1, 5)
    rig.join("a@p/1")
    rig.join("b@p/1")
    for outcome in (ended(1, 0, FIRST), ended(1, 4, FIRST + 50), ended(1, -1, FIRST), ended(1, 1, 0)):
        report = rig.report("b@p/1", outcome)
        rig.expect(fx.AcknowledgeReport("b@p/1", report.number), after=report)
    assert rig.scheduler.strays().refused == 4
    assert rig.scheduler.last_seq(1) == 0


def test_the_attempts_that_a_task_remembers_are_bounded() -> None:
    rig = Rig(superseded_max=2, losses_max=100)
    rig.submit(1, 1)
    for number in range(4):
        rig.join(f"w@p/{number}")
        lost(rig, f"w@p/{number}")
    rig.effects(rig.report("w@p/1", ended(1, 0, FIRST + 1)))
    assert rig.scheduler.strays().refused == 1
    rig.effects(rig.report("w@p/2", ended(1, 0, FIRST + 2)))
    assert rig.scheduler.job_state(1) is JobState.COMPLETED


def test_a_changed_offer_moves_the_worker_to_another_class() -> None:
    rig = Rig()
    rig.submit(1, 1, requires="gpu", slots=2)
    assert rig.join("a@p/1", 1) == []
    assert "0 of 1 worker provides GPU" in rig.scheduler.warning(1, rig.now)
    rig.expect(
        fx.WelcomeWorker("a@p/1"),
        fx.AssignTasks("a@p/1", 1, FIRST, [0]),
        fx.AnnounceJob(1),
        after=joined("a@p/1", 2, "GPU"),
    )
    assert rig.scheduler.totals() == (1, 2, 2)
    assert rig.scheduler.workers()["a@p/1"].offer == WorkerOffer(2, frozenset({"gpu"}))


# --- leases -------------------------------------------------------------------------------------------------


def test_a_silent_worker_is_probed_and_then_lost() -> None:
    rig = Rig(probe_s=5.0, lease_s=15.0)
    rig.join("a@p/1")
    rig.join("b@p/1")
    start = rig.now
    assert rig.scheduler.next_wake(start) == start + 5.0
    rig.now = start + 4.9
    rig.expect(after=[ev.WorkerHeard("b@p/1"), ev.TimePassed()])
    for probe in (5.0, 10.0):
        rig.now = start + probe
        rig.expect(fx.ProbeWorker("a@p/1"), after=[ev.WorkerHeard("b@p/1"), ev.TimePassed()])
    rig.now = start + 15.0
    rig.expect(
        fx.RecordWorker("a@p/1", False),
        fx.AnnounceWorkerLost("a@p/1", "not heard for 15.0 s", 0),
        fx.RefuseWorker("a@p/1", REFUSAL),
        fx.ProbeWorker("b@p/1"),
        after=ev.TimePassed(),
    )
    rig.expect(fx.RefuseWorker("a@p/1", REFUSAL), after=[ev.WorkerHeard("a@p/1"), ev.WorkerHeard("a@p/1")])


@pytest.mark.parametrize(
    "sign",
    [
        ev.WorkerHeard("a@p/1"),
        ev.AttemptsReported("a@p/1", 1, []),
        ev.AttemptsRevoked("a@p/1", 1, []),
        joined("a@p/1"),
    ],
    ids=["heard", "reported", "revoked", "joined"],
)
def test_every_message_of_a_worker_renews_its_lease(sign: ev.Event) -> None:
    rig = Rig(probe_s=5.0, lease_s=15.0)
    rig.join("a@p/1")
    rig.now += 14.0
    rig.effects(sign)
    rig.now += 14.0
    rig.expect(fx.ProbeWorker("a@p/1"), after=ev.TimePassed())


def test_nobody_is_lost_for_time_in_which_the_manager_stood_still() -> None:
    rig = Rig(probe_s=5.0, lease_s=15.0)
    rig.submit(1, 1)
    rig.join("a@p/1")
    rig.join("b@p/1")
    rig.now += 3600.0
    rig.expect(fx.ProbeWorker("a@p/1"), fx.ProbeWorker("b@p/1"), after=ev.TimePassed())
    for _ in range(2):
        rig.now += 5.0
        rig.expect(fx.ProbeWorker("a@p/1"), after=[ev.TimePassed(), ev.WorkerHeard("b@p/1")])
    rig.now += 4.9
    rig.expect(after=[ev.WorkerHeard("b@p/1"), ev.TimePassed()])
    rig.now += 0.1
    rig.expect(
        fx.RecordTrouble(1, 0, 0, 1),
        fx.RecordWorker("a@p/1", False),
        fx.AnnounceWorkerLost("a@p/1", "not heard for 15.0 s", 1),
        fx.RefuseWorker("a@p/1", REFUSAL),
        fx.AssignTasks("b@p/1", 1, FIRST + 1, [0]),
        fx.AnnounceJob(1),
        after=ev.TimePassed(),
    )


def test_whoever_speaks_first_after_a_standstill_excuses_all() -> None:
    """The tick need not be the first event of a manager that goes on."""
    rig = Rig(probe_s=5.0, lease_s=15.0)
    rig.join("a@p/1")
    rig.join("b@p/1")
    rig.now += 60.0
    rig.expect(after=ev.WorkerHeard("b@p/1"))
    rig.now += 0.1
    rig.expect(fx.ProbeWorker("a@p/1"), after=ev.TimePassed())
    assert rig.scheduler.has_worker("a@p/1")


def test_a_sign_of_life_counts_wherever_it_stands_in_its_batch() -> None:
    rig = Rig(probe_s=5.0, lease_s=15.0)
    rig.join("a@p/1")
    for _ in range(3):
        rig.now += 4.9
        rig.effects(ev.TimePassed())
    rig.now += 0.3
    rig.expect(after=[ev.TimePassed(), ev.WorkerHeard("a@p/1")])
    assert rig.scheduler.workers()["a@p/1"].heard == rig.now


def test_a_long_task_whose_worker_is_cut_off_again_and_again_is_no_poison() -> None:
    rig = Rig(losses_max=3)
    rig.submit(1, 1)
    rig.join("a@p/1")
    for _ in range(5):
        rig.expect(
            fx.RecordTrouble(1, 0, 0, 1),
            fx.RecordWorker("a@p/1", False),
            fx.AnnounceWorkerLost("a@p/1", "gone", 1),
            fx.AnnounceJob(1),
            after=ev.WorkerLost("a@p/1", "gone"),
        )
        rig.expect(
            fx.RecordWorker("a@p/1", True),
            fx.WelcomeWorker("a@p/1"),
            fx.RecordTrouble(1, 0, 0, 0),
            fx.AnnounceJob(1),
            after=joined("a@p/1", held=[HeldByWorker(1, 0, FIRST)]),
        )
    assert rig.scheduler.reruns(1) == 0
    assert rig.scheduler.trouble(1, 0) == (0, 0)


def test_a_drained_worker_gets_nothing_until_it_is_wanted_again() -> None:
    rig = Rig()
    rig.join("a@p/1")
    rig.expect(after=ev.WorkerDrained("a@p/1"))
    assert rig.submit(1, 1) == []
    warning = rig.scheduler.warning(1, rig.now)
    assert warning == "1 of 1 worker could run it, but all of them are draining or away."
    rig.expect(
        fx.AssignTasks("a@p/1", 1, FIRST, [0]),
        fx.AnnounceJob(1),
        after=ev.WorkerDrained("a@p/1", drained=False),
    )
    rig.expect(after=ev.WorkerDrained("nobody@p/1"))


def test_without_workers_and_restored_jobs_there_is_nothing_to_wait_for() -> None:
    assert Rig().scheduler.next_wake(5.0) is None


def test_all_who_still_have_a_task_are_stopped_and_what_they_give_back_then_is_not_queued() -> None:
    rig = two_attempts()
    rig.join("c@p/1")
    lost(rig, "b@p/1")
    rig.join("a@p/1", held=[HeldByWorker(1, 0, FIRST)])
    rig.join("b@p/1", held=[HeldByWorker(1, 0, FIRST + 1)])
    rig.expect(
        fx.RecordResult(1, 0, 1, TaskState.COMPLETED, FIRST + 2, "c@p/1", f"report of {FIRST + 2}"),
        fx.StopAttempts("a@p/1", [FIRST]),
        fx.StopAttempts("b@p/1", [FIRST + 1]),
        fx.AcknowledgeReport("c@p/1", 1),
        fx.RecordJobEnded(1, JobState.COMPLETED),
        fx.AnnounceJob(1),
        after=rig.report("c@p/1", ended(1, 0, FIRST + 2)),
    )
    rig.expect(after=ev.AttemptsRevoked("a@p/1", 1, [FIRST]))
    assert rig.scheduler.workers()["a@p/1"].in_hand == 0


def test_a_cancelled_task_that_fails_is_not_tried_again() -> None:
    rig = Rig()
    rig.submit(1, 1, retries=5)
    rig.join("a@p/1")
    rig.effects(ev.JobCancelled(1))
    rig.expect(
        fx.RecordResult(1, 0, 1, TaskState.FAILED, FIRST, "a@p/1", f"report of {FIRST}"),
        fx.AcknowledgeReport("a@p/1", 1),
        fx.RecordJobEnded(1, JobState.CANCELLED),
        fx.AnnounceJob(1),
        after=rig.report("a@p/1", ended(1, 0, FIRST, AttemptEnd.FAILED)),
    )
