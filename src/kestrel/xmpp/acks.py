"""Counters of XEP-0198 acknowledgements, without resumption.

Pure. Without resumption a lost link loses what was under way, which leases and acknowledged reports
repair one floor up; what the counters are for is noticing that the other end no longer takes
anything. Called by the client and the embedded server.
"""

from __future__ import annotations

from kestrel.errors import PeerError
from kestrel.xmpp.stanza import NS_ACKS

UNACKED_MAX = 1_000_000
"""Stanzas that may be on their way without an answer; many can be sent in one turn of a loop."""
REQUEST_EVERY = 256
"""Ask for an acknowledgement after so many stanzas."""

_WRAP = 2**32


class AckError(PeerError):
    """The other end acknowledged what was not sent, or acknowledges nothing at all."""

    code = "acks"


class AckCounter:
    """Both directions of one stream, from the moment acknowledgements were enabled."""

    __slots__ = ("_asked", "acked", "received", "sent", "unacked_max")

    def __init__(self, *, unacked_max: int = UNACKED_MAX) -> None:
        self.unacked_max = unacked_max
        self.received = 0
        self.sent = 0
        self.acked = 0
        self._asked = 0

    def count_received(self, stanzas: int = 1) -> None:
        """Count message, presence and iq stanzas that were taken in."""
        self.received = (self.received + stanzas) % _WRAP

    def count_sent(self, stanzas: int = 1) -> bool:
        """Count stanzas handed to the stream; True if an `<r/>` should follow them.

        Raises `AckError` if more than `unacked_max` are without an acknowledgement.
        """
        self.sent = (self.sent + stanzas) % _WRAP
        self._asked += stanzas
        if self.unacked > self.unacked_max:
            raise AckError(f"{self.unacked} stanzas were sent and none of them acknowledged.")
        if self._asked < REQUEST_EVERY:
            return False
        self._asked = 0
        return True

    @property
    def unacked(self) -> int:
        """Stanzas sent and not yet acknowledged."""
        return (self.sent - self.acked) % _WRAP

    def on_ack(self, h: str | None) -> int:
        """The other end has taken `h` stanzas since the start; returns how many are new.

        Raises `AckError` if `h` is no number or more than was sent (XEP-0198 section 4).
        """
        if h is None or not h.isascii() or not h.isdigit() or len(h) > 10 or int(h) >= _WRAP:
            raise AckError(f"An acknowledgement has the count {h!r}.")
        news = (int(h) - self.acked) % _WRAP
        if news > self.unacked:
            raise AckError(f"{h} stanzas were acknowledged, but {self.sent} were sent.")
        self.acked = int(h)
        return news

    def answer(self) -> bytes:
        """What to say to an `<r/>`."""
        return b"<a xmlns='%b' h='%d'/>" % (NS_ACKS.encode(), self.received)


REQUEST = f"<r xmlns='{NS_ACKS}'/>".encode()
ENABLE = f"<enable xmlns='{NS_ACKS}'/>".encode()
ENABLED = f"<enabled xmlns='{NS_ACKS}'/>".encode()
