"""The manager's books of jobs: entries by number and by submission, who watches, what is announced.

Called by the rooms of the manager, within its turns. Nothing is announced that is not stored (law 1).
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from kestrel.core import effects as fx
from kestrel.core.model import JobId
from kestrel.manager import jobs as books
from kestrel.manager.jobs import JobEntry
from kestrel.manager.unit import Unit
from kestrel.manager.words import answer_as_words
from kestrel.ports import TimerHandle
from kestrel.protocol import messages as m
from kestrel.xmpp.jid import bare

if TYPE_CHECKING:
    from kestrel.manager.manager import Manager

log = logging.getLogger("kestrel.manager")

COUNT_S = 0.5
"""A user's tasks that have ended are not counted more often."""


class JobBooks:
    """All jobs that one manager knows."""

    def __init__(self, manager: Manager) -> None:
        self.manager = manager
        self.entries: dict[JobId, JobEntry] = {}
        self.submissions: dict[tuple[str, str], JobId] = {}
        self.load = books.Load()
        self.next_job: JobId = 1
        self._ended: dict[str, tuple[float, int]] = {}
        """When the tasks that have ended were counted, and how many they were, of users with so many that it
        matters."""
        self._announce_due: TimerHandle | None = None
        self._changed: dict[JobId, None] = {}
        self._watched: dict[JobId, None] = {}

    def close(self) -> None:
        """Announce nothing more."""
        if self._announce_due is not None:
            self._announce_due.cancel()

    def new_job(self) -> JobId:
        """The next free number."""
        job = self.next_job
        self.next_job += 1
        return job

    def enter(self, entry: JobEntry) -> None:
        """Open the books of a job."""
        record = entry.record
        self.entries[record.job] = entry
        if not entry.ended:
            self.load.enter(record.user, record.job, entry.size)
        if record.submission:
            self.submissions[(record.user, record.submission)] = record.job

    def job_ended(self, effect: fx.RecordJobEnded, unit: Unit) -> None:
        """The record as it ends; forgotten by the scheduler, and told, when that is stored."""
        entry = self.entries[effect.job]
        counts = books.counts_message(self.manager.scheduler.counts(effect.job))
        entry.record = replace(
            entry.record,
            state=effect.state,
            finished=self.manager.clock.wall(),
            counts=counts,
            last=self.manager.scheduler.last_seq(effect.job),
            reruns=self.manager.scheduler.reruns(effect.job),
            size=entry.size,
            open=False,
        )
        entry.open = False
        self._leave(entry.record.user, effect.job, entry.size)
        unit.tells.append(lambda: self._job_gone(effect.job, entry))

    def _leave(self, user: str, job: JobId, size: int) -> None:
        self.load.leave(user, job, size)
        at, ended = self._ended.pop(user, (0.0, 0))
        if ended > size:  # of those that were counted, `size` may have been of this job
            self._ended[user] = at, ended - size

    def _job_gone(self, job: JobId, entry: JobEntry) -> None:
        entry.ended = True
        for worker in entry.told:
            known = self.manager.workers.get(worker)
            if known is not None:
                known.specs.discard(job)
        entry.told.clear()
        self.manager.scheduler.forget(job)
        self.job_changed(job)
        log.info("job_ended", extra={"job": job, "state": entry.record.state.value})
        if entry.notify and self.manager.access.may(entry.notify, "user") is None:
            self.manager.transport.say(bare(entry.notify), answer_as_words(m.Event(job=self.job_info(job))))

    def unfinished(self, user: str, enough: int) -> int:
        """How many tasks of this user are queued or running; not exact if it is `enough` or less.

        Cheap until then. What a look at all jobs of a user found is kept for `COUNT_S`: it can only shrink.
        """
        total = self.load.tasks_of.get(user, 0)
        if total <= enough:
            return total
        now = self.manager.clock.now()
        at, ended = self._ended.get(user, (0.0, 0))
        if now - at > COUNT_S or user not in self._ended:
            ended = sum(self._ended_tasks(job) for job in self.load.jobs[user])
            self._ended[user] = now, ended
        return total - ended

    def _ended_tasks(self, job: JobId) -> int:
        scheduler = self.manager.scheduler
        if not scheduler.has_job(job):
            return 0  # it is about to begin
        counts = scheduler.counts(job)
        return counts.completed + counts.failed + counts.cancelled + counts.timeout + counts.node_fail

    def job_info(self, job: JobId) -> m.JobInfo:
        """The job at a glance; `job` must be known."""
        entry = self.entries[job]
        record = entry.record
        alive = not entry.ended and self.manager.scheduler.has_job(job)
        scheduler = self.manager.scheduler
        return m.JobInfo(
            job=job,
            user=record.user,
            name=entry.message.name,
            command=books.command_text(entry.message),
            state=scheduler.job_state(job).value if alive else record.state.value,
            size=entry.size,
            open=entry.open,
            counts=books.counts_message(scheduler.counts(job)) if alive else record.counts,
            submitted=record.submitted,
            finished=record.finished,
            last=scheduler.last_seq(job) if alive else record.last,
            reruns=scheduler.reruns(job) if alive else record.reruns,
        )

    def watched(self) -> list[JobEntry]:
        """Jobs that somebody watches."""
        return [self.entries[job] for job in self._watched]

    def unwatch(self, job: JobId, watcher: str) -> None:
        """This one does not want to be told of the job any more."""
        watchers = self.entries[job].watchers
        watchers.pop(watcher, None)
        if not watchers:
            self._watched.pop(job, None)

    def watch(self, job: JobId) -> None:
        """Remember that somebody watches the job."""
        self._watched[job] = None

    def job_changed(self, job: JobId) -> None:
        """State or counts changed, and that is stored: wake who waits, tell who watches."""
        entry = self.entries.get(job)
        if entry is None:
            return
        if entry.waiters:
            self.manager.requests.questions.wake(job, entry, self.manager._inbox)
            self.manager._flush_soon()
        if entry.watchers:
            self._changed[job] = None
            if self._announce_due is None:
                delay_s = 0 if entry.ended else self.manager.settings.announce_s
                self._announce_due = self.manager.clock.call_later(delay_s, self._announce)

    def _announce(self) -> None:
        self._announce_due = None
        unit = self.manager._unit
        if unit is not None:  # the scheduler is ahead of the store: told when that has caught up
            unit.tells.append(self._announce)
            return
        if self.manager.is_lapsed:
            self._announce_due = self.manager.clock.call_later(
                self.manager.settings.announce_s, self._announce
            )
            return
        changed, self._changed = self._changed, {}
        for job in changed:
            entry = self.entries[job]
            message = m.Event(job=self.job_info(job))
            for watcher, manner in entry.watchers.items():
                self.manager.reply(watcher, manner, message)
            if entry.ended:
                entry.watchers.clear()
            if not entry.watchers:
                self._watched.pop(job, None)
