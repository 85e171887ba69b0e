"""Server and managers as processes of their own: each is killed, stopped and started again under way."""

from __future__ import annotations

import json
import signal
import stat
import time
from collections import Counter
from pathlib import Path

import pytest

from kestrel.config import PoolAccess
from parts.pool import Cluster, eventually, hold, kill

# Says that it starts, then takes as long as the file `go` is missing. The number of the task follows.
UNTIL_GO = "echo $KESTREL_TASK_ID >> starts.txt; while [ ! -e go ]; do sleep 0.05; done; echo done"


@pytest.fixture
def cluster(tmp_path: Path):
    with Cluster(tmp_path) as running:
        yield running


def starts(scratch: Path) -> Counter[str]:
    """How often each task was started."""
    path = scratch / "starts.txt"
    return Counter(path.read_text().split() if path.exists() else ())


def active(cluster: Cluster, *options: str):
    """A manager that is up."""
    manager = cluster.manager(*options)
    state = cluster.next_state(manager)
    assert state["state"] == "active", state
    return manager


def test_a_killed_server_comes_back_and_nothing_is_lost_or_run_twice(cluster: Cluster, tmp_path: Path):
    manager = active(cluster)
    worker = cluster.worker("one", "--slots", "3")
    cluster.run("submit", "-n", "3", "--", UNTIL_GO)
    cluster.run("submit", "-n", "40", "--", "echo >> short.txt")
    eventually(lambda: len(starts(tmp_path)) == 3, "three tasks run")
    waiting = cluster.spawn("wait", "1", "2")
    kill(cluster.server)
    (tmp_path / "go").touch()  # they end while nobody listens
    cluster.start_server()
    assert waiting.wait(60) == 0, cluster.log_of(waiting)
    assert starts(tmp_path) == {"0": 1, "1": 1, "2": 1}
    assert Counter((tmp_path / "short.txt").read_text().split()) == {str(n): 1 for n in range(40)}
    assert cluster.run("cat", "1_2").stdout == "done 2\n"
    assert (manager.poll(), worker.poll()) == (None, None)
    assert [j["state"] for j in cluster.ask("status")] == ["COMPLETED", "COMPLETED"]


def test_accounts_invitations_and_the_managers_secret_survive_a_restart(cluster: Cluster, tmp_path: Path):
    before = cluster.hello
    access = tmp_path / "config" / "kestrel" / "pools" / "default.json"
    admin = PoolAccess.load(access)
    invited = json.loads(cluster.run("invite", "--json").stdout)["invitation"]
    secret = Path(before["secret_file"]).read_text()
    assert stat.S_IMODE(Path(before["secret_file"]).stat().st_mode) == 0o600
    kill(cluster.server)
    cluster.start_server()
    assert {k: v for k, v in cluster.hello.items() if k != "invitation"} == {
        k: v for k, v in before.items() if k != "invitation"
    }
    assert Path(before["secret_file"]).read_text() == secret
    assert PoolAccess.load(access) == admin
    active(cluster)
    for name, invitation in (("old", before["invitation"]), ("single", invited), ("new", cluster.invitation)):
        cluster.invitation = invitation
        cluster.worker(name)


def test_a_killed_manager_is_missed_at_once_and_its_heir_goes_on(cluster: Cluster, tmp_path: Path):
    manager = active(cluster)
    worker = cluster.worker("one", "--slots", "1")
    cluster.run("submit", "-n", "4", "--", UNTIL_GO)
    eventually(lambda: len(starts(tmp_path)) == 1, "a task runs")
    kill(manager)
    eventually(lambda: "manager_gone" in cluster.log_of(worker), "the worker learns that it is gone", 5)
    active(cluster)
    (tmp_path / "go").touch()
    assert cluster.run("wait", "1").returncode == 0
    assert starts(tmp_path) == {str(n): 1 for n in range(4)}


def test_a_manager_that_stands_still_gives_way_to_another_in_a_moment(cluster: Cluster, tmp_path: Path):
    asleep = active(cluster, "--dir", str(tmp_path / "asleep"))
    worker = cluster.worker("one")
    hold(asleep)
    began = time.monotonic()
    active(cluster, "--dir", str(tmp_path / "awake"))
    waited_s = time.monotonic() - began
    eventually(lambda: cluster.log_of(worker).count("welcomed") == 2, "the worker joins the new one")
    cluster.run("submit", "--wait", "--", "true")
    assert cluster.ask("status")[0]["state"] == "COMPLETED"
    asleep.send_signal(signal.SIGCONT)
    eventually(lambda: "xmpp." in cluster.log_of(asleep), "the old one finds itself replaced")
    assert cluster.run("submit", "--wait", "--", "true").returncode == 0
    print(f"the new manager was in after {waited_s:.2f} s")  # noqa: T201 (a figure to be read, not judged)


def test_a_second_manager_is_kept_out_while_the_first_lives(cluster: Cluster, tmp_path: Path):
    active(cluster, "--dir", str(tmp_path / "first"))
    second = cluster.manager("--dir", str(tmp_path / "second"))
    assert second.wait(60) == 255
    assert "is connected already" in cluster.log_of(second)
    assert cluster.run("status").returncode == 0


def test_a_second_server_in_the_same_directory_is_refused(cluster: Cluster):
    again = cluster.run("server", "run", "--port", "0", "--component-port", "0")
    assert again.returncode == 255
    assert f"process {cluster.server.pid}" in again.stderr
    assert "--dir" in again.stderr
    up = cluster.run("up", "--port", "0", "--json")
    assert (up.returncode, json.loads(up.stdout)["error"]["code"]) == (255, "in_use")


@pytest.mark.parametrize("option", ["--port", "--component-port"])
def test_a_port_that_is_taken_is_named_with_its_option(cluster: Cluster, tmp_path: Path, option: str):
    port = str(cluster.hello["port" if option == "--port" else "component_port"])
    other = "--component-port" if option == "--port" else "--port"
    done = cluster.run("server", "run", "--dir", str(tmp_path / "other"), option, port, other, "0")
    assert done.returncode == 255
    assert port in done.stderr
    assert f" {option}" in done.stderr


def test_it_says_what_to_run_next_and_that_runs(cluster: Cluster, tmp_path: Path):
    kill(cluster.server)
    ports = ("--port", str(cluster.hello["port"]), "--component-port", str(cluster.hello["component_port"]))
    server = cluster.spawn("server", "run", *ports, "--component-listen", "0.0.0.0")
    assert server.stdout is not None
    lines = [cluster.line_of(server) for _ in range(9)]
    commands = [line.split() for line in lines if line.startswith("  kestrel ")]
    assert [words[1] for words in commands] == ["manager", "worker"]
    assert "without encryption" in cluster.log_of(server)
    manager = cluster.spawn(*commands[0][1:])
    assert "is up as manager.kestrel.localhost" in cluster.line_of(manager)
    cluster.invitation = commands[1][-1]
    cluster.worker("one")
    cluster.run("submit", "--wait", "--", "true")
    # The commands here speak for the administrator, and the manager knows it.
    assert cluster.run("drain", cluster.ask("pool")["workers"][0]["worker"]).returncode == 0


def test_a_server_and_a_manager_that_are_asked_to_end_do_so(cluster: Cluster):
    manager = active(cluster)
    for process in (manager, cluster.server):
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0, cluster.log_of(process)
