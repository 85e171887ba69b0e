"""The judges of a simulated history: each law that must hold, observed from outside.

Evidence is what the shells send (seen at the instant of sending), what is stored at that instant, what
really ran (the ledger) and what users saw. A broken law raises `BrokenLawError` with the law's name. Called
by the world; judges never change anything.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from kestrel.core import events as ev
from kestrel.core.model import TaskState
from kestrel.errors import InternalError
from kestrel.manager.jobs import terms_of
from kestrel.protocol import codec
from kestrel.protocol import messages as m
from kestrel.sim.network import Kind, Link, Stanza
from kestrel.sim.rebuilding import differences
from kestrel.sim.scripts import NOT_FOUND

if TYPE_CHECKING:
    from kestrel.manager.manager import Manager
    from kestrel.sim.hosts import WorkerHost
    from kestrel.sim.user import JobPlan, ScriptedUser
    from kestrel.sim.world import World

TERMINAL = {state.name for state in TaskState if state.terminal}
ENDED = ("COMPLETED", "FAILED", "CANCELLED")
REBUILD_PROBABILITY = 0.2
"""Share of the checks at which a second scheduler is built from the store."""


class BrokenLawError(InternalError):
    """A law is broken; `law` is its name."""

    def __init__(self, law: str, text: str) -> None:
        super().__init__(f"{law}: {text}")
        self.law = law


class Checkers:
    """All judges of one world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._reports: dict[tuple[str, int], list[m.AttemptReport]] = {}
        """What each worker put into each report, as it was sent."""
        world.network.on_sent = self._on_sent

    # --- law 1: nothing is told before it is stored ---------------------------------------------------

    def _on_sent(self, link: Link, stanza: Stanza) -> None:
        """A shell sends something at this instant.

        Raising here would raise inside the shell, which might take it for a mistake of its own.
        """
        try:
            self._judge_sent(link, stanza)
        except BrokenLawError as broken:
            self._world.failure = self._world.failure or broken

    def _judge_sent(self, link: Link, stanza: Stanza) -> None:
        if stanza.kind is not Kind.MESSAGE:
            return
        if link is self._world.manager.link:
            self._manager_tells(stanza)
        elif stanza.payload.startswith(b'{"type":"report"'):
            message = codec.decode_to_manager(stanza.payload)
            assert isinstance(message, m.Report)
            self._check_report(link.address, message)

    def _check_report(self, worker: str, report: m.Report) -> None:
        known = self._reports.setdefault((worker, report.n), report.attempts)
        if [a.attempt for a in known] != [a.attempt for a in report.attempts]:
            raise BrokenLawError("report_numbers", f"{worker} used report number {report.n} twice")

    def _manager_tells(self, stanza: Stanza) -> None:
        to = stanza.to
        if any(to == worker.address for worker in self._world.workers):
            worker_message = codec.decode_to_worker(stanza.payload)
            if isinstance(worker_message, m.Ack):
                self._check_ack(to, worker_message)
            return
        message = codec.decode_to_user(stanza.payload)
        if isinstance(message, m.Accepted):
            self._check_accepted(to, message)
        elif isinstance(message, m.ResultPage):
            self._check_page(message)
        elif isinstance(message, m.Event):
            self._check_info(message.job)
        elif isinstance(message, m.JobStatus):
            for info in message.jobs:
                self._check_info(info)

    def _check_ack(self, worker: str, ack: m.Ack) -> None:
        """Every success in an acknowledged report has a stored end; whose, the first one decided."""
        report = self._reports.get((worker, ack.n))
        if report is None:
            raise BrokenLawError(
                "ack_before_stored", f"{worker} never sent report {ack.n}, which is acknowledged"
            )
        store = self._world.disk.store
        for r in report:
            if r.state == "completed" and store.result(r.job, r.task) is None:
                raise BrokenLawError(
                    "ack_before_stored",
                    f"report {ack.n} of {worker} is acknowledged, but {r.job}_{r.task} has no stored end",
                )

    def _check_accepted(self, to: str, accepted: m.Accepted) -> None:
        if accepted.job is None:
            return
        store = self._world.disk.store
        record = store.record(accepted.job)
        if record is None:
            raise BrokenLawError("told_before_stored", f"job {accepted.job} is accepted, but not stored")
        if record.size < accepted.size:
            raise BrokenLawError(
                "told_before_stored",
                f"job {accepted.job} is said to have {accepted.size} tasks, but {record.size} are stored",
            )
        if accepted.re.startswith("id-"):  # a submission, under the submitter's own id
            stored = store.stored_job(to.partition("/")[0], accepted.re)
            if stored != accepted.job:
                raise BrokenLawError(
                    "submission_doubled",
                    f"submission {accepted.re} is stored as job {stored}, and accepted as {accepted.job}",
                )

    def _check_page(self, page: m.ResultPage) -> None:
        store = self._world.disk.store
        for result in page.results:
            stored = store.result(page.job, result.task)
            if stored is None or (stored[1].attempt, stored[1].state) != (result.attempt, result.state):
                raise BrokenLawError(
                    "told_before_stored",
                    f"the result {result.state} of task {page.job}_{result.task} is told, stored is {stored}",
                )
        by_cursor = page.last > 0  # else these are named tasks, and `done` says nothing of the job
        if page.done and by_cursor and not self._ended(page.job):
            raise BrokenLawError(
                "told_before_stored", f"job {page.job} is said to be done, but its end is not stored"
            )

    def _check_info(self, info: m.JobInfo) -> None:
        store = self._world.disk.store
        record = store.record(info.job)
        if record is None:
            raise BrokenLawError("told_before_stored", f"job {info.job} is told of, but not stored")
        counts = info.counts
        told = counts.completed + counts.failed + counts.cancelled + counts.timeout + counts.node_fail
        stored = store.terminal(info.job)
        if told > stored:
            raise BrokenLawError(
                "told_before_stored",
                f"job {info.job} is said to have {told} ended tasks, but {stored} are stored",
            )
        if info.state in ENDED and not self._ended(info.job):
            raise BrokenLawError(
                "told_before_stored", f"job {info.job} is said to be {info.state}; not stored"
            )

    def _ended(self, job: int) -> bool:
        record = self._world.disk.store.record(job)
        return record is not None and record.state.value in ENDED

    # --- again and again ------------------------------------------------------------------------------

    def after_steps(self) -> None:
        """Laws about the state between two events."""
        for worker in self._world.workers:
            if worker.agent is not None and not worker.clock.dead:
                self._check_worker(worker)
        manager = self._world.manager.manager
        if manager is not None and manager.epoch:
            manager.scheduler.check_invariants()
            self._check_bounds(manager)
            if manager._unit is None and not manager._inbox:
                self._check_books(manager)
            if manager._unit is None and self._world.random.random() < REBUILD_PROBABILITY:
                self.compare_rebuilt(manager)
            if manager.counters["duplicates"]:
                raise BrokenLawError(
                    "recorded_twice", "the scheduler recorded a result for a task that had one"
                )

    def _check_books(self, manager: Manager) -> None:
        """Shell and scheduler know the same workers, and the same of them as drained."""
        views = manager.scheduler.workers()
        if manager.workers.keys() != views.keys():
            names = sorted(manager.workers.keys() ^ views.keys())
            raise BrokenLawError("books_differ", f"only the shell or only the scheduler knows {names}")
        for name, view in views.items():
            if view.drained != manager.is_drained(name):
                raise BrokenLawError(
                    "books_differ", f"{name} is drained: {view.drained}, shell and core disagree"
                )

    def compare_rebuilt(self, manager: Manager) -> None:
        """A scheduler built from the store now knows all that the live one knows of what is stored."""
        content = self._world.disk.store.peek(terms_of)
        found = differences(manager.scheduler, manager.settings.scheduler, content, manager.clock.now())
        if found:
            raise BrokenLawError("rebuilt_differs", "; ".join(found[:5]))

    def _check_worker(self, worker: WorkerHost) -> None:
        agent, settings = worker.agent, worker.settings
        assert agent is not None
        assert worker.spool is not None
        execution = agent.execution
        execution.check()
        queued, kept = len(execution._queue), len(execution._reports.kept)
        in_hand = len(execution._running)
        ahead = execution.settings.handover_max + settings.slots
        if queued > settings.queued_max + ahead:
            raise BrokenLawError("unbounded", f"{worker.address} has {queued} attempts waiting")
        if kept > settings.finished_max + settings.queued_max + ahead or in_hand > ahead:
            raise BrokenLawError("unbounded", f"{worker.address} keeps {kept} reports and runs {in_hand}")
        missing = execution._reports.kept.keys() - worker.spool.kept.keys()
        if missing:
            raise BrokenLawError(
                "not_spooled", f"{worker.address} has unacknowledged {sorted(missing)[:5]} in memory only"
            )

    def _check_bounds(self, manager: Manager) -> None:
        """Whatever waits in the manager is bounded by a setting."""
        settings = manager.settings
        waiters = [w for entry in manager.jobs.values() for w in entry.waiters]
        sizes = {
            "waiting messages": (len(manager._inbox), settings.inbox_max),
            "ticks": (sum(isinstance(item, ev.TimePassed) for item in manager._inbox), 1),
            "output requests": (len(manager._requests.outputs._relays), settings.relays_max),
            "waiting readers": (len(waiters), settings.waiters_max),
        }
        for entry in manager.jobs.values():
            sizes[f"watchers of {entry.record.job}"] = (len(entry.watchers), settings.watchers_per_job_max)
        for name, view in manager.scheduler.workers().items():
            # adopted ones and those that a lost assignment left behind come on top of what is assigned
            kept_there = max(self._world.settings.queued_max) + 2 * max(self._world.settings.finished_max)
            sizes[f"attempts of {name}"] = (view.in_hand, settings.scheduler.backlog_max + kept_there)
        for what, (count, most) in sizes.items():
            if count > most:
                raise BrokenLawError("unbounded", f"{what}: {count}, allowed are {most}")
        asked = Counter((w.sender, w.request.id) for w in waiters)
        if asked and max(asked.values()) > 1:
            raise BrokenLawError("unbounded", "a repeated request waits twice, and will be answered twice")

    # --- the end --------------------------------------------------------------------------------------

    def everything_ended(self) -> None:
        """Liveness: without faults every job ends, and every user learns of every result."""
        for user in self._world.users:
            for plan in user.plans:
                if not plan.done:
                    raise BrokenLawError("job_unended", self._unended(user, plan))

    def _unended(self, user: ScriptedUser, plan: JobPlan) -> str:
        if plan.job is None:
            return f"submission {plan.message.id} of {user.name} was never accepted; {plan.complaints}"
        record = self._world.disk.store.record(plan.job)
        ends = self._world.disk.store.terminal(plan.job)
        missing = [t for t in range(plan.size) if self._world.disk.store.result(plan.job, t) is None]
        lines = [
            f"job {plan.job} ({plan.script}) has {ends} of {plan.size} results, missing {missing[:8]}, "
            f"stored {record.state.value if record else None}; {user.name} saw {len(plan.seen)}; "
            f"{plan.complaints}"
        ]
        manager = self._world.manager.manager
        if manager is not None and manager.scheduler.has_job(plan.job) and missing:
            now = manager.clock.now()
            lines += manager.scheduler.explain(plan.job, missing[0], now)
            lines += manager.scheduler.story(plan.job, missing[0], now)[-15:]
        return "\n".join(lines)

    def settled(self) -> bool:
        """Nothing is in anybody's hands any more."""
        return not self._unsettled()

    def _unsettled(self) -> str:
        manager = self._world.manager.manager
        if manager is None:
            return "there is no manager"
        for worker in self._world.workers:
            if worker.spool is not None and worker.spool.kept:
                return f"{worker.address} still keeps {sorted(worker.spool.kept)[:8]}"
            if worker.launcher is not None and worker.launcher.running:
                return f"{worker.address} still runs something"
        for name, view in manager.scheduler.workers().items():
            if view.in_hand:
                return f"the manager counts {view.in_hand} attempts in the hands of {name}"
        return ""

    def at_end(self) -> None:
        """The final judgement."""
        unsettled = self._unsettled()
        if unsettled:
            raise BrokenLawError("unsettled", unsettled)
        manager = self._world.manager.manager
        assert manager is not None
        self.compare_rebuilt(manager)
        self._check_submissions()
        for user in self._world.users:
            for plan in user.plans:
                self._check_job(plan)
                self._check_seen(plan)
        self._check_runs()

    def _check_submissions(self) -> None:
        """As many jobs are stored as were submitted, and each submission got one number."""
        numbers: defaultdict[int, list[str]] = defaultdict(list)
        for user in self._world.users:
            for plan in user.plans:
                if len(set(plan.accepted)) != 1:
                    raise BrokenLawError(
                        "submission_doubled", f"{plan.message.id} got the numbers {plan.accepted}"
                    )
                numbers[plan.accepted[0]].append(plan.message.id)
                if plan.complaints and not (plan.cancelled or plan.cancel_after_s is not None):
                    raise BrokenLawError("complaint", f"{plan.script}: {plan.complaints}")
        content = self._world.disk.store.peek(terms_of)
        stored = [record.job for record in content.jobs]
        if sorted(numbers) != stored or any(len(ids) > 1 for ids in numbers.values()):
            raise BrokenLawError("submission_doubled", f"stored jobs {stored}, accepted {dict(numbers)}")

    def _check_job(self, plan: JobPlan) -> None:
        """Every task has exactly one end, numbered from 1 without gaps, and the record says so."""
        assert plan.job is not None
        content = self._world.disk.store.peek(terms_of)
        record = next(r for r in content.jobs if r.job == plan.job)
        if record.state.value not in ENDED:
            raise BrokenLawError("job_unended", f"job {plan.job} is stored as {record.state.value}")
        if not plan.cancelled and record.size != plan.size:
            raise BrokenLawError("task_lost", f"job {plan.job} has {record.size} tasks of {plan.size}")
        seqs = []
        for task in range(record.size):
            end = self._world.disk.store.result(plan.job, task)
            if end is None:
                raise BrokenLawError("task_lost", f"job {plan.job} has ended, but task {task} has not")
            seqs.append(end[0])
        if sorted(seqs) != list(range(1, record.size + 1)):
            raise BrokenLawError("recorded_twice", f"job {plan.job}: results are numbered {sorted(seqs)}")
        c = record.counts
        total = c.completed + c.failed + c.cancelled + c.timeout + c.node_fail
        if total != record.size or record.last != record.size or c.queued or c.running:
            raise BrokenLawError("task_lost", f"job {plan.job} of {record.size} tasks is stored with {c}")

    def _check_seen(self, plan: JobPlan) -> None:
        """The user saw each task exactly once, as it is stored."""
        assert plan.job is not None
        record = self._world.disk.store.record(plan.job)
        assert record is not None
        seen = Counter(result.task for result in plan.seen)
        if sorted(seen) != list(range(record.size)) or any(count != 1 for count in seen.values()):
            missing = sorted(set(range(record.size)) - set(seen))
            twice = sorted(task for task, count in seen.items() if count > 1)
            raise BrokenLawError(
                "seen_once", f"job {plan.job}: not seen {missing[:8]}, seen twice {twice[:8]}"
            )

    def _check_runs(self) -> None:
        """Successes really happened, outputs belong to their tasks, and what must not run twice did not."""
        ledger = self._world.ledger
        for attempt, runs in ledger.by_attempt.items():
            if len(runs) > 1:
                raise BrokenLawError("attempt_ran_twice", f"attempt {attempt} was started {len(runs)} times")
        for user in self._world.users:
            for plan in user.plans:
                for result in plan.seen:
                    self._check_result(plan, result)
                if plan.message.restart == "never":
                    for task in range(plan.size):
                        runs = ledger.by_task.get((plan.script, task), [])
                        if len(runs) > 1:
                            raise BrokenLawError(
                                "restarted",
                                f"task {plan.job}_{task} must not run twice, but ran as "
                                f"{[(r.attempt, r.host, round(r.started, 3)) for r in runs]}",
                            )

    def _check_result(self, plan: JobPlan, result: m.TaskResult) -> None:
        name = f"task {plan.job}_{result.task} ({plan.script})"
        runs = self._world.ledger.by_attempt.get(result.attempt, [])
        run = runs[0] if runs else None
        if result.state == "COMPLETED":
            if run is None or not run.succeeded or run.key != (plan.script, result.task):
                raise BrokenLawError(
                    "result_without_run", f"{name} is COMPLETED by attempt {result.attempt}: {run}"
                )
            if result.out != f"{plan.script} {result.task}\n":
                raise BrokenLawError("result_without_run", f"{name} has the output {result.out!r}")
            if run.host != result.worker:
                raise BrokenLawError(
                    "result_without_run", f"{name} ran on {run.host}, said is {result.worker}"
                )
        elif result.state == "FAILED" and result.exit_code != NOT_FOUND:
            if run is None or run.exit_code != result.exit_code:
                raise BrokenLawError(
                    "result_without_run", f"{name} FAILED with {result.exit_code}; the run is {run}"
                )
        elif result.state == "CANCELLED" and not (plan.cancelled or plan.cancel_after_s is not None):
            raise BrokenLawError("task_lost", f"{name} is CANCELLED, but nobody wanted that")
        if result.state not in TERMINAL:
            raise BrokenLawError("task_lost", f"{name} has the state {result.state!r}")
