"""XMPP addresses (RFC 6122): parsing, string preparation, comparison.

Pure. Two addresses are the same exactly if their prepared texts are equal, so everything that
compares or stores an address uses the prepared form. Called by the server for every login and every
`to`, by the shells for what people type. The hot paths use `bare`, which prepares nothing: it is for
addresses that a server has stamped.
"""

from __future__ import annotations

import ipaddress
import stringprep
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from encodings import idna
from functools import lru_cache

from kestrel.errors import PeerError

PART_BYTES_MAX = 1023
"""Longest part in bytes of UTF-8 (RFC 6122 section 2.1)."""
TEXT_CHARS_MAX = 3 * PART_BYTES_MAX + 2
CACHE_ENTRIES_MAX = 4096
"""Parsed addresses that are remembered."""

_LOCAL_FORBIDDEN = frozenset("\"&'/:<>@ ")
_LOCAL_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyz0123456789.-_+!#$%()*,;=?[\\]^`{|}~")
_DOMAIN_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-.")


class JidError(PeerError):
    """A text is not an XMPP address. The stanza error that goes with it is `jid-malformed`."""

    code = "bad_address"


@dataclass(frozen=True, slots=True)
class JID:
    """A prepared address. Make one with `parse`; `local` and `resource` may be empty."""

    local: str
    domain: str
    resource: str

    @staticmethod
    def parse(text: str) -> JID:
        """Prepare an address. Raises `JidError` that says which part is wrong and why."""
        if len(text) > TEXT_CHARS_MAX:
            raise JidError(f"An address of {len(text)} characters is too long.", hint=_HINT)
        return _parse(text)

    @property
    def bare(self) -> JID:
        """Without the resource."""
        return JID(self.local, self.domain, "") if self.resource else self

    @property
    def is_bare(self) -> bool:
        """True without a resource."""
        return not self.resource

    def with_resource(self, resource: str) -> JID:
        """The same account at another resource, which is prepared. Raises `JidError`."""
        return JID(self.local, self.domain, prepare_resource(resource))

    def __str__(self) -> str:
        text = f"{self.local}@{self.domain}" if self.local else self.domain
        return f"{text}/{self.resource}" if self.resource else text


_HINT = "An address is written local@domain/resource; local and resource may be absent."


def bare(text: str) -> str:
    """Everything before the first `/` of an address that is prepared already."""
    return text.partition("/")[0]


@lru_cache(maxsize=CACHE_ENTRIES_MAX)
def _parse(text: str) -> JID:
    account, slash, resource = text.partition("/")
    local, at, domain = account.rpartition("@") if account.count("@") <= 1 else ("@", "", "")
    if local == "@":
        raise JidError(f"Address {_shown(text)} has more than one @.", hint=_HINT)
    if at and not local:
        raise JidError(f"Address {_shown(text)} has nothing before the @.", hint=_HINT)
    if slash and not resource:
        raise JidError(f"Address {_shown(text)} has nothing after the /.", hint=_HINT)
    return JID(
        prepare_local(local) if local else "",
        prepare_domain(domain),
        prepare_resource(resource) if resource else "",
    )


def prepare_local(text: str) -> str:
    """Nodeprep (RFC 6122 appendix A). Raises `JidError`."""
    if not _LOCAL_PLAIN.issuperset(text):
        text = _stringprep(text, "local part", stringprep.map_table_b2)
        wrong = _LOCAL_FORBIDDEN.intersection(text)
        if wrong:
            raise JidError(f"Local part {_shown(text)} contains {min(wrong)!r}.", hint=_HINT)
    return _bounded(text, "local part")


def prepare_domain(text: str) -> str:
    """Nameprep of each label (RFC 6122 section 2.2); IP addresses stay. Raises `JidError`."""
    if text.startswith("[") and text.endswith("]"):
        try:
            return f"[{ipaddress.IPv6Address(text[1:-1])}]"
        except ValueError as problem:
            raise JidError(f"Domain {_shown(text)} is not an IPv6 address.", hint=_HINT) from problem
    lowered = text.lower() if text.isascii() else text
    if not _DOMAIN_PLAIN.issuperset(lowered):
        lowered = _nameprep(text)
    lowered = lowered.removesuffix(".")
    for label in lowered.split("."):
        if not label or len(label.encode("utf-8")) > 255 or label[0] == "-" or label[-1] == "-":
            raise JidError(f"Domain {_shown(text)} has an empty or malformed part.", hint=_HINT)
    return _bounded(lowered, "domain")


def _nameprep(text: str) -> str:
    # The full stops of IDNA2003 (RFC 3490 section 3.1) separate labels too.
    for stop in "\u3002\uff0e\uff61":
        text = text.replace(stop, ".")
    try:
        prepared = ".".join(idna.nameprep(label) for label in text.split("."))
    except UnicodeError as problem:
        raise JidError(f"Domain {_shown(text)} contains forbidden characters.", hint=_HINT) from problem
    for char in prepared:
        if char.isascii() and char not in _DOMAIN_PLAIN:
            raise JidError(f"Domain {_shown(text)} contains {char!r}.", hint=_HINT)
    return prepared


def prepare_resource(text: str) -> str:
    """Resourceprep (RFC 6122 appendix B). Raises `JidError`."""
    if not (text.isascii() and text.isprintable()):
        text = _stringprep(text, "resource", None)
    return _bounded(text, "resource")


def _bounded(text: str, part: str) -> str:
    if not text:
        raise JidError(f"The {part} of an address is empty.", hint=_HINT)
    if len(text) * 4 > PART_BYTES_MAX and len(text.encode("utf-8")) > PART_BYTES_MAX:
        raise JidError(f"The {part} of an address is longer than {PART_BYTES_MAX} bytes.", hint=_HINT)
    return text


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")


PROHIBITED: tuple[Callable[[str], bool], ...] = (
    stringprep.in_table_c12,
    stringprep.in_table_c21_c22,
    stringprep.in_table_c3,
    stringprep.in_table_c4,
    stringprep.in_table_c5,
    stringprep.in_table_c6,
    stringprep.in_table_c7,
    stringprep.in_table_c8,
    stringprep.in_table_c9,
)
"""What neither addresses nor passwords may contain (RFC 3454 appendix C, without ASCII spaces)."""


def _stringprep(text: str, part: str, fold: Callable[[str], str] | None) -> str:
    """Map, normalise, prohibit, check directions (RFC 3454); unassigned code points are refused."""
    mapped = "".join(char for char in text if not stringprep.in_table_b1(char))
    if fold is not None:
        mapped = "".join(map(fold, mapped))
    # Stringprep is defined on Unicode 3.2 (RFC 3454 section 7).
    prepared = unicodedata.ucd_3_2_0.normalize("NFKC", mapped)
    for char in prepared:
        if stringprep.in_table_a1(char) or any(table(char) for table in PROHIBITED):
            raise JidError(f"The {part} {_shown(text)} contains the forbidden {char!r}.", hint=_HINT)
    rtl = [stringprep.in_table_d1(char) for char in prepared]
    if any(rtl) and (any(map(stringprep.in_table_d2, prepared)) or not (rtl[0] and rtl[-1])):
        raise JidError(f"The {part} {_shown(text)} mixes writing directions.", hint=_HINT)
    return prepared
