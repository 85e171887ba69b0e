"""The progress bar of `kestrel run`: on standard error, if a person looks at it, and else nothing.

Drawn on demand from the event loop, a few times a second; it owns no thread. Whoever prints to the
same terminal calls `hide` before. rich is imported when the first bar is drawn, because that takes
longer than many a bag of tasks. Called by `run`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from kestrel.cli.output import duration_text, is_terminal

if TYPE_CHECKING:
    from rich.progress import Progress

DRAW_S = 0.25
"""How often the bar is drawn."""
FIRST_S = 0.5
"""What is over before needs no bar."""
RATE_S = 10.0
"""The rate is that of the last so many seconds."""


@dataclass(slots=True)
class Tally:
    """Where a bag of tasks stands."""

    total: int | None = None
    done: int = 0
    failed: int = 0
    running: int = 0
    reruns: int = 0
    """Attempts that were lost with their worker, and made again."""
    skipped: int = 0
    """Tasks that an earlier run had done."""


class Rate:
    """Tasks per second over the last `RATE_S` seconds, from a bounded number of samples."""

    def __init__(self, now: float) -> None:
        self._samples: list[tuple[float, int]] = [(now, 0)]

    def add(self, now: float, done: int) -> None:
        """So many were done by now."""
        self._samples.append((now, done))
        while len(self._samples) > 2 and now - self._samples[1][0] >= RATE_S:
            del self._samples[0]

    def per_s(self) -> float:
        """0 as long as nothing is known."""
        (start, before), (end, after) = self._samples[0], self._samples[-1]
        return (after - before) / (end - start) if end > start else 0.0


class ProgressBar:
    """Shows a `Tally`. Does nothing unless `wanted` (None: if standard error is a terminal)."""

    def __init__(
        self,
        tally: Tally,
        stream: TextIO,
        *,
        wanted: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.tally = tally
        self.enabled = is_terminal(stream) and wanted is not False
        self._stream = stream
        self._clock = clock
        self._started = clock()
        self._rate = Rate(self._started)
        self._bar: Progress | None = None
        self._task: Any = None
        self._shown = False

    def draw(self) -> None:
        """Show the state as it is now."""
        now = self._clock()
        self._rate.add(now, self.tally.done)
        if not self.enabled or now - self._started < FIRST_S:
            return
        if self._bar is None:
            self._bar, self._task = _make_bar(self._stream)
        tally, rate = self.tally, self._rate.per_s()
        self._bar.update(
            self._task,
            completed=tally.done,
            total=tally.total,
            words=words(tally, rate),
            refresh=False,
        )
        if self._shown:
            self._bar.refresh()
        else:
            self._bar.start()
            self._shown = True

    def hide(self) -> None:
        """Take the bar away until it is drawn again."""
        if self._shown and self._bar is not None:
            self._bar.stop()
            self._shown = False

    def elapsed_s(self) -> float:
        """Since the beginning."""
        return self._clock() - self._started


def words(tally: Tally, rate: float) -> str:
    """What stands beside the bar: `12/50 · 3.1/s · 2 running · 1 failed · 12s left`."""
    parts = [f"{tally.done}/{'?' if tally.total is None else tally.total}", f"{_number(rate)}/s"]
    parts.append(f"{tally.running} running")
    if tally.failed:
        parts.append(f"{tally.failed} failed")
    if tally.reruns:
        parts.append(f"{tally.reruns} run again")
    if tally.total is not None and rate > 0 and tally.done < tally.total:
        parts.append(f"{duration_text((tally.total - tally.done) / rate)} left")
    return " · ".join(parts)


def summary(tally: Tally, elapsed_s: float) -> str:
    """The last line: what was done, in what time."""
    total = tally.done if tally.total is None else tally.total
    text = f"{tally.done} of {total} tasks done in {duration_text(elapsed_s)}"
    if elapsed_s > 0:
        text += f" ({_number(tally.done / elapsed_s)}/s)"
    text += f", {tally.failed} failed"
    if tally.reruns:
        text += f", {tally.reruns} run again after a worker was lost"
    if tally.skipped:
        text += f", {tally.skipped} skipped as done before"
    return text


def _number(rate: float) -> str:
    return f"{rate:.0f}" if rate >= 100 else f"{rate:.1f}" if rate >= 1 else f"{rate:.2g}"


def _make_bar(stream: TextIO) -> tuple[Progress, Any]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    bar = Progress(
        BarColumn(bar_width=30),
        TaskProgressColumn(),
        TextColumn("{task.fields[words]}", markup=False),
        console=Console(file=stream),
        auto_refresh=False,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    return bar, bar.add_task("", total=None, words="")
