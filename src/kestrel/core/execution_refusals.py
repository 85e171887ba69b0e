"""Attempts of jobs that the owner of a worker's machine does not let run there, on their way back.

Part of the execution machine (`kestrel.core.execution`), which alone calls it. Pure.

A manager that was told whose jobs may run here sends no others. One that does not know of such wishes gets
them back, and would send the next ones at once, as fast as messages travel: so the first refusal of a job is
immediate, and each later one waits longer. Nothing is started, reported or lost meanwhile, and the tasks can
be called back or stopped like others that wait.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from kestrel.core.execution_parts import Waiting
from kestrel.core.model import AttemptId, JobId


@dataclass(slots=True)
class _Refused:
    """One job: how often it was refused, and what of it waits to go back."""

    times: int = 0
    due: float = 0.0
    held: dict[AttemptId, Waiting] = field(default_factory=dict)


class Refusals:
    """What is refused, by job."""

    def __init__(self, again_s: float, again_s_max: float, jobs_max: int) -> None:
        self._again_s = again_s
        self._again_s_max = again_s_max
        self._jobs_max = jobs_max
        self._jobs: dict[JobId, _Refused] = {}
        self.held: dict[AttemptId, Waiting] = {}
        """All that waits to go back, in the order in which it came."""

    def refuse(self, job: JobId, attempts: dict[AttemptId, Waiting], now: float) -> bool:
        """Take these in until they are due. True: it is the first time for this job, and that is at once."""
        refused = self._jobs.get(job)
        if refused is None:
            refused = self._jobs[job] = _Refused()
            self._forget_jobs()
        first = not refused.times
        if first or not refused.held:
            wait_s = min(self._again_s_max, self._again_s * 2.0 ** min(refused.times - 1, 16))
            refused.due = now if first else now + wait_s
            refused.times += 1
        refused.held |= attempts
        self.held |= attempts
        return first

    def take_due(self, now: float) -> dict[AttemptId, Waiting]:
        """What has waited long enough."""
        due: dict[AttemptId, Waiting] = {}
        for refused in self._jobs.values():
            if refused.held and refused.due <= now:
                due |= refused.held
                refused.held = {}
        for attempt in due:
            del self.held[attempt]
        return due

    def take(self, attempt: AttemptId) -> Waiting | None:
        """One that is stopped or called back."""
        waiting = self.held.pop(attempt, None)
        if waiting is not None:
            del self._jobs[waiting.job].held[attempt]
        return waiting

    def take_all(self) -> dict[AttemptId, Waiting]:
        """Everything: the worker leaves, or it cannot be named."""
        held, self.held = self.held, {}
        for refused in self._jobs.values():
            refused.held = {}
        return held

    def deadline(self) -> float | None:
        """When `take_due` has something."""
        if not self.held:
            return None
        return min(refused.due for refused in self._jobs.values() if refused.held)

    def pardon(self) -> None:
        """Another life of the manager may know better: what comes next counts as the first time again."""
        self._jobs = {job: refused for job, refused in self._jobs.items() if refused.held}
        for refused in self._jobs.values():
            refused.times = 0

    def _forget_jobs(self) -> None:
        if len(self._jobs) > self._jobs_max:
            idle = next((job for job, refused in self._jobs.items() if not refused.held), None)
            if idle is not None:
                del self._jobs[idle]
