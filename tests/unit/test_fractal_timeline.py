"""The picture of which worker ran which task when."""

import json
from pathlib import Path

import pytest

import font
import png
import timeline
from timeline import AGAIN, LOST, PAPER, RAN, Attempt, Canvas, Mark


def attempt(
    worker: str, task: int, number: int, started: float, ended: float, outcome: str = "completed"
) -> Attempt:
    return Attempt(worker, task, number, started, ended, outcome)


STORY = [
    attempt("w1", 0, 1, 100.0, 104.0),
    attempt("w2", 1, 2, 100.0, 103.0, "lost"),
    attempt("w1", 1, 3, 104.0, 110.0),
]
MARKS = [Mark("w1", "joined", 100.0), Mark("w2", "joined", 100.0), Mark("w2", "killed", 103.0)]


def pixel(canvas: Canvas, x: int, y: int) -> tuple[int, ...]:
    return tuple(canvas.rows[y][3 * x : 3 * x + 3])


def test_records_are_read_and_sorted_by_time() -> None:
    lines = [
        '{"worker": "w1", "mark": "killed", "at": 9}',
        '{"worker": "w1", "task": 2, "attempt": 7, "started": 3, "ended": 4, "outcome": "completed"}',
        "",
        '{"worker": "w1", "task": 1, "attempt": 6, "started": 1, "ended": 3, "outcome": "lost"}',
    ]
    attempts, marks = timeline.read_records(lines)
    assert [a.attempt for a in attempts] == [6, 7]
    assert marks == [Mark("w1", "killed", 9.0)]


@pytest.mark.parametrize("line", ["nonsense", "[]", "{}", '{"worker": "w", "mark": "lost", "at": "noon"}'])
def test_a_bad_record_is_named_by_its_line(line: str) -> None:
    with pytest.raises(ValueError, match="line 2 is no record"):
        timeline.read_records(["", line])


def test_attempts_at_the_same_time_get_lanes_of_their_own_and_others_share() -> None:
    a, b, c = (attempt("w", i, i, s, e) for i, (s, e) in enumerate([(0, 2), (1, 3), (2, 4)]))
    assert timeline.lanes_of([a, b, c]) == [[a, c], [b]]
    assert timeline.lanes_of([]) == [[]]


def test_only_attempts_after_the_loss_count_as_run_again() -> None:
    assert timeline.run_again(STORY) == {3}


@pytest.mark.parametrize("span_s", [0.5, 1.0, 7.0, 59.0, 61.0, 600.0, 5000.0, 86400.0])
def test_the_axis_never_has_too_many_ticks(span_s: float) -> None:
    assert span_s / timeline.tick_step_s(span_s) <= timeline.TICKS_MAX


def test_each_attempt_has_the_colour_of_its_fate_at_its_time() -> None:
    line = timeline.Timeline(STORY, MARKS, "title")
    canvas = line.draw()
    w1, w2 = (line.lane_tops[w] + timeline.LANE_HEIGHT // 2 for w in ("w1", "w2"))
    assert pixel(canvas, line.x(102.0), w1) == RAN[0]
    assert pixel(canvas, line.x(107.0), w1) == AGAIN
    assert pixel(canvas, line.x(101.5), w2) == LOST
    gone = {pixel(canvas, x, w2) for x in range(line.right - 200, line.right)}
    assert gone == {timeline.LANE, timeline.ABSENT, timeline.GRID}


def test_a_lost_attempt_is_seen_however_short_it_was() -> None:
    attempts = [attempt("w", 0, 1, 0.0, 1000.0), attempt("v", 1, 2, 500.0, 500.001, "lost")]
    line = timeline.Timeline(attempts, [], "title")
    canvas = line.draw()
    y = line.lane_tops["v"] + timeline.LANE_HEIGHT // 2
    red = sum(pixel(canvas, x, y) == LOST for x in range(line.left, line.right))
    assert red == timeline.STORY_WIDTH_MIN


def test_nothing_is_painted_outside_the_picture() -> None:
    canvas = Canvas(4, 4, PAPER)
    canvas.fill(-5, -5, 2, 2, LOST)
    canvas.fill(3, 3, 99, 99, LOST)
    canvas.text(-3, -3, "W", LOST, scale=9)
    canvas.hatch(-9, -9, 99, 99, LOST)
    assert len(canvas.rows) == 4
    assert all(len(row) == 12 for row in canvas.rows)


def test_every_printable_character_of_our_labels_has_a_glyph_of_the_right_size() -> None:
    for character in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 .,:-+/()%=#'@_":
        glyph = font.GLYPHS[character]
        assert len(glyph) == font.HEIGHT
        assert all(len(row) == font.WIDTH and set(row) <= {"#", "."} for row in glyph)
    drawn = [g for c, g in font.GLYPHS.items()]
    assert len(set(drawn)) == len(drawn), "two characters look the same"


def test_the_command_writes_a_picture_and_names_what_it_cannot_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = tmp_path / "records.jsonl"
    records.write_text("".join(json.dumps(vars(a)) + "\n" for a in STORY), encoding="utf-8")
    target = tmp_path / "timeline.png"
    assert timeline.main([str(records), str(target)]) == 0
    assert png.read(target)[0] == timeline.WIDTH
    assert timeline.main([str(tmp_path / "none.jsonl"), str(target)]) == 1
    assert "none.jsonl" in capsys.readouterr().err


def test_no_records_at_all_still_give_a_picture(tmp_path: Path) -> None:
    timeline.write_timeline([], tmp_path / "empty.png")
    assert png.read(tmp_path / "empty.png")[0] == timeline.WIDTH


def test_workers_are_drawn_in_the_order_of_their_numbers() -> None:
    attempts = [attempt(f"w-{n}", n, n, 10.0 - n / 10, 20.0) for n in (10, 9, 2, 1)]
    assert timeline.Timeline(attempts, [], "t").workers == ["w-1", "w-2", "w-9", "w-10"]


def test_an_attempt_that_never_started_is_neither_drawn_nor_counted() -> None:
    waiting = attempt("w2", 5, 9, 103.0, 103.0, "requeued")
    assert timeline.draw([*STORY, waiting], MARKS).rows == timeline.draw(STORY, MARKS).rows
