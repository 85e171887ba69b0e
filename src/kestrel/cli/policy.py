"""The options with which a manager is told who may do what, how much, and when a worker is lost.

`kestrel manager` and `kestrel up` share them. A pattern that is none is refused with what was probably meant.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import click

from kestrel.cli.options import duration
from kestrel.core.addresses import Pattern, PatternError
from kestrel.errors import UsageError
from kestrel.manager.access import AccessRules
from kestrel.manager.settings import ManagerSettings, noticing_within

LOST_AFTER_S_MIN = 2.0
"""A busy machine may take a second to answer: less would lose workers that are well."""
RATE_BURST_S = 5.0
"""So many seconds' worth of messages may come at once."""

_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Policy:
    """What the options say."""

    rules: AccessRules
    queued_max: int | None
    rate: float | None
    lost_after_s: float

    def settings(self, pool: str, *, owners: tuple[str, ...] = ()) -> ManagerSettings:
        """Settings of a manager; `owners` are administrators beside those that were named."""
        rules = replace(self.rules, owners=tuple(Pattern.parse(name) for name in owners))
        limits: dict[str, Any] = {}
        if self.queued_max is not None:
            limits["tasks_open_per_user_max"] = self.queued_max
        if self.rate is not None:
            limits["messages_per_s"] = self.rate
            limits["messages_burst"] = self.rate * RATE_BURST_S
        settings = ManagerSettings(pool=pool, access=rules, **limits)
        if self.lost_after_s == settings.scheduler.lease_s:
            return settings
        return noticing_within(settings, self.lost_after_s)


def policy_options(command: _F) -> _F:
    """`--admin`, `--user`, `--worker`, `--deny`, `--max-queued`, `--max-rate`, `--lost-after`; the command is
    called with `policy`."""

    @functools.wraps(command)
    def with_policy(
        *,
        admins: tuple[Pattern, ...],
        users: tuple[Pattern, ...],
        workers: tuple[Pattern, ...],
        denied: tuple[Pattern, ...],
        max_queued: int | None,
        max_rate: float | None,
        lost_after: float,
        **others: Any,
    ) -> Any:
        if lost_after < LOST_AFTER_S_MIN:
            raise UsageError(
                f"a worker cannot be given up after {lost_after:g} s",
                hint=f"--lost-after takes {LOST_AFTER_S_MIN:g}s at least",
            )
        rules = AccessRules(admins, users, workers, denied)
        return command(policy=Policy(rules, max_queued, max_rate, lost_after), **others)

    wrapped: Any = with_policy
    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    result: _F = wrapped
    return result


def _patterns(
    _context: click.Context, option: click.Parameter, texts: tuple[str, ...]
) -> tuple[Pattern, ...]:
    return tuple(read_pattern(text, option.opts[0]) for text in texts)


def read_pattern(text: str, option: str) -> Pattern:
    """A pattern from the command line; raises `UsageError` with what was probably meant."""
    words = [word for word in text.replace(",", " ").replace(";", " ").split() if word]
    if len(words) > 1:
        each = " ".join(f"{option} {word}" for word in words)
        raise UsageError(f"{option} takes one pattern at a time, and {text!r} is more", hint=f"write {each}")
    try:
        pattern = Pattern.parse(text)
        if "," not in text and ";" not in text and not text.startswith("xmpp:"):
            return pattern
        problem = PatternError(f"{text!r} is no address")
    except PatternError as found:
        problem = found
    likely = _likely(text)
    hint = f"did you mean {option} {likely}?" if likely else f"e.g. {option} ann@example.org, or a domain"
    raise UsageError(f"{option}: {problem}", hint=hint)


def _likely(text: str) -> str:
    """The closest text that is a pattern, or nothing."""
    account, slash, resource = text.strip().strip(",;").removeprefix("xmpp:").partition("/")
    user, _, domain = account.partition("@")
    user, domain = user.strip("@ "), domain.strip("@ ")
    domain = domain.rpartition("@")[2]
    likely = (f"{user}@{domain}" if user and domain else domain) + (slash + resource)
    try:
        return Pattern.parse(likely).text
    except PatternError:
        return ""


def _list_option(flag: str, name: str, help: str) -> Callable[[Any], Any]:
    return click.option(flag, name, multiple=True, metavar="PATTERN", callback=_patterns, help=help)


_OPTIONS = (
    _list_option(
        "--admin",
        "admins",
        "May touch everybody's jobs, drain workers, and do all that users and workers may: ann@example.org, "
        "*@example.org. May be repeated.  [default: the account with which commands here reach the pool]",
    ),
    _list_option(
        "--user",
        "users",
        "May submit jobs and see its own.  [default: the accounts of the server's domain, or those to which "
        "the server gives the role]",
    ),
    _list_option(
        "--worker", "workers", "May work: worker*@example.org, example.org.  [default: as for --user]"
    ),
    _list_option("--deny", "denied", "May nothing, whatever else is said."),
    click.option(
        "--max-queued",
        type=click.IntRange(1),
        metavar="N",
        help="Tasks that one user may have queued or running.  [default: 200000000]",
    ),
    click.option(
        "--max-rate",
        type=click.FloatRange(0),
        metavar="N",
        help="Messages a second that one user may send, five times as many at once; 0: no limit.  "
        "[default: 1000]",
    ),
    click.option(
        "--lost-after",
        default="15s",
        show_default=True,
        metavar="TIME",
        callback=duration,
        help="A worker from which nothing was heard for so long is lost, and its tasks go to others; 2s at "
        "least.",
    ),
)
