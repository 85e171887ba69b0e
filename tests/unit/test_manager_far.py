"""What is lost between two servers is given out again; workers of the manager's own server are left alone."""

from __future__ import annotations

from dataclasses import replace

from kestrel.core.model import SchedulerSettings
from kestrel.manager.access import AccessRules
from kestrel.manager.settings import ManagerSettings
from kestrel.ports import Show
from kestrel.protocol import messages as m
from parts.manager import USER, WORKER, Rig

FAR = "w1@example.com/worker"
LEASE_S = 15.0
SETTINGS = ManagerSettings(
    scheduler=replace(SchedulerSettings(), settle_s=1.0, lease_s=LEASE_S, probe_s=5.0),
    tick_s=0.5,
    access=AccessRules.of(workers=("example.org", "example.com")),
)


def make(worker: str) -> tuple[Rig, m.Tasks]:
    """A pool with one worker that was given a task; the manager is of example.org."""
    rig = Rig(SETTINGS)
    rig.join(worker, cores=1)
    rig.ask(m.Job(command="true"))
    [tasks] = rig.to(worker, m.Tasks)
    return rig, tasks


def let_pass(rig: Rig, worker: str, seconds: float) -> None:
    """The worker answers all pings meanwhile."""
    for _ in range(int(seconds)):
        rig.manager.on_heard(worker)
        rig.run(1.0)


def asked(rig: Rig, worker: str) -> int:
    return [error.code for error in rig.to(worker, m.Error)].count("unknown_worker")


def test_what_a_far_worker_never_got_is_given_out_again():
    rig, lost = make(FAR)
    let_pass(rig, FAR, LEASE_S + 1)
    assert asked(rig, FAR) == 1
    rig.tell(FAR, m.Profile(cores=1))  # it has nothing in hand
    rig.run()
    again = rig.to(FAR, m.Tasks)[-1]
    assert (again.job, again.tasks) == (lost.job, lost.tasks)
    assert again.attempt != lost.attempt
    assert again.spec is not None, "it may never have got that either"


def test_what_a_far_worker_has_goes_on_and_it_is_asked_once():
    rig, tasks = make(FAR)
    let_pass(rig, FAR, LEASE_S + 1)
    rig.tell(FAR, m.Profile(cores=1, held=[m.HeldAttempt(job=tasks.job, task=0, attempt=tasks.attempt)]))
    let_pass(rig, FAR, 10 * LEASE_S)
    assert asked(rig, FAR) == 1
    assert rig.to(FAR, m.Tasks) == [tasks]
    assert rig.to(FAR, m.Stop) == []
    rig.finish(tasks, FAR)
    [job] = rig.ask(m.Status(job=tasks.job), USER).jobs
    assert job.state == "COMPLETED"


def test_a_question_without_an_answer_is_asked_again():
    rig, _ = make(FAR)
    let_pass(rig, FAR, 3 * (LEASE_S + 1))
    assert asked(rig, FAR) == 3


def test_while_tasks_are_sent_nothing_is_asked():
    rig, tasks = make(FAR)
    for number in range(1, 5):
        let_pass(rig, FAR, LEASE_S - 2)
        rig.finish(tasks, FAR, number)
        rig.ask(m.Job(command="true"))
        tasks = rig.to(FAR, m.Tasks)[-1]
    assert asked(rig, FAR) == 0


def test_workers_of_the_managers_own_server_are_not_asked():
    rig, _ = make(WORKER)
    let_pass(rig, WORKER, 10 * LEASE_S)
    assert asked(rig, WORKER) == 0


def test_who_has_gone_is_not_asked():
    rig, _ = make(FAR)
    rig.manager.on_unavailable(FAR, "gone")
    rig.run(3 * LEASE_S)
    assert asked(rig, FAR) == 0
    rig.manager.on_available(FAR, Show.ONLINE, "")
