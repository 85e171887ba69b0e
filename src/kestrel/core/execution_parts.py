"""What the execution machine of a worker works with: its settings, counters, and what it keeps of an attempt.

Part of `kestrel.core.execution`, which alone uses it, and from which others have the settings. Pure data,
and what the end of a process means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from kestrel.core import execution_events as xe
from kestrel.core.model import AttemptEnd, AttemptId, JobId, TaskIndex


@dataclass(frozen=True, slots=True)
class ExecutionSettings:
    """Every number that steers the machine."""

    slots: int = 1
    queued_max: int = 4000
    """Attempts that wait here; more are given back at once."""
    finished_max: int = 10_000
    """While so many finished attempts are not acknowledged, nothing new is started."""
    finished_bytes_max: int = 64 * 1024 * 1024
    """Likewise, by the size of their reports."""
    held_max: int = 10_000
    """So many attempts can be named in an introduction, until a welcome says otherwise. What runs and what is
    not acknowledged is never more: what is not named counts as not held, and would be run again."""
    report_attempts_max: int = 1000
    report_resend_s: float = 20.0
    """A report that was not acknowledged for so long is sent again, unchanged."""
    handover_s: float = 0.05
    """Of quick tasks so much work is handed to the launcher ahead of the slots."""
    handover_max: int = 128
    announce_s: float = 1.0
    """Shortest time between two announcements of the load."""
    recent_max: int = 10_000
    """Attempts that are done with and still recognised, should they be assigned again."""
    specs_max: int = 10_000
    refuse_s: float = 1.0
    """A job that the owner does not let run here is given back at once the first time it comes, after this
    the second time, then after twice as long …"""
    refuse_s_max: float = 60.0
    """… up to this: a manager that does not heed the owner's wish must not play ball with the worker."""


@dataclass(slots=True)
class JobSpec:
    """A job's specification, and how long its tasks take."""

    spec: Any
    slots: int
    mean_s: float | None = None
    refused: bool = False
    """The owner of this machine does not let it run here."""


@dataclass(frozen=True, slots=True)
class Waiting:
    job: JobId
    task: TaskIndex
    params: Sequence[str] | None
    terms: JobSpec


@dataclass(slots=True)
class Running:
    waiting: Waiting
    stopped: bool = False


@dataclass(slots=True)
class ExecutionCounters:
    """What happened that should be rare, for logs and tests."""

    duplicates: int = 0
    unknown_stops: int = 0
    stale_acknowledgements: int = 0
    old_acknowledgements: int = 0
    """Of another life of the manager than the one that welcomed us."""
    old_welcomes: int = 0
    foreign_tasks: int = 0
    """Of another life of the manager, and dropped."""
    overflowed: int = 0
    refused: int = 0
    """Of jobs that the owner does not let run here."""
    resent: int = 0


@dataclass(slots=True)
class Batch:
    """What one event leads to; its parts are told in the order that `effects` gives them."""

    first: list[xe.ExecutionEffect] = field(default_factory=list)
    endings: list[xe.Finished] = field(default_factory=list)
    stops: list[AttemptId] = field(default_factory=list)
    starts: list[xe.AttemptStart] = field(default_factory=list)
    last: list[xe.ExecutionEffect] = field(default_factory=list)

    def effects(self) -> list[xe.ExecutionEffect]:
        out = self.first
        if self.starts:
            out.append(xe.StartAttempts(self.starts))
        if self.stops:
            out.append(xe.StopProcesses(self.stops))
        if self.endings:
            out.append(xe.KeepFinished(self.endings))
        out.extend(self.last)
        return out


def ending_of(attempt: AttemptId, running: Running, end: xe.ProcessEnd) -> xe.Ending:
    """What the end of a process means for its attempt. A stop that was asked for counts before all else."""
    waiting = running.waiting
    reason = end.reason
    if running.stopped:
        state = AttemptEnd.CANCELLED
        reason = reason or ("stopped before it was started" if end.unstarted else "stopped on request")
    elif end.timed_out:
        state = AttemptEnd.TIMEOUT
    elif end.exit_code == 0 and not end.reason:
        state = AttemptEnd.COMPLETED
    else:
        state = AttemptEnd.FAILED
    return xe.Ending(waiting.job, waiting.task, attempt, state, reason, None if end.unstarted else end.facts)
