"""The tile script, and the tiles joined into one picture."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest

import assemble
import png
import tile

SCRIPT = Path(tile.__file__)


def test_points_of_the_set_never_escape_and_others_do() -> None:
    assert tile.escape(0j) == -1.0
    assert tile.escape(-1 + 0j) == -1.0
    assert tile.escape(-2 + 0j) == -1.0
    assert 0.0 <= tile.escape(0.5 + 0.5j) < tile.STEPS_MAX


def test_far_points_escape_without_overflow() -> None:
    assert tile.escape(2 + 2j) < 6.0
    assert tile.escape(-2 - 2j) < 6.0


def test_the_smoothed_number_has_no_steps() -> None:
    """Along a line outside the set, neighbours differ by little although whole numbers of steps pass."""
    values = [tile.escape(complex(0.3 + i * 0.0002, 0.3)) for i in range(1500)]
    outside = [v for v in values if v >= 0.0]
    assert max(outside) - min(outside) > 8.0
    tail = [v for v in values[500:] if v >= 0.0]
    assert max(abs(a - b) for a, b in itertools.pairwise(tail)) < 0.1


def test_the_palette_is_a_closed_loop_without_jumps() -> None:
    colours = tile.palette()
    assert len(colours) == tile.COLOURS
    for a, b in zip(colours, colours[1:] + colours[:1], strict=True):
        assert max(abs(x - y) for x, y in zip(a, b, strict=True)) <= 4


@pytest.mark.parametrize(
    ("width", "height", "columns", "rows"), [(300, 200, 30, 20), (31, 17, 7, 5), (5, 5, 5, 1)]
)
def test_the_tiles_cover_every_pixel_once(width: int, height: int, columns: int, rows: int) -> None:
    covered = [[0] * width for _ in range(height)]
    for index in range(columns * rows):
        left, top, right, bottom = tile.tile_box(index, width, height, columns, rows)
        for y in range(top, bottom):
            for x in range(left, right):
                covered[y][x] += 1
    assert all(count == 1 for row in covered for count in row)


@pytest.mark.parametrize("index", [-1, 6, 1000])
def test_a_tile_that_does_not_exist_is_refused(index: int) -> None:
    with pytest.raises(ValueError, match="numbered from 0"):
        tile.tile_box(index, 30, 20, 3, 2)


def test_the_script_writes_its_tile_and_nothing_else(tmp_path: Path) -> None:
    """It runs isolated (-I -S): nothing but the standard library and its own folder is there."""
    out = tmp_path / "deep" / "out"
    command = [sys.executable, "-E", "-S", str(SCRIPT), "5", "--width", "48", "--height", "32"]
    done = subprocess.run(
        [*command, "--tiles", "3x2", "--out", str(out)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [p.name for p in out.iterdir()] == ["tile-00005.png"]
    width, height, rows = png.read(out / "tile-00005.png")
    assert (width, height) == (16, 16)
    assert rows == tile.tile_rows(48, 32, 32, 16, 48, 32)


def test_the_script_says_what_is_wrong_with_its_arguments(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tile.main(["600", "--out", str(tmp_path)]) == 2
    assert "no tile 600: there are 600" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        tile.main(["0", "--tiles", "30by20", "--out", str(tmp_path)])
    assert "COLUMNSxROWS" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_joined_picture_is_the_picture_computed_at_once(tmp_path: Path) -> None:
    tiles = tmp_path / "tiles"
    size = ["--width", "37", "--height", "23", "--tiles", "4x3"]
    for index in range(12):
        assert tile.main([str(index), *size, "--out", str(tiles)]) == 0
    target = tmp_path / "fractal.png"
    assert assemble.main([str(tiles), str(target), *size]) == 0
    assert png.read(target) == (37, 23, tile.tile_rows(37, 23, 0, 0, 37, 23))


def test_joining_names_the_tiles_that_are_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    png.write(tile.tile_path(tmp_path, 0), 10, 10, [bytes(30)] * 10)
    target = tmp_path / "fractal.png"
    arguments = [str(tmp_path), str(target), "--width", "20", "--height", "10", "--tiles", "2x1"]
    assert assemble.main(arguments) == 1
    assert "1 of 2 tiles are missing" in capsys.readouterr().err
    png.write(tile.tile_path(tmp_path, 1), 9, 10, [bytes(27)] * 10)
    assert assemble.main(arguments) == 1
    assert "tile-00001.png: 9x10 pixels, not 10x10" in capsys.readouterr().err
    assert not target.exists()
