"""Jobs that name their workers by patterns, and owners of workers who take only some users' jobs."""

from collections.abc import Callable
from typing import Any

import pytest
from core_rig import FIRST, OLD, Rig, ended, submitted

from kestrel.core import effects as fx
from kestrel.core import events as ev
from kestrel.core.addresses import Pattern
from kestrel.core.books import Books
from kestrel.core.matching import OWNERS_KEPT_MAX
from kestrel.core.model import (
    AttemptEnd,
    HeldByWorker,
    JobState,
    JobTerms,
    RestoredJob,
    TaskState,
    Trouble,
    WorkerOffer,
)
from kestrel.errors import InternalError


def patterns(text: str) -> tuple[Pattern, ...]:
    return tuple(Pattern.parse(word) for word in text.split())


def came(name: str, users: str = "", slots: int = 1, held: list[HeldByWorker] | None = None) -> ev.Event:
    return ev.WorkerJoined(name, WorkerOffer(slots, frozenset(), patterns(users)), held or [])


def job(number: int, size: int, workers: str = "", user: str = "ann@pool", **terms: Any) -> ev.Event:
    return submitted(number, size, user=user, workers=patterns(workers), **terms)


def who(given: list[fx.AssignTasks]) -> list[tuple[str, int]]:
    return [(a.worker, a.job) for a in given]


# --- jobs that name their workers -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("workers", "meant"),
    [
        ("worker@pool/42", ["worker@pool/42"]),
        ("worker@pool", ["worker@pool/41", "worker@pool/42"]),
        ("machine*@pool", ["machine27@pool/core2"]),
        ("*/core2", ["machine27@pool/core2"]),
        ("*@pool/4?", ["worker@pool/41", "worker@pool/42"]),
        ("other.example", ["ann@other.example/laptop"]),
        ("worker@pool/42 */core2", ["worker@pool/42", "machine27@pool/core2"]),
    ],
)
def test_a_job_goes_only_to_the_workers_that_its_patterns_mean(workers: str, meant: list[str]) -> None:
    rig = Rig()
    names = ["worker@pool/41", "worker@pool/42", "machine27@pool/core2", "ann@other.example/laptop"]
    rig.effects(*(came(name) for name in names))
    given = rig.given(job(1, 100, workers, restart=False))
    assert sorted({a.worker for a in given}) == sorted(meant)


def test_a_worker_that_joins_later_gets_the_job_that_waits_for_it() -> None:
    rig = Rig()
    rig.effects(came("worker@pool/1"), job(1, 1, "worker@pool/2"))
    assert who(rig.given(came("worker@pool/2"))) == [("worker@pool/2", 1)]


def test_a_named_worker_serves_priorities_and_users_in_the_same_order_as_all_others() -> None:
    rig = Rig()
    rig.effects(came("worker@pool/1"))
    rig.effects(job(1, 1), job(2, 1, "worker@pool", priority=1), job(3, 1, priority=2))
    order = []
    for i in range(3):
        view = rig.scheduler.workers()["worker@pool/1"]
        assert view.in_hand == 1 or i == 0
        running = next(n for n in (1, 2, 3) if rig.scheduler.counts(n).running)
        order.append(running)
        rig.given(rig.report("worker@pool/1", ended(running, 0, FIRST + i)))
    assert order == [3, 2, 1]


def test_members_of_a_crew_that_are_equally_empty_have_their_turns() -> None:
    rig = Rig()
    rig.effects(*(came(f"w@pool/{i}", slots=4) for i in range(3)), job(1, 0, "w@pool", is_open=True))
    took = [rig.given(ev.JobExtended(1, 1, False))[0].worker for _ in range(6)]
    assert sorted(took[:3]) == sorted(took[3:]) == ["w@pool/0", "w@pool/1", "w@pool/2"]


def test_an_idle_worker_that_the_job_names_is_given_what_another_cannot_have_started() -> None:
    rig = Rig()
    rig.effects(came("w@pool/1"), job(1, 5, "w@pool"))
    rig.effects(rig.report("w@pool/1", *(ended(1, t, FIRST + t, wall_s=0.01) for t in range(2))))
    assert rig.scheduler.workers()["w@pool/1"].in_hand == 3
    rig.now += 2.0
    assert not any(isinstance(e, fx.RevokeTasks) for e in rig.effects(came("x@pool/1"), ev.TimePassed()))
    assert fx.RevokeTasks("w@pool/1", 1, 1) in rig.effects(came("w@pool/2"))
    assert who(rig.given(ev.AttemptsRevoked("w@pool/1", 1, [FIRST + 4]))) == [("w@pool/2", 1)]


def test_patterns_never_multiply_classes_nor_touch_other_jobs() -> None:
    rig = Rig()
    rig.effects(*(came(f"w{i}@pool/core{i % 4}") for i in range(40)))
    rig.effects(*(job(i, 0, f"w{i}@pool */core{i % 4} *{i}@pool", is_open=True) for i in range(1, 41)))
    matching = rig.scheduler._books.matching
    assert len(matching.classes) == 1
    assert len(matching.naming.crews) == 40
    assert matching.signatures == {}
    rig.effects(*(ev.JobCancelled(i) for i in range(1, 41)))
    assert matching.naming.crews == {}
    assert all(w.named == [] for w in rig.scheduler._books.pool.workers.values())


def test_a_restored_job_still_names_its_workers() -> None:
    rig = Rig(settle_s=2.0)
    terms = JobTerms("ann@pool", workers=patterns("w@pool/2"))
    rig.effects(
        ev.JobRestored(RestoredJob(1, terms, bytearray(2))), ev.WorkersExpected(["w@pool/1", "w@pool/2"])
    )
    assert rig.given(came("w@pool/1")) == []
    rig.now += 3.0
    assert rig.given(ev.TimePassed()) == []
    assert who(rig.given(came("w@pool/2"))) == [("w@pool/2", 1)]


# --- owners ---------------------------------------------------------------------------------------------


def test_a_worker_gets_only_jobs_of_users_whom_its_owner_takes() -> None:
    rig = Rig()
    rig.effects(came("w@pool/1", "ann@pool *@lab.example"))
    assert rig.given(job(1, 1, user="bob@pool")) == []
    assert who(rig.given(job(2, 1, user="cyd@lab.example"))) == [("w@pool/1", 2)]
    assert rig.given(rig.report("w@pool/1", ended(2, 0, FIRST))) == []
    assert who(rig.given(came("w@pool/2"))) == [("w@pool/2", 1)]


def test_users_whom_the_same_owners_take_share_their_signatures() -> None:
    rig = Rig()
    rig.effects(*(job(i, 0, user=f"user{i}@pool", is_open=True) for i in range(1, 21)))
    matching = rig.scheduler._books.matching
    assert len(matching.signatures) == 1
    rig.effects(came("w@pool/1", "user1@pool user2@pool"), came("w@pool/2", "user1*@pool"))
    kinds = [(1,), (2,), (10, 11, 12, 13, 14, 15, 16, 17, 18, 19), (3, 4, 5, 6, 7, 8, 9, 20)]
    assert len(matching.signatures) == len(kinds)
    for kind in kinds:
        assert len({matching.jobs[number].signature for number in kind}) == 1


def test_queued_tasks_are_found_by_a_worker_whose_owner_is_new() -> None:
    rig = Rig()
    rig.effects(came("w@pool/1", "bob@pool"), job(1, 3), job(2, 3, user="cyd@pool"))
    assert who(rig.given(came("w@pool/2", "cyd@pool"))) == [("w@pool/2", 2)]
    assert who(rig.given(came("w@pool/3", "*@pool")))[0] == ("w@pool/3", 1)


def test_owners_that_went_are_remembered_but_not_for_ever() -> None:
    rig = Rig()
    rig.effects(job(1, 1, user="nobody@pool"))
    matching = rig.scheduler._books.matching
    for i in range(OWNERS_KEPT_MAX + 10):
        rig.effects(came("w@pool/1", f"user{i}@pool"))
        rig.effects(ev.WorkerLost("w@pool/1", "gone"))
    assert len(matching.owners) == OWNERS_KEPT_MAX
    rig.effects(came("w@pool/1", f"user{OWNERS_KEPT_MAX + 5}@pool"))
    assert len(matching.owners) == OWNERS_KEPT_MAX


def test_what_an_owner_does_not_take_any_more_is_stopped_and_given_to_others() -> None:
    rig = Rig()
    rig.effects(came("w@pool/1"), job(1, 1))
    effects = rig.effects(came("w@pool/1", "bob@pool", held=[HeldByWorker(1, 0, FIRST)]))
    assert fx.StopAttempts("w@pool/1", [FIRST]) in effects
    rig.effects(came("w@pool/2"))
    stopped = ended(1, 0, FIRST, AttemptEnd.CANCELLED)
    assert who(rig.given(rig.report("w@pool/1", stopped))) == [("w@pool/2", 1)]
    assert rig.scheduler.reruns(1) == 0
    assert rig.scheduler.trouble(1, 0) == (0, 0)


@pytest.mark.parametrize(
    ("end", "wall_s", "state"),
    [
        (AttemptEnd.CANCELLED, 5.0, TaskState.NODE_FAIL),
        (AttemptEnd.CANCELLED, 0.0, TaskState.QUEUED),
        (AttemptEnd.COMPLETED, 5.0, TaskState.COMPLETED),
    ],
)
@pytest.mark.parametrize("restarted", [False, True])
def test_how_it_ended_counts_although_the_owner_had_it_stopped(
    end: AttemptEnd, wall_s: float, state: TaskState, restarted: bool
) -> None:
    rig = Rig()
    attempt = OLD if restarted else FIRST
    if restarted:
        terms = JobTerms("ann@pool", restart=False)
        troubles = {0: Trouble(given_out=True)}
        rig.effects(
            ev.JobRestored(RestoredJob(1, terms, bytearray(1), open=True, troubles=troubles)),
            ev.WorkersExpected(["w@pool/1"]),
        )
    else:
        rig.effects(came("w@pool/1"), job(1, 1, restart=False, is_open=True))
    effects = rig.effects(came("w@pool/1", "bob@pool", held=[HeldByWorker(1, 0, attempt)]))
    assert fx.StopAttempts("w@pool/1", [attempt]) in effects
    assert rig.scheduler.task_state(1, 0) is TaskState.RUNNING
    rig.effects(rig.report("w@pool/1", ended(1, 0, attempt, end, wall_s)))
    assert rig.scheduler.task_state(1, 0) is state


def test_an_owner_who_takes_it_again_lets_it_run_on() -> None:
    rig = Rig()
    rig.effects(came("w@pool/1"), job(1, 1))
    held = [HeldByWorker(1, 0, FIRST)]
    rig.effects(came("w@pool/1", "bob@pool", held=held))
    effects = rig.effects(came("w@pool/1", "ann@pool", held=held))
    assert not any(isinstance(e, fx.StopAttempts) for e in effects)


def test_a_worker_in_quarantine_is_probed_with_jobs_that_name_it_or_its_owner_takes() -> None:
    rig = Rig(quarantine_failures=2, parole_s=5.0)
    rig.effects(came("bad@pool/1", "ann@pool"), came("good@pool/1"), job(1, 60, retries=9, slots=1))
    first = {
        name: next(iter(w.hand.values())) for name, w in rig.scheduler._books.pool.workers.items() if w.hand
    }
    assert set(first) == {"bad@pool/1", "good@pool/1"}
    for _ in range(30):
        if rig.scheduler.workers()["bad@pool/1"].quarantined:
            break
        for name, end in (("good@pool/1", AttemptEnd.COMPLETED), ("bad@pool/1", AttemptEnd.FAILED)):
            hand = rig.scheduler._books.pool.workers[name].hand
            if hand:
                a = next(iter(hand.values()))
                rig.effects(rig.report(name, ended(1, a.task, a.id, end)))
    assert rig.scheduler.workers()["bad@pool/1"].quarantined
    rig.effects(ev.JobCancelled(1))
    for name in ("bad@pool/1", "good@pool/1"):
        hand = list(rig.scheduler._books.pool.workers[name].hand.values())
        rig.effects(rig.report(name, *(ended(1, a.task, a.id, AttemptEnd.CANCELLED) for a in hand)))
    rig.now += 3.0
    heard = [ev.WorkerHeard("bad@pool/1"), ev.WorkerHeard("good@pool/1"), ev.TimePassed()]
    rig.effects(*heard)
    rig.now += 3.0
    rig.effects(*heard)
    assert all(w != "bad@pool/1" for w, _ in who(rig.given(job(2, 2, user="bob@pool"))))
    assert all(w != "bad@pool/1" for w, _ in who(rig.given(job(3, 2, "good@pool"))))
    assert ("bad@pool/1", 4) in who(rig.given(job(4, 2, "bad@pool")))


# --- words ----------------------------------------------------------------------------------------------


def test_patterns_that_mean_nobody_are_named() -> None:
    rig = Rig()
    rig.effects(*(came(f"worker@pool/{i}") for i in range(37)), job(1, 1, "worker@pool/9*9"))
    said = "`worker@pool/9*9` means none of the 37 workers."
    assert rig.scheduler.warning(1, rig.now) == said
    assert rig.scheduler.explain(1, None, rig.now)[0] == said
    assert rig.scheduler.explain(1, 0, rig.now)[1] == said


@pytest.mark.parametrize(("text", "meant"), [("lab*", "lab*@*"), ("core2", "*/core2")])
def test_a_name_without_at_is_told_to_be_a_domain(text: str, meant: str) -> None:
    rig = Rig()
    rig.effects(came("lab7@pool/core2"), job(1, 1, text))
    assert rig.scheduler.warning(1, rig.now) == (
        f"`{text}` means not the one worker of the pool. "
        f"Without @ a pattern means a domain; `{meant}` would mean somebody."
    )


def test_a_worker_that_patterns_meant_and_that_left_is_told_of() -> None:
    rig = Rig()
    rig.effects(
        came("w@pool/1"), came("w@pool/2"), ev.WorkerLost("w@pool/2", "gone"), job(1, 1, "w@pool/2 x@y")
    )
    rig.now += 7.0
    assert rig.scheduler.warning(1, rig.now) == (
        "`w@pool/2`, `x@y` mean not the one worker of the pool; 1 that left could, last seen 7 s ago."
    )


def test_what_the_workers_that_are_meant_lack_is_counted_among_them() -> None:
    rig = Rig()
    rig.effects(*(came(f"w@pool/{i}") for i in range(3)), came("x@pool/1"))
    rig.effects(job(1, 1, "w@pool", requires="gpu"))
    assert rig.scheduler.explain(1, None, rig.now)[:2] == [
        "`w@pool` means 3 of 4 workers.",
        "0 of these 3 provide GPU.",
    ]


def test_owners_that_do_not_take_the_user_are_told_of() -> None:
    rig = Rig()
    rig.effects(
        *(came(f"w@pool/{i}", "bob@pool *@lab.example") for i in range(3)), came("v@pool/1", "cyd@pool")
    )
    rig.effects(job(1, 1, "w@pool"), job(2, 1, "v@pool"))
    assert rig.scheduler.explain(1, None, rig.now)[:2] == [
        "`w@pool` means 3 of 4 workers.",
        "3 workers that match take only the jobs of `bob@pool`, `*@lab.example`, and not those of ann@pool: "
        "that is what their owners chose.",
    ]
    assert "1 worker that matches takes only the jobs of `cyd@pool`" in rig.scheduler.warning(2, rig.now)


def test_a_job_waits_only_for_jobs_that_share_workers_with_it() -> None:
    rig = Rig()
    rig.effects(came("w@pool/1"), came("w@pool/2"))
    first = {"restart": False, "priority": 1}
    rig.effects(job(1, 9, "w@pool/1", **first), job(2, 5, "w@pool/2", **first))
    rig.effects(job(3, 2, "w@pool/2", user="bob@pool"), job(4, 2, restart=False))
    assert "It waits for 4 tasks of 1 job before it." in rig.scheduler.explain(3, None, rig.now)
    assert "It waits for 14 tasks of 3 jobs before it." in rig.scheduler.explain(4, None, rig.now)


# --- the check can fail ---------------------------------------------------------------------------------


def _wrong_worker(books: Books) -> None:
    crew = next(iter(books.matching.naming.crews.values()))
    books.jobs[1].terms = JobTerms("ann@pool", workers=patterns("elsewhere"))
    assert crew.mask


def _wrong_user(books: Books) -> None:
    books.users["ann@pool"].kind = frozenset()


def _wrong_mask(books: Books) -> None:
    next(iter(books.matching.naming.crews.values())).mask ^= 2


def _wrong_level(books: Books) -> None:
    books.matching.naming._levels[0] ^= 1


def _wrong_capacity(books: Books) -> None:
    next(iter(books.matching.naming.crews.values())).capacity += 1


def _wrong_owner(books: Books) -> None:
    next(iter(books.matching.owners.values())).classes += 1


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (_wrong_worker, "though the job or the owner does not want that"),
        (_wrong_user, "though the job or the owner does not want that"),
        (_wrong_mask, "its workers are wrong"),
        (_wrong_level, "its level is"),
        (_wrong_capacity, "capacity is wrong"),
        (_wrong_owner, "the number of its classes is wrong"),
    ],
)
def test_the_invariant_check_sees_when_somebodys_wish_is_broken(
    fault: Callable[[Books], None], words: str
) -> None:
    rig = Rig()
    rig.effects(came("w@pool/1", "ann@pool", slots=4), came("w@pool/2"), job(1, 1, "w@pool/1"))
    assert rig.scheduler.job_state(1) is JobState.RUNNING
    fault(rig.scheduler._books)
    with pytest.raises(InternalError, match=words):
        rig.scheduler.check_invariants()


@pytest.mark.parametrize("claims", [True, False])
def test_after_a_take_over_nobody_brings_a_result_of_a_job_that_does_not_name_it(claims: bool) -> None:
    rig = Rig(settle_s=3.0)
    terms = JobTerms("ann@pool", workers=patterns("trusted@pool"))
    restored = RestoredJob(1, terms, bytearray([TaskState.QUEUED]))
    rig.effects(ev.JobRestored(restored), ev.WorkersExpected(("trusted@pool/1", "evil@pool/1")))
    held = [HeldByWorker(1, 0, OLD)]

    def told(worker: str) -> ev.Event:
        return ev.AttemptsReported(worker, 1, [ended(1, 0, OLD)])

    welcomed = rig.effects(came("evil@pool/1", held=held if claims else None))
    assert (fx.StopAttempts("evil@pool/1", [OLD]) in welcomed) is claims
    answers = rig.effects(told("evil@pool/1"))
    assert not [e for e in answers if isinstance(e, fx.RecordResult)]
    assert rig.scheduler.strays().refused == 1
    rig.effects(came("trusted@pool/1", held=held))
    answers = rig.effects(told("trusted@pool/1"))
    assert [e.worker for e in answers if isinstance(e, fx.RecordResult)] == ["trusted@pool/1"]
