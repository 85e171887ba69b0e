"""The worker's execution machine while managers take over from each other, and while its disk is full."""

from __future__ import annotations

from test_execution_machine import FIRST, Worker, done, start

from kestrel.core import execution_events as xe
from kestrel.core.model import HeldByWorker, first_attempt

OLD, NEW = first_attempt(6), first_attempt(7)


def welcome(epoch: int) -> xe.ManagerWelcomed:
    return xe.ManagerWelcomed(epoch, 0.005, 1000)


def worker_of(epoch: int, slots: int = 2) -> Worker:
    w = Worker(slots, welcome=False)
    assert w.do(welcome(epoch)) == []
    return w


def test_what_runs_goes_on_under_the_next_manager_and_is_reported_to_it() -> None:
    w = worker_of(6)
    assert w.tasks(OLD, 3) == [xe.StartAttempts([start(OLD, 0), start(OLD + 1, 1)])]
    w.do(xe.ManagerLost())
    held = [HeldByWorker(1, i, OLD + i) for i in range(3)]
    assert w.do(xe.IntroductionDue(10)) == [xe.SendProfile(held)]
    assert w.do(welcome(7)) == []
    assert w.end(OLD) == [xe.StartAttempts([start(OLD + 2, 2)]), xe.KeepFinished([done(OLD, 0)])]
    w.now += 0.005
    assert w.do(xe.DeadlineReached()) == [xe.SendReport(FIRST, [done(OLD, 0)])]
    assert w.do(xe.ReportStored(FIRST, 7)) == [xe.ForgetFinished([OLD])]


def test_the_welcome_of_an_older_life_changes_nothing() -> None:
    w = worker_of(7)
    w.tasks(NEW)
    assert w.do(welcome(6)) == []
    assert w.machine.counters.old_welcomes == 1
    assert w.machine.welcomed
    assert w.do(xe.TasksReceived(1, NEW + 1, [1])) == [
        xe.StartAttempts([xe.AttemptStart(1, 1, NEW + 1, None, "spec", 1)])
    ], "the specification is still known"


def test_an_older_life_cannot_welcome_a_worker_that_waits_for_the_newer() -> None:
    w = worker_of(7)
    w.do(xe.ManagerLost())
    assert w.do(welcome(6)) == []
    assert not w.machine.welcomed
    assert w.machine.deadline() is None
    w.do(welcome(7))
    assert w.machine.welcomed


def test_tasks_of_another_life_are_dropped_and_neither_reported_nor_given_back() -> None:
    w = worker_of(7)
    assert w.tasks(OLD, 2) == []
    assert w.tasks(first_attempt(8), 1) == []
    assert w.machine.counters.foreign_tasks == 3
    assert w.do(xe.IntroductionDue(10)) == [xe.SendProfile([])]
    assert w.do(xe.ShutdownRequested()) == [xe.LeavePool()]


def test_tasks_that_come_before_the_first_welcome_are_dropped() -> None:
    """They were meant for the process that had this address before."""
    w = Worker(welcome=False)
    assert w.tasks(NEW) == []
    assert w.machine.counters.foreign_tasks == 1
    w.do(welcome(7))
    assert w.tasks(NEW) == [xe.StartAttempts([start(NEW, 0)])], "and may be given again"


def test_tasks_that_arrive_in_a_break_belong_to_the_life_that_gave_them() -> None:
    w = worker_of(7)
    w.do(xe.ManagerLost())
    assert w.tasks(NEW) == [xe.StartAttempts([start(NEW, 0)])]
    w.do(welcome(8))
    assert w.tasks(NEW + 1) == []
    assert w.machine.counters.foreign_tasks == 1


def test_only_the_life_that_welcomed_can_acknowledge() -> None:
    w = worker_of(6)
    w.tasks(OLD)
    assert w.end(OLD)[-1] == xe.SendReport(FIRST, [done(OLD, 0)])
    w.do(xe.ManagerLost())
    assert w.do(welcome(7)) == [xe.SendReport(FIRST + 1, [done(OLD, 0)])]
    assert w.do(xe.ReportStored(FIRST + 1, 6)) == []
    assert w.do(xe.ReportStored(FIRST + 1, 8)) == []
    assert w.machine.counters.old_acknowledgements == 2
    assert w.do(xe.ReportStored(FIRST + 1, 7)) == [xe.ForgetFinished([OLD])]


def test_an_acknowledgement_that_names_no_life_counts() -> None:
    w = worker_of(7)
    w.tasks(NEW)
    w.end(NEW)
    assert w.do(xe.ReportStored(FIRST)) == [xe.ForgetFinished([NEW])]


# --- a spool that cannot be written -------------------------------------------------------------------------


def test_while_the_spool_fails_nothing_is_started_but_what_ends_is_reported() -> None:
    w = worker_of(7, slots=1)
    w.tasks(NEW, 3)
    assert w.do(xe.SpoolFailed()) == []
    assert w.end(NEW) == [xe.KeepFinished([done(NEW, 0)])], "no other takes the slot"
    w.now += 0.005
    assert w.do(xe.DeadlineReached()) == [xe.SendReport(FIRST, [done(NEW, 0)])]
    assert w.do(xe.ReportStored(FIRST, 7)) == [xe.ForgetFinished([NEW])]
    assert w.tasks(NEW + 3) == []
    assert w.do(xe.RevocationRequested(1, 1)) == [xe.SendRevoked(1, [NEW + 3])]
    assert w.do(xe.SpoolMended()) == [xe.StartAttempts([start(NEW + 1, 1)])]


def test_a_worker_whose_spool_fails_can_be_shut_down() -> None:
    w = worker_of(7, slots=1)
    w.tasks(NEW, 2)
    w.do(xe.SpoolFailed())
    assert w.do(xe.ShutdownRequested(kill=True)) == [
        xe.SendRevoked(1, [NEW + 1]),
        xe.StopProcesses([NEW]),
    ]
    cancelled = done(NEW, 0, "cancelled stopped on request")
    assert w.end(NEW) == [xe.KeepFinished([cancelled]), xe.SendReport(FIRST, [cancelled])]
    assert w.do(xe.ReportStored(FIRST)) == [xe.ForgetFinished([NEW]), xe.LeavePool()]


def test_a_stop_counts_for_attempts_of_earlier_lives() -> None:
    w = worker_of(6, slots=1)
    w.tasks(OLD, 2)
    w.do(welcome(7))
    waiting = done(OLD + 1, 1, "cancelled stopped before it was started")
    assert w.do(xe.StopRequested([OLD, OLD + 1])) == [xe.StopProcesses([OLD]), xe.KeepFinished([waiting])]
