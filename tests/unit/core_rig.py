"""A rig for the scheduler: every effect must be expected, and the state must agree after each step."""

from __future__ import annotations

from typing import Any

from kestrel.core import effects as fx
from kestrel.core import events as ev
from kestrel.core.model import (
    AttemptEnd,
    AttemptOutcome,
    HeldByWorker,
    JobTerms,
    SchedulerSettings,
    WorkerOffer,
    first_attempt,
    fold_tags,
)
from kestrel.core.scheduler import Scheduler

EPOCH = 7
FIRST = first_attempt(EPOCH)
OLD = first_attempt(EPOCH - 1)


class Rig:
    """Sends events and insists on exactly the effects that the test names."""

    def __init__(self, *, epoch: int = EPOCH, **settings: Any) -> None:
        # Tests let time pass in leaps: only those about standstills want them seen as such.
        self.settings = SchedulerSettings(**{"standstill_s": 3600.0, **settings})
        self.scheduler = Scheduler(self.settings, epoch)
        self.now = 1000.0
        self.numbers: dict[str, int] = {}

    def effects(self, *events: ev.Event) -> list[fx.Effect]:
        """Apply, check the whole state, return the effects."""
        effects = self.scheduler.handle(events, self.now)
        self.scheduler.check_invariants()
        assert self.scheduler.handle([], self.now) == [], "effects were left over"
        return effects

    def expect(self, *expected: fx.Effect, after: ev.Event | list[ev.Event]) -> None:
        """These effects in this order, and no others."""
        events = after if isinstance(after, list) else [after]
        assert self.effects(*events) == list(expected)

    def given(self, *events: ev.Event) -> list[fx.AssignTasks]:
        """Apply; only the assignments matter here."""
        return [e for e in self.effects(*events) if isinstance(e, fx.AssignTasks)]

    def join(
        self, name: str, slots: int = 1, provides: str = "", held: list[HeldByWorker] | None = None
    ) -> Any:
        return self.given(joined(name, slots, provides, held))

    def submit(self, job: int, size: int, *, is_open: bool = False, **terms: Any) -> list[fx.AssignTasks]:
        return self.given(submitted(job, size, is_open=is_open, **terms))

    def report(self, name: str, *outcomes: AttemptOutcome) -> ev.AttemptsReported:
        """The next report of a worker, as an event."""
        self.numbers[name] = self.numbers.get(name, 0) + 1
        return ev.AttemptsReported(name, self.numbers[name], outcomes)


def submitted(
    job: int, size: int, *, is_open: bool = False, user: str = "ann", **terms: Any
) -> ev.JobSubmitted:
    terms["requires"] = fold_tags(terms.get("requires", ""))
    return ev.JobSubmitted(job, JobTerms(user, **terms), size, is_open)


def joined(
    name: str, slots: int = 1, provides: str = "", held: list[HeldByWorker] | None = None
) -> ev.WorkerJoined:
    return ev.WorkerJoined(name, WorkerOffer(slots, fold_tags(provides)), held or [])


def ended(
    job: int, task: int, attempt: int, end: AttemptEnd = AttemptEnd.COMPLETED, wall_s: float = 10.0
) -> AttemptOutcome:
    return AttemptOutcome(job, task, attempt, end, wall_s, f"report of {attempt}")
