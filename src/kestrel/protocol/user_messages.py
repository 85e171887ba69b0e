"""What users and the manager say to each other. Read `kestrel.protocol.messages` first: it has all names.

What is written here is the reference: docs/protocol.md is generated from it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from kestrel.protocol.fields import (
    TASKS_PER_JOB_MAX,
    Command,
    Message,
    Natural,
    Parameters,
    Pattern,
    Patterns,
    Seconds,
    ShortText,
)

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
    state: Literal["idle", "busy", "full", "draining", "away", "quarantined"] = "idle"
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
