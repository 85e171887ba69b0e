"""Laws about the whole history, judged when it is over: everything ended, once, and as it really was.

Called by the checkers when everything has healed. Never changes anything.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from kestrel.manager.jobs import terms_of
from kestrel.protocol import messages as m
from kestrel.sim.laws import ENDED, TERMINAL, BrokenLawError
from kestrel.sim.scripts import NOT_FOUND
from kestrel.sim.standing import Standing

if TYPE_CHECKING:
    from kestrel.sim.user import JobPlan, ScriptedUser
    from kestrel.sim.world import World


class Endings:
    """The judge of one world's history."""

    def __init__(self, world: World, standing: Standing) -> None:
        self._world = world
        self._standing = standing

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
        if manager._unit is not None or manager._inbox:
            return "the manager still stores something"
        absent = [w.address for w in self._world.workers if w.address not in manager.scheduler.workers()]
        if absent:
            return f"{absent} are there, and not in the pool"
        if manager.scheduler._books.settling.active:
            return "the manager still waits for workers of the life before"
        for user in self._world.users:
            if user.unanswered:
                return f"{user.name} has got no answer to {user.unanswered[0]}"
        return ""

    def at_end(self) -> None:
        """The final judgement."""
        unsettled = self._unsettled()
        if unsettled:
            raise BrokenLawError("unsettled", unsettled)
        manager = self._world.manager.manager
        assert manager is not None
        self._standing.compare_rebuilt(manager)
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
