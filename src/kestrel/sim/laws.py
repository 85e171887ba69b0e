"""What a judge says of a history that broke a law. Raised by the checkers, caught by the world."""

from __future__ import annotations

from kestrel.core.model import TaskState
from kestrel.errors import InternalError

TERMINAL = {state.name for state in TaskState if state.terminal}
"""States in which a task ends."""
ENDED = ("COMPLETED", "FAILED", "CANCELLED")
"""States in which a job ends."""


class BrokenLawError(InternalError):
    """A law is broken; `law` is its name."""

    def __init__(self, law: str, text: str) -> None:
        super().__init__(f"{law}: {text}")
        self.law = law
