"""What the owner of a machine says about lending it: options of `kestrel worker`, and what they mean."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import click

from kestrel.config import write_private
from kestrel.core.addresses import Pattern, PatternError
from kestrel.errors import UsageError
from kestrel.worker.hours import Hours
from kestrel.worker.settings import OwnerRules

_F = TypeVar("_F", bound=Callable[..., Any])
RESOURCE_BYTES = 4
USERS_MAX = 64
"""More patterns do not fit into a profile."""

_OPTIONS = (
    click.option(
        "--users",
        multiple=True,
        metavar="PATTERN",
        help="Whose jobs may run here, e.g. ann@example.org or '*.example.org'; may be repeated."
        "  [default: everybody's]",
    ),
    click.option(
        "--hours",
        metavar="HOURS",
        help="When, e.g. 'Mon-Fri 20:00-07:00, Sat, Sun'.  [default: always]",
    ),
    click.option(
        "--at-close",
        type=click.Choice(["finish", "stop"]),
        default="finish",
        show_default=True,
        help="What becomes of running tasks when the hours end.",
    ),
    click.option("--run-as", default="", metavar="USER", help="Run tasks as this Unix user (needs root)."),
    click.option(
        "--niceness",
        type=click.IntRange(0, 19),
        default=0,
        metavar="N",
        help="Let other programs go before tasks, as nice(1) does.",
    ),
    click.option(
        "--each-core",
        is_flag=True,
        help="One connection per core, with one slot each: …/core0, …/core1 and so on.",
    ),
)


def owner_options(command: _F) -> _F:
    """Adds the options to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def owner_rules(users: tuple[str, ...], hours: str | None, at_close: Literal["finish", "stop"]) -> OwnerRules:
    """What they say about whose jobs run and when. Raises `UsageError`."""
    if len(users) > USERS_MAX:
        raise UsageError(f"{len(users)} times --users; at most {USERS_MAX} are told to a pool", hint="use *")
    return OwnerRules(
        users=tuple(_pattern(text) for text in users),
        hours=None if hours is None else Hours.parse(hours),
        at_close=at_close,
    )


def resource_of(jid: str, directory: Path) -> str:
    """The resource that an address names: `worker@pool/42`.

    Without one it is `worker`. With nothing behind the slash (`worker42@pool/`) it is drawn once and kept in
    the worker's directory: who came back under another one would be another worker, and its tasks run twice.
    """
    _, slash, resource = jid.partition("/")
    if resource or not slash:
        return resource or "worker"
    path = directory / "resource"
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        drawn = secrets.token_hex(RESOURCE_BYTES)
        write_private(path, drawn + "\n")
        return drawn


def _pattern(text: str) -> Pattern:
    try:
        pattern = Pattern.parse(text)
    except PatternError as problem:
        raise UsageError(f"cannot read --users {text!r}: {problem}", hint="e.g. ann@example.org") from None
    if pattern.resource:
        raise UsageError(
            f"--users {text!r} names a resource, and jobs belong to accounts",
            hint=f"write {text.partition('/')[0] or '*'}",
        )
    return pattern
