"""Placeholders in commands, as GNU parallel has them, and what a command becomes for one task.

`{}` all parameters of the task; `{1}` `{2}` … one of them (empty if there are fewer); with `.`
without extension, `/` base name, `//` directory, `/.` base name without extension: `{.}` `{1/}` …
`{#}` is the task's number counted from 1, `{#0}` the task's index counted from 0 (ours; it is what
`with_index` appends). A task of a job without parameters has one: its index.

A command is a list of words, run as it is, or a string for a shell, into which values are put
quoted, so that a value never is code: bare, and inside of '…' and "…" as well. `{}` with several
parameters makes several words, in both forms alike.

Pure. Called by the worker (`Template`), and by whoever makes the specification of a job.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from typing import TypeAlias

_PLACEHOLDER = re.compile(r"\{(?:(#0?)|([1-9][0-9]{0,3})?(\.|//|/\.|/)?)\}")
_SHELL_SYNTAX = re.compile(r"[$`|&;<>()*?\[\]#~{}!\\\n\r\0]")
_BUILTINS = frozenset(
    """
    . : [[ alias bg break builtin case cd command continue coproc declare dirs disown do done elif
    else enable esac eval exec exit export fc fg fi for function getopts hash history if in jobs let
    local logout mapfile popd pushd read readarray readonly return select set shift shopt source
    suspend then time times trap type typeset ulimit umask unalias unset until wait while
    """.split()  # noqa: SIM905 (readable)
)
"""Words that only a shell understands: special built-ins and reserved words (POSIX.1-2017 XCU 2.4, 2.14)."""

INDEX = "{#0}"
"""Stands for the task's index, counted from 0."""


def has_placeholder(command: str | Sequence[str]) -> bool:
    """Whether anything in the command stands for the task."""
    words = [command] if isinstance(command, str) else command
    return any(_PLACEHOLDER.search(word) for word in words)


def with_argument(command: str | list[str]) -> str | list[str]:
    """The command with all parameters of the task appended."""
    return _appended(command, "{}")


def with_index(command: str | list[str]) -> str | list[str]:
    """The command with the task's index (from 0) appended."""
    return _appended(command, INDEX)


def _appended(command: str | list[str], word: str) -> str | list[str]:
    return f"{command} {word}" if isinstance(command, str) else [*command, word]


def simplify(command: str) -> str | list[str]:
    """A shell command that needs no shell as a list of words; any other as it was.

    Careful rather than clever: whatever a shell might interpret, even if it is quoted, stays with it.
    """
    if _SHELL_SYNTAX.search(_PLACEHOLDER.sub("", command)):
        return command
    try:
        words = shlex.split(command)
    except ValueError:  # an open quote: the shell shall complain
        return command
    if not words or words[0] in _BUILTINS or "=" in words[0] or has_placeholder(words[0]):
        return command
    if any(context != _BARE for context in _contexts(command)):
        return command
    return words


class Template:
    """A command made ready to be filled in for many tasks."""

    __slots__ = ("_shell", "_string", "_words")

    def __init__(self, command: str | Sequence[str], *, windows: bool = False) -> None:
        """`windows`: strings are for `cmd.exe /c` instead of `/bin/sh -c`."""
        self._string = isinstance(command, str)
        self._shell = ["cmd.exe", "/c"] if windows else ["/bin/sh", "-c"]
        quoting = [_quote_windows] * 3 if windows else _QUOTINGS
        self._words: list[str | list[_Piece]] = []
        for word in [command] if isinstance(command, str) else command:
            if not _PLACEHOLDER.search(word):
                self._words.append(word)
            elif self._string:
                self._words.append(_pieces(word, [quoting[context] for context in _contexts(word)]))
            else:
                self._words.append(_pieces(word, None))

    def fill(self, params: Sequence[str] | None, index: int) -> list[str]:
        """The words to run for task `index` (from 0) with these parameters (None: its index)."""
        values = [str(index)] if params is None else params
        words: list[str] = []
        for word in self._words:
            if isinstance(word, str):
                words.append(word)
            elif self._string:
                words.append("".join(_text(piece, values, index) for piece in word))
            else:
                words.extend(_spliced(word, values, index))
        return [*self._shell, *words] if self._string else words


# --------------------------------------------------------------------------------------------------


_Quote: TypeAlias = Callable[[str], str]


class _Piece:
    """Plain text, or a placeholder: number of the parameter (0: all, -1/-2: `{#}`/`{#0}`) and what of it."""

    __slots__ = ("number", "part", "quote", "text")

    def __init__(self, text: str, number: int | None, part: str, quote: _Quote | None) -> None:
        self.text = text
        self.number = number
        self.part = part
        self.quote = quote


def _pieces(word: str, quotes: Sequence[_Quote] | None) -> list[_Piece]:
    """`quotes[i]` quotes the values of placeholder i; None: they are words of their own."""
    pieces: list[_Piece] = []
    end = 0
    for i, match in enumerate(_PLACEHOLDER.finditer(word)):
        if match.start() > end:
            pieces.append(_Piece(word[end : match.start()], None, "", None))
        counter, number, part = match.groups()
        which = {"#": -1, "#0": -2}[counter] if counter else int(number or 0)
        pieces.append(_Piece("", which, part or "", quotes[i] if quotes else None))
        end = match.end()
    if end < len(word):
        pieces.append(_Piece(word[end:], None, "", None))
    return pieces


def _values(piece: _Piece, params: Sequence[str], index: int) -> list[str]:
    number = piece.number
    assert number is not None
    if number < 0:
        return [str(index + 1 if number == -1 else index)]
    if number == 0:
        chosen = params
    else:
        chosen = params[number - 1 : number] or [""]
    return [_part(value, piece.part) for value in chosen] if piece.part else list(chosen)


def _text(piece: _Piece, params: Sequence[str], index: int) -> str:
    if piece.number is None:
        return piece.text
    assert piece.quote is not None
    return " ".join(piece.quote(value) for value in _values(piece, params, index))


def _spliced(word: Sequence[_Piece], params: Sequence[str], index: int) -> list[str]:
    """The words that one word becomes: the second and later values of a placeholder begin new ones."""
    words: list[str] = []
    current: str | None = None
    for piece in word:
        if piece.number is None:
            current = (current or "") + piece.text
            continue
        values = _values(piece, params, index)
        if len(values) > 1:
            words.append((current or "") + values[0])
            words.extend(values[1:-1])
            current = values[-1]
        elif values:
            current = (current or "") + values[0]
    return words if current is None else [*words, current]


def _part(value: str, part: str) -> str:
    """The part of a path, as GNU parallel cuts it."""
    directory, slash, name = value.rpartition("/")
    if part == "/":
        return name
    if part == "//":
        return directory or ("/" if slash else ".")
    stem, dot, _ = name.rpartition(".")
    bare = stem if dot else name
    return bare if part == "/." else directory + slash + bare


# --------------------------------------------------------------------------------------------------
# where in a shell string a placeholder stands

_BARE, _SINGLE, _DOUBLE = 0, 1, 2


def _quote_single(value: str) -> str:
    return value.replace("'", "'\\''")


def _quote_double(value: str) -> str:
    return re.sub(r'([$`"\\])', r"\\\1", value)


def _quote_windows(value: str) -> str:
    """For cmd.exe: in double quotes, with its own special characters escaped as far as it allows."""
    return '"' + value.replace("%", "%%").replace('"', '""') + '"'


_QUOTINGS = [shlex.quote, _quote_single, _quote_double]


def _contexts(command: str) -> list[int]:
    """For each placeholder: is it bare, in single or in double quotes? Follows nested `$( … )`, too.

    Inside of backquotes the quotes count as outside of them, which is right but for values in double
    quotes inside of backquotes inside of double quotes; `$( … )` has no such trap.
    """
    starts = {match.start(): match.end() for match in _PLACEHOLDER.finditer(command)}
    found: list[int] = []
    nesting: list[int] = []  # contexts that a `)` returns to
    context = _BARE
    at = 0
    while at < len(command):
        if at in starts:
            found.append(context)
            at = starts[at]
            continue
        letter = command[at]
        if context == _SINGLE:
            context = _BARE if letter == "'" else _SINGLE
        elif letter == "\\":
            at += 1
        elif letter == '"':
            context = _BARE if context == _DOUBLE else _DOUBLE
        elif command.startswith("$(", at) or (letter == "(" and context == _BARE):
            nesting.append(context)
            context = _BARE
            at += letter == "$"
        elif letter == ")" and context == _BARE and nesting:
            context = nesting.pop()
        elif letter == "'" and context == _BARE:
            context = _SINGLE
        at += 1
    return found
