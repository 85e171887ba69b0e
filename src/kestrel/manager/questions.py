"""What users ask without changing anything: states, tasks, results, workers, explanations.

Called by `Manager` within its turns, after the scheduler ran. It must never send anything itself before
the unit is stored, but for answers that hold no state (nobody waits any longer).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from kestrel.core import events as ev
from kestrel.core.model import JobId, TaskIndex, TaskState
from kestrel.errors import KestrelError, UsageError
from kestrel.manager.access import is_of
from kestrel.manager.answers import known, may_touch, named, owned, refusal, tell
from kestrel.manager.intake import WORD_BYTES_MAX
from kestrel.manager.jobs import JobEntry, Waiter
from kestrel.manager.outputs import Outputs
from kestrel.manager.poolview import pool_status
from kestrel.manager.unit import Request, Unit
from kestrel.manager.words import HELP, Manner
from kestrel.ports import ReadResults, ReadTaskRange, ReadTaskResults
from kestrel.protocol import codec
from kestrel.protocol import messages as m
from kestrel.xmpp.jid import bare

if TYPE_CHECKING:
    from kestrel.manager.manager import Manager

ANSWER_HEAD_BYTES = 8000
"""Room in an answer for everything but its list."""
STORY_LINES_MAX = 200
"""Latest entries of a task's story that an answer holds."""
STATE_WORDS = {state: state.name for state in TaskState}


class Questions:
    """Answers, and the readers who wait for results."""

    def __init__(self, manager: Manager) -> None:
        self.manager = manager
        self.outputs = Outputs(manager)
        self._waiting: dict[JobId, None] = {}
        self._waiter_count = 0

    def answer(self, request: Request, unit: Unit) -> None:
        """Answer what only asks, as of this unit."""
        sender, _, message = request
        try:
            match message:
                case m.Status():
                    tell(self.manager, unit, request, self._status(sender, message))
                case m.Results():
                    self._results(request, message, unit)
                case m.ListTasks():
                    self._list_tasks(request, message, unit)
                case m.Output():
                    self.outputs.answer(request, message, owned(self.manager, sender, message.job), unit)
                case m.Watch():
                    self._watch(request, message, unit)
                case m.Pool():
                    tell(self.manager, unit, request, pool_status(self.manager, message))
                case m.Explain():
                    self._explain(request, message, unit)
                case m.Help():
                    tell(self.manager, unit, request, m.Text(re=message.id, text=HELP))
                case _:
                    raise UsageError(f"cannot answer {type(message).__name__}")
        except KestrelError as problem:
            tell(self.manager, unit, request, refusal(self.manager, sender, message, problem))

    def _status(self, sender: str, message: m.Status) -> m.JobStatus:
        manager = self.manager
        if message.job is not None:
            owned(manager, sender, message.job)
            numbers = [message.job]
        else:
            user = bare(sender)
            numbers = [j for j, e in manager.jobs.items() if message.all or e.record.user == user]
        workers, slots, busy = manager.scheduler.totals()
        jobs: list[m.JobInfo] = []
        room = manager.settings.stanza_bytes_max // 2
        for job in reversed(numbers):
            info = manager.books.job_info(job)
            if not may_touch(manager, sender, manager.jobs[job]):
                info = msgspec.structs.replace(info, name="", command="")
            room -= 1 + codec.wire_size(msgspec.json.encode(info))
            if room < 0:
                break
            jobs.append(info)
        jobs.reverse()
        return m.JobStatus(re=message.id, jobs=jobs, workers=workers, slots=slots, busy=busy)

    def _explain(self, request: Request, message: m.Explain, unit: Unit) -> None:
        manager = self.manager
        entry = owned(self.manager, request[0], message.job)
        if message.task is not None and message.task >= entry.size:
            raise UsageError(f"job {message.job} has no task {message.task}: it has {entry.size}")
        if entry.ended or not manager.scheduler.has_job(message.job):
            if message.task is None:
                lines = [f"The job has ended: {entry.record.state.value}."]
                tell(self.manager, unit, request, m.Explanation(re=message.id, job=message.job, lines=lines))
                return
            unit.read(
                ReadTaskResults(message.job, [message.task]),
                lambda found: self._tell_ended_task(request, message, found),
            )
            return
        now = manager.clock.now()
        lines = manager.scheduler.explain(message.job, message.task, now)
        story = (
            []
            if message.task is None
            else manager.scheduler.story(message.job, message.task, now)[-STORY_LINES_MAX:]
        )
        tell(
            self.manager,
            unit,
            request,
            m.Explanation(re=message.id, job=message.job, task=message.task, lines=lines, story=story),
        )

    def _tell_ended_task(
        self, request: Request, message: m.Explain, found: list[tuple[int, m.TaskResult]]
    ) -> None:
        sender, manner, _ = request
        lines = []
        for _seq, r in found:
            how = r.reason or (f"signal {r.signal}" if r.signal else f"exit code {r.exit_code}")
            where = f" on {r.worker}" if r.worker else ""
            lines.append(
                f"Task {message.job}_{r.task} ended: {r.state} ({how}){where} after {r.wall_s:.3g} s."
            )
        self.manager.reply(
            sender, manner, m.Explanation(re=message.id, job=message.job, task=message.task, lines=lines)
        )

    def _watch(self, request: Request, message: m.Watch, unit: Unit) -> None:
        sender, manner, _ = request
        entry = owned(self.manager, sender, message.job)
        if message.stop:
            self.manager.books.unwatch(message.job, sender)
        elif (
            sender not in entry.watchers and len(entry.watchers) >= self.manager.settings.watchers_per_job_max
        ):
            raise UsageError(f"job {message.job} has too many watchers already", code="busy")
        elif not entry.ended:
            entry.watchers[sender] = manner
            self.manager.books.watch(message.job)
        unit.tells.append(
            lambda: self.manager.reply(
                sender, manner, m.JobStatus(re=message.id, jobs=[self.manager.books.job_info(message.job)])
            )
        )

    # --- results --------------------------------------------------------------------------------------

    def _results(self, request: Request, message: m.Results, unit: Unit) -> None:
        sender, manner, _ = request
        entry = owned(self.manager, sender, message.job)
        if message.tasks.strip():
            chosen = named(self.manager, message.tasks, entry.size)
            tasks = chosen[message.after :][: message.limit]
            unit.read(
                ReadTaskResults(message.job, tasks),
                lambda found: self._tell_named_results(request, message, found, tasks, len(chosen)),
            )
            return
        last = self._last(message.job, entry)
        if message.wait and last <= message.after and not entry.record.finished:
            settings = self.manager.settings
            if self._waiter_count < settings.waiters_max:
                until = self.manager.clock.now() + settings.wait_s_max
                others = [w for w in entry.waiters if not message.id or _key(w) != (sender, message.id)]
                self._keep_waiters(message.job, entry, [*others, Waiter(sender, manner, message, until)])
                return
        unit.read(
            ReadResults(message.job, message.after, message.limit),
            lambda found: self._tell_results(request, message, found),
        )

    def _tell_results(
        self,
        request: Request,
        message: m.Results,
        found: list[tuple[int, m.TaskResult]],
    ) -> None:
        """One page, cut to what fits into a stanza."""
        sender, manner, _ = request
        entry = self.manager.jobs[message.job]
        if manner is Manner.WORDS:
            found = found[: message.limit]
        else:
            found = _fitting(found, self.manager.settings.stanza_bytes_max)
        last = found[-1][0] if found else message.after
        done = bool(entry.record.finished) and last >= self._last(message.job, entry)
        page = m.ResultPage(
            re=message.id, job=message.job, results=[r for _, r in found], last=last, done=done
        )
        self.manager.reply(sender, manner, page)

    def _tell_named_results(
        self,
        request: Request,
        message: m.Results,
        found: list[tuple[int, m.TaskResult]],
        tasks: list[int],
        count: int,
    ) -> None:
        """Results of tasks that were named; the cursor counts the names that were looked at."""
        sender, manner, _ = request
        fitting = found if manner is Manner.WORDS else _fitting(found, self.manager.settings.stanza_bytes_max)
        seen = len(tasks)
        if len(fitting) < len(found):
            seen = tasks.index(found[len(fitting)][1].task)
        last = message.after + seen
        done = last >= count
        results = [r for _, r in fitting]
        page = m.ResultPage(
            re=message.id, job=message.job, results=results, last=0 if done else last, done=done
        )
        self.manager.reply(sender, manner, page)

    def _last(self, job: JobId, entry: JobEntry) -> int:
        scheduler = self.manager.scheduler
        return scheduler.last_seq(job) if scheduler.has_job(job) else entry.record.last

    def _keep_waiters(self, job: JobId, entry: JobEntry, waiters: list[Waiter]) -> None:
        """These wait for results of the job from now on, and no others."""
        self._waiter_count += len(waiters) - len(entry.waiters)
        entry.waiters = waiters
        if waiters:
            self._waiting[job] = None
        else:
            self._waiting.pop(job, None)

    def wake(self, job: JobId, entry: JobEntry, inbox: list[ev.Event | Request]) -> None:
        """Results came in: whoever waits for more than there was asks again."""
        last = self._last(job, entry)
        still: list[Waiter] = []
        for waiter in entry.waiters:
            if last > waiter.request.after or entry.record.finished:
                inbox.append((waiter.sender, waiter.manner, waiter.request))
            else:
                still.append(waiter)
        self._keep_waiters(job, entry, still)

    def _list_tasks(self, request: Request, message: m.ListTasks, unit: Unit) -> None:
        owned(self.manager, request[0], message.job)
        wanted = {s.upper() for s in message.states}
        unknown = wanted - set(STATE_WORDS.values())
        if unknown:
            raise UsageError(
                f"there is no task state {sorted(unknown)[0]!r}",
                hint="states: " + ", ".join(STATE_WORDS.values()),
            )
        scheduler = self.manager.scheduler
        if not scheduler.has_job(message.job):
            self._list_ended(request, message, wanted, unit)
            return
        rows: list[m.TaskInfo] = []
        more = False
        index: TaskIndex
        for index in range(max(0, message.after + 1), scheduler.size(message.job)):
            state = STATE_WORDS[scheduler.task_state(message.job, index)]
            if wanted and state not in wanted:
                continue
            if len(rows) == message.limit:
                more = True
                break
            where = scheduler.task_worker(message.job, index)
            worker, attempt = where if where is not None else ("", 0)
            rows.append(m.TaskInfo(task=index, state=state, worker=worker, attempt=attempt))
        tell(self.manager, unit, request, self._task_list(message, rows, more=more))

    def _list_ended(self, request: Request, message: m.ListTasks, wanted: set[str], unit: Unit) -> None:
        sender, manner, _ = request

        def tell(found: list[tuple[int, m.TaskResult]]) -> None:
            rows = [
                m.TaskInfo(task=r.task, state=r.state, worker=r.worker, attempt=r.attempt)
                for _, r in found[: message.limit]
            ]
            self.manager.reply(
                sender, manner, self._task_list(message, rows, more=len(found) > message.limit)
            )

        size = known(
            self.manager, message.job
        ).size  # beyond it there are none, and numbers that the store cannot hold
        first = min(max(0, message.after + 1), size)
        unit.read(ReadTaskRange(message.job, first, frozenset(wanted), message.limit + 1), tell)

    def _task_list(self, message: m.ListTasks, rows: list[m.TaskInfo], *, more: bool) -> m.TaskList:
        """As many rows as a stanza holds."""
        room = self.manager.settings.stanza_bytes_max - ANSWER_HEAD_BYTES
        fitting: list[m.TaskInfo] = []
        for row in rows:
            room -= 100 + WORD_BYTES_MAX * len(row.worker)
            if room < 0 and fitting:
                break
            fitting.append(row)
        more = more or len(fitting) < len(rows)
        return m.TaskList(re=message.id, job=message.job, tasks=fitting, more=more)

    # --- time, loss ------------------------------------------------------------------------------------

    def expire(self) -> None:
        """Answer what waited too long: an empty page, or that the worker did not answer."""
        manager = self.manager
        now = manager.clock.now()
        for job in list(self._waiting):
            entry = manager.jobs[job]
            late = [w for w in entry.waiters if w.until <= now]
            if late:
                self._keep_waiters(job, entry, [w for w in entry.waiters if w.until > now])
            for waiter in late:
                asked = waiter.request
                page = m.ResultPage(re=asked.id, job=job, last=asked.after)
                manager.reply(waiter.sender, waiter.manner, page)
        self.outputs.expire(now)

    def unanswered(self) -> list[Request]:
        """Who waits for results or for a worker's output."""
        waiting = [w for job in self._waiting for w in self.manager.jobs[job].waiters]
        return [*((w.sender, w.manner, w.request) for w in waiting), *self.outputs.unanswered()]

    def dismiss(self, whose: str) -> None:
        """This account, or domain, has other rights now: it waits no more for what it may not have."""
        manager = self.manager
        text, hint = "you may not see this job any more", "ask an administrator of the pool"

        def end(sender: str, manner: Manner, re: str) -> None:
            error = m.Error(re=re, code="not_allowed", text=text, hint=hint)
            manager.reply_now(sender, manner, error)

        for job in list(self._waiting):
            entry = manager.jobs[job]
            lost = [
                w for w in entry.waiters if is_of(w.sender, whose) and not may_touch(manager, w.sender, entry)
            ]
            if lost:
                self._keep_waiters(job, entry, [w for w in entry.waiters if w not in lost])
            for waiter in lost:
                end(waiter.sender, waiter.manner, waiter.request.id)
        for entry in manager.books.watched():
            for sender, manner in list(entry.watchers.items()):
                if is_of(sender, whose) and not may_touch(manager, sender, entry):
                    manager.books.unwatch(entry.record.job, sender)
                    end(sender, manner, "")
        for sender, manner, request in self.outputs.drop(whose):
            end(sender, manner, request.id)

    def forget_sender(self, sender: str) -> None:
        """The user left: nobody waits there any more."""
        for job in list(self._waiting):
            entry = self.manager.jobs[job]
            self._keep_waiters(job, entry, [w for w in entry.waiters if w.sender != sender])
        for entry in self.manager.books.watched():
            self.manager.books.unwatch(entry.record.job, sender)


def _key(waiter: Waiter) -> tuple[str, str]:
    """By which a repeated request is recognised."""
    return waiter.sender, waiter.request.id


def _fitting(found: list[tuple[int, m.TaskResult]], bytes_max: int) -> list[tuple[int, m.TaskResult]]:
    """The longest beginning (at least one) whose JSON surely fits; JSON may escape a character to six."""
    room = bytes_max - 1000
    for i, (_, r) in enumerate(found):
        size = 400 + len(r.reason) + len(r.worker)
        for text in (r.out, r.err, *r.params):
            plain = len(text.encode())
            size += 6 * plain if plain < 256 else codec.wire_size(msgspec.json.encode(text))
        room -= size
        if room < 0 and i:
            return found[:i]
    return found
