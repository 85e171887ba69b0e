"""One manager acts at a time: who stands by takes the lease neither too early nor too late."""

from __future__ import annotations

import pytest

from kestrel.errors import InternalError, StoreError, UsageError
from kestrel.manager.leadership import Leadership, LeaseSettings
from kestrel.ports import FENCED
from kestrel.sim.clock import Timeline
from parts.leases import Candidate, Row, pass_time

LEASE = LeaseSettings()


class Pool:
    """Two candidates on one row; the first has the lease."""

    def __init__(self) -> None:
        self.timeline = Timeline()
        self.row = Row()
        self.first = self.candidate("first", origin=1000.0)
        self.first.leadership.stand_by()
        self.run(0.1)
        self.second = self.candidate("second", origin=77.0)
        self.second.leadership.stand_by()
        self.run(1.0)

    def candidate(self, name: str, origin: float = 0.0) -> Candidate:
        return Candidate(self.timeline, self.row, name, LEASE, origin)

    def run(self, seconds: float) -> None:
        pass_time(self.timeline, seconds)

    def until_taken(self, candidate: Candidate, limit_s: float) -> float:
        """Seconds until it has the lease; fails if that takes longer than allowed."""
        start = self.timeline.now
        while not candidate.leadership.held:
            assert self.timeline.now - start < limit_s, f"{candidate.name} does not take the lease"
            self.timeline.step()
        return self.timeline.now - start


@pytest.fixture
def pool() -> Pool:
    return Pool()


def test_an_empty_database_is_taken_at_once_and_by_one_only():
    timeline, row = Timeline(), Row()
    both = [Candidate(timeline, row, name) for name in ("a", "b")]
    for candidate in both:
        candidate.leadership.stand_by()
    pass_time(timeline, 0.1)
    assert [c.leadership.held for c in both] == [True, False]
    assert both[0].words("taken") == [("taken", 1)]
    assert row.epoch == 1


def test_a_lease_that_is_renewed_is_not_taken(pool: Pool):
    pool.run(60)
    assert pool.first.acts()
    assert not pool.second.leadership.held
    assert pool.row.epoch == 1
    assert {view.holder for _, view in pool.second.words("view")} == {"first"}  # type: ignore[attr-defined]


def test_a_lease_that_was_given_back_is_taken_with_the_next_look(pool: Pool):
    answered: list[float] = []
    pool.first.leadership.release(lambda: answered.append(pool.timeline.now))
    assert not pool.first.acts()
    took_s = pool.until_taken(pool.second, 1)
    assert answered
    assert took_s <= LEASE.poll_s + 0.1
    assert pool.second.words("taken") == [("taken", 2)]


def test_a_killed_holder_is_replaced_soon_and_not_at_once(pool: Pool):
    pool.first.kill()
    took_s = pool.until_taken(pool.second, 2)
    assert LEASE.orphan_s <= took_s <= LEASE.orphan_s + 2 * LEASE.poll_s + 0.1


def test_a_holder_that_reconnects_within_a_moment_stays(pool: Pool):
    pool.first.line.cut()
    pool.run(0.3)
    pool.first.line.row.session = pool.first.line.session
    pool.run(10)
    assert pool.first.acts()
    assert pool.row.epoch == 1


def test_a_stopped_holder_has_lapsed_before_it_is_replaced_and_is_told_when_it_wakes(pool: Pool):
    pool.first.clock.suspend()
    while not pool.second.leadership.held:
        pool.timeline.step()
        assert pool.first.leadership.lapsed() or not pool.second.leadership.held
    pool.run(3600)
    pool.first.clock.resume()
    assert pool.first.leadership.lapsed()
    pool.run(0.1)
    assert pool.first.words("lost") == [("lost", FENCED)]
    assert not pool.first.leadership.held
    pool.run(10)
    assert pool.second.acts()
    assert pool.first.words("lost") == [("lost", FENCED)]


def test_a_holder_that_was_stopped_for_a_moment_goes_on_after_a_renewal(pool: Pool):
    pool.second.leadership.close()
    pool.first.clock.suspend()
    pool.run(20)
    pool.first.clock.resume()
    renewed = len(pool.first.words("renewed"))
    assert pool.first.leadership.lapsed()
    pool.run(0.05)
    assert not pool.first.leadership.lapsed()
    assert len(pool.first.words("renewed")) == renewed + 1


def test_a_machine_whose_monotonic_clock_slept_has_lapsed_by_the_wall_clock(pool: Pool):
    pool.first.clock.wall_offset_s += 3600
    assert pool.first.leadership.lapsed()
    pool.run(LEASE.renew_s + 0.1)
    assert not pool.first.leadership.lapsed()


def test_a_wall_clock_that_jumps_back_changes_nothing(pool: Pool):
    pool.first.clock.wall_offset_s -= 3600
    assert not pool.first.leadership.lapsed()
    pool.first.line.broken = True
    pool.run(LEASE.lease_s)
    assert pool.first.leadership.lapsed()


def test_time_is_counted_from_when_a_renewal_was_sent(pool: Pool):
    pool.second.leadership.close()
    pool.run(1)
    pool.first.line.back_s = LEASE.lease_s + 1
    renewals = pool.first.line.asked.count("renew")
    while pool.first.line.asked.count("renew") == renewals:
        pool.timeline.step()
    sent = pool.timeline.now
    told = len(pool.first.words("renewed"))
    pool.run(LEASE.lease_s - LEASE.margin_s - 0.01)
    assert pool.first.leadership.lapsed(), "the renewal before this one has run out"
    pool.run(2)
    assert pool.timeline.now > sent + LEASE.lease_s
    assert pool.first.leadership.lapsed(), "the answer came when what it allows was over"
    assert len(pool.first.words("renewed")) == told


def test_a_database_that_is_away_is_asked_again_and_its_holder_stays(pool: Pool):
    for candidate in (pool.first, pool.second):
        candidate.line.broken = True
    pool.row.session = None
    pool.run(30)
    assert pool.first.leadership.held
    assert pool.first.leadership.lapsed()
    for candidate in (pool.first, pool.second):
        candidate.line.broken = False
    pool.run(5)
    assert pool.first.acts()
    assert pool.row.epoch == 1


def test_a_database_that_hangs_is_not_asked_twice(pool: Pool):
    for candidate in (pool.first, pool.second):
        candidate.line.delay_s = 60.0
    pool.run(50)
    for candidate in (pool.first, pool.second):
        assert candidate.line.most_open == 1
        assert sum(candidate.line.open.values()) == 1


def test_who_was_slower_goes_on_standing_by(pool: Pool):
    third = pool.candidate("third")
    third.leadership.stand_by()
    pool.run(0.1)
    pool.first.kill()
    pool.run(5)
    assert pool.second.leadership.held != third.leadership.held
    assert pool.row.epoch == 2
    winner, other = (pool.second, third) if pool.second.leadership.held else (third, pool.second)
    winner.kill()
    pool.run(2)
    assert other.words("taken") == [("taken", 3)]


def test_a_take_whose_answer_is_lost_is_not_believed_and_is_waited_for(pool: Pool):
    pool.first.kill()
    pool.second.line.deaf.add("take")
    pool.run(3)
    assert pool.row.holder == "second"
    epoch = pool.row.epoch
    assert not pool.second.leadership.held
    pool.second.line.deaf.clear()
    took_s = pool.until_taken(pool.second, LEASE.lease_s + 1)
    assert took_s >= 1, "its session is there, so the full time counts"
    assert pool.second.words("taken") == [("taken", epoch + 1)]


@pytest.mark.parametrize("ends", ["close", "release"])
def test_a_lease_that_is_granted_after_the_end_is_given_back(pool: Pool, ends: str):
    pool.first.leadership.release()
    while "take" not in pool.second.line.asked:
        pool.timeline.step()
    done: list[bool] = []
    if ends == "close":
        pool.second.leadership.close()
    else:
        pool.second.leadership.release(lambda: done.append(True))
        assert not done
    pool.run(1)
    assert (pool.row.epoch, pool.row.holder) == (2, "")
    assert pool.second.words("taken") == []
    assert done == ([] if ends == "close" else [True])


def test_nothing_is_told_after_the_end(pool: Pool):
    pool.first.leadership.close()
    pool.second.leadership.close()
    told = len(pool.first.told), len(pool.second.told)
    pool.row.epoch = 9
    pool.run(30)
    assert (len(pool.first.told), len(pool.second.told)) == told
    assert pool.first.leadership.lapsed()


def test_release_is_answered_though_the_database_fails(pool: Pool):
    pool.first.line.broken = True
    done: list[bool] = []
    pool.first.leadership.release(lambda: done.append(True))
    pool.second.leadership.release(lambda: done.append(False))
    assert done == [False], "who stands by has nothing to give back"
    pool.run(1)
    assert done == [False, True]


def test_a_candidacy_begins_once(pool: Pool):
    with pytest.raises(InternalError):
        pool.first.leadership.stand_by()


def test_settings_that_cannot_work_are_refused():
    assert LeaseSettings.of(5.0) == LeaseSettings()
    for wrong in ({"renew_s": 4.5}, {"lease_s": 0.5}, {"margin_s": 0.0}, {"poll_s": 0.0}):
        with pytest.raises(UsageError, match="lease of"):
            LeaseSettings(**wrong)
    with pytest.raises(UsageError):
        LeaseSettings.of(0.0)


def test_a_lease_that_cannot_be_renewed_for_long_is_given_up_where_somebody_else_may_take_it(pool: Pool):
    candidate = Candidate(pool.timeline, Row(), "third", LEASE)
    candidate.leadership = Leadership(candidate.clock, candidate.line, "third", LEASE, patience_s=3.0)
    lost: list[StoreError] = []
    candidate.leadership.on_lost = lost.append
    candidate.leadership.stand_by()
    pool.run(2)
    candidate.line.broken = True
    pool.run(LEASE.lease_s + 1)
    assert candidate.leadership.lapsed()
    assert not lost
    pool.run(3)
    assert [problem.retry for problem in lost] == [True]
    asked = len(candidate.line.asked)
    candidate.line.broken = False
    pool.run(10)
    assert len(candidate.line.asked) == asked
    assert candidate.leadership.lapsed()


def test_a_lease_that_cannot_be_renewed_is_kept_by_who_would_not_stand_by_again(pool: Pool):
    pool.second.leadership.close()
    pool.first.line.broken = True
    pool.run(600)
    assert pool.first.leadership.lapsed()
    pool.first.line.broken = False
    pool.run(1)
    assert pool.first.acts()


def test_trouble_for_which_the_owner_gives_up_is_his_to_tell(caplog: pytest.LogCaptureFixture):
    timeline, row = Timeline(), Row()
    first, second = Candidate(timeline, row, "a"), Candidate(timeline, row, "b")
    for candidate in (first, second):
        candidate.line.broken = True
    second.leadership.on_trouble = lambda _problem: second.leadership.close()
    with caplog.at_level("WARNING", logger="kestrel.manager"):
        second.leadership.stand_by()
        pass_time(timeline, 2)
        assert (second.line.asked, caplog.records) == (["look"], [])
        first.leadership.stand_by()
        pass_time(timeline, 2)
    assert len(first.line.asked) > 1
    assert [r.getMessage() for r in caplog.records] == ["lease_not_seen"]
