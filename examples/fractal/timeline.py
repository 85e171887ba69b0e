#!/usr/bin/env python3
"""Draw which worker ran which task when, as a PNG.

    python timeline.py records.jsonl timeline.png

Each line of the input is a JSON object, either an attempt

    {"worker": "w1", "task": 17, "attempt": 4711, "started": 12.5, "ended": 12.9, "outcome": "completed"}

or something that happened to a worker: `joined`, `killed` (by whoever tells the story) or `lost`
(the pool saw that it was gone)

    {"worker": "w1", "mark": "killed", "at": 20.0}

Times are seconds of one clock; the earliest is drawn as 0. An attempt with the outcome `lost` went
down with its worker; later attempts of the same task are drawn as run again. One with the outcome
`requeued` never started, and is not drawn. A worker gets a lane per attempt that it ran at a time.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import font
import png

Colour = tuple[int, int, int]
PAPER: Colour = (252, 252, 254)
INK: Colour = (28, 34, 48)
PALE_INK: Colour = (112, 120, 138)
GRID: Colour = (222, 226, 234)
LANE: Colour = (238, 241, 247)
ABSENT: Colour = (214, 217, 224)
RAN: tuple[Colour, Colour] = ((38, 98, 178), (92, 150, 222))
"""Two shades in turn, so that neighbours can be told apart."""
FAILED: Colour = (126, 60, 160)
LOST: Colour = (208, 34, 44)
AGAIN: Colour = (246, 150, 20)

WIDTH = 1800
MARGIN = 36
LANE_HEIGHT = 30
LANE_GAP = 4
WORKER_GAP = 18
BAR_WIDTH_MIN = 2
STORY_WIDTH_MIN = 7
"""Lost and repeated attempts are drawn at least so wide: they are what one looks for."""
HATCH_PERIOD = 10
TICKS_MAX = 14
TICK_STEPS_S = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400)


@dataclass(frozen=True)
class Attempt:
    """One try at a task; times in seconds."""

    worker: str
    task: int
    attempt: int
    started: float
    ended: float
    outcome: str


@dataclass(frozen=True)
class Mark:
    """Something that happened to a worker: `joined`, `killed` or `lost`."""

    worker: str
    mark: str
    at: float


def read_records(lines: Iterable[str]) -> tuple[list[Attempt], list[Mark]]:
    """Attempts and marks, each by time; `ValueError` names a bad line. Empty lines do not count."""
    attempts: list[Attempt] = []
    marks: list[Mark] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if "mark" in record:
                marks.append(Mark(str(record["worker"]), str(record["mark"]), float(record["at"])))
            else:
                attempts.append(
                    Attempt(
                        str(record["worker"]),
                        int(record["task"]),
                        int(record["attempt"]),
                        float(record["started"]),
                        float(record["ended"]),
                        str(record["outcome"]),
                    )
                )
        except (ValueError, TypeError, KeyError) as problem:
            raise ValueError(f"line {number} is no record: {problem!r}") from problem
    attempts.sort(key=lambda a: (a.started, a.attempt))
    marks.sort(key=lambda m: m.at)
    return attempts, marks


def lanes_of(attempts: list[Attempt]) -> list[list[Attempt]]:
    """One worker's attempts, by start, dealt to as few lanes as keep them from overlapping."""
    lanes: list[list[Attempt]] = []
    for attempt in attempts:
        for lane in lanes:
            # Clocks are read one after the other: a hair of overlap is not a second slot.
            if lane[-1].ended <= attempt.started + 0.002:
                lane.append(attempt)
                break
        else:
            lanes.append([attempt])
    return lanes or [[]]


def run_again(attempts: list[Attempt]) -> set[int]:
    """Ids of the attempts at tasks of which an earlier attempt was lost. `attempts` are by start."""
    lost: set[int] = set()
    again: set[int] = set()
    for attempt in attempts:
        if attempt.task in lost:
            again.add(attempt.attempt)
        if attempt.outcome == "lost":
            lost.add(attempt.task)
    return again


def tick_step_s(span_s: float) -> float:
    """A round distance between ticks, such that there are at most `TICKS_MAX`."""
    return next((s for s in TICK_STEPS_S if span_s / s <= TICKS_MAX), TICK_STEPS_S[-1])


def natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts `worker-2` before `worker-10`."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]


class Canvas:
    """A picture in memory. Whatever lies outside is cut off."""

    def __init__(self, width: int, height: int, colour: Colour) -> None:
        self.width = width
        self.height = height
        self.rows = [bytearray(bytes(colour) * width) for _ in range(height)]

    def fill(self, left: int, top: int, right: int, bottom: int, colour: Colour) -> None:
        """Paint the pixels [left, right) x [top, bottom)."""
        left, right = max(0, left), min(self.width, right)
        if right <= left:
            return
        stripe = bytes(colour) * (right - left)
        for y in range(max(0, top), min(self.height, bottom)):
            self.rows[y][3 * left : 3 * right] = stripe

    def hatch(self, left: int, top: int, right: int, bottom: int, colour: Colour) -> None:
        """Paint slanting stripes over the pixels [left, right) x [top, bottom)."""
        for y in range(max(0, top), min(self.height, bottom)):
            for x in range(max(0, left), min(self.width, right)):
                if (x + y) % HATCH_PERIOD < 2:
                    self.rows[y][3 * x : 3 * x + 3] = bytes(colour)

    def text(self, left: int, top: int, text: str, colour: Colour, scale: int = 2) -> None:
        """Write one line; `top` is the top of the capitals."""
        for place, character in enumerate(text):
            x = left + place * (font.WIDTH + 1) * scale
            glyph = font.GLYPHS.get(character, font.GLYPHS[font.UNKNOWN])
            for row, pixels in enumerate(glyph):
                y = top + row * scale
                for column, pixel in enumerate(pixels):
                    if pixel == "#":
                        at = x + column * scale
                        self.fill(at, y, at + scale, y + scale, colour)


class Timeline:
    """Lays out the lanes and paints them. Use `draw`."""

    def __init__(self, attempts: list[Attempt], marks: list[Mark], title: str) -> None:
        self.attempts = attempts = [a for a in attempts if a.outcome != "requeued"]
        self.marks = marks
        self.title = title
        times = [a.started for a in attempts] + [m.at for m in marks]
        self.start = min(times, default=0.0)
        self.end = max([a.ended for a in attempts] + [m.at for m in marks], default=1.0)
        self.end = max(self.end, self.start + 0.001)
        self.workers = sorted({a.worker for a in attempts} | {m.worker for m in marks}, key=natural)
        self.lanes = {w: lanes_of([a for a in attempts if a.worker == w]) for w in self.workers}
        self.again = run_again(attempts)
        labels = max((font.text_width(w, 2) for w in self.workers), default=0)
        self.left = MARGIN + labels + 20
        self.right = WIDTH - MARGIN
        self.top = MARGIN + 92
        self.lane_tops: dict[str, int] = {}
        y = self.top
        for worker in self.workers:
            self.lane_tops[worker] = y
            y += len(self.lanes[worker]) * (LANE_HEIGHT + LANE_GAP) - LANE_GAP + WORKER_GAP
        self.bottom = y - WORKER_GAP + 8
        self.canvas = Canvas(WIDTH, self.bottom + 118, PAPER)

    def x(self, at: float) -> int:
        """Column of a time."""
        part = (at - self.start) / (self.end - self.start)
        return self.left + round(part * (self.right - self.left))

    def draw(self) -> Canvas:
        """Paint everything."""
        self._heading()
        for worker in self.workers:
            self._lanes(worker)
        self._axis()
        for worker in self.workers:
            self._attempts(worker)
            self._kill(worker)
        self._legend()
        return self.canvas

    def _heading(self) -> None:
        self.canvas.text(MARGIN, MARGIN, self.title, INK, scale=3)
        tasks = len({a.task for a in self.attempts})
        lost = sum(a.outcome == "lost" for a in self.attempts)
        words = (
            f"{tasks} tasks, {len(self.attempts)} attempts on {len(self.workers)} workers, "
            f"{lost} lost with a worker, {len(self.again)} run again, {self.end - self.start:.1f} s"
        )
        self.canvas.text(MARGIN, MARGIN + 40, words, PALE_INK)

    def _presence(self, worker: str) -> tuple[float, float]:
        """When the worker was there: from `joined` (or ever) to `killed` or `lost` (or on)."""
        marks = [m for m in self.marks if m.worker == worker]
        joined = [m.at for m in marks if m.mark == "joined"]
        gone = [m.at for m in marks if m.mark in ("killed", "lost")]
        return min(joined, default=self.start), min(gone, default=self.end)

    def _lanes(self, worker: str) -> None:
        came, went = self._presence(worker)
        for number in range(len(self.lanes[worker])):
            top = self.lane_tops[worker] + number * (LANE_HEIGHT + LANE_GAP)
            bottom = top + LANE_HEIGHT
            self.canvas.fill(self.left, top, self.right, bottom, LANE)
            self.canvas.hatch(self.left, top, self.x(came), bottom, ABSENT)
            self.canvas.hatch(self.x(went), top, self.right, bottom, ABSENT)
        self.canvas.text(MARGIN, self._middle(worker) - 7, worker, INK)

    def _middle(self, worker: str) -> int:
        lanes = len(self.lanes[worker])
        return self.lane_tops[worker] + (lanes * (LANE_HEIGHT + LANE_GAP) - LANE_GAP) // 2

    def _axis(self) -> None:
        step = tick_step_s(self.end - self.start)
        digits = 0 if step >= 1 else 1
        tick = 0
        while (at := self.start + tick * step) <= self.end:
            x = self.x(at)
            self.canvas.fill(x, self.top - 10, x + 1, self.bottom + 6, GRID)
            self.canvas.fill(x, self.bottom, x + 1, self.bottom + 8, PALE_INK)
            label = f"{tick * step:.{digits}f} s"
            width = font.text_width(label, 2)
            left = min(x - width // 2, self.right - width)
            self.canvas.text(left, self.bottom + 14, label, PALE_INK)
            tick += 1
        self.canvas.fill(self.left, self.bottom, self.right, self.bottom + 2, PALE_INK)

    def _attempts(self, worker: str) -> None:
        for number, lane in enumerate(self.lanes[worker]):
            top = self.lane_tops[worker] + number * (LANE_HEIGHT + LANE_GAP)
            # What matters is painted last, so that nothing covers it.
            for story in (False, True):
                for place, attempt in enumerate(lane):
                    if self._is_story(attempt) is story:
                        self._bar(attempt, RAN[place % 2], top)

    def _is_story(self, attempt: Attempt) -> bool:
        return attempt.outcome == "lost" or attempt.attempt in self.again

    def _bar(self, attempt: Attempt, shade: Colour, top: int) -> None:
        if attempt.outcome == "lost":
            shade = LOST
        elif attempt.attempt in self.again:
            shade = AGAIN
        elif attempt.outcome != "completed":
            shade = FAILED
        least = STORY_WIDTH_MIN if self._is_story(attempt) else BAR_WIDTH_MIN
        left, right = self.x(attempt.started), self.x(attempt.ended)
        if right - left < least:
            right = left + least
            if right > self.right:
                left, right = self.right - least, self.right
        self.canvas.fill(left, top + 2, right, top + LANE_HEIGHT - 2, shade)

    def _kill(self, worker: str) -> None:
        top = self.lane_tops[worker] - 4
        bottom = top + len(self.lanes[worker]) * (LANE_HEIGHT + LANE_GAP) - LANE_GAP + 8
        for mark in self.marks:
            if mark.worker != worker or mark.mark == "joined":
                continue
            x = self.x(mark.at)
            self.canvas.fill(x, top, x + 3, bottom, LOST)
            if mark.mark == "killed":
                self._tag(x, self._middle(worker), f"killed at {mark.at - self.start:.1f} s")

    def _tag(self, x: int, middle: int, words: str) -> None:
        """Words on paper beside column `x`, on the side where there is room."""
        width = font.text_width(words, 2)
        left = x + 12 if x + 24 + width < self.right else x - 18 - width
        self.canvas.fill(left - 4, middle - 11, left + width + 6, middle + 12, PAPER)
        self.canvas.text(left, middle - 7, words, LOST)

    def _legend(self) -> None:
        x = self.left
        y = self.bottom + 62
        entries: list[tuple[str, Colour | None]] = [
            ("task completed", RAN[0]),
            ("lost with its worker", LOST),
            ("run again", AGAIN),
            ("worker not there", None),
        ]
        if any(a.outcome not in ("completed", "lost") for a in self.attempts):
            entries.insert(1, ("task failed", FAILED))
        for words, colour in entries:
            self.canvas.fill(x, y, x + 34, y + 20, colour or LANE)
            if colour is None:
                self.canvas.hatch(x, y, x + 34, y + 20, ABSENT)
            elif colour == RAN[0]:
                self.canvas.fill(x + 17, y, x + 34, y + 20, RAN[1])
            self.canvas.text(x + 44, y + 3, words, INK)
            x += 44 + font.text_width(words, 2) + 48


def draw(
    attempts: list[Attempt], marks: list[Mark], title: str = "Which worker ran which task when"
) -> Canvas:
    """The time line of `attempts` and `marks`, both sorted by time as `read_records` gives them."""
    return Timeline(attempts, marks, title).draw()


def write_timeline(
    lines: Iterable[str], target: Path, title: str = "Which worker ran which task when"
) -> None:
    """Draw the records (JSON lines) into the PNG file `target`; `ValueError` names a bad line."""
    canvas = draw(*read_records(lines), title)
    png.write(target, canvas.width, canvas.height, map(bytes, canvas.rows))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Draw which worker ran which task when.")
    parser.add_argument("records", type=Path, help="JSON lines")
    parser.add_argument("target", type=Path, help="the picture to write (PNG)")
    parser.add_argument("--title", default="Which worker ran which task when")
    options = parser.parse_args(arguments)
    try:
        with options.records.open(encoding="utf-8") as lines:
            write_timeline(lines, options.target, options.title)
    except (OSError, ValueError) as problem:
        print(f"timeline.py: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
