"""What users ask of a manager: submissions and steering become events, questions become answers.

Called by `Manager` only, within its turns: `change` before the scheduler ran, `answer` after it.
It must never send anything itself before the unit is stored: answers are tells of the unit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from kestrel.core import events as ev
from kestrel.core.model import TaskState
from kestrel.errors import KestrelError, StoreError, UsageError
from kestrel.manager import jobs as books
from kestrel.manager.answers import error_of, named, owned, refusal, tell
from kestrel.manager.intake import check_parameters, check_specification
from kestrel.manager.questions import Questions
from kestrel.manager.unit import Request, Unit
from kestrel.manager.words import Manner
from kestrel.ports import AddJob, AddTasks, CloseJob, JobRecord
from kestrel.protocol import codec
from kestrel.protocol import messages as m
from kestrel.xmpp.jid import bare

if TYPE_CHECKING:
    from kestrel.manager.manager import Manager


class Requests:
    """The users' side of a manager."""

    def __init__(self, manager: Manager) -> None:
        self.manager = manager
        self.questions = Questions(manager)
        self.outputs = self.questions.outputs

    # --- requests that change something ---------------------------------------------------------------

    def change(self, request: Request, unit: Unit, events: list[ev.Event]) -> bool:
        """Turn a changing request into events, writes and an answer; False if it only asks."""
        sender, manner, message = request
        try:
            match message:
                case m.Job():
                    accepted = self._submit(sender, manner, message, unit, events)
                case m.Extend():
                    accepted = self._extend(sender, message, unit, events)
                case m.Cancel():
                    accepted = self._cancel(sender, message, unit, events)
                case m.Drain():
                    accepted = self._drain(sender, message, unit, events)
                case _:
                    return False
        except KestrelError as problem:
            tell(self.manager, unit, request, refusal(self.manager, sender, message, problem))
            return True
        if isinstance(message, m.Job):
            unit.tells.append(lambda: self._tell_submitted(request, accepted))
        else:
            tell(self.manager, unit, request, accepted)
        return True

    def _tell_submitted(self, request: Request, accepted: m.Accepted) -> None:
        """The warning is made when the answer goes out, from the pool as it is then."""
        sender, manner, _ = request
        job = accepted.job
        if job is not None and self.manager.scheduler.has_job(job):
            warning = self.manager.scheduler.warning(job, self.manager.clock.now())
            accepted = msgspec.structs.replace(accepted, warning=warning)
        self.manager.reply(sender, manner, accepted)

    def _submit(
        self, sender: str, manner: Manner, message: m.Job, unit: Unit, events: list[ev.Event]
    ) -> m.Accepted:
        manager = self.manager
        user = bare(sender)
        known = manager.books.submissions.get((user, message.id)) if message.id else None
        if known is not None:
            return m.Accepted(re=message.id, job=known, size=manager.jobs[known].size)
        books.check(message)
        message = books.normal(message)
        params = (message.args or []) if message.queue is None else None
        check_specification(message, books.spec_of(message, user), manager.settings)
        check_parameters(params or (), manager.settings)
        size = message.queue if message.queue is not None else len(params or ())
        self._check_load(user, size)
        self._check_room()
        record = JobRecord(
            job=manager.books.new_job(),
            user=user,
            submission=message.id,
            message=codec.encode(msgspec.structs.replace(message, args=None)),
            size=size,
            open=message.open,
            submitted=manager.clock.wall(),
        )
        entry = books.entry_of(record)
        if manner is Manner.WORDS:
            entry.notify = sender
        manager.books.enter(entry)
        unit.writes.append(AddJob(record, params))
        events.append(ev.JobSubmitted(record.job, books.terms(message, user), size, message.open))
        return m.Accepted(re=message.id, job=record.job, size=size)

    def _check_load(self, user: str, size: int) -> None:
        """Refuse what would make the books grow without bound. Raises `UsageError`."""
        settings, load = self.manager.settings, self.manager.books.load
        if len(load.jobs.get(user, ())) >= settings.jobs_open_per_user_max:
            raise UsageError(
                f"you have {settings.jobs_open_per_user_max} jobs that have not ended",
                hint="wait for some to end; one job with many tasks is cheaper than many jobs",
                code="busy",
            )
        self._check_tasks(user, size)

    def _check_tasks(self, user: str, count: int) -> None:
        """Refuse so many tasks more. Raises `UsageError`."""
        settings, books = self.manager.settings, self.manager.books
        if books.load.tasks + count > settings.tasks_open_max:
            raise UsageError(
                f"the pool holds {settings.tasks_open_max} unfinished tasks at most",
                hint="wait for jobs to end, or submit fewer tasks",
                code="busy",
            )
        most = settings.tasks_open_per_user_max
        if count > most:  # waiting would not help
            raise UsageError(
                f"one user may have {most} tasks queued or running here, and these are {count}",
                hint="submit fewer at a time; who runs the pool can raise the limit (--max-queued)",
                code="too_many",
            )
        if books.unfinished(user, most - count) + count > most:
            raise UsageError(
                f"with these {count} tasks {user} would have more than {most} that are queued or running",
                hint="wait for some to end, or submit fewer tasks",
                code="busy",
            )

    def _check_room(self) -> None:
        """Refuse new work while the store keeps its room for what runs already. Raises `StoreError`."""
        shortage = self.manager.store.shortage()
        if shortage is not None:
            raise StoreError(shortage.text, hint=shortage.hint, retry=True)

    def _extend(self, sender: str, message: m.Extend, unit: Unit, events: list[ev.Event]) -> m.Accepted:
        entry = owned(self.manager, sender, message.job)
        params = message.args
        if message.offset > entry.size:
            raise UsageError(
                f"job {message.job} has {entry.size} tasks, but the addition begins at {message.offset}",
                hint=f"send the tasks from {entry.size} on first",
                code="gap",
            )
        params = params[entry.size - message.offset :]
        if not entry.open:
            if params:
                raise UsageError(f"job {message.job} is closed: no tasks can be added", code="closed")
            return m.Accepted(re=message.id, job=message.job, size=entry.size)
        if entry.size + len(params) > m.TASKS_PER_JOB_MAX:
            raise UsageError(f"a job holds at most {m.TASKS_PER_JOB_MAX} tasks", code="too_large")
        if params:
            self._check_tasks(entry.record.user, len(params))
        if params or message.last:
            check_parameters(params, self.manager.settings, entry.size)
            if params:
                self._check_room()
            self.manager.books.load.grow(entry.record.user, len(params))
            unit.writes.append(AddTasks(message.job, entry.size, params, message.last))
            events.append(ev.JobExtended(message.job, len(params), message.last))
            entry.size += len(params)
            entry.open = not message.last
        return m.Accepted(re=message.id, job=message.job, size=entry.size)

    def _cancel(self, sender: str, message: m.Cancel, unit: Unit, events: list[ev.Event]) -> m.Accepted:
        entry = owned(self.manager, sender, message.job)
        scheduler = self.manager.scheduler
        if entry.cancelled and not entry.record.finished:
            return m.Accepted(re=message.id, job=message.job, size=entry.size)
        if entry.ended or entry.record.finished:
            state = entry.record.state.value
            return m.Accepted(
                re=message.id, job=message.job, size=entry.size, warning=f"it had ended before: {state}"
            )
        if message.tasks.strip():
            tasks = named(self.manager, message.tasks, entry.size)
            alive = (
                [t for t in tasks if _alive(scheduler.task_state(message.job, t))]
                if scheduler.has_job(message.job) and scheduler.size(message.job) == entry.size
                else tasks
            )
            events.append(ev.JobCancelled(message.job, tasks))
            return m.Accepted(re=message.id, job=message.job, size=entry.size, changed=len(alive))
        changed = entry.size
        if scheduler.has_job(message.job):
            counts = scheduler.counts(message.job)
            changed = counts.queued + counts.running
        unit.writes.append(CloseJob(message.job, cancelled=True))
        events.append(ev.JobCancelled(message.job))
        entry.open = False
        entry.cancelled = True
        return m.Accepted(re=message.id, job=message.job, size=entry.size, changed=changed)

    def _drain(self, sender: str, message: m.Drain, unit: Unit, events: list[ev.Event]) -> m.Accepted:
        manager = self.manager
        account = None if manager.access.is_admin(sender) else bare(sender)
        return m.Accepted(re=message.id, changed=manager.roster.drain(message, unit, events, account=account))

    def dismiss(self, whose: str) -> None:
        """This account, or domain, has other rights now: who waits for what he may not have hears that."""
        self.questions.dismiss(whose)

    # --- trouble ---------------------------------------------------------------------------------------

    def refuse_while_store_fails(self, inbox: list[ev.Event | Request]) -> None:
        """Tell users at once that nothing can be stored; what workers report and readers wait for is kept."""
        problem = self.manager.store_problem
        if problem is None or self.manager.is_lapsed:
            return
        kept: list[ev.Event | Request] = []
        for item in inbox:
            if isinstance(item, tuple) and not isinstance(item[2], m.Results):
                sender, manner, message = item
                self.manager.reply(sender, manner, error_of(message.id, problem))
            else:
                kept.append(item)
        inbox[:] = kept

    def tell_of_delay(self, unit: Unit) -> None:
        """The store fails for the first time: those whose requests are under way hear that they wait."""
        problem = self.manager.store_problem
        if problem is None or self.manager.is_lapsed:
            return
        for sender, manner, message in unit.asked:
            text = (
                f"{problem.text}; your request waits in memory and is carried out when the store works again"
            )
            hint = f"{problem.hint}; repeat a submission with the same --id to be sure that it is there once"
            self.manager.reply(sender, manner, m.Error(re=message.id, code="store", text=text, hint=hint))

    def farewell(self, inbox: list[ev.Event | Request], unit: Unit | None) -> None:
        """The manager leaves: whoever waits for an answer hears what to do."""
        asking = [item for item in inbox if isinstance(item, tuple)] + self.questions.unanswered()
        for request in asking if unit is None else [*asking, *unit.questions]:
            self._going(request, "repeat the request: it is safe")
        for request in () if unit is None else unit.asked:
            known_twice = not isinstance(request[2], m.Job) or request[2].id
            hint = (
                "repeat the request: it is safe" if known_twice else "look whether the job is there: `status`"
            )
            self._going(request, hint)

    def _going(self, request: Request, hint: str) -> None:
        sender, manner, message = request
        text = "this manager is leaving; another one takes over or it comes back"
        self.manager.reply(sender, manner, m.Error(re=message.id, code="going", text=text, hint=hint))


def _alive(state: TaskState) -> bool:
    return not state.terminal
