"""Why a job or a task is not running, in sentences with counts, the most important first.

Only reads. May cost as much as there are jobs and classes of workers: people ask, not events.
Called by `scheduler`.
"""

from __future__ import annotations

from math import isinf
from typing import Final

from kestrel.core.books import Books
from kestrel.core.jobs import Job
from kestrel.core.matching import Signature
from kestrel.core.model import TaskIndex, TaskState
from kestrel.core.quarantine import Bar

NAMED_MAX: Final = 3
"""So many workers are named in one sentence."""


def explain_job(books: Books, job: Job, now: float) -> list[str]:
    """The job as a whole."""
    if job.ended is not None:
        return [f"The job has ended: {job.ended.value}."]
    lines = _waiting(books, job, now)
    lines.append(_counts(job))
    if job.cancelled:
        lines.insert(0, f"The job was cancelled; {_n(len(job.running), 'task')} of it are being stopped.")
    if job.open:
        lines.append("The job is open: more tasks may be added, and it does not end before it is closed.")
    return lines


def explain_task(books: Books, job: Job, task: TaskIndex, now: float) -> list[str]:
    """One task of it."""
    name = f"Task {job.id}_{task}"
    state = job.state(task)
    mark = job.marks.get(task)
    lines = []
    if state is TaskState.RUNNING:
        attempt = job.running[task]
        lines.append(f"{name} is with worker {attempt.worker.id} as attempt {attempt.id}.")
        for twin in mark.twins if mark is not None else ():
            lines.append(
                f"Worker {twin.worker.id} came back with it as attempt {twin.id}; the first result counts."
            )
        if job.wants_cancel(task):
            lines.append("It was cancelled: the worker was told to stop it, and has not answered yet.")
    elif state is TaskState.QUEUED:
        lines.append(f"{name} is queued; {_n(job.tasks_before(task), 'task')} of its job come before it.")
        lines.extend(_waiting(books, job, now))
    else:
        lines.append(f"{name} has ended: {state.name}.")
    if mark is not None and mark.failures:
        left = max(0, job.terms.retries - mark.failures)
        lines.append(f"It failed {_times(mark.failures)} and may be tried again {_times(left)} after that.")
    if mark is not None and mark.losses:
        lines.append(
            f"It was lost with its worker {_times(mark.losses)}; "
            f"at {books.settings.losses_max} it is set aside."
        )
    return lines


def mismatch(books: Books, job: Job, now: float) -> list[str]:
    """Why no worker of the pool can run the job; empty if one can."""
    signature = job.signature
    if job.ended is not None or signature.capacity:
        return []
    total = len(books.pool.workers)
    if not total:
        return [f"There are no workers in the pool{_departed(books, signature, now)}."]
    matching = sum(len(cls.members) for cls in signature.classes)
    if matching:
        troubled = _in_trouble(books, signature, now)
        why = "draining or in trouble" if troubled else "draining"
        return [f"{_of(matching, total)} could run it, but all of them are {why}.", *troubled]
    classes = books.matching.classes.values()
    lines = []
    for tag in sorted(signature.requires):
        having = sum(len(cls.members) for cls in classes if tag in cls.offer.provides)
        if having < total:
            words = f"{_of(having, total)} {_verb(total, 'provide')} {tag.upper()}"
            lacking = Signature(frozenset({tag}), 1)
            lines.append(f"{words}{'' if having else _departed(books, lacking, now)}.")
    wide = sum(len(cls.members) for cls in classes if cls.offer.slots >= signature.slots)
    if wide < total:
        most = max(cls.offer.slots for cls in classes)
        lines.append(
            f"{_of(wide, total)} {_verb(total, 'have', 'has')} the {signature.slots} slots that one task "
            f"takes; the widest has {most}."
        )
    if len(lines) > 1:
        lines.insert(0, f"0 of {_n(total, 'worker')} can run it{_departed(books, signature, now)}.")
    return lines


def _waiting(books: Books, job: Job, now: float) -> list[str]:
    """Why what is queued is not running."""
    if not job.queued:
        return []
    if job.settling:
        settling = books.settling
        rest_s = max(0.0, settling.until - now)
        if settling.named:
            whom = f"{_n(len(settling.awaited), 'worker')} may still run tasks and did not come back yet"
            return [f"The manager was restarted; {whom}; at most {rest_s:.1f} s more are waited."]
        return [
            "The manager was restarted; tasks that may still run on a worker wait for it to come back, "
            f"{rest_s:.1f} s more."
        ]
    lines = mismatch(books, job, now)
    if lines:
        return lines
    tasks, jobs = _ahead_of(books, job)
    signature = job.signature
    matching = sum(len(cls.members) for cls in signature.classes)
    if tasks:
        lines.append(f"It waits for {_n(tasks, 'task')} of {_n(jobs, 'job')} before it.")
    lines.append(
        f"{_of(matching, len(books.pool.workers))} can run it, with {_n(signature.capacity, 'slot')}; "
        f"{books.pool.busy} of the pool's {_n(books.pool.slots, 'slot')} are taken."
    )
    return lines + _in_trouble(books, signature, now)


def _in_trouble(books: Books, signature: Signature, now: float) -> list[str]:
    """Workers that match, but get nothing but probes."""
    lines = []
    barred = books.quarantine.barred
    for proven, what in ((True, "in quarantine"), (False, "held back")):
        found = [w for w, bar in barred.items() if bar.proven is proven and w.cls in signature.classes]
        if found:
            names = ", ".join(f"{w.id}: {barred[w].reason}" for w in found[:NAMED_MAX])
            more = f", and {len(found) - NAMED_MAX} more" if len(found) > NAMED_MAX else ""
            be = "is" if len(found) == 1 else "are"
            when = _next_probe([barred[w] for w in found], now)
            lines.append(f"{_n(len(found), 'worker')} {be} {what} ({names}{more}); {when}.")
    return lines


def _next_probe(bars: list[Bar], now: float) -> str:
    if any(bar.probe is not None for bar in bars):
        return "a probe task is under way"
    wait_s = min(bar.until for bar in bars) - now
    if isinf(wait_s):
        return "the next task that fits and may run again will be a probe"
    return f"the next probe task follows in {max(0.0, wait_s):.0f} s"


def _ahead_of(books: Books, job: Job) -> tuple[int, int]:
    """Queued tasks, and their jobs, that the workers which match this job would be given before it."""
    rank = (-job.terms.priority, job.user.load, job.id)
    tasks = jobs = 0
    for other in books.jobs.values():
        if other is job or not other.listed or not _share_workers(other.signature, job.signature):
            continue
        if (-other.terms.priority, other.user.load, other.id) < rank:
            tasks += other.queued
            jobs += 1
    return tasks, jobs


def _share_workers(one: Signature, other: Signature) -> bool:
    return one is other or any(cls in other.classes for cls in one.classes)


def _departed(books: Books, signature: Signature, now: float) -> str:
    """That workers which left would have matched, if so."""
    gone = [
        d for d in books.pool.departed if d.worker not in books.pool.workers and signature.matches(d.offer)
    ]
    if not gone:
        return ""
    ago_s = now - max(d.at for d in gone)
    return f"; {len({d.worker for d in gone})} that left could, last seen {ago_s:.0f} s ago"


def _counts(job: Job) -> str:
    counts = job.counts
    done = job.last_seq - counts[TaskState.COMPLETED]
    text = (
        f"Of {_n(job.size, 'task')}, {counts[TaskState.QUEUED]} are queued, {counts[TaskState.RUNNING]} are "
        f"with workers, {counts[TaskState.COMPLETED]} are completed"
    )
    return f"{text}, {done} ended otherwise." if done else f"{text}."


def _n(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def _of(count: int, total: int) -> str:
    return f"{count} of {_n(total, 'worker')}"


def _verb(count: int, plural: str, singular: str = "") -> str:
    return (singular or f"{plural}s") if count == 1 else plural


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")
