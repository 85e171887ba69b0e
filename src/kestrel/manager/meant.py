"""Who is meant: patterns over addresses as people and programs send them, with words for what is wrong.

Pure. Reads patterns of jobs, of workers' owners, of questions and of drains; says which address was probably
meant by one that means nobody. Called by the rooms of the manager.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final

from kestrel.core.addresses import Pattern, PatternError, matching, meant_otherwise, parts_of
from kestrel.errors import UsageError

NAMES_COMPARED_MAX: Final = 1000
"""So many addresses are compared with one that means nobody."""
PATTERNS_SHOWN: Final = 3

UNKNOWN: Final = "unknown_worker"

_NUMBERS = re.compile(r"(\d+)")


def patterns_of(texts: Iterable[str], where: str) -> tuple[Pattern, ...]:
    """Read patterns; `where` is for the message. Raises `UsageError` that names the one that is none."""
    found: dict[Pattern, None] = {}
    for text in texts:
        try:
            found[Pattern.parse(text)] = None
        except PatternError as problem:
            near = _corrected(text)
            meant = f"did you mean {near}?" if near else "e.g. worker*@pool, worker@pool/4* or */core2"
            raise UsageError(f"{where}: {problem}", hint=meant, code="bad_pattern") from None
    return tuple(found)


def user_patterns_of(texts: Iterable[str], where: str) -> tuple[Pattern, ...]:
    """Patterns that mean users, who are known by their bare addresses. Raises `UsageError`."""
    patterns = patterns_of(texts, where)
    for pattern in patterns:
        if pattern.resource:
            account = pattern.text.partition("/")[0]
            raise UsageError(
                f"{where}: {pattern.text!r} names a resource, but users are known without one",
                hint=f"did you mean {account}?" if account else "e.g. ann@example.org",
                code="bad_pattern",
            )
    return patterns


def meant_by(patterns: tuple[Pattern, ...], names: Iterable[str]) -> list[str]:
    """Those of the addresses that a pattern means, or that it is word for word; all without patterns."""
    if not patterns:
        return list(names)
    literal = {pattern.text for pattern in patterns}
    return [name for name in names if name in literal or matching(patterns, name)]


def nobody(patterns: Sequence[Pattern], names: Sequence[str]) -> UsageError:
    """That none of these addresses is meant, and which one is closest."""
    shown = ", ".join(pattern.text for pattern in patterns[:PATTERNS_SHOWN])
    more = " …" if len(patterns) > PATTERNS_SHOWN else ""
    verb = "means" if len(patterns) == 1 else "mean"
    if not names:
        text = f"{shown}{more} {verb} nobody: there are no workers in the pool"
        return UsageError(text, hint="`pool` lists those that left lately", code=UNKNOWN)
    count = f"none of the {len(names)} workers" if len(names) > 1 else "not the one worker that is"
    return UsageError(f"{shown}{more} {verb} {count} in the pool", hint=_hint(patterns, names), code=UNKNOWN)


def natural(text: str) -> list[tuple[int, str]]:
    """A key to sort names by as people do: core2 before core10."""
    parts = _NUMBERS.split(text)
    return [(int(part) if i % 2 else 0, part) for i, part in enumerate(parts)]


def _hint(patterns: Sequence[Pattern], names: Sequence[str]) -> str:
    for pattern in patterns[:PATTERNS_SHOWN]:
        other = meant_otherwise(pattern, names)
        if other is not None:
            return f"a pattern without @ means a domain; did you mean {other}?"
    near = _nearest(patterns, names)
    return f"did you mean {near}?" if near else "`pool` lists them"


def _nearest(patterns: Sequence[Pattern], names: Sequence[str]) -> str:
    """The address that is most like one of them in those parts that the pattern names."""
    some = list(islice(names, NAMES_COMPARED_MAX))
    for pattern in patterns[:PATTERNS_SHOWN]:
        shapes: dict[str, str] = {}
        for name in some:
            shapes.setdefault(_shape(pattern, *parts_of(name)), name)
        wanted = _shape(pattern, pattern.user, pattern.domain, pattern.resource)
        near = difflib.get_close_matches(wanted, shapes, n=1, cutoff=0.4)
        if near:
            return shapes[near[0]]
    return ""


def _shape(pattern: Pattern, user: str, domain: str, resource: str) -> str:
    """The parts of an address that a pattern names."""
    return (
        f"{user + '@' if pattern.user else ''}{domain if pattern.domain else ''}"
        f"{'/' + resource if pattern.resource else ''}"
    )


def _corrected(text: str) -> str:
    """What was probably meant by a text that is no pattern; empty if that is anybody's guess."""
    account, slash, resource = "".join(text.split()).partition("/")
    user, at, domain = account.rpartition("@")
    user = user.split("@")[0]
    near = f"{user}{at}{domain or '*'}{slash}{resource}" if account or resource else ""
    try:
        return Pattern.parse(near).text
    except PatternError:
        return ""
