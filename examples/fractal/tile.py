#!/usr/bin/env python3
"""Compute one tile of a picture of the Mandelbrot set.

    python tile.py INDEX --width 3000 --height 2000 --tiles 30x20 --out DIR

Tiles are numbered from 0, row by row from the top left. The tile is written to
DIR/tile-00000.png and appears there whole or not at all. A plain script: it needs nothing but
Python's standard library and knows nothing of who runs it or how many of it run.

Smooth colouring: for a point that leaves the circle of radius R after n steps with value z, the
real number n + 1 - log2(ln |z| / ln R) has no steps in it and picks the colour.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import png

CENTRE = (-0.7459, 0.11325)
"""A spiral in the Seahorse Valley."""
SPAN = 0.0058
"""Width of the picture in the complex plane; the height follows."""
STEPS_MAX = 600
RADIUS = 16.0
LOG_RADIUS = math.log(RADIUS)

COLOURS = 2048
CYCLE = 1.15
"""How often the palette is gone through while the number of steps grows e-fold."""
PHASE = 0.42
ANCHORS = (
    (0.0, (4, 8, 44)),
    (0.18, (24, 84, 168)),
    (0.40, (228, 244, 252)),
    (0.58, (252, 178, 40)),
    (0.76, (138, 36, 18)),
    (0.90, (20, 6, 30)),
    (1.0, (4, 8, 44)),
)
INSIDE = bytes((0, 0, 0))


def palette() -> list[bytes]:
    """`COLOURS` colours on a closed loop through the anchors, eased so that no edge shows."""
    colours = []
    for i in range(COLOURS):
        at = i / COLOURS
        after = next(j for j, anchor in enumerate(ANCHORS) if anchor[0] > at)
        (low, a), (high, b) = ANCHORS[after - 1], ANCHORS[after]
        part = (at - low) / (high - low)
        part = part * part * (3.0 - 2.0 * part)
        colours.append(bytes(round(x + (y - x) * part) for x, y in zip(a, b, strict=True)))
    return colours


def escape(c: complex) -> float:
    """Steps, smoothed, until the point escapes; -1 if it does not within `STEPS_MAX`."""
    z = 0j
    for n in range(6, STEPS_MAX + 6, 6):
        # Looking only at every sixth step costs no precision: the smoothed number is the same from
        # wherever outside the circle it is taken, and six squarings cannot overflow.
        z = z * z + c
        z = z * z + c
        z = z * z + c
        z = z * z + c
        z = z * z + c
        z = z * z + c
        size = abs(z)
        if size > RADIUS:
            return n + 1.0 - math.log2(math.log(size) / LOG_RADIUS)
    return -1.0


def tile_rows(width: int, height: int, left: int, top: int, right: int, bottom: int) -> list[bytes]:
    """The pixels [left, right) x [top, bottom) of the whole picture of `width` x `height`."""
    colours = palette()
    scale = SPAN / width
    x0 = CENTRE[0] - SPAN / 2 + scale / 2
    y0 = CENTRE[1] + scale * height / 2 - scale / 2
    rows = []
    for py in range(top, bottom):
        cy = y0 - py * scale
        row = bytearray()
        for px in range(left, right):
            steps = escape(complex(x0 + px * scale, cy))
            if steps < 0.0:
                row += INSIDE
            else:
                row += colours[int((math.log(steps + 1.0) * CYCLE + PHASE) * COLOURS) % COLOURS]
        rows.append(bytes(row))
    return rows


def edges(size: int, parts: int) -> list[int]:
    """The `parts` + 1 edges that divide `size` pixels as evenly as whole pixels allow."""
    return [size * i // parts for i in range(parts + 1)]


def tile_box(index: int, width: int, height: int, columns: int, rows: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of tile `index`; `ValueError` if there is no such tile."""
    if not 0 <= index < columns * rows:
        raise ValueError(f"no tile {index}: there are {columns * rows}, numbered from 0")
    xs, ys = edges(width, columns), edges(height, rows)
    column, row = index % columns, index // columns
    return xs[column], ys[row], xs[column + 1], ys[row + 1]


def tile_path(folder: Path, index: int) -> Path:
    """Where tile `index` is written."""
    return folder / f"tile-{index:05d}.png"


def parse_tiles(text: str) -> tuple[int, int]:
    """`30x20` as (30, 20)."""
    columns, cross, rows = text.partition("x")
    if not (cross and columns.isdigit() and rows.isdigit() and int(columns) and int(rows)):
        raise argparse.ArgumentTypeError(f"{text!r} is not COLUMNSxROWS, e.g. 30x20")
    return int(columns), int(rows)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compute one tile of a picture of the Mandelbrot set.")
    parser.add_argument("index", type=int, help="number of the tile, from 0")
    parser.add_argument("--width", type=int, default=3000, help="of the whole picture, in pixels")
    parser.add_argument("--height", type=int, default=2000)
    parser.add_argument("--tiles", type=parse_tiles, default=(30, 20), metavar="COLUMNSxROWS")
    parser.add_argument("--out", type=Path, required=True, help="directory for the tiles; is made if missing")
    options = parser.parse_args(arguments)
    try:
        box = tile_box(options.index, options.width, options.height, *options.tiles)
    except ValueError as problem:
        print(f"tile.py: {problem}", file=sys.stderr)
        return 2
    left, top, right, bottom = box
    options.out.mkdir(parents=True, exist_ok=True)
    rows = tile_rows(options.width, options.height, left, top, right, bottom)
    png.write(tile_path(options.out, options.index), right - left, bottom - top, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
