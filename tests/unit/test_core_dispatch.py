"""How much goes to whom, in which order, and how it is balanced."""

from __future__ import annotations

import pytest
from core_rig import FIRST, Rig, ended, joined, submitted

from kestrel.core import effects as fx
from kestrel.core import events as ev
from kestrel.core.model import JobCounts


def work_off(
    rig: Rig, name: str, job: int, attempts: range, wall_s: float, first_task: int = 0
) -> list[fx.AssignTasks]:
    """A worker reports tasks that were given out in order, attempt by attempt."""
    outcomes = [ended(job, first_task + i, a, wall_s=wall_s) for i, a in enumerate(attempts)]
    return rig.given(rig.report(name, *outcomes))


def test_batches_of_short_tasks_grow_to_the_look_ahead_and_are_refilled_at_half() -> None:
    rig = Rig(lookahead_s=1.0, batch_max=1000, backlog_max=4000)
    rig.submit(1, 1_000_000)
    sizes = [len(rig.join("a@p/1", 2)[0].tasks)]
    done = 0
    for _ in range(9):
        in_hand = rig.scheduler.counts(1).running
        given = work_off(rig, "a@p/1", 1, range(FIRST + done, FIRST + done + in_hand), 0.0009, done)
        done += in_hand
        sizes.append(sum(len(a.tasks) for a in given))
    assert sizes[:4] == [3, 8, 24, 72]
    assert sizes[-1] == 2000
    half = work_off(rig, "a@p/1", 1, range(FIRST + done, FIRST + done + 880), 0.0009, done)
    assert half == [], "more than half of a full hand (2 * 1112) is left"
    done += 880
    more = work_off(rig, "a@p/1", 1, range(FIRST + done, FIRST + done + 10), 0.0009, done)
    assert [len(a.tasks) for a in more] == [1000]


def test_long_tasks_travel_alone() -> None:
    rig = Rig(lookahead_s=1.0)
    rig.submit(1, 100)
    assert rig.join("a@p/1", 2)[0].tasks == [0, 1, 2]
    assert work_off(rig, "a@p/1", 1, range(FIRST, FIRST + 1), 60.0) == []
    given = work_off(rig, "a@p/1", 1, range(FIRST + 1, FIRST + 2), 60.0, 1)
    assert [a.tasks for a in given] == [[3]]
    assert rig.scheduler.counts(1).running == 2


def test_a_batch_and_a_hand_are_bounded() -> None:
    rig = Rig(batch_max=3, backlog_max=8)
    rig.submit(1, 100)
    given = rig.join("a@p/1", 20)
    assert [len(a.tasks) for a in given] == [3, 3, 2]
    assert [a.attempt for a in given] == [FIRST, FIRST + 3, FIRST + 6]


def test_few_tasks_are_shared_out_by_slots() -> None:
    rig = Rig()
    rig.join("a@p/1", 4)
    rig.join("b@p/1", 4)
    given = rig.submit(1, 4)
    assert {name: sum(len(a.tasks) for a in given if a.worker == name) for name in ("a@p/1", "b@p/1")} == {
        "a@p/1": 2,
        "b@p/1": 2,
    }


def test_classes_of_workers_are_served_in_turn() -> None:
    rig = Rig()
    rig.join("a@p/1", 2, "x")
    rig.join("b@p/1", 2, "y")
    assert [(a.worker, a.tasks) for a in rig.submit(1, 2)] == [("a@p/1", [0]), ("b@p/1", [1])]


@pytest.mark.parametrize(
    ("requires", "slots", "takers"),
    [
        ("", 1, {"a", "b", "c"}),
        ("foo", 1, {"b", "c"}),
        ("FOO bar", 1, {"c"}),
        ("foo", 2, {"c"}),
        ("baz", 1, set()),
    ],
)
def test_only_matching_workers_get_tasks(requires: str, slots: int, takers: set[str]) -> None:
    rig = Rig()
    rig.join("a@p/1", 1)
    rig.join("b@p/1", 1, "Foo")
    rig.join("c@p/1", 2, "foo BAR")
    given = rig.submit(1, 50, requires=requires, slots=slots)
    assert {a.worker[0] for a in given} == takers


def test_a_wide_task_waits_in_a_workers_hand_for_its_slots_so_that_narrow_ones_do_not_keep_it_out() -> None:
    rig = Rig()
    rig.submit(1, 1)
    rig.join("a@p/1", 4)
    assert [a.tasks for a in rig.submit(2, 1, slots=4)] == [[0]]
    assert rig.scheduler.totals() == (1, 4, 4)
    assert rig.submit(3, 1) == []
    assert rig.given(rig.report("a@p/1", ended(1, 0, FIRST))) == []
    given = rig.given(rig.report("a@p/1", ended(2, 0, FIRST + 1)))
    assert [a.job for a in given] == [3]


def test_priority_comes_first_then_the_user_with_less_in_hand_then_submission() -> None:
    rig = Rig()
    for job, user, priority in [(1, "ann", 0), (2, "ann", 0), (3, "bob", 0), (4, "cid", 5)]:
        rig.submit(job, 1, user=user, priority=priority)
    order = []
    for number in range(4):
        order += [a.job for a in rig.join(f"w@p/{number}")]
    assert order == [4, 1, 3, 2]


def test_users_share_the_pool_evenly_though_one_came_first() -> None:
    rig = Rig()
    rig.submit(1, 100, user="ann", restart=False)
    rig.submit(2, 100, user="bob", restart=False)
    for number in range(10):
        rig.join(f"w@p/{number}", 2)
    assert rig.scheduler.counts(1).running == 10
    assert rig.scheduler.counts(2).running == 10


def test_an_idle_worker_makes_the_fullest_hand_give_back_half_of_its_excess() -> None:
    rig = Rig(lookahead_s=10.0, parcel_s_min=0.05)
    rig.submit(1, 9)
    rig.join("a@p/1", 1)
    work_off(rig, "a@p/1", 1, range(FIRST, FIRST + 2), 2.0)
    more = work_off(rig, "a@p/1", 1, range(FIRST + 2, FIRST + 5), 2.0, 2)
    assert [a.tasks for a in more] == [[5, 6, 7, 8]]
    rig.expect(
        fx.RecordWorker("b@p/1", True),
        fx.WelcomeWorker("b@p/1"),
        fx.RevokeTasks("a@p/1", 1, 2),
        after=joined("b@p/1"),
    )
    rig.expect(after=ev.TimePassed())  # one revocation at a time
    given = rig.given(ev.AttemptsRevoked("a@p/1", 1, [FIRST + 7, FIRST + 8]))
    assert [(a.worker, a.tasks) for a in given] == [("b@p/1", [7])], (
        "its half; the rest waits for who is first"
    )
    assert rig.scheduler.task_worker(1, 7) == ("b@p/1", FIRST + 9)
    assert rig.scheduler.trouble(1, 7) == (0, 0)
    assert rig.scheduler.reruns(1) == 0


def test_a_worker_that_had_nothing_to_give_back_is_not_asked_again_and_again() -> None:
    rig = Rig()
    rig.submit(1, 2)
    rig.join("a@p/1", 1)
    rig.join("b@p/1", 1)
    rig.now += 1.0
    rig.expect(fx.RevokeTasks("a@p/1", 1, 1), after=ev.TimePassed())
    rig.expect(after=ev.AttemptsRevoked("a@p/1", 1, []))
    rig.now += 1.0
    rig.expect(after=ev.TimePassed())


def test_work_of_a_few_milliseconds_is_not_taken_back() -> None:
    rig = Rig(parcel_s_min=0.05)
    rig.submit(1, 9)
    rig.join("a@p/1", 1)
    work_off(rig, "a@p/1", 1, range(FIRST, FIRST + 2), 0.001)
    work_off(rig, "a@p/1", 1, range(FIRST + 2, FIRST + 4), 0.001, 2)
    assert rig.scheduler.counts(1) == JobCounts(running=5, completed=4)
    rig.expect(fx.RecordWorker("b@p/1", True), fx.WelcomeWorker("b@p/1"), after=joined("b@p/1"))
    rig.now += 1.0
    # they take longer than was thought
    rig.expect(fx.RevokeTasks("a@p/1", 1, 2), after=ev.TimePassed())


def test_the_attempt_ids_of_an_assignment_are_consecutive_across_the_parts_of_the_queue() -> None:
    rig = Rig()
    rig.submit(1, 6)
    rig.join("a@p/1", 2)
    rig.effects(ev.WorkerLost("a@p/1", "gone"))
    rig.effects(ev.JobCancelled(1, [4]))
    given = rig.join("b@p/1", 4)
    assert [(a.attempt, a.tasks) for a in given] == [(FIRST + 3, [0, 1, 2, 3, 5])]


def test_a_million_tasks_cost_a_byte_each_until_they_run() -> None:
    rig = Rig()
    rig.scheduler.handle([submitted(1, 1_000_000)], rig.now)
    given = rig.scheduler.handle([joined("a@p/1", 4)], rig.now)
    assert [len(e.tasks) for e in given if isinstance(e, fx.AssignTasks)] == [6]
    effects = rig.scheduler.handle([ev.JobCancelled(1)], rig.now)
    assert fx.RecordCancelled(1, [(6, 1_000_000)], 1) in effects
    assert rig.scheduler.counts(1) == JobCounts(running=6, cancelled=999_994)
