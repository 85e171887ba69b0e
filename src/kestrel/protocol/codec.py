"""JSON text to messages and back, with bounds, and errors that name the field.

Called by the shells of manager, worker and client. Decoding never raises anything but
`ProtocolError`; what it says can be sent back to the peer as an `error` message.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from kestrel.errors import PeerError
from kestrel.protocol import messages as m

MESSAGE_BYTES_MAX = 1_000_000
"""Largest JSON text that is looked at at all."""

_encoder = msgspec.json.Encoder()
_to_manager: msgspec.json.Decoder[m.ToManager] = msgspec.json.Decoder(m.ToManager)
_to_worker: msgspec.json.Decoder[m.ManagerToWorker] = msgspec.json.Decoder(m.ManagerToWorker)
_to_user: msgspec.json.Decoder[m.ManagerToUser] = msgspec.json.Decoder(m.ManagerToUser)
_head = msgspec.json.Decoder(dict[str, msgspec.Raw])
_raw_str = msgspec.json.Decoder(str)

_T = TypeVar("_T")


class ProtocolError(PeerError):
    """A message that cannot be read. `re` is the id of the request, when it could be found."""

    def __init__(self, code: str, text: str, *, hint: str = "", re: str = "") -> None:
        super().__init__(text, hint=hint, code=code)
        self.re = re

    def as_message(self) -> m.Error:
        """The `error` message that tells the peer."""
        return m.Error(re=self.re, code=self.code, text=self.text, hint=self.hint)


def encode(message: m.Message) -> bytes:
    """The message as UTF-8 JSON text."""
    return _encoder.encode(message)


def wire_size(text: bytes) -> int:
    """Bytes that this JSON text takes within a stanza, at most.

    `&`, `<`, `>` and the two noncharacters that XML forbids are escaped there.
    """
    escaped = text.count(b"&") + text.count(b"<") + text.count(b">")
    if not text.isascii():
        escaped += text.count(b"\xef\xbf\xbe") + text.count(b"\xef\xbf\xbf")
    return len(text) + 5 * escaped


def decode_to_manager(text: bytes | str) -> m.ToManager:
    """Read what a worker or a user sent to a manager; raises `ProtocolError`."""
    return _decode(_to_manager, text)


def decode_to_worker(text: bytes | str) -> m.ManagerToWorker:
    """Read what a manager sent to a worker; raises `ProtocolError`."""
    return _decode(_to_worker, text)


def decode_to_user(text: bytes | str) -> m.ManagerToUser:
    """Read what a manager sent to a user; raises `ProtocolError`."""
    return _decode(_to_user, text)


def _decode(decoder: msgspec.json.Decoder[_T], text: bytes | str) -> _T:
    if len(text) > MESSAGE_BYTES_MAX:
        raise ProtocolError(
            "too_large",
            f"message of {len(text)} bytes; at most {MESSAGE_BYTES_MAX} are read",
            hint="send it in pieces (`extend` adds tasks to an open job)",
        )
    try:
        return decoder.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
        raise _explain(text, problem) from None


def _explain(text: bytes | str, problem: Exception) -> ProtocolError:
    """Say which of the three it is: not JSON, not one of our types, or a bad field."""
    try:
        head = _head.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ProtocolError(
            "bad_json",
            f"not a JSON object: {problem}",
            hint='a message looks like {"type": "status"}; send {"type": "help"} for a list',
        )
    re = _string(head.get("id"))
    kind = _string(head.get("type"))
    if "type" not in head:
        return ProtocolError(
            "no_type", "the message has no `type`", hint='add one, e.g. "type": "status"', re=re
        )
    if kind not in KNOWN_TYPES:
        return ProtocolError(
            "unknown_type",
            f"unknown message type {kind!r}",
            hint=_closest(kind),
            re=re,
        )
    return ProtocolError("bad_field", f"{kind}: {problem}", hint="docs/protocol.md lists the fields", re=re)


def _string(raw: msgspec.Raw | None) -> str:
    if raw is None:
        return ""
    try:
        return _raw_str.decode(raw)[:1024]
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return ""


def _closest(kind: str) -> str:
    import difflib

    near = difflib.get_close_matches(kind, KNOWN_TYPES, n=1)
    return f"did you mean {near[0]!r}?" if near else "known types: " + ", ".join(sorted(KNOWN_TYPES))


def _types() -> frozenset[str]:
    union: Any = m.ToManager | m.ManagerToWorker | m.ManagerToUser
    return frozenset(c.__struct_config__.tag for c in union.__args__)


KNOWN_TYPES = _types()
