"""The agent as a reactor: what it says and does on each message, on a clock that the test turns."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from kestrel.core.execution_events import Finished
from kestrel.errors import EnvironmentProblem, PeerError
from kestrel.ports import ProcessEnded, Show, StartProcess
from kestrel.protocol import codec
from kestrel.protocol import messages as m
from kestrel.worker.agent import WorkerAgent
from kestrel.worker.profile import detect
from kestrel.worker.settings import WorkerSettings
from kestrel.worker.spool import MemorySpool, Spool

MANAGER = "manager.kestrel.localhost"
ME = "w1@kestrel.localhost/box"
CHAT, DND, XA = Show.CHAT, Show.DND, Show.XA


@dataclass
class Timer:
    at: float
    callback: Callable[[], None]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


class World:
    """Clock, transport and launcher in one; `said` and `started` are what the agent did since last asked."""

    def __init__(self, slots: int = 2, spool: Spool | None = None, directory: str = "/nowhere") -> None:
        self.time = 0.0
        self.timers: list[Timer] = []
        self.messages: list[m.Message] = []
        self.presence: list[tuple[Show | None, str]] = []
        self.started: list[StartProcess] = []
        self.stopped: list[int] = []
        profile = m.Profile(cores=slots, provides=["FOO"])
        settings = WorkerSettings(MANAGER, profile, workdir="/work dir", output_directory=directory)
        self.agent = WorkerAgent(self, self, self, spool or MemorySpool(), settings)

    def now(self) -> float:
        return self.time

    def wall(self) -> float:
        return 1e9 + self.time

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        assert delay_s >= 0
        timer = Timer(self.time + delay_s, callback)
        self.timers.append(timer)
        return timer

    def send(self, to: str, payload: bytes, *, chat: bool = False) -> None:
        assert to.startswith(MANAGER)
        self.messages.append(codec.decode_to_manager(payload))

    def say(self, to: str, text: str) -> None:
        raise AssertionError("a worker does not talk to people")

    def announce(self, to: str, show: Show, status: str) -> None:
        assert to == MANAGER
        self.presence.append((show, status))

    def withdraw(self, to: str) -> None:
        self.presence.append((None, ""))

    def ping(self, to: str) -> None:
        raise AssertionError("a worker pings nobody")

    def start(self, processes: Sequence[StartProcess]) -> None:
        self.started += processes

    def stop(self, attempts: Sequence[int]) -> None:
        self.stopped += attempts

    # --- the test's hand ---------------------------------------------------------------------------

    def pass_time(self, seconds: float) -> None:
        end = self.time + seconds
        while True:
            due = [t for t in self.timers if t.at <= end and not t.cancelled]
            if not due:
                break
            timer = min(due, key=lambda t: t.at)
            self.timers.remove(timer)
            self.time = max(self.time, timer.at)
            timer.callback()
            self.agent.execution.check()
        self.time = end

    def tell(self, message: m.Message, sender: str = MANAGER) -> None:
        self.agent.on_message(sender, codec.encode(message), False)
        self.agent.execution.check()

    def taken(self) -> list[m.Message]:
        messages, self.messages = self.messages, []
        return messages

    def join(self) -> None:
        self.agent.on_up(ME)
        self.tell(m.Welcome(epoch=1, report_delay_s=0.005))
        self.taken()
        self.presence.clear()

    def end(self, attempt: int, **fields: object) -> None:
        self.agent.on_ended([ProcessEnded(attempt, **({"exit_code": 0} | fields))])  # type: ignore[arg-type]


def test_on_connecting_it_shows_itself_and_sends_its_profile_then_repeats_with_growing_delay() -> None:
    world = World()
    world.agent.on_up(ME)
    assert world.presence == [(CHAT, "0/2 slots busy")]
    profile = m.Profile(cores=2, provides=["FOO"])
    assert world.taken() == [profile]
    times = []
    for _ in range(1200):
        world.pass_time(0.1)
        times += [round(world.time)] * len(world.taken())
    assert 4 <= len(times) <= 6
    assert times[1] - times[0] < times[3] - times[2] <= 80


def test_a_task_is_started_with_its_words_environment_and_files_and_its_end_is_reported() -> None:
    world = World(directory="/spool/out")
    world.join()
    spec = m.TaskSpec(command=["run", "{1}", "{#}"], cleanup="rm {}; true", env={"A": "b"}, time_limit_s=9.0)
    world.tell(m.Tasks(job=7, attempt=50, tasks=[4], params=[["x y", "z"]], spec=spec))
    (start,) = world.started
    assert start.argv == ["run", "x y", "5"]
    assert start.cleanup == ["/bin/sh", "-c", "rm 'x y' z; true"]
    assert (start.workdir, start.time_limit_s, start.tail_bytes) == ("/work dir", 9.0, 4096)
    assert (start.stdout, start.stderr) == ("/spool/out/7/4.50.out", "/spool/out/7/4.50.err")
    assert start.env == {
        "A": "b",
        "KESTREL_JOB_ID": "7",
        "KESTREL_TASK_ID": "4",
        "KESTREL_ATTEMPT": "50",
        "KESTREL_WORKER": ME,
        "KESTREL_ENTRY": "x y",
        "KESTREL_TASK_DIR": "/work dir",
        "SLURM_ARRAY_JOB_ID": "7",
        "SLURM_ARRAY_TASK_ID": "4",
    }
    world.end(50, exit_code=3, wall_s=1.5, out="hello")
    (report,) = world.taken()
    assert isinstance(report, m.Report)
    attempt = m.AttemptReport(job=7, task=4, attempt=50, state="failed", exit_code=3, wall_s=1.5, out="hello")
    assert report.attempts == [attempt]
    assert world.agent.spool.restored == ()
    assert list(world.agent.spool.kept) == [50]  # type: ignore[attr-defined]
    world.tell(m.Ack(n=report.n))
    assert not world.agent.spool.kept  # type: ignore[attr-defined]


def test_strangers_are_ignored_and_counted() -> None:
    world = World()
    world.join()
    for sender in ("user@kestrel.localhost/x", "manager.kestrel.localhost.evil.org", "kestrel.localhost", ""):
        world.tell(m.Stop(attempts=[1]), sender=sender)
        world.tell(m.Tasks(job=1, attempt=1, tasks=[0], spec=m.TaskSpec(command="evil")), sender=sender)
        world.agent.on_unavailable(sender, "")
    assert world.agent.counters["foreign_messages"] == 8
    assert (world.started, world.taken()) == ([], [])
    assert world.agent.execution.welcomed
    world.tell(
        m.Tasks(job=1, attempt=1, tasks=[0], spec=m.TaskSpec(command="good")), sender=f"pool@{MANAGER}"
    )
    assert len(world.started) == 1


def test_while_the_manager_is_away_work_goes_on_and_everything_is_told_when_it_is_back() -> None:
    world = World()
    world.join()
    world.tell(m.Tasks(job=1, attempt=1, tasks=[0, 1], spec=m.TaskSpec(command=["a"])))
    world.agent.on_unavailable(MANAGER, "gone")
    world.end(1)
    assert world.taken() == []
    world.pass_time(1.0)
    assert [type(t) for t in world.taken()] == [m.Profile], "it may be back without knowing us"
    world.agent.on_unavailable(MANAGER, "bounced")
    world.agent.on_available(MANAGER, Show.ONLINE, "")
    (profile,) = world.taken()
    assert isinstance(profile, m.Profile)
    assert profile.held == [m.HeldAttempt(1, 1, 2), m.HeldAttempt(1, 0, 1)]
    world.tell(m.Welcome(epoch=2))
    world.pass_time(0.1)
    (report,) = world.taken()
    assert isinstance(report, m.Report)
    assert [a.attempt for a in report.attempts] == [1]


def test_a_lost_connection_is_like_a_lost_manager() -> None:
    world = World()
    world.join()
    world.tell(m.Tasks(job=1, attempt=1, tasks=[0], spec=m.TaskSpec(command=["a"])))
    world.agent.on_down("broken")
    world.end(1)
    world.pass_time(100)
    assert world.taken() == []
    world.agent.on_up(ME)
    (profile,) = world.taken()
    assert isinstance(profile, m.Profile)
    assert profile.held == [m.HeldAttempt(1, 0, 1)]


def test_one_who_is_no_worker_to_the_manager_introduces_itself_again() -> None:
    world = World()
    world.join()
    world.tell(m.Error(code="unknown_worker", text="who are you?"))
    assert [type(t) for t in world.taken()] == [m.Profile]
    world.tell(m.Error(code="unknown_worker", text="who are you?"))
    assert world.taken() == [], "once is enough until the welcome"


def test_a_manager_of_another_protocol_is_a_clear_error() -> None:
    world = World()
    problems: list[Exception] = []
    world.agent.on_failed = problems.append
    world.agent.on_up(ME)
    world.tell(m.Error(code="version", text="the worker speaks protocol 2, this manager 1", hint="upgrade"))
    (problem,) = problems
    assert isinstance(problem, PeerError)
    assert str(problem) == "the worker speaks protocol 2, this manager 1\n  hint: upgrade"
    world.taken()
    world.pass_time(1000)
    assert world.taken() == [], "it does not insist"


def test_stop_and_revoke_reach_launcher_and_queue() -> None:
    world = World(slots=1)
    world.join()
    world.tell(m.Tasks(job=1, attempt=1, tasks=[0, 1, 2], spec=m.TaskSpec(command=["a"])))
    world.tell(m.Stop(attempts=[1]))
    world.tell(m.Revoke(job=1, count=1))
    assert world.stopped == [1]
    assert world.taken() == [m.Revoked(job=1, attempts=[3])]


def test_a_bad_message_is_answered_with_an_error() -> None:
    world = World()
    world.join()
    world.agent.on_message(MANAGER, b'{"type":"tasks","job":"x"}', False)
    (error,) = world.taken()
    assert isinstance(error, m.Error)
    assert error.code == "bad_field"


def test_the_load_is_shown_for_people() -> None:
    world = World()
    world.join()
    world.tell(m.Tasks(job=17, attempt=1, tasks=[0, 1], spec=m.TaskSpec(command=["a"])))
    world.pass_time(2)
    assert world.presence == [(DND, "2/2 slots busy, job 17")]
    world.agent.shutdown()
    assert world.presence[1:] == [(XA, "2/2 slots busy, job 17, leaving")]


def test_leaving_in_order_withdraws_at_the_end() -> None:
    world = World()
    left: list[int] = []
    world.agent.on_left = lambda: left.append(1)
    world.join()
    world.tell(m.Tasks(job=1, attempt=1, tasks=[0], spec=m.TaskSpec(command=["a"])))
    world.agent.shutdown(kill=True)
    assert world.stopped == [1]
    world.end(1, exit_code=None, signal=15)
    (report,) = world.taken()
    assert isinstance(report, m.Report)
    assert report.attempts[0].state == "cancelled"
    assert left == []
    world.tell(m.Ack(n=report.n))
    assert left == [1]
    assert world.presence[-1] == (None, "")


def test_output_is_read_in_pieces_also_while_the_task_runs(tmp_path: Path) -> None:
    world = World(directory=str(tmp_path))
    world.join()
    world.tell(m.Tasks(job=7, attempt=1, tasks=[0], spec=m.TaskSpec(command=["a"])))
    ask = m.ReadOutput(id="q", job=7, task=0, attempt=1, offset=2, limit=3)
    world.tell(ask)
    part = m.OutputPart(re="q", job=7, task=0, attempt=1, offset=2)
    assert world.taken() == [part], "nothing is written yet"
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "0.1.out").write_bytes(b"abcdefgh")
    world.tell(ask)
    part = msgspec.structs.replace(part, data=base64.b64encode(b"cde").decode(), size=8)
    assert world.taken() == [part]
    world.end(1, out="h", out_bytes=8)
    world.taken()
    world.tell(ask)
    assert world.taken() == [msgspec.structs.replace(part, final=True)]
    world.tell(msgspec.structs.replace(ask, stream="stderr"))
    (error,) = world.taken()
    assert isinstance(error, m.Error)
    assert (error.re, error.code) == ("q", "no_output")


def test_a_spool_that_cannot_be_written_does_not_lose_the_result() -> None:
    class Full(MemorySpool):
        def keep(self, finished: Sequence[Finished]) -> None:
            raise EnvironmentProblem("the disk is full")

    world = World(spool=Full())
    world.join()
    world.tell(m.Tasks(job=7, attempt=1, tasks=[0], spec=m.TaskSpec(command=["a"])))
    world.end(1)
    assert [type(t) for t in world.taken()] == [m.Report]
    assert world.agent.counters["spool_failures"] == 1


def test_outputs_that_stay_are_bounded(tmp_path: Path) -> None:
    from kestrel.worker.outputs import Outputs

    outputs = Outputs(str(tmp_path), bytes_max=250)
    (tmp_path / "1").mkdir()
    for i in range(4):
        (tmp_path / "1" / f"{i}.9.out").write_bytes(b"x" * 100)
        outputs.ended(1, i, 9, (100, 0), 50)
    assert sorted(p.name for p in (tmp_path / "1").iterdir()) == ["2.9.out", "3.9.out"]
    later = Outputs(str(tmp_path), files_max=1)
    later.load()
    assert [p.name for p in (tmp_path / "1").iterdir()] == ["3.9.out"]


def test_the_machine_is_described() -> None:
    profile = detect(slots=3, provides=["A"], labels={"room": "12"})
    assert profile.os
    assert profile.cores >= 1
    assert (profile.slots, profile.provides, profile.labels, profile.protocol) == (
        3,
        ["A"],
        {"room": "12"},
        1,
    )
    assert len(codec.encode(profile)) < 1000
