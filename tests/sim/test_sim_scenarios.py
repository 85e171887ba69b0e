"""What seeds of the simulator found, as small histories with names: each broke a law once."""

from __future__ import annotations

from sim_stage import Stage

from kestrel.sim.scripts import Behaviour


def test_a_watcher_is_not_told_of_results_that_are_still_being_stored() -> None:
    stage = Stage(workers=2)
    stage.world.disk.settings.delay_s = 0.5
    plan = stage.job(1, "watched", [Behaviour(0.05)] * 60)
    plan.watch = True
    stage.play(30)
    assert [result.state for result in plan.seen] == ["COMPLETED"] * 60


def test_a_request_that_arrives_twice_waits_once() -> None:
    stage = Stage(workers=1)
    stage.world.network.settings.duplicate_probability = 1.0
    plan = stage.job(1, "asked", [Behaviour(5.0), Behaviour(5.0)])
    stage.play(9)
    assert sorted(result.task for result in plan.seen) == [0, 1]


def test_an_idle_worker_that_was_cut_off_beyond_its_lease_is_taken_in_again() -> None:
    stage = Stage(workers=1)
    (worker,) = stage.world.workers
    stage.at(5, lambda: stage.world.network.stall(worker.link, True))
    stage.at(20, lambda: stage.world.network.stall(worker.link, False))
    plan = stage.job(25, "late", [Behaviour(0.5)] * 4)
    stage.play(30)
    assert {result.state for result in plan.seen} == {"COMPLETED"}
    assert stage.world.timeline.now < 60


def test_a_worker_that_is_back_before_its_loss_is_stored_gets_work() -> None:
    stage = Stage(workers=1)
    (worker,) = stage.world.workers
    plan = stage.job(4, "interrupted", [Behaviour(2.0)] * 8)
    stage.at(5, lambda: setattr(stage.world.disk.settings, "delay_s", 2.0))
    stage.at(6, worker.crash)
    stage.at(6, worker.start)
    stage.play(7)
    assert {result.state for result in plan.seen} == {"COMPLETED"}
    assert any(stage.runs(plan, task) > 1 for task in range(8))
    assert stage.world.timeline.now < 60


def test_shell_and_scheduler_agree_on_who_is_drained_after_a_quick_return() -> None:
    stage = Stage(workers=2)
    drained, other = stage.world.workers
    user = stage.world.users[0]
    plan = stage.job(3, "interrupted", [Behaviour(2.0)] * 30)
    stage.at(4, lambda: user.drain(drained.address, undo=False))
    stage.at(4.5, lambda: setattr(stage.world.disk.settings, "delay_s", 2.0))
    stage.at(4.6, drained.crash)
    stage.at(4.6, drained.start)
    stage.at(30, lambda: user.drain(drained.address, undo=True))
    again = stage.job(70, "anywhere", [Behaviour(2.0)] * 40)
    stage.play(71)
    assert {result.state for result in plan.seen} == {"COMPLETED"}
    assert {result.worker for result in again.seen} == {drained.address, other.address}


def test_a_task_that_must_not_run_twice_is_not_run_by_the_next_manager() -> None:
    stage = Stage(workers=2)
    plan = stage.job(3, "once", [Behaviour(15.0)] * 2, restart="never")
    for worker in stage.world.workers:
        stage.at(5, lambda link=worker.link: stage.world.network.stall(link, True))  # type: ignore[misc]
        stage.at(14, lambda link=worker.link: stage.world.network.stall(link, False))  # type: ignore[misc]
    stage.at(6, stage.world.manager.crash)
    stage.at(7, stage.world.manager.start)
    stage.play(20)
    assert [result.state for result in plan.seen] == ["NODE_FAIL"] * 2
    assert [stage.runs(plan, task) for task in (0, 1)] == [1, 1]


def test_a_task_that_must_not_run_twice_goes_on_when_its_worker_is_back_in_time() -> None:
    stage = Stage(workers=2)
    plan = stage.job(3, "once", [Behaviour(15.0)] * 2, restart="never")
    stage.at(6, stage.world.manager.crash)
    stage.at(7, stage.world.manager.start)
    stage.play(8)
    assert [result.state for result in plan.seen] == ["COMPLETED"] * 2
    assert [stage.runs(plan, task) for task in (0, 1)] == [1, 1]


def test_a_task_that_must_not_run_twice_is_lost_with_the_launcher_of_a_leaving_worker() -> None:
    stage = Stage(workers=1)
    (worker,) = stage.world.workers
    plan = stage.job(3, "once", [Behaviour(5.0)], restart="never")
    stage.at(6, lambda: worker.leave(kill=True))
    stage.at(6, lambda: worker.launcher and worker.launcher.fail())
    stage.play(8)
    assert [result.state for result in plan.seen] == ["NODE_FAIL"]
    assert stage.runs(plan, 0) == 1


def test_a_cancelled_task_whose_launcher_dies_is_cancelled() -> None:
    stage = Stage(workers=1)
    (worker,) = stage.world.workers
    plan = stage.job(3, "unwanted", [Behaviour(5.0)])
    plan.cancel_after_s = 2.0
    stage.at(5.01, lambda: worker.launcher and worker.launcher.fail())
    stage.play(8)
    assert [result.state for result in plan.seen] == ["CANCELLED"]
    assert stage.runs(plan, 0) == 1


def test_a_running_task_survives_a_restart_of_manager_and_server_without_being_run_again() -> None:
    stage = Stage(workers=1)
    plan = stage.job(3, "survivor", [Behaviour(15.0)])
    stage.at(6, stage.world.manager.crash)
    stage.at(6, stage.world.network.stop_server)
    stage.at(7, stage.world.network.start_server)
    stage.at(7, stage.world.manager.start)
    stage.play(8)
    assert [result.state for result in plan.seen] == ["COMPLETED"]
    assert stage.runs(plan, 0) == 1


def test_a_killed_worker_is_missed_at_once_and_its_task_runs_elsewhere() -> None:
    stage = Stage(workers=2)
    plan = stage.job(3, "moved", [Behaviour(10.0)])
    stage.at(6, lambda: next(w for w in stage.world.workers if w.launcher and w.launcher.running).crash())
    stage.play(8)
    first, second = stage.world.ledger.by_task[("moved", 0)]
    assert first.ended == 6.0
    assert second.started < 6.1
    assert first.host != second.host
    assert [result.attempt for result in plan.seen] == [second.attempt]


def test_a_poisonous_task_is_set_aside_and_the_others_end() -> None:
    stage = Stage(workers=1)
    plan = stage.job(3, "poison", [Behaviour(0.5, kills_worker=1000), *[Behaviour(0.1)] * 3])
    stage.play(4)
    states = {result.task: result.state for result in plan.seen}
    assert states[0] == "NODE_FAIL"
    assert stage.runs(plan, 0) == 3


def test_a_worker_that_has_room_again_stays_drained_if_a_user_said_so_meanwhile() -> None:
    """Seed 464: the drain waited behind a slow unit, and the worker's later presence undid it."""
    stage = Stage(workers=2)
    world = stage.world
    full, other = world.workers
    user = world.users[0]
    stage.job(3, "before", [Behaviour(0.5)] * 20)
    stage.at(3.2, lambda: full.spool and setattr(full.spool, "unwritable", True))
    stage.at(6.0, lambda: setattr(world.disk.settings, "wait_s", 3.0))
    stage.job(6.0, "slow", [Behaviour(0.5)])
    stage.at(6.1, lambda: user.drain(full.address, undo=False))
    stage.at(6.1, lambda: full.spool and setattr(full.spool, "unwritable", False))
    stage.at(9.5, lambda: setattr(world.disk.settings, "wait_s", 0.0))
    after = stage.job(20, "after", [Behaviour(0.5)] * 10)
    stage.play(30)
    assert {result.worker for result in after.seen} == {other.address}
