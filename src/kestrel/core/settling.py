"""The grace period after a restart of the manager: which jobs wait, and for which workers.

Tasks of restored jobs may still run on workers of the life before. They are given to nobody else until
all of these workers have come back or are known to be gone, at the latest at `until`. Only keeps count;
what follows from the end is decided by `dispatch`. Used by the other modules of core.
"""

from __future__ import annotations

from collections.abc import Sequence

from kestrel.core.jobs import Job
from kestrel.core.model import WorkerId


class Settling:
    """Restored jobs that wait, and the workers they wait for. Memory: O(workers of the last life)."""

    def __init__(self, settle_s: float) -> None:
        self._settle_s = settle_s
        self.jobs: dict[Job, None] = {}
        """Jobs of which nothing is given out yet."""
        self.until = 0.0
        """When they wait no longer, whoever is missing; of meaning only while `active`."""
        self.named = False
        """Whether it is known who was there; if not, the whole time is waited."""
        self.awaited: dict[WorkerId, None] = {}
        """Who was there and has neither come back nor been reported gone."""

    @property
    def active(self) -> bool:
        """Whether anything ends when the time is over."""
        return bool(self.jobs or self.awaited)

    def restore(self, job: Job, now: float) -> None:
        """One more job waits."""
        self._begin(now)
        job.settling = True
        self.jobs[job] = None

    def expect(self, workers: Sequence[WorkerId] | None, now: float) -> None:
        """Who was there; None: nobody knows."""
        if workers is not None:
            self._begin(now)
            self.named = True
            self.awaited = dict.fromkeys(workers)

    def _begin(self, now: float) -> None:
        if not self.active:
            self.until = now + self._settle_s

    def arrived(self, worker: WorkerId) -> bool:
        """It came back, or it never will; whether it was awaited."""
        return self.awaited.pop(worker, self) is None

    def drop(self, job: Job) -> None:
        """The job waits no more: it has ended, or nothing of it is wanted."""
        if job.settling:
            job.settling = False
            del self.jobs[job]

    def extend(self, gap_s: float) -> None:
        """Time that stood still is no time in which anybody could have come back."""
        if self.active:
            self.until += gap_s

    def is_over(self, now: float) -> bool:
        """Whether all who were there have come back or are gone, or the time is up."""
        return now >= self.until or (self.named and not self.awaited)

    def finish(self) -> tuple[list[Job], list[WorkerId]]:
        """The jobs that waited, and those who did not come back. Nothing is waited for any more."""
        jobs, missing = list(self.jobs), list(self.awaited)
        self.jobs.clear()
        self.awaited.clear()
        for job in jobs:
            job.settling = False
        return jobs, missing
