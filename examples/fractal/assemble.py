#!/usr/bin/env python3
"""Join the tiles that tile.py wrote into one picture.

python assemble.py DIR fractal.png --width 3000 --height 2000 --tiles 30x20
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import png
from tile import edges, parse_tiles, tile_path


def missing_tiles(folder: Path, columns: int, rows: int) -> list[int]:
    """Numbers of the tiles that are not there."""
    return [i for i in range(columns * rows) if not tile_path(folder, i).is_file()]


def joined_rows(folder: Path, width: int, height: int, columns: int, rows: int) -> Iterator[bytes]:
    """The rows of the whole picture, top first; `ValueError` names a tile that does not fit.

    Holds one row of tiles in memory at a time.
    """
    xs, ys = edges(width, columns), edges(height, rows)
    for row in range(rows):
        band = []
        for column in range(columns):
            path = tile_path(folder, row * columns + column)
            tile_width, tile_height, tile = png.read(path)
            wanted = (xs[column + 1] - xs[column], ys[row + 1] - ys[row])
            if (tile_width, tile_height) != wanted:
                raise ValueError(f"{path}: {tile_width}x{tile_height} pixels, not {wanted[0]}x{wanted[1]}")
            band.append(tile)
        for parts in zip(*band, strict=True):
            yield b"".join(parts)


def assemble(folder: Path, target: Path, width: int, height: int, columns: int, rows: int) -> None:
    """Write the whole picture to `target`; `ValueError` if tiles are missing, damaged or do not fit."""
    missing = missing_tiles(folder, columns, rows)
    if missing:
        some = ", ".join(map(str, missing[:5])) + (" …" if len(missing) > 5 else "")
        raise ValueError(f"{len(missing)} of {columns * rows} tiles are missing in {folder}: {some}")
    png.write(target, width, height, joined_rows(folder, width, height, columns, rows))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Join tiles into one picture.")
    parser.add_argument("folder", type=Path, help="directory with the tiles")
    parser.add_argument("target", type=Path, help="the picture to write (PNG)")
    parser.add_argument("--width", type=int, default=3000)
    parser.add_argument("--height", type=int, default=2000)
    parser.add_argument("--tiles", type=parse_tiles, default=(30, 20), metavar="COLUMNSxROWS")
    options = parser.parse_args(arguments)
    try:
        assemble(options.folder, options.target, options.width, options.height, *options.tiles)
    except ValueError as problem:
        print(f"assemble.py: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
