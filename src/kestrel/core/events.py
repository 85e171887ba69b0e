"""What can happen to the scheduler: the closed vocabulary of its events, past tense.

The manager's shell makes them from messages, presence and timers; nothing else reaches the core.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from kestrel.core.model import (
    AttemptId,
    AttemptOutcome,
    HeldByWorker,
    JobId,
    JobTerms,
    RestoredJob,
    TaskIndex,
    WorkerId,
    WorkerOffer,
)


@dataclass(frozen=True, slots=True)
class JobSubmitted:
    """A new job of `size` tasks; the shell chose the id and has the command and parameters stored."""

    job: JobId
    terms: JobTerms
    size: int
    open: bool = False


@dataclass(frozen=True, slots=True)
class JobExtended:
    """`count` more tasks for an open job; `last` closes it."""

    job: JobId
    count: int
    last: bool = False


@dataclass(frozen=True, slots=True)
class JobCancelled:
    """The user wants these tasks gone; None: all of them, and no more to come."""

    job: JobId
    tasks: Sequence[TaskIndex] | None = None


@dataclass(frozen=True, slots=True)
class JobRestored:
    """A job that the store knew when this manager started. Comes before any worker."""

    restored: RestoredJob


@dataclass(frozen=True, slots=True)
class WorkersExpected:
    """Who was in the pool when the last life of the manager ended; comes with the restored jobs.

    What they may have in hand is given to nobody else until each has come back or is known to be gone
    (`WorkerLost`), or `settle_s` have passed. None: nobody knows who was there, so wait for the full time.
    """

    workers: Sequence[WorkerId] | None


@dataclass(frozen=True, slots=True)
class WorkerJoined:
    """A worker introduced itself, or changed its offer; `held` is what it still has in hand."""

    worker: WorkerId
    offer: WorkerOffer
    held: Sequence[HeldByWorker] = ()


@dataclass(frozen=True, slots=True)
class WorkerHeard:
    """Any sign of life."""

    worker: WorkerId


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """Its presence is gone, or a message to it came back."""

    worker: WorkerId
    reason: str


@dataclass(frozen=True, slots=True)
class WorkerDrained:
    """Someone wants no more tasks on it (or, `drained` false, wants it back)."""

    worker: WorkerId
    drained: bool = True
    pardoned: bool = False
    """A user says that the worker is well: its quarantine, if it is in one, ends."""


@dataclass(frozen=True, slots=True)
class AttemptsReported:
    """Report number `number` of a worker."""

    worker: WorkerId
    number: int
    outcomes: Sequence[AttemptOutcome]


@dataclass(frozen=True, slots=True)
class AttemptsRevoked:
    """A worker gave these back unstarted."""

    worker: WorkerId
    job: JobId
    attempts: Sequence[AttemptId]


@dataclass(frozen=True, slots=True)
class TimePassed:
    """Time to look at leases, grace periods and paroles. The shell sends it a few times a second, and it is
    applied after all other events of its batch."""


Event: TypeAlias = (
    JobSubmitted
    | JobExtended
    | JobCancelled
    | JobRestored
    | WorkersExpected
    | WorkerJoined
    | WorkerHeard
    | WorkerLost
    | WorkerDrained
    | AttemptsReported
    | AttemptsRevoked
    | TimePassed
)
