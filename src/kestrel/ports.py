"""What the shells of manager and worker need from the outside world, as roles.

The production makers are `kestrel.store`, `kestrel.xmpp.link`, `kestrel.worker.launcher` and the
asyncio clock; the simulator has its own makers of all of them. The shells are plain reactors: they
are called, they call back, they never block and never await. That is what lets the simulator drive
the production code on a virtual clock.

All callbacks arrive on the same thread (the event loop's, or the simulator's), never from inside the
call that asked for them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol, TypeAlias, runtime_checkable

from kestrel.core.effects import (
    RecordCancelled,
    RecordJobEnded,
    RecordResult,
    RecordTrouble,
    RecordWorker,
)
from kestrel.core.model import JobId, JobState, RestoredJob, TaskIndex, WorkerId
from kestrel.errors import StoreError
from kestrel.protocol import messages as m

# --------------------------------------------------------------------------------------------------
# Clock


class TimerHandle(Protocol):
    """A call that is to come. `asyncio.TimerHandle` is one."""

    def cancel(self) -> None: ...


class Clock(Protocol):
    """Time, and calls to come."""

    def now(self) -> float:
        """Monotonic seconds: for leases, delays, rates."""
        ...

    def wall(self) -> float:
        """Unix time: for records that people read. May jump."""
        ...

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> TimerHandle:
        """Call once, `delay_s` from now (0: as soon as whatever runs now has returned)."""
        ...


# --------------------------------------------------------------------------------------------------
# Transport


class Show(Enum):
    """What an available entity says of itself (RFC 6121 section 4.7.2.1)."""

    CHAT = "chat"
    ONLINE = ""
    AWAY = "away"
    XA = "xa"
    DND = "dnd"


class TransportEvents(Protocol):
    """What a transport tells its owner. Addresses are full JIDs as the server stamped them."""

    def on_up(self, address: str) -> None:
        """Connected and bound as `address`; sent again after every reconnect."""
        ...

    def on_down(self, reason: str) -> None:
        """The connection is gone; nobody's presence is known any more. It is being retried."""
        ...

    def on_message(self, sender: str, payload: bytes, chat: bool) -> None:
        """A JSON text from an XEP-0335 container, or (`chat`) the body a person or script sent."""
        ...

    def on_available(self, sender: str, show: Show, status: str) -> None:
        """Directed presence arrived."""
        ...

    def on_unavailable(self, sender: str, reason: str) -> None:
        """The entity left, or a message to it bounced because it is not there."""
        ...

    def on_heard(self, sender: str) -> None:
        """A sign of life and nothing more: a ping of ours was answered, or the entity pinged us (which the
        transport has answered by itself)."""
        ...


class RoleEvents(Protocol):
    """What the manager is told of the roles that a server gives its accounts, apart from `TransportEvents`:
    workers and clients are told nothing of the kind."""

    @property
    def role_authority(self) -> str:
        """Domain of the server that is believed, for its own accounts only; empty: none."""
        ...

    def on_role(self, jid: str, role: str) -> None:
        """The account has this role now (`worker`, `user`, `admin`), or none at all (`none`). Told before
        anything that the account's sessions send, and again when it changes."""
        ...


class Transport(Protocol):
    """Sends to full or bare JIDs. Nothing raises: what cannot be sent now is dropped, as networks do;
    leases, acknowledgements and rejoining repair it."""

    def send(self, to: str, payload: bytes, *, chat: bool = False) -> None:
        """A JSON text; `chat` puts it into a body for a person, else it goes into a container."""
        ...

    def say(self, to: str, text: str) -> None:
        """Plain words for a person, as a message body."""
        ...

    def announce(self, to: str, show: Show, status: str) -> None:
        """Directed presence: from now on `to` learns when we go."""
        ...

    def withdraw(self, to: str) -> None:
        """Directed unavailable presence."""
        ...

    def ping(self, to: str) -> None:
        """XEP-0199; an answer of any kind arrives as `on_heard`."""
        ...


# --------------------------------------------------------------------------------------------------
# Store


@dataclass(frozen=True, slots=True)
class JobRecord:
    """All that is kept of a job beside its tasks."""

    job: JobId
    user: str
    """Bare JID of the owner."""
    submission: str
    """The submitter's own id, or empty; unique per user when not empty."""
    message: bytes
    """The `job` message as JSON, without its `args`."""
    size: int
    open: bool
    submitted: float
    """Unix time."""
    state: JobState = JobState.PENDING
    finished: float = 0.0
    last: int = 0
    """Highest `seq` of its results."""
    counts: m.TaskCounts = m.TaskCounts()
    """Terminal states only; exact."""
    reruns: int = 0


@dataclass(frozen=True, slots=True)
class AddJob:
    """A new job with the parameters of its first tasks (None: the job has no parameters)."""

    record: JobRecord
    params: Sequence[Sequence[str]] | None = None


@dataclass(frozen=True, slots=True)
class AddTasks:
    """Tasks `offset` … for an open job; `last` closes it."""

    job: JobId
    offset: int
    params: Sequence[Sequence[str]]
    last: bool


@dataclass(frozen=True, slots=True)
class CloseJob:
    """No more tasks can follow (cancelled as a whole)."""

    job: JobId
    cancelled: bool


@dataclass(frozen=True, slots=True)
class DrainWorker:
    """A user wants no more tasks on this worker, be it there or not (`drained` false: wants it back)."""

    worker: WorkerId
    drained: bool


Write: TypeAlias = (
    AddJob
    | AddTasks
    | CloseJob
    | DrainWorker
    | RecordResult
    | RecordTrouble
    | RecordCancelled
    | RecordJobEnded
    | RecordWorker
)
"""`RecordResult.report` is a `kestrel.protocol.messages.AttemptReport` or None.
A `RecordResult` for a task that already has a result changes nothing and is counted (law 2)."""


@dataclass(frozen=True, slots=True)
class ReadParams:
    """Parameters of these tasks → list[list[str]], in the same order."""

    job: JobId
    tasks: Sequence[TaskIndex]


@dataclass(frozen=True, slots=True)
class ReadResults:
    """Results with `seq` > `after`, at most `limit`, by seq → list[tuple[int, TaskResult]]."""

    job: JobId
    after: int
    limit: int


@dataclass(frozen=True, slots=True)
class ReadTaskResults:
    """Results of these tasks, by index → list[tuple[int, TaskResult]]; absent ones are left out."""

    job: JobId
    tasks: Sequence[TaskIndex]


@dataclass(frozen=True, slots=True)
class ReadTaskRange:
    """Results of tasks with `first` <= index, in these states (empty: all), by index, at most `limit`
    → list[tuple[int, TaskResult]]."""

    job: JobId
    first: int
    states: frozenset[str]
    limit: int


Read: TypeAlias = ReadParams | ReadResults | ReadTaskResults | ReadTaskRange


@dataclass(frozen=True, slots=True)
class StoreContent:
    """What a manager needs to go on where the last one stopped."""

    epoch: int
    """Already counted up for this life, and stored."""
    next_job: JobId
    jobs: list[JobRecord] = field(default_factory=list)
    """All jobs, by number."""
    unfinished: list[RestoredJob] = field(default_factory=list)
    """Those that have not ended, with the state of each task. `terms` are made by the caller's
    `terms_of`."""
    workers: Sequence[WorkerId] | None = ()
    """Who was in the pool when the last life ended, in no order; None: it was not kept (an older schema)."""
    drained: frozenset[WorkerId] = frozenset()
    """Workers that users have drained."""


@dataclass(frozen=True, slots=True)
class CommitDone:
    """A unit is stored. `answers[i]` belongs to `reads[i]`."""

    answers: Sequence[Any] = ()
    duplicates: int = 0
    """Results that were there already."""


@dataclass(frozen=True, slots=True)
class CommitFailed:
    """Nothing of the unit is stored. `problem` says why and whether to try again."""

    problem: Exception


FENCED = "fenced"
"""Code of the `StoreError` for a manager whose place another one has taken: it can never write again."""
IN_USE = "in_use"
"""Code of the `StoreError` for a store that another manager has; it may be tried again."""


class Store(Protocol):
    """Jobs and results that survive. Units are carried out and answered in the order they came in."""

    def open(self, terms_of: Callable[[JobRecord], Any]) -> StoreContent:
        """Take the store for this manager alone, count the epoch up, read everything. Blocks, and may be
        called on any thread. Raises `StoreError` (code `IN_USE` while another manager has it)."""
        ...

    def commit(
        self,
        writes: Sequence[Write],
        reads: Sequence[Read],
        done: Callable[[CommitDone | CommitFailed], None],
        *,
        unit: int = 0,
    ) -> None:
        """One transaction: all writes, then the reads, which see them. `done` is called later.

        `unit` numbers the units of this life from 1 on. A unit that failed with `retry` is committed again
        as it is, under its number: should it have been stored the first time, with only the answer lost,
        its writes are skipped and its reads answered. 0: not numbered, never recognised.

        A manager whose epoch is no longer the latest gets `CommitFailed` with code `FENCED`, always.
        """
        ...

    def shortage(self) -> StoreError | None:
        """Why nothing new should be taken on now: the room left is kept for what runs already. Cheap."""
        ...

    def close(self) -> None:
        """Finish what came in, then release everything, a lease too. Blocks; may be called twice."""
        ...


# --------------------------------------------------------------------------------------------------
# Lease


@dataclass(frozen=True, slots=True)
class LeaseView:
    """Who may write to a shared database, as it says itself."""

    epoch: int
    """Life of the manager that has the lease, or had it last; 0: nobody ever had it."""
    beat: int
    """Renewals in this epoch."""
    holder: str
    """For people: host and process of the holder; empty: it was given back."""
    connected: bool
    """Whether the database still sees the session that renewed last."""


@runtime_checkable
class LeaseBook(Protocol):
    """The one row of a shared database that says which manager may write.

    No clock of the database is used: who waits judges by its own clock how long (epoch, beat) has not
    changed. Answers come later, in the order of the questions; a `StoreError` stands for no answer.
    """

    def look(self, done: Callable[[LeaseView | StoreError], None]) -> None:
        """Read the row; on an empty database it is made first."""
        ...

    def take(self, seen: LeaseView, holder: str, done: Callable[[int | StoreError | None], None]) -> None:
        """Compare and set: if (epoch, beat) are still as seen, count the epoch up, which fences the former
        holder → the new epoch; None: somebody was quicker. Waits for a transaction of the former holder that
        is just being committed, but never for a holder that stands still."""
        ...

    def renew(self, epoch: int, done: Callable[[bool | StoreError], None]) -> None:
        """Count the beat up → True; False: the epoch is not ours any more."""
        ...

    def release(self, epoch: int, done: Callable[[bool | StoreError], None]) -> None:
        """Give the lease back in order, if it is still ours."""
        ...


# --------------------------------------------------------------------------------------------------
# Launcher


@dataclass(frozen=True, slots=True)
class StartProcess:
    """Start one attempt. Words and environment are final: nothing is left to substitute."""

    attempt: int
    argv: Sequence[str]
    env: dict[str, str]
    """Added to the launcher's own environment."""
    workdir: str
    stdout: str
    """Path of the file for standard output; truncated."""
    stderr: str
    time_limit_s: float = 0.0
    cleanup: Sequence[str] | None = None
    tail_bytes: int = 4096
    slots: int = 1
    """How many of the launcher's slots it takes."""


@dataclass(frozen=True, slots=True)
class ProcessEnded:
    """How it ended. Fields as in `kestrel.protocol.messages.AttemptReport`."""

    attempt: int
    exit_code: int | None
    signal: int = 0
    started: float = 0.0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    memory_kib: int = 0
    out: str = ""
    err: str = ""
    out_bytes: int = 0
    err_bytes: int = 0
    timed_out: bool = False
    reason: str = ""
    """Set when it could not be started (`command not found: foo`)."""
    unstarted: bool = False
    """It was never started: it was stopped before, or no slot came free soon, and it is given back."""


class LauncherEvents(Protocol):
    """What the launcher tells the worker."""

    def on_ended(self, ended: Sequence[ProcessEnded]) -> None:
        """These have ended and their process groups are gone."""
        ...

    def on_launcher_lost(self, attempts: Sequence[int]) -> None:
        """The launcher died with these running; their processes are killed. A new one is started."""
        ...


class Launcher(Protocol):
    """Starts and stops processes. Limits of slots are the caller's business; of quick tasks it hands
    over a few more than there are slots, which a launcher should start in order as slots come free."""

    def start(self, processes: Sequence[StartProcess]) -> None: ...

    def stop(self, attempts: Sequence[int]) -> None:
        """SIGTERM to the group, SIGKILL after the grace; the end is told as usual."""
        ...
