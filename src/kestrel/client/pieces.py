"""How much travels in one message: parameters in portions, and requests that no stanza holds refused.

Pure. Called by `Client`, and only there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from kestrel.errors import UsageError
from kestrel.protocol import codec
from kestrel.protocol import messages as m

SUBMISSION_BYTES = 100_000
"""About how much of a job's parameters travels in one message."""
PARAMETERS_BYTES_MAX = 90_000
"""Largest size of the arguments of one task within a stanza: what a manager takes."""
REQUEST_BYTES_MAX = 240_000
"""Largest request; servers end the stream of who sends more than 256 KiB."""


def pieces(args: Iterable[m.Parameters]) -> Iterator[list[m.Parameters]]:
    """Parameters in portions of at most `SUBMISSION_BYTES` within a stanza (or a single one)."""
    piece: list[m.Parameters] = []
    size = 0
    for words in args:
        length = 4 + sum(_json_length(w) for w in words)
        if length > PARAMETERS_BYTES_MAX:
            raise UsageError(
                f"the arguments of one task take {length} bytes, at most {PARAMETERS_BYTES_MAX} fit",
                hint="put what is long into a file, and give its name",
                code="too_large",
            )
        if piece and size + length > SUBMISSION_BYTES:
            yield piece
            piece, size = [], 0
        piece.append(words)
        size += length
    if piece:
        yield piece


def _json_length(word: str) -> int:
    """How much a word adds to a message, at most."""
    if word.isalnum() and word.isascii():
        return len(word) + 3
    try:
        return codec.wire_size(msgspec.json.encode(word)) + 1
    except UnicodeEncodeError:
        raise _not_unicode(word) from None


def check_size(message: m.UserToManager) -> None:
    """Raises `UsageError` for a request that no stanza holds."""
    try:
        size = codec.wire_size(codec.encode(message))
    except UnicodeEncodeError as problem:
        raise _not_unicode(str(problem.object)) from None
    if size > REQUEST_BYTES_MAX:
        raise UsageError(
            f"the request takes {size} bytes, at most {REQUEST_BYTES_MAX} fit",
            hint="put what is long (command, env, arguments) into a file that the command reads",
            code="too_large",
        )


def _not_unicode(word: str) -> UsageError:
    return UsageError(
        f"{word[:100]!r} is not Unicode text, so it cannot travel in a message",
        hint="rename the file, or name it by a pattern that the command expands itself",
    )
