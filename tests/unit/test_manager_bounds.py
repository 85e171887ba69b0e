"""No peer makes the manager send a stanza that costs it the stream, or keep without bound what it is told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kestrel.errors import StoreError
from kestrel.manager.access import AccessRules
from kestrel.manager.settings import ManagerSettings
from kestrel.ports import CommitFailed, Show
from kestrel.protocol import codec
from kestrel.protocol import messages as m
from parts.manager import USER, WORKER, Rig

STANZA_MAX = 256 * 1024
SETTINGS = ManagerSettings()


@pytest.fixture
def rig() -> Rig:
    return Rig()


def largest(rig: Rig) -> int:
    return max(codec.wire_size(codec.encode(message)) for _, message, _ in rig.notes.sent)


@pytest.mark.parametrize(
    "job",
    [
        m.Job(command="&" * 20_000),
        m.Job(command="x", env={"A": "x" * 100_000}),
        m.Job(command="x", args=[["a"], ["x" * 100_000]]),
        m.Job(command="x", requires="x" * 100_000),
    ],
)
def test_a_job_that_no_stanza_could_carry_is_refused(rig: Rig, job: m.Job):
    assert rig.ask(job).code == "too_large"
    assert rig.ask(m.Status()).jobs == []


def test_the_largest_task_that_is_taken_fits_into_a_stanza(rig: Rig):
    rig.join(cores=1)
    long = SETTINGS.task_bytes_max - 1000
    rig.ask(m.Job(command=["x" * (long - 1000)], args=[["y" * long]]))
    assert len(rig.to(WORKER, m.Tasks)) == 1
    assert SETTINGS.task_bytes_max < largest(rig) <= SETTINGS.stanza_bytes_max


@pytest.mark.parametrize(
    ("job", "word"),
    [
        (m.Job(command=["true", "a\0b"]), "command"),
        (m.Job(command="true", cleanup="rm \0"), "cleanup"),
        (m.Job(command="true", cleanup=" "), "cleanup"),
        (m.Job(command="true", env={"A=B": "x"}), "A=B"),
        (m.Job(command="true", env={"A": "\0"}), "env"),
        (m.Job(command="true", workdir="/tmp/\0"), "workdir"),
        (m.Job(command="true", time_limit_s=1e300), "time_limit_s"),
        (m.Job(command="cat", args=[["a"], ["b\0"]]), "task 1"),
    ],
)
def test_what_no_worker_could_start_is_refused_at_submission(rig: Rig, job: m.Job, word: str):
    refused = rig.ask(job)
    assert refused.code == "usage"
    assert word in refused.text


def test_additions_are_checked_like_submissions(rig: Rig):
    rig.ask(m.Job(command="cat", args=[["a"]], open=True))
    assert "task 1" in rig.ask(m.Extend(job=1, offset=1, args=[["\0"]])).text
    assert rig.ask(m.Extend(job=1, offset=1, args=[["x" * 100_000]])).code == "too_large"
    assert rig.ask(m.Extend(job=1, offset=1, args=[["b"]], last=True)).size == 2


def test_a_user_has_a_bounded_number_of_unfinished_jobs():
    rig = Rig(replace(SETTINGS, jobs_open_per_user_max=2, tasks_open_max=10))
    rig.ask(m.Job(command="true", queue=1))
    rig.ask(m.Job(command="true", queue=4))
    assert rig.ask(m.Job(command="true")).code == "busy"
    other = "bob@example.org/x"
    assert rig.ask(m.Job(command="true", queue=6), sender=other).code == "busy"
    assert rig.ask(m.Job(command="true", queue=5), sender=other).size == 5
    rig.ask(m.Cancel(job=2))
    assert rig.ask(m.Job(command="true", queue=4)).size == 4
    rig.restart()
    assert rig.ask(m.Job(command="true")).code == "busy"


def test_a_report_that_lies_about_numbers_and_tails_is_cut_to_size(rig: Rig):
    rig.join(cores=1)
    rig.ask(m.Job(command="x", retries=3))
    tasks = rig.to(WORKER, m.Tasks)[0]
    rig.finish(tasks, state="failed", exit_code=1, wall_s=1.7e308)
    again = rig.to(WORKER, m.Tasks)[-1]
    rig.finish(again, n=2, state="failed", exit_code=1, wall_s=1.7e308)
    last = rig.to(WORKER, m.Tasks)[-1]
    assert len({tasks.attempt, again.attempt, last.attempt}) == 3
    rig.finish(last, n=3, exit_code=2**70, out="<" * 200_000, reason="r" * 99_000)
    (result,) = rig.ask(m.Results(job=1)).results
    assert (result.exit_code, len(result.out), len(result.reason)) == (2**32 - 1, 4096, 1024)


def test_a_worker_that_says_too_much_of_itself_is_refused(rig: Rig):
    rig.tell(WORKER, m.Profile(provides=["x" * 1000] * 100))
    rig.run()
    assert [e.code for e in rig.to(WORKER, m.Error)] == ["too_large"]
    assert rig.ask(m.Pool()).count == 0


def test_many_workers_and_loud_farewells_fit_into_one_answer(rig: Rig):
    for i in range(30):
        rig.join(f"w{i}@example.org/worker", provides=["<" * 1000, "<" * 1000])
    for i in range(25):
        rig.manager.on_unavailable(f"w{i}@example.org/worker", "<" * 100_000)
    for i in range(30, 60):
        rig.join(f"w{i}@example.org/worker", provides=["<" * 1000, "<" * 1000])
    pool = rig.ask(m.Pool(limit=10_000))
    assert pool.count == 35
    assert 0 < len(pool.workers) < 35


def test_a_long_list_of_tasks_comes_in_pages_that_fit(rig: Rig):
    rig.ask(m.Job(command="x", queue=5000))
    seen: list[int] = []
    while True:
        page = rig.ask(m.ListTasks(job=1, limit=10_000, after=seen[-1] if seen else -1))
        seen += [t.task for t in page.tasks]
        if not page.more:
            break
    assert seen == list(range(5000))
    assert largest(rig) <= SETTINGS.stanza_bytes_max


def test_an_index_beyond_every_task_lists_nothing(rig: Rig):
    rig.ask(m.Job(command="x"))
    rig.ask(m.Cancel(job=1))
    assert rig.ask(m.ListTasks(job=1, after=2**70)).tasks == []


def test_naming_a_hundred_million_tasks_is_refused_before_they_are_counted(rig: Rig):
    rig.ask(m.Job(command="x", queue=3_000_000))
    assert "named" in rig.ask(m.Cancel(job=1, tasks="0-2999999")).text
    assert "named" in rig.ask(m.Results(job=1, tasks="0-999999,1000000-2000000")).text


def test_results_of_named_tasks_come_once_each_though_some_have_not_ended(rig: Rig):
    rig.join(cores=2)
    rig.ask(m.Job(command="x", queue=10))
    tasks = rig.to(WORKER, m.Tasks)[0]
    rig.finish(m.Tasks(job=1, attempt=tasks.attempt + 1, tasks=[1]))
    pages = []
    after = 0
    while not pages or not pages[-1].done:
        pages.append(rig.ask(m.Results(job=1, tasks="0-9", after=after, limit=1)))
        after = pages[-1].last
    assert [r.task for page in pages for r in page.results] == [1]
    assert len(pages) == 10


def test_peers_that_only_greet_are_not_remembered_without_bound():
    rig = Rig(replace(SETTINGS, greeted_max=10))
    for i in range(50):
        rig.manager.on_available(f"x{i}@example.org/x", Show.ONLINE, "")
    assert len(rig.notes.presence) == 50
    assert len(rig.manager.roster.greeted) == 10


def test_large_messages_do_not_pile_up_while_the_store_is_slow():
    rig = Rig(replace(SETTINGS, inbox_bytes_max=1_000_000))
    commit, waiting = rig.store.commit, []
    rig.store.commit = lambda *words, **more: waiting.append((words, more))
    rig.tell(USER, m.Job(command="true"))
    rig.run()
    for n in range(100):
        rig.tell(USER, m.Job(id=f"{n}", command="x" * 50_000, queue=1))
    assert len(rig.manager._inbox) == 20
    assert [e.code for e in rig.to(USER, m.Error)] == ["busy"] * 80
    rig.store.commit = commit
    for words, more in waiting:
        commit(*words, **more)
    rig.run()
    assert len(rig.to(USER, m.Accepted)) == 21
    assert isinstance(rig.ask(m.Job(id="later", command="x" * 50_000, queue=1)), m.Accepted)


def test_answers_that_nobody_waits_for_take_no_room_from_those_that_somebody_does():
    lapsed = [False]
    rig = Rig(replace(SETTINGS, inbox_max=10), lapsed=lambda: lapsed[0])
    lapsed[0] = True
    for n in range(100):
        rig.tell("eve@example.org/x", m.Error(re=f"{n}", code="x", text="no"))
        rig.tell("eve@example.org/x", m.OutputPart(re=f"{n}", job=1, task=0, attempt=1))
    rig.manager.on_message(USER, b'{"type": "nonsense"}', False)
    lapsed[0] = False
    rig.manager.resume()
    rig.run()
    assert rig.to(USER, m.Error)


def test_workers_that_flood_an_absent_store_are_left_out_and_asked_again():
    rig = Rig(replace(SETTINGS, inbox_max=10))
    rig.join(cores=1)
    commit = rig.store.commit
    full = StoreError("the disk is full", retry=True)
    rig.store.commit = lambda _w, _r, done, **_: rig.clock.call_later(0, lambda: done(CommitFailed(full)))
    rig.tell(USER, m.Job(command="true"))
    rig.run()
    for _ in range(100):
        rig.tell(WORKER, m.Revoked(job=1, attempts=[1]))
    assert len(rig.manager._inbox) <= 10
    rig.store.commit = commit
    rig.run(3)
    assert [e.code for e in rig.to(WORKER, m.Error)] == ["unknown_worker"]


def test_who_was_told_a_specification_is_forgotten_with_the_worker_and_with_the_job(rig: Rig):
    rig.join(cores=1)
    rig.ask(m.Job(command="true", queue=5))
    assert list(rig.manager.jobs[1].told) == [WORKER]
    rig.manager.on_unavailable(WORKER, "")
    rig.run()
    assert not rig.manager.jobs[1].told
    rig.join(cores=1)
    rig.ask(m.Cancel(job=1))
    for tasks in rig.to(WORKER, m.Tasks):
        rig.finish(tasks, state="cancelled", exit_code=None)
    assert rig.manager.jobs[1].ended
    assert not rig.manager.workers[WORKER].specs


def test_a_job_whose_watchers_have_all_left_is_not_kept_as_watched(rig: Rig):
    rig.ask(m.Job(command="true"))
    rig.ask(m.Watch(job=1))
    rig.manager.on_unavailable(USER, "")
    assert rig.manager.books.watched() == []
    rig.ask(m.Watch(job=1))
    rig.ask(m.Watch(job=1, stop=True))
    assert rig.manager.books.watched() == []


def test_a_second_cancellation_touches_nothing(rig: Rig):
    rig.join(cores=1)
    rig.ask(m.Job(command="true", queue=3))
    rig.tell(USER, m.Cancel(job=1, id="a"))
    rig.tell(USER, m.Cancel(job=1, id="b"))
    rig.run()
    first, second = rig.to(USER, m.Accepted)[-2:]
    assert (first.changed, second.changed) == (3, 0)
    rig.restart()
    assert rig.ask(m.Cancel(job=1)).changed == 0


def test_only_an_administrator_drains_others_workers():
    rig = Rig(replace(SETTINGS, access=AccessRules.of(admins=("root@example.org",))))
    rig.join(cores=1)
    assert rig.ask(m.Drain(worker=WORKER)).code == "not_admin"
    assert rig.ask(m.Drain(worker=WORKER), sender="root@example.org/x").changed == 1


@pytest.mark.parametrize(
    "text", ["run echo x ²", "run echo x " + "9" * 5000, "explain 1 -1", "status " + "9" * 99]
)
def test_odd_numbers_in_words_are_answered(rig: Rig, text: str):
    rig.manager.on_message(USER, text.encode(), True)
    rig.run()
    assert len(rig.notes.said) == 1


def test_a_relayed_answer_says_what_was_asked_and_no_more(rig: Rig):
    rig.join(cores=2)
    rig.ask(m.Job(command="x", queue=2))
    rig.tell(USER, m.Output(job=1, task=0, id="q", limit=10))
    rig.run()
    rig.tell(WORKER, m.OutputPart(re=rig.to(WORKER, m.ReadOutput)[-1].id, job=9, task=7, data="eA==", size=1))
    (part,) = rig.to(USER, m.OutputPart)
    assert (part.job, part.task, part.re) == (1, 0, "q")
    rig.tell(USER, m.Output(job=1, task=0, id="r", limit=10))
    rig.run()
    rig.tell(WORKER, m.OutputPart(re=rig.to(WORKER, m.ReadOutput)[-1].id, job=1, task=0, data="e" * 4000))
    assert [e.code for e in rig.to(USER, m.Error)] == ["output_unreachable"]
