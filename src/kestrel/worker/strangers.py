"""What a worker answers to those who are not its manager: nothing that it says is done, and it is told so.

Called by the worker's agent. Answers are rare on purpose: one per sender and some time, and so many in all,
so that nobody can make a worker talk, and two programs that answer each other do not fill a network.
"""

from __future__ import annotations

import logging

from kestrel.ports import Clock, Transport
from kestrel.protocol import codec
from kestrel.protocol import messages as m

log = logging.getLogger(__name__)

PAUSE_S = 60.0
"""One sender is answered, and logged, once in this time."""
ANSWERS_MAX = 20
"""So many senders are answered, and logged, in this time."""
SENDER_CHARS_MAX = 200


class Strangers:
    """Who spoke to us lately without being our manager."""

    def __init__(self, clock: Clock, transport: Transport) -> None:
        self._clock = clock
        self._transport = transport
        self._told_at: dict[str, float] = {}
        """The latest last; never more than `ANSWERS_MAX`."""

    def on_message(self, sender: str, payload: bytes, chat: bool, manager: str) -> None:
        """Tell them, if it is time for that; an `error` is never answered."""
        now = self._clock.now()
        while self._told_at:
            oldest = next(iter(self._told_at))
            if now < self._told_at[oldest] + PAUSE_S:
                break
            del self._told_at[oldest]
        if not sender or sender in self._told_at or len(self._told_at) >= ANSWERS_MAX:
            return
        self._told_at[sender] = now
        log.warning("not_my_manager", extra={"sender": sender[:SENDER_CHARS_MAX], "bytes": len(payload)})
        if not _is_error(payload):
            self._transport.send(sender, codec.encode(_answer(manager)), chat=chat)


def _answer(manager: str) -> m.Error:
    return m.Error(
        code="not_my_manager",
        text=f"this worker obeys {manager} and nobody else",
        hint=f"send jobs and questions to {manager}",
    )


def _is_error(payload: bytes) -> bool:
    """Whether it is an `error`, an answer itself."""
    try:
        return isinstance(codec.decode_to_worker(payload), m.Error)
    except codec.ProtocolError:
        return False
