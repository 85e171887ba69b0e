"""The one exception tree of Kestrel.

Four kinds, by who has to act: the caller (`UsageError`), the other end of a connection
(`PeerError`), the surroundings (`EnvironmentProblem`), or we (`InternalError`).
A message says what happened, to which thing, and `hint` says what to do next.
Every room may import this module; it imports nothing of Kestrel.
"""

from __future__ import annotations


class KestrelError(Exception):
    """Root of everything that Kestrel raises on purpose.

    `text` is one sentence for a person; `hint` is the cure, or empty; `code` is a constant
    for programs, the same word that travels in an `error` message.
    """

    code = "error"

    def __init__(self, text: str, *, hint: str = "", code: str = "") -> None:
        super().__init__(text)
        self.text = text
        self.hint = hint
        if code:
            self.code = code

    def __str__(self) -> str:
        return f"{self.text}\n  hint: {self.hint}" if self.hint else self.text


class UsageError(KestrelError):
    """The caller asked for something that cannot be: a bad value, a typo, an unknown job."""

    code = "usage"


class PeerError(KestrelError):
    """The other end broke the rules of the protocol, or refused us."""

    code = "peer"


class AuthenticationError(PeerError):
    """A password, token, certificate or component secret was not accepted."""

    code = "not_authorized"


class EnvironmentProblem(KestrelError):
    """The surroundings fail: disk, port, network, permissions. `retry` says whether trying again may help."""

    code = "environment"

    def __init__(self, text: str, *, hint: str = "", code: str = "", retry: bool = False) -> None:
        super().__init__(text, hint=hint, code=code)
        self.retry = retry


class StoreError(EnvironmentProblem):
    """The store cannot read or write."""

    code = "store"


class InternalError(KestrelError):
    """A law of ours is broken: a bug in Kestrel. `story` is what is known of the thing concerned."""

    code = "internal"

    def __init__(self, text: str, *, story: str = "") -> None:
        super().__init__(text, hint="This is a bug in Kestrel; please report it with the lines above.")
        self.story = story
