"""`make demo`, with a small picture: real processes, a real `kill -9`, the right pixels."""

import json
import os
import subprocess
import sys
from pathlib import Path

import png
import tile

DEMO = Path(tile.__file__).with_name("demo.py")
WIDTH, HEIGHT, COLUMNS, ROWS = 360, 240, 12, 8


def run_demo(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    (out.parent / "home").mkdir()
    size = ["--width", str(WIDTH), "--height", str(HEIGHT), "--tiles", f"{COLUMNS}x{ROWS}"]
    return subprocess.run(
        [sys.executable, str(DEMO), *size, "--out", str(out), *options],
        env=os.environ | {"HOME": str(out.parent / "home"), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def test_the_demo_loses_a_worker_and_no_tile(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run_demo(out, "--workers", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Killed worker-2" in done.stdout
    assert "tasks per second" in done.stdout
    assert str(out / "fractal.png") in done.stdout
    assert str(out / "timeline.png") in done.stdout

    assert png.read(out / "fractal.png") == (
        WIDTH,
        HEIGHT,
        tile.tile_rows(WIDTH, HEIGHT, 0, 0, WIDTH, HEIGHT),
    )
    assert png.read(out / "timeline.png")[0] > 1000

    records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    attempts = [r for r in records if "task" in r]
    completed = [r["task"] for r in attempts if r["outcome"] == "completed"]
    assert sorted(completed) == list(range(COLUMNS * ROWS)), "every tile is recorded, and none twice"
    lost = {r["task"] for r in attempts if r["outcome"] == "lost"}
    assert lost <= set(completed)
    assert {r["worker"] for r in attempts if r["outcome"] == "lost"} <= {"worker-2"}
    marks = {(r["worker"], r["mark"]) for r in records if "mark" in r}
    assert marks == {(f"worker-{n}", "joined") for n in (1, 2, 3, 4)} | {
        ("worker-2", "killed"),
        ("worker-2", "lost"),
    }
    assert list((tmp_path / "home").iterdir()) == [], "the demo leaves nothing in the home directory"
