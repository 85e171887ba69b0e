"""Whatever roles are told and whoever sends what: nobody changes or reads what is not his to change or read.

Each job says in its command, its arguments and its output whose it is. A second, simple-minded reading of
the rules decides who may see that; everything that the manager sends is judged by it.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from hypothesis import given, settings
from hypothesis import strategies as st

from kestrel.core.model import SchedulerSettings
from kestrel.manager.access import AccessRules
from kestrel.manager.settings import ManagerSettings
from kestrel.ports import Show
from kestrel.protocol import codec
from kestrel.protocol import messages as m
from parts.manager import Rig

HOME = "example.org"
ACCOUNTS = (
    "ann@example.org",
    "bob@example.org",
    "lab@example.org",
    "eve@elsewhere.org",
    "root@elsewhere.org",
)
SESSIONS = tuple(f"{account}/{resource}" for account in ACCOUNTS for resource in ("1", "2"))
PATTERNS = (
    "ann@example.org",
    "lab@example.org",
    "*@elsewhere.org",
    "example.org",
    "root@elsewhere.org",
    "*@*",
)
CHANGES = (m.Job, m.Extend, m.Cancel, m.Drain)
lists = st.lists(st.sampled_from(PATTERNS), max_size=2).map(tuple)
numbers = st.integers(0, 3)


@dataclass
class Oracle:
    """The rules as docs/security.md tells them, read anew."""

    lists: dict[str, tuple[str, ...]]
    told: dict[str, str] = field(default_factory=dict)
    tells: bool = False

    def meant(self, name: str, session: str) -> bool:
        account = session.partition("/")[0]
        domain = account.partition("@")[2]
        return any(fnmatchcase(account if "@" in p else domain, p) for p in self.lists[name])

    def may(self, session: str, role: str) -> bool:
        if self.meant("denied", session):
            return False
        account = session.partition("/")[0]
        at_home = account.endswith(f"@{HOME}")
        for name in ("admins", f"{role}s"):
            if self.lists[name]:
                if self.meant(name, session):
                    return True
            elif at_home and self.tells:
                if self.told.get(account) in ("admin", name[:-1]):
                    return True
            elif at_home and name != "admins":
                return True
        return False

    def may_see(self, session: str, owner: str) -> bool:
        own = session.partition("/")[0] == owner
        return self.may(session, "admin") or (own and self.may(session, "user"))


class Judge:
    """A manager, and what it may tell to whom."""

    def __init__(self, rules: dict[str, tuple[str, ...]]) -> None:
        self.oracle = Oracle(rules)
        self.rig = Rig(
            ManagerSettings(
                scheduler=replace(SchedulerSettings(), settle_s=1.0),
                access=AccessRules.of(**rules),
                refusals_burst=1e9,
                all_refusals_per_s=1e9,
            )
        )
        self.seen = 0
        self.numbers = dict.fromkeys(SESSIONS, 0)

    def check(self) -> None:
        """Everything sent since the last time was for its reader's eyes."""
        sent, self.seen = self.rig.notes.sent[self.seen :], len(self.rig.notes.sent)
        for to, message, _ in sent:
            for owner in ACCOUNTS:
                if f"secret of {owner}" in _plain(message):
                    if isinstance(message, m.Tasks):
                        assert self.oracle.may(to, "worker"), (to, message)
                    else:
                        assert self.oracle.may_see(to, owner), (to, message)
        for worker in self.rig.manager.scheduler.workers():
            assert self.oracle.may(worker, "worker"), worker

    def state(self) -> object:
        manager = self.rig.manager
        alive = [job for job in manager.jobs if manager.scheduler.has_job(job)]
        return (
            {job: (e.record.user, e.size, e.open, e.cancelled) for job, e in manager.jobs.items()},
            {job: manager.scheduler.counts(job) for job in alive},
            set(manager.roster.drained_by_user),
            set(manager.scheduler.workers()),
        )

    # --- moves ------------------------------------------------------------------------------------

    def tell_role(self, account: str, role: str) -> None:
        """The server of the manager's domain tells it; that of another domain tries to."""
        if account.endswith(f"@{HOME}"):
            self.oracle.tells = True
            self.oracle.told[account] = role
        self.rig.manager.on_role(account, role)
        self.rig.run(0.01)
        self.check()

    def send(self, session: str, message: m.Message) -> None:
        """A message, which changes nothing unless its sender may."""
        role = "worker" if isinstance(message, m.WorkerToManager) else "user"
        self.rig.run(0.01)
        before = self.state()
        self.rig.tell(session, message)
        self.rig.run(0.01)
        if not self.oracle.may(session, role):
            assert self.state() == before, (session, message)
            assert isinstance(self.rig.notes.sent[-1][1], m.Error)
        elif isinstance(message, (m.Extend, m.Cancel)):
            entry = self.rig.manager.jobs.get(message.job)
            if entry is not None and not self.oracle.may_see(session, entry.record.user):
                assert self.state() == before, (session, message)
        self.check()

    def submit(self, session: str, count: int) -> None:
        secret = f"secret of {session.partition('/')[0]}"
        self.send(session, m.Job(command=secret, name=secret, args=[[secret]] * (count + 1), open=count == 3))

    def join(self, session: str) -> None:
        self.rig.manager.on_available(session, Show.CHAT, "")
        self.send(session, m.Profile(cores=2))

    def report(self, session: str, about: str) -> None:
        """The end of whatever `about` was given last, be it the sender itself or another."""
        given = self.rig.to(about, m.Tasks)
        if not given:
            return
        tasks = given[-1]
        assert isinstance(tasks, m.Tasks)
        owner = self.rig.manager.jobs[tasks.job].record.user
        self.numbers[session] += 1
        reports = [
            m.AttemptReport(job=tasks.job, task=task, attempt=tasks.attempt + i, out=f"secret of {owner}")
            for i, task in enumerate(tasks.tasks)
        ]
        self.rig.run(0.01)
        before = self.state()
        self.rig.tell(session, m.Report(n=self.numbers[session], attempts=reports))
        self.rig.run(0.01)
        if session != about or not self.oracle.may(session, "worker"):
            assert self.state() == before, (session, about)
        self.check()

    def ask(self, session: str, job: int, make: Callable[[int], m.Message]) -> None:
        self.send(session, make(job))


def _plain(message: m.Message) -> str:
    if isinstance(message, m.OutputPart):
        return base64.b64decode(message.data).decode()
    return codec.encode(message).decode()


sessions = st.sampled_from(SESSIONS)
QUESTIONS: tuple[Callable[[int], m.Message], ...] = (
    lambda job: m.Status(job=job),
    lambda _: m.Status(all=True),
    lambda job: m.Results(job=job),
    lambda job: m.Results(job=job, wait=True, after=10, id="w"),
    lambda job: m.Output(job=job, task=0),
    lambda job: m.Watch(job=job),
    lambda job: m.ListTasks(job=job),
    lambda job: m.Explain(job=job, task=0),
    lambda _: m.Pool(),
    lambda job: m.Cancel(job=job),
    lambda job: m.Cancel(job=job, tasks="0"),
    lambda job: m.Extend(job=job, offset=0, args=[["more"]] * 3, last=True),
    lambda _: m.Drain(worker="lab@example.org/1"),
)
moves = st.one_of(
    st.tuples(
        st.just("tell_role"), st.sampled_from(ACCOUNTS), st.sampled_from(("worker", "user", "admin", "none"))
    ),
    st.tuples(st.just("submit"), sessions, numbers),
    st.tuples(st.just("join"), sessions),
    st.tuples(st.just("report"), sessions, sessions),
    st.tuples(st.just("ask"), sessions, numbers, st.sampled_from(QUESTIONS)),
    st.tuples(st.just("ask"), sessions, numbers, st.sampled_from(QUESTIONS)),
)


@settings(max_examples=150)
@given(
    st.fixed_dictionaries(
        {"admins": lists, "users": lists, "workers": lists, "denied": lists.filter(lambda x: "*@*" not in x)}
    ),
    st.lists(moves, min_size=5, max_size=40),
)
def test_nobody_changes_or_reads_what_is_not_his(rules: dict[str, tuple[str, ...]], steps: list[tuple]):
    judge = Judge(rules)
    for move, *values in steps:
        getattr(judge, move)(*values)
    judge.rig.run(25)
    judge.check()
