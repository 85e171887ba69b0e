"""The hours in which a machine is lent: the text, the schedule, and the timer that watches the wall clock."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import pytest

from kestrel.errors import UsageError
from kestrel.worker.hours import Hours, moment
from kestrel.worker.opening import LOOK_S_MAX, Opening

MONDAY = datetime(2026, 11, 16)
NIGHTS = "Mon-Fri 20:00-07:00, Sat, Sun"


def at(day: int, hour: int, minute: int = 0) -> datetime:
    """Day 0 is a Monday."""
    return MONDAY + timedelta(days=day, hours=hour, minutes=minute)


@pytest.mark.parametrize(
    ("text", "local", "is_open"),
    [
        (NIGHTS, at(0, 6, 59), False),  # Sunday is whole, and has no night of its own
        (NIGHTS, at(0, 19, 59), False),
        (NIGHTS, at(0, 20), True),
        (NIGHTS, at(1, 6, 59), True),
        (NIGHTS, at(1, 7), False),
        (NIGHTS, at(4, 23), True),
        (NIGHTS, at(5, 6), True),
        (NIGHTS, at(5, 12), True),
        (NIGHTS, at(6, 23, 59), True),
        ("20:00-07:00", at(0, 3), True),
        ("20:00-07:00", at(0, 12), False),
        ("Sun 22:00-02:00", at(0, 1), True),  # over the end of the week
        ("Sun 22:00-02:00", at(1, 1), False),
        ("Fri-Mon 10:00-11:00", at(6, 10, 30), True),
        ("Fri-Mon 10:00-11:00", at(3, 10, 30), False),
        ("mon wednesday 08:00-10:00 14:00-24:00", at(2, 23, 59), True),
        ("mon wednesday 08:00-10:00 14:00-24:00", at(2, 12), False),
        ("mon wednesday 08:00-10:00 14:00-24:00", at(3, 0), False),
        ("Tue 0:00-0:01", at(1, 0), True),
        ("Tue 0:00-0:01", at(1, 0, 1), False),
    ],
)
def test_hours_mean_what_their_owner_wrote(text: str, local: datetime, is_open: bool) -> None:
    assert Hours.parse(text).open_at(local) is is_open


def test_the_next_change_is_the_first_minute_in_which_it_is_otherwise() -> None:
    hours = Hours.parse(NIGHTS)
    assert hours.next_change(at(0, 12, 30) + timedelta(seconds=5)) == at(0, 20)
    assert hours.next_change(at(0, 23)) == at(1, 7)
    assert hours.next_change(at(4, 21)) == at(7, 0), "night, Saturday and Sunday are one piece"
    assert Hours.parse("Mon-Sun").next_change(at(0, 0)) is None
    assert Hours.parse("Mon 00:00-00:01").next_change(at(0, 0, 1)) == at(7, 0)
    assert moment(at(0, 20)) == "Mon 20:00"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty part"),
        ("Mon,,Tue", "empty part"),
        ("Mo", "'Mo' in 'Mo' is no day"),
        ("Mon-", "'' in 'Mon-' is no day"),
        ("Mon 20-7", "'20-7' are no times"),
        ("Mon 20:00", "'20:00' are no times"),
        ("25:00-26:00", "no such time"),
        ("20:00-24:01", "no such time"),
        ("24:00-07:00", "no such time"),
        ("20:60-21:00", "no such time"),
        ("Mon 07:00-07:00", "same time"),
        ("20:00-07:00 Mon", "follows a time"),
        ("Mon " * 400, "longer than"),
    ],
)
def test_hours_that_make_no_sense_are_refused_with_an_example(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)) as caught:
        Hours.parse(text)
    assert caught.value.hint


# --- the watch ----------------------------------------------------------------------------------------


class Handle:
    def __init__(self, at_s: float, callback: Callable[[], None]) -> None:
        self.at_s = at_s
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class WallClock:
    """`Clock` whose two times the test turns; they need not agree."""

    def __init__(self, wall: float) -> None:
        self.time = 0.0
        self.offset = wall
        self.timers: list[Handle] = []

    def now(self) -> float:
        return self.time

    def wall(self) -> float:
        return self.time + self.offset

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Handle:
        assert 0 < delay_s <= LOOK_S_MAX
        self.timers.append(Handle(self.time + delay_s, callback))
        return self.timers[-1]

    def turn(self, seconds: float) -> None:
        end = self.time + seconds
        while due := [t for t in self.timers if t.at_s <= end and not t.cancelled]:
            timer = min(due, key=lambda t: t.at_s)
            self.timers.remove(timer)
            self.time = max(self.time, timer.at_s)
            timer.callback()
        self.time = end


def watched(text: str, begin: datetime, zone: ZoneInfo | None = None) -> tuple[WallClock, Opening, list[str]]:
    """A watch that writes down when, by the wall, it opened or closed."""
    clock = WallClock((begin.replace(tzinfo=zone) if zone else begin).timestamp())
    story: list[str] = []

    def local_time(unix: float) -> datetime:
        return datetime.fromtimestamp(unix, zone)

    def note() -> None:
        state = "opened" if opening.open else "closed"
        story.append(f"{state} {local_time(clock.wall()):%a %H:%M:%S}, next {opening.until()}")

    opening = Opening(clock, Hours.parse(text), note, local_time)
    return clock, opening, story


def test_the_watch_says_when_hours_begin_and_end_to_the_second() -> None:
    clock, opening, story = watched(NIGHTS, at(4, 19, 59) + timedelta(seconds=30))
    assert (opening.open, opening.until()) == (False, "Fri 20:00")
    clock.turn(3 * 86400)
    assert story == ["opened Fri 20:00:00, next Mon 00:00", "closed Mon 00:00:00, next Mon 20:00"]
    opening.close()
    clock.turn(7 * 86400)
    assert len(story) == 2


def test_a_wall_clock_that_was_set_is_believed_within_a_minute() -> None:
    clock, opening, story = watched(NIGHTS, at(0, 12))
    clock.turn(600)
    assert not opening.open
    clock.offset += 9 * 3600
    clock.turn(LOOK_S_MAX)
    assert opening.open
    assert len(story) == 1


@pytest.mark.parametrize(
    ("day", "story"),
    [
        # 2 o'clock becomes 3: half past two is left out, and what should begin then begins at 3
        (
            datetime(2026, 3, 29),
            ["opened Sun 03:00:00, next Sun 05:00", "closed Sun 05:00:00, next Mon 02:30"],
        ),
        # 3 o'clock becomes 2: the hour is repeated, and so is what happens in it
        (
            datetime(2026, 10, 25),
            [
                "opened Sun 02:30:00, next Sun 05:00",
                "closed Sun 02:00:00, next Sun 02:30",
                "opened Sun 02:30:00, next Sun 05:00",
                "closed Sun 05:00:00, next Mon 02:30",
            ],
        ),
    ],
)
def test_summer_time_changes_nothing_but_what_the_clock_on_the_wall_says(
    day: datetime, story: list[str]
) -> None:
    try:
        zone = ZoneInfo("Europe/Berlin")
    except ZoneInfoNotFoundError:
        if os.environ.get("CI"):
            raise
        pytest.skip("no time zone data: apt-get install tzdata")
    clock, _, told = watched("02:30-05:00", day, zone)
    clock.turn(12 * 3600)
    assert told == story


def test_without_hours_it_is_always_open_and_sets_no_timer() -> None:
    clock = WallClock(0.0)
    opening = Opening(clock, None, lambda: None)
    assert opening.open
    assert opening.until() == ""
    assert not clock.timers
