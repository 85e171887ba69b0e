"""The PNG writer and reader of the fractal example."""

import struct
import zlib
from pathlib import Path

import pytest

import png


def picture(width: int, height: int) -> list[bytes]:
    return [b"".join(bytes((x % 256, y % 256, (x * y) % 256)) for x in range(width)) for y in range(height)]


def test_a_picture_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    rows = picture(37, 11)
    path = tmp_path / "a.png"
    png.write(path, 37, 11, rows)
    assert png.read(path) == (37, 11, rows)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_the_file_is_laid_out_as_the_specification_says() -> None:
    data = png.encode(2, 1, [b"\x01\x02\x03\x04\x05\x06"])
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert data[8:33] == (
        b"\x00\x00\x00\x0dIHDR"
        + struct.pack(">IIBBBBB", 2, 1, 8, 2, 0, 0, 0)
        + struct.pack(">I", zlib.crc32(data[12:29]))
    )
    length = struct.unpack_from(">I", data, 33)[0]
    assert data[37:41] == b"IDAT"
    assert zlib.decompress(data[41 : 41 + length]) == b"\x00\x01\x02\x03\x04\x05\x06"
    assert data[-12:] == b"\x00\x00\x00\x00IEND\xae\x42\x60\x82"


@pytest.mark.parametrize("rows", [[b"abc"], [b"abc", b"abcd"], [b"abc"] * 3])
def test_rows_that_do_not_fit_are_refused(rows: list[bytes]) -> None:
    with pytest.raises(ValueError, match="row"):
        png.encode(1, 2, rows)


def test_a_file_that_is_cut_off_is_refused_wherever_the_cut_is() -> None:
    data = png.encode(3, 3, picture(3, 3))
    for length in range(len(data)):
        with pytest.raises(ValueError, match="PNG"):
            png.decode(data[:length])


def test_a_damaged_file_is_refused_and_named(tmp_path: Path) -> None:
    path = tmp_path / "b.png"
    data = bytearray(png.encode(3, 3, picture(3, 3)))
    data[45] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"b\.png: PNG chunk b'IDAT' is damaged"):
        png.read(path)
