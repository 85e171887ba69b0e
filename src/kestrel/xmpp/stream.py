"""Reads an XML stream (RFC 6120 section 4): bytes in, stanzas out, for either end.

Pure: no sockets, no time. It never builds a tree unless asked, never keeps more than one incomplete
stanza, and lets nothing through that would not be well-formed in another stream: a server may copy
the inside of what it yields into any other connection. Called by the client, the component and the
embedded server.

How it works: expat checks well-formedness and namespaces and tells where elements start and end; the
stanza is then a slice of the bytes as they came. Names are `namespace local` in one text, as expat
gives them, and are taken apart only when somebody asks.
"""

from __future__ import annotations

from itertools import islice
from typing import Any, NoReturn
from xml.parsers import expat

from kestrel.errors import PeerError
from kestrel.xmpp.incoming import OPENING_TAG, Context, Event, Stanza, StreamEnd, StreamHeader, context_of
from kestrel.xmpp.stanza import NS_CLIENT, NS_STREAM

__all__ = ["Event", "Stanza", "StreamEnd", "StreamError", "StreamHeader", "StreamReader"]

STANZA_BYTES_MAX = 262_144
DEPTH_MAX = 64
ATTRIBUTES_MAX = 64
PARSER_BYTES_MAX = 262_144
"""After so many bytes a reader takes a fresh parser: expat never forgets a name or prefix it saw."""
PARSER_NAMES_MAX = 512
"""After so many distinct names a reader takes a fresh parser."""

_SPACE = b" \t\r\n"
_LT = 0x3C
_STREAM_PREFIX = f"{NS_STREAM} "
_STREAM_NAMES = frozenset(_STREAM_PREFIX + name for name in ("stream", "features", "error"))


_NO_XML = "not-well-formed"


class StreamError(PeerError):
    """The other end broke the rules of the stream; nothing more can be read from it.

    `condition` is the element to send back (RFC 6120 section 4.9.3); `events` are those that were
    complete before the fault, in the same `feed`.
    """

    code = "stream"

    def __init__(self, condition: str, text: str, *, events: list[Any] | None = None) -> None:
        hint = "Is that an XMPP server? See that address and port are right." if condition == _NO_XML else ""
        super().__init__(f"The XML stream is not acceptable ({condition}): {text}.", hint=hint)
        self.condition = condition
        self.reason = text
        self.events: list[Event] = events or []


_NO_EVENTS: list[Event] = []
"""Stands in between two calls of `feed`, so that a quiet reader keeps no stanza alive."""


class StreamReader:
    """One direction of a connection. Feed it what arrives; it answers with what is complete.

    `stanza_bytes_max` may be raised once the other end has proved who it is.
    """

    __slots__ = (
        "_attributes_max",
        "_attrs",
        "_base",
        "_begin",
        "_buffer",
        "_context",
        "_declared",
        "_depth",
        "_depth_max",
        "_ended",
        "_error",
        "_events",
        "_last",
        "_names",
        "_namespaces",
        "_parser",
        "_parts",
        "_seen",
        "_tag",
        "stanza_bytes_max",
    )

    def __init__(
        self,
        *,
        namespaces: frozenset[str] = frozenset((NS_CLIENT,)),
        stanza_bytes_max: int = STANZA_BYTES_MAX,
        depth_max: int = DEPTH_MAX,
        attributes_max: int = ATTRIBUTES_MAX,
    ) -> None:
        """`namespaces`: content namespaces that are accepted. `depth_max` counts the stream's root."""
        self._namespaces = namespaces
        self.stanza_bytes_max = stanza_bytes_max
        self._depth_max = depth_max
        self._attributes_max = attributes_max
        self.reset()

    def reset(self) -> None:
        """Expect a new stream header, as after STARTTLS and SASL. What is buffered is dropped."""
        self._parser: Any = None
        self._names: dict[str, str] = {}
        self._seen = 0
        self._context: Context | None = None
        self._declared: dict[str, str] = {}
        self._buffer: bytes | bytearray = b""
        self._base = 0
        self._last = 0
        self._depth = 0
        self._begin = 0
        self._tag = ""
        self._attrs: dict[str, str] = {}
        self._parts: list[Any] = []
        self._events: list[Event] = _NO_EVENTS
        self._ended = False
        self._error: StreamError | None = None

    @property
    def at_boundary(self) -> bool:
        """True if the header has come and nothing is incomplete."""
        return self._depth == 1 and not self._buffer

    @property
    def pending_bytes(self) -> int:
        """Bytes that wait for the rest of their stanza."""
        return len(self._buffer)

    def rest(self) -> None:
        """Free the parser (about 10 KiB) if nothing is incomplete; the next `feed` takes a new one.

        For connections that have been quiet for a while; costs about 5 µs when they wake up.
        """
        if self._depth == 1 and not self._buffer:
            self._parser = None
            self._names = {}
            self._attrs = {}
            self._parts = []

    def close(self) -> None:
        """Drop the parser and what is buffered for good: breaks the cycle that keeps both alive."""
        self._ended = True
        self._release()

    def feed(self, data: bytes) -> list[Event]:
        """What has become complete with `data`. Raises `StreamError`, then on every later call too."""
        if self._error is not None:
            raise StreamError(self._error.condition, self._error.reason)
        if self._ended or not data:
            return []
        buffer = self._buffer
        if not buffer:
            if data[0] <= 32 and (self._depth == 1 or not self._depth):
                data = data.lstrip(_SPACE)
                if not data:
                    return []
            buffer = data
        elif isinstance(buffer, bytearray) or len(buffer) + len(data) < 16384:
            buffer += data
        else:
            buffer = bytearray(buffer)
            buffer += data
        self._buffer = buffer
        events: list[Event] = []
        self._events = events
        if self._parser is None:
            self._open()
        if self._parse(data):
            self._keep(buffer)
            self._events = _NO_EVENTS
        else:
            self._release()
        return events

    # ----------------------------------------------------------------------------------------------
    # between the calls of expat

    def _open(self) -> None:
        """A fresh parser that knows what the header declared, if it has come already."""
        self._names = {}
        parser = expat.ParserCreate("utf-8", " ", self._names)
        if hasattr(parser, "SetReparseDeferralEnabled"):
            # expat >= 2.6 would hold back the end of a stanza that came in two reads.
            parser.SetReparseDeferralEnabled(False)
        if self._context is not None:
            parser.Parse(self._context.header, False)
            self._depth = 1
            self._base = len(self._context.header)
        else:
            parser.XmlDeclHandler = self._on_declaration
            parser.StartNamespaceDeclHandler = self._on_namespace
            self._base = 0
        self._seen = len(self._names)
        parser.StartElementHandler = self._on_start
        parser.EndElementHandler = self._on_end
        parser.StartDoctypeDeclHandler = self._on_doctype
        parser.CommentHandler = self._on_comment
        parser.ProcessingInstructionHandler = self._on_instruction
        self._parser = parser

    def _parse(self, data: bytes | bytearray) -> bool:
        """Let expat call back; False if the stream has ended."""
        try:
            self._parser.Parse(data, False)
        except expat.ExpatError as problem:
            if self._ended:
                return False
            raise self._failed(self._diagnosed(problem)) from None
        except StreamError as problem:
            if self._ended:
                return False
            raise self._failed(_text_between() if self._text_waits() else problem) from None
        return not self._ended

    def _keep(self, buffer: bytes | bytearray) -> None:
        """Keep what is incomplete, within the bound."""
        consumed = self._last
        fresh = consumed > 0
        if consumed == len(buffer):
            self._base += consumed
            self._last = 0
            self._buffer = b""
        else:
            if consumed:
                buffer = buffer[consumed:]
                self._base += consumed
                self._begin -= consumed
                self._last = 0
                self._buffer = buffer
            if self._depth == 1 and buffer[0] != _LT:
                stripped = buffer.lstrip(_SPACE)
                if stripped and stripped[0] != _LT:
                    raise self._failed(_text_between())
                self._base += len(buffer) - len(stripped)
                self._buffer = buffer = stripped
            if len(buffer) > self.stanza_bytes_max:
                raise self._failed(self._too_long())
        if fresh and self._depth and (self._base > PARSER_BYTES_MAX or len(self._names) > PARSER_NAMES_MAX):
            self._parser = None
            if self._buffer:
                self._open()
                self._parse(self._buffer)

    def _failed(self, problem: StreamError) -> StreamError:
        problem.events = self._events
        self._error = problem
        self._release()
        return problem

    def _release(self) -> None:
        self._parser = None
        self._names = {}
        self._buffer = b""
        self._parts = []
        self._events = _NO_EVENTS

    def _diagnosed(self, problem: expat.ExpatError) -> StreamError:
        """Which rule was broken, as it would have been told had the bytes come one by one."""
        if self._text_waits():
            return _text_between()
        if self._parser.ErrorByteIndex - self._base - self._last > self.stanza_bytes_max:
            return self._too_long()
        words = expat.ErrorString(problem.code)
        if problem.code == expat.errors.codes[expat.errors.XML_ERROR_UNDEFINED_ENTITY]:
            return StreamError("restricted-xml", "an entity that is not predefined")
        if not self._depth and _is_utf_16(self._buffer):
            return StreamError("unsupported-encoding", "the stream must be UTF-8")
        return StreamError(_NO_XML, f"{words}")

    def _text_waits(self) -> bool:
        """Whether the last whole stanza is followed by text: then that is what is wrong first."""
        if self._context is None:
            return False
        waiting = bytes(self._buffer[self._last :]).lstrip(_SPACE)
        return bool(waiting) and waiting[0] != _LT

    def _too_long(self) -> StreamError:
        return StreamError("policy-violation", f"a stanza is larger than {self.stanza_bytes_max} bytes")

    # ----------------------------------------------------------------------------------------------
    # called by expat

    def _on_start(self, tag: str, attrs: dict[str, str]) -> None:
        depth = self._depth
        self._depth = depth + 1
        if attrs and len(attrs) > self._attributes_max:
            raise StreamError("policy-violation", f"more than {self._attributes_max} attributes")
        if depth == 1:
            begin = self._parser.CurrentByteIndex - self._base
            if begin != self._last:
                self._check_gap(begin)
            self._begin = begin
            self._tag = tag
            self._attrs = attrs
            self._parts = []
            return
        if depth == 0:
            self._on_header(tag, attrs)
            return
        if depth == 2:
            self._parts += (tag, self._parser.CurrentByteIndex - self._base - self._begin, 0)
        elif depth >= self._depth_max:
            raise StreamError("policy-violation", f"elements nested deeper than {self._depth_max}")
        if tag.startswith(_STREAM_PREFIX):
            raise StreamError("invalid-namespace", "an element of the stream's namespace inside a stanza")

    def _on_end(self, tag: str) -> None:
        depth = self._depth = self._depth - 1
        if depth > 2:
            return
        end = self._parser.CurrentByteIndex - self._base
        buffer = self._buffer
        if depth == 2:
            parts = self._parts
            begin = self._begin
            if buffer[end - 1] != 0x3E or not self._is_empty(begin + parts[-2], end):
                end = buffer.find(b">", end) + 1
            parts[-1] = end - begin
            return
        if depth == 1:
            begin = self._begin
            if self._parts or buffer[end - 1] != 0x3E or not self._is_empty(begin, end):
                end = buffer.find(b">", end) + 1
            if end - begin > self.stanza_bytes_max:
                raise self._too_long()
            if len(self._names) != self._seen:
                self._check_names()
            self._last = end
            assert self._context is not None
            self._events.append(
                Stanza(tag, self._attrs, bytes(buffer[begin:end]), self._parts, self._context)
            )
            return
        self._check_gap(end)
        self._ended = True
        self._events.append(StreamEnd())

    def _is_empty(self, begin: int, end: int) -> bool:
        """Whether the tag that starts at `begin` is an empty element that ends just before `end`.

        expat puts the end of `<a/>` behind the tag, but that of `<a></a>` before the end tag.
        """
        buffer = self._buffer
        if buffer[end - 2] != 0x2F:
            return False
        if buffer.find(b">", begin, end) == end - 1:
            return True
        opening = OPENING_TAG.match(buffer, begin, end)
        return opening is not None and opening.end() == end

    def _check_gap(self, end: int) -> None:
        """Between stanzas there may be white space only."""
        if self._last < end and bytes(self._buffer[self._last : end]).strip(_SPACE):
            raise _text_between()

    def _check_names(self) -> None:
        """No attribute may be in the stream's namespace either; looks at each new name once."""
        for name in islice(self._names, self._seen, None):
            if name.startswith(_STREAM_PREFIX) and name not in _STREAM_NAMES:
                raise StreamError("invalid-namespace", "a name of the stream's namespace inside a stanza")
        self._seen = len(self._names)

    def _on_header(self, tag: str, attrs: dict[str, str]) -> None:
        ns, _, name = tag.rpartition(" ")
        if _is_utf_16(self._buffer):
            # expat believes its own eyes more than the encoding it was told.
            raise StreamError("unsupported-encoding", "the stream must be UTF-8")
        if name != "stream":
            raise StreamError("bad-format", f"the stream starts with {name!r} instead of 'stream'")
        declared = self._declared
        default = declared.pop("", "")
        if ns != NS_STREAM or default not in self._namespaces:
            raise StreamError("invalid-namespace", f"the stream is in {ns!r} and its content in {default!r}")
        begin = self._parser.CurrentByteIndex - self._base
        opening = OPENING_TAG.match(self._buffer, begin)
        assert opening is not None
        end = opening.end()
        if end > self.stanza_bytes_max:
            raise self._too_long()
        qname = bytes(opening[0][1:]).split(None, 1)[0].decode("utf-8")
        self._context = context_of(default, qname, declared)
        self._declared = {}
        self._last = end
        self._seen = len(self._names)
        self._parser.StartNamespaceDeclHandler = None
        self._events.append(StreamHeader(default, attrs))

    def _on_namespace(self, prefix: str | None, uri: str | None) -> None:
        self._declared[prefix or ""] = uri or ""

    def _on_declaration(self, version: str, encoding: str | None, standalone: int) -> None:
        if encoding is not None and encoding.upper() != "UTF-8":
            raise StreamError("unsupported-encoding", f"the stream must be UTF-8, not {encoding!r}")

    def _on_doctype(self, *_: object) -> NoReturn:
        raise StreamError("restricted-xml", "a document type declaration")

    def _on_comment(self, _: str) -> NoReturn:
        raise StreamError("restricted-xml", "a comment")

    def _on_instruction(self, *_: object) -> NoReturn:
        raise StreamError("restricted-xml", "a processing instruction")


def _is_utf_16(start: bytes | bytearray) -> bool:
    return start[:2] in (b"\xfe\xff", b"\xff\xfe") or 0 in start[:2]


def _text_between() -> StreamError:
    return StreamError("bad-format", "text between stanzas")
