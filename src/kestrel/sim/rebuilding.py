"""Compares a live scheduler with one that is built anew from the store, in all that is stored.

What is not stored (which worker has what) is of course not compared: a running task is a queued one to
the store. Called by the checkers.
"""

from __future__ import annotations

from kestrel.core import events as ev
from kestrel.core.model import SchedulerSettings, TaskState
from kestrel.core.scheduler import Scheduler
from kestrel.ports import StoreContent

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
    return found


def _job_differences(live: Scheduler, rebuilt: Scheduler, job: int) -> list[str]:
    found = []
    for what, a, b in (
        ("size", live.size(job), rebuilt.size(job)),
        ("last seq", live.last_seq(job), rebuilt.last_seq(job)),
        ("open", live.is_open(job), rebuilt.is_open(job)),
        ("reruns", live.reruns(job), rebuilt.reruns(job)),
        ("counts", _ends(live, job), _ends(rebuilt, job)),
    ):
        if a != b:
            found.append(f"job {job}: {what} {a} live, {b} rebuilt")
    if live.size(job) == rebuilt.size(job):
        for task in range(live.size(job)):
            mine, theirs = live.task_state(job, task), rebuilt.task_state(job, task)
            if _stored(mine) is not theirs:
                found.append(f"task {job}_{task}: {mine.name} live, {theirs.name} rebuilt")
            elif not mine.terminal and live.trouble(job, task) != rebuilt.trouble(job, task):
                a, b = live.trouble(job, task), rebuilt.trouble(job, task)
                found.append(f"task {job}_{task}: failures and losses {a} live, {b} rebuilt")
    return found


def _stored(state: TaskState) -> TaskState:
    return state if state.terminal else TaskState.QUEUED


def _ends(scheduler: Scheduler, job: int) -> list[int]:
    counts = scheduler.counts(job)
    return [getattr(counts, name) for name in _ENDS]
