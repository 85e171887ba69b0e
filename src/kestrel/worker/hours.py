"""In which hours of the week a machine may be used: the text that its owner writes, and what it means.

Pure: the local wall time comes as an argument. Times are those of the clock on the wall, so nothing has to be
known about summer time: 20:00 is when that clock says so. In the night in which an hour is repeated, what
happens in that hour happens twice; in the one in which it is left out, at its end. Called by the worker's
`opening` and by the command line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta

from kestrel.errors import UsageError

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
DAY_MINUTES = 24 * 60
WEEK_MINUTES = 7 * DAY_MINUTES
HOURS_CHARS_MAX = 1000
HINT = "e.g. --hours 'Mon-Fri 20:00-07:00, Sat, Sun'"

_FULL_NAMES = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_TIMES = re.compile(r"([0-9]{1,2}):([0-9]{2})-([0-9]{1,2}):([0-9]{2})")


@dataclass(frozen=True, slots=True)
class Hours:
    """A schedule that repeats each week."""

    text: str
    marks: bytes
    """One byte per minute of the week from Monday 00:00 on: 1 where the machine may be used."""

    @classmethod
    def parse(cls, text: str) -> Hours:
        """Read `DAYS [TIMES], …`; raises `UsageError` that says what is wrong.

        DAYS: `Mon`, `Mon-Fri`, `Fri-Mon`, several with spaces between, or none (every day).
        TIMES: `HH:MM-HH:MM`, several with spaces between, or none (all day). A range that ends before it
        begins ends on the next day, and belongs to the day on which it begins.
        """
        if len(text) > HOURS_CHARS_MAX:
            raise UsageError(f"the hours are longer than {HOURS_CHARS_MAX} characters", hint=HINT)
        marks = bytearray(WEEK_MINUTES)
        for entry in text.split(","):
            days, ranges = _read_entry(entry, text)
            for day in days:
                for begin, end in ranges:
                    for minute in range(day * DAY_MINUTES + begin, day * DAY_MINUTES + end):
                        marks[minute % WEEK_MINUTES] = 1
        return cls(" ".join(text.split()), bytes(marks))

    def open_at(self, local: datetime) -> bool:
        """Whether the machine may be used at this local time."""
        return bool(self.marks[_minute_of_week(local)])

    def next_change(self, local: datetime) -> datetime | None:
        """When, by the clock on the wall, that becomes otherwise; None: never."""
        now = _minute_of_week(local)
        state = self.marks[now]
        for ahead in range(1, WEEK_MINUTES):
            if self.marks[(now + ahead) % WEEK_MINUTES] != state:
                return local.replace(second=0, microsecond=0) + timedelta(minutes=ahead)
        return None

    def __str__(self) -> str:
        return self.text


def moment(local: datetime) -> str:
    """`Mon 20:00`, for people."""
    return f"{DAYS[local.weekday()]} {local:%H:%M}"


def _minute_of_week(local: datetime) -> int:
    return local.weekday() * DAY_MINUTES + local.hour * 60 + local.minute


def _read_entry(entry: str, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Days, and ranges in minutes of a day; a range may end beyond it."""
    days: list[int] = []
    ranges: list[tuple[int, int]] = []
    words = entry.split()
    if not words:
        raise UsageError(f"the hours {text!r} contain an empty part", hint=HINT)
    for word in words:
        if word[0].isdigit():
            ranges.append(_read_times(word))
        elif ranges:
            raise UsageError(
                f"in the hours {entry.strip()!r} the day {word!r} follows a time",
                hint=f"put a comma before it; {HINT}",
            )
        else:
            days += _read_days(word)
    return days or list(range(7)), ranges or [(0, DAY_MINUTES)]


def _read_days(word: str) -> list[int]:
    first, dash, last = word.partition("-")
    begin = _read_day(first, word)
    end = _read_day(last, word) if dash else begin
    return [(begin + i) % 7 for i in range((end - begin) % 7 + 1)]


def _read_day(name: str, word: str) -> int:
    folded = name.casefold()
    for number, full in enumerate(_FULL_NAMES):
        if len(folded) >= 3 and full.startswith(folded):
            return number
    raise UsageError(f"{name!r} in {word!r} is no day of the week", hint=f"use {', '.join(DAYS)}; {HINT}")


def _read_times(word: str) -> tuple[int, int]:
    match = _TIMES.fullmatch(word)
    if match is None:
        raise UsageError(f"{word!r} are no times", hint=f"write 20:00-07:00; {HINT}")
    begin, end = _minutes(match[1], match[2]), _minutes(match[3], match[4])
    if begin is None or end is None or begin == DAY_MINUTES:
        raise UsageError(
            f"there is no such time in {word!r}", hint="times go from 00:00 to 23:59; the end to 24:00"
        )
    if begin == end:
        raise UsageError(
            f"{word!r} begins and ends at the same time", hint="for the whole day name the day alone"
        )
    return begin, end if end > begin else end + DAY_MINUTES


def _minutes(hours: str, minutes: str) -> int | None:
    total = int(hours) * 60 + int(minutes)
    return total if int(minutes) < 60 and total <= DAY_MINUTES else None
