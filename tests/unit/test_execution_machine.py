"""The worker's execution machine, case by case: every effect of every event."""

from __future__ import annotations

from kestrel.core import execution_events as xe
from kestrel.core.execution import Execution, ExecutionSettings
from kestrel.core.model import HeldByWorker

FIRST = (1 << 30) + 1


def render(ending: xe.Ending) -> xe.Finished:
    body = f"{ending.end.value} {ending.reason}".strip().encode()
    return xe.Finished(ending.job, ending.task, ending.attempt, body, 10)


class Worker:
    """A machine that has been welcomed, with a clock; announcements are set aside."""

    def __init__(self, slots: int = 2, welcome: bool = True, **settings: float) -> None:
        self.now = 100.0
        self.machine = Execution(ExecutionSettings(slots=slots, **settings), render, life=1)  # type: ignore[arg-type]
        if welcome:
            self.do(xe.ManagerWelcomed(1, 0.005, 1000))

    def do(self, event: xe.ExecutionEvent) -> list[xe.ExecutionEffect]:
        effects = self.machine.handle(event, self.now)
        self.machine.check()
        return [e for e in effects if not isinstance(e, xe.AnnounceLoad)]

    def tasks(self, attempt: int, count: int = 1, job: int = 1, slots: int = 1) -> list[xe.ExecutionEffect]:
        return self.do(xe.TasksReceived(job, attempt, list(range(count)), None, "spec", slots))

    def end(self, *attempts: int, wall_s: float = 1.0) -> list[xe.ExecutionEffect]:
        return self.do(xe.ProcessesEnded([xe.ProcessEnd(a, 0, wall_s) for a in attempts]))


def start(attempt: int, task: int, job: int = 1, slots: int = 1) -> xe.AttemptStart:
    return xe.AttemptStart(job, task, attempt, None, "spec", slots)


def done(attempt: int, task: int, text: str = "completed", job: int = 1) -> xe.Finished:
    return xe.Finished(job, task, attempt, text.encode(), 10)


def test_tasks_start_in_order_as_slots_come_free_and_are_reported_together() -> None:
    w = Worker()
    assert w.tasks(10, 3) == [xe.StartAttempts([start(10, 0), start(11, 1)])]
    assert w.end(11) == [xe.StartAttempts([start(12, 2)]), xe.KeepFinished([done(11, 1)])]
    assert w.machine.deadline() == w.now + 0.005
    w.now += 0.005
    assert w.do(xe.DeadlineReached()) == [xe.SendReport(FIRST, [done(11, 1)])]
    assert w.end(10) == [xe.KeepFinished([done(10, 0)])], "one report at a time"
    assert w.do(xe.ReportStored(FIRST)) == [xe.ForgetFinished([11])]
    assert w.end(12) == [
        xe.KeepFinished([done(12, 2)]),
        xe.SendReport(FIRST + 1, [done(10, 0), done(12, 2)]),
    ], "nothing runs any more: no reason to wait"


def test_a_wide_task_is_not_overtaken() -> None:
    w = Worker(slots=3)
    w.tasks(1, 2)
    assert w.tasks(10, 1, job=2, slots=2) == []
    assert w.tasks(20, 1) == [], "one slot is free, and belongs to the wide task"
    assert w.end(1)[0] == xe.StartAttempts([start(10, 0, job=2, slots=2)])
    assert w.end(2)[0] == xe.StartAttempts([start(20, 0)])


def test_a_task_too_wide_for_this_worker_is_reported_as_lost() -> None:
    text = "lost the task takes 3 slots and this worker has 2"
    assert Worker().tasks(5, 1, slots=3) == [
        xe.KeepFinished([done(5, 0, text)]),
        xe.SendReport(FIRST, [done(5, 0, text)]),
    ]


def test_tasks_of_a_job_without_specification_are_reported_as_lost_not_dropped() -> None:
    w = Worker()
    finished = done(5, 7, "lost this worker does not know the specification of job 3", job=3)
    effects = w.do(xe.TasksReceived(3, 5, [7]))
    assert effects == [xe.KeepFinished([finished]), xe.SendReport(FIRST, [finished])]


def test_a_new_life_of_the_manager_must_tell_specifications_again() -> None:
    w = Worker()
    w.tasks(1)
    w.do(xe.ManagerWelcomed(1, 0.005, 1000))
    assert w.do(xe.TasksReceived(1, 2, [1])) == [xe.StartAttempts([start(2, 1)])]
    w.do(xe.ManagerWelcomed(2, 0.005, 1000))
    assert w.do(xe.TasksReceived(1, 3, [2]))[0] == xe.KeepFinished(
        [done(3, 2, "lost this worker does not know the specification of job 1")]
    )


def test_an_attempt_that_was_assigned_before_is_ignored() -> None:
    w = Worker(slots=1)
    w.tasks(1, 2)
    assert w.tasks(1, 2) == []
    w.end(1)
    w.end(2)
    w.now += 1
    w.do(xe.DeadlineReached())
    w.do(xe.ReportStored(FIRST))
    assert w.tasks(1, 1) == []
    assert w.machine.counters.duplicates == 3


def test_revocation_takes_from_the_tail_and_only_of_that_job() -> None:
    w = Worker(slots=1)
    w.tasks(1, 3)
    w.tasks(10, 2, job=2)
    w.tasks(4, 1)
    assert w.do(xe.RevocationRequested(1, 2)) == [xe.SendRevoked(1, [4, 3])]
    assert w.do(xe.RevocationRequested(3, 5)) == [xe.SendRevoked(3, [])], "always answered"
    assert w.end(1)[0] == xe.StartAttempts([start(2, 1)])


def test_what_does_not_fit_into_the_queue_is_given_back() -> None:
    w = Worker(slots=1, queued_max=2)
    assert w.tasks(1, 4) == [xe.SendRevoked(1, [3, 4]), xe.StartAttempts([start(1, 0)])]


def test_stop_of_waiting_running_finished_and_unknown_attempts() -> None:
    w = Worker(slots=1)
    w.tasks(1, 2)
    waiting = done(2, 1, "cancelled stopped before it was started")
    assert w.do(xe.StopRequested([1, 2, 99])) == [xe.StopProcesses([1]), xe.KeepFinished([waiting])]
    assert w.do(xe.StopRequested([1, 2])) == []
    running = done(1, 0, "cancelled stopped on request")
    assert w.end(1) == [xe.KeepFinished([running]), xe.SendReport(FIRST, [waiting, running])]
    assert w.machine.counters.unknown_stops == 1


def test_failure_timeout_and_a_command_that_cannot_start_are_told_apart() -> None:
    w = Worker(slots=3)
    w.tasks(1, 3)
    ends = [
        xe.ProcessEnd(1, 3, 1.0),
        xe.ProcessEnd(2, None, 1.0, timed_out=True),
        xe.ProcessEnd(3, 127, 1.0, reason="command not found: x"),
    ]
    kept = w.do(xe.ProcessesEnded(ends))[0]
    assert kept == xe.KeepFinished(
        [done(1, 0, "failed"), done(2, 1, "timeout"), done(3, 2, "failed command not found: x")]
    )


def test_a_dead_launcher_means_lost_attempts() -> None:
    w = Worker()
    w.tasks(1, 3)
    text = "lost the worker's launcher process died, and the task was killed"
    assert w.do(xe.LauncherFailed([1, 2])) == [
        xe.StartAttempts([start(3, 2)]),
        xe.KeepFinished([done(1, 0, text), done(2, 1, text)]),
    ]
    assert w.end(1) == [], "a late end of a lost attempt changes nothing"


def test_without_a_manager_work_goes_on_and_results_wait_up_to_a_bound() -> None:
    w = Worker(slots=1, finished_max=2)
    w.tasks(1, 4)
    w.do(xe.ManagerLost())
    assert w.end(1) == [xe.StartAttempts([start(2, 1)]), xe.KeepFinished([done(1, 0)])]
    assert w.end(2) == [xe.KeepFinished([done(2, 1)])], "two wait already: nothing new is started"
    assert w.machine.deadline() is None
    held = [HeldByWorker(1, i, i + 1) for i in range(4)]
    assert w.do(xe.IntroductionDue(100)) == [xe.SendProfile(held)]
    w.do(xe.ManagerWelcomed(2, 0.005, 1000))
    w.now += 0.005
    assert w.do(xe.DeadlineReached()) == [xe.SendReport(FIRST, [done(1, 0), done(2, 1)])]
    assert w.do(xe.ReportStored(FIRST)) == [xe.ForgetFinished([1, 2]), xe.StartAttempts([start(3, 2)])]


def test_after_a_break_what_was_out_is_reported_anew_and_old_acknowledgements_count_for_nothing() -> None:
    w = Worker()
    w.tasks(1)
    assert w.end(1)[-1] == xe.SendReport(FIRST, [done(1, 0)])
    w.do(xe.ManagerLost())
    assert w.do(xe.ReportStored(FIRST)) == []
    assert w.do(xe.ManagerWelcomed(2, 0.005, 1000)) == [xe.SendReport(FIRST + 1, [done(1, 0)])]
    assert w.do(xe.ReportStored(FIRST)) == []
    assert w.machine.counters.stale_acknowledgements == 2
    assert w.do(xe.ReportStored(FIRST + 1)) == [xe.ForgetFinished([1])]


def test_a_report_without_acknowledgement_is_sent_again_unchanged() -> None:
    w = Worker()
    w.tasks(1)
    report = w.end(1)[-1]
    w.now += 1.0
    assert w.do(xe.DeadlineReached()) == []
    assert w.machine.deadline() == w.now + 19.0
    w.now += 19.0
    assert w.do(xe.DeadlineReached()) == [report]


def test_reports_are_bounded_by_bytes_and_count() -> None:
    w = Worker(slots=8, report_attempts_max=3)
    w.tasks(1, 8)
    first = w.end(*range(1, 9))[-1]
    assert isinstance(first, xe.SendReport)
    assert len(first.finished) == 3
    w.do(xe.ManagerWelcomed(1, 0.005, 25))
    effects = w.do(xe.ReportStored(FIRST + 1))
    assert [len(e.finished) for e in effects if isinstance(e, xe.SendReport)] == [2]


def test_results_of_an_earlier_life_are_held_and_reported_under_numbers_of_this_life() -> None:
    machine = Execution(ExecutionSettings(), render, life=7, restored=[done(1, 0)])
    assert machine.handle(xe.IntroductionDue(9), 0.0) == [xe.SendProfile([HeldByWorker(1, 0, 1)])]
    effects = machine.handle(xe.ManagerWelcomed(1, 0.005, 1000), 0.0)
    assert effects == [xe.SendReport((7 << 30) + 1, [done(1, 0)]), xe.AnnounceLoad(0, 1, 0, False, ())]


def test_quick_tasks_are_handed_over_ahead_and_taken_back_when_they_are_slow_after_all() -> None:
    w = Worker(slots=1, handover_s=0.02, handover_max=2)
    w.tasks(1, 6)
    assert w.end(1, wall_s=0.001)[0] == xe.StartAttempts([start(2, 1), start(3, 2), start(4, 3)])
    back = w.do(
        xe.ProcessesEnded([xe.ProcessEnd(3, None, unstarted=True), xe.ProcessEnd(4, None, unstarted=True)])
    )
    assert all(isinstance(e, xe.SendReport) for e in back), "nothing is started ahead now"
    assert w.end(2, wall_s=1.0)[0] == xe.StartAttempts([start(3, 2)]), "its old place in the queue"


def test_shutting_down_gives_back_finishes_and_leaves() -> None:
    w = Worker(slots=1)
    w.tasks(1, 3)
    assert w.do(xe.ShutdownRequested()) == [xe.SendRevoked(1, [2, 3])]
    assert w.tasks(9) == [xe.SendRevoked(1, [9])]
    assert w.end(1) == [xe.KeepFinished([done(1, 0)]), xe.SendReport(FIRST, [done(1, 0)])]
    assert w.do(xe.ReportStored(FIRST)) == [xe.ForgetFinished([1]), xe.LeavePool()]


def test_shutting_down_at_once_stops_what_runs_and_does_not_wait_for_a_manager_that_is_gone() -> None:
    w = Worker(slots=1)
    w.tasks(1, 2)
    w.do(xe.ManagerLost())
    assert w.do(xe.ShutdownRequested(kill=True)) == [xe.StopProcesses([1])]
    assert w.end(1) == [xe.KeepFinished([done(1, 0, "cancelled stopped on request")]), xe.LeavePool()]


def test_the_load_is_announced_when_it_changes_at_most_once_a_second() -> None:
    machine = Execution(ExecutionSettings(slots=2), render, life=1)
    assert machine.handle(xe.ManagerWelcomed(1, 0.0, 1000), 0.0) == [xe.AnnounceLoad(0, 2, 0, False, ())]
    effects = machine.handle(xe.TasksReceived(4, 1, [0], None, "spec", 1), 0.1)
    assert effects == [xe.StartAttempts([start(1, 0, job=4)])]
    assert machine.deadline() == 1.0
    assert machine.handle(xe.DeadlineReached(), 1.0) == [xe.AnnounceLoad(1, 2, 0, False, (4,))]
    assert machine.handle(xe.DeadlineReached(), 5.0) == []
    assert machine.deadline() is None


def test_a_profile_that_cannot_name_all_gives_up_what_waits_last() -> None:
    w = Worker(slots=1)
    w.tasks(1, 4)
    held = [HeldByWorker(1, 0, 1), HeldByWorker(1, 1, 2)]
    assert w.do(xe.IntroductionDue(2)) == [xe.SendProfile(held)]
    assert not w.machine.is_waiting(3)
