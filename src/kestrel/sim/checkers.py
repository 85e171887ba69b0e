"""The judges of a simulated history: each law that must hold, observed from outside.

Evidence is what the shells send (seen at the instant of sending), what is stored at that instant, what
really ran (the ledger) and what users saw. A broken law raises `BrokenLawError` with the law's name. Called
by the world; judges never change anything. Here is who looks when, and law 1; `reigns` judges managers that
follow each other, `wishes` what users and owners wish, `standing` the state between two events, `endings`
the whole when it is over.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from kestrel.protocol import codec
from kestrel.protocol import messages as m
from kestrel.sim.endings import Endings
from kestrel.sim.laws import ENDED, BrokenLawError
from kestrel.sim.ledger import Run
from kestrel.sim.network import Kind, Link, Stanza
from kestrel.sim.reigns import Reigns
from kestrel.sim.standing import Standing
from kestrel.sim.wishes import WishJudge

if TYPE_CHECKING:
    from kestrel.sim.hosts import ManagerHost
    from kestrel.sim.world import World

_REPORT = b'{"type":"report"'
_DRAIN = b'{"type":"drain"'


class Checkers:
    """All judges of one world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.reigns = reigns = Reigns(world)
        self.wishes = WishJudge(world)
        self.standing = Standing(world)
        self.endings = Endings(world, self.standing)
        self._reports: dict[tuple[str, int], list[m.AttemptReport]] = {}
        """What each worker put into each report, as it was sent."""
        self._workers = {worker.address: worker for worker in world.workers}
        self._users = {user.name: user for user in world.users}
        world.network.on_sent = self._on_sent
        world.network.on_heard = lambda link, stanza: self._judge(lambda: self._judge_heard(link, stanza))
        world.disk.on_stored = lambda epoch, writes: self._judge(lambda: reigns.stored(epoch, writes))
        world.ledger.on_start = lambda run: self._judge(lambda: self._judge_run(run))
        for host in world.managers:
            host.on_taken = reigns.took

    def _judge(self, judge: Callable[[], None]) -> None:
        """Something happens at this instant, inside a shell.

        Raising here would raise inside the shell, which might take it for a mistake of its own.
        """
        try:
            judge()
        except BrokenLawError as broken:
            self._world.failure = self._world.failure or broken

    def _on_sent(self, link: Link, stanza: Stanza) -> None:
        if stanza.kind is Kind.MESSAGE or stanza.kind is Kind.WORDS:
            self._judge(lambda: self._judge_sent(link, stanza))

    def _judge_sent(self, link: Link, stanza: Stanza) -> None:
        if link.address == self._world.managers[0].address:
            host = next((h for h in self._world.managers if h.link is link), None)
            if host is not None and host.manager is not None:
                self.reigns.speaks(host, stanza.to, stanza.payload or stanza.text.encode())
                if stanza.kind is Kind.MESSAGE:
                    self._manager_tells(host, stanza)
        elif stanza.payload.startswith(_REPORT):
            message = codec.decode_to_manager(stanza.payload)
            assert isinstance(message, m.Report)
            self._check_report(link.address, message)
        elif stanza.payload.startswith(_DRAIN):
            drain = codec.decode_to_manager(stanza.payload)
            if isinstance(drain, m.Drain) and drain.undo:
                self.reigns.wants_back(drain.worker)

    def _judge_run(self, run: Run) -> None:
        self.reigns.starts(run)
        self.wishes.starts(run)

    def _judge_heard(self, link: Link, stanza: Stanza) -> None:
        worker = self._workers.get(link.address)
        if worker is not None and worker.agent is not None:
            self.reigns.hears(link.address, worker.agent.execution._epoch or 0, stanza.payload)

    # --- law 1: nothing is told before it is stored ---------------------------------------------------

    def _check_report(self, worker: str, report: m.Report) -> None:
        known = self._reports.setdefault((worker, report.n), report.attempts)
        if [a.attempt for a in known] != [a.attempt for a in report.attempts]:
            raise BrokenLawError("report_numbers", f"{worker} used report number {report.n} twice")

    def _manager_tells(self, host: ManagerHost, stanza: Stanza) -> None:
        to = stanza.to
        if to in self._workers:
            to_worker = codec.decode_to_worker(stanza.payload)
            if isinstance(to_worker, m.Ack):
                self._check_ack(to, to_worker)
            elif isinstance(to_worker, m.Tasks):
                self.reigns.gives(host, to, to_worker)
                self.wishes.gives(host, to, to_worker)
            return
        message = codec.decode_to_user(stanza.payload)
        if isinstance(message, m.Accepted):
            request = self._users[to].pending(message.re) if to in self._users else None
            if isinstance(request, m.Drain):
                self.reigns.says_drained(host, request)
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
