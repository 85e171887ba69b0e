"""Talking with people: plain words to requests, answers to plain words.

Pure. The manager answers in kind: who sends a container gets a container, who sends JSON in a body
gets JSON in a body, who sends words gets words.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from enum import Enum
from typing import Any, cast

from kestrel.core.addresses import PARTS
from kestrel.errors import UsageError
from kestrel.protocol import messages as m

LINES_MAX = 30
"""Longest answer in words; more is cut with a count."""

NUMBER_MAX = 2**53
"""Largest number of a job or a task, as in messages."""

HELP = """\
I am a Kestrel manager. You can say:
  status            your jobs and the pool
  status 17         one job
  pool              the workers (pool worker*@pool: some; pool by domain: in groups,
                    also by user or resource)
  run COMMAND       submit one task
  run COMMAND x 50  submit 50 tasks; each gets its index (0-49) appended
  results 17        how the tasks ended
  cancel 17         cancel a job (cancel 17 3-5: some of its tasks)
  drain w1@pool     give these workers no more tasks (undrain w1@pool: tasks again)
  explain 17        why it does not run (explain 17 3: one task)
  help              this text
Programs send JSON instead, e.g. {"type": "job", "command": "echo hello", "queue": 3}"""


class Manner(Enum):
    """How a sender talks, and so how it is answered."""

    CONTAINER = "container"
    BODY = "body"
    WORDS = "words"


def manner_of(payload: bytes, chat: bool) -> Manner:
    """A body that does not begin like a JSON object is plain words."""
    if not chat:
        return Manner.CONTAINER
    return Manner.BODY if payload.lstrip().startswith((b"{", b"[")) else Manner.WORDS


def command_from_words(text: str) -> m.UserToManager:
    """Read one line of plain words. Raises `UsageError` that says what could have been meant."""
    words = text.split()
    if not words:
        return m.Help()
    verb, rest = words[0].lower().lstrip("/"), words[1:]
    read = _VERBS.get(verb)
    if read is None:
        near = difflib.get_close_matches(verb, _VERBS, n=1)
        raise UsageError(
            f"I do not understand {words[0]!r}.",
            hint=f"did you mean {near[0]!r}?" if near else "say help for what I understand",
            code="unknown_words",
        )
    return read(rest)


def _job_number(words: list[str], verb: str) -> int:
    try:
        number = int(words[0].lstrip("#"))
        if not 0 <= number <= NUMBER_MAX:
            raise ValueError
        return number
    except (IndexError, ValueError):
        raise UsageError(
            f"{verb} needs the number of a job", hint=f"e.g. {verb} 17; status lists your jobs"
        ) from None


def _status(rest: list[str]) -> m.UserToManager:
    if rest and rest[0] == "all":
        return m.Status(all=True)
    return m.Status(job=_job_number(rest, "status") if rest else None)


def _cancel(rest: list[str]) -> m.UserToManager:
    return m.Cancel(job=_job_number(rest, "cancel"), tasks=",".join(rest[1:]))


def _explain(rest: list[str]) -> m.UserToManager:
    job = _job_number(rest, "explain")
    return m.Explain(job=job, task=_job_number(rest[1:], "explain 17") if len(rest) > 1 else None)


def _results(rest: list[str]) -> m.UserToManager:
    return m.Results(job=_job_number(rest, "results"), limit=LINES_MAX, tasks=",".join(rest[1:]))


def _run(rest: list[str]) -> m.UserToManager:
    if not rest:
        raise UsageError("run needs a command", hint="e.g. run ./simulate.sh x 50")
    if len(rest) >= 3 and rest[-2] == "x" and re.fullmatch("[1-9][0-9]{0,8}", rest[-1]):
        return m.Job(command=" ".join(rest[:-2]), queue=min(int(rest[-1]), m.TASKS_PER_JOB_MAX))
    return m.Job(command=" ".join(rest))


def _pool_words(rest: list[str]) -> m.UserToManager:
    """`pool`, `pool PATTERN…`, `pool PATTERN… by domain`."""
    by = ""
    if len(rest) >= 2 and rest[-2].lower() == "by":
        by = rest[-1].lower()
        rest = rest[:-2]
    elif rest and rest[-1].lower() == "by":
        raise UsageError("pool by what?", hint=f"say pool by {', pool by '.join(PARTS)}")
    if by and by not in PARTS:
        near = difflib.get_close_matches(by, PARTS, n=1)
        meant = f"did you mean {near[0]!r}?" if near else "say " + ", ".join(PARTS)
        raise UsageError(f"workers cannot be grouped by {by!r}", hint=meant)
    return m.Pool(workers=rest, by=cast("Any", by), limit=LINES_MAX)


def _drain_words(undo: bool) -> Callable[[list[str]], m.UserToManager]:
    def read(rest: list[str]) -> m.UserToManager:
        verb = "undrain" if undo else "drain"
        if len(rest) != 1:
            hint = f"e.g. {verb} worker*@pool; pool lists the workers"
            raise UsageError(f"{verb} needs one address or pattern", hint=hint)
        return m.Drain(worker=rest[0], undo=undo)

    return read


_VERBS: dict[str, Callable[[list[str]], m.UserToManager]] = {
    "help": lambda _: m.Help(),
    "hello": lambda _: m.Help(),
    "hi": lambda _: m.Help(),
    "status": _status,
    "jobs": _status,
    "pool": _pool_words,
    "workers": _pool_words,
    "drain": _drain_words(False),
    "undrain": _drain_words(True),
    "cancel": _cancel,
    "explain": _explain,
    "why": _explain,
    "results": _results,
    "run": _run,
    "submit": _run,
}


def answer_as_words(message: m.Message) -> str:
    """What the message says, as a person would."""
    match message:
        case m.Error(text=text, hint=hint):
            return f"Sorry: {text}" + (f" ({hint})" if hint else "")
        case m.Text(text=text):
            return text
        case m.Accepted():
            return _accepted(message)
        case m.JobStatus():
            return _job_status(message)
        case m.Event(job=job):
            return job_line(job)
        case m.PoolStatus():
            return _pool(message)
        case m.Explanation(lines=lines, story=story):
            return "\n".join([*lines, *(f"  {line}" for line in story[-LINES_MAX:])])
        case m.ResultPage():
            return _results_words(message)
        case _:
            raise TypeError(f"no words for {type(message).__name__}")


def _accepted(message: m.Accepted) -> str:
    if message.job is None:
        text = f"Done, {_workers(message.changed)} concerned." if message.changed else "Done."
    elif message.changed:
        text = f"Job {message.job}: done, {_tasks(message.changed)} concerned."
    else:
        text = f"Job {message.job} accepted with {_tasks(message.size)}."
    return text + (f"\nNote: {message.warning}" if message.warning else "")


def job_line(job: m.JobInfo) -> str:
    """One job in one line, e.g. `Job 17 (echo hello): RUNNING, 3 of 50 tasks done, 2 running`."""
    c = job.counts
    done = c.completed + c.failed + c.cancelled + c.timeout + c.node_fail
    parts = [f"{done} of {_tasks(job.size)} done"]
    for count, word in (
        (c.running, "running"),
        (c.queued, "queued"),
        (c.failed, "failed"),
        (c.timeout, "timed out"),
        (c.node_fail, "lost with their workers"),
        (c.cancelled, "cancelled"),
    ):
        if count:
            parts.append(f"{count} {word}")
    name = job.name or job.command or f"of {job.user}"
    name = name if len(name) <= 40 else name[:39] + "…"
    reason = f" ({job.reason})" if job.reason else ""
    return f"Job {job.job} ({name}): {job.state}{reason}, " + ", ".join(parts)


def _job_status(message: m.JobStatus) -> str:
    lines = [job_line(job) for job in message.jobs[-LINES_MAX:]]
    if len(message.jobs) > LINES_MAX:
        lines.insert(0, f"({len(message.jobs) - LINES_MAX} older jobs not shown)")
    if not lines:
        lines.append("You have no jobs.")
    lines.append(f"Pool: {message.workers} workers, {message.busy} of {message.slots} slots busy.")
    return "\n".join(lines)


def _pool(message: m.PoolStatus) -> str:
    lines = [f"{_workers(message.count)} in pool {message.pool}"]
    if message.groups:
        lines += [
            f"{g.name or '(none)'}: {_workers(g.workers)}, {g.idle} idle, {g.running} tasks in hand, "
            f"{g.slots} slots, {g.completed} completed"
            for g in message.groups[:LINES_MAX]
        ]
        missing = message.count - sum(g.workers for g in message.groups[:LINES_MAX])
        return "\n".join([*lines, f"({_workers(missing)} in more groups)"] if missing > 0 else lines)
    lines += [
        f"{w.worker}: {w.state}, {w.running} tasks in hand, {w.slots} slots, {w.completed} completed"
        for w in message.workers[:LINES_MAX]
    ]
    if message.count > LINES_MAX:
        lines.append(f"(and {message.count - LINES_MAX} more)")
    lines += [f"{w.worker}: gone ({w.reason}), {w.requeued} tasks re-queued" for w in message.lost[-5:]]
    return "\n".join(lines)


def _results_words(message: m.ResultPage) -> str:
    lines = []
    for r in message.results[:LINES_MAX]:
        end = "" if r.state == "COMPLETED" else f" {r.reason or f'exit code {r.exit_code}'}"
        out = r.out.strip().splitlines()
        lines.append(f"{message.job}_{r.task}: {r.state}{end}" + (f": {out[-1][:120]}" if out else ""))
    if not message.done and message.results:
        lines.append("(more results exist or will come)")
    return "\n".join(lines) or f"Job {message.job} has no results yet."


def _workers(count: int) -> str:
    return "1 worker" if count == 1 else f"{count} workers"


def _tasks(count: int) -> str:
    return "1 task" if count == 1 else f"{count} tasks"
