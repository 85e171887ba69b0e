"""What the manager does with requests: accepted once, stored before it is told, answered in kind."""

from __future__ import annotations

import base64

import pytest

from kestrel.errors import StoreError
from kestrel.manager.access import AccessRules
from kestrel.manager.settings import ManagerSettings
from kestrel.ports import CommitFailed, Show
from kestrel.protocol import messages as m
from parts.manager import USER, WORKER, Rig


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_the_slides_profile_is_a_valid_join(rig: Rig):
    text = b'{"type": "profile", "os": "Linux", "ram": 4096, "cores": 4, "provides": ["FOO", "BAR"]}'
    rig.manager.on_message(WORKER, text, False)
    rig.run()
    assert [w.epoch for w in rig.to(WORKER, m.Welcome)] == [1]
    pool = rig.ask(m.Pool())
    assert [(w.worker, w.slots, w.ram, w.provides) for w in pool.workers] == [
        (WORKER, 4, 4096, ["FOO", "BAR"])
    ]


def test_a_job_runs_from_submission_to_result(rig: Rig):
    rig.join(cores=2)
    accepted = rig.ask(m.Job(command="echo {#}", queue=2))
    assert (accepted.job, accepted.size) == (1, 2)
    (tasks,) = rig.to(WORKER, m.Tasks)
    assert (tasks.tasks, tasks.spec.command) == ([0, 1], ["echo", "{#}"])
    rig.finish(tasks, out="x\n", out_bytes=2)
    assert [a.n for a in rig.to(WORKER, m.Ack)] == [1]
    page = rig.ask(m.Results(job=1))
    assert [(r.task, r.state, r.out, r.worker) for r in page.results] == [
        (0, "COMPLETED", "x\n", WORKER),
        (1, "COMPLETED", "x\n", WORKER),
    ]
    assert page.done
    assert rig.ask(m.Status(job=1)).jobs[0].state == "COMPLETED"


def test_the_specification_travels_once_per_worker_session(rig: Rig):
    rig.join(cores=1)
    rig.ask(m.Job(command="true", queue=3))
    first = rig.to(WORKER, m.Tasks)[0]
    assert first.spec is not None
    rig.finish(first)
    assert [t.spec for t in rig.to(WORKER, m.Tasks)[1:]] == [None] * (len(rig.to(WORKER, m.Tasks)) - 1)
    rig.join(cores=1)
    rig.run(1)
    again = rig.to(WORKER, m.Tasks)[-1]
    assert again.spec is not None


def test_arguments_reach_the_worker_with_their_task(rig: Rig):
    rig.join(cores=4)
    rig.ask(m.Job(command="cat", args=[["a"], ["b b"]], open=True))
    rig.ask(m.Extend(job=1, offset=2, args=[["c"]], last=True))
    rig.run(1)
    got = {t: p for msg in rig.to(WORKER, m.Tasks) for t, p in zip(msg.tasks, msg.params, strict=True)}
    assert got == {0: ["a"], 1: ["b b"], 2: ["c"]}
    assert rig.to(WORKER, m.Tasks)[0].spec.command == ["cat", "{}"]


def test_a_repeated_submission_is_the_same_job_also_after_a_restart(rig: Rig):
    first = rig.ask(m.Job(id="mine", command="true", queue=2))
    assert rig.ask(m.Job(id="mine", command="true", queue=2)).job == first.job
    rig.restart()
    assert rig.ask(m.Job(id="mine", command="true", queue=2)).job == first.job
    assert rig.ask(m.Job(id="mine", command="true"), sender="bob@example.org/x").job == first.job + 1


def test_a_repeated_addition_changes_nothing_and_a_gap_is_refused(rig: Rig):
    rig.ask(m.Job(command="echo", args=[["a"]], open=True))
    assert rig.ask(m.Extend(job=1, offset=1, args=[["b"]])).size == 2
    assert rig.ask(m.Extend(job=1, offset=1, args=[["b"]])).size == 2
    assert rig.ask(m.Extend(job=1, offset=1, args=[["b"], ["c"]], last=True)).size == 3
    assert rig.ask(m.Extend(job=1, offset=0, args=[["a"]])).size == 3
    assert rig.ask(m.Extend(job=1, offset=3, args=[["d"]])).code == "closed"
    rig.ask(m.Job(command="echo", args=[], open=True))
    assert rig.ask(m.Extend(job=2, offset=5, args=[["x"]])).code == "gap"


def test_nothing_is_told_while_the_store_is_busy(rig: Rig):
    held = []
    commit = rig.store.commit
    rig.store.commit = lambda *unit, **number: held.append((unit, number))
    rig.join(cores=1)
    rig.tell(USER, m.Job(command="true"))
    rig.run()
    assert not rig.to(USER, m.Accepted)
    assert not rig.to(WORKER, m.Tasks)
    rig.store.commit = commit
    (unit, number) = held.pop(0)
    commit(*unit, **number)
    rig.run()
    assert len(rig.to(USER, m.Accepted)) == 1
    assert len(rig.to(WORKER, m.Tasks)) == 1


def test_a_full_disk_refuses_new_work_and_loses_none(rig: Rig):
    rig.join(cores=1)
    rig.ask(m.Job(command="true"))
    tasks = rig.to(WORKER, m.Tasks)[0]
    commit = rig.store.commit
    full = StoreError("the disk is full", hint="make room", retry=True)
    rig.store.commit = lambda _w, _r, done, **_: rig.clock.call_later(0, lambda: done(CommitFailed(full)))
    rig.finish(tasks)
    assert not rig.to(WORKER, m.Ack)
    rig.tell(USER, m.Job(id="late", command="true"))
    rig.run(1.5)
    refusal = rig.to(USER, m.Error)
    assert [(e.re, e.text, e.hint) for e in refusal] == [("late", "the disk is full", "make room")]
    rig.store.commit = commit
    rig.run(3)
    assert [a.n for a in rig.to(WORKER, m.Ack)] == [1]
    assert rig.ask(m.Status(job=1)).jobs[0].state == "COMPLETED"
    assert rig.ask(m.Job(id="late", command="true")).job == 2


def test_who_submits_into_a_store_that_fails_hears_of_it_at_once_and_readers_wait(rig: Rig):
    rig.join(cores=1)
    rig.ask(m.Job(command="true"))
    commit = rig.store.commit
    full = StoreError("the disk is full", hint="make room", retry=True)
    rig.store.commit = lambda _w, _r, done, **_: rig.clock.call_later(0, lambda: done(CommitFailed(full)))
    rig.tell(USER, m.Job(id="first", command="true"))
    rig.tell(USER, m.Results(id="reader", job=1, wait=True))
    rig.run(3)
    (delayed,) = rig.to(USER, m.Error)
    assert delayed.re == "first"
    assert "the disk is full; your request waits in memory" in delayed.text
    assert "make room" in delayed.hint
    rig.store.commit = commit
    rig.finish(rig.to(WORKER, m.Tasks)[0])
    rig.run(3)
    assert [a.job for a in rig.to(USER, m.Accepted)][-1] == 2
    assert [p.re for p in rig.to(USER, m.ResultPage)] == ["reader"]


def test_a_store_that_is_broken_for_good_ends_the_manager(rig: Rig):
    ended = []
    rig.manager.on_failed = ended.append
    broken = StoreError("the file is damaged")
    rig.store.commit = lambda _w, _r, done, **_: rig.clock.call_later(0, lambda: done(CommitFailed(broken)))
    rig.tell(USER, m.Job(command="true"))
    rig.run()
    assert ended == [broken]
    assert not rig.notes.sent


def test_a_waiting_reader_is_answered_when_there_is_something_and_else_in_time(rig: Rig):
    rig.join(cores=1)
    rig.ask(m.Job(command="true", queue=1, append_index=False))
    rig.tell(USER, m.Results(job=1, wait=True, id="q"))
    rig.run(5)
    assert not rig.to(USER, m.ResultPage)
    rig.run(20)
    (empty,) = rig.to(USER, m.ResultPage)
    assert (empty.results, empty.done, empty.re) == ([], False, "q")
    rig.tell(USER, m.Results(job=1, wait=True, id="r"))
    rig.tell(WORKER, m.Profile(cores=1, held=[m.HeldAttempt(1, 0, rig.to(WORKER, m.Tasks)[0].attempt)]))
    rig.run()
    rig.finish(rig.to(WORKER, m.Tasks)[0])
    page = rig.to(USER, m.ResultPage)[-1]
    assert (len(page.results), page.re) == (1, "r")


def test_watchers_are_told_of_changes_and_of_the_end(rig: Rig):
    rig.join(cores=1)
    rig.ask(m.Job(command="true"))
    assert rig.ask(m.Watch(job=1)).jobs[0].state == "RUNNING"
    rig.finish(rig.to(WORKER, m.Tasks)[0])
    rig.run(1)
    assert rig.to(USER, m.Event)[-1].job.state == "COMPLETED"
    assert rig.manager.books.watched() == []


def test_only_the_owner_or_an_administrator_may_cancel():
    rig = Rig(ManagerSettings(access=AccessRules.of(admins=("root@example.org",))))
    rig.ask(m.Job(command="true", queue=3))
    refused = rig.ask(m.Cancel(job=1), sender="eve@example.org/x")
    assert refused.code == "not_owner"
    assert rig.ask(m.Cancel(job=1, tasks="0-1")).changed == 2
    assert rig.ask(m.Cancel(job=1), sender="root@example.org/x").changed == 1
    assert rig.ask(m.Status(job=1)).jobs[0].counts.cancelled == 3
    assert "ended before" in rig.ask(m.Cancel(job=1)).warning


def test_a_cancelled_running_task_is_stopped_and_reported(rig: Rig):
    rig.join(cores=1)
    rig.ask(m.Job(command="sleep 600"))
    tasks = rig.to(WORKER, m.Tasks)[0]
    rig.ask(m.Cancel(job=1))
    assert [s.attempts for s in rig.to(WORKER, m.Stop)] == [[tasks.attempt]]
    rig.finish(tasks, state="cancelled", exit_code=None, signal=15)
    assert rig.ask(m.Status(job=1)).jobs[0].state == "CANCELLED"


def test_a_lost_worker_is_listed_and_its_task_goes_to_another(rig: Rig):
    rig.join(cores=1)
    rig.ask(m.Job(command="true"))
    rig.join("w2@example.org/worker", cores=1)
    rig.manager.on_unavailable(WORKER, "connection closed")
    rig.run()
    assert [t.tasks for t in rig.to("w2@example.org/worker", m.Tasks)] == [[0]]
    pool = rig.ask(m.Pool())
    assert [(w.worker, w.reason, w.requeued) for w in pool.lost] == [(WORKER, "connection closed", 1)]
    assert rig.ask(m.Status(job=1)).jobs[0].reruns == 1


def test_a_silent_worker_is_asked_and_then_given_up(rig: Rig):
    rig.join(cores=1)
    rig.run(6)
    assert WORKER in rig.notes.pings
    rig.manager.on_heard(WORKER)
    rig.run(10)
    assert rig.ask(m.Pool()).count == 1
    rig.run(20)
    assert rig.ask(m.Pool()).count == 0


def test_a_worker_that_shows_away_gets_nothing_until_it_is_back(rig: Rig):
    rig.join(cores=1)
    rig.manager.on_available(WORKER, Show.AWAY, "owner is back")
    rig.ask(m.Job(command="true"))
    assert not rig.to(WORKER, m.Tasks)
    assert rig.ask(m.Pool()).workers[0].state == "away"
    rig.manager.on_available(WORKER, Show.XA, "leaving")
    rig.run()
    assert rig.ask(m.Pool()).workers[0].state == "draining"
    rig.manager.on_available(WORKER, Show.CHAT, "")
    rig.run()
    assert rig.ask(m.Pool()).workers[0].state != "away"
    assert len(rig.to(WORKER, m.Tasks)) == 1


def test_output_is_answered_from_the_store_or_through_the_worker(rig: Rig):
    rig.join(cores=2)
    rig.ask(m.Job(command="x", queue=2))
    tasks = rig.to(WORKER, m.Tasks)[0]
    rig.tell(USER, m.Output(job=1, task=0, id="live"))
    rig.run()
    (asked,) = rig.to(WORKER, m.ReadOutput)
    assert asked.attempt == tasks.attempt
    data = base64.b64encode(b"so far").decode()
    rig.tell("w9@example.org/worker", m.OutputPart(re=asked.id, job=1, task=0, data=data, size=6))
    rig.tell(WORKER, m.OutputPart(re=asked.id, job=1, task=0, data=data, size=6))
    rig.run()
    (part,) = rig.to(USER, m.OutputPart)
    assert (part.re, base64.b64decode(part.data)) == ("live", b"so far")
    rig.finish(tasks, out="whole\n", out_bytes=6)
    stored = rig.ask(m.Output(job=1, task=1))
    assert (base64.b64decode(stored.data), stored.final) == (b"whole\n", True)


def test_output_that_stayed_on_a_lost_worker_says_where(rig: Rig):
    rig.join(cores=1)
    rig.ask(m.Job(command="x"))
    rig.finish(rig.to(WORKER, m.Tasks)[0], out="end\n", out_bytes=100_000)
    rig.manager.on_unavailable(WORKER, "")
    answer = rig.ask(m.Output(job=1, task=0))
    assert answer.code == "output_unreachable"
    assert WORKER in answer.text


def test_a_restarted_manager_adopts_what_still_runs(rig: Rig):
    rig.join(cores=1)
    rig.ask(m.Job(command="sleep 60"))
    tasks = rig.to(WORKER, m.Tasks)[0]
    rig.restart()
    rig.join(cores=1, held=[m.HeldAttempt(1, 0, tasks.attempt)])
    rig.run(5)
    assert not rig.to(WORKER, m.Tasks)
    rig.finish(tasks)
    assert rig.ask(m.Status(job=1)).jobs[0].state == "COMPLETED"


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        (b"{", "bad_json", "JSON"),
        (b'{"type": "prfile"}', "unknown_type", "profile"),
        (b'{"type": "job", "command": 3}', "bad_field", "command"),
        (b'{"type": "job", "queue": 0, "command": "x"}', "bad_field", "queue"),
        (b'{"type": "job", "command": "x", "queue": 2, "args": [["a"]]}', "usage", "exclude"),
        (b'{"type": "job", "command": " "}', "usage", "empty"),
        (b'{"type": "status", "job": 99}', "unknown_job", "99"),
        (b'{"type": "cancel", "job": 1, "tasks": "a-b"}', "unknown_job", "job 1"),
        (b'{"type": "drain", "worker": "nobody@x"}', "unknown_worker", "nobody@x"),
        (b'{"type": "list_tasks", "job": 1}', "unknown_job", "1"),
    ],
)
def test_a_bad_request_gets_an_error_that_names_the_thing(rig: Rig, text: bytes, code: str, words: str):
    rig.manager.on_message(USER, text, False)
    rig.run()
    (error,) = rig.to(USER, m.Error)
    assert error.code == code
    assert words in error.text + error.hint


@pytest.mark.parametrize(
    ("protocol", "cure"),
    [(m.PROTOCOL_OLDEST - 1, "upgrade Kestrel on the worker"), (m.PROTOCOL_VERSION + 1, "the manager first")],
)
def test_a_worker_that_is_older_or_newer_than_the_manager_is_told_so(rig: Rig, protocol: int, cure: str):
    rig.tell(WORKER, m.Profile(protocol=protocol))
    rig.run()
    (error,) = rig.to(WORKER, m.Error)
    assert error.code == "version"
    assert cure in error.hint
    assert rig.ask(m.Pool()).count == 0


def test_a_worker_that_knows_a_later_life_of_the_manager_gets_no_tasks_that_it_would_ignore(rig: Rig):
    rig.tell(USER, m.Job(command="true"))
    rig.tell(WORKER, m.Profile(epoch=rig.manager.epoch + 1))
    rig.run(60)
    (error,) = rig.to(WORKER, m.Error)
    assert error.code == "older_life"
    assert "restart the worker" in error.hint
    pool = rig.ask(m.Pool())
    assert pool.count == 0
    assert [(w.worker, w.reason) for w in pool.lost] == [(WORKER, f"refused: {error.text}; {error.hint}")]
    rig.tell(WORKER, m.Profile(epoch=rig.manager.epoch))
    rig.run()
    assert rig.ask(m.Pool()).lost == []
    assert rig.ask(m.Status(job=1)).jobs[0].counts.running == 1


def test_many_jobs_fit_into_one_answer(rig: Rig):
    for _ in range(60):
        rig.ask(m.Job(command="<" * 10_000))
    jobs = rig.ask(m.Status()).jobs
    assert 0 < len(jobs) < 60
    assert jobs[-1].job == 60


def test_a_page_of_results_is_cut_to_what_a_stanza_holds(rig: Rig):
    rig.join(cores=100)
    rig.ask(m.Job(command="x", queue=100))
    (tasks,) = rig.to(WORKER, m.Tasks)
    for i, task in enumerate(tasks.tasks):
        alone = m.Tasks(job=1, attempt=tasks.attempt + i, tasks=[task])
        rig.finish(alone, n=i + 1, out="\x01" * 4000, out_bytes=4000)
    seen: list[int] = []
    after = 0
    while True:
        page = rig.ask(m.Results(job=1, after=after))
        assert page.results
        seen += [r.task for r in page.results]
        after = page.last
        if page.done:
            break
    assert sorted(seen) == list(range(100))


def test_tasks_are_listed_by_state_alive_and_ended(rig: Rig):
    rig.join(cores=2)
    rig.ask(m.Job(command="x", queue=100))
    (tasks,) = rig.to(WORKER, m.Tasks)
    listed = rig.ask(m.ListTasks(job=1, states=["running"])).tasks
    assert [(t.task, t.worker) for t in listed] == [(task, WORKER) for task in tasks.tasks]
    assert rig.ask(m.ListTasks(job=1, limit=3)).more
    assert rig.ask(m.ListTasks(job=1, states=["flying"])).code == "usage"
    rig.ask(m.Cancel(job=1, tasks=f"{len(tasks.tasks)}-99"))
    rig.finish(tasks)
    states = [t.state for t in rig.ask(m.ListTasks(job=1)).tasks]
    assert states == ["COMPLETED"] * len(tasks.tasks) + ["CANCELLED"] * (100 - len(tasks.tasks))


class TestWords:
    """Plain words from a chat client."""

    def say(self, rig: Rig, text: str) -> str:
        before = len(rig.notes.said)
        rig.manager.on_message(USER, text.encode(), True)
        rig.run()
        ((to, answer),) = rig.notes.said[before:]
        assert to == USER.partition("/")[0]
        return answer

    def test_a_conversation(self, rig: Rig):
        rig.join(cores=4)
        assert "I am a Kestrel manager" in self.say(rig, "help")
        assert self.say(rig, "status").startswith("You have no jobs.")
        assert self.say(rig, "run echo hello x 2") == "Job 1 accepted with 2 tasks."
        status = self.say(rig, "Status")
        assert status.splitlines()[0] == "Job 1 (echo hello): RUNNING, 0 of 2 tasks done, 2 running"
        assert WORKER in self.say(rig, "pool")
        assert self.say(rig, "cancel 1") == "Job 1: done, 2 tasks concerned."
        assert self.say(rig, "explain 1")
        assert self.say(rig, "results 1") == "Job 1 has no results yet."

    def test_who_submitted_in_words_is_told_of_the_end(self, rig: Rig):
        rig.join(cores=4)
        self.say(rig, "run true")
        rig.finish(rig.to(WORKER, m.Tasks)[0])
        assert rig.notes.said[-1] == (USER.partition("/")[0], "Job 1 (true): COMPLETED, 1 of 1 task done")

    def test_mistakes_are_answered_with_a_hint(self, rig: Rig):
        assert self.say(rig, "staus") == "Sorry: I do not understand 'staus'. (did you mean 'status'?)"
        assert "number of a job" in self.say(rig, "cancel everything")
        assert "no job 7" in self.say(rig, "status 7")
        assert "needs a command" in self.say(rig, "run")

    def test_json_in_a_body_is_answered_with_json_in_a_body(self, rig: Rig):
        rig.manager.on_message(USER, b' {"type":"job","command":"echo hello","queue":3}', True)
        rig.run()
        to, message, chat = rig.notes.sent[-1]
        assert (to, message.job, message.size, chat) == (USER, 1, 3, True)
