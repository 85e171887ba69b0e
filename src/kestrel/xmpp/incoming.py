"""What a stream reader yields: headers, stanzas as slices of the bytes that came, the end.

Pure. A stanza answers questions about itself without building a tree as long as it can, and rewrites
its own opening tag for another stream. It must never hand out bytes whose meaning depends on what the
stream it came from had declared. Made by `kestrel.xmpp.stream`, which also exports these names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from xml.etree.ElementTree import Element, XMLParser

from kestrel.xmpp.stanza import (
    NS_CLIENT,
    NS_COMPONENT,
    NS_JSON,
    NS_STREAM,
    NS_XML,
    attributes,
    escape_attribute,
    render,
    split_name,
)

OPENING_TAG = re.compile(rb"""<[^"'>]*(?:(?:"[^"]*"|'[^']*')[^"'>]*)*>""")
"""A whole start tag or empty-element tag, from its `<`; for bytes that are well-formed."""

_LANG = f"{NS_XML} lang"
_JSON = f"{NS_JSON} json"
_REFERENCE = re.compile(r"&(#x[0-9A-Fa-f]+|#[0-9]+|lt|gt|amp|quot|apos);")
_ENTITIES = {"lt": "<", "gt": ">", "amp": "&", "quot": '"', "apos": "'"}
_QUOTED_WORK = re.compile("[^\x20-\x21\x23-\x25\x28-\x3b\x3d\x3f-\x7e]")
_QUOTE, _TO, _TYPE, _ID, _XML_LANG, _NOTHING = "'", " to='", " type='", " id='", " xml:lang='", ""
_JSON_OPENINGS = (f"<json xmlns='{NS_JSON}'>".encode(), f'<json xmlns="{NS_JSON}">'.encode())
_JSON_OPENING_SIZE = len(_JSON_OPENINGS[0])


@dataclass(frozen=True, slots=True)
class StreamHeader:
    """The opening tag of the stream. `attrs` holds `to`, `from`, `id`, `version` … as they came."""

    ns: str
    """The default namespace: `jabber:client` or `jabber:component:accept`."""
    attrs: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StreamEnd:
    """The other end has closed the stream; what follows is ignored."""


class Stanza:
    """One first-level element: a stanza, or a nonza such as `<r/>`, `<auth/>`, `<stream:features/>`.

    `raw` is the whole element as it came. `tag` is `namespace local`, `attrs` the attributes of the
    element itself. `_parts` holds name, start and end in `raw` of each first-level child, flat.
    """

    __slots__ = ("_context", "_parts", "attrs", "raw", "tag")

    def __init__(
        self, tag: str, attrs: dict[str, str], raw: bytes, parts: list[Any], context: Context
    ) -> None:
        self.tag = tag
        self.attrs = attrs
        self.raw = raw
        self._parts = parts
        self._context = context

    @property
    def name(self) -> str:
        """Local name: `message`, `presence`, `iq`, `auth` …"""
        return self.tag.rpartition(" ")[2]

    @property
    def ns(self) -> str:
        """Namespace of the element."""
        return self.tag.rpartition(" ")[0]

    @property
    def children(self) -> tuple[tuple[str, str, int, int], ...]:
        """(namespace, name, start, end) of each first-level child; the offsets are into `raw`."""
        parts = self._parts
        result = []
        for at in range(0, len(parts), 3):
            ns, _, name = parts[at].rpartition(" ")
            result.append((ns, name, parts[at + 1], parts[at + 2]))
        return tuple(result)

    def has_child(self, ns: str, name: str) -> bool:
        """Whether a first-level child of this name is there."""
        return f"{ns} {name}" in self._parts[::3]

    def child_text(self, ns: str, name: str) -> str | None:
        """Character data of the first such child, unescaped, or None. Its own children are left out."""
        parts = self._parts
        tag = f"{ns} {name}"
        for at in range(0, len(parts), 3):
            if parts[at] == tag:
                return self._text(at)
        return None

    def body(self) -> str | None:
        """Text of the `<body/>`, or None."""
        return self.child_text(self._context.ns, "body")

    def json(self) -> bytes | None:
        """The JSON text of an XEP-0335 container as UTF-8, or None."""
        parts = self._parts
        for at in range(0, len(parts), 3):
            if parts[at] == _JSON:
                plain = self._plain(parts[at + 1], parts[at + 2])
                return plain if plain is not None else self._text(at).encode("utf-8")
        return None

    def tree(self) -> Element:
        """The whole element as a tree with `{namespace}name` tags. Slow: for forms and queries."""
        parser = XMLParser(encoding="utf-8")
        parser.feed(self._context.header)
        parser.feed(self.raw)
        parser.feed(self._context.footer)
        return parser.close()[0]

    def inner(self) -> bytes:
        """The bytes from the first child to the end of the last; text between is included."""
        parts = self._parts
        return self.raw[parts[1] : parts[-1]] if parts else b""

    def with_addresses(self, from_: str, to: str | None = None, *, ns: str = NS_CLIENT) -> bytes:
        """The stanza with a new opening tag, for a stream whose default namespace is `ns`.

        `from` is stamped, `to` replaced if given; `type`, `id` and `xml:lang` are kept, all other
        attributes are dropped, as is text outside of the children (RFC 6120 section 8.1).
        Children in the content namespace follow into `ns`.
        """
        attrs = self.attrs
        parts = self._parts
        name, opening, closing = _SHAPES.get(self.tag) or _shape(self.tag)
        if to is None:
            to = attrs.get("to", "")
        kind, number, lang = attrs.get("type", ""), attrs.get("id", ""), attrs.get(_LANG, "")
        if _QUOTED_WORK.search(f"{from_}{to}{kind}{number}{lang}") is not None:
            from_, to, kind, number, lang = map(escape_attribute, (from_, to, kind, number, lang))
        head = (
            f"<{name} from='{from_}'"
            f"{_TO + to + _QUOTE if to else _NOTHING}"
            f"{_TYPE + kind + _QUOTE if kind else _NOTHING}"
            f"{_ID + number + _QUOTE if number else _NOTHING}"
            f"{_XML_LANG + lang + _QUOTE if lang else _NOTHING}"
        )
        if not parts:
            return f"{head}/>".encode()
        if self._copies(opening, ns):
            inner = self.raw[parts[1] : parts[-1]]
        else:
            inner = self._translated(ns)
        return b"".join((f"{head}>".encode(), inner, closing))

    def _copies(self, opening: bytes, ns: str) -> bool:
        """Whether the inside means the same in a stream with default namespace `ns`.

        The root must inherit the default namespace (no prefix; then an explicit one is the same) and
        neither it nor the stream header may declare a prefix that the inside might use.
        """
        raw = self.raw
        context = self._context
        first = self._parts[1]
        if context.prefixes or raw.find(b"xmlns:", 0, first) != -1:
            return False
        if not raw.startswith(opening) or raw[len(opening)] not in b" \t\r\n>":
            return False
        if ns == context.ns:
            return True
        return raw.find(context.ns.encode(), first) == -1 and raw.find(b"&#", first) == -1

    def _translated(self, ns: str) -> bytes:
        source = self._context.ns
        root = self.tree()
        for child in root:
            _move(child, source, ns)
            child.tail = None
        return "".join(render(child, within=ns) for child in root).encode("utf-8")

    def _plain(self, start: int, end: int) -> bytes | None:
        """Character data of the element at these offsets if it can be copied as it is, else None."""
        raw = self.raw
        if raw.startswith(_JSON_OPENINGS, start):
            begin = start + _JSON_OPENING_SIZE
        else:
            opening = OPENING_TAG.match(raw, start)
            assert opening is not None
            begin = opening.end()
            if begin == end:
                return b""
        text = raw[begin : raw.rfind(b"</", begin, end)]
        if b"&" in text or b"<" in text or b"\r" in text:
            return None
        return text

    def _text(self, at: int) -> str:
        start, end = self._parts[at + 1], self._parts[at + 2]
        plain = self._plain(start, end)
        if plain is not None:
            return plain.decode("utf-8")
        opening = OPENING_TAG.match(self.raw, start)
        assert opening is not None
        text = self.raw[opening.end() : self.raw.rfind(b"</", start, end)]
        if b"<" not in text:
            # Line ends are normalised before references are resolved (XML 1.0 section 2.11).
            lines = text.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
            return _REFERENCE.sub(_resolve, lines)
        element = self.tree()[at // 3]
        return (element.text or "") + "".join(child.tail or "" for child in element)


def _shape(tag: str) -> tuple[str, bytes, bytes]:
    name = tag.rpartition(" ")[2]
    return name, f"<{name}".encode(), f"</{name}>".encode()


_SHAPES = {
    f"{ns} {name}": _shape(name) for ns in (NS_CLIENT, NS_COMPONENT) for name in ("message", "presence", "iq")
}
"""Local name, start of the opening tag and end tag of the three stanzas."""


def _resolve(match: re.Match[str]) -> str:
    name = match[1]
    if name.startswith("#x"):
        return chr(int(name[2:], 16))
    if name.startswith("#"):
        return chr(int(name[1:]))
    return _ENTITIES[name]


def _move(element: Element, source: str, target: str) -> None:
    """Rename an element and its inside as far as they are in `source`, into `target`."""
    ns, name = split_name(element.tag)
    if ns != source:
        return
    element.tag = f"{{{target}}}{name}"
    for child in element:
        _move(child, source, target)


@dataclass(frozen=True, slots=True)
class Context:
    """What the stream header lends to everything in the stream."""

    ns: str
    header: bytes
    """An opening tag that declares the same; what a fresh parser is given first."""
    footer: bytes
    prefixes: bool
    """Whether it declares prefixes other than the usual one for the stream's own namespace."""


def context_of(ns: str, qname: str, declared: dict[str, str]) -> Context:
    """`qname` is the root's name as written, `declared` prefix → namespace, without the default."""
    extra = {key: value for key, value in declared.items() if (key, value) != ("stream", NS_STREAM)}
    if not extra and qname == "stream:stream":
        usual = _USUAL.get(ns)
        if usual is None:
            usual = _USUAL[ns] = _make(ns, qname, declared)
        return usual
    return _make(ns, qname, declared)


def _make(ns: str, qname: str, declared: dict[str, str]) -> Context:
    extra = any((key, value) != ("stream", NS_STREAM) for key, value in declared.items())
    namespaces = "".join(f" xmlns:{prefix}='{escape_attribute(uri)}'" for prefix, uri in declared.items())
    header = f"<{qname}{attributes(xmlns=ns)}{namespaces}>"
    return Context(ns, header.encode("utf-8"), f"</{qname}>".encode(), extra)


_USUAL: dict[str, Context] = {}
"""Contexts of ordinary headers, one for each accepted content namespace, shared by all readers."""

Event: TypeAlias = StreamHeader | Stanza | StreamEnd
