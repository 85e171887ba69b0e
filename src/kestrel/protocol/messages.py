"""Every message that managers, workers and users exchange, one class per JSON `type`.

The tag is the field `type`. Unknown fields are ignored (a newer peer may send them), an unknown
`type` or a bad field is answered with `error`. docs/protocol.md and the JSON Schema are generated
from these classes and their docstrings: what is written here is the reference.

Times are seconds as floats; wall-clock times are Unix time. Indices of tasks start at 0.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

PROTOCOL_VERSION = 1
PROTOCOL_OLDEST = 1
"""The oldest version that a worker may speak; a manager is never older than its workers."""

PositiveInt = Annotated[int, Meta(ge=1, le=2**53)]
Natural = Annotated[int, Meta(ge=0, le=2**53)]
Seconds = Annotated[float, Meta(ge=0)]
ShortText = Annotated[str, Meta(max_length=1024)]
Command = (
    Annotated[str, Meta(min_length=1, max_length=65536)]
    | Annotated[list[str], Meta(min_length=1, max_length=4096)]
)
Pattern = Annotated[str, Meta(min_length=1, max_length=1024)]
"""Whom is meant: `worker@pool/42`, `worker*@pool`, `pool` (everybody of this domain), `*.example.org`,
`*/core2` (this resource of anybody). `*` and `?` stay within their part of the address."""
Patterns = Annotated[list[Pattern], Meta(max_length=64)]
Parameters = list[str]
"""The words that stand for one task: what `{}`, `{1}`, `{2}` … are replaced by."""

TASKS_PER_JOB_MAX = 100_000_000


class Message(Struct, tag_field="type", kw_only=True, omit_defaults=True, frozen=True, gc=False):
    """What every message is: a JSON object told apart by its `type`."""


# --------------------------------------------------------------------------------------------------
# worker → manager


class HeldAttempt(Struct, frozen=True, gc=False):
    """An attempt that a worker still has in hand (queued, running, or finished but not acknowledged)."""

    job: Natural
    task: Natural
    attempt: Natural


class Profile(Message, tag="profile", kw_only=True, frozen=True):
    """Join the pool, or tell that something about this worker changed.

    Only `type` is required: what is missing is taken as unknown. `slots` is how many tasks run at
    once and defaults to `cores`.
    """

    os: ShortText = ""
    """Operating system, e.g. `Linux`."""
    arch: ShortText = ""
    """Machine architecture, e.g. `x86_64`."""
    hostname: ShortText = ""
    ram: Natural = 0
    """Memory in MiB."""
    cores: Annotated[int, Meta(ge=1, le=65536)] = 1
    slots: Annotated[int, Meta(ge=1, le=65536)] | None = None
    """Tasks at once; `cores` if absent."""
    provides: Annotated[list[ShortText], Meta(max_length=1024)] = field(default_factory=list)
    """Tags that jobs may require; case does not count."""
    labels: dict[str, ShortText] = field(default_factory=dict)
    python: ShortText = ""
    version: ShortText = ""
    """Version of the worker program."""
    protocol: Natural = PROTOCOL_VERSION
    held: list[HeldAttempt] = field(default_factory=list)
    """Attempts that this worker still has in hand, so that a manager can adopt them."""
    epoch: Natural = 0
    """Epoch of the latest welcome, 0 if there was none: it ignores managers of an older one, and one that
    knows itself to be older must give it nothing."""
    users: Patterns = field(default_factory=list)
    """Whose jobs the owner of this machine lets run here; empty: everybody's."""


class AttemptReport(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """How one attempt ended, as the worker saw it.

    `state` is `completed` (exit code 0), `failed`, `timeout`, `cancelled` (stopped on request) or
    `lost` (the worker cannot tell: its launcher died).
    """

    job: Natural
    task: Natural
    attempt: Natural
    state: Literal["completed", "failed", "timeout", "cancelled", "lost"] = "completed"
    exit_code: int | None = 0
    """Exit code; null when a signal ended it or it never started."""
    signal: Natural = 0
    """Number of the signal that ended it, or 0."""
    started: Seconds = 0.0
    """Unix time of the start by the worker's clock, 0 if it never started."""
    wall_s: Seconds = 0.0
    cpu_s: Seconds = 0.0
    """User plus system time of the whole process tree that was waited for."""
    memory_kib: Natural = 0
    """Peak resident memory of the largest process."""
    out: str = ""
    """The end of standard output, at most the `tail_bytes` of the welcome; not UTF-8 is replaced."""
    err: str = ""
    out_bytes: Natural = 0
    """Whole length of standard output; more than `out` holds when the rest stayed on the worker."""
    err_bytes: Natural = 0
    reason: str = ""
    """Why, in words, when the state needs words (`command not found: foo`)."""


class Report(Message, tag="report", kw_only=True, frozen=True):
    """A numbered batch of finished attempts. The worker keeps them until `ack` names this number."""

    n: PositiveInt
    attempts: list[AttemptReport]


class Revoked(Message, tag="revoked", kw_only=True, frozen=True):
    """Answer to `revoke`: these attempts were not started and never will be."""

    job: Natural
    attempts: list[Natural]


class OutputPart(Message, tag="output_part", kw_only=True, frozen=True):
    """A piece of a task's standard output or error; worker → manager → user."""

    re: ShortText
    job: Natural
    task: Natural
    attempt: Natural = 0
    stream: Literal["stdout", "stderr"] = "stdout"
    offset: Natural = 0
    data: str = ""
    """The bytes in base64."""
    size: Natural = 0
    """Length of the whole stream so far, in bytes."""
    final: bool = False
    """True if the attempt has ended: `size` will not grow."""


# --------------------------------------------------------------------------------------------------
# manager → worker


class Welcome(Message, tag="welcome", kw_only=True, frozen=True):
    """The manager took the worker in. Settings that the worker must follow."""

    epoch: Natural
    """Number of this life of the manager."""
    pool: ShortText = ""
    lease_s: Seconds = 15.0
    """A worker that the manager has not heard for so long is taken as lost."""
    report_delay_s: Seconds = 0.005
    """How long finished attempts may wait for others before they are reported."""
    tail_bytes: Natural = 4096
    """How much of the end of each output stream travels in a report."""
    stanza_bytes_max: Natural = 200_000
    """Largest message to send."""
    protocol: PositiveInt = PROTOCOL_VERSION


class TaskSpec(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a worker must know to run tasks of a job: sent once per job and worker.

    `command` is a list of words that is run as it is, or a string for `sh -c`. Before the start,
    `{}` `{.}` `{/}` `{//}` `{/.}` `{1}` … `{#}` in it are replaced by the task's parameters
    (quoted for the shell in the string form).
    """

    command: Command
    cleanup: Command | None = None
    """Run after the attempt, whatever happened; its own outcome does not count."""
    env: dict[str, str] = field(default_factory=dict)
    workdir: str = ""
    """Directory to run in; empty: where the worker was told to work."""
    time_limit_s: Seconds = 0.0
    """0: no limit."""
    slots: PositiveInt = 1
    """How many of the worker's slots one task takes."""
    name: str = ""
    user: str = ""
    """Bare address of whose job it is: the worker's owner may have a say."""


class Tasks(Message, tag="tasks", kw_only=True, frozen=True):
    """Run these tasks of one job, in this order.

    Attempt numbers are consecutive: task `tasks[i]` is attempt `attempt + i`.
    """

    job: Natural
    attempt: Natural
    tasks: list[Natural]
    params: list[Parameters] | None = None
    """Parameters of each task, in the same order; absent if the job has none."""
    spec: TaskSpec | None = None
    """The job's specification; absent if this worker was told before (in this epoch)."""


class Ack(Message, tag="ack", kw_only=True, frozen=True):
    """All reports up to number `n` are stored: the worker may forget them."""

    n: Natural
    epoch: Natural = 0
    """Life of the manager that says so; a worker heeds only the one that welcomed it. 0: not said."""


class Stop(Message, tag="stop", kw_only=True, frozen=True):
    """Stop these attempts: kill what runs, drop what waits. Each is still reported."""

    attempts: list[Natural]


class Revoke(Message, tag="revoke", kw_only=True, frozen=True):
    """Give back up to `count` tasks of a job that have not been started."""

    job: Natural
    count: PositiveInt


class ReadOutput(Message, tag="read_output", kw_only=True, frozen=True):
    """Send a piece of an attempt's output (answer: `output_part`)."""

    id: ShortText
    job: Natural
    task: Natural
    attempt: Natural
    stream: Literal["stdout", "stderr"] = "stdout"
    offset: Natural = 0
    limit: PositiveInt = 65536


# --------------------------------------------------------------------------------------------------
# user → manager


class Job(Message, tag="job", kw_only=True, frozen=True):
    """Submit a bag of tasks that share a command.

    The number of tasks is `queue`, or the number of `args`. With `queue` the task's index is
    appended to command and cleanup, unless they contain a placeholder (`{#}`, `{}` …) or
    `append_index` is false. A submission repeated with the same `id` by the same user gets the same
    job again.
    """

    command: Command
    id: ShortText = ""
    """Chosen by the submitter; repeats are recognised by it."""
    name: ShortText = ""
    queue: Annotated[int, Meta(ge=1, le=TASKS_PER_JOB_MAX)] | None = None
    args: list[Parameters] | None = None
    """One entry per task: the words that `{}`, `{1}`, `{2}` … stand for."""
    open: bool = False
    """More `args` follow in `extend` messages; the job does not end before the last one."""
    append_index: bool | None = None
    cleanup: Command | None = None
    requires: str | list[ShortText] = field(default_factory=list)
    """Tags that a worker must provide: a list, or one string with spaces between."""
    workers: Patterns = field(default_factory=list)
    """Only workers that one of these means; empty: all."""
    env: dict[str, str] = field(default_factory=dict)
    workdir: str = ""
    slots: Annotated[int, Meta(ge=1, le=65536)] = 1
    priority: Annotated[int, Meta(ge=-1000, le=1000)] = 0
    """Higher runs first."""
    retries: Annotated[int, Meta(ge=0, le=1000)] = 0
    """How often a failed task is tried again."""
    time_limit_s: Seconds = 0.0
    restart: Literal["always", "never"] = "always"
    """`never`: a task whose worker is lost fails as NODE_FAIL instead of being run again."""


class Extend(Message, tag="extend", kw_only=True, frozen=True):
    """Add tasks to an open job. `offset` is the index of the first, so that a repeat changes nothing."""

    job: Natural
    offset: Natural
    args: list[Parameters] = field(default_factory=list)
    last: bool = False
    """Close the job: no more tasks follow."""
    id: ShortText = ""


class Cancel(Message, tag="cancel", kw_only=True, frozen=True):
    """Cancel a job, or the tasks of it that `tasks` names (`"3"`, `"1-7:2,9"`; empty: all)."""

    job: Natural
    tasks: ShortText = ""
    id: ShortText = ""


class Status(Message, tag="status", kw_only=True, frozen=True):
    """Ask for the state of one job, or of all jobs of this user, or (`all`) of everybody."""

    job: Natural | None = None
    all: bool = False
    id: ShortText = ""


class ListTasks(Message, tag="list_tasks", kw_only=True, frozen=True):
    """Ask for the tasks of a job that are in one of these states (all if empty), from index `after` on."""

    job: Natural
    states: list[str] = field(default_factory=list)
    after: int = -1
    """Only tasks with a greater index."""
    limit: Annotated[int, Meta(ge=1, le=10_000)] = 1000
    id: ShortText = ""


class Results(Message, tag="results", kw_only=True, frozen=True):
    """Ask for finished tasks of a job in the order in which they were stored.

    `after` is the `last` of the page before. With `wait` the manager answers as soon as there is
    one more, or when the job has ended.
    """

    job: Natural
    after: Natural = 0
    limit: Annotated[int, Meta(ge=1, le=10_000)] = 500
    wait: bool = False
    tasks: ShortText = ""
    """Only these tasks (`"3"`, `"1-7"`), in index order; `after` and `last` then count how many of them
    were looked at, ended or not (0 with `done`), and `wait` does not apply."""
    id: ShortText = ""


class Output(Message, tag="output", kw_only=True, frozen=True):
    """Ask for a piece of a task's output (answer: `output_part`)."""

    job: Natural
    task: Natural
    stream: Literal["stdout", "stderr"] = "stdout"
    offset: Natural = 0
    limit: Annotated[int, Meta(ge=1, le=100_000)] = 65536
    id: ShortText = ""


class Watch(Message, tag="watch", kw_only=True, frozen=True):
    """Be told (`event`) when a job changes, at most a few times a second; `stop` ends it."""

    job: Natural
    stop: bool = False
    id: ShortText = ""


class Pool(Message, tag="pool", kw_only=True, frozen=True):
    """Ask which workers the manager sees: all, or those that one of `workers` means.

    With `by` the answer has `groups` by that part of their addresses, and no `workers`.
    """

    workers: Patterns = field(default_factory=list)
    """Only workers that one of these means; empty: all."""
    by: Literal["", "user", "domain", "resource"] = ""
    """By which part of the address to group."""
    limit: Annotated[int, Meta(ge=1, le=10_000)] = 1000
    id: ShortText = ""


class Explain(Message, tag="explain", kw_only=True, frozen=True):
    """Ask why a job or one task of it is not running, or what became of it."""

    job: Natural
    task: Natural | None = None
    id: ShortText = ""


class Drain(Message, tag="drain", kw_only=True, frozen=True):
    """Give workers no more tasks (`drain`), or give them tasks again (`undo`): those that `worker`, an
    address or a pattern, means."""

    worker: Pattern
    undo: bool = False
    id: ShortText = ""


class Help(Message, tag="help", kw_only=True, frozen=True):
    """Ask what can be said."""

    id: ShortText = ""


# --------------------------------------------------------------------------------------------------
# manager → user


class Accepted(Message, tag="accepted", kw_only=True, frozen=True):
    """The request was carried out and is stored. `job` is the job's number."""

    re: ShortText = ""
    job: Natural | None = None
    size: Natural = 0
    """Tasks that the job has now."""
    changed: Natural = 0
    """How many tasks or workers the request touched (cancel, drain)."""
    warning: str = ""
    """What the submitter should know, e.g. that no worker matches at the moment."""


class TaskCounts(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """How many tasks of a job are in which state. The states exclude each other."""

    queued: int = 0
    running: int = 0
    """With a worker: started, or waiting there for a slot."""
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    timeout: int = 0
    node_fail: int = 0


class JobInfo(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A job at a glance."""

    job: Natural
    user: str
    name: str = ""
    command: str = ""
    """The command as a person would write it."""
    state: Literal["PENDING", "RUNNING", "COMPLETED", "FAILED", "CANCELLED"] = "PENDING"
    reason: str = ""
    size: int = 0
    open: bool = False
    counts: TaskCounts = TaskCounts()
    submitted: Seconds = 0.0
    finished: Seconds = 0.0
    """Unix time; 0 while tasks remain."""
    last: Natural = 0
    """Number of the last stored result, for `results`."""
    reruns: Natural = 0
    """Attempts that were lost with their worker and tried again."""


class JobStatus(Message, tag="job_status", kw_only=True, frozen=True):
    """Answer to `status`."""

    re: ShortText = ""
    jobs: list[JobInfo] = field(default_factory=list)
    workers: int = 0
    slots: int = 0
    busy: int = 0
    """Slots in use by the manager's count."""


class Event(Message, tag="event", kw_only=True, frozen=True):
    """Something changed that the receiver watches."""

    job: JobInfo


class TaskResult(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """The stored end of a task."""

    task: Natural
    attempt: Natural = 0
    worker: str = ""
    state: str = "COMPLETED"
    exit_code: int | None = 0
    signal: int = 0
    started: Seconds = 0.0
    wall_s: Seconds = 0.0
    cpu_s: Seconds = 0.0
    memory_kib: int = 0
    out: str = ""
    err: str = ""
    out_bytes: int = 0
    err_bytes: int = 0
    reason: str = ""
    params: Parameters = field(default_factory=list)


class ResultPage(Message, tag="result_page", kw_only=True, frozen=True):
    """Answer to `results`. Ask again with `after` = `last`; `done` means that nothing will follow."""

    re: ShortText = ""
    job: Natural
    results: list[TaskResult] = field(default_factory=list)
    last: Natural = 0
    done: bool = False


class TaskInfo(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A task at a glance."""

    task: Natural
    state: str
    worker: str = ""
    attempt: Natural = 0


class TaskList(Message, tag="task_list", kw_only=True, frozen=True):
    """Answer to `list_tasks`; `more` if the limit cut it."""

    re: ShortText = ""
    job: Natural
    tasks: list[TaskInfo] = field(default_factory=list)
    more: bool = False


class WorkerInfo(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A worker at a glance."""

    worker: str
    state: Literal["idle", "busy", "full", "draining", "quarantined"] = "idle"
    os: str = ""
    arch: str = ""
    hostname: str = ""
    ram: int = 0
    cores: int = 1
    slots: int = 1
    running: int = 0
    """Attempts in its hands, started or waiting."""
    completed: int = 0
    failed: int = 0
    provides: list[str] = field(default_factory=list)
    joined: Seconds = 0.0
    version: str = ""
    users: list[str] = field(default_factory=list)
    """Whose jobs its owner lets run there; empty: everybody's."""


class WorkerGroup(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Workers whose addresses have a part in common, at a glance."""

    name: str
    """The part of the address that they share; empty: they have none."""
    workers: int = 0
    """How many they are."""
    idle: int = 0
    """Workers with a free slot that take tasks."""
    slots: int = 0
    """Of all of them."""
    running: int = 0
    """Attempts in their hands."""
    completed: int = 0
    """Tasks that they ended well since they joined."""
    failed: int = 0
    """Tasks that failed there."""


class LostWorker(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A worker that went away lately, or was not let in (then `reason` begins with `refused`)."""

    worker: str
    lost: Seconds = 0.0
    """Unix time."""
    reason: str = ""
    requeued: int = 0


class PoolStatus(Message, tag="pool_status", kw_only=True, frozen=True):
    """Answer to `pool`: who is there, and who left lately."""

    re: ShortText = ""
    pool: str = ""
    epoch: Natural = 0
    workers: list[WorkerInfo] = field(default_factory=list)
    count: int = 0
    """All workers that were asked for, also those that the limit cut."""
    groups: list[WorkerGroup] = field(default_factory=list)
    """If the question had `by`: in the order of their names."""
    lost: list[LostWorker] = field(default_factory=list)


class Explanation(Message, tag="explanation", kw_only=True, frozen=True):
    """Answer to `explain`: sentences, the most important first."""

    re: ShortText = ""
    job: Natural
    task: Natural | None = None
    lines: list[str] = field(default_factory=list)
    story: list[str] = field(default_factory=list)
    """What is known of the task, oldest first."""


class Text(Message, tag="text", kw_only=True, frozen=True):
    """Words for a person: the answer to `help`."""

    re: ShortText = ""
    text: str


class Error(Message, tag="error", kw_only=True, frozen=True):
    """The request was not carried out. `code` is a constant, `text` says what, `hint` the cure."""

    re: ShortText = ""
    code: ShortText
    text: str
    hint: str = ""


WorkerToManager = Profile | Report | Revoked | OutputPart
ManagerToWorker = Welcome | Tasks | Ack | Stop | Revoke | ReadOutput | Error
UserToManager = (
    Job | Extend | Cancel | Status | ListTasks | Results | Output | Watch | Pool | Explain | Drain | Help
)
ManagerToUser = (
    Accepted
    | JobStatus
    | Event
    | ResultPage
    | TaskList
    | OutputPart
    | PoolStatus
    | Explanation
    | Text
    | Error
)
ToManager = WorkerToManager | UserToManager | Error
