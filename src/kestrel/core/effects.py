"""What the scheduler wants done: the closed vocabulary of its effects, imperative.

Three kinds. `Record…` must be in the store before any other effect of the same batch is carried
out (law 1). The rest goes to workers or to watchers, in the order given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from msgspec import Struct

from kestrel.core.model import AttemptId, JobId, JobState, TaskIndex, TaskState, WorkerId

# --- to the store ---------------------------------------------------------------------------------


class RecordResult(Struct, frozen=True, gc=False):
    """The terminal state of one task. `report` is what the worker sent, None if no worker did.

    `seq` numbers the results of a job from 1 without gaps, in the order in which they are recorded.
    """

    job: JobId
    task: TaskIndex
    seq: int
    state: TaskState
    attempt: AttemptId = 0
    worker: WorkerId = ""
    report: Any = None
    reason: str = ""


class RecordTrouble(Struct, frozen=True, gc=False):
    """A task failed and is tried again, lost its worker, or is being cancelled: its counters now.

    Also, of a task that must not run twice: it is being given to a worker (`given_out`), or is back
    unstarted. That is the one assignment that is stored, and before it is sent: a later life of the
    manager must know that the task may have run.
    """

    job: JobId
    task: TaskIndex
    failures: int
    losses: int
    given_out: bool = False
    counted: tuple[AttemptId, ...] = ()
    """As in `Trouble`."""
    cancelling: bool = False
    """As in `Trouble`: the wish is stored before the user is told that it was taken."""


class RecordWorker(Struct, frozen=True, gc=False):
    """A worker came into the pool, or left it.

    Stored before the worker is welcomed, so that the next life of the manager knows of everybody who may
    have tasks in hand, calls them, and need not wait for anybody else.
    """

    worker: WorkerId
    present: bool


@dataclass(frozen=True, slots=True)
class RecordCancelled:
    """`count` tasks of a job that no worker had are cancelled: the ranges [start, stop) of them.

    Their results are numbered `seq` … in the order of the ranges.
    """

    job: JobId
    ranges: Sequence[tuple[int, int]]
    seq: int


@dataclass(frozen=True, slots=True)
class RecordJobEnded:
    """All tasks of the job are terminal and none can follow."""

    job: JobId
    state: JobState


# --- to a worker ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AssignTasks:
    """Give the worker these tasks; `tasks[i]` is attempt `attempt + i`."""

    worker: WorkerId
    job: JobId
    attempt: AttemptId
    tasks: Sequence[TaskIndex]


@dataclass(frozen=True, slots=True)
class StopAttempts:
    """Tell the worker to stop these attempts; it still reports each."""

    worker: WorkerId
    attempts: Sequence[AttemptId]


@dataclass(frozen=True, slots=True)
class RevokeTasks:
    """Ask the worker to give back up to `count` unstarted tasks of the job."""

    worker: WorkerId
    job: JobId
    count: int


@dataclass(frozen=True, slots=True)
class AcknowledgeReport:
    """Tell the worker that its reports up to `number` are stored."""

    worker: WorkerId
    number: int


@dataclass(frozen=True, slots=True)
class WelcomeWorker:
    """Tell the worker that it is in."""

    worker: WorkerId


@dataclass(frozen=True, slots=True)
class ProbeWorker:
    """Ask the worker for a sign of life."""

    worker: WorkerId


@dataclass(frozen=True, slots=True)
class RefuseWorker:
    """Tell a sender that it is no worker here (it must introduce itself with a profile first)."""

    worker: WorkerId
    reason: str


# --- to those who watch ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AnnounceJob:
    """The job's state or counts changed."""

    job: JobId


@dataclass(frozen=True, slots=True)
class AnnounceWorkerLost:
    """A worker is gone; `requeued` of its attempts were put back into the queue."""

    worker: WorkerId
    reason: str
    requeued: int


@dataclass(frozen=True, slots=True)
class AnnounceWorkerQuarantined:
    """A worker fails what others finish: it gets nothing but a probe now and then."""

    worker: WorkerId
    reason: str


@dataclass(frozen=True, slots=True)
class AnnounceQuarantineLifted:
    """A quarantined worker gets tasks again."""

    worker: WorkerId
    reason: str


Record: TypeAlias = RecordResult | RecordTrouble | RecordCancelled | RecordJobEnded | RecordWorker
Effect: TypeAlias = (
    Record
    | AssignTasks
    | StopAttempts
    | RevokeTasks
    | AcknowledgeReport
    | WelcomeWorker
    | ProbeWorker
    | RefuseWorker
    | AnnounceJob
    | AnnounceWorkerLost
    | AnnounceWorkerQuarantined
    | AnnounceQuarantineLifted
)
