"""Two linked sites with servers of their own (Prosody, ejabberd): B's workers and users in the pool of A.

In network namespaces; the servers find each other by DNS and trust certificates of one authority.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from parts.networks import need_networks
from parts.servers import make_server
from realpool.computers import Computer
from realpool.processes import Process, until
from realpool.sites import TwoSites

SOON_S = 60.0
OUTPUT_BYTES = 100_000
WELCOMED, GONE = " welcomed ", " manager_gone "
JOINED, LOST = " worker_joined ", " worker_lost "


@dataclass(frozen=True, slots=True)
class Linked:
    """The pool of site A, with a worker and a user of each site."""

    sites: TwoSites
    manager: Process
    ann: Computer
    ben: Computer
    """Of site B, as the second worker."""
    workers: dict[str, Computer]
    scratch: Path

    def seen(self) -> list[str]:
        """Sites of the workers in the pool, as A's user sees them."""
        done = self.ann.run("pool", "--json")
        if done.returncode != 0:
            return ["?"]
        return sorted(w["worker"].partition("@")[2][5] for w in json.loads(done.stdout).get("workers", []))

    def describe(self) -> str:
        parts = [self.manager, *(p for w in self.workers.values() for p in w.processes)]
        texts = [f"{part.describe()}\n{part.log()}" for part in parts]
        texts += [site.server.log[-3000:] for site in (self.sites.a, self.sites.b)]
        return "\n".join(texts)

    def journal_of(self, letter: str) -> bytes:
        """What the worker of this site has finished and nobody has acknowledged."""
        return next(self.workers[letter].home.rglob("finished.journal")).read_bytes()


@pytest.fixture(scope="module")
def linked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Linked]:
    need_networks()
    scratch = tmp_path_factory.mktemp("sites")
    with TwoSites(scratch, make_server) as sites:
        host = Computer(sites.a.machine, scratch)
        allowed = [
            w for site in ("site-a.example", "site-b.example") for w in ("--worker", site, "--user", site)
        ]
        manager = host.start_manager(sites.a.server, "--lost-after", "3s", *allowed)
        workers = {}
        for site in (sites.a, sites.b):
            workers[site.letter] = worker = sites.computer(site, f"w{site.letter}")
            worker.start_worker(sites.account(site, "worker"), "--slots", "1")
        ann, ben = sites.computer(sites.a, "ann"), sites.computer(sites.b, "ben")
        ann.use(sites.account(sites.a, "ann"))
        join_by_line(ben, sites)
        pool = Linked(sites, manager, ann, ben, workers, scratch)
        until(lambda: pool.seen() == ["a", "b"], "workers of both sites are seen", SOON_S, seen=pool.describe)
        yield pool


def join_by_line(user: Computer, sites: TwoSites) -> None:
    """As a user of B does: with an account of B, and nothing from A."""
    account = sites.account(sites.b, user.name)
    secret = user.secret_file("account", account.password)
    words = ("--role", "user", "--jid", account.jid, "--password-file", secret, "--manager", account.manager)
    user.say("join", "-", text=user.ask("invite", *words)["invitation"])


class Split:
    """A job of two tasks, one at each site; each ends when its gate for the site is opened."""

    def __init__(self, linked: Linked, user: Computer, name: str) -> None:
        self.linked = linked
        self.user = user
        self.ran = linked.scratch / f"ran-{name}"
        self._gate = linked.scratch / f"gate-{name}"
        here = "$(case $KESTREL_WORKER in *site-a*) echo a;; *) echo b;; esac)"
        loop = f"until [ -e {self._gate}-$KESTREL_TASK_ID-$s ]; do sleep 0.05; done"
        command = f"s={here}; echo $KESTREL_TASK_ID-$s >> {self.ran}; {loop}; echo from $s #"
        self.job = str(user.ask("submit", "-n", "2", "--", command)["job"])
        until(lambda: len(self.runs()) == 2, "both sites run a task", SOON_S, seen=linked.describe)
        by_site = {run[-1]: int(run[:-2]) for run in self.runs()}
        self.at_a, self.at_b = by_site["a"], by_site["b"]

    def runs(self) -> list[str]:
        """`task-site` of each start."""
        return self.ran.read_text().split() if self.ran.exists() else []

    def open(self, task: int, site: str) -> None:
        Path(f"{self._gate}-{task}-{site}").touch()

    def results(self) -> dict[int, str]:
        """What was recorded, by task; none twice."""
        lines = self.user.say("results", "--json", self.job).splitlines()
        results = {result["task"]: result["worker"] for result in map(json.loads, lines)}
        assert len(results) == len(lines), "none is recorded twice"
        return {task: worker.partition("@")[2][5] for task, worker in results.items()}


def test_workers_and_users_of_another_site_take_part(linked: Linked) -> None:
    split = Split(linked, linked.ben, "both")
    split.open(split.at_a, "a")
    split.open(split.at_b, "b")
    assert linked.ben.run("wait", split.job).returncode == 0
    assert split.results() == {split.at_a: "a", split.at_b: "b"}
    assert linked.ben.say("cat", f"{split.job}_{split.at_a}") == "from a\n"


def test_output_of_any_length_crosses_between_the_sites(linked: Linked) -> None:
    text = linked.ben.say("run", "-k", "--", f"yes {{}} | head -c {OUTPUT_BYTES} #", ":::", "x", "y", "z")
    assert len(text) == 3 * OUTPUT_BYTES


def test_a_silent_break_between_the_sites_loses_nothing_and_records_nothing_twice(linked: Linked) -> None:
    split = Split(linked, linked.ben, "silent")
    waiting = linked.ben.start("wait", "wait", split.job)
    linked.sites.b.cut()
    split.open(split.at_a, "a")
    again = f"{split.at_b}-a"
    until(lambda: again in split.runs(), "A runs the task of B, too", SOON_S, seen=linked.describe)
    assert linked.seen() == ["a"]
    split.open(split.at_b, "b")
    until(lambda: b'"attempt"' in linked.journal_of("b"), "B has a result that nobody hears of", SOON_S)
    linked.sites.b.heal()
    until(
        lambda: split.results().get(split.at_b) == "b",
        "the result of B arrives and is the first",
        SOON_S,
        seen=linked.describe,
    )
    assert linked.ben.run("wait", split.job).returncode == 0
    assert split.results() == {split.at_a: "a", split.at_b: "b"}
    until(lambda: linked.seen() == ["a", "b"], "both work again", SOON_S, seen=linked.describe)
    until(lambda: b'"attempt"' not in linked.journal_of("b"), "it was acknowledged", SOON_S)
    until(lambda: not waiting.running, "B's user, who waited, hears the end", SOON_S, seen=linked.describe)
    assert waiting.exit_code == 0, waiting.log()


def test_when_the_server_of_the_pool_restarts_the_other_site_is_back_soon(linked: Linked) -> None:
    split = Split(linked, linked.ann, "restarted")
    linked.sites.a.server.stop(kill=True)
    log = linked.workers["b"].home / "worker.log"
    came_up = log.read_text().count(WELCOMED)
    split.open(split.at_b, "b")
    until(lambda: b'"attempt"' in linked.journal_of("b"), "B has a result that nobody hears of", SOON_S)
    linked.sites.a.server.start()
    until(lambda: log.read_text().count(WELCOMED) > came_up, "B is welcomed", SOON_S, seen=linked.describe)
    split.open(split.at_a, "a")
    assert linked.ann.run("wait", split.job).returncode == 0
    assert split.results() == {split.at_a: "a", split.at_b: "b"}
    assert len(split.runs()) == 2, "nothing ran twice"


@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
def test_when_the_server_of_a_site_goes_its_tasks_run_elsewhere_and_its_workers_come_back(
    linked: Linked, kill: bool
) -> None:
    split = Split(linked, linked.ann, f"gone-{kill}")
    linked.sites.b.server.stop(kill=kill)
    split.open(split.at_a, "a")
    again = f"{split.at_b}-a"
    until(lambda: again in split.runs(), "A runs the task of B, too", SOON_S, seen=linked.describe)
    split.open(split.at_b, "b")
    until(lambda: b'"attempt"' in linked.journal_of("b"), "B has a result that nobody hears of", SOON_S)
    linked.sites.b.server.start()
    until(
        lambda: split.results().get(split.at_b) == "b",
        "the result of B arrives and is the first",
        SOON_S,
        seen=linked.describe,
    )
    assert split.results() == {split.at_a: "a", split.at_b: "b"}
    until(lambda: linked.seen() == ["a", "b"], "both work again", SOON_S, seen=linked.describe)


def test_tasks_that_are_lost_with_the_connection_of_the_servers_are_given_out_again(tmp_path: Path) -> None:
    """Nobody is told: the worker keeps its session, and answers the next ping by the next connection."""
    need_networks()
    with TwoSites(tmp_path, make_server) as sites:
        host = Computer(sites.a.machine, tmp_path)
        allowed = ("--worker", sites.b.domain, "--user", sites.a.domain)
        host.start_manager(sites.a.server, "--lost-after", "10s", *allowed)
        log = host.home / "manager.log"
        sites.computer(sites.b, "wb").start_worker(sites.account(sites.b, "worker"))
        until(lambda: JOINED in log.read_text(), "the worker joins", SOON_S, seen=log.read_text)
        ann = sites.computer(sites.a, "ann")
        ann.use(sites.account(sites.a, "ann"))
        sites.b.cut()
        job = str(ann.ask("submit", "-n", "2", "--", "echo")["job"])
        until(lambda: sites.a.unsent() > 0, "tasks are on their way", SOON_S)
        sites.a.reset_links()
        sites.b.heal()
        until(lambda: log.read_text().count(JOINED) == 2, "it is asked", SOON_S, seen=log.read_text)
        assert ann.run("wait", job).returncode == 0
        assert LOST not in log.read_text(), "or the test has shown nothing"


@pytest.mark.parametrize("stranger", ["a", "b"])
def test_sites_are_not_linked_when_the_certificate_of_one_is_not_trusted(
    tmp_path: Path, stranger: str
) -> None:
    """Anybody could call himself so: neither may B's server pass for A's, nor A's for B's."""
    need_networks()
    with TwoSites(tmp_path, make_server, stranger=stranger) as sites:
        host = Computer(sites.a.machine, tmp_path)
        host.start_manager(sites.a.server, "--worker", sites.b.domain, "--user", sites.a.domain)
        worker = sites.computer(sites.b, "wb")
        worker.start_worker(sites.account(sites.b, "worker"))
        log = worker.home / "worker.log"
        judge, words = {
            "a": (sites.b.server, "Peer certificate rejected"),
            "b": (sites.a.server, "certificate is not trusted"),
        }[stranger]
        until(lambda: words in judge.log, "the certificate is refused", SOON_S, seen=lambda: judge.log)
        until(lambda: GONE in log.read_text(), "the worker hears that A is not there", SOON_S)
        assert WELCOMED not in log.read_text()
        assert "site-b" not in (host.home / "manager.log").read_text()
