"""Everything the command line prints goes through here: tables, JSON, or only the essential.

Commands hand over records once; the mode decides how they look. Text from others (names, commands,
reasons) is made harmless for terminals. Raises `BrokenPipeError` when the reader is gone, which
`main` turns into a quiet end; it must never swallow it, or a command would compute for nobody.
Called by every command.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from enum import Enum
from pathlib import PurePath
from typing import Any, Literal, TextIO, TypeVar

import msgspec

from kestrel.errors import KestrelError

Mode = Literal["table", "json", "quiet"]
COLUMN_WIDTH_MIN = 8
"""A column of text is not made narrower than this to fit a terminal."""
TIME_FIELDS = frozenset({"submitted", "finished", "started", "joined", "lost"})
"""Fields of messages that are Unix time; JSON shows them as ISO-8601 in UTC, null if not yet."""

_R = TypeVar("_R")


class Output:
    """Prints for people (`table`), for programs (`json`), or only what was asked for (`quiet`)."""

    def __init__(self, mode: Mode = "table", stream: TextIO | None = None, err: TextIO | None = None) -> None:
        self.mode: Mode = mode
        self.stream = sys.stdout if stream is None else stream
        self.err = sys.stderr if err is None else err

    # --- for people -----------------------------------------------------------------------------------

    def line(self, text: str = "", *, essential: bool = False) -> None:
        """A line for people. `essential` lines are printed in quiet mode, too; JSON mode prints none."""
        if self.mode == "table" or (self.mode == "quiet" and essential):
            self._print(text + "\n")

    def warn(self, text: str) -> None:
        """A line on standard error, in every mode but quiet."""
        if self.mode != "quiet":
            self._complain(text, "33")

    def error(self, problem: KestrelError) -> None:
        """What went wrong and the cure, on standard error; in JSON mode also an object on standard output."""
        self._complain(problem.text, "31")
        if problem.hint:
            print(f"  hint: {problem.hint}", file=self.err, flush=True)
        if self.mode == "json":
            body = {"code": problem.code, "text": problem.text, "hint": problem.hint}
            self.document({"error": body})

    def _complain(self, text: str, colour: str) -> None:
        head = f"\x1b[1;{colour}mkestrel:\x1b[0m" if _coloured(self.err) else "kestrel:"
        print(f"{head} {text}", file=self.err, flush=True)

    # --- records --------------------------------------------------------------------------------------

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Aligned columns, numbers to the right, cut to the width of a terminal.

        JSON mode prints a list of objects with the columns' names in lower case; quiet mode the first
        column only. Use `records` where programs should get more than people.
        """
        if self.mode == "json":
            keys = [column.lower().replace(" ", "_") for column in columns]
            self.document([dict(zip(keys, row, strict=True)) for row in rows])
        elif self.mode == "quiet":
            self._print("".join(f"{printable(cell_text(row[0]))}\n" for row in rows))
        else:
            self._print(format_table(columns, list(rows), self._width(), bold=_coloured(self.stream)))

    def records(
        self, records: Iterable[_R], *, columns: Sequence[str], row: Callable[[_R], Sequence[object]]
    ) -> None:
        """A list of messages or dicts: as a table of `row(record)`, or in JSON with all their fields."""
        if self.mode == "json":
            self.document(list(records))
        else:
            self.table(columns, [row(record) for record in records])

    def document(self, document: object) -> None:
        """One JSON document in JSON mode; `key: value` lines of a record for people; quiet: nothing."""
        if self.mode == "json":
            self._print(_json(document, indent=2))
        elif self.mode == "table":
            content = plain(document)
            if not isinstance(content, dict):
                content = {"": content}
            width = max((len(key) for key in content), default=0)
            self._print("".join(f"{key:<{width}}  {printable(cell_text(v))}\n" for key, v in content.items()))

    def event(self, record: object) -> None:
        """One record of a stream: a line of JSON in JSON mode, else nothing."""
        if self.mode == "json":
            self._print(_json(record, indent=0))

    # --- bytes ----------------------------------------------------------------------------------------

    def write(self, data: bytes, *, err: bool = False) -> None:
        """Bytes as they are, to standard output or error; not flushed."""
        stream = self.err if err else self.stream
        buffer = getattr(stream, "buffer", None)
        if buffer is None:
            stream.write(data.decode("utf-8", "replace"))
        else:
            buffer.write(data)

    def flush(self) -> None:
        """Hand on what `write` took."""
        self.stream.flush()
        self.err.flush()

    def _print(self, text: str) -> None:
        """All of it and at once, so that a broken pipe is noticed here and not at the exit."""
        try:
            self.stream.write(text)
        except UnicodeEncodeError:
            encoding = self.stream.encoding or "ascii"
            self.stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        self.stream.flush()

    def _width(self) -> int | None:
        """Columns of the terminal; None if there is none, and nothing has to be cut."""
        return shutil.get_terminal_size().columns if is_terminal(self.stream) else None


# --------------------------------------------------------------------------------------------------
# how things look


def iso_time(unix: float) -> str:
    """`2026-11-22T16:00:00.250Z`, without the fraction if there is none; empty for 0 (not yet)."""
    if not unix:
        return ""
    moment = datetime.fromtimestamp(unix, UTC)
    text = moment.isoformat(timespec="milliseconds" if moment.microsecond // 1000 else "seconds")
    return text.replace("+00:00", "Z")


def duration_text(seconds: float) -> str:
    """`3m12s`, `2h05m`, `4d03h`, `1.5s`, `12ms`: two units at most."""
    if seconds < 0:
        return "-" + duration_text(-seconds)
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 59.95:
        return f"{seconds:.1f}".removesuffix(".0") + "s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"


def plain(value: object) -> Any:
    """Anything that we print as what JSON knows. All fields are there, also those with their default."""
    if value is None or (isinstance(value, str | int | float) and not isinstance(value, Enum)):
        return value
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, msgspec.Struct):
        return _plain_fields((name, getattr(value, name)) for name in value.__struct_fields__)
    if dataclasses.is_dataclass(value):
        return _plain_fields((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
    if isinstance(value, Mapping):
        return _plain_fields((str(key), item) for key, item in value.items())
    if isinstance(value, Iterable) and not isinstance(value, bytes | bytearray):
        return [plain(item) for item in value]
    if isinstance(value, PurePath):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be printed")


def _plain_fields(fields: Iterable[tuple[str, object]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for name, value in fields:
        timely = name in TIME_FIELDS and isinstance(value, int | float) and not isinstance(value, bool)
        content[name] = (iso_time(float(value)) or None) if timely else plain(value)  # type: ignore[arg-type]
    return content


def printable(text: str) -> str:
    """The text in one line, without anything that a terminal would obey."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def cell_text(value: object) -> str:
    """How a value looks in a table."""
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.6g}"
        case list() | tuple():
            return " ".join(cell_text(item) for item in value)
        case dict():
            return " ".join(f"{key}={cell_text(item)}" for key, item in value.items())
        case _:
            return str(value)


def format_table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], width: int | None = None, *, bold: bool = False
) -> str:
    """The table as text; `width`: how many columns the terminal has, None: as wide as it comes.

    Columns of numbers are aligned to the right. If the table is too wide, the widest columns of text
    are cut, with an ellipsis; numbers never are.
    """
    right = [bool(rows) and all(_is_number(row[i]) for row in rows) for i in range(len(columns))]
    cells = [[printable(cell_text(value)) for value in row] for row in rows]
    widths = [
        max([text_width(column), *(text_width(row[i]) for row in cells)]) for i, column in enumerate(columns)
    ]
    if width is not None:
        _narrow(widths, right, width - 2 * (len(columns) - 1))
    lines = [_line(columns, widths, right)]
    if bold:
        lines[0] = f"\x1b[1m{lines[0]}\x1b[0m"
    lines += [_line(row, widths, right) for row in cells]
    return "\n".join(lines) + "\n"


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _narrow(widths: list[int], fixed: Sequence[bool], room: int) -> None:
    while (excess := sum(widths) - room) > 0:
        texts = [i for i, number in enumerate(fixed) if not number and widths[i] > COLUMN_WIDTH_MIN]
        if not texts:
            return
        widest = max(texts, key=lambda i: widths[i])
        others = [widths[i] for i in texts if widths[i] < widths[widest]]
        step = widths[widest] - max([COLUMN_WIDTH_MIN, *others]) or 1
        widths[widest] -= min(excess, step)


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    parts = []
    for text, width, to_right in zip(cells, widths, right, strict=True):
        text = cut(text, width)
        padding = " " * (width - text_width(text))
        parts.append(padding + text if to_right else text + padding)
    return "  ".join(parts).rstrip()


def text_width(text: str) -> int:
    """Columns that the text takes on a terminal (UAX #11: wide characters take two, marks none)."""
    return len(text) if text.isascii() else sum(_char_width(c) for c in text)


def _char_width(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def cut(text: str, width: int) -> str:
    """The text, or its beginning with an ellipsis, in at most `width` columns."""
    if text_width(text) <= width:
        return text
    kept, room = [], width - 1
    for char in text:
        room -= _char_width(char)
        if room < 0:
            break
        kept.append(char)
    return "".join(kept) + "…"


def is_terminal(stream: TextIO) -> bool:
    """Whether a person looks at it."""
    return not stream.closed and stream.isatty()


def _coloured(stream: TextIO) -> bool:
    """https://no-color.org: any value but an empty one forbids colour."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and is_terminal(stream)


def _json(document: object, *, indent: int) -> str:
    text = msgspec.json.encode(plain(document))
    if indent:
        text = msgspec.json.format(text, indent=indent)
    return text.decode() + "\n"
