"""What can happen to a worker's execution machine, and what it wants done: two closed vocabularies.

Events are past tense, effects imperative; none shares a name with the manager's side. The worker's
agent makes the events from messages, presence, its launcher and its timer, and carries out the
effects in the order given. `KeepFinished` comes before the report that tells of it (law 3).
Pure data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from kestrel.core.model import AttemptEnd, AttemptId, HeldByWorker, JobId, TaskIndex


@dataclass(frozen=True, slots=True)
class Finished:
    """An attempt that ended here. `body` is its report as it travels and as it is spooled; opaque."""

    job: JobId
    task: TaskIndex
    attempt: AttemptId
    body: bytes
    size: int
    """Bytes that the body takes in a message."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How an attempt ended, for whoever renders the report. `facts` is None if it never started."""

    job: JobId
    task: TaskIndex
    attempt: AttemptId
    end: AttemptEnd
    reason: str = ""
    facts: Any = None


# --- events ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TasksReceived:
    """The manager gave tasks; `tasks[i]` is attempt `attempt + i`.

    `spec` is opaque, and None if it was sent before.

    Ids of another life of the manager than the one that welcomed this worker last are dropped: no business
    of this one, which learns from the next profile what this worker has in hand. Ids that name no life
    (`epoch_of` 0) are taken as of the right one.
    """

    job: JobId
    attempt: AttemptId
    tasks: Sequence[TaskIndex]
    params: Sequence[Sequence[str]] | None = None
    spec: Any = None
    slots: int = 1
    """How many slots one of the tasks takes; of meaning only together with `spec`."""
    refused: bool = False
    """The owner of this machine does not let this job run here; of meaning only together with `spec`."""


@dataclass(frozen=True, slots=True)
class ProcessEnd:
    """One process as the launcher saw it end. `facts` goes into the report."""

    attempt: AttemptId
    exit_code: int | None
    wall_s: float = 0.0
    timed_out: bool = False
    unstarted: bool = False
    """It was handed over, never started, and is given back by the launcher."""
    reason: str = ""
    facts: Any = None


@dataclass(frozen=True, slots=True)
class ProcessesEnded:
    """These processes have ended, and their groups are gone."""

    ends: Sequence[ProcessEnd]


@dataclass(frozen=True, slots=True)
class LauncherFailed:
    """The launcher died with these attempts; nobody knows how they ended."""

    attempts: Sequence[AttemptId]


@dataclass(frozen=True, slots=True)
class StopRequested:
    """The manager wants these attempts stopped."""

    attempts: Sequence[AttemptId]


@dataclass(frozen=True, slots=True)
class RevocationRequested:
    """The manager wants up to `count` unstarted tasks of the job back."""

    job: JobId
    count: int


@dataclass(frozen=True, slots=True)
class ReportStored:
    """The manager has stored report `number`.

    `epoch`: in which of its lives; 0: it did not say. The agent has it from the acknowledgement. Only what
    the life that welcomed this worker last has stored is stored: an older one may have been fenced.
    """

    number: int
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class IntroductionDue:
    """It is time to tell the manager who we are and which attempts we hold, at most `held_max` of them."""

    held_max: int


@dataclass(frozen=True, slots=True)
class ManagerWelcomed:
    """The manager took us in. The welcome of an older life than the last known changes nothing."""

    epoch: int
    report_delay_s: float
    report_bytes_max: int
    """Room for the attempts of one report."""
    held_max: int = 0
    """So many attempts can be named in an introduction to it; 0: as before."""


@dataclass(frozen=True, slots=True)
class ManagerLost:
    """Connection or manager is gone: nothing can be sent, everything is kept."""


@dataclass(frozen=True, slots=True)
class SpoolFailed:
    """Finished results cannot be written now. They stay in memory and are reported, but nothing is started:
    what would end now would be lost with this process."""


@dataclass(frozen=True, slots=True)
class SpoolMended:
    """All finished results are written again, and others can be."""


@dataclass(frozen=True, slots=True)
class HoursEnded:
    """The owner needs the machine: take no new work, give back what has not started; what runs goes on, or is
    stopped (`stop`)."""

    stop: bool = False


@dataclass(frozen=True, slots=True)
class HoursBegan:
    """The owner lends the machine again."""


@dataclass(frozen=True, slots=True)
class ShutdownRequested:
    """Take no more work, give back what has not started, go when what runs has ended (`kill`: is stopped)."""

    kill: bool = False


@dataclass(frozen=True, slots=True)
class DeadlineReached:
    """The time that `Execution.deadline` named has come."""


ExecutionEvent: TypeAlias = (
    TasksReceived
    | ProcessesEnded
    | LauncherFailed
    | StopRequested
    | RevocationRequested
    | ReportStored
    | IntroductionDue
    | ManagerWelcomed
    | ManagerLost
    | SpoolFailed
    | SpoolMended
    | HoursEnded
    | HoursBegan
    | ShutdownRequested
    | DeadlineReached
)


# --- effects --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AttemptStart:
    """One attempt that is to start."""

    job: JobId
    task: TaskIndex
    attempt: AttemptId
    params: Sequence[str] | None
    spec: Any
    slots: int


@dataclass(frozen=True, slots=True)
class StartAttempts:
    """Hand these to the launcher, in this order."""

    starts: Sequence[AttemptStart]


@dataclass(frozen=True, slots=True)
class StopProcesses:
    """Have the launcher stop these; each still ends with a `ProcessEnd`."""

    attempts: Sequence[AttemptId]


@dataclass(frozen=True, slots=True)
class KeepFinished:
    """Write these where they survive this process."""

    finished: Sequence[Finished]


@dataclass(frozen=True, slots=True)
class ForgetFinished:
    """The manager has stored these: they need not be kept any longer."""

    attempts: Sequence[AttemptId]


@dataclass(frozen=True, slots=True)
class SendReport:
    """Send report `number`."""

    number: int
    finished: Sequence[Finished]


@dataclass(frozen=True, slots=True)
class SendRevoked:
    """Tell the manager that these were not started and never will be."""

    job: JobId
    attempts: Sequence[AttemptId]


@dataclass(frozen=True, slots=True)
class TellRefused:
    """Tell the manager that the owner does not let this job run here; once per job and life of it."""

    job: JobId


@dataclass(frozen=True, slots=True)
class SendProfile:
    """Introduce this worker, holding these attempts."""

    held: Sequence[HeldByWorker]


@dataclass(frozen=True, slots=True)
class AnnounceLoad:
    """Show how busy this worker is."""

    busy: int
    slots: int
    queued: int
    draining: bool
    jobs: Sequence[JobId]
    """Jobs that run here now, in the order in which they came, at most a few."""


@dataclass(frozen=True, slots=True)
class LeavePool:
    """Everything is done that can be done: go."""


ExecutionEffect: TypeAlias = (
    StartAttempts
    | StopProcesses
    | KeepFinished
    | ForgetFinished
    | SendReport
    | SendRevoked
    | TellRefused
    | SendProfile
    | AnnounceLoad
    | LeavePool
)
