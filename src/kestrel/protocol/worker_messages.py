"""What workers and their manager say to each other. Read `kestrel.protocol.messages` first: it has all names.

What is written here is the reference: docs/protocol.md is generated from it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from kestrel.protocol.fields import (
    PROTOCOL_VERSION,
    Command,
    Message,
    Natural,
    Parameters,
    Patterns,
    PositiveInt,
    Seconds,
    ShortText,
)

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
