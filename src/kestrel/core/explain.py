"""Why a job or a task is not running, in sentences with counts, the most important first.

Only reads. May cost as much as there are jobs and classes of workers: people ask, not events.
Called by `scheduler`.
"""

from __future__ import annotations

from math import isinf
from typing import Final

from kestrel.core.addresses import Pattern, matching, meant_otherwise
from kestrel.core.books import Books
from kestrel.core.jobs import Job
from kestrel.core.model import JobTerms, TaskIndex, TaskState, WorkerId, WorkerOffer
from kestrel.core.pool import Worker
from kestrel.core.quarantine import Bar
from kestrel.core.signatures import Crew, Signature, mask_of, may_run

NAMED_MAX: Final = 3
"""So many workers, patterns or lists of users are named in one sentence."""


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
    terms = job.terms
    total = len(books.pool.workers)
    if not total:
        return [f"There are no workers in the pool{_departed(books, terms, now)}."]
    fitting = sum(1 for _ in signature.members())
    if fitting:
        troubled = _in_trouble(books, signature, now)
        why = "draining, away or in trouble" if troubled else "draining or away"
        return [f"{_of(fitting, total)} could run it, but all of them are {why}.", *troubled]
    meant = [w for w in books.pool.workers.values() if not terms.workers or matching(terms.workers, w.id)]
    if not meant:
        only = JobTerms(terms.user, workers=terms.workers)
        verb = "means" if len(terms.workers) == 1 else "mean"
        whom = f"none of the {total} workers" if total > 1 else "not the one worker of the pool"
        lines = [f"{_patterns(terms.workers)} {verb} {whom}{_departed(books, only, now)}."]
        for pattern in terms.workers[:NAMED_MAX]:
            other = meant_otherwise(pattern, books.pool.workers)
            if other is not None:
                lines.append(f"Without @ a pattern means a domain; `{other}` would mean somebody.")
        return lines
    lines = _lacking(books, terms, meant, now)
    lines += _unwilling(job, [w for w in meant if _able(terms, w.offer)])
    if len(lines) > 1:
        lines.insert(0, f"0 of {_n(total, 'worker')} can run it{_departed(books, terms, now)}.")
    if len(meant) < total:
        verb = "means" if len(terms.workers) == 1 else "mean"
        lines.insert(0, f"{_patterns(terms.workers)} {verb} {_of(len(meant), total)}.")
    return lines


def _lacking(books: Books, terms: JobTerms, meant: list[Worker], now: float) -> list[str]:
    """What the workers that are meant do not offer."""
    lines = []
    count = len(meant)
    of_these = _of(0, count)[1:] if len(meant) == len(books.pool.workers) else f" of these {count}"
    for tag in sorted(terms.requires):
        having = sum(tag in w.offer.provides for w in meant)
        if having < count:
            words = f"{having}{of_these} {_verb(count, 'provide')} {tag.upper()}"
            only = JobTerms(terms.user, requires=frozenset({tag}))
            lines.append(f"{words}{'' if having else _departed(books, only, now)}.")
    wide = sum(w.offer.slots >= terms.slots for w in meant)
    if wide < count:
        most = max(w.offer.slots for w in meant)
        lines.append(
            f"{wide}{of_these} {_verb(count, 'have', 'has')} the {terms.slots} slots that one task "
            f"takes; the widest has {most}."
        )
    return lines


def _unwilling(job: Job, able: list[Worker]) -> list[str]:
    """That the owners of workers which could run it do not take this user's jobs."""
    refusing = [w for w in able if not may_run(job, w)]
    if not refusing:
        return []
    whose = list({_patterns(w.offer.users): None for w in refusing})
    more = f" or others ({len(whose) - NAMED_MAX} more lists)" if len(whose) > NAMED_MAX else ""
    take = "that matches takes" if len(refusing) == 1 else "that match take"
    return [
        f"{_n(len(refusing), 'worker')} {take} only the jobs of {'; or of '.join(whose[:NAMED_MAX])}{more}, "
        f"and not those of {job.user.name}: that is what their owners chose."
    ]


def _able(terms: JobTerms, offer: WorkerOffer) -> bool:
    return terms.slots <= offer.slots and terms.requires <= offer.provides


def _could(terms: JobTerms, worker: WorkerId, offer: WorkerOffer) -> bool:
    """Whether a worker, there or not, may run tasks of such a job."""
    return (
        _able(terms, offer)
        and (not terms.workers or matching(terms.workers, worker))
        and (not offer.users or matching(offer.users, terms.user))
    )


def _patterns(patterns: tuple[Pattern, ...]) -> str:
    shown = ", ".join(f"`{pattern}`" for pattern in patterns[:NAMED_MAX])
    return f"{shown} and {len(patterns) - NAMED_MAX} more" if len(patterns) > NAMED_MAX else shown


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
    fitting = sum(1 for _ in signature.members())
    if tasks:
        lines.append(f"It waits for {_n(tasks, 'task')} of {_n(jobs, 'job')} before it.")
    lines.append(
        f"{_of(fitting, len(books.pool.workers))} can run it, with {_n(signature.capacity, 'slot')}; "
        f"{books.pool.busy} of the pool's {_n(books.pool.slots, 'slot')} are taken."
    )
    return lines + _in_trouble(books, signature, now)


def _in_trouble(books: Books, signature: Signature, now: float) -> list[str]:
    """Workers that match, but get nothing but probes."""
    lines = []
    barred = books.quarantine.barred
    for proven, what in ((True, "in quarantine"), (False, "held back")):
        found = [w for w, bar in barred.items() if bar.proven is proven and signature.fits(w)]
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
    mine = _mask(job.signature)
    shares: dict[Signature, bool] = {}
    for other in books.jobs.values():
        if other is job or not other.listed:
            continue
        signature = other.signature
        if signature not in shares:
            shares[signature] = bool(_mask(signature) & mine)
        if not shares[signature]:
            continue
        if (-other.terms.priority, other.user.load, other.id) < rank:
            tasks += other.queued
            jobs += 1
    return tasks, jobs


def _mask(signature: Signature) -> int:
    """The numbers of its workers, as bits."""
    if isinstance(signature, Crew):
        return signature.mask
    return mask_of(signature.members())


def _departed(books: Books, terms: JobTerms, now: float) -> str:
    """That workers which left would have matched, if so."""
    gone = [
        d
        for d in books.pool.departed
        if d.worker not in books.pool.workers and _could(terms, d.worker, d.offer)
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
