"""Workers that fail what others finish, jobs that fail everywhere, and how to tell them apart."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from random import Random

import pytest
from core_rig import FIRST, Rig, ended, joined

from kestrel.core import effects as fx
from kestrel.core import events as ev
from kestrel.core.books import Books
from kestrel.core.model import (
    AttemptEnd,
    AttemptOutcome,
    HeldByWorker,
    JobCounts,
    JobState,
    JobTerms,
    TaskState,
)
from kestrel.core.quarantine import Row
from kestrel.errors import InternalError

BAD, GOOD = "bad@p/1", "good@p/1"
FAILED, COMPLETED = AttemptEnd.FAILED, AttemptEnd.COMPLETED


def result(task: int, seq: int, state: TaskState, attempt: int, worker: str) -> fx.RecordResult:
    return fx.RecordResult(1, task, seq, state, attempt, worker, f"report of {attempt}")


class Pool(Rig):
    """A rig in which one bad worker, which fails task after task, and a good one have a job of long tasks."""

    def __init__(self, size: int = 50, **terms: object) -> None:
        super().__init__()
        self.submit(1, size, **terms)
        self.hands: dict[str, list[tuple[int, int]]] = {BAD: [], GOOD: []}
        for name in (GOOD, BAD):
            self.do(joined(name))

    def do(self, *events: ev.Event) -> list[fx.Effect]:
        effects = self.effects(*events)
        for effect in effects:
            if isinstance(effect, fx.AssignTasks):
                self.hands[effect.worker] += enumerate(effect.tasks, effect.attempt)
        return effects

    def next_end(self, name: str, end: AttemptEnd) -> ev.AttemptsReported:
        """The oldest task in a hand ends."""
        attempt, task = self.hands[name].pop(0)
        return self.report(name, ended(1, task, attempt, end, wall_s=0.2))

    def ends(self, name: str, end: AttemptEnd, count: int = 1) -> list[fx.Effect]:
        return [effect for _ in range(count) for effect in self.do(self.next_end(name, end))]

    def is_barred(self) -> tuple[bool, bool]:
        """Quarantined; held back or quarantined."""
        view = self.scheduler.workers()[BAD]
        return view.quarantined, bool(view.reason)


def quarantined() -> Pool:
    """The bad worker is in quarantine, with an empty hand; the next probe is due in 30 s."""
    pool = Pool(retries=1)
    while not pool.is_barred()[0]:
        pool.ends(BAD, FAILED)
        pool.ends(GOOD, COMPLETED)
    while pool.hands[BAD]:
        pool.ends(BAD, FAILED)
    pool.do(ev.AttemptsRevoked(BAD, 1, []))
    return pool


def wait(pool: Rig, seconds: float) -> list[fx.Effect]:
    """Time goes by, with ticks and signs of life; the last tick's effects."""
    end = pool.now + seconds
    effects: list[fx.Effect] = []
    while pool.now < end:
        pool.now = min(end, pool.now + 4.0)
        names = pool.scheduler.workers()
        effects = pool.effects(*(ev.WorkerHeard(name) for name in names), ev.TimePassed())
    return effects


# --- into quarantine ----------------------------------------------------------------------------------------


def test_a_worker_that_fails_what_others_finish_is_quarantined_and_asked_to_give_back() -> None:
    pool = Pool(retries=3)
    for _ in range(4):
        pool.ends(BAD, FAILED)
        pool.ends(GOOD, COMPLETED, 2)
    assert pool.is_barred() == (False, False)
    attempt, task = pool.hands[BAD][0]
    reason = "it failed 5 tasks of job 1 in a row, while others completed 8"
    effects = pool.do(pool.next_end(BAD, FAILED))
    assert effects[:3] == [
        fx.RecordTrouble(1, task, 1, 0, False, (attempt,)),
        fx.AnnounceWorkerQuarantined(BAD, reason),
        fx.AcknowledgeReport(BAD, 5),
    ]
    assert fx.RevokeTasks(BAD, 1, len(pool.hands[BAD]) - 1) in effects
    assert not any(isinstance(e, fx.AssignTasks) and e.worker == BAD for e in effects)
    view = pool.scheduler.workers()[BAD]
    assert (view.quarantined, view.reason) == (True, reason)
    assert pool.scheduler.next_wake(pool.now) == pool.now + 5.0
    assert f"a worker was quarantined: {reason} by {BAD}" in pool.scheduler.story(1, None)[-1]


def test_what_a_quarantined_worker_still_runs_ends_as_usual() -> None:
    pool = Pool()
    while not pool.is_barred()[0]:
        pool.ends(BAD, FAILED)
        pool.ends(GOOD, COMPLETED)
    attempt, task = pool.hands[BAD][0]
    seq = pool.scheduler.last_seq(1) + 1
    number = pool.numbers[BAD] + 1
    effects = pool.do(pool.next_end(BAD, FAILED))
    assert effects[:2] == [
        result(task, seq, TaskState.FAILED, attempt, BAD),
        fx.AcknowledgeReport(BAD, number),
    ]
    attempt, task = pool.hands[BAD][0]
    effects = pool.do(pool.next_end(BAD, COMPLETED))
    assert effects[:2] == [
        result(task, seq + 1, TaskState.COMPLETED, attempt, BAD),
        fx.AcknowledgeReport(BAD, number + 1),
    ]
    assert pool.is_barred()[0], "it may have been started before the trouble"


def test_a_success_ends_the_row() -> None:
    pool = Pool()
    for _ in range(6):
        pool.ends(BAD, FAILED, 3)
        pool.ends(GOOD, COMPLETED)
        pool.ends(BAD, COMPLETED)
    assert pool.is_barred() == (False, False)


def test_a_success_in_the_middle_of_a_report_ends_the_row() -> None:
    rig = Rig()
    rig.submit(1, 200)
    rig.join(GOOD)
    given = rig.join(BAD, 30)[0]
    rig.effects(rig.report(GOOD, ended(1, 0, FIRST)))
    ends = [FAILED] * 6 + [COMPLETED] + [FAILED] * 4
    outcomes = [
        ended(1, t, a, end) for (a, t), end in zip(enumerate(given.tasks, given.attempt), ends, strict=False)
    ]
    rig.effects(rig.report(BAD, *outcomes))
    assert rig.scheduler.workers()[BAD].reason == ""
    assert rig.scheduler._books.pool.workers[BAD].rows[1].count == 4


def test_timeouts_cancellations_and_losses_make_no_row() -> None:
    pool = Pool(size=200, retries=100)
    for end in (AttemptEnd.TIMEOUT, AttemptEnd.CANCELLED, AttemptEnd.LOST):
        pool.ends(BAD, end, 3)
        pool.ends(GOOD, COMPLETED, 5)
        pool.ends(BAD, end, 3)
    assert pool.is_barred() == (False, False)


def test_a_worker_alone_is_never_in_trouble() -> None:
    rig = Rig()
    rig.submit(1, 40)
    rig.join(BAD)
    for number in range(40):
        rig.effects(rig.report(BAD, ended(1, number, FIRST + number, FAILED)))
    assert rig.scheduler.workers()[BAD].reason == ""
    assert rig.scheduler.job_state(1) is JobState.FAILED


def test_the_last_worker_that_could_run_a_job_is_not_quarantined_for_it() -> None:
    pool = Pool()
    pool.ends(BAD, FAILED, 4)
    pool.ends(GOOD, COMPLETED, 5)
    pool.do(ev.WorkerLost(GOOD, "gone"))
    pool.ends(BAD, FAILED, 10)
    assert pool.is_barred() == (False, False)


def test_nobody_is_quarantined_if_that_is_switched_off() -> None:
    pool = Pool()
    pool.scheduler._books.settings = type(pool.settings)(quarantine_failures=0)
    for _ in range(12):
        pool.ends(BAD, FAILED)
        pool.ends(GOOD, COMPLETED)
    assert pool.is_barred() == (False, False)


# --- held back until others have spoken ---------------------------------------------------------------------


def test_a_worker_whose_row_nobody_can_explain_yet_is_held_back_until_others_have_spoken() -> None:
    """The others are still at their first long task, and the bag must not be eaten meanwhile."""
    pool = Pool(size=1000)
    pool.ends(BAD, FAILED, 6)
    assert pool.is_barred() == (False, False)
    attempt, task = pool.hands[BAD][0]
    effects = pool.do(pool.next_end(BAD, FAILED))
    reason = "it failed 7 tasks of job 1 in a row, and waits for what others make of it"
    assert effects == [
        result(task, 7, TaskState.FAILED, attempt, BAD),
        fx.AcknowledgeReport(BAD, 7),
        fx.RevokeTasks(BAD, 1, len(pool.hands[BAD]) - 1),
        fx.AnnounceJob(1),
    ]
    assert pool.is_barred() == (False, True)
    assert pool.scheduler.workers()[BAD].reason == reason
    effects = pool.ends(GOOD, COMPLETED)
    assert pool.is_barred() == (False, True), "one success may be chance"
    effects = pool.ends(GOOD, COMPLETED)
    reason = "it failed 7 tasks of job 1 in a row, while others completed 2"
    assert fx.AnnounceWorkerQuarantined(BAD, reason) in effects


def test_a_worker_is_held_back_no_longer_when_others_fail_too() -> None:
    pool = Pool(size=1000)
    pool.ends(BAD, FAILED, 7)
    assert pool.is_barred() == (False, True)
    effects = pool.ends(GOOD, FAILED)
    assert pool.is_barred() == (False, False)
    assert GOOD in [e.worker for e in effects if isinstance(e, fx.AssignTasks)]
    pool.do(ev.AttemptsRevoked(BAD, 1, [attempt for attempt, _ in pool.hands[BAD]]))
    assert pool.scheduler.workers()[BAD].in_hand > 0


def test_a_worker_is_held_back_no_longer_when_nobody_is_left_who_could_speak() -> None:
    pool = Pool(size=1000)
    pool.ends(BAD, FAILED, 7)
    pool.do(ev.WorkerLost(GOOD, "gone"))
    assert pool.is_barred() == (False, True)
    pool.do(ev.TimePassed())
    assert pool.is_barred() == (False, False)


def test_a_job_that_ends_holds_nobody_back() -> None:
    pool = Pool(size=1000)
    pool.ends(BAD, FAILED, 7)
    pool.do(ev.JobCancelled(1))
    for name in (BAD, GOOD):
        attempts = [ended(1, task, attempt, AttemptEnd.CANCELLED) for attempt, task in pool.hands[name]]
        pool.effects(pool.report(name, *attempts))
    assert pool.scheduler.job_state(1) is JobState.CANCELLED
    assert pool.is_barred() == (False, False)


# --- probes -------------------------------------------------------------------------------------------------


def test_after_the_parole_one_task_is_given_as_a_probe_and_success_lifts_the_quarantine() -> None:
    pool = quarantined()
    until = pool.scheduler._books.quarantine.next_parole()
    assert until is not None
    assert wait(pool, until - pool.now - 0.5) == []
    assert pool.scheduler.next_wake(pool.now) == pytest.approx(until)
    pool.now = until
    effects = pool.do(ev.TimePassed())
    ((attempt, task),) = pool.hands[BAD]
    assert effects == [fx.AssignTasks(BAD, 1, attempt, [task]), fx.AnnounceJob(1)]
    assert pool.do(ev.TimePassed()) == [], "one at a time"
    seq = pool.scheduler.last_seq(1) + 1
    number = pool.numbers[BAD] + 1
    effects = pool.do(pool.next_end(BAD, COMPLETED))
    assert effects[:3] == [
        result(task, seq, TaskState.COMPLETED, attempt, BAD),
        fx.AnnounceQuarantineLifted(BAD, "it completed a probe"),
        fx.AcknowledgeReport(BAD, number),
    ]
    assert [type(e) for e in effects[3:]] == [fx.AssignTasks, fx.AnnounceJob]
    assert pool.is_barred() == (False, False)
    pool.ends(BAD, FAILED, 3)
    assert pool.is_barred() == (False, False), "everything is forgotten"


def test_a_probe_with_a_task_that_was_one_before_lifts_the_quarantine_too() -> None:
    pool = quarantined()
    for seconds, end in ((30.0, FAILED), (60.0, COMPLETED)):
        wait(pool, seconds)
        ((attempt, task),) = [(a.id, a.task) for a in pool.scheduler._books.pool.workers[BAD].hand.values()]
        effects = pool.effects(pool.report(BAD, ended(1, task, attempt, end)))
    assert effects[0] == fx.AnnounceQuarantineLifted(BAD, "it completed a probe")
    assert effects[1] == result(task, pool.scheduler.last_seq(1), TaskState.COMPLETED, attempt, BAD)


def test_a_failed_probe_is_blamed_on_the_worker_and_doubles_its_parole() -> None:
    pool = quarantined()
    for parole_s in (60.0, 120.0, 240.0, 480.0, 600.0, 600.0):
        wait(pool, (pool.scheduler._books.quarantine.next_parole() or 0.0) - pool.now)
        attempt = pool.scheduler._books.quarantine.barred[pool.scheduler._books.pool.workers[BAD]].probe
        assert attempt is not None
        before = pool.scheduler.trouble(1, attempt.task)
        effects = pool.effects(pool.report(BAD, ended(1, attempt.task, attempt.id, FAILED)))
        recorded = effects[0]
        assert isinstance(recorded, fx.RecordTrouble)
        assert (recorded.failures, recorded.losses) == before
        assert recorded.counted[-1] == attempt.id
        assert effects[1:] == [fx.AcknowledgeReport(BAD, pool.numbers[BAD]), fx.AnnounceJob(1)]
        assert pool.scheduler.trouble(1, attempt.task) == before
        assert pool.scheduler.task_state(1, attempt.task) is TaskState.QUEUED
        assert pool.scheduler.explain(1, attempt.task, pool.now)[0].endswith(
            "0 tasks of its job come before it."
        )
        assert pool.scheduler._books.quarantine.next_parole() == pytest.approx(pool.now + parole_s)
        assert pool.is_barred()[0]


def test_a_worker_is_acquitted_when_its_probe_fails_elsewhere_too() -> None:
    pool = quarantined()
    wait(pool, 30.0)
    ((attempt, task),) = [(a.id, a.task) for a in pool.scheduler._books.pool.workers[BAD].hand.values()]
    pool.effects(pool.report(BAD, ended(1, task, attempt, FAILED)))
    while pool.scheduler.task_state(1, task) is not TaskState.RUNNING:
        pool.ends(GOOD, COMPLETED)
    (again,) = [a for a, t in pool.hands[GOOD] if t == task]
    effects = pool.effects(pool.report(GOOD, ended(1, task, again, FAILED)))
    assert fx.AnnounceQuarantineLifted(BAD, "its probe failed on another worker as well") in effects
    assert pool.is_barred() == (False, False)


@pytest.mark.parametrize("what", ["stopped", "lost", "timeout", "given back", "forgotten"])
def test_a_probe_that_says_nothing_is_followed_by_another_after_the_same_time(what: str) -> None:
    pool = quarantined()
    wait(pool, 30.0)
    ((attempt, task),) = [(a.id, a.task) for a in pool.scheduler._books.pool.workers[BAD].hand.values()]
    ends = {"stopped": AttemptEnd.CANCELLED, "lost": AttemptEnd.LOST, "timeout": AttemptEnd.TIMEOUT}
    if what in ends:
        pool.effects(pool.report(BAD, ended(1, task, attempt, ends[what])))
    elif what == "given back":
        pool.effects(ev.AttemptsRevoked(BAD, 1, [attempt]))
    else:
        pool.effects(joined(BAD))
    assert pool.is_barred()[0]
    assert pool.scheduler.workers()[BAD].in_hand == 0
    assert pool.scheduler._books.quarantine.next_parole() == pytest.approx(pool.now + 30.0)


def test_tasks_that_must_not_run_twice_are_no_probes() -> None:
    rig = Rig()
    rig.submit(1, 60)
    rig.submit(2, 20, restart=False, priority=5, requires="x")
    rig.join(GOOD)
    hand = [*enumerate(rig.join(BAD, 1, "y")[0].tasks, FIRST + 2)]
    assert hand
    pool = quarantined()
    pool.do(ev.JobCancelled(1))
    pool.submit(2, 20, restart=False)
    assert wait(pool, 60.0) == []
    assert pool.scheduler.workers()[BAD].in_hand == 0
    assert "the next task that fits and may run again will be a probe" in " ".join(
        pool.scheduler.explain(2, None, pool.now)
    )
    assert [e.tasks for e in pool.submit(3, 1) if e.worker == BAD] == [[0]], "it waited for one that may"


def test_tasks_that_must_not_run_twice_are_probes_where_nobody_else_could_run_them() -> None:
    pool = quarantined()
    pool.do(ev.JobCancelled(1), ev.WorkerLost(GOOD, "gone"))
    pool.submit(2, 2, restart=False)
    assert pool.scheduler.workers()[BAD].in_hand == 0
    wait(pool, 30.0)
    ((attempt, task),) = [(a.id, a.task) for a in pool.scheduler._books.pool.workers[BAD].hand.values()]
    pool.do(joined(GOOD))
    pool.effects(pool.report(BAD, ended(2, task, attempt, FAILED)))
    assert pool.scheduler.task_state(2, task) is TaskState.FAILED, "it ran, and must not run twice"
    assert pool.is_barred()[0]


def test_a_job_that_fails_on_the_only_worker_that_could_run_it_comes_to_its_end() -> None:
    """Were the worker blamed for ever, it never would."""
    pool = quarantined()
    pool.do(ev.JobCancelled(1), ev.WorkerLost(GOOD, "gone"))
    pool.submit(2, 1, retries=1)
    for _ in range(2):
        wait(pool, (pool.scheduler._books.quarantine.next_parole() or 0.0) - pool.now)
        ((attempt, task),) = [(a.id, a.task) for a in pool.scheduler._books.pool.workers[BAD].hand.values()]
        effects = pool.effects(pool.report(BAD, ended(2, task, attempt, FAILED)))
    assert fx.RecordJobEnded(2, JobState.FAILED) in effects


def test_a_pardon_by_a_user_lifts_the_quarantine() -> None:
    pool = quarantined()
    pool.do(ev.WorkerDrained(BAD, drained=False))
    assert pool.is_barred()[0], "its owner is back: that says nothing of its health"
    effects = pool.do(ev.WorkerDrained(BAD, drained=False, pardoned=True))
    assert effects[0] == fx.AnnounceQuarantineLifted(BAD, "a user says that it is well")
    assert [e.worker for e in effects if isinstance(e, fx.AssignTasks)] == [BAD]
    assert pool.is_barred() == (False, False)
    assert pool.do(ev.WorkerDrained("nobody@p/1", drained=False, pardoned=True)) == []


def test_a_drained_worker_gets_no_probe_before_it_is_wanted_again() -> None:
    pool = quarantined()
    pool.do(ev.WorkerDrained(BAD))
    assert wait(pool, 60.0) == []
    effects = pool.do(ev.WorkerDrained(BAD, drained=False))
    assert [type(e) for e in effects] == [fx.AssignTasks, fx.AnnounceJob]
    assert pool.is_barred()[0]


def test_quarantine_survives_a_rejoin_and_is_forgotten_with_a_worker_that_leaves() -> None:
    pool = quarantined()
    pool.do(joined(BAD))
    assert pool.is_barred()[0]
    pool.do(ev.WorkerLost(BAD, "gone"))
    pool.do(joined(BAD))
    assert pool.is_barred() == (False, False)


def test_a_probe_that_a_worker_came_back_with_is_still_its_probe() -> None:
    pool = quarantined()
    wait(pool, 30.0)
    ((attempt, task),) = [(a.id, a.task) for a in pool.scheduler._books.pool.workers[BAD].hand.values()]
    pool.effects(joined(BAD, held=[HeldByWorker(1, task, attempt)]))
    effects = pool.effects(pool.report(BAD, ended(1, task, attempt)))
    assert fx.AnnounceQuarantineLifted(BAD, "it completed a probe") in effects


def test_people_are_told_who_is_in_quarantine_and_when_it_is_tried_again() -> None:
    pool = quarantined()
    pool.now += 2.0
    reason = pool.scheduler.workers()[BAD].reason
    lines = pool.scheduler.explain(1, None, pool.now)
    assert f"1 worker is in quarantine ({BAD}: {reason}); the next probe task follows in 28 s." in lines
    pool.do(ev.WorkerDrained(GOOD))
    warning = pool.scheduler.warning(1, pool.now)
    assert warning.startswith("2 of 2 workers could run it, but all of them are draining, away or in trouble")
    wait(pool, 28.0)
    assert "a probe task is under way." in " ".join(pool.scheduler.explain(1, None, pool.now))


# --- whole bags ---------------------------------------------------------------------------------------------


def run_bag(
    workers: dict[str, Callable[[int], tuple[AttemptEnd, float]]],
    tasks: int,
    retries: int = 0,
    slots: int = 1,
) -> tuple[Rig, set[str], float]:
    """Work off a bag; each worker says how a task ends on it, and when. Also who was ever quarantined, and
    how long it took."""
    rig = Rig()
    ever: set[str] = set()
    queue: list[tuple[float, int, str, int, int]] = []
    waiting: dict[str, list[tuple[int, int]]] = {name: [] for name in workers}
    free = dict.fromkeys(workers, slots)
    serial = 0

    def step(*events: ev.Event) -> None:
        nonlocal serial
        todo = [*events]
        while todo:
            effects = rig.scheduler.handle(todo, rig.now)
            todo = []
            for effect in effects:
                if isinstance(effect, fx.AssignTasks):
                    waiting[effect.worker] += enumerate(effect.tasks, effect.attempt)
                elif isinstance(effect, fx.RevokeTasks):
                    back = waiting[effect.worker][-effect.count :]
                    del waiting[effect.worker][-effect.count :]
                    todo.append(ev.AttemptsRevoked(effect.worker, effect.job, [a for a, _ in back]))
                elif isinstance(effect, fx.AnnounceWorkerQuarantined):
                    ever.add(effect.worker)
            for name in workers:
                while free[name] and waiting[name]:
                    attempt, task = waiting[name].pop(0)
                    free[name] -= 1
                    serial += 1
                    heapq.heappush(queue, (rig.now + workers[name](task)[1], serial, name, attempt, task))

    step(*(joined(name, slots) for name in workers))
    rig.scheduler.handle([], rig.now)
    step(ev.JobSubmitted(1, rig_terms(retries), tasks))
    tick = rig.now
    while rig.scheduler.job_state(1) in (JobState.PENDING, JobState.RUNNING):
        assert rig.now < 1e6, "the bag is never done"
        if queue and queue[0][0] <= tick + 1.0:
            rig.now, _, name, attempt, task = heapq.heappop(queue)
            free[name] += 1
            end, wall_s = workers[name](task)
            step(rig.report(name, AttemptOutcome(1, task, attempt, end, wall_s)))
        else:
            rig.now = tick = tick + 1.0
            step(*(ev.WorkerHeard(name) for name in workers), ev.TimePassed())
    rig.scheduler.check_invariants()
    return rig, ever, rig.now - 1000.0


def rig_terms(retries: int) -> JobTerms:
    return JobTerms("ann", retries=retries)


def fine(wall_s: float) -> Callable[[int], tuple[AttemptEnd, float]]:
    return lambda task: (COMPLETED, wall_s)


def broken(wall_s: float) -> Callable[[int], tuple[AttemptEnd, float]]:
    return lambda task: (FAILED, wall_s)


@pytest.mark.parametrize("wall_s", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("slots", [1, 4])
def test_a_black_hole_does_not_eat_the_bag(wall_s: float, slots: int) -> None:
    """One of four workers fails each task in a millisecond; nothing is tried again."""
    workers = {f"good@p/{n}": fine(wall_s) for n in range(3)}
    rig, ever, _ = run_bag({BAD: broken(0.001)} | workers, 1000, slots=slots)
    assert ever == {BAD}
    assert rig.scheduler.counts(1).failed <= 12 * slots
    assert rig.scheduler.counts(1).completed >= 1000 - 12 * slots


def test_two_black_holes_of_four_cost_more_but_not_the_bag() -> None:
    workers = {
        "good@p/1": fine(1.0),
        "good@p/2": fine(1.0),
        "bad@p/1": broken(0.001),
        "bad@p/2": broken(0.001),
    }
    rig, ever, _ = run_bag(workers, 1000)
    assert ever == {"bad@p/1", "bad@p/2"}
    assert rig.scheduler.counts(1).failed <= 100


def test_with_retries_a_black_hole_costs_no_task() -> None:
    workers = {f"good@p/{n}": fine(1.0) for n in range(3)}
    rig, _, _ = run_bag({BAD: broken(0.001)} | workers, 300, retries=3)
    assert rig.scheduler.counts(1) == JobCounts(completed=300)


@pytest.mark.parametrize("wall_s", [0.001, 1.0])
def test_a_job_that_fails_everywhere_quarantines_nobody_and_is_not_slowed_down(wall_s: float) -> None:
    rig, ever, took_s = run_bag({f"w@p/{n}": broken(wall_s) for n in range(4)}, 400)
    assert ever == set()
    assert rig.scheduler.counts(1).failed == 400
    assert took_s <= 100 * wall_s * 1.5 + 1.0


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("seed", range(3))
def test_a_job_whose_tasks_often_fail_quarantines_nobody(share: float, seed: int) -> None:
    """As when exit code 1 says that nothing was found."""
    random = Random(seed)
    fails = [random.random() < share for _ in range(3000)]

    def run(task: int) -> tuple[AttemptEnd, float]:
        return (FAILED if fails[task] else COMPLETED), 0.5 + task % 7 / 7

    rig, ever, took_s = run_bag({f"w@p/{n}": run for n in range(4)}, 3000)
    assert ever == set()
    assert rig.scheduler.counts(1).failed == sum(fails)
    assert took_s <= 3000 / 4 * 1.1


def test_a_stretch_of_bad_tasks_in_a_good_job_costs_little() -> None:
    rig, _, took_s = run_bag(
        {f"w@p/{n}": lambda t: ((FAILED if 300 <= t < 500 else COMPLETED), 1.0) for n in range(4)}, 1000
    )
    assert rig.scheduler.counts(1) == JobCounts(completed=800, failed=200)
    assert took_s <= 250 * 1.5


def test_a_machine_that_mends_itself_works_again_after_a_probe() -> None:
    asked: list[int] = []

    def mended(task: int) -> tuple[AttemptEnd, float]:
        asked.append(task)
        return (FAILED, 0.001) if len(asked) < 22 else (COMPLETED, 1.0)

    workers = {f"good@p/{n}": fine(1.0) for n in range(3)}
    rig, ever, _ = run_bag({BAD: mended} | workers, 1000)
    assert ever == {BAD}
    view = rig.scheduler.workers()[BAD]
    assert not view.quarantined
    assert view.completed > 20


def test_many_workers_in_quarantine_have_their_probes_in_turn() -> None:
    """However many wait for a probe, an event looks at a few."""
    bad = {f"bad@p/{n}": broken(0.001) for n in range(9)}
    workers = bad | {f"good@p/{n}": fine(1.0) for n in range(9)}
    rig, ever, _ = run_bag(workers, 3000, retries=20)
    assert ever == set(bad)
    assert rig.scheduler.counts(1) == JobCounts(completed=3000)
    probed = [view.failed for name, view in rig.scheduler.workers().items() if name in bad]
    assert min(probed) >= 5 + 2, "everybody had several probes"


# --- the check of the state: one planted fault per kind -----------------------------------------------------


def _unlisted(books: Books) -> None:
    books.quarantine.barred.clear()


def _no_place(books: Books) -> None:
    books.quarantine.paroles.discard(books.pool.workers[BAD])


def _two_places(books: Books) -> None:
    books.quarantine.ready[books.pool.workers[BAD]] = None


def _unproven(books: Books) -> None:
    books.quarantine.barred[books.pool.workers[BAD]].proven = False


def _wrong_suspect(books: Books) -> None:
    books.jobs[1].suspects[books.pool.workers[GOOD]] = None


def _wrong_line(books: Books) -> None:
    books.quarantine.asking[books.pool.workers[GOOD]] = None


def _empty_row(books: Books) -> None:
    books.pool.workers[GOOD].rows[1] = Row(0, 0)


def _open(books: Books) -> None:
    books.pool.workers[BAD].bar = None


@pytest.mark.parametrize(
    "fault",
    [_unlisted, _no_place, _two_places, _unproven, _wrong_suspect, _wrong_line, _empty_row, _open],
)
def test_the_invariant_check_finds_a_planted_fault_of_quarantine(fault: Callable[[Books], None]) -> None:
    pool = quarantined()
    fault(pool.scheduler._books)
    with pytest.raises(InternalError):
        pool.scheduler.check_invariants()
