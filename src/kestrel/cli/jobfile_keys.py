"""The keys of job files: what each means, and how its value is read.

The names are those of the `job` message and the ancestor's; the words people bring from elsewhere
are aliases. A reader raises `UsageError` that says what the value should look like.
Called by `jobfile`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kestrel.cli.options import seconds_of
from kestrel.core.addresses import Pattern, PatternError
from kestrel.errors import UsageError
from kestrel.protocol.messages import TASKS_PER_JOB_MAX

SIZES = ("queue", "args", "array", "each_line")
"""Keys that say how many tasks there are; only one may be given."""

PATTERNS_MAX = 64
"""Most patterns of one job, as in messages."""

ARRAY_TASKS_MAX = 1_000_000
"""Longest array that does not simply count from 0."""

_TRUE = {"yes", "true", "on", "1"}
_FALSE = {"no", "false", "off", "0"}


@dataclass(frozen=True, slots=True)
class Reading:
    """A value as the file has it. `text_only`: the file's syntax knows nothing but text."""

    value: Any
    text_only: bool
    directory: Path
    """Of submission: what relative file names are relative to."""


@dataclass(frozen=True, slots=True)
class Key:
    """How to read a value, and other names of the key."""

    read: Callable[[Reading], Any]
    aliases: tuple[str, ...] = ()


def _text(r: Reading) -> str:
    if not isinstance(r.value, str):
        raise UsageError(f"{r.value!r} is no text", hint='put it into quotes: "…"')
    return r.value


def _short_text(r: Reading) -> str:
    text = _text(r)
    if len(text) > 1024:
        raise UsageError(f"{len(text)} characters; at most 1024 are possible")
    return text


def _command(r: Reading) -> str | list[str]:
    if isinstance(r.value, list):
        words = _words(r.value)
        if not words or not words[0]:
            raise UsageError("the list is empty", hint='e.g. ["./run_task.sh", "--fast"]')
        return words
    text = _text(r).strip()
    if not text:
        raise UsageError("is empty", hint="e.g. ./run_task.sh")
    if "\0" in text:
        raise UsageError("a command cannot contain the character NUL")
    if len(text) > 65536:
        raise UsageError(f"{len(text)} characters; at most 65536 are possible", hint="put it into a script")
    return text


def _words(values: list[Any]) -> list[str]:
    words = []
    for value in values:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise UsageError(f"{value!r} is no word", hint='write a list such as ["a", "b"]')
        words.append(str(value))
    return words


def _integer(low: int, high: int) -> Callable[[Reading], int]:
    def read(r: Reading) -> int:
        value = r.value
        if r.text_only and re.fullmatch(r"[+-]?[0-9]{1,18}", value):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise UsageError(f"{r.value!r} is no whole number", hint=f"write a number from {low} to {high}")
        if not low <= value <= high:
            raise UsageError(f"{value} is out of range", hint=f"write a number from {low} to {high}")
        return value

    return read


def _boolean(r: Reading) -> bool:
    if isinstance(r.value, bool):
        return r.value
    if r.text_only and r.value.lower() in _TRUE | _FALSE:
        return r.value.lower() in _TRUE
    raise UsageError(f"{r.value!r} is neither true nor false")


def _tags(r: Reading) -> list[str]:
    """Words over any number of lines, commas allowed; or a list."""
    values = _words(r.value) if isinstance(r.value, list) else [_text(r)]
    tags = [tag for value in values for tag in value.replace(",", " ").split()]
    for tag in tags:
        if len(tag) > 1024:
            raise UsageError("a tag has more than 1024 characters")
    return tags


def _args(r: Reading) -> list[list[str]]:
    """One entry a task: a word, or a list of words. In INI: one word a line."""
    values = r.value.split("\n") if r.text_only else r.value
    if not isinstance(values, list):
        raise UsageError("is no list", hint='write args = ["a", "b"], or [["a", "1"], ["b", "2"]]')
    entries = [_words(value) if isinstance(value, list) else _words([value]) for value in values]
    if not entries or entries == [[""]]:
        raise UsageError("is empty, so there is nothing to do")
    return entries


def read_patterns(texts: Sequence[str]) -> list[str]:
    """Patterns over workers' addresses, each as it was written; raises `UsageError` for what is none."""
    if len(texts) > PATTERNS_MAX:
        raise UsageError(f"{len(texts)} patterns; at most {PATTERNS_MAX} are possible")
    for text in texts:
        try:
            Pattern.parse(text)
        except PatternError as problem:
            hint = "write addresses, or parts of them with * and ?: lab*@pool, */core2"
            raise UsageError(str(problem), hint=hint) from None
    return list(texts)


def _patterns(r: Reading) -> list[str]:
    """A list, or one text with spaces between."""
    return read_patterns(_words(r.value) if isinstance(r.value, list) else _text(r).split())


def parse_array(text: str) -> Sequence[int]:
    """Indices of an array as Slurm writes them, `0-31`, `1,3,5-9`, `1-7:2`: ascending, each once."""
    spans: list[range] = []
    for part in text.replace(" ", "").split(","):
        match = re.fullmatch(r"(\d{1,12})(?:-(\d{1,12})(?::(\d{1,12}))?)?", part)
        if match is None:
            hint = "write 0-31, 1,3,5-9 or 1-7:2"
            if "%" in part:
                raise UsageError(f"cannot limit how many run at once ({part!r})", hint=hint)
            raise UsageError(f"cannot read {part!r}", hint=hint)
        low = int(match[1])
        high, step = int(match[2] or low), int(match[3] or 1)
        if high < low or step < 1:
            raise UsageError(f"{part!r} is empty", hint="the lower end comes first, steps are at least 1")
        span = range(low, high + 1, step)
        spans.append(span)
    if sum(len(span) for span in spans) > ARRAY_TASKS_MAX and spans != [range(len(spans[0]))]:
        raise UsageError(f"more than {ARRAY_TASKS_MAX} tasks", hint="an array 0-N or `queue` may be longer")
    if len(spans[0]) > TASKS_PER_JOB_MAX:
        raise UsageError(f"more than {TASKS_PER_JOB_MAX} tasks")
    return spans[0] if len(spans) == 1 else sorted(set().union(*spans))


def _array(r: Reading) -> Sequence[int]:
    if isinstance(r.value, int) and not isinstance(r.value, bool):
        raise UsageError(
            f"{r.value} is no range", hint=f'write "0-{max(r.value - 1, 0)}" for {r.value} tasks'
        )
    return parse_array(_text(r))


def _each_line(r: Reading) -> list[list[str]]:
    name = _text(r)
    try:
        text = (r.directory / name).read_text(encoding="utf-8")
    except OSError as problem:
        raise UsageError(f"cannot read {name}: {problem.strerror or problem}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{name} is not UTF-8") from None
    except ValueError as problem:
        raise UsageError(f"cannot read {name!r}: {problem}") from None
    lines = text.split("\n")
    if lines[-1] == "":
        del lines[-1]
    if not lines:
        raise UsageError(f"{name} is empty, so there is nothing to do")
    return [[line] for line in lines]


def _env(r: Reading) -> dict[str, str]:
    """A table; in INI, or as text, `NAME=value` a line."""
    if isinstance(r.value, dict):
        pairs = list(r.value.items())
    else:
        pairs = []
        for line in _text(r).split("\n"):
            name, equals, value = line.partition("=")
            if not equals:
                raise UsageError(f"cannot read {line[:60]!r}", hint="write NAME=value, one a line")
            pairs.append((name.strip(), value.strip()))
    for name, value in pairs:
        if not name or "=" in name or "\0" in name:
            raise UsageError(f"{name!r} is no name for a variable")
        if isinstance(value, bool) or not isinstance(value, str | int | float) or "\0" in str(value):
            raise UsageError(f"the value of {name} is no text", hint='put it into quotes: "…"')
    return {name: str(value) for name, value in pairs}


def _workdir(r: Reading) -> str:
    return str(r.directory / Path(_short_text(r)).expanduser())


def _seconds(r: Reading) -> float:
    value = r.value
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = f"{value:.6f}" if value >= 0 else "negative"
    if not isinstance(value, str):
        raise UsageError(f"{value!r} is no duration", hint='write 90, "1h30m" or "01:30:00"')
    return seconds_of(value)


def _restart(r: Reading) -> str:
    value = _text(r).lower()
    if value not in ("always", "never"):
        raise UsageError(f"{r.value!r} is not known", hint='write "always" or "never"')
    return value


KEYS: dict[str, Key] = {
    "command": Key(_command, ("executable", "cmd")),
    "queue": Key(_integer(1, TASKS_PER_JOB_MAX)),
    "args": Key(_args),
    "array": Key(_array),
    "each_line": Key(_each_line),
    "cleanup": Key(_command),
    "requires": Key(_tags, ("requirements",)),
    "workers": Key(_patterns, ("worker", "nodelist", "hosts")),
    "name": Key(_short_text, ("batch_name", "job_name")),
    "priority": Key(_integer(-1000, 1000)),
    "retries": Key(_integer(0, 1000), ("max_retries",)),
    "slots": Key(_integer(1, 65536), ("cores", "request_cpus")),
    "time_limit_s": Key(_seconds, ("time_limit",)),
    "restart": Key(_restart),
    "env": Key(_env, ("environment",)),
    "workdir": Key(_workdir, ("initialdir",)),
    "append_index": Key(_boolean),
    "id": Key(_short_text),
}
"""By the name of the field in the `job` message (or what becomes one)."""


def names() -> list[str]:
    """Every key, as people are to write it."""
    return sorted("time_limit" if key == "time_limit_s" else key for key in KEYS)
