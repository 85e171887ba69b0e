"""What stands after `--` in `kestrel run`: a command, and the arguments it is to be run with.

`CMD… ::: a b c`, `:::: FILE…` (one argument a line, `-` is standard input), `:::+` and `::::+`
(linked to the list before). Several lists make all combinations, the last one changing fastest; no
list means standard input. All as in GNU parallel, of which this is the grammar only.

Reads files and standard input, lazily and never more than a piece ahead, and nothing else.
Called by `run_command`.
"""

from __future__ import annotations

import itertools
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, NoReturn

from kestrel.errors import EnvironmentProblem, UsageError
from kestrel.protocol.placeholders import has_placeholder

ARGUMENT_BYTES_MAX = 65_536
"""Longest argument. Linux itself takes at most 128 KiB for one word, which quoting may double."""
READ_BYTES = 65_536

SEPARATORS = (":::", ":::+", "::::", "::::+")
_PLACEHOLDER = re.compile(r"\{(?:(#0?)|([1-9][0-9]{0,3})?(\.|//|/\.|/)?)\}")
_EXAMPLE = "e.g. kestrel run -- gzip {} ::: *.log"


@dataclass(slots=True)
class Bag:
    """A command and its parameters, one list of words per task."""

    command: str
    """A shell command with a placeholder in it."""
    parameters: Iterator[list[str]]
    """Lazy, perhaps endless, in the order of the tasks; every entry has `width` words.

    Raises `UsageError` for a line that cannot be an argument, `EnvironmentProblem` if reading fails."""
    count: int | None
    """How many there are, if that is known without reading a pipe."""
    width: int
    blocking: bool
    """The next entry may be long in coming: a pipe or terminal feeds it."""


def parse(words: Sequence[str], stdin: BinaryIO | None, *, stdin_is_terminal: bool = False) -> Bag:
    """Understand the words after `--`; `stdin` is read unbuffered. Raises `UsageError`."""
    command_words = list(itertools.takewhile(lambda word: word not in SEPARATORS, words))
    command = " ".join(command_words)
    if not command.strip():
        text = "the command is empty" if command_words else "there is no command to run"
        raise UsageError(
            f"{text}, only {words[0]}" if words and not command_words else text,
            hint=f"{_EXAMPLE}; to run each line as a command of its own: kestrel run -- sh -c {{}}",
        )
    _check_word(command, "the command")
    if not has_placeholder(command):
        command += " {}"
    standard = _Standard(stdin, stdin_is_terminal)
    groups = _groups(words[len(command_words) :], standard)
    if not groups:
        groups = [_Group([standard.lines("standard input")])]
    leading, rest = groups[0], [group.read_all() for group in groups[1:]]
    count = leading.count
    for rows in rest:
        count = None if count is None else count * len(rows)
    return Bag(
        command=command,
        parameters=_combinations(leading.rows(), rest),
        count=count,
        width=sum(len(group.sources) for group in groups),
        blocking=leading.blocking,
    )


def numbered(command: str, width: int) -> str:
    """The command with `{#}` and `{#0}` taken from parameters `width`+1 and `width`+2.

    For a bag of which only some tasks are run: they keep their numbers. `{}` goes on to mean the
    first `width` parameters.
    """

    def replace(match: re.Match[str]) -> str:
        counter, number, part = match.groups("")
        if counter:
            return f"{{{width + (1 if counter == '#' else 2)}}}"
        if number:  # one that is not there stays so
            return match[0] if int(number) <= width else f"{{{int(number) + 2}{part}}}"
        return " ".join(f"{{{i}{part}}}" for i in range(1, width + 1))

    return _PLACEHOLDER.sub(replace, command)


# --------------------------------------------------------------------------------------------------
# sources of arguments


@dataclass(slots=True)
class _Source:
    """One list of arguments; `count` if known."""

    values: Iterable[str]
    count: int | None
    blocking: bool = False


@dataclass(slots=True)
class _Group:
    """Sources that go together, one value of each at a time; the shortest ends it."""

    sources: list[_Source] = field(default_factory=list)

    @property
    def count(self) -> int | None:
        counts = [source.count for source in self.sources]
        return None if None in counts else min(c for c in counts if c is not None)

    @property
    def blocking(self) -> bool:
        return any(source.blocking for source in self.sources)

    def rows(self) -> Iterator[list[str]]:
        return (list(row) for row in zip(*(s.values for s in self.sources), strict=False))

    def read_all(self) -> list[list[str]]:
        return list(self.rows())


class _Standard:
    """Standard input, which can be one list only."""

    def __init__(self, stream: BinaryIO | None, is_terminal: bool) -> None:
        self._stream = stream
        self._is_terminal = is_terminal
        self._taken = False

    def lines(self, name: str) -> _Source:
        if self._taken:
            raise UsageError("standard input (-) can be one list of arguments only")
        if self._stream is None or self._is_terminal:
            raise UsageError(
                "no arguments: standard input is a terminal"
                if self._stream
                else "there is no standard input",
                hint=f"give a list ({_EXAMPLE}), or pipe one in: seq 100 | kestrel run -- echo",
            )
        self._taken = True
        stream = self._stream
        return _Source(_lines(stream, name), None, blocking=not _is_regular(stream))


def _groups(words: Sequence[str], standard: _Standard) -> list[_Group]:
    groups: list[_Group] = []
    for separator, values in _lists(words):
        if separator.endswith("+") and not groups:
            raise UsageError(
                f"{separator} links to the list before it, but there is none", hint="begin with :::"
            )
        sources = _sources(separator, values, standard)
        if separator.endswith("+"):
            groups[-1].sources += sources
        else:
            groups += [_Group([source]) for source in sources]
    return groups


def _lists(words: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    at = 0
    while at < len(words):
        end = at + 1
        while end < len(words) and words[end] not in SEPARATORS:
            end += 1
        yield words[at], list(words[at + 1 : end])
        at = end


def _sources(separator: str, values: list[str], standard: _Standard) -> list[_Source]:
    if separator.startswith("::::"):
        if not values:
            raise UsageError(
                f"no file after {separator}", hint=f"kestrel run -- echo {separator} arguments.txt"
            )
        return [standard.lines("standard input") if name == "-" else _file(name) for name in values]
    for value in values:
        _check_word(value, f"the argument {value[:40]!r}")
    return [_Source(values, len(values))]


def _file(name: str) -> _Source:
    """Regular files are looked at now, so that a wrong name is found before anything runs."""
    try:
        kind = os.stat(name).st_mode
        if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
            return _Source(_file_lines(name), None, blocking=True)
        with open(name, "rb", buffering=0) as stream:
            return _Source(_file_lines(name), _count_lines(stream))
    except (OSError, ValueError) as problem:
        _cannot_read(name, problem)


def _file_lines(name: str) -> Iterator[str]:
    try:
        stream = open(name, "rb", buffering=0)  # noqa: SIM115 (closed below)
    except OSError as problem:
        _cannot_read(name, problem)
    with stream:
        yield from _lines(stream, name)


def _cannot_read(name: str, problem: Exception) -> NoReturn:
    reason = problem.strerror if isinstance(problem, OSError) else str(problem)
    raise UsageError(
        f"cannot read the arguments in {name}: {reason}",
        hint=":::: takes files with one argument a line; use ::: for the arguments themselves",
    ) from None


def _is_regular(stream: BinaryIO) -> bool:
    try:
        return stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
    except OSError:  # not a file of the operating system (io.UnsupportedOperation is one, too)
        return False


def _count_lines(stream: BinaryIO) -> int:
    count, last = 0, b"\n"
    while piece := stream.read(READ_BYTES):
        count += piece.count(b"\n")
        last = piece[-1:]
    return count + (last != b"\n")


def _lines(stream: BinaryIO, name: str) -> Iterator[str]:
    """Lines as they come in: a line is handed on as soon as its end was read, however slow the rest is."""
    number, rest = 0, b""
    read: Callable[[int], bytes | None] = stream.read
    while True:
        try:
            piece = read(READ_BYTES)
        except OSError as problem:
            raise EnvironmentProblem(f"cannot read {name}: {problem.strerror or problem}") from None
        if not piece:
            break
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            number += 1
            yield _decoded(line, name, number)
        if len(rest) > ARGUMENT_BYTES_MAX:
            _decoded(rest, name, number + 1)
    if rest:
        yield _decoded(rest, name, number + 1)


def _decoded(line: bytes, name: str, number: int) -> str:
    where = f"line {number} of {name}"
    try:
        text = line.decode()
    except UnicodeDecodeError:
        raise UsageError(
            f"{where} is not UTF-8", hint="arguments are text; convert the list with iconv first"
        ) from None
    _check_word(text, where)
    return text


def _check_word(word: str, what: str) -> None:
    if "\0" in word:
        raise UsageError(f"{what} contains the character NUL", hint="separate arguments with newlines")
    try:
        size = len(word) if word.isascii() else len(word.encode())
    except UnicodeEncodeError:
        raise UsageError(f"{what} is not UTF-8", hint="rename the file, or use a UTF-8 locale") from None
    if size > ARGUMENT_BYTES_MAX:
        raise UsageError(
            f"{what[:80]} has {size} bytes; at most {ARGUMENT_BYTES_MAX} are possible",
            hint="put the data into a file, and give the file's name",
        )


def _combinations(leading: Iterable[list[str]], rest: Sequence[list[list[str]]]) -> Iterator[list[str]]:
    if not rest:
        yield from leading
        return
    for head in leading:
        for tail in itertools.product(*rest):
            yield list(itertools.chain(head, *tail))
