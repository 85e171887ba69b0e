"""What happened to a job, from its results and from what a killed worker had in hand.

Pure; `demo.py` is the caller, `timeline.py` draws the records. Times are Unix seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class Result(Protocol):
    """What is needed of a `kestrel.protocol.messages.TaskResult`."""

    @property
    def task(self) -> int: ...
    @property
    def attempt(self) -> int: ...
    @property
    def worker(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def started(self) -> float: ...
    @property
    def wall_s(self) -> float: ...


@dataclass(frozen=True)
class Kill:
    """A worker that was killed, and the attempts (task, attempt) that it had in hand just before."""

    worker: str
    at: float
    slots: int
    held: Sequence[tuple[int, int]]


def label(worker: str) -> str:
    """The name of a worker for people: its account."""
    return worker.partition("@")[0]


def completed_records(results: Iterable[Result]) -> list[dict[str, Any]]:
    """A record for each attempt that ended with a result."""
    return [
        {
            "worker": label(r.worker),
            "task": r.task,
            "attempt": r.attempt,
            "started": r.started,
            "ended": r.started + r.wall_s,
            "outcome": r.state.lower(),
        }
        for r in results
        if r.worker
    ]


def lost_records(results: Sequence[Result], kill: Kill) -> list[dict[str, Any]]:
    """A record for each attempt that went down with the killed worker.

    Of what it had in hand, attempts that it still reported are not lost. A worker starts attempts in
    the order of their numbers, so the first `slots` of the rest were running: since its last attempt
    ended, as nobody else can know it better. The others had not started; they are `requeued`.
    """
    reported = {r.attempt for r in results}
    lost = sorted((attempt, task) for task, attempt in kill.held if attempt not in reported)
    ends = [r.started + r.wall_s for r in results if label(r.worker) == kill.worker]
    since = min(max(ends, default=kill.at), kill.at)
    return [
        {
            "worker": kill.worker,
            "task": task,
            "attempt": attempt,
            "started": since if place < kill.slots else kill.at,
            "ended": kill.at,
            "outcome": "lost" if place < kill.slots else "requeued",
        }
        for place, (attempt, task) in enumerate(lost)
    ]


def mark(worker: str, what: str, at: float) -> dict[str, Any]:
    """A record of something that happened to a worker: `joined`, `killed` or `lost`."""
    return {"worker": worker, "mark": what, "at": at}
