"""What the manager's shell knows of a job beside the scheduler: record, specification, who waits.

Pure data with the conversions from a user's `job` message. Called by the manager only.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field

import msgspec

from kestrel.core.model import JobCounts, JobId, JobState, JobTerms, fold_tags
from kestrel.errors import UsageError
from kestrel.manager.meant import patterns_of
from kestrel.manager.words import Manner
from kestrel.ports import JobRecord
from kestrel.protocol import messages as m
from kestrel.protocol.placeholders import has_placeholder, simplify, with_argument, with_index

COMMAND_CHARS_SHOWN = 1000
WORKERS_FIELD = "job: `workers`"

_job_decoder = msgspec.json.Decoder(m.Job)


@dataclass(slots=True)
class JobEntry:
    """A job in the manager's books.

    What follows from its message is made when it is first wanted: of most jobs after a restart it never is,
    and a manager that has taken over must not read the messages of all jobs that ever were before it acts.
    """

    record: JobRecord
    size: int
    open: bool
    ended: bool = False
    cancelled: bool = False
    """As a whole, and that is accepted."""
    told: dict[str, int] = field(default_factory=dict)
    """Which session of which worker has the specification."""
    watchers: dict[str, Manner] = field(default_factory=dict)
    waiters: list[Waiter] = field(default_factory=list)
    notify: str = ""
    """Address of a person to tell when the job has ended."""
    _message: m.Job | None = None
    _spec: m.TaskSpec | None = None

    @property
    def message(self) -> m.Job:
        """As it was submitted, without its `args`."""
        if self._message is None:
            self._message = _job_decoder.decode(self.record.message)
        return self._message

    @property
    def has_params(self) -> bool:
        """Whether its tasks have arguments."""
        return self.message.queue is None

    @property
    def spec(self) -> m.TaskSpec:
        """What workers are told."""
        if self._spec is None:
            self._spec = spec_of(self.message, self.record.user)
        return self._spec


@dataclass(slots=True)
class Load:
    """What has not ended: jobs of each user, and their tasks."""

    jobs: dict[str, dict[JobId, None]] = field(default_factory=dict)
    tasks_of: dict[str, int] = field(default_factory=dict)
    """Tasks of each user's jobs; those that have ended themselves are among them."""
    tasks: int = 0

    def enter(self, user: str, job: JobId, size: int) -> None:
        """One more job."""
        self.jobs.setdefault(user, {})[job] = None
        self.grow(user, size)

    def grow(self, user: str, count: int) -> None:
        """More tasks for a job."""
        self.tasks += count
        self.tasks_of[user] = self.tasks_of.get(user, 0) + count

    def leave(self, user: str, job: JobId, size: int) -> None:
        """A job has ended."""
        self.tasks -= size
        self.tasks_of[user] -= size
        del self.jobs[user][job]
        if not self.jobs[user]:
            del self.jobs[user], self.tasks_of[user]


@dataclass(slots=True)
class Waiter:
    """A `results` request that waits for more."""

    sender: str
    manner: Manner
    request: m.Results
    until: float


def terms_of(record: JobRecord) -> JobTerms:
    """What the scheduler must know of a stored job."""
    return terms(_job_decoder.decode(record.message), record.user)


def terms(message: m.Job, user: str) -> JobTerms:
    """What the scheduler must know of a submitted job."""
    requires = message.requires if isinstance(message.requires, str) else tuple(message.requires)
    return JobTerms(
        user=user,
        requires=fold_tags(requires),
        slots=message.slots,
        priority=message.priority,
        retries=message.retries,
        restart=message.restart == "always",
        workers=patterns_of(message.workers, WORKERS_FIELD),
    )


def entry_of(record: JobRecord) -> JobEntry:
    """The books of a job from its record; after a restart as well as at submission."""
    return JobEntry(
        record=record,
        size=record.size,
        open=record.open,
        ended=record.state in (JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED),
    )


def check(message: m.Job) -> None:
    """Refuse what the types cannot: raises `UsageError` that names the field."""
    if message.queue is not None and (message.args is not None or message.open):
        raise UsageError(
            "job: `queue` and `args` exclude each other",
            hint="`queue` runs the command so many times, `args` runs it once per entry",
        )
    if message.args is not None and not message.args and not message.open:
        raise UsageError("job: `args` is empty, so there is nothing to do")
    patterns_of(message.workers, WORKERS_FIELD)


def normal(message: m.Job) -> m.Job:
    """A job without `queue` and `args` is one task, and its command gets no index."""
    if message.queue is None and message.args is None and not message.open:
        return msgspec.structs.replace(message, queue=1, append_index=bool(message.append_index))
    return message


def spec_of(message: m.Job, user: str = "") -> m.TaskSpec:
    """What workers are told: index or argument appended, shell left out where it is not needed."""
    return m.TaskSpec(
        command=_completed(message.command, message),
        cleanup=None if message.cleanup is None else _completed(message.cleanup, message),
        env=message.env,
        workdir=message.workdir,
        time_limit_s=message.time_limit_s,
        slots=message.slots,
        name=message.name,
        user=user,
    )


def _completed(command: str | list[str], message: m.Job) -> str | list[str]:
    append = message.append_index
    if append is None:
        append = message.queue is not None
    if not has_placeholder(command):
        if append and message.queue is not None:
            command = with_index(command)
        elif message.queue is None and message.append_index is not False:
            command = with_argument(command)
    return simplify(command) if isinstance(command, str) else command


def command_text(message: m.Job) -> str:
    """The command as a person would type it; a long one is cut."""
    command = message.command
    text = command if isinstance(command, str) else shlex.join(command)
    return text if len(text) <= COMMAND_CHARS_SHOWN else text[: COMMAND_CHARS_SHOWN - 1] + "…"


def counts_message(counts: JobCounts) -> m.TaskCounts:
    """Counts as they travel."""
    return m.TaskCounts(
        queued=counts.queued,
        running=counts.running,
        completed=counts.completed,
        failed=counts.failed,
        cancelled=counts.cancelled,
        timeout=counts.timeout,
        node_fail=counts.node_fail,
    )
