"""Patterns over addresses: who is meant by `worker@pool/42`, `worker*@pool`, `pool` or `*.example.org`.

Pure, and on prepared addresses (small letters where case does not count). Used for roles and allow-lists, for
jobs that name their workers, for owners that say whose jobs run, and for filtering a pool. A pattern never
reaches over the `@` or the `/`: `*` stands for any characters within its part.
"""

from __future__ import annotations

import stringprep
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal, NamedTuple

PATTERN_CHARS_MAX: Final = 1024
_WILD: Final = frozenset("*?")

Part = Literal["user", "domain", "resource"]
PARTS: Final[tuple[Part, ...]] = ("user", "domain", "resource")


class PatternError(ValueError):
    """A text is no pattern; the message says why, for a person."""


class Parts(NamedTuple):
    """The three parts of an address; missing ones are empty."""

    user: str
    domain: str
    resource: str


def parts_of(address: str) -> Parts:
    """Take a prepared address apart."""
    account, _, resource = address.partition("/")
    user, at, domain = account.rpartition("@")
    return Parts(user if at else "", domain, resource)


@dataclass(frozen=True, slots=True)
class Pattern:
    """One pattern.

    | text | means |
    |---|---|
    | `ann@example.org` | this account, with any resource |
    | `worker*@pool` | accounts whose user part begins so |
    | `example.org` | everybody of this domain, and the domain itself |
    | `*.example.org` | everybody of every domain below it |
    | `worker@pool/4*` | sessions whose resource begins so |
    | `@pool/core2`, `*/core2` | this resource, of anybody in the domain, of anybody |
    | `*` | everybody |
    """

    text: str
    user: str
    """Empty: any, or none."""
    domain: str
    """Empty: any."""
    resource: str
    """Empty: any, or none."""

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Read a pattern; case counts in resources only. Raises `PatternError`."""
        return _parse(text.strip())

    def matches(self, address: str) -> bool:
        """Whether a prepared address is meant."""
        return self.matches_parts(parts_of(address))

    def matches_parts(self, parts: Parts) -> bool:
        """The same of an address that was taken apart before."""
        user, domain, resource = parts
        return (
            (not self.domain or _fits(self.domain, domain))
            and (not self.user or _fits(self.user, user))
            and (not self.resource or _fits(self.resource, resource))
        )

    def is_wild(self, part: Part) -> bool:
        """Whether this part has `*` or `?` in it."""
        return not _WILD.isdisjoint(getattr(self, part))

    def __str__(self) -> str:
        return self.text


def matching(patterns: tuple[Pattern, ...], address: str) -> bool:
    """Whether one of them means the address."""
    parts = parts_of(address)
    return any(pattern.matches_parts(parts) for pattern in patterns)


def meant_otherwise(pattern: Pattern, addresses: Iterable[str]) -> Pattern | None:
    """What a text without @ and /, which means a domain, should have been to mean one of these addresses: a
    user part or a resource; None if it would mean nobody either way."""
    text = pattern.text
    if "@" in text or "/" in text:
        return None
    others = [Pattern.parse(f"{text}@*"), Pattern.parse(f"*/{text}")]
    for address in addresses:
        for other in others:
            if other.matches(address):
                return other
    return None


@lru_cache(maxsize=4096)
def _parse(text: str) -> Pattern:
    if not text:
        raise PatternError("a pattern is empty")
    if len(text) > PATTERN_CHARS_MAX:
        raise PatternError(f"a pattern is longer than {PATTERN_CHARS_MAX} characters")
    if any(c.isspace() or not c.isprintable() for c in text.partition("/")[0]):
        raise PatternError(f"{text!r} contains white space")
    account, _, resource = text.partition("/")
    if account.count("@") > 1:
        raise PatternError(f"{text!r} has more than one @")
    user, at, domain = account.rpartition("@")
    user, domain = _folded(user), _folded(domain)
    if at and not domain:
        raise PatternError(f"{text!r} has nothing after the @")
    return Pattern(text, "" if user == "*" else user, "" if domain == "*" else domain, _any(resource))


def _folded(text: str) -> str:
    """As servers fold it when they prepare an address (RFC 3454 appendix B, then NFKC): what is left
    otherwise would not mean the very address that it was copied from."""
    if text.isascii():
        return text.lower()
    kept = (c for c in text if not stringprep.in_table_b1(c))
    return unicodedata.ucd_3_2_0.normalize("NFKC", "".join(map(stringprep.map_table_b2, kept)))


def _any(part: str) -> str:
    return "" if part == "*" else part


def _fits(glob: str, text: str) -> bool:
    """Whether `*` and `?` can be filled so. Greedy: a hostile pattern costs at most |glob| x |text| steps."""
    if "?" in glob:
        return _fits_by_character(glob, text)
    first, star, rest = glob.partition("*")
    if not star:
        return glob == text
    if not text.startswith(first):
        return False
    at = len(first)
    *middle, last = rest.split("*")
    for piece in middle:
        at = text.find(piece, at)
        if at < 0:
            return False
        at += len(piece)
    return len(text) - len(last) >= at and text.endswith(last)


def _fits_by_character(glob: str, text: str) -> bool:
    at = i = 0
    star, mark = -1, 0
    while at < len(text):
        if i < len(glob) and glob[i] == "*":
            star, mark = i, at
            i += 1
        elif i < len(glob) and glob[i] in ("?", text[at]):
            i += 1
            at += 1
        elif star >= 0:
            mark += 1
            i, at = star + 1, mark
        else:
            return False
    return glob[i:].strip("*") == ""
