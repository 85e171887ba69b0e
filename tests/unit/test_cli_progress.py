"""The progress bar: there for a person, and only then."""

from __future__ import annotations

import io

from kestrel.cli.progress import ProgressBar, Rate, Tally, summary, words


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_nothing_is_drawn_where_no_person_looks() -> None:
    stream, clock = io.StringIO(), Clock()
    bar = ProgressBar(Tally(total=3), stream, wanted=True, clock=clock)
    clock.now = 10
    bar.draw()
    bar.hide()
    assert stream.getvalue() == ""
    assert not bar.enabled


def test_nothing_is_drawn_for_what_is_over_at_once_or_not_wanted() -> None:
    stream, clock = Terminal(), Clock()
    bar = ProgressBar(Tally(total=3), stream, clock=clock)
    clock.now = 0.4
    bar.draw()
    unwanted = ProgressBar(Tally(total=3), stream, wanted=False, clock=clock)
    clock.now = 100
    unwanted.draw()
    assert stream.getvalue() == ""


def test_a_terminal_sees_counts_and_the_bar_goes_away_again() -> None:
    stream, clock = Terminal(), Clock()
    tally = Tally(total=40)
    bar = ProgressBar(tally, stream, clock=clock)
    clock.now, tally.done, tally.failed = 2, 10, 1
    bar.draw()
    assert "10/40" in stream.getvalue()
    before = len(stream.getvalue())
    bar.hide()
    bar.hide()
    assert len(stream.getvalue()) > before
    tally.done = 20
    clock.now = 4
    bar.draw()
    bar.hide()
    assert "20/40" in stream.getvalue()


def test_words_say_what_is_known() -> None:
    assert words(Tally(total=None, done=3, running=2), 0.0) == "3/? · 0/s · 2 running"
    tally = Tally(total=50, done=12, failed=1, running=4, reruns=2)
    assert words(tally, 3.1) == "12/50 · 3.1/s · 4 running · 1 failed · 2 run again · 12.3s left"


def test_the_summary_is_one_line() -> None:
    tally = Tally(total=100, done=100, failed=2, reruns=1, skipped=7)
    assert summary(tally, 50) == (
        "100 of 100 tasks done in 50s (2.0/s), 2 failed, 1 run again after a worker was lost,"
        " 7 skipped as done before"
    )


def test_the_rate_is_that_of_the_last_seconds() -> None:
    rate = Rate(0)
    assert rate.per_s() == 0
    for second in range(1, 101):
        rate.add(second, second if second <= 50 else 50 + (second - 50) * 10)
    assert rate.per_s() == 10
