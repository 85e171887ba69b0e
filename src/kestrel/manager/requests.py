"""What users ask of a manager: submissions and steering become events, questions become answers.

Called by `Manager` only, within its turns: `change` before the scheduler ran, `answer` after it.
It must never send anything itself before the unit is stored: answers are tells of the unit.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Literal

import msgspec

from kestrel.core import events as ev
from kestrel.core.model import JobId, TaskIndex, TaskState
from kestrel.core.pool import WorkerView
from kestrel.errors import InternalError, KestrelError, UsageError
from kestrel.manager import jobs as books
from kestrel.manager.intake import WORD_BYTES_MAX, check_parameters, check_specification
from kestrel.manager.jobs import JobEntry, Waiter
from kestrel.manager.outputs import Outputs
from kestrel.manager.words import HELP, Manner
from kestrel.ports import AddJob, AddTasks, CloseJob, JobRecord, ReadResults, ReadTaskRange, ReadTaskResults
from kestrel.protocol import codec
from kestrel.protocol import messages as m
from kestrel.protocol.ranges import parse_ranges

if TYPE_CHECKING:
    from kestrel.manager.manager import Manager, Request, Unit

ANSWER_HEAD_BYTES = 8000
"""Room in an answer for everything but its list."""
REASON_CHARS_SHOWN = 200
STORY_LINES_MAX = 200
"""Latest entries of a task's story that an answer holds."""
STATE_WORDS = {state: state.name for state in TaskState}


class Requests:
    """The users' side of a manager."""

    def __init__(self, manager: Manager) -> None:
        self.manager = manager
        self.outputs = Outputs(manager)
        self._waiting: dict[JobId, None] = {}
        self._waiter_count = 0

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
                    accepted = self._drain(sender, message, events)
                case _:
                    return False
        except KestrelError as problem:
            self._tell(unit, request, self._refusal(message, problem))
            return True
        if isinstance(message, m.Job):
            unit.tells.append(lambda: self._tell_submitted(request, accepted))
        else:
            self._tell(unit, request, accepted)
        return True

    def _tell(self, unit: Unit, request: Request, message: m.Message) -> None:
        sender, manner, _ = request
        unit.tells.append(lambda: self.manager.reply(sender, manner, message))

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
        user = _bare(sender)
        known = manager.submissions.get((user, message.id)) if message.id else None
        if known is not None:
            return m.Accepted(re=message.id, job=known, size=manager.jobs[known].size)
        books.check(message)
        message = books.normal(message)
        params = (message.args or []) if message.queue is None else None
        check_specification(message, books.spec_of(message), manager.settings)
        check_parameters(params or (), manager.settings)
        size = message.queue if message.queue is not None else len(params or ())
        self._check_load(user, size)
        record = JobRecord(
            job=manager.new_job(),
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
        manager.enter(entry)
        unit.writes.append(AddJob(record, params))
        events.append(ev.JobSubmitted(record.job, books.terms(message, user), size, message.open))
        return m.Accepted(re=message.id, job=record.job, size=size)

    def _check_load(self, user: str, size: int) -> None:
        """Refuse what would make the books grow without bound. Raises `UsageError`."""
        settings, load = self.manager.settings, self.manager.load
        if load.jobs.get(user, 0) >= settings.jobs_open_per_user_max:
            raise UsageError(
                f"you have {settings.jobs_open_per_user_max} jobs that have not ended",
                hint="wait for some to end; one job with many tasks is cheaper than many jobs",
                code="busy",
            )
        if load.tasks + size > settings.tasks_open_max:
            raise UsageError(
                f"the pool holds {settings.tasks_open_max} unfinished tasks at most",
                hint="wait for jobs to end, or submit fewer tasks",
                code="busy",
            )

    def _extend(self, sender: str, message: m.Extend, unit: Unit, events: list[ev.Event]) -> m.Accepted:
        entry = self._owned(sender, message.job)
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
        if self.manager.load.tasks + len(params) > self.manager.settings.tasks_open_max:
            raise UsageError(
                "the pool holds too many unfinished tasks", hint="wait for jobs to end", code="busy"
            )
        if params or message.last:
            check_parameters(params, self.manager.settings, entry.size)
            self.manager.load.grow(len(params))
            unit.writes.append(AddTasks(message.job, entry.size, params, message.last))
            events.append(ev.JobExtended(message.job, len(params), message.last))
            entry.size += len(params)
            entry.open = not message.last
        return m.Accepted(re=message.id, job=message.job, size=entry.size)

    def _cancel(self, sender: str, message: m.Cancel, unit: Unit, events: list[ev.Event]) -> m.Accepted:
        entry = self._owned(sender, message.job)
        scheduler = self.manager.scheduler
        if entry.cancelled and not entry.record.finished:
            return m.Accepted(re=message.id, job=message.job, size=entry.size)
        if entry.ended or entry.record.finished:
            state = entry.record.state.value
            return m.Accepted(
                re=message.id, job=message.job, size=entry.size, warning=f"it had ended before: {state}"
            )
        if message.tasks.strip():
            tasks = self._named(message.tasks, entry.size)
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

    def _drain(self, sender: str, message: m.Drain, events: list[ev.Event]) -> m.Accepted:
        manager = self.manager
        admins, user = manager.settings.admins, _bare(sender)
        if admins and user not in admins and user != _bare(message.worker):
            raise UsageError(
                "only an administrator of the pool may drain workers",
                hint="a worker's owner can stop it where it runs",
                code="not_admin",
            )
        names = [w for w in manager.workers if w == message.worker or _bare(w) == message.worker]
        if not names:
            near = difflib.get_close_matches(message.worker, manager.workers, n=1, cutoff=0.4)
            raise UsageError(
                f"there is no worker {message.worker!r} in the pool",
                hint=f"did you mean {near[0]}?" if near else "`pool` lists them",
                code="unknown_worker",
            )
        for worker in names:
            events.append(manager.drained(worker, not message.undo))
        return m.Accepted(re=message.id, changed=len(names))

    # --- questions ------------------------------------------------------------------------------------

    def answer(self, request: Request, unit: Unit) -> None:
        """Answer what only asks, as of this unit."""
        sender, _, message = request
        try:
            match message:
                case m.Status():
                    self._tell(unit, request, self._status(sender, message))
                case m.Results():
                    self._results(request, message, unit)
                case m.ListTasks():
                    self._list_tasks(request, message, unit)
                case m.Output():
                    self.outputs.answer(request, message, self._known(message.job), unit)
                case m.Watch():
                    self._watch(request, message, unit)
                case m.Pool():
                    self._tell(unit, request, self._pool(message))
                case m.Explain():
                    self._explain(request, message, unit)
                case m.Help():
                    self._tell(unit, request, m.Text(re=message.id, text=HELP))
                case _:
                    raise UsageError(f"cannot answer {type(message).__name__}")
        except KestrelError as problem:
            self._tell(unit, request, self._refusal(message, problem))

    def _refusal(self, message: m.UserToManager, problem: KestrelError) -> m.Error:
        """What the sender did wrong; a fault of ours is logged, ends this turn, and is not told as his."""
        if isinstance(problem, InternalError):
            raise problem
        return _error(message.id, problem)

    def _status(self, sender: str, message: m.Status) -> m.JobStatus:
        manager = self.manager
        if message.job is not None:
            self._known(message.job)
            numbers = [message.job]
        else:
            user = _bare(sender)
            numbers = [j for j, e in manager.jobs.items() if message.all or e.record.user == user]
        workers, slots, busy = manager.scheduler.totals()
        jobs: list[m.JobInfo] = []
        room = manager.settings.stanza_bytes_max // 2
        for job in reversed(numbers):
            info = manager.job_info(job)
            room -= 1 + codec.wire_size(msgspec.json.encode(info))
            if room < 0:
                break
            jobs.append(info)
        jobs.reverse()
        return m.JobStatus(re=message.id, jobs=jobs, workers=workers, slots=slots, busy=busy)

    def _pool(self, message: m.Pool) -> m.PoolStatus:
        manager = self.manager
        views = manager.scheduler.workers()
        infos: list[m.WorkerInfo] = []
        room = manager.settings.stanza_bytes_max * 3 // 4
        for worker, view in views.items():
            info = self._worker_info(worker, view)
            room -= 1 + codec.wire_size(msgspec.json.encode(info))
            if len(infos) == message.limit or room < 0:
                break
            infos.append(info)
        now, wall = manager.clock.now(), manager.clock.wall()
        lost = [
            m.LostWorker(
                worker=w.worker,
                lost=wall - (now - w.at),
                reason=w.reason[:REASON_CHARS_SHOWN],
                requeued=w.requeued,
            )
            for w in manager.scheduler.lost_workers()
        ]
        return m.PoolStatus(
            re=message.id,
            pool=manager.settings.pool,
            epoch=manager.epoch,
            workers=infos,
            count=len(views),
            lost=lost[-20:],
        )

    def _worker_info(self, worker: str, view: WorkerView) -> m.WorkerInfo:
        manager = self.manager
        entry = manager.workers[worker]
        profile = entry.profile
        state: Literal["idle", "busy", "full", "draining"] = "busy"
        if view.drained:
            state = "draining"
        elif not view.in_hand:
            state = "idle"
        elif view.used >= view.slots:
            state = "full"
        return m.WorkerInfo(
            worker=worker,
            state=state,
            os=profile.os,
            arch=profile.arch,
            hostname=profile.hostname,
            ram=profile.ram,
            cores=profile.cores,
            slots=view.slots,
            running=view.in_hand,
            completed=view.completed,
            failed=view.failed,
            provides=profile.provides,
            joined=entry.joined,
            version=profile.version,
        )

    def _explain(self, request: Request, message: m.Explain, unit: Unit) -> None:
        manager = self.manager
        entry = self._known(message.job)
        if message.task is not None and message.task >= entry.size:
            raise UsageError(f"job {message.job} has no task {message.task}: it has {entry.size}")
        if entry.ended or not manager.scheduler.has_job(message.job):
            if message.task is None:
                lines = [f"The job has ended: {entry.record.state.value}."]
                self._tell(unit, request, m.Explanation(re=message.id, job=message.job, lines=lines))
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
        self._tell(
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
        entry = self._known(message.job)
        if message.stop:
            self.manager.unwatch(message.job, sender)
        elif (
            sender not in entry.watchers and len(entry.watchers) >= self.manager.settings.watchers_per_job_max
        ):
            raise UsageError(f"job {message.job} has too many watchers already", code="busy")
        elif not entry.ended:
            entry.watchers[sender] = manner
            self.manager.watch(message.job)
        unit.tells.append(
            lambda: self.manager.reply(
                sender, manner, m.JobStatus(re=message.id, jobs=[self.manager.job_info(message.job)])
            )
        )

    # --- results --------------------------------------------------------------------------------------

    def _results(self, request: Request, message: m.Results, unit: Unit) -> None:
        sender, manner, _ = request
        entry = self._known(message.job)
        if message.tasks.strip():
            named = self._named(message.tasks, entry.size)
            tasks = named[message.after :][: message.limit]
            unit.read(
                ReadTaskResults(message.job, tasks),
                lambda found: self._tell_named_results(request, message, found, tasks, len(named)),
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
        named: int,
    ) -> None:
        """Results of tasks that were named; the cursor counts the names that were looked at."""
        sender, manner, _ = request
        fitting = found if manner is Manner.WORDS else _fitting(found, self.manager.settings.stanza_bytes_max)
        seen = len(tasks)
        if len(fitting) < len(found):
            seen = tasks.index(found[len(fitting)][1].task)
        last = message.after + seen
        done = last >= named
        results = [r for _, r in fitting]
        page = m.ResultPage(
            re=message.id, job=message.job, results=results, last=0 if done else last, done=done
        )
        self.manager.reply(sender, manner, page)

    def _named(self, text: str, size: int) -> list[int]:
        return parse_ranges(text, size, count_max=self.manager.settings.selected_tasks_max)

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
        self._known(message.job)
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
        self._tell(unit, request, self._task_list(message, rows, more=more))

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

        size = self._known(
            message.job
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

    # --- time, loss -----------------------------------------------------------------------------------

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

    def forget_sender(self, sender: str) -> None:
        """The user left: nobody waits there any more."""
        for job in list(self._waiting):
            entry = self.manager.jobs[job]
            self._keep_waiters(job, entry, [w for w in entry.waiters if w.sender != sender])
        for entry in self.manager.watched():
            self.manager.unwatch(entry.record.job, sender)

    def refuse_while_store_fails(self, inbox: list[ev.Event | Request]) -> None:
        """Tell users at once that nothing new can be stored; what workers report is kept."""
        problem = self.manager.store_problem
        if problem is None:
            return
        kept: list[ev.Event | Request] = []
        for item in inbox:
            if isinstance(item, tuple):
                sender, manner, message = item
                self.manager.reply(sender, manner, _error(message.id, problem))
            else:
                kept.append(item)
        inbox[:] = kept

    # --- checks ---------------------------------------------------------------------------------------

    def _known(self, job: JobId) -> JobEntry:
        entry = self.manager.jobs.get(job)
        if entry is None:
            raise UsageError(f"there is no job {job}", hint="`status` lists your jobs", code="unknown_job")
        return entry

    def _owned(self, sender: str, job: JobId) -> JobEntry:
        entry = self._known(job)
        user = _bare(sender)
        if entry.record.user != user and user not in self.manager.settings.admins:
            raise UsageError(
                f"job {job} belongs to {entry.record.user}",
                hint="only its owner or an administrator may change it",
                code="not_owner",
            )
        return entry


def _error(re: str, problem: KestrelError) -> m.Error:
    return m.Error(re=re, code=problem.code, text=problem.text, hint=problem.hint)


def _key(waiter: Waiter) -> tuple[str, str]:
    """By which a repeated request is recognised."""
    return waiter.sender, waiter.request.id


def _bare(address: str) -> str:
    return address.partition("/")[0]


def _alive(state: TaskState) -> bool:
    return not state.terminal


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
