"""The guard of logins, on a virtual clock: guessers are slow, their victims and neighbours are not."""

import pytest

from kestrel.server.guard import TOKENS, LoginGuard
from kestrel.server.settings import ServerLimits

LIMITS = ServerLimits()
HERE, ELSEWHERE = "192.0.2.1", "198.51.100.7"


@pytest.fixture
def guard():
    return LoginGuard(LIMITS)


def guesses(guard, seconds, *, per_s=100, account="ann", origin=HERE, begin=0.0):
    """How many wrong passwords are looked at when somebody tries `per_s` of them, on any number of lines."""
    looked = 0
    for step in range(int(seconds * per_s)):
        now = begin + step / per_s
        name = account if isinstance(account, str) else account(step)
        hold = guard.hold_s(origin, name, now)
        if hold is not None:
            guard.failed(origin, name, now + hold)
            looked += 1
    return looked


def test_who_fails_waits_longer_each_time_and_never_too_long(guard):
    delays = [guard.failed(HERE, "ann", 0.0) for _ in range(30)]
    assert delays[:4] == [1.0, 2.0, 3.0, 4.0]
    assert delays == sorted(delays)
    assert delays[-1] == LIMITS.login_failure_delay_s_max


def test_a_few_mistakes_cost_nobody_anything_else(guard):
    for _ in range(int(LIMITS.guard_failures) - 1):
        guard.failed(HERE, "ann", 0.0)
    assert guard.hold_s(HERE, "ann", 0.0) == 0.0


def test_a_guesser_gets_few_tries_however_many_lines_it_has(guard):
    hour = guesses(guard, 3600.0, per_s=10)
    paced = 3600.0 / LIMITS.guard_pace_s
    assert hour <= LIMITS.guard_failures + paced + LIMITS.guard_hold_s_max / LIMITS.guard_pace_s + 1
    assert hour >= paced / 2, "somebody who waits gets a turn"


def test_who_guesses_for_many_accounts_is_held_back_too(guard):
    names = guesses(guard, 60.0, per_s=1000, account=lambda step: f"name{step}")
    assert (
        names
        <= LIMITS.guard_origin_failures + (60.0 + LIMITS.guard_hold_s_max) / LIMITS.guard_origin_pace_s + 1
    )


def test_the_owner_comes_in_at_once_from_anywhere_else(guard):
    guesses(guard, 600.0)
    assert guard.hold_s(HERE, "ann", 600.0) is None
    assert guard.hold_s(ELSEWHERE, "ann", 600.0) == 0.0


def test_an_account_guessed_from_everywhere_is_not_locked(guard):
    for number in range(5000):
        guesses(guard, 0.1, origin=f"10.0.{number // 250}.{number % 250}", begin=number / 10)
    assert guard.hold_s(ELSEWHERE, "ann", 500.0) == 0.0
    assert guard.failed(ELSEWHERE, "ann", 500.0) == LIMITS.login_failure_delay_s_max


def test_workers_behind_the_address_of_a_guesser_come_in_at_once_if_they_were_there_before(guard):
    for number in range(1000):
        guard.succeeded(HERE, f"w{number}")
    guesses(guard, 60.0, account=lambda step: f"name{step}")
    assert [guard.hold_s(HERE, f"w{number}", 60.0) for number in range(1000)] == [0.0] * 1000


def test_workers_behind_the_address_of_a_guesser_come_in_within_minutes_if_nothing_is_known_of_them(guard):
    guesses(guard, 60.0, account=lambda step: f"name{step}")
    outside = {f"w{number}" for number in range(1000)}
    now = 60.0
    while outside and now < 400.0:
        # The guesser goes on, and each worker tries again after ten seconds.
        guesses(guard, 1.0, per_s=20, account=lambda step: f"name{step}", begin=now)
        inside = {name for name in sorted(outside) if guard.hold_s(HERE, name, now + 1.0) is not None}
        outside -= inside
        now += 10.0
    assert not outside


def test_many_sessions_of_the_account_that_is_guessed_from_their_own_address_still_come_in(guard):
    guard.succeeded(HERE, "ann")
    guesses(guard, 60.0)
    now, inside = 60.0, 0
    while inside < 1000 and now < 1000.0:
        hold = guard.hold_s(HERE, "ann", now)
        inside += hold is not None
        now += LIMITS.guard_known_pace_s
    assert inside == 1000


def test_a_thousand_right_passwords_from_one_address_are_no_failure(guard):
    for number in range(1000):
        assert guard.hold_s(HERE, f"w{number}", 0.0) == 0.0
        guard.succeeded(HERE, f"w{number}")
    assert guard.report(100.0) == []


def test_wrong_invitations_hold_back_a_network_and_not_each_other(guard):
    for _ in range(int(LIMITS.guard_origin_failures) - 1):
        guard.failed(HERE, TOKENS, 0.0)
    assert guard.hold_s(HERE, TOKENS, 0.0) == 0.0
    guard.failed(HERE, TOKENS, 0.0)
    assert guard.hold_s(HERE, TOKENS, 0.0) == 0.0
    assert guard.hold_s(HERE, TOKENS, 0.0) == LIMITS.guard_origin_pace_s
    assert guard.hold_s(ELSEWHERE, TOKENS, 0.0) == 0.0


def test_all_is_forgiven_after_a_while(guard):
    guesses(guard, 60.0)
    assert guard.hold_s(HERE, "ann", 60.0) is None
    assert guard.hold_s(HERE, "ann", 60.0 + 5 * LIMITS.guard_half_life_s) == 0.0


def test_memory_is_bounded(guard):
    limits = ServerLimits(guard_entries_max=100)
    guard = LoginGuard(limits)
    for number in range(5000):
        origin, account = f"o{number}", f"a{number}"
        guard.hold_s(origin, account, 0.0)
        guard.failed(origin, account, 0.0)
        guard.succeeded(origin, account)
    assert len(guard) <= 6 * limits.guard_entries_max


def test_the_log_names_guessers_once_a_minute_with_counts(guard):
    guard.failed(ELSEWHERE, "bob", 0.0)
    looked = guesses(guard, 10.0, per_s=10)
    (found,) = guard.report(10.0)
    assert (found.origin, found.failures, found.refused, found.accounts) == (HERE, looked, 100 - looked, 1)
    guesses(guard, 10.0, per_s=10, begin=10.0)
    assert guard.report(20.0) == []
    (found,) = guard.report(10.0 + LIMITS.guard_report_s)
    assert found.failures + found.refused == 100
    assert guard.report(1000.0) == []
