"""The agent as a reactor: what it says and does on each message, on a clock that the test turns."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from worker_rig import CHAT, DND, MANAGER, ME, XA, World

from kestrel.core.execution_events import Finished
from kestrel.errors import EnvironmentProblem, PeerError
from kestrel.ports import Show
from kestrel.protocol import codec
from kestrel.protocol import messages as m
from kestrel.worker.profile import detect
from kestrel.worker.spool import SPOOL_BYTES_MAX, MemorySpool


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
    assert list(world.spool.kept) == [50]  # type: ignore[attr-defined]
    world.tell(m.Ack(n=report.n))
    assert not world.spool.kept  # type: ignore[attr-defined]


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


# --- managers that change ----------------------------------------------------------------------------


def introductions(world: World) -> int:
    return sum(isinstance(message, m.Profile) for message in world.taken())


def test_a_manager_that_has_been_silent_for_two_leases_is_introduced_to_again() -> None:
    world = World()
    world.agent.on_up(ME)
    world.tell(m.Welcome(epoch=1, lease_s=10.0))
    world.taken()
    for _ in range(10):
        world.pass_time(15)
        world.agent.on_heard(MANAGER)
    assert world.taken() == [], "its pings are signs of life"
    world.pass_time(19.9)
    world.agent.on_heard("eve@kestrel.localhost/x")
    assert world.taken() == []
    world.pass_time(0.2)
    assert introductions(world) == 1
    assert world.agent.counters["silences"] == 1
    world.tell(m.Welcome(epoch=2, lease_s=10.0))
    world.pass_time(19.9)
    assert world.taken() == []


def test_a_worker_whose_manager_changes_keeps_what_runs_and_reports_what_ended_after_the_welcome() -> None:
    world = World()
    world.join()
    world.tell(m.Tasks(job=1, attempt=(1 << 32) + 1, tasks=[0, 1], spec=m.TaskSpec(command=["a"])))
    world.end((1 << 32) + 1)
    world.taken()
    world.agent.on_available(MANAGER, Show.ONLINE, "")
    world.tell(m.Error(code="unknown_worker", text="I am new"))
    (profile,) = world.taken()
    assert isinstance(profile, m.Profile)
    assert {h.attempt for h in profile.held} == {(1 << 32) + 1, (1 << 32) + 2}
    world.tell(m.Welcome(epoch=2))
    world.pass_time(0.1)
    (report,) = world.taken()
    assert isinstance(report, m.Report)
    assert [a.attempt for a in report.attempts] == [(1 << 32) + 1]
    assert world.stopped == []
    world.tell(m.Ack(n=report.n, epoch=1))
    assert list(world.spool.kept) == [(1 << 32) + 1], "what the old one says counts no more"  # type: ignore[attr-defined]
    world.tell(m.Ack(n=report.n, epoch=2))
    assert not world.spool.kept  # type: ignore[attr-defined]
    assert not world.agent.execution.is_running((1 << 32) + 1)
    assert world.agent.execution.is_running((1 << 32) + 2)


def test_a_call_is_answered_by_one_introduction_whatever_the_worker_knew() -> None:
    for went_before in (False, True):
        world = World()
        world.join()
        if went_before:
            world.agent.on_unavailable(MANAGER, "gone")
        world.agent.on_available(MANAGER, Show.ONLINE, "")
        world.tell(m.Error(code="unknown_worker", text="I am new"))
        assert introductions(world) == 1, went_before
        world.tell(m.Welcome(epoch=2))
        world.pass_time(20)
        assert introductions(world) == 0, went_before


def test_a_call_behind_an_introduction_that_was_lost_is_answered_soon() -> None:
    world = World()
    world.join()
    world.tell(m.Error(code="unknown_worker", text="I forgot you"))
    assert introductions(world) == 1, "and it is lost, with the manager that died just then"
    world.pass_time(1)
    world.tell(m.Error(code="unknown_worker", text="I am new"))
    assert introductions(world) == 0, "it may be on its way"
    world.pass_time(1.6)
    assert introductions(world) == 1


def test_what_a_replaced_manager_says_is_ignored_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.agent.on_up(ME)
    world.tell(m.Welcome(epoch=5))
    world.taken()
    for _ in range(3):
        world.tell(m.Welcome(epoch=4))
        world.tell(m.Tasks(job=1, attempt=(4 << 32) + 7, tasks=[0], spec=m.TaskSpec(command=["a"])))
        world.tell(m.Ack(n=1, epoch=4))
    assert world.started == []
    assert world.agent.execution.welcomed
    ignored = [r for r in caplog.records if r.message == "other_life_ignored"]
    assert sorted(r.__dict__["what"] for r in ignored) == [
        "foreign_tasks",
        "old_acknowledgements",
        "old_welcomes",
    ]
    world.tell(m.Tasks(job=1, attempt=(5 << 32) + 7, tasks=[0], spec=m.TaskSpec(command=["a"])))
    assert len(world.started) == 1


def test_an_introduction_names_the_life_that_welcomed_the_worker_last() -> None:
    world = World()
    world.agent.on_up(ME)
    assert [p.epoch for p in world.taken() if isinstance(p, m.Profile)] == [0]
    world.tell(m.Welcome(epoch=5))
    world.tell(m.Welcome(epoch=4))
    world.tell(m.Error(code="unknown_worker", text="I am back"))
    assert [p.epoch for p in world.taken() if isinstance(p, m.Profile)] == [5]


def test_the_end_of_an_account_managers_old_session_is_not_the_end_of_the_new_one() -> None:
    world = World()
    world.agent.on_up(ME)
    world.tell(m.Welcome(epoch=2), sender=f"{MANAGER}/new")
    world.agent.on_unavailable(f"{MANAGER}/old", "replaced")
    assert world.agent.execution.welcomed
    world.agent.on_unavailable(f"{MANAGER}/new", "gone")
    assert not world.agent.execution.welcomed


# --- a spool that cannot be written -------------------------------------------------------------------


class Disk(MemorySpool):
    """A spool on a disk that may be full."""

    full = False

    def keep(self, finished: Sequence[Finished]) -> None:
        if self.full:
            raise EnvironmentProblem("the disk is full")
        super().keep(finished)

    def forget(self, attempts: Sequence[int]) -> None:
        if self.full:
            raise EnvironmentProblem("the disk is full")
        super().forget(attempts)


def test_while_the_spool_is_full_nothing_is_started_and_it_goes_on_when_there_is_room() -> None:
    disk = Disk()
    world = World(spool=disk)
    world.join()
    disk.full = True
    world.tell(m.Tasks(job=1, attempt=1, tasks=list(range(5)), spec=m.TaskSpec(command=["a"])))
    world.end(1, wall_s=9.0)
    world.pass_time(0.1)
    (report,) = world.taken()
    assert isinstance(report, m.Report), "what cannot be kept is reported all the same"
    assert world.presence[-1] == (Show.AWAY, "2/2 slots busy, job 1, spool full")
    world.end(2, wall_s=9.0)
    world.end(3, wall_s=9.0)
    world.pass_time(3)
    assert [s.attempt for s in world.started] == [1, 2, 3], (
        "the third began before the first could not be kept"
    )
    assert disk.kept == {}
    disk.full = False
    world.pass_time(30)
    assert set(disk.kept) == {1, 2, 3}
    assert [s.attempt for s in world.started] == [1, 2, 3, 4, 5]
    assert world.presence[-1] == (DND, "2/2 slots busy, job 1")


def test_while_there_is_no_room_to_spare_results_are_written_and_nothing_is_started() -> None:
    class Short(Disk):
        short = False

        def check_room(self) -> None:
            if self.short:
                raise EnvironmentProblem("0.1 MiB are left")

        def check(self) -> None:
            self.check_room()

    disk = Short()
    world = World(spool=disk)
    world.join()
    disk.short = True
    world.tell(m.Tasks(job=1, attempt=1, tasks=list(range(6)), spec=m.TaskSpec(command=["a"])))
    for attempt in (1, 2):
        world.end(attempt, wall_s=9.0)
    world.pass_time(60)
    begun = [s.attempt for s in world.started]
    assert len(begun) < 6
    assert set(disk.kept) >= {1, 2}
    disk.short = False
    world.pass_time(30)
    assert len(world.started) > len(begun)


def test_the_pauses_between_tries_to_write_grow_up_to_a_bound() -> None:
    disk = Disk()
    tried = []
    world = World(spool=disk)
    world.join()
    disk.full = True
    world.agent.on_unavailable(MANAGER, "gone")
    world.tell(m.Tasks(job=1, attempt=1, tasks=[0], spec=m.TaskSpec(command=["a"])))
    world.end(1)
    failures = world.agent.counters["spool_failures"]
    for _ in range(2000):
        world.pass_time(0.1)
        if world.agent.counters["spool_failures"] != failures:
            failures = world.agent.counters["spool_failures"]
            tried.append(world.time)
    pauses = [round(b - a) for a, b in pairwise([0.0, *tried])]
    assert pauses[:6] == [1, 2, 4, 8, 16, 30]
    assert set(pauses[6:]) == {30}


def test_acknowledged_results_that_make_room_end_the_pause_at_once() -> None:
    disk = Disk()
    world = World(slots=1, spool=disk)
    world.join()
    disk.full = True
    world.tell(m.Tasks(job=1, attempt=1, tasks=[0, 1], spec=m.TaskSpec(command=["a"])))
    world.end(1, wall_s=9.0)
    world.pass_time(0.1)
    (report,) = world.taken()
    assert isinstance(report, m.Report)
    disk.full = False
    world.tell(m.Ack(n=report.n))
    assert [s.attempt for s in world.started] == [1, 2]
    assert disk.kept == {}
    assert world.agent.keeper.unwritten == 0


def test_what_could_not_be_forgotten_is_forgotten_when_the_spool_works_again() -> None:
    disk = Disk()
    world = World(spool=disk)
    world.join()
    world.tell(m.Tasks(job=1, attempt=1, tasks=[0], spec=m.TaskSpec(command=["a"])))
    world.end(1)
    (report,) = world.taken()
    assert isinstance(report, m.Report)
    disk.full = True
    world.tell(m.Ack(n=report.n))
    assert set(disk.kept) == {1}
    disk.full = False
    world.pass_time(2)
    assert disk.kept == {}


def test_a_worker_that_is_to_leave_waits_for_what_only_memory_holds() -> None:
    disk = Disk()
    left: list[int] = []
    world = World(spool=disk)
    world.agent.on_left = lambda: left.append(1)
    world.join()
    world.tell(m.Tasks(job=1, attempt=1, tasks=[0], spec=m.TaskSpec(command=["a"])))
    disk.full = True
    world.end(1)
    world.agent.on_unavailable(MANAGER, "gone")
    world.agent.shutdown()
    world.pass_time(5)
    assert left == []
    disk.full = False
    world.pass_time(30)
    assert left == [1]
    assert set(disk.kept) == {1}


def test_while_nobody_listens_work_is_taken_up_to_a_bound_and_goes_on_later() -> None:
    world = World(slots=1, finished_max=3)
    world.join()
    world.tell(m.Tasks(job=1, attempt=1, tasks=list(range(9)), spec=m.TaskSpec(command=["a"])))
    world.agent.on_unavailable(MANAGER, "gone")
    for attempt in (1, 2, 3):
        world.end(attempt, wall_s=9.0)
    world.pass_time(1000)
    assert [s.attempt for s in world.started] == [1, 2, 3]
    world.taken()
    world.agent.on_available(MANAGER, Show.ONLINE, "")
    world.tell(m.Welcome(epoch=1))
    world.pass_time(0.1)
    report = world.taken()[-1]
    assert isinstance(report, m.Report)
    world.tell(m.Ack(n=report.n, epoch=1))
    assert [s.attempt for s in world.started] == [1, 2, 3, 4]


def test_what_memory_may_hold_fits_into_the_spool() -> None:
    settings = World().agent.settings
    worst_overshoot = 64 * 1024 * 1024  # what may still be running when the bound is reached
    assert settings.finished_bytes_max + worst_overshoot <= SPOOL_BYTES_MAX


def test_what_ran_while_nobody_listened_can_all_be_named_when_somebody_is_back() -> None:
    """What is not named counts as not held: it would be run again, or, if it must not, set aside."""
    world = World(slots=2)
    world.join()
    spec = m.TaskSpec(command=["true"])
    for first in range(0, 4000, 1000):
        attempt = (1 << 32) + 1 + first
        world.tell(m.Tasks(job=1, attempt=attempt, tasks=list(range(first, first + 1000)), spec=spec))
    world.agent.on_down("the cable")
    begun: list[int] = []
    while world.started:
        started, world.started = world.started, []
        begun += [s.attempt for s in started]
        for s in started:
            world.end(s.attempt, wall_s=0.001)
    assert 2000 < len(begun) < 4000
    world.taken()
    world.agent.on_up(ME)
    (profile,) = [message for message in world.taken() if isinstance(message, m.Profile)]
    assert {h.attempt for h in profile.held} >= set(begun)
    assert codec.wire_size(codec.encode(profile)) <= world.agent.settings.stanza_bytes_max
    world.tell(m.Welcome(epoch=2, stanza_bytes_max=100_000))
    assert not world.started, "to this manager no more can be named"
