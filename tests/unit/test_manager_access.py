"""Who may do what: rules and told roles, and that the manager heeds them for every message."""

from __future__ import annotations

import base64
import logging
from dataclasses import replace

import pytest

from kestrel.core.model import SchedulerSettings
from kestrel.manager.access import Access, AccessRules, Role, home_of
from kestrel.manager.settings import ManagerSettings
from kestrel.ports import Show
from kestrel.protocol import codec
from kestrel.protocol import messages as m
from parts.manager import USER, WORKER, Rig

SETTINGS = ManagerSettings(scheduler=replace(SchedulerSettings(), settle_s=1.0), tick_s=0.5)
ROOT = "root@example.org/desk"
EVE = "eve@elsewhere.org/x"
BOB = "bob@example.org/lab"
WORKER_MESSAGES = (m.Profile(cores=1), m.Report(n=1, attempts=[]), m.Revoked(job=1, attempts=[]))
USER_MESSAGES = (
    m.Job(command="true"),
    m.Extend(job=1, offset=0, args=[["a"]]),
    m.Cancel(job=1),
    m.Drain(worker=WORKER),
    m.Status(),
    m.Status(job=1),
    m.Status(all=True),
    m.ListTasks(job=1),
    m.Results(job=1),
    m.Results(job=1, wait=True),
    m.Output(job=1, task=0),
    m.Watch(job=1),
    m.Pool(),
    m.Explain(job=1),
    m.Help(),
)
OF_A_JOB = tuple(
    message for message in USER_MESSAGES if hasattr(message, "job") and getattr(message, "job", None) == 1
)


def access(authority: str = "", address: str = "kestrel.example.org", **lists: tuple[str, ...]) -> Access:
    made = Access(AccessRules.of(**lists), authority, roles_max=100, cached_max=100)
    made.live_at(address)
    return made


def allowed(access: Access, address: str) -> set[Role]:
    roles: tuple[Role, ...] = ("worker", "user", "admin")
    return {role for role in roles if access.may(address, role) is None}


def rig(**lists: tuple[str, ...]) -> Rig:
    return Rig(replace(SETTINGS, access=AccessRules.of(admins=("root@example.org",), **lists)))


def refused(rig: Rig, sender: str) -> list[str]:
    return [error.code for error in rig.to(sender, m.Error)]


class TestRules:
    """Lists, defaults, told roles."""

    @pytest.mark.parametrize(
        ("address", "home"),
        [
            ("kestrel.example.org", "example.org"),
            ("pool@example.org/manager", "example.org"),
            ("pool@example.org", "example.org"),
            ("localhost", ""),
        ],
    )
    def test_a_manager_is_a_guest_of_its_accounts_domain_or_of_the_one_above_its_component(
        self, address: str, home: str
    ):
        assert home_of(address) == home

    @pytest.mark.parametrize(
        ("address", "may"),
        [
            ("ann@example.org/x", {"worker", "user"}),
            ("ann@elsewhere.org/x", set()),
            ("ann@sub.example.org/x", set()),
            ("example.org", set()),
            ("rooms.example.org/ann", set()),
            ("@example.org/x", set()),
        ],
    )
    def test_without_lists_and_told_roles_the_accounts_of_the_domain_may_work_and_use(
        self, address: str, may: set[Role]
    ):
        assert allowed(access(), address) == may

    def test_without_a_domain_nobody_may_anything(self):
        made = access(address="localhost")
        assert allowed(made, "ann@/x") == allowed(made, "ann@localhost/x") == set()

    def test_a_list_replaces_the_default_of_its_role_and_of_no_other(self):
        made = access(users=("*@elsewhere.org",))
        assert allowed(made, EVE) == {"user"}
        assert allowed(made, "ann@example.org/x") == {"worker"}

    def test_an_administrator_is_a_user_and_a_worker_too(self):
        assert allowed(access(admins=("root@elsewhere.org",)), "root@elsewhere.org/x") == {
            "worker",
            "user",
            "admin",
        }

    def test_who_started_the_manager_administrates_beside_the_list_and_the_told(self):
        rules = replace(
            AccessRules.of(admins=("root@example.org",)), owners=AccessRules.of(users=("me@x.org",)).users
        )
        made = Access(rules, roles_max=9, cached_max=9)
        assert made.is_admin("me@x.org/here")
        assert made.is_admin("root@example.org/here")

    def test_a_denial_beats_everything(self):
        made = access(admins=("*@example.org",), denied=("eve@example.org",))
        assert allowed(made, "eve@example.org/x") == set()
        refusal = made.may("eve@example.org/x", "user")
        assert refusal is not None
        assert (refusal.code, "shut out" in refusal.text) == ("not_allowed", True)

    def test_a_denial_may_name_a_single_session(self):
        made = access(denied=("lab@example.org/7",))
        assert not made.admits("lab@example.org/7")
        assert made.admits("lab@example.org/70")

    @pytest.mark.parametrize(
        ("role", "may"),
        [
            ("worker", {"worker"}),
            ("user", {"user"}),
            ("admin", {"worker", "user", "admin"}),
            ("none", set()),
            ("root", set()),
        ],
    )
    def test_a_told_role_is_all_that_its_account_has(self, role: str, may: set[Role]):
        made = access()
        made.tell("ann@example.org", role)
        assert allowed(made, "ann@example.org/x") == may

    def test_where_roles_are_told_who_was_told_none_has_none(self):
        made = access()
        assert allowed(made, "bob@example.org/x") == {"worker", "user"}
        made.tell("ann@example.org", "user")
        assert allowed(made, "bob@example.org/x") == set()

    def test_roles_of_other_domains_are_not_believed(self):
        made = access()
        assert not made.tell("eve@elsewhere.org", "admin")
        assert allowed(made, EVE) == set()
        assert allowed(made, "ann@example.org/x") == {"worker", "user"}

    def test_another_server_can_be_the_one_that_is_believed(self):
        made = access(authority="accounts.org")
        made.tell("ann@accounts.org", "worker")
        assert made.authority == "accounts.org"
        assert allowed(made, "ann@accounts.org/x") == {"worker"}
        assert allowed(made, "ann@example.org/x") == {"worker", "user"}

    def test_lists_go_before_told_roles(self):
        made = access(users=("bob@example.org",))
        made.tell("ann@example.org", "user")
        made.tell("bob@example.org", "worker")
        assert allowed(made, "ann@example.org/x") == set()
        assert allowed(made, "bob@example.org/x") == {"worker", "user"}

    def test_a_role_that_changes_holds_at_once(self):
        made = access()
        made.tell("ann@example.org", "admin")
        assert made.is_admin("ann@example.org/x")
        assert made.tell("ann@example.org", "user") == "ann@example.org"
        assert allowed(made, "ann@example.org/x") == {"user"}
        assert not made.tell("ann@example.org", "user"), "the same again takes nothing away"
        assert made.tell("ann@example.org", "none") == "ann@example.org"
        assert allowed(made, "ann@example.org/x") == set()

    def test_told_roles_are_bounded_and_who_is_forgotten_may_nothing(self):
        made = Access(AccessRules(), "example.org", roles_max=3, cached_max=2)
        for i in range(10):
            made.tell(f"w{i}@example.org", "worker")
        able = [i for i in range(10) if allowed(made, f"w{i}@example.org/x")]
        assert able == [7, 8, 9]
        assert len(made._cache) <= 2

    def test_strangers_are_not_remembered(self):
        made = access()
        for i in range(50):
            made.admits(f"eve{i}@elsewhere.org/x")
        assert not made._cache

    def test_the_rules_in_one_line(self):
        assert AccessRules().sentence("example.org") == (
            "Workers and users: everybody of example.org; admins: nobody. "
            "Roles that the server of example.org tells hold instead."
        )
        rules = AccessRules.of(
            admins=("ann@a.org",), users=("a.org", "*"), workers=("w*@b.org",), denied=("c",)
        )
        assert rules.sentence("example.org") == (
            "Workers: w*@b.org; users: everybody of a.org, everybody; admins: ann@a.org; "
            "shut out: everybody of c."
        )
        assert AccessRules().sentence("") == "Workers and users: nobody; admins: nobody."


class TestStrangers:
    """Who may nothing changes nothing, reads nothing, and is told so."""

    @pytest.mark.parametrize("message", [*USER_MESSAGES, *WORKER_MESSAGES], ids=lambda x: type(x).__name__)
    def test_every_message_of_a_stranger_is_refused(self, message: m.Message):
        pool = rig()
        pool.ask(m.Job(command="secret"))
        before = pool.manager.scheduler.totals(), list(pool.manager.jobs), len(pool.notes.sent)
        if isinstance(message, m.UserToManager):
            message = type(message)(
                **{f: getattr(message, f) for f in message.__struct_fields__} | {"id": "q"}
            )
        pool.tell(EVE, message)
        pool.run(1)
        assert refused(pool, EVE) == ["not_allowed"]
        (answer,) = pool.to(EVE, m.Error)
        assert EVE.partition("/")[0] in answer.text
        assert answer.hint
        assert answer.re == ("q" if isinstance(message, m.UserToManager) else "")
        assert pool.manager.scheduler.totals() == before[0]
        assert list(pool.manager.jobs) == before[1]
        assert len(pool.notes.sent) == before[2] + 1
        assert EVE not in pool.manager.workers

    @pytest.mark.parametrize(
        "words", ["status", "pool", "run echo x", "cancel 1", "results 1", "help", "nonsense"]
    )
    def test_plain_words_of_a_stranger_are_refused_in_plain_words(self, words: str):
        pool = rig()
        pool.ask(m.Job(command="secret"))
        pool.manager.on_message(EVE, words.encode(), True)
        pool.run()
        ((to, answer),) = pool.notes.said
        assert to == "eve@elsewhere.org"
        assert answer.startswith("Sorry: eve@elsewhere.org may not use this pool")
        assert "secret" not in answer
        assert list(pool.manager.jobs) == [1]

    def test_what_cannot_be_read_is_refused_and_errors_are_not_answered(self):
        pool = rig()
        pool.manager.on_message(EVE, b"{", False)
        pool.tell(EVE, m.Error(code="x", text="y"))
        assert refused(pool, EVE) == ["not_allowed"]

    def test_presence_of_strangers_leaves_no_trace(self):
        pool = rig()
        for i in range(100):
            stranger = f"eve{i}@elsewhere.org/x"
            pool.manager.on_available(stranger, Show.CHAT, "")
            pool.manager.on_heard(stranger)
            pool.manager.on_unavailable(stranger, "gone")
        assert not pool.notes.presence
        assert not pool.manager.roster.greeted
        assert not pool.manager.admits(EVE)

    def test_a_flood_is_answered_and_logged_within_bounds(self, caplog: pytest.LogCaptureFixture):
        settings = replace(SETTINGS, refusals_per_s=1.0, refusals_burst=5.0)
        pool = Rig(settings)
        with caplog.at_level(logging.INFO, "kestrel.manager"):
            for _ in range(1000):
                pool.tell(EVE, m.Status())
            assert len(refused(pool, EVE)) == 5
            lines = [r for r in caplog.records if r.message == "refused"]
            assert [(r.jid, r.count, r.code) for r in lines] == [(EVE, 1, "not_allowed")]  # type: ignore[attr-defined]
            pool.run(61)
            pool.tell(EVE, m.Status())
        lines = [r for r in caplog.records if r.message == "refused"]
        assert [r.count for r in lines] == [1, 1000]  # type: ignore[attr-defined]
        assert "995 more refused without an answer" in pool.to(EVE, m.Error)[-1].text
        assert pool.manager.counters["refused"] == 1001

    def test_a_flood_of_many_names_is_bounded_as_a_whole(self, caplog: pytest.LogCaptureFixture):
        settings = replace(
            SETTINGS, all_refusals_per_s=10.0, refusal_lines_per_s=3.0, refused_accounts_max=20
        )
        pool = Rig(settings)
        with caplog.at_level(logging.INFO, "kestrel.manager"):
            for i in range(500):
                pool.tell(f"eve{i}@elsewhere.org/x", m.Status())
        assert len(pool.notes.sent) == 10
        assert len([r for r in caplog.records if r.message == "refused"]) == 3
        assert len(pool.manager.refusals._records) == 20


class TestWorkers:
    """Only who may work is heeded as a worker, and only about what it was given."""

    @pytest.mark.parametrize("message", WORKER_MESSAGES, ids=lambda x: type(x).__name__)
    def test_a_user_who_may_not_work_is_no_worker(self, message: m.Message):
        pool = rig(workers=("w*@example.org",))
        pool.tell(USER, message)
        pool.run()
        assert refused(pool, USER) == ["not_allowed"]
        assert "may not work" in pool.to(USER, m.Error)[0].text
        assert USER not in pool.manager.workers

    @pytest.mark.parametrize("message", USER_MESSAGES, ids=lambda x: type(x).__name__)
    def test_a_worker_that_may_not_use_the_pool_asks_and_changes_nothing(self, message: m.Message):
        pool = rig(users=("ann@example.org",))
        pool.join(cores=1)
        pool.ask(m.Job(command="secret", queue=2))
        before = len(pool.notes.sent)
        pool.tell(WORKER, message)
        pool.run()
        (answer,) = [sent for _, sent, _ in pool.notes.sent[before:]]
        assert isinstance(answer, m.Error)
        assert answer.code == "not_allowed"
        assert list(pool.manager.jobs) == [1]

    def test_a_report_of_anothers_attempt_changes_nothing_is_counted_and_logged(
        self, caplog: pytest.LogCaptureFixture
    ):
        pool = rig()
        pool.join(cores=1)
        pool.join(BOB, cores=1)
        pool.ask(m.Job(command="true", queue=2))
        (tasks,) = pool.to(WORKER, m.Tasks)
        pool.finish(tasks, BOB, out="forged", state="completed")
        assert pool.ask(m.Status(job=1)).jobs[0].counts.completed == 0
        assert pool.manager.counters["foreign_reports"] == 1
        (line,) = [r for r in caplog.records if r.message == "refused"]
        assert (line.jid, line.code) == (BOB, "foreign_report")  # type: ignore[attr-defined]
        pool.finish(tasks, out="true")
        assert [r.out for r in pool.ask(m.Results(job=1)).results] == ["true"]

    @pytest.mark.parametrize("state", ["failed", "cancelled", "timeout", "lost"])
    def test_no_end_of_anothers_attempt_is_believed(self, state: str):
        pool = rig()
        pool.join(cores=1)
        pool.join(BOB, cores=1)
        pool.ask(m.Job(command="true"))
        (tasks,) = pool.to(WORKER, m.Tasks)
        pool.finish(tasks, BOB, state=state, exit_code=None)
        assert pool.ask(m.Status(job=1)).jobs[0].counts.running == 1
        assert not pool.to(BOB, m.Tasks)

    def test_a_worker_cannot_give_back_what_another_has(self):
        pool = rig()
        pool.join(cores=1)
        pool.join(BOB, cores=1)
        pool.ask(m.Job(command="true"))
        (tasks,) = pool.to(WORKER, m.Tasks)
        pool.tell(BOB, m.Revoked(job=1, attempts=[tasks.attempt]))
        pool.run()
        assert pool.ask(m.ListTasks(job=1)).tasks[0].worker == WORKER
        assert not pool.to(BOB, m.Tasks)

    def test_a_worker_cannot_claim_to_hold_what_another_has(self):
        pool = rig()
        pool.join(cores=1)
        pool.ask(m.Job(command="true"))
        (tasks,) = pool.to(WORKER, m.Tasks)
        pool.join(BOB, cores=1, held=[m.HeldAttempt(1, 0, tasks.attempt)])
        assert pool.to(BOB, m.Stop)[-1].attempts == [tasks.attempt]
        assert pool.ask(m.ListTasks(job=1)).tasks[0].worker == WORKER

    def test_output_is_taken_from_the_worker_that_was_asked_only(self):
        pool = rig()
        pool.join(cores=1)
        pool.join(BOB, cores=1)
        pool.ask(m.Job(command="true"))
        pool.tell(USER, m.Output(job=1, task=0, id="q"))
        pool.run()
        (asked,) = pool.to(WORKER, m.ReadOutput)
        forged = base64.b64encode(b"forged").decode()
        pool.tell(BOB, m.OutputPart(re=asked.id, job=1, task=0, data=forged, size=6))
        pool.tell(BOB, m.Error(re=asked.id, code="x", text="forged"))
        pool.run()
        assert not pool.to(USER, m.OutputPart)
        assert not pool.to(USER, m.Error)

    def test_a_worker_whose_role_is_taken_away_is_lost_at_once_and_told(self):
        pool = rig()
        for name in ("w1", "w2"):
            pool.manager.on_role(f"{name}@example.org", "worker")
        pool.manager.on_role("ann@example.org", "user")
        pool.join(cores=1)
        pool.ask(m.Job(command="true"))
        (tasks,) = pool.to(WORKER, m.Tasks)
        pool.join("w2@example.org/worker", cores=1)
        pool.manager.on_role("w1@example.org", "none")
        pool.run()
        assert refused(pool, WORKER) == ["not_allowed"]
        assert [t.tasks for t in pool.to("w2@example.org/worker", m.Tasks)] == [[0]]
        pool.finish(tasks)
        answer = pool.ask(m.Status(job=1)).jobs[0]
        assert (answer.counts.completed, answer.counts.running, answer.reruns) == (0, 1, 1)
        (lost,) = pool.ask(m.Pool()).lost
        assert (lost.worker, "may not work" in lost.reason) == (WORKER, True)

    def test_told_roles_are_told_again_after_a_restart_and_until_then_nobody_is_lost_for_it(self):
        pool = rig()
        pool.manager.on_role("w1@example.org", "worker")
        pool.join(cores=1)
        pool.restart()
        pool.manager.on_role("w1@example.org", "worker")
        pool.join(cores=1)
        pool.manager.on_role("ann@example.org", "user")
        assert pool.ask(m.Pool()).count == 1


class TestUsers:
    """Users see and touch their own jobs, administrators all."""

    @pytest.mark.parametrize("message", OF_A_JOB, ids=lambda x: type(x).__name__)
    def test_a_job_is_its_owners_and_the_administrators(self, message: m.Message):
        pool = rig()
        pool.ask(m.Job(command="secret", open=True))
        other = pool.ask(message, sender=BOB)
        assert other.code == "not_owner"
        assert "secret" not in str(other)
        pool.tell(ROOT, message)
        pool.tell(USER, message)
        pool.run(25)
        for sender in (ROOT, USER):
            assert "not_owner" not in refused(pool, sender)

    def test_all_jobs_are_shown_with_counts_but_without_what_they_do(self):
        pool = rig()
        pool.ask(m.Job(command="secret", name="secret", queue=3))
        pool.ask(m.Job(command="mine"), sender=BOB)
        shown = pool.ask(m.Status(all=True), sender=BOB)
        assert [(j.user, j.command, j.name, j.size) for j in shown.jobs] == [
            ("ann@example.org", "", "", 3),
            ("bob@example.org", "mine", "", 1),
        ]
        assert shown.jobs[0].counts.queued == 3
        assert [j.command for j in pool.ask(m.Status(all=True), sender=ROOT).jobs] == ["secret", "mine"]
        pool.manager.on_message(BOB, b"status all", True)
        pool.run()
        assert "Job 1 (of ann@example.org)" in pool.notes.said[-1][1]
        assert "secret" not in pool.notes.said[-1][1]

    def test_a_user_may_drain_its_own_workers_and_no_others(self):
        pool = rig()
        pool.join("bob@example.org/1", cores=1)
        pool.join(WORKER, cores=1)
        assert pool.ask(m.Drain(worker="bob@example.org"), sender=BOB).changed == 1
        assert pool.ask(m.Drain(worker=WORKER), sender=BOB).code == "not_admin"
        assert pool.ask(m.Drain(worker="*"), sender=BOB).code == "not_admin"
        assert pool.ask(m.Drain(worker=WORKER), sender=ROOT).changed == 1

    def test_who_loses_the_role_waits_and_watches_no_more(self):
        pool = rig()
        pool.manager.on_role("ann@example.org", "user")
        pool.ask(m.Job(command="true"))
        pool.ask(m.Watch(job=1))
        pool.tell(USER, m.Results(job=1, wait=True, id="reader"))
        pool.run()
        pool.manager.on_role("ann@example.org", "none")
        pool.run()
        assert sorted((e.code, e.re) for e in pool.to(USER, m.Error)) == [
            ("not_allowed", ""),
            ("not_allowed", "reader"),
        ]
        before = len(pool.notes.sent)
        pool.ask(m.Cancel(job=1), sender=ROOT)
        pool.run(30)
        assert USER not in [to for to, _, _ in pool.notes.sent[before:]]

    def test_an_administrator_who_becomes_a_user_waits_for_others_jobs_no_more(self):
        pool = Rig(SETTINGS)
        for name, role in (("ann", "user"), ("bob", "admin")):
            pool.manager.on_role(f"{name}@example.org", role)
        pool.ask(m.Job(command="true"))
        pool.tell(BOB, m.Results(job=1, wait=True, id="reader"))
        pool.tell(USER, m.Results(job=1, wait=True, id="own"))
        pool.run()
        pool.manager.on_role("bob@example.org", "user")
        assert refused(pool, BOB) == ["not_allowed"]
        pool.run(30)
        assert not pool.to(BOB, m.ResultPage)
        assert [p.re for p in pool.to(USER, m.ResultPage)] == ["own"]

    def test_a_request_whose_sender_lost_its_role_before_its_turn_is_refused(self):
        pool = rig()
        pool.manager.on_role("ann@example.org", "user")
        pool.tell(USER, m.Job(command="true", id="late"))
        pool.manager.on_role("ann@example.org", "none")
        pool.run()
        assert [(e.code, e.re) for e in pool.to(USER, m.Error)] == [("not_allowed", "late")]
        assert not pool.manager.jobs

    def test_every_refusal_is_logged_with_the_address(self, caplog: pytest.LogCaptureFixture):
        pool = rig()
        pool.ask(m.Job(command="true"))
        pool.ask(m.Cancel(job=1), sender=BOB)
        (line,) = [r for r in caplog.records if r.message == "refused"]
        assert (line.jid, line.code) == (BOB, "not_owner")  # type: ignore[attr-defined]


class TestLimits:
    """No user can fill the pool or keep the manager busy alone."""

    def test_a_user_may_have_so_many_tasks_queued_or_running_and_others_are_not_hindered(self):
        pool = Rig(replace(SETTINGS, tasks_open_per_user_max=10))
        pool.join(cores=4)
        assert pool.ask(m.Job(command="true", queue=10)).job == 1
        refusal = pool.ask(m.Job(command="true"))
        assert refusal.code == "busy"
        assert "10" in refusal.text
        assert pool.ask(m.Job(command="true", queue=10), sender=BOB).job == 2
        pool.finish(pool.to(WORKER, m.Tasks)[0])
        pool.run(1)
        done = len(pool.to(WORKER, m.Tasks)[0].tasks)
        assert pool.ask(m.Job(command="true", queue=done + 1)).code == "busy"
        assert pool.ask(m.Job(command="true", queue=done)).job == 3

    def test_what_could_never_fit_is_refused_for_good_instead_of_told_to_wait(self):
        pool = Rig(replace(SETTINGS, tasks_open_per_user_max=3))
        refusal = pool.ask(m.Job(command="true", queue=4))
        assert refusal.code == "too_many"
        assert "3" in refusal.text
        pool.ask(m.Job(command="x", args=[["a"]], open=True))
        assert pool.ask(m.Extend(job=1, offset=1, args=[["b"]] * 4)).code == "too_many"

    def test_additions_count_too(self):
        pool = Rig(replace(SETTINGS, tasks_open_per_user_max=3))
        pool.ask(m.Job(command="x", args=[["a"]], open=True))
        assert pool.ask(m.Extend(job=1, offset=1, args=[["b"], ["c"]])).size == 3
        assert pool.ask(m.Extend(job=1, offset=3, args=[["d"]])).code == "busy"
        assert pool.ask(m.Extend(job=1, offset=3, args=[], last=True)).size == 3

    def test_jobs_that_end_make_room(self):
        pool = Rig(replace(SETTINGS, tasks_open_per_user_max=3))
        for _ in range(5):
            job = pool.ask(m.Job(command="x", queue=3)).job
            assert pool.ask(m.Job(command="x")).code == "busy"
            pool.ask(m.Cancel(job=job))
        load = pool.manager.books.load
        assert (load.jobs, load.tasks_of, load.tasks) == ({}, {}, 0)

    def test_more_messages_than_allowed_are_refused_with_the_time_to_wait(self):
        pool = Rig(replace(SETTINGS, messages_per_s=10.0, messages_burst=20.0))
        for i in range(30):
            pool.tell(USER, m.Status(id=str(i)))
        pool.run()
        errors = pool.to(USER, m.Error)
        assert [e.code for e in errors] == ["rate"] * 10
        assert [e.re for e in errors] == [str(i) for i in range(20, 30)]
        assert "wait 0.1 s" in errors[0].hint
        assert len(pool.to(USER, m.JobStatus)) == 20
        pool.ask(m.Status(), sender="bob@example.org/x")
        pool.run(1)
        assert isinstance(pool.ask(m.Status()), m.JobStatus)

    def test_all_clients_of_a_user_share_its_limit(self):
        pool = Rig(replace(SETTINGS, messages_per_s=1.0, messages_burst=4.0))
        for i in range(8):
            pool.tell(f"ann@example.org/{i}", m.Status())
        pool.run()
        assert len([1 for _, sent, _ in pool.notes.sent if isinstance(sent, m.JobStatus)]) == 4

    def test_words_and_rubbish_count_too(self):
        pool = Rig(replace(SETTINGS, messages_per_s=1.0, messages_burst=2.0, refusals_burst=3.0))
        for _ in range(50):
            pool.manager.on_message(USER, b"nonsense", True)
            pool.manager.on_message(BOB, b"{", False)
        assert len(pool.notes.said) == 5
        assert len(refused(pool, BOB)) == 3

    def test_a_worker_that_floods_is_left_out_and_asked_to_introduce_itself_again(self):
        pool = Rig(replace(SETTINGS, worker_messages_per_s=1.0, worker_messages_burst=20.0))
        pool.join(cores=1)
        pool.join(BOB, cores=1)
        for n in range(50):
            pool.tell(WORKER, m.Report(n=n, attempts=[]))
        pool.tell(BOB, m.Report(n=7, attempts=[]))
        pool.run(1)
        assert len(pool.to(WORKER, m.Ack)) == 19
        assert len(pool.to(BOB, m.Ack)) == 1
        assert "unknown_worker" in refused(pool, WORKER)
        pool.join(cores=1)
        assert pool.ask(m.Pool()).count == 2

    def test_a_large_submission_of_our_own_client_never_meets_the_limit(self):
        """5,000 messages at once, then 1,000 a second; pieces of 100 kB make 500 MB of arguments."""
        pool = Rig(SETTINGS)
        pool.ask(m.Job(command="x", args=[], open=True))
        for i in range(4_000):
            text = codec.encode(m.Extend(job=1, offset=i, args=[["a"]]))
            pool.manager.on_message(USER, text, False)
        pool.run(1)
        assert not pool.to(USER, m.Error)
        assert pool.ask(m.Status(job=1)).jobs[0].size == 4_000
