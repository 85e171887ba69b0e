"""The simulated database keeps what a real one promises, and breaks what a real one breaks."""

from __future__ import annotations

from random import Random

from kestrel.errors import StoreError
from kestrel.manager.jobs import terms_of
from kestrel.ports import FENCED, CommitDone, CommitFailed, DrainWorker, LeaseView
from kestrel.sim.clock import ProcessClock, Timeline
from kestrel.sim.leasing import SimLeaseBook
from kestrel.sim.storage import Disk, StorePort, Way
from kestrel.sim.trace import Trace

Outcome = CommitDone | CommitFailed
DRAIN = DrainWorker("w@x/1", True)


class Rig:
    """A database and its time."""

    def __init__(self) -> None:
        self.timeline = Timeline()
        self.disk = Disk(self.timeline, ProcessClock(self.timeline), Random(3), Trace())

    def run(self, seconds: float) -> None:
        end = self.timeline.call_later(seconds, lambda: None)
        while end.callback is not None:
            self.timeline.step()


class Host:
    """One process on the database, with its lease."""

    def __init__(self, rig: Rig, name: str) -> None:
        self.rig, self.name = rig, name
        self.clock = ProcessClock(rig.timeline)
        self.way = Way(rig.disk)
        self.book = SimLeaseBook(rig.disk, self.clock, self.way)

    def look(self) -> LeaseView | StoreError:
        answers: list[LeaseView | StoreError] = []
        self.book.look(answers.append)
        self.rig.run(5)
        return answers[0]

    def take(self, seen: LeaseView) -> int | StoreError | None:
        answers: list[int | StoreError | None] = []
        self.book.take(seen, self.name, answers.append)
        self.rig.run(5)
        return answers[0]

    def lead(self) -> StorePort:
        view = self.look()
        assert isinstance(view, LeaseView)
        epoch = self.take(view)
        assert isinstance(epoch, int)
        port = StorePort(self.rig.disk, self.clock, self.way, epoch)
        assert port.open(terms_of).epoch == epoch
        return port

    def commit(self, port: StorePort, unit: int) -> Outcome:
        answers: list[Outcome] = []
        port.commit([DRAIN], [], answers.append, unit=unit)
        self.rig.run(5)
        return answers[0]


def test_who_was_replaced_stores_nothing_more() -> None:
    rig = Rig()
    one, two = Host(rig, "one"), Host(rig, "two")
    old = one.lead()
    assert isinstance(one.commit(old, 1), CommitDone)
    new = two.lead()
    refused = one.commit(old, 2)
    assert isinstance(refused, CommitFailed)
    assert isinstance(refused.problem, StoreError)
    assert (refused.problem.code, refused.problem.retry) == (FENCED, False)
    assert isinstance(two.commit(new, 1), CommitDone)


def test_only_one_of_two_takes_what_both_saw() -> None:
    rig = Rig()
    one, two = Host(rig, "one"), Host(rig, "two")
    view = one.look()
    assert isinstance(view, LeaseView)
    assert one.take(view) == 1
    assert two.take(view) is None


def test_a_unit_whose_answer_was_lost_is_stored_and_recognised_when_it_comes_again() -> None:
    rig = Rig()
    host = Host(rig, "one")
    port = host.lead()
    rig.disk.settings.lost_probability = 1.0
    assert isinstance(host.commit(port, 1), CommitFailed)
    assert rig.disk.store.peek(terms_of).drained == {"w@x/1"}
    rig.disk.settings.lost_probability = 0.0
    assert isinstance(host.commit(port, 1), CommitDone)
    assert isinstance(host.commit(port, 2), CommitDone)


def test_a_full_disk_says_so_before_it_is_full_and_stores_again_when_there_is_room() -> None:
    rig = Rig()
    host = Host(rig, "one")
    port = host.lead()
    assert port.shortage() is None
    rig.disk.settings.short = True
    assert port.shortage() is not None
    assert isinstance(host.commit(port, 1), CommitDone)
    rig.disk.settings.full = True
    assert isinstance(host.commit(port, 2), CommitFailed)
    rig.disk.settings.full = rig.disk.settings.short = False
    assert isinstance(host.commit(port, 2), CommitDone)


def test_a_database_that_went_down_has_lost_all_sessions_and_no_data() -> None:
    rig = Rig()
    host = Host(rig, "one")
    port = host.lead()
    assert isinstance(host.commit(port, 1), CommitDone)
    rig.disk.stop()
    assert isinstance(host.look(), StoreError)
    assert isinstance(host.commit(port, 2), CommitFailed)
    rig.disk.go_on()
    view = host.look()
    assert isinstance(view, LeaseView)
    assert (view.epoch, view.holder, view.connected) == (1, "one", False)
    renewed: list[bool | StoreError] = []
    host.book.renew(1, renewed.append)
    rig.run(1)
    again = host.look()
    assert renewed == [True]
    assert isinstance(again, LeaseView)
    assert again.connected
    assert rig.disk.store.peek(terms_of).drained == {"w@x/1"}


def test_over_a_way_that_is_cut_nobody_learns_anything() -> None:
    rig = Rig()
    one, two = Host(rig, "one"), Host(rig, "two")
    one.lead()
    one.way.cut = True
    assert isinstance(one.look(), StoreError)
    view = two.look()
    assert isinstance(view, LeaseView)
    assert view.connected, "the database has not noticed yet"
    one.way.end_session(one.way.session)
    view = two.look()
    assert isinstance(view, LeaseView)
    assert not view.connected
