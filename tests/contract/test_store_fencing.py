"""What stores must do that two managers may reach at once: one lease, and a fence for whoever lost it.

One suite over the shared makers in `parts.stores.MAKERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from kestrel.errors import StoreError
from kestrel.ports import FENCED, IN_USE, CommitDone, CommitFailed, LeaseBook, LeaseView, ReadResults
from parts.pool import eventually
from parts.stores import MAKERS, Bench, job, result

SHARED = [name for name, maker in MAKERS.items() if maker.shared]


class Candidate(Bench):
    """A manager's end of a shared store, lease included. Closed at the end of the test."""

    def ask(self, question: Callable[[Callable[[Any], None]], None]) -> Any:
        answers: list[Any] = []
        question(answers.append)
        while not answers:
            self.loop.run_one()
        return answers[0]

    @property
    def book(self) -> LeaseBook:
        return cast(LeaseBook, self.store)

    def look(self) -> LeaseView:
        view = self.ask(self.book.look)
        assert isinstance(view, LeaseView), view
        return view

    def take(self, name: str = "me", seen: LeaseView | None = None) -> int | None:
        view = self.look() if seen is None else seen
        taken = self.ask(lambda done: self.book.take(view, name, done))
        assert not isinstance(taken, StoreError), taken
        return cast("int | None", taken)

    def renew(self, epoch: int) -> bool:
        renewed = self.ask(lambda done: self.book.renew(epoch, done))
        assert isinstance(renewed, bool), renewed
        return renewed

    def release(self, epoch: int) -> bool:
        released = self.ask(lambda done: self.book.release(epoch, done))
        assert isinstance(released, bool), released
        return released


@pytest.fixture(params=SHARED)
def candidate(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Candidate]]:
    """Makes managers' ends of one and the same store."""
    made: list[Candidate] = []

    def make() -> Candidate:
        made.append(Candidate(MAKERS[request.param], tmp_path))
        return made[-1]

    yield make
    for one in made:
        one.store.close()


Make = Callable[[], Candidate]


def test_an_empty_store_has_a_lease_that_nobody_ever_had(candidate: Make) -> None:
    first, second = candidate(), candidate()
    for one in (first, second, first):
        view = one.look()
        assert (view.epoch, view.beat, view.holder, view.connected) == (0, 0, "", False)


def test_of_two_that_saw_the_same_only_one_takes_the_lease(candidate: Make) -> None:
    first, second = candidate(), candidate()
    seen = first.look()
    assert second.look() == seen
    assert first.take("first", seen) == 1
    assert second.take("second", seen) is None
    view = second.look()
    assert (view.epoch, view.holder, view.connected) == (1, "first", True)


def test_a_renewal_counts_the_beat_and_spoils_what_a_watcher_saw(candidate: Make) -> None:
    holder, watcher = candidate(), candidate()
    assert holder.take("holder") == 1
    seen = watcher.look()
    assert holder.renew(1)
    after = watcher.look()
    assert (after.epoch, after.holder) == (1, "holder")
    assert after.beat > seen.beat
    assert watcher.take("watcher", seen) is None
    assert holder.renew(1)


def test_who_takes_the_lease_counts_the_epoch_up_and_the_other_cannot_renew(candidate: Make) -> None:
    old, new = candidate(), candidate()
    assert old.take("old") == 1
    assert new.take("new") == 2
    assert not old.renew(1)
    assert not old.release(1)
    view = old.look()
    assert (view.epoch, view.holder) == (2, "new")
    assert new.renew(2)


def test_a_lease_that_was_given_back_says_so_and_keeps_its_epoch(candidate: Make) -> None:
    old, new = candidate(), candidate()
    assert old.take("old") == 1
    assert old.release(1)
    view = new.look()
    assert (view.epoch, view.holder) == (1, "")
    assert new.take("new", view) == 2
    assert not old.release(1)
    assert new.look().holder == "new"


def test_it_is_seen_when_the_session_of_the_holder_is_gone(candidate: Make) -> None:
    holder, watcher = candidate(), candidate()
    assert holder.take("holder") == 1
    assert holder.renew(1)
    assert watcher.look().connected
    holder.store.close()
    view = eventually(
        lambda: found if not (found := watcher.look()).connected else None, "the session is seen to be gone"
    )
    assert view.epoch == 1


def test_the_store_is_opened_with_the_epoch_of_the_lease(candidate: Make) -> None:
    one = candidate()
    assert one.take("one") == 1
    assert one.open().epoch == 1
    one.done(job(), unit=1)
    other = candidate()
    assert other.take("other") == 2
    content = other.open()
    assert content.epoch == 2
    assert [r.job for r in content.jobs] == [1]


def test_without_a_lease_a_store_that_somebody_has_cannot_be_opened(candidate: Make) -> None:
    first, second = candidate(), candidate()
    assert first.open().epoch == 1
    with pytest.raises(StoreError) as caught:
        second.open()
    assert caught.value.code == IN_USE
    assert caught.value.retry
    first.done(job(), unit=1)


def fenced(outcome: CommitDone | CommitFailed) -> None:
    assert isinstance(outcome, CommitFailed), outcome
    assert isinstance(outcome.problem, StoreError)
    assert outcome.problem.code == FENCED
    assert not outcome.problem.retry


def test_a_manager_that_was_replaced_can_never_write_again(candidate: Make) -> None:
    old, new = candidate(), candidate()
    assert old.take("old") == 1
    old.open()
    old.done(job(), result(0, 1), unit=1)
    assert new.take("new") == 2
    # From the moment of the take, and not only when the other one has opened the store.
    fenced(old.commit(result(1, 2), unit=2))
    content = new.open()
    assert content.jobs[0].counts.completed == 1
    new.done(result(2, 2), unit=1)
    fenced(old.commit(result(1, 2), unit=2))
    fenced(old.commit(result(1, 2)))
    fenced(old.commit(job(2), unit=1))
    for outcome in old.commit_all([([result(n, n)], (), n) for n in range(2, 9)]):
        fenced(outcome)
    assert [seq for seq, _ in new.read(ReadResults(1, 0, 9))] == [1, 2]


def test_a_manager_that_was_replaced_is_not_even_answered(candidate: Make) -> None:
    """What it reads may be out of date: it must not hand out tasks by it, or tell a user."""
    old, new = candidate(), candidate()
    assert old.take("old") == 1
    old.open()
    old.done(job(), unit=1)
    assert new.take("new") == 2
    fenced(old.commit(reads=[ReadResults(1, 0, 9)], unit=2))
    fenced(old.commit(unit=1))


def test_a_new_life_does_not_recognise_the_units_of_the_one_before(candidate: Make) -> None:
    old, new = candidate(), candidate()
    assert old.take("old") == 1
    old.open()
    for unit in range(1, 6):
        old.done(job(unit), unit=unit)
    assert new.take("new") == 2
    new.open()
    for unit in range(1, 6):
        new.done(result(0, 1, number=unit), unit=unit)
    third = candidate()
    assert third.take("third") == 3
    assert [r.counts.completed for r in third.open().jobs] == [1] * 5
