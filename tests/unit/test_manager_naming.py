"""Jobs that name workers, owners who choose users, and the pool in parts and groups, as a manager does it."""

import re

import pytest

from kestrel.manager.access import AccessRules
from kestrel.manager.meant import natural, patterns_of
from kestrel.manager.settings import ManagerSettings
from kestrel.ports import Show
from kestrel.protocol import messages as m
from kestrel.store import MemoryStore
from parts.manager import USER, Rig

SLIDES = ["worker@pool/42", "worker42@pool/a1b2c3", "machine27@pool/core2", "machine27@pool/core10"]
"""The forms of addresses on the ancestor's slides; a server chose the resource of the second."""


@pytest.fixture
def rig() -> Rig:
    rules = AccessRules.of(
        admins=("ann@example.org",), users=("*@example.org", "*@lab.example"), workers=("*",)
    )
    return Rig(ManagerSettings(access=rules, tick_s=0.5))


def of_slides(rig: Rig) -> None:
    for address in SLIDES:
        rig.join(address)


def given_to(rig: Rig, job: int) -> set[str]:
    return {to for to, msg, _ in rig.notes.sent if isinstance(msg, m.Tasks) and msg.job == job}


def say(rig: Rig, words: str) -> str:
    before = len(rig.notes.said)
    rig.manager.on_message(USER, words.encode(), True)
    rig.run()
    return "\n".join(text for _, text in rig.notes.said[before:])


@pytest.mark.parametrize(
    ("patterns", "meant"),
    [
        (["worker@pool/42"], SLIDES[:1]),
        (["worker42@pool/"], SLIDES[1:2]),
        (["machine27@pool/core2"], SLIDES[2:3]),
        (["machine27@pool"], SLIDES[2:]),
        (["worker*@pool"], SLIDES[:2]),
        (["*/core*", "worker@pool/42"], [SLIDES[0], *SLIDES[2:]]),
        (["WORKER42@Pool"], SLIDES[1:2]),
        (["pool"], SLIDES),
    ],
)
def test_the_address_forms_of_the_slides_name_workers_for_jobs_and_questions(
    rig: Rig, patterns: list[str], meant: list[str]
) -> None:
    of_slides(rig)
    answer = rig.ask(m.Pool(workers=patterns))
    assert isinstance(answer, m.PoolStatus)
    assert [w.worker for w in answer.workers] == meant
    assert answer.count == len(meant)
    accepted = rig.ask(m.Job(command="true", queue=40, restart="never", workers=patterns))
    assert isinstance(accepted, m.Accepted)
    assert accepted.warning == ""
    assert given_to(rig, accepted.job or 0) == set(meant)


def test_a_pool_is_grouped_by_each_part_of_its_addresses_in_the_order_of_people(rig: Rig) -> None:
    of_slides(rig)
    rig.join("x@lab.example/core2", cores=4)
    rig.ask(m.Drain(worker="x@lab.example"))
    rig.ask(m.Job(command="sleep 1", workers=["machine27@pool/core2"]))

    def groups(by: str, **more: list[str]) -> list[tuple[str, int, int, int]]:
        answer = rig.ask(m.Pool(by=by, **more))  # type: ignore[arg-type]
        assert isinstance(answer, m.PoolStatus)
        assert answer.workers == []
        assert answer.count == sum(g.workers for g in answer.groups)
        return [(g.name, g.workers, g.idle, g.running) for g in answer.groups]

    assert groups("resource") == [
        ("42", 1, 1, 0),
        ("a1b2c3", 1, 1, 0),
        ("core2", 2, 0, 1),
        ("core10", 1, 1, 0),
    ]
    assert groups("domain") == [("lab.example", 1, 0, 0), ("pool", 4, 3, 1)]
    users = [("machine27", 2, 1, 1), ("worker", 1, 1, 0), ("worker42", 1, 1, 0), ("x", 1, 0, 0)]
    assert groups("user") == users
    assert groups("user", workers=["*/core*"]) == [users[0], users[3]]


def test_names_are_sorted_as_people_do() -> None:
    names = ["core10", "core2", "", "b", "42", "7", "core2a1", "core2a"]
    assert sorted(names, key=natural) == ["", "7", "42", "b", "core2", "core2a", "core2a1", "core10"]


def test_what_does_not_fit_into_an_answer_is_cut_and_can_be_seen_to_be(rig: Rig) -> None:
    of_slides(rig)
    answer = rig.ask(m.Pool(by="resource", limit=2))
    assert isinstance(answer, m.PoolStatus)
    assert (answer.count, sum(g.workers for g in answer.groups)) == (4, 2)


def test_a_pattern_that_means_nobody_names_the_closest_address(rig: Rig) -> None:
    empty = rig.ask(m.Pool(workers=["worker"]))
    assert isinstance(empty, m.Error)
    assert "there are no workers" in empty.text
    of_slides(rig)
    answer = rig.ask(m.Pool(workers=["machine72@pool/core2"]))
    assert isinstance(answer, m.Error)
    assert (answer.code, answer.text) == (
        "unknown_worker",
        "machine72@pool/core2 means none of the 4 workers in the pool",
    )
    assert answer.hint == "did you mean machine27@pool/core2?"


def test_those_who_left_are_filtered_too(rig: Rig) -> None:
    of_slides(rig)
    rig.manager.on_unavailable("worker@pool/42", "gone")
    rig.manager.on_unavailable("machine27@pool/core2", "gone")
    rig.run()
    answer = rig.ask(m.Pool(workers=["worker@pool"]))
    assert isinstance(answer, m.PoolStatus)
    assert (answer.workers, [w.worker for w in answer.lost]) == ([], ["worker@pool/42"])


@pytest.mark.parametrize(
    ("pattern", "words", "meant"),
    [
        ("a@b@pool", "more than one @", "a@pool"),
        ("worker 1@pool", "white space", "worker1@pool"),
        ("worker@", "nothing after the @", "worker@*"),
        (" ", "is empty", "worker*@pool"),
    ],
)
def test_a_bad_pattern_is_refused_with_what_was_probably_meant(
    rig: Rig, pattern: str, words: str, meant: str
) -> None:
    for message in (
        m.Job(command="true", workers=["ok@pool", pattern]),
        m.Pool(workers=[pattern]),
        m.Drain(worker=pattern),
    ):
        answer = rig.ask(message)
        assert isinstance(answer, m.Error)
        assert (answer.code, words in answer.text, meant in answer.hint) == ("bad_pattern", True, True)
    assert rig.manager.jobs == {}


def test_a_job_that_names_nobody_is_accepted_with_a_warning(rig: Rig) -> None:
    of_slides(rig)
    accepted = rig.ask(m.Job(command="true", workers=["worker@pool/9*"]))
    assert isinstance(accepted, m.Accepted)
    assert accepted.warning == "`worker@pool/9*` means none of the 4 workers."


def test_patterns_survive_the_manager(rig: Rig) -> None:
    accepted = rig.ask(m.Job(command="true", workers=["worker@pool/42"], queue=3))
    assert isinstance(accepted, m.Accepted)
    assert isinstance(rig.store, MemoryStore)
    rig.restart()
    rig.run(5.0)
    rig.join("machine27@pool/core2")
    assert given_to(rig, 1) == set()
    rig.join("worker@pool/42")
    assert given_to(rig, 1) == {"worker@pool/42"}


def test_an_owner_chooses_whose_jobs_run_and_the_worker_is_told_whose_they_are(rig: Rig) -> None:
    rig.join("worker@pool/42", users=["*@lab.example"])
    mine = rig.ask(m.Job(command="true"))
    assert isinstance(mine, m.Accepted)
    assert mine.warning == (
        "1 worker that matches takes only the jobs of `*@lab.example`, and not those of ann@example.org: "
        "that is what their owners chose."
    )
    theirs = rig.ask(m.Job(command="true"), sender="bob@lab.example/desk")
    assert isinstance(theirs, m.Accepted)
    assert given_to(rig, mine.job or 0) == set()
    (tasks,) = (t for t in rig.to("worker@pool/42", m.Tasks) if isinstance(t, m.Tasks))
    assert tasks.spec is not None
    assert (tasks.job, tasks.spec.user) == (theirs.job, "bob@lab.example")
    shown = rig.ask(m.Pool())
    assert isinstance(shown, m.PoolStatus)
    assert [w.users for w in shown.workers] == [["*@lab.example"]]


@pytest.mark.parametrize(
    ("users", "words"),
    [(["bob@lab@example"], "more than one @"), (["bob@lab.example/desk"], "names a resource")],
)
def test_a_worker_with_unreadable_users_is_refused_in_words(rig: Rig, users: list[str], words: str) -> None:
    rig.manager.on_available("worker@pool/42", Show.CHAT, "")
    answer = rig.ask(m.Profile(users=users), sender="worker@pool/42")
    assert isinstance(answer, m.Error)
    assert (answer.code, words in answer.text) == ("bad_pattern", True)
    assert rig.manager.workers == {}


def test_a_drain_means_all_workers_of_a_pattern_and_is_taken_back_likewise(rig: Rig) -> None:
    of_slides(rig)
    drained = rig.ask(m.Drain(worker="machine27@pool"))
    assert isinstance(drained, m.Accepted)
    assert drained.changed == 2
    rig.ask(m.Job(command="true", queue=40, restart="never"))
    assert given_to(rig, 1) == set(SLIDES[:2])
    rig.restart()
    of_slides(rig)
    back = rig.ask(m.Drain(worker="*/core*", undo=True))
    assert isinstance(back, m.Accepted)
    assert back.changed == 2


class TestWords:
    def test_a_pool_is_shown_in_parts_and_groups(self, rig: Rig) -> None:
        of_slides(rig)
        assert "4 workers in pool" in say(rig, "pool")
        some = say(rig, "pool worker*@pool")
        assert "2 workers in pool" in some
        assert "machine27" not in some
        grouped = say(rig, "pool machine27@pool by resource")
        assert re.findall(r"^(\S+): 1 worker, 1 idle", grouped, re.MULTILINE) == ["core2", "core10"]
        assert "pool: 4 workers, 4 idle" in say(rig, "pool by domain")

    def test_workers_are_drained_and_used_again(self, rig: Rig) -> None:
        of_slides(rig)
        assert say(rig, "drain machine27@pool") == "Done, 2 workers concerned."
        assert "draining" in say(rig, "pool */core2")
        assert say(rig, "undrain machine27@pool/core2") == "Done, 1 worker concerned."

    @pytest.mark.parametrize(
        ("words", "answer"),
        [
            ("pool by domian", "did you mean 'domain'?"),
            ("pool by", "pool by what?"),
            ("drain", "needs one address or pattern"),
            ("drain a b", "needs one address or pattern"),
            ("pool wurker@pool", "did you mean worker@pool/42?"),
            ("pool a@b@c", "more than one @"),
        ],
    )
    def test_what_is_not_understood_is_told(self, rig: Rig, words: str, answer: str) -> None:
        of_slides(rig)
        assert answer in say(rig, words)


def test_a_pattern_is_named_once() -> None:
    assert [p.text for p in patterns_of(["a@b", "a@b", "c"], "job")] == ["a@b", "c"]
