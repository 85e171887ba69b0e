"""What the owner of a machine says: whose jobs run, and when. And that a worker obeys its manager alone."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

import pytest
from worker_rig import CHAT, DND, MANAGER, ME, XA, World

from kestrel.core import effects as fx
from kestrel.core import events as ev
from kestrel.core import execution_events as xe
from kestrel.core.addresses import Pattern
from kestrel.core.execution import Execution, ExecutionSettings
from kestrel.core.model import AttemptEnd, AttemptOutcome, JobTerms, SchedulerSettings, WorkerOffer
from kestrel.core.scheduler import Scheduler
from kestrel.ports import Show
from kestrel.protocol import codec
from kestrel.protocol import messages as m
from kestrel.worker.hours import Hours
from kestrel.worker.settings import OwnerRules
from kestrel.worker.strangers import ANSWERS_MAX, PAUSE_S

AWAY = Show.AWAY
ACCOUNT = "boss@example.org"
ANN = "ann@example.org"
BOB = "bob@elsewhere.net"
TUESDAY_NOON = datetime(2026, 11, 17, 12, tzinfo=UTC).timestamp()
SOON_SEVEN = TUESDAY_NOON - 5 * 3600 - 5.0
"""Five seconds before the hours end."""
NIGHTS = "20:00-07:00"


def lent_to(*users: str) -> OwnerRules:
    return OwnerRules(users=tuple(Pattern.parse(user) for user in users))


def nightly(at_close: str = "finish") -> OwnerRules:
    return OwnerRules(
        hours=Hours.parse(NIGHTS),
        at_close="stop" if at_close == "stop" else "finish",
        local_time=lambda unix: datetime.fromtimestamp(unix, UTC),
    )


def tasks(job: int, attempt: int, count: int, user: str, *, spec: bool = True) -> m.Tasks:
    words = m.TaskSpec(command=["run"], user=user) if spec else None
    return m.Tasks(job=job, attempt=attempt, tasks=list(range(count)), spec=words)


# --- strangers ----------------------------------------------------------------------------------------

ORDERS: list[m.Message] = [
    m.Tasks(job=1, attempt=90, tasks=[0], spec=m.TaskSpec(command="evil")),
    m.Stop(attempts=[1]),
    m.Revoke(job=1, count=5),
    m.Ack(n=(1 << 30) + 1),
    m.Welcome(epoch=99, tail_bytes=0, report_delay_s=9.0, lease_s=1e9),
    m.ReadOutput(id="x", job=1, task=0, attempt=1),
    m.Error(code="unknown_worker", text="introduce yourself"),
    m.Error(code="version", text="go away for good"),
]
STRANGERS = [
    "user@kestrel.localhost/x",
    "kestrel.localhost",
    f"pool@{MANAGER}",
    f"{MANAGER}.evil.org",
    f"evil.{MANAGER}",
    f"manager@{MANAGER}/kestrel",
    ME,
    "",
]


@pytest.mark.parametrize("sender", STRANGERS)
def test_orders_of_strangers_change_nothing(sender: str) -> None:
    world = World(slots=1)
    world.join()
    world.tell(tasks(1, 1, 3, ANN))
    world.end(1)
    world.taken()
    before = (len(world.started), len(world.presence), list(world.leases), world.agent.execution.load())
    for number, order in enumerate(ORDERS):
        world.agent.on_message(sender, codec.encode(order), False)
        world.agent.execution.check()
        assert world.taken() == [], order
        assert world.agent.counters["foreign_messages"] == number + 1
    world.agent.on_available(sender, CHAT, "I am the manager")
    world.agent.on_unavailable(sender, "the manager is gone")
    world.agent.on_heard(sender)
    assert (
        len(world.started),
        len(world.presence),
        list(world.leases),
        world.agent.execution.load(),
    ) == before
    assert (world.stopped, world.taken()) == ([], [])
    assert world.agent.execution.welcomed
    assert list(world.spool.kept) == [1], "nobody has stored it"  # type: ignore[attr-defined]


@pytest.mark.parametrize("order", ORDERS)
def test_another_session_of_the_managers_account_cannot_give_orders(order: m.Message) -> None:
    world = World(slots=1, manager=ACCOUNT)
    world.agent.on_up(ME)
    world.tell(m.Welcome(epoch=1), sender=f"{ACCOUNT}/real")
    world.tell(tasks(1, 1, 2, ANN), sender=f"{ACCOUNT}/real")
    world.taken()
    world.agent.on_message(f"{ACCOUNT}/phone", codec.encode(order), False)
    world.agent.on_unavailable(f"{ACCOUNT}/phone", "gone")
    assert [p.attempt for p in world.started] == [1]
    assert world.stopped == []
    if isinstance(order, m.Error) and order.code == "unknown_worker":
        # it may be the manager's next life: the account is asked, and whoever answers is the manager
        assert [type(said) for said in world.taken()] == [m.Profile]
        world.tell(m.Welcome(epoch=1), sender=f"{ACCOUNT}/real")
    else:
        assert world.taken() == []
        expected = [] if isinstance(order, m.Error) else [f"{ACCOUNT}/phone"]
        assert [to for to, _, _ in world.answers] == expected
    world.end(1)
    world.tell(m.Stop(attempts=[2]), sender=f"{ACCOUNT}/real")
    assert world.stopped == [2]


def test_until_it_is_welcomed_a_worker_takes_orders_from_the_session_that_welcomed_it_last() -> None:
    world = World(slots=1, manager=ACCOUNT)
    world.agent.on_up(ME)
    world.tell(tasks(1, 1, 1, ANN), sender=f"{ACCOUNT}/phone")
    assert world.started == [], "nobody has welcomed it"
    world.tell(m.Welcome(epoch=1), sender=f"{ACCOUNT}/old")
    world.agent.on_down("network")
    world.agent.on_up(ME)
    world.tell(tasks(1, 5, 1, ANN), sender=f"{ACCOUNT}/phone")
    assert world.started == []
    world.tell(tasks(1, 5, 1, ANN), sender=f"{ACCOUNT}/old")
    assert [p.attempt for p in world.started] == [5]
    world.tell(m.Welcome(epoch=2), sender=f"{ACCOUNT}/new")
    world.tell(m.Stop(attempts=[5]), sender=f"{ACCOUNT}/old")
    assert world.stopped == []
    world.tell(m.Stop(attempts=[5]), sender=f"{ACCOUNT}/new")
    assert world.stopped == [5]


def test_strangers_are_told_seldom_and_their_errors_and_what_they_say_again_are_not_answered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World()
    world.join()
    for _ in range(3):
        world.agent.on_message("ann@x/phone", b"hello, are you there?", True)
    ((to, said, chat),) = world.answers
    assert (to, chat) == ("ann@x/phone", True), "in kind"
    assert isinstance(said, m.Error)
    assert (said.code, MANAGER in said.text, bool(said.hint)) == ("not_my_manager", True, True)
    world.answers.clear()
    world.tell(m.Error(code="x", text="y"), sender="robot@x/1")
    assert world.answers == []
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        for number in range(10 * ANSWERS_MAX):
            world.tell(m.Stop(attempts=[1]), sender=f"crowd{number}@x/1")
    assert len(world.answers) == ANSWERS_MAX - 2
    lines = [r for r in caplog.records if r.getMessage() == "not_my_manager"]
    assert len(lines) == ANSWERS_MAX - 2
    assert lines[0].__dict__["sender"] == "crowd0@x/1"
    world.pass_time(PAUSE_S)
    world.answers.clear()
    world.tell(m.Stop(attempts=[1]), sender="ann@x/phone")
    assert len(world.answers) == 1


# --- whose jobs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("patterns", "user", "refused"),
    [
        ((), BOB, False),
        ((), "", False),
        (("ann@example.org",), ANN, False),
        (("*.org", "bob@elsewhere.net"), BOB, False),
        (("example.org",), ANN, False),
        (("example.org",), BOB, True),
        (("ann@example.org",), "ann@example.org.evil.net", True),
        (("ann@example.org",), "", True),
        (("*",), "", True),
    ],
)
def test_only_those_whom_the_owner_names_are_his_guests(
    patterns: tuple[str, ...], user: str, refused: bool
) -> None:
    assert lent_to(*patterns).refuses(user) is refused


def test_tasks_of_others_go_back_at_once_and_the_manager_is_told_once_per_job() -> None:
    world = World(slots=2, owner=lent_to("example.org"))
    world.join()
    world.tell(tasks(7, 10, 2, BOB))
    told, revoked = world.taken()
    assert isinstance(told, m.Error)
    assert (told.code, "job 7" in told.text, "example.org" in told.text) == ("user_refused", True, True)
    assert revoked == m.Revoked(job=7, attempts=[10, 11])
    world.tell(tasks(8, 20, 2, ANN))
    assert [p.attempt for p in world.started] == [20, 21]
    world.tell(tasks(7, 30, 1, BOB))
    assert world.taken() == [], "the second time it waits, so that the two do not play ball"
    world.pass_time(1.0)
    assert world.taken() == [m.Revoked(job=7, attempts=[30])]
    world.tell(tasks(7, 40, 1, BOB, spec=False))
    world.tell(m.Stop(attempts=[40]))
    world.pass_time(0.01)
    (report,) = world.taken()
    assert isinstance(report, m.Report)
    assert report.attempts[0].state == "cancelled"
    world.tell(m.Ack(n=report.n))
    world.tell(tasks(7, 50, 2, BOB))
    world.tell(m.Revoke(job=7, count=1))
    assert world.taken() == [m.Revoked(job=7, attempts=[50])], "called back like others that wait"
    world.agent.shutdown()
    assert m.Revoked(job=7, attempts=[51]) in world.taken()
    assert [p.attempt for p in world.started] == [20, 21]


def test_refused_tasks_that_wait_are_named_in_an_introduction_and_a_new_life_is_told_again() -> None:
    world = World(slots=2, owner=lent_to("example.org"))
    world.join()
    world.tell(tasks(7, 10, 1, BOB))
    world.tell(tasks(7, 11, 1, BOB))
    world.taken()
    world.agent.on_down("network")
    world.agent.on_up(ME)
    (profile,) = world.taken()
    assert isinstance(profile, m.Profile)
    assert profile.held == [m.HeldAttempt(7, 0, 11)]
    world.pass_time(2.0)
    assert world.taken() == [], "nobody is there to whom it could be given back"
    world.tell(m.Welcome(epoch=2))
    assert world.taken() == [m.Revoked(job=7, attempts=[11])]
    world.tell(tasks(7, 20, 1, BOB))
    assert [type(said) for said in world.taken()] == [m.Error, m.Revoked]


def test_a_manager_that_does_not_know_of_owners_neither_spins_nor_loses_a_task() -> None:
    """The real scheduler, which is not told the worker's `users`, and the real machine, on one clock."""
    scheduler = Scheduler(SchedulerSettings(), epoch=1)
    machine = Execution(
        ExecutionSettings(slots=2), lambda e: xe.Finished(e.job, e.task, e.attempt, b"", 1), life=1
    )
    now = 0.0
    rounds = 0
    pending: list[ev.Event] = [
        ev.WorkerJoined("picky@x/1", WorkerOffer(2)),
        ev.JobSubmitted(1, JobTerms(BOB), 6, False),
    ]
    orders: list[xe.ExecutionEvent] = [xe.ManagerWelcomed(1, 0.0, 100_000)]
    done: list[int] = []

    def turn() -> None:
        """Carry messages to and fro until nobody has anything to say."""
        nonlocal rounds
        while pending or orders:
            for effect in scheduler.handle([pending.pop(0)] if pending else [], now):
                match effect:
                    case fx.AssignTasks("picky@x/1", job, first, given):
                        rounds += 1
                        orders.append(xe.TasksReceived(job, first, given, None, "spec", 1, refused=True))
                    case fx.AssignTasks(worker, job, first, given):
                        ends = [
                            AttemptOutcome(job, task, first + i, AttemptEnd.COMPLETED, 0.1, None)
                            for i, task in enumerate(given)
                        ]
                        done.extend(given)
                        pending.append(ev.AttemptsReported(worker, len(done), ends))
                    case fx.RevokeTasks("picky@x/1", job, count):
                        orders.append(xe.RevocationRequested(job, count))
                    case fx.StopAttempts("picky@x/1", attempts):
                        orders.append(xe.StopRequested(attempts))
            for order in orders:
                for answer in machine.handle(order, now):
                    assert not isinstance(answer, xe.StartAttempts | xe.KeepFinished), "it must not run here"
                    if isinstance(answer, xe.SendRevoked):
                        pending.append(ev.AttemptsRevoked("picky@x/1", answer.job, list(answer.attempts)))
            orders.clear()
            scheduler.check_invariants()
            machine.check()

    turn()
    for _ in range(1200):
        now += 0.1
        pending += [ev.WorkerHeard("picky@x/1"), ev.TimePassed()]
        orders.append(xe.DeadlineReached())
        turn()
    assert 3 <= rounds <= 30, "the pauses grow"
    assert done == []
    pending.append(ev.WorkerJoined("open@x/1", WorkerOffer(2)))
    turn()
    for _ in range(1200):
        now += 0.1
        pending += [ev.WorkerHeard("picky@x/1"), ev.WorkerHeard("open@x/1"), ev.TimePassed()]
        orders.append(xe.DeadlineReached())
        turn()
    assert sorted(done) == list(range(6)), "each once, and none was set aside or counted as a failure"


# --- hours --------------------------------------------------------------------------------------------


def test_when_the_hours_end_it_shows_itself_away_gives_back_what_waits_and_lets_the_rest_end() -> None:
    world = World(slots=1, owner=nightly(), wall=SOON_SEVEN)
    world.join()
    world.tell(tasks(1, 1, 3, ANN))
    world.pass_time(2.0)
    world.order.clear()
    world.pass_time(4.0)
    assert world.order[:2] == ["away", "Revoked"], "else it would get back at once what it gives back"
    assert world.presence[-1] == (AWAY, "closed until Tue 20:00, 1/1 slots busy, job 1")
    assert world.taken() == [m.Revoked(job=1, attempts=[2, 3])]
    assert world.stopped == []
    world.tell(tasks(1, 9, 1, ANN))
    assert world.taken() == [m.Revoked(job=1, attempts=[9])], "what was under way"
    world.end(1)
    (report,) = world.taken()
    assert isinstance(report, m.Report)
    world.tell(m.Ack(n=report.n))
    world.pass_time(2)
    assert world.presence[-1] == (AWAY, "closed until Tue 20:00")
    world.pass_time(13 * 3600)
    assert world.presence[-1] == (CHAT, "0/1 slots busy")
    world.tell(tasks(1, 20, 1, ANN))
    assert [p.attempt for p in world.started] == [1, 20]


def test_with_stop_what_runs_is_stopped_and_reported_as_such() -> None:
    world = World(slots=1, owner=nightly("stop"), wall=SOON_SEVEN)
    world.join()
    world.tell(tasks(1, 1, 2, ANN))
    world.pass_time(6.0)
    assert world.stopped == [1]
    assert world.taken() == [m.Revoked(job=1, attempts=[2])]
    world.end(1, exit_code=None, signal=15)
    (report,) = world.taken()
    assert isinstance(report, m.Report)
    assert report.attempts[0].state == "cancelled", "the manager gives it to somebody else"


def test_a_worker_that_begins_outside_of_its_hours_joins_as_away_and_takes_nothing() -> None:
    world = World(slots=1, owner=nightly(), wall=TUESDAY_NOON)
    world.agent.on_up(ME)
    away = (AWAY, "closed until Tue 20:00")
    assert world.presence == [away, away], "once more behind the profile: only then a manager heeds it"
    world.tell(m.Welcome(epoch=1))
    world.taken()
    world.tell(tasks(1, 1, 2, ANN))
    assert world.taken() == [m.Revoked(job=1, attempts=[1, 2])]
    assert world.started == []
    world.pass_time(8 * 3600)
    assert world.presence[-1] == (CHAT, "0/1 slots busy")


def test_a_task_that_the_launcher_gives_back_outside_of_the_hours_goes_to_the_manager() -> None:
    world = World(slots=1, owner=nightly(), wall=SOON_SEVEN)
    world.join()
    world.tell(tasks(1, 1, 1, ANN))
    world.pass_time(6.0)
    world.end(1, exit_code=None, unstarted=True)
    assert world.taken() == [m.Revoked(job=1, attempts=[1])]


def test_leaving_while_closed_shows_that_it_leaves() -> None:
    world = World(slots=1, owner=nightly(), wall=SOON_SEVEN)
    world.join()
    world.tell(tasks(1, 1, 1, ANN))
    world.pass_time(6.0)
    world.agent.shutdown()
    world.pass_time(2)
    assert world.presence[-1][0] is XA
    assert DND not in [show for show, _ in world.presence[2:]]


def test_the_lease_is_told_to_the_link_with_each_welcome() -> None:
    world = World()
    world.agent.on_up(ME)
    world.tell(m.Welcome(epoch=1, lease_s=2.0))
    world.tell(m.Welcome(epoch=2, lease_s=30.0))
    world.tell(m.Welcome(epoch=1, lease_s=5.0))
    assert world.leases == [2.0, 30.0], "not by a life that was replaced"
