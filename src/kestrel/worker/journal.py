"""Lines of a worker's spool: writing them with a checksum, and reading what a damaged file still has.

A line is the CRC-32 of a JSON text in eight hexadecimal digits, a space, and the text. A line whose
checksum does not fit is never taken for what it seems to say; an undamaged one is found wherever it
stands, also when the end of the line before it is gone. Pure. Called by `spool`.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import msgspec

PREFIX_BYTES = 9
OVERHEAD_BYTES = PREFIX_BYTES + 1
"""What a line has beside its text."""

_START = re.compile(rb'[0-9a-f]{8} \{"(?:job|life|forget)"')
"""Where a line begins. Within a text this cannot stand: quotes in strings are escaped there."""


@dataclass(frozen=True, slots=True)
class Damage:
    """A line of which not all could be read."""

    line: int
    """Counted from 1."""
    offset: int
    """Bytes before it."""
    size: int
    saved: int
    """Texts that stood in it and are whole."""
    torn: bool
    """It is the last one and has no end: it was being written when its writer died, and nobody was told."""


def line_of(text: bytes) -> bytes:
    """The line for a JSON text, which holds no newline."""
    return b"%08x %b\n" % (zlib.crc32(text), text)


def read_lines(content: bytes) -> tuple[list[bytes], list[Damage]]:
    """All texts that are whole, in order, and where something is not.

    In a file that begins without a checksum, as older versions wrote it, lines without one are taken as
    they are.
    """
    older = content.startswith(b'{"life"')
    texts: list[bytes] = []
    damage: list[Damage] = []
    offset = 0
    lines = content.split(b"\n")
    for number, line in enumerate(lines, 1):
        text = _checked(line)
        if text is not None:
            texts.append(text)
        elif older and _is_json(line):
            texts.append(line)
        elif line:
            saved = list(_pieces(line))
            texts += saved
            damage.append(Damage(number, offset, len(line), len(saved), torn=number == len(lines)))
        offset += len(line) + 1
    return texts, damage


def _checked(line: bytes) -> bytes | None:
    """The text of a line, if its checksum fits."""
    text = line[PREFIX_BYTES:]
    return text if line[:PREFIX_BYTES] == b"%08x " % zlib.crc32(text) and text else None


def _pieces(line: bytes) -> Iterator[bytes]:
    """Whole texts in a line that is not one: the newlines between them are gone, or something was added."""
    starts = [match.start() for match in _START.finditer(line)]
    for start, end in pairwise([*starts, len(line)]):
        piece = line[start:end]
        text = _checked(piece) or _checked(piece[: piece.rfind(b"}") + 1])
        if text is not None:
            yield text


def _is_json(line: bytes) -> bool:
    if not line.startswith(b"{"):
        return False
    try:
        msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True
