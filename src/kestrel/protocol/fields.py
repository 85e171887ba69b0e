"""What all messages are made of: the base class, and the types of fields with their bounds.

Called by the modules that define messages, and by nobody else: `kestrel.protocol.messages` has all names.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

PROTOCOL_VERSION = 1
PROTOCOL_OLDEST = 1
"""The oldest version that a worker may speak; a manager is never older than its workers."""

PositiveInt = Annotated[int, Meta(ge=1, le=2**53)]
Natural = Annotated[int, Meta(ge=0, le=2**53)]
Seconds = Annotated[float, Meta(ge=0)]
ShortText = Annotated[str, Meta(max_length=1024)]
Command = (
    Annotated[str, Meta(min_length=1, max_length=65536)]
    | Annotated[list[str], Meta(min_length=1, max_length=4096)]
)
Pattern = Annotated[str, Meta(min_length=1, max_length=1024)]
"""Whom is meant: `worker@pool/42`, `worker*@pool`, `pool` (everybody of this domain), `*.example.org`,
`*/core2` (this resource of anybody). `*` and `?` stay within their part of the address."""
Patterns = Annotated[list[Pattern], Meta(max_length=64)]
Parameters = list[str]
"""The words that stand for one task: what `{}`, `{1}`, `{2}` … are replaced by."""

TASKS_PER_JOB_MAX = 100_000_000


class Message(Struct, tag_field="type", kw_only=True, omit_defaults=True, frozen=True, gc=False):
    """What every message is: a JSON object told apart by its `type`."""


class Error(Message, tag="error", kw_only=True, frozen=True):
    """The request was not carried out. `code` is a constant, `text` says what, `hint` the cure."""

    re: ShortText = ""
    code: ShortText
    text: str
    hint: str = ""
