"""Compares a live scheduler with one that is built anew from the store, in all that is stored.

What is not stored (which worker has what) is of course not compared: a running task is a queued one to
the store. Called by the checkers.
"""

from __future__ import annotations

from collections.abc import Iterable

from kestrel.core import events as ev
from kestrel.core.model import SchedulerSettings, TaskState
from kestrel.core.scheduler import Scheduler
from kestrel.ports import StoreContent

_TASK = "(state, failures, losses, given out, counted, cancelling)"
_AS_STORED = bytes(TaskState.QUEUED if b == TaskState.RUNNING else b for b in range(256))
"""A running task is a queued one to the store."""
_ENDS = ("completed", "failed", "cancelled", "timeout", "node_fail")


def differences(live: Scheduler, settings: SchedulerSettings, content: StoreContent, now: float) -> list[str]:
    """What differs, in words; empty if nothing. The store's content is used up."""
    rebuilt = Scheduler(settings, content.epoch)
    rebuilt.handle([ev.JobRestored(r) for r in content.unfinished], now)
    rebuilt.check_invariants()
    found: list[str] = []
    for restored in content.unfinished:
        job = restored.job
        if not live.has_job(job):
            found.append(f"job {job} is stored as unfinished, and unknown to the live scheduler")
            continue
        found += _job_differences(live, rebuilt, job)
    ended = {r.job for r in content.jobs} - {r.job for r in content.unfinished}
    found += [f"job {job} is stored as ended, but lives" for job in sorted(ended) if live.has_job(job)]
    return found + _pool_differences(live, content)


def _pool_differences(live: Scheduler, content: StoreContent) -> list[str]:
    """Who is there is stored before anybody hears of it; who is still awaited was there."""
    known = live.workers().keys() | live._books.settling.awaited.keys()
    odd = sorted(known ^ set(content.workers or ()))
    return [f"{worker} is in the pool only {'live' if worker in known else 'in the store'}" for worker in odd]


def _job_differences(live: Scheduler, rebuilt: Scheduler, job: int) -> list[str]:
    mine, theirs = _summary(live, job), _summary(rebuilt, job)
    found = [
        f"job {job}: {what} {mine[what]} live, {theirs[what]} rebuilt"
        for what in mine
        if mine[what] != theirs[what]
    ]
    if mine["size"] == theirs["size"]:
        a, b = live._job(job), rebuilt._job(job)
        tasks: Iterable[int] = a.marks.keys() | b.marks.keys()
        if a.states.translate(_AS_STORED) != b.states.translate(_AS_STORED):
            tasks = range(live.size(job))
        for task in sorted(tasks):
            of_a, of_b = _of_task(live, job, task), _of_task(rebuilt, job, task)
            if of_a != of_b:
                found.append(f"task {job}_{task}: {_TASK} {of_a} live, {of_b} rebuilt")
    return found


def _summary(scheduler: Scheduler, job: int) -> dict[str, object]:
    counts = scheduler.counts(job)
    return {
        "size": scheduler.size(job),
        "last seq": scheduler.last_seq(job),
        "open": scheduler.is_open(job),
        "reruns": scheduler.reruns(job),
        "ended tasks": [getattr(counts, name) for name in _ENDS],
    }


def _of_task(scheduler: Scheduler, job: int, task: int) -> tuple[object, ...]:
    state = scheduler.task_state(job, task)
    if state.terminal:
        return (state.name,)
    mark = scheduler._job(job).marks.get(task)
    counted = () if mark is None else tuple(mark.counted)
    given_out = scheduler.was_given_out(job, task)
    cancelling = mark is not None and mark.cancelling
    return TaskState.QUEUED.name, *scheduler.trouble(job, task), given_out, counted, cancelling
