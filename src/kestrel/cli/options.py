"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

from kestrel.errors import UsageError

_F = TypeVar("_F", bound=Callable[..., Any])
_PART = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)")
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class DashedCommand(click.Command):
    """A command that takes a command of the user's after `--`, word for word."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            at = args.index("--")
            ctx.meta[_AFTER_DASHES] = args[at + 1 :]
            args = args[:at]
        return super().parse_args(ctx, args)


_AFTER_DASHES = "kestrel.after_dashes"


def after_dashes(ctx: click.Context) -> list[str] | None:
    """The words after `--`; None if there was no `--`."""
    words: list[str] | None = ctx.meta.get(_AFTER_DASHES)
    return words


def pool_option(command: _F) -> _F:
    """`--pool NAME`: which pool to talk to."""
    return click.option(
        "--pool",
        metavar="NAME",
        help="Name of the pool, or the path of an access file.  [default: $KESTREL_POOL, or `default`]",
    )(command)


def json_option(command: _F) -> _F:
    """`--json`: print for programs."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")(command)


def seconds_of(text: str) -> float:
    """Seconds from `90`, `1.5h`, `1h30m`, `7d` or `HH:MM:SS`. Raises `UsageError`."""
    text = text.strip().lower()
    if re.fullmatch(r"\d+(:\d{1,2}){1,2}", text):
        total = 0
        for part in text.split(":"):
            total = total * 60 + int(part)
        return float(total)
    parts = _PART.findall(text)
    if not parts or "".join(a + b for a, b in parts) != text:
        raise UsageError(f"cannot read the duration {text!r}", hint="write 90, 90s, 1h30m, 7d or 01:30:00")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def duration(_ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Click callback for options that take a duration."""
    if value is None:
        return None
    try:
        return seconds_of(value)
    except UsageError as problem:
        raise click.BadParameter(f"{problem.text}; {problem.hint}", param=param) from None
