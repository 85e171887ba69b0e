"""`kestrel manager` as a command: which store, who stands by, how it ends, what it says of mistakes."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from parts.cutting import CuttingProxy
from parts.pool import Cluster, eventually, kill
from parts.postgres import need_postgres
from realpool.postgres import PrivatePostgres

PASSWORD = "geheim"


@pytest.fixture
def cluster(tmp_path: Path):
    with Cluster(tmp_path) as running:
        yield running


def words(cluster: Cluster, *options: str) -> tuple[str, ...]:
    """The command line of a manager for this server."""
    hello = cluster.hello
    known = ("--component", hello["component"], "--port", str(hello["component_port"]))
    return ("manager", *known, "--secret-file", hello["secret_file"], *options)


def test_a_standby_on_the_same_file_takes_over_from_a_manager_that_is_killed(
    cluster: Cluster, tmp_path: Path
):
    store = ("--store", str(tmp_path / "jobs.db"))
    first = cluster.manager(*store)
    assert cluster.next_state(first)["epoch"] == 1
    worker = cluster.worker("one", "--slots", "1")
    cluster.run("submit", "-n", "2", "--", "echo >> runs.txt; while [ ! -e go ]; do sleep 0.05; done; :")
    runs = tmp_path / "runs.txt"
    eventually(runs.exists, "a task runs")
    second = cluster.manager(*store, "--standby")
    waiting = cluster.next_state(second)
    assert (waiting["state"], waiting["pool"]) == ("standby", "default")
    assert waiting["holder"]
    kill(first)
    up = cluster.next_state(second)
    assert (up["state"], up["address"], up["epoch"]) == ("active", "manager.kestrel.localhost", 2)
    (tmp_path / "go").touch()
    assert cluster.run("wait", "1").returncode == 0
    assert runs.read_text() == "\n\n"
    assert worker.poll() is None


def test_a_manager_that_stands_by_can_be_ended_and_one_that_ends_is_followed(
    cluster: Cluster, tmp_path: Path
):
    store = ("--store", str(tmp_path / "jobs.db"))
    active = cluster.manager(*store)
    up = cluster.next_state(active)
    assert up["state"] == "active"
    assert up["access"] == {
        "workers": ["everybody of kestrel.localhost"],
        "users": ["everybody of kestrel.localhost"],
        "admins": ["admin@kestrel.localhost"],
        "denied": [],
    }
    standbys = [cluster.manager(*store, "--standby") for _ in range(2)]
    for each in standbys:
        assert cluster.next_state(each)["state"] == "standby"
    tired, heir = standbys
    for process in (tired, active):
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0, cluster.log_of(process)
    assert cluster.next_state(heir)["state"] == "active"


def test_without_standby_a_store_in_use_is_an_error_that_names_the_holder(cluster: Cluster, tmp_path: Path):
    store = ("--store", str(tmp_path / "jobs.db"))
    active = cluster.manager(*store)
    cluster.next_state(active)
    done = cluster.run(*words(cluster, *store, "--json"))
    assert done.returncode == 255
    assert json.loads(done.stdout)["error"]["code"] == "in_use"
    assert f"process {active.pid}" in done.stderr


def test_the_store_may_be_named_by_the_environment(cluster: Cluster, tmp_path: Path):
    cluster.env["KESTREL_STORE"] = str(tmp_path / "elsewhere.db")
    cluster.next_state(cluster.manager())
    assert (tmp_path / "elsewhere.db").exists()


def test_people_are_told_in_words(cluster: Cluster, tmp_path: Path):
    manager = cluster.spawn(*words(cluster))
    expected = "The manager of pool 'default' is up as manager.kestrel.localhost.\n"
    rules = "Workers and users: everybody of kestrel.localhost; admins: admin@kestrel.localhost. "
    assert cluster.line_of(manager) == expected
    assert cluster.line_of(manager).startswith(rules)
    standby = cluster.spawn(*words(cluster, "--standby"))
    assert cluster.line_of(standby).startswith("Standing by: ")
    assert cluster.line_of(standby).startswith(rules)
    manager.send_signal(signal.SIGTERM)
    assert cluster.line_of(standby) == expected


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--store", "mysql://host/x"), ("mysql", "postgresql://")),
        (("--store", "{scratch}/nowhere/jobs.db"), ("nowhere", "mkdir -p")),
        (("--store", "{scratch}"), ("is a directory", "{scratch}")),
        (("--lease", "10"), ()),
        (("--lease", "0"), ("lease", "--lease takes")),
        (("--lease", "soon"), ("soon", "1h30m")),
        (("--jid", "a@b"), ("--component or --jid",)),
        (("--port", "1"), ("127.0.0.1:1", "is the server running")),
    ],
)
def test_a_mistake_is_answered_with_what_is_wrong_and_what_to_do(
    cluster: Cluster, tmp_path: Path, options: tuple[str, ...], said: tuple[str, ...]
):
    given = [option.format(scratch=tmp_path) for option in options]
    if not said:
        cluster.next_state(cluster.manager(*given))  # is right
        return
    done = cluster.run(*words(cluster, *given))
    assert done.returncode == 255
    for part in said:
        assert part.format(scratch=tmp_path) in done.stderr
    assert "Traceback" not in done.stderr


def test_a_store_of_another_pool_is_refused(cluster: Cluster, tmp_path: Path):
    store = ("--store", str(tmp_path / "jobs.db"))
    first = cluster.manager(*store)
    cluster.next_state(first)
    first.send_signal(signal.SIGTERM)
    first.wait(15)
    done = cluster.run(*words(cluster, *store, "--pool", "other", "--standby"))
    assert done.returncode == 255
    assert "belongs to the pool 'default'" in done.stderr


def test_a_password_is_never_shown_and_its_place_is_criticised(cluster: Cluster):
    pytest.importorskip("psycopg")
    place = f"postgresql://ann:{PASSWORD}@nohost.invalid/jobs"
    done = cluster.run(*words(cluster, "--store", place))
    assert done.returncode == 255
    assert "KESTREL_STORE" in done.stderr
    assert "~/.pgpass" in done.stderr
    cluster.env["KESTREL_STORE"] = place
    quiet = cluster.run(*words(cluster, "--json"))
    assert quiet.returncode == 255
    assert "~/.pgpass" not in quiet.stderr
    assert "nohost.invalid" in json.loads(quiet.stdout)["error"]["text"]
    assert PASSWORD not in done.stderr + done.stdout + quiet.stderr + quiet.stdout


def test_a_manager_that_is_cut_off_from_the_database_makes_room_for_its_heir(
    cluster: Cluster, tmp_path: Path
):
    """It lives, and its connection to the XMPP server, too: it must not keep out who took over."""
    need_postgres()
    with PrivatePostgres() as postgres:
        place = postgres.database()
        with CuttingProxy(postgres.port) as proxy:
            there = place.replace(str(postgres.port), str(proxy.port))
            cut_off = cluster.manager("--store", there, "--lease", "1s")
            assert cluster.next_state(cut_off)["state"] == "active"
            worker = cluster.worker("one", "--slots", "1")
            cluster.run("submit", "--", "echo >> runs.txt; while [ ! -e go ]; do sleep 0.05; done; :")
            eventually((tmp_path / "runs.txt").exists, "the task runs")
            heir = cluster.manager("--store", place, "--lease", "1s")
            assert cluster.next_state(heir)["state"] == "standby"
        assert cluster.next_state(heir)["state"] == "active"
        (tmp_path / "go").touch()
        assert cluster.run("wait", "1").returncode == 0
        assert (tmp_path / "runs.txt").read_text() == "\n"
        assert (cut_off.poll(), worker.poll()) == (None, None)
