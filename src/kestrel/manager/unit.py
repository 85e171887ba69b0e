"""The nouns of a manager's turn: the unit that is stored and told, a worker's entry, a user's request.

Called by the rooms of the manager only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from kestrel.core.model import JobId
from kestrel.manager.words import Manner
from kestrel.ports import Read, Write
from kestrel.protocol import messages as m

Tell: TypeAlias = Callable[[], None]

Request: TypeAlias = tuple[str, Manner, m.UserToManager]
"""Sender, how it wants its answer, message."""


@dataclass(slots=True)
class Unit:
    """What one turn of the manager stores, reads and then tells, in order."""

    writes: list[Write] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    tells: list[Tell] = field(default_factory=list)
    answers: Sequence[Any] = ()
    asked: list[Request] = field(default_factory=list)
    """Changing requests of this unit; told at once if the store fails."""
    questions: list[Request] = field(default_factory=list)
    """Requests of this unit that only ask."""
    number: int = 0
    """Of the units of this life that go to the store; 0: this one does not."""

    def read(self, read: Read, then: Callable[[Any], None]) -> None:
        """Have something read from the store, and call `then` with it when this tell's turn comes."""
        index = len(self.reads)
        self.reads.append(read)
        self.tells.append(lambda: then(self.answers[index]))


@dataclass(slots=True)
class WorkerEntry:
    """What the shell knows of a worker beside the scheduler."""

    profile: m.Profile
    session: int
    joined: float
    chat: bool
    specs: set[JobId] = field(default_factory=set)
    """Live jobs of which it, or its session before, has the specification."""
