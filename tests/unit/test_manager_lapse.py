"""A manager whose lease has lapsed is silent and idle, goes on where it was, and leaves in order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kestrel.errors import StoreError
from kestrel.ports import FENCED, CommitFailed, Show
from kestrel.protocol import codec
from kestrel.protocol import messages as m
from parts.manager import USER, WORKER, Rig


class Lease:
    """Whether it has lapsed, as the test says."""

    def __init__(self) -> None:
        self.gone = False

    def __call__(self) -> bool:
        return self.gone


class Held:
    """Stands before a store and keeps its units until they are let go."""

    def __init__(self, rig: Rig) -> None:
        self.units: list[tuple[Any, Any, Any, int]] = []
        self._commit = rig.store.commit
        rig.store.commit = self._keep  # type: ignore[method-assign]
        self._rig = rig

    def _keep(self, writes: Any, reads: Any, done: Callable[[Any], None], *, unit: int = 0) -> None:
        self.units.append((writes, reads, done, unit))

    def let_go(self) -> None:
        """Store what came, and keep nothing more."""
        self._rig.store.commit = self._commit  # type: ignore[method-assign]
        for writes, reads, done, unit in self.units:
            self._commit(writes, reads, done, unit=unit)
        self._rig.run()


@pytest.fixture
def lease() -> Lease:
    return Lease()


@pytest.fixture
def rig(lease: Lease) -> Rig:
    return Rig(lapsed=lease)


def outgoing(rig: Rig) -> int:
    notes = rig.notes
    return len(notes.sent) + len(notes.said) + len(notes.presence) + len(notes.pings)


def test_a_lapsed_manager_handles_nothing_and_tells_nobody_anything(rig: Rig, lease: Lease):
    rig.join(cores=1)
    rig.ask(m.Job(command="true", queue=3))
    rig.tell(USER, m.Results(job=1, wait=True, id="waits"))
    rig.tell(USER, m.Watch(job=1))
    rig.run()
    rig.tell(USER, m.Output(job=1, task=0, id="relayed"))
    rig.run()
    relay = rig.to(WORKER, m.ReadOutput)[-1].id
    before, counts = outgoing(rig), rig.manager.scheduler.counts(1)
    lease.gone = True
    tasks = rig.to(WORKER, m.Tasks)[0]
    rig.finish(tasks)
    rig.tell(USER, m.Job(command="true", id="new"))
    rig.manager.on_message(USER, b"{", False)
    rig.manager.on_message(USER, b"flarble", True)
    rig.manager.on_available("bob@example.org/x", Show.ONLINE, "")
    rig.tell(WORKER, m.OutputPart(re=relay, job=1, task=0, data="eA==", size=1))
    rig.run(60)
    assert outgoing(rig) == before
    assert rig.manager.scheduler.counts(1) == counts


def test_it_goes_on_where_it_was_when_the_lease_is_renewed(rig: Rig, lease: Lease):
    rig.join(cores=1)
    rig.ask(m.Job(command="true"))
    tasks = rig.to(WORKER, m.Tasks)[0]
    lease.gone = True
    rig.finish(tasks)
    rig.tell(USER, m.Job(command="true", id="new"))
    rig.manager.on_message(USER, b"{", False)
    rig.manager.on_available("bob@example.org/x", Show.ONLINE, "")
    rig.run(10)
    rig.manager.resume()
    rig.run()
    assert not rig.to(WORKER, m.Ack), "still lapsed"
    lease.gone = False
    rig.manager.resume()
    rig.run()
    assert [(a.n, a.epoch) for a in rig.to(WORKER, m.Ack)] == [(1, 1)]
    assert [a.job for a in rig.to(USER, m.Accepted)] == [1, 2]
    assert [e.code for e in rig.to(USER, m.Error)] == ["bad_json"]
    assert ("bob@example.org/x", Show.ONLINE) in rig.notes.presence
    assert rig.ask(m.Pool()).count == 1


def test_what_is_stored_after_the_lapse_is_told_after_the_renewal(rig: Rig, lease: Lease):
    rig.join(cores=1)
    held = Held(rig)
    rig.tell(USER, m.Job(command="true"))
    rig.run()
    assert len(held.units) == 1
    lease.gone = True
    held.let_go()
    rig.run(5)
    assert not rig.to(USER, m.Accepted)
    assert not rig.to(WORKER, m.Tasks)
    lease.gone = False
    rig.manager.resume()
    assert [a.job for a in rig.to(USER, m.Accepted)] == [1]
    assert len(rig.to(WORKER, m.Tasks)) == 1
    rig.manager.resume()
    assert len(rig.to(WORKER, m.Tasks)) == 1


def test_what_is_kept_while_lapsed_is_bounded(rig: Rig, lease: Lease):
    lease.gone = True
    bound = rig.manager.settings.inbox_max
    for _ in range(bound + 10):
        rig.manager.tell_now(lambda: None)
    assert len(rig.manager._kept) == bound
    assert rig.manager.counters["dropped"] == 10


def test_a_replaced_manager_ends_and_tells_nothing(rig: Rig):
    rig.join(cores=1)
    ended: list[Exception] = []
    rig.manager.on_failed = ended.append
    fenced = StoreError("another manager has taken over", code=FENCED)

    def refuse(_writes: object, _reads: object, done: Callable[[Any], None], *, unit: int) -> None:
        rig.clock.call_later(0, lambda: done(CommitFailed(fenced)))

    rig.store.commit = refuse  # type: ignore[method-assign, assignment]
    before = outgoing(rig)
    rig.tell(USER, m.Job(command="true"))
    rig.run(5)
    rig.manager.close()
    assert ended == [fenced]
    assert outgoing(rig) == before


def test_units_are_numbered_and_tried_again_under_their_number(rig: Rig):
    numbers: list[int] = []
    commit = rig.store.commit
    busy = StoreError("the connection broke", retry=True)
    failures = [True, True, False, False, False, False]

    def watch(writes: Any, reads: Any, done: Callable[[Any], None], *, unit: int) -> None:
        numbers.append(unit)
        if failures.pop(0):
            rig.clock.call_later(0, lambda: done(CommitFailed(busy)))
        else:
            commit(writes, reads, done, unit=unit)

    rig.ask(m.Job(command="true"))
    rig.store.commit = watch  # type: ignore[method-assign, assignment]
    rig.tell(USER, m.Job(command="true"))
    rig.run(5)
    rig.ask(m.Results(job=1))
    rig.ask(m.Job(command="true"))
    assert numbers == [2, 2, 2, 3, 4]


class TestLeaving:
    """Who waits for an answer hears what to do."""

    def test_whoever_waits_is_told_that_the_manager_is_leaving(self, rig: Rig):
        rig.join(cores=1)
        rig.ask(m.Job(command="true", queue=2))
        rig.tell(USER, m.Results(job=1, wait=True, id="waits"))
        rig.tell(USER, m.Output(job=1, task=0, id="relayed"))
        rig.run()
        held = Held(rig)
        rig.tell(USER, m.Job(command="true", id="under way"))
        rig.tell(USER, m.ListTasks(job=1, id="asked"))
        rig.run()
        rig.tell(USER, m.Job(command="true", id="in the inbox"))
        rig.notes.sent.clear()
        rig.manager.close()
        errors = rig.to(USER, m.Error)
        assert {e.re for e in errors} == {"waits", "relayed", "under way", "asked", "in the inbox"}
        assert len(errors) == 5
        assert {(e.code, e.hint) for e in errors} == {("going", "repeat the request: it is safe")}
        assert (WORKER, Show.XA) in rig.notes.presence, "withdrawn"
        held.let_go()
        rig.run(5)
        assert not rig.to(USER, m.Accepted)

    def test_a_submission_under_way_is_the_same_job_when_it_is_repeated(self, rig: Rig):
        held = Held(rig)
        rig.tell(USER, m.Job(command="true", id="mine"))
        rig.run()
        rig.manager.close()
        held.let_go()
        rig.restart()
        again = rig.ask(m.Job(command="true", id="mine"))
        assert (again.job, again.re) == (1, "mine")
        assert len(rig.ask(m.Status()).jobs) == 1

    def test_a_submission_without_id_is_not_to_be_repeated_blindly(self, rig: Rig):
        held = Held(rig)
        rig.tell(USER, m.Job(command="true"))
        rig.run()
        rig.manager.close()
        (error,) = rig.to(USER, m.Error)
        assert error.code == "going"
        assert "look" in error.hint
        held.let_go()

    def test_a_lapsed_manager_leaves_without_a_word(self, rig: Rig, lease: Lease):
        rig.join(cores=1)
        rig.ask(m.Job(command="true"))
        rig.tell(USER, m.Results(job=1, wait=True))
        rig.run()
        before = outgoing(rig)
        lease.gone = True
        rig.tell(USER, m.Job(command="true"))
        rig.manager.close()
        assert outgoing(rig) == before

    def test_what_was_stored_is_told_before_it_goes(self, rig: Rig, lease: Lease):
        held = Held(rig)
        rig.tell(USER, m.Job(command="true"))
        rig.run()
        lease.gone = True
        held.let_go()
        lease.gone = False
        rig.manager.close()
        assert [type(message) for _, message, _ in rig.notes.sent] == [m.Accepted]

    def test_people_are_told_in_words(self, rig: Rig):
        rig.manager.on_message(USER, b"status", True)
        rig.manager.close()
        ((to, words),) = rig.notes.said
        assert to == USER.partition("/")[0]
        assert "this manager is leaving" in words


def test_messages_that_come_after_the_end_change_nothing(rig: Rig):
    rig.manager.close()
    before = outgoing(rig)
    rig.manager.on_up("manager.example.org")
    rig.manager.on_available(WORKER, Show.CHAT, "")
    rig.manager.on_message(USER, codec.encode(m.Status()), False)
    rig.manager.on_heard(WORKER)
    rig.manager.on_unavailable(WORKER, "")
    rig.manager.resume()
    rig.run(10)
    assert outgoing(rig) == before
