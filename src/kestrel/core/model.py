"""The nouns of the scheduler: states of tasks and jobs, terms of a job, a worker's offer.

Pure data. Read by every other module of core and by the shells.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Any, TypeAlias

from msgspec import Struct

from kestrel.core.addresses import Pattern

JobId: TypeAlias = int
TaskIndex: TypeAlias = int
AttemptId: TypeAlias = int
WorkerId: TypeAlias = str
"""The worker's full JID."""

ATTEMPTS_PER_EPOCH_BITS = 32
COUNTED_MAX = 8
"""Most attempts of one task of which it is remembered that their end is dealt with."""


def epoch_of(attempt: AttemptId) -> int:
    """In which life of the manager an attempt was given out; 0: in none, so it does not say."""
    return attempt >> ATTEMPTS_PER_EPOCH_BITS


def first_attempt(epoch: int) -> AttemptId:
    """First attempt id of an epoch: ids are never used twice, across restarts too (epochs never repeat)."""
    return (epoch << ATTEMPTS_PER_EPOCH_BITS) + 1


class TaskState(IntEnum):
    """State of a task: one byte per task in the job's bytearray."""

    QUEUED = 0
    RUNNING = 1
    """In a worker's hands, started or waiting there."""
    COMPLETED = 2
    FAILED = 3
    CANCELLED = 4
    TIMEOUT = 5
    NODE_FAIL = 6
    """Its worker was lost and it must not run again, or it outlived too many workers (poison)."""

    @property
    def terminal(self) -> bool:
        return self >= TaskState.COMPLETED


class JobState(Enum):
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    """Ended, and at least one task did not complete."""
    CANCELLED = "CANCELLED"


class AttemptEnd(Enum):
    """How a worker says that an attempt ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class JobTerms:
    """What the scheduler must know of a job; the command itself is no business of the core."""

    user: str
    requires: frozenset[str] = frozenset()
    """Tags, already folded (`fold_tags`)."""
    slots: int = 1
    priority: int = 0
    retries: int = 0
    restart: bool = True
    """False: a task whose worker is lost becomes NODE_FAIL."""
    workers: tuple[Pattern, ...] = ()
    """Only workers that one of these means; empty: all."""


@dataclass(frozen=True, slots=True)
class WorkerOffer:
    """What the scheduler must know of a worker. Workers with equal offers form a class."""

    slots: int
    provides: frozenset[str] = frozenset()
    """Tags, already folded (`fold_tags`)."""
    users: tuple[Pattern, ...] = ()
    """Whose jobs the worker takes; empty: everybody's."""


def fold_tags(tags: list[str] | tuple[str, ...] | str) -> frozenset[str]:
    """Tags as a set that ignores case; a string is split at white space."""
    words = tags.split() if isinstance(tags, str) else [w for t in tags for w in t.split()]
    return frozenset(w.casefold() for w in words)


class AttemptOutcome(Struct, frozen=True, gc=False):
    """One finished attempt as a worker reported it. `report` is opaque and handed on to the store.

    A Struct, for one is made per task: six times cheaper to make than a frozen dataclass.
    """

    job: JobId
    task: TaskIndex
    attempt: AttemptId
    end: AttemptEnd
    wall_s: float = 0.0
    report: Any = None


class HeldByWorker(Struct, frozen=True, gc=False):
    """An attempt that a joining worker says it still has in hand."""

    job: JobId
    task: TaskIndex
    attempt: AttemptId


@dataclass(frozen=True, slots=True)
class SchedulerSettings:
    """Every number that steers the scheduler."""

    lookahead_s: float = 1.0
    """How much work a worker should have in hand beyond what runs."""
    batch_max: int = 1000
    """Most tasks in one assignment."""
    backlog_max: int = 4000
    """Most attempts in one worker's hands."""
    lease_s: float = 15.0
    """Silent for so long: lost."""
    probe_s: float = 5.0
    """Silent for so long: asked for a sign of life."""
    losses_max: int = 3
    """A task that lost so many workers is poison: NODE_FAIL."""
    story_length: int = 4096
    """Entries kept in the event log that stories are told from."""
    story_tasks_max: int = 100_000
    """Tasks that all entries of the event log together may name."""
    lost_workers_kept: int = 100
    """Workers that left lately, kept for `explain` and the pool's view."""
    superseded_max: int = 8
    """Attempts of one task, lost with their workers, whose late results would still count; also, ended ones
    of earlier epochs that are recognised when they are reported again."""
    parcel_s_min: float = 0.05
    """Less work than this per slot is neither split for fairness nor taken back from a worker."""
    quarantine_failures: int = 5
    """So many failures in a row, at least, quarantine a worker, if others finish such tasks; 0: never."""
    parole_s: float = 30.0
    """After so long a quarantined worker gets a probe; after twice as long, when it failed one …"""
    parole_s_max: float = 600.0
    """… up to this."""
    standstill_s: float = 1.0
    """Calls of the scheduler come a few times a second; so long without one, and time stood still for it."""
    settle_s: float = 3.0
    """After a restart, how long tasks that may still run on a worker wait for it to come back."""


@dataclass(slots=True)
class JobCounts:
    """How many tasks of a job are in which state; `sum` is its size."""

    queued: int = 0
    running: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    timeout: int = 0
    node_fail: int = 0


@dataclass(frozen=True, slots=True)
class Trouble:
    """A task's bad luck so far."""

    failures: int = 0
    losses: int = 0
    given_out: bool = False
    """A task that must not run twice was given to a worker, and may have been started there."""
    counted: tuple[AttemptId, ...] = ()
    """Attempts whose reported end is dealt with, while the task was tried again: failures, those that died
    with their worker's launcher, and probes that were blamed on the worker. The latest last, at most
    `COUNTED_MAX`. Reported again, after a restart too, they must change nothing. Attempts lost with their
    worker are not among them: a late result of theirs still counts."""
    cancelling: bool = False
    """A user has cancelled the task, and the worker that has it has not answered yet."""


@dataclass(frozen=True, slots=True)
class RestoredJob:
    """A job as the store knows it, given to a new scheduler."""

    job: JobId
    terms: JobTerms
    states: bytearray
    """One `TaskState` per task; RUNNING never occurs (assignments are not stored)."""
    open: bool = False
    cancelled: bool = False
    troubles: dict[TaskIndex, Trouble] = field(default_factory=dict)
    reruns: int = 0
    """Attempts that were lost with their worker and tried again: the sum of the losses in `troubles`,
    plus those of tasks that have ended since."""
