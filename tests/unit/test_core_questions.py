"""What the scheduler answers to people, and that its check of itself can fail."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from core_rig import FIRST, Rig, ended

from kestrel.core import events as ev
from kestrel.core.books import Books
from kestrel.core.model import AttemptEnd, HeldByWorker, JobState
from kestrel.core.ranking import Ranking
from kestrel.core.story import Entry, Story
from kestrel.errors import InternalError


def test_a_job_without_workers_says_so() -> None:
    rig = Rig()
    rig.submit(1, 5)
    assert rig.scheduler.explain(1, None, rig.now) == [
        "There are no workers in the pool.",
        "Of 5 tasks, 5 are queued, 0 are with workers, 0 are completed.",
    ]
    assert rig.scheduler.explain(1, 3, rig.now) == [
        "Task 1_3 is queued; 3 tasks of its job come before it.",
        "There are no workers in the pool.",
    ]


def test_a_missing_tag_is_named_with_those_who_had_it() -> None:
    rig = Rig()
    for number in range(3):
        rig.join(f"w@p/{number}", 2, "foo")
    rig.join("old@p/1", 2, "foo python2.6")
    rig.effects(ev.WorkerLost("old@p/1", "gone"))
    rig.now += 120
    rig.submit(1, 5, requires="foo Python2.6")
    expected = "0 of 3 workers provide PYTHON2.6; 1 that left could, last seen 120 s ago."
    assert rig.scheduler.warning(1, rig.now) == expected
    assert rig.scheduler.explain(1, None, rig.now)[0] == expected


def test_each_of_several_obstacles_is_counted() -> None:
    rig = Rig()
    rig.join("a@p/1", 1, "foo")
    rig.join("b@p/1", 4, "bar")
    rig.submit(1, 1, requires="foo bar", slots=2)
    assert rig.scheduler.explain(1, None, rig.now)[:-1] == [
        "0 of 2 workers can run it.",
        "1 of 2 workers provide BAR.",
        "1 of 2 workers provide FOO.",
        "1 of 2 workers have the 2 slots that one task takes; the widest has 4.",
    ]


def test_a_job_that_waits_for_others_says_how_many_are_before_it() -> None:
    rig = Rig()
    rig.submit(1, 10, priority=1, restart=False)
    rig.submit(2, 3)
    rig.join("a@p/1", 2)
    assert rig.scheduler.warning(2, rig.now) == ""
    assert rig.scheduler.explain(2, None, rig.now) == [
        "It waits for 8 tasks of 1 job before it.",
        "1 of 1 worker can run it, with 2 slots; 2 of the pool's 2 slots are taken.",
        "Of 3 tasks, 3 are queued, 0 are with workers, 0 are completed.",
    ]


def test_a_task_tells_where_it_is_and_what_befell_it() -> None:
    rig = Rig()
    rig.submit(1, 1, retries=3)
    rig.join("a@p/1")
    rig.now += 1
    rig.effects(rig.report("a@p/1", ended(1, 0, FIRST, AttemptEnd.FAILED)))
    rig.now += 1
    rig.join("b@p/1")
    rig.effects(ev.WorkerLost("a@p/1", "gone"))
    rig.join("a@p/1", held=[HeldByWorker(1, 0, FIRST + 1)])
    assert rig.scheduler.explain(1, 0, rig.now) == [
        f"Task 1_0 is with worker b@p/1 as attempt {FIRST + 2}.",
        f"Worker a@p/1 came back with it as attempt {FIRST + 1}; the first result counts.",
        "It failed once and may be tried again twice after that.",
    ]
    rig.now += 1
    assert rig.scheduler.story(1, 0, rig.now) == [
        "3 s ago: submitted with 1 tasks",
        f"3 s ago: given out as attempt {FIRST} on a@p/1",
        f"2 s ago: FAILED, to be tried again as attempt {FIRST} on a@p/1",
        f"2 s ago: given out as attempt {FIRST + 1} on a@p/1",
        f"1 s ago: lost (gone) as attempt {FIRST + 1} on a@p/1",
        f"1 s ago: given out as attempt {FIRST + 2} on b@p/1",
        f"1 s ago: found again as attempt {FIRST + 1} on a@p/1",
    ]
    rig.effects(ev.JobCancelled(1))
    assert rig.scheduler.explain(1, 0, rig.now)[2] == (
        "It was cancelled: the worker was told to stop it, and has not answered yet."
    )
    assert (
        rig.scheduler.explain(1, None, rig.now)[0] == "The job was cancelled; 1 task of it are being stopped."
    )


def test_what_has_ended_says_so() -> None:
    rig = Rig()
    rig.submit(1, 2, is_open=True)
    rig.effects(ev.JobCancelled(1, [1]))
    assert rig.scheduler.explain(1, 1, rig.now) == ["Task 1_1 has ended: CANCELLED."]
    assert rig.scheduler.explain(1, None, rig.now)[-1].startswith("The job is open")
    rig.effects(ev.JobCancelled(1))
    assert rig.scheduler.job_state(1) is JobState.CANCELLED
    assert rig.scheduler.explain(1, None, rig.now) == ["The job has ended: CANCELLED."]


def test_the_story_is_bounded_by_entries_and_by_tasks() -> None:
    story = Story(length=3, tasks_max=10)
    for number in range(5):
        story.add(Entry(float(number), 1, [number], "came"))
    assert len(story) == 3
    assert story.tell(1, 1) == []
    assert story.tell(1, 4) == ["at 4.000: came"]
    story.add(Entry(9.0, 1, list(range(20)), "went"))
    assert len(story) == 1
    story.add(Entry(10.0, 1, range(1_000_000), "a range weighs nothing", "w", 100, True))
    assert story.tell(1, 7, 11.0)[-1] == "1 s ago: a range weighs nothing as attempt 107 on w"


def test_a_ranking_gives_the_least_and_breaks_ties_by_age() -> None:
    ranking: Ranking[str] = Ranking()
    for name, key in [("a", 3), ("b", 1), ("c", 1), ("b", 3), ("d", 2)]:
        ranking.put(name, key)
    order = []
    while (first := ranking.first()) is not None:
        order.append(first)
        ranking.discard(first)
    assert order == ["c", "d", "a", "b"]
    assert len(ranking) == 0


def test_a_ranking_does_not_grow_with_its_changes() -> None:
    ranking: Ranking[int] = Ranking()
    for key in range(10_000):
        ranking.put(key % 5, key)
    assert len(ranking) == 5
    assert len(ranking._heap) <= 2 * 5 + 65
    assert ranking.first() == 0


# --- the check of the state: one planted fault per kind -----------------------------------------------


def _count(books: Books) -> None:
    books.jobs[1].counts[0] += 1


def _byte(books: Books) -> None:
    books.jobs[1].states[5] = 2


def _seq(books: Books) -> None:
    books.jobs[1].last_seq = 7


def _cursor(books: Books) -> None:
    books.jobs[1]._cursor = len(books.jobs[1].states)


def _requeued(books: Books) -> None:
    books.jobs[1]._back[3] = None


def _running(books: Books) -> None:
    del books.jobs[1].running[0]


def _hand(books: Books) -> None:
    del books.pool.workers["a@p/1"].hand[FIRST]


def _void(books: Books) -> None:
    books.jobs[1].running[0].void = True


def _used(books: Books) -> None:
    books.pool.workers["a@p/1"].used += 1


def _busy(books: Books) -> None:
    books.pool.busy -= 1


def _idle(books: Books) -> None:
    books.pool.workers["a@p/1"].idle = True


def _load(books: Books) -> None:
    books.users["ann"].load += 1


def _lease(books: Books) -> None:
    books.pool._by_heard.clear()


def _listed(books: Books) -> None:
    books.matching.ready.clear()


def _capacity(books: Books) -> None:
    books.jobs[1].signature.capacity += 1


def _revokes(books: Books) -> None:
    books.jobs[1].signature.revokes += 1


def _ended(books: Books) -> None:
    books.jobs[1].ended = JobState.COMPLETED


def _unsettled(books: Books) -> None:
    books.touched[books.jobs[1]] = None


def _class(books: Books) -> None:
    next(iter(books.matching.classes.values())).members.clear()


@pytest.mark.parametrize(
    "fault",
    [
        *(
            _count,
            _byte,
            _seq,
            _cursor,
            _requeued,
            _running,
            _hand,
            _void,
            _used,
            _busy,
            _idle,
            _load,
            _lease,
        ),
        *(_listed, _capacity, _revokes, _ended, _unsettled, _class),
    ],
)
def test_the_invariant_check_finds_a_planted_fault(fault: Callable[[Books], None]) -> None:
    rig = Rig()
    rig.submit(1, 10)
    rig.join("a@p/1", 2)
    rig.scheduler.check_invariants()
    fault(rig.scheduler._books)
    with pytest.raises(InternalError) as caught:
        rig.scheduler.check_invariants()
    assert caught.value.text


def test_a_failed_check_carries_the_story() -> None:
    rig = Rig()
    rig.submit(1, 10)
    _count(rig.scheduler._books)
    with pytest.raises(InternalError) as caught:
        rig.scheduler.check_invariants()
    assert "submitted with 10 tasks" in caught.value.story
