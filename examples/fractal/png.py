"""Just enough PNG: 8-bit RGB pictures, written and read back.

Used by the tile script, by `assemble.py` and by `timeline.py`. Reads only what it writes (colour
type 2, no interlace, every row with filter 0); anything else raises `ValueError`. Source: the PNG
specification, third edition (W3C), sections 5, 7 and 11.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

SIGNATURE = b"\x89PNG\r\n\x1a\n"
PIXEL_BYTES = 3


def encode(width: int, height: int, rows: Iterable[bytes]) -> bytes:
    """A PNG file of `height` rows, each of `3 * width` bytes (red, green, blue), top row first."""
    packer = zlib.compressobj(6)
    packed = []
    count = 0
    for row in rows:
        if len(row) != PIXEL_BYTES * width:
            raise ValueError(f"row {count} has {len(row)} bytes, not {PIXEL_BYTES * width}")
        packed.append(packer.compress(b"\x00" + row))
        count += 1
    if count != height:
        raise ValueError(f"{count} rows, not {height}")
    packed.append(packer.flush())
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", b"".join(packed)) + _chunk(b"IEND", b"")


def decode(data: bytes) -> tuple[int, int, list[bytes]]:
    """Width, height and rows of a picture that `encode` made; `ValueError` for anything else."""
    if not data.startswith(SIGNATURE):
        raise ValueError("not a PNG file")
    header = b""
    packed = []
    at = len(SIGNATURE)
    kind = b""
    while kind != b"IEND":
        if at + 12 > len(data):
            raise ValueError("PNG file is cut off")
        length, kind = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + length]
        if at + 12 + length > len(data):
            raise ValueError("PNG file is cut off")
        if struct.unpack_from(">I", data, at + 8 + length)[0] != zlib.crc32(kind + body):
            raise ValueError(f"PNG chunk {kind!r} is damaged")
        if kind == b"IHDR":
            header = body
        elif kind == b"IDAT":
            packed.append(body)
        at += 12 + length
    width, height, *rest = struct.unpack(">IIBBBBB", header)
    if rest != [8, 2, 0, 0, 0]:
        raise ValueError("only 8-bit RGB without interlace is read here")
    try:
        pixels = zlib.decompress(b"".join(packed))
    except zlib.error as problem:
        raise ValueError(f"PNG pixels are damaged: {problem}") from problem
    stride = 1 + PIXEL_BYTES * width
    if len(pixels) != stride * height or any(pixels[y * stride] for y in range(height)):
        raise ValueError("only unfiltered rows are read here")
    return width, height, [pixels[y * stride + 1 : (y + 1) * stride] for y in range(height)]


def write(path: Path, width: int, height: int, rows: Iterable[bytes]) -> None:
    """Write a picture so that `path` is either whole or not there: a new file takes its place."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_bytes(encode(width, height, rows))
    os.replace(fresh, path)


def read(path: Path) -> tuple[int, int, list[bytes]]:
    """Read a picture that `write` made; `ValueError` names the file if it is something else."""
    try:
        return decode(path.read_bytes())
    except ValueError as problem:
        raise ValueError(f"{path}: {problem}") from problem


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
