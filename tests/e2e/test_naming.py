"""Workers are named, grouped and drained by the parts of their addresses, on the embedded server."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from parts.pool import Pool, eventually


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> object:
    """Two machines: one with a connection per core (two of them), one with one connection."""
    with Pool(tmp_path_factory.mktemp("naming")) as pool:
        pool.worker("lab", "--each-core", "--slots", "2")
        pool.worker("desk", "--slots", "2")
        eventually(lambda: len(pool.ask("pool")["workers"]) == 3, "two cores and a desk are there")
        yield pool


def addresses(pool: Pool, *patterns: str) -> list[str]:
    done = pool.run("pool", "-q", *patterns)
    assert done.returncode == 0, done.stderr
    return sorted(done.stdout.split())


def ask(pool: Pool, command: str, *words: str) -> Any:
    done = pool.run(command, "--json", *words)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def workers_of(pool: Pool, *words: str) -> set[str]:
    submitted = ask(pool, "submit", "--wait", *words)
    assert submitted["state"] == "COMPLETED"
    return {
        json.loads(line)["worker"]
        for line in pool.run("results", "--json", str(submitted["job"])).stdout.splitlines()
    }


def test_a_job_runs_only_where_its_patterns_say(pool: Pool) -> None:
    (core1,) = addresses(pool, "*/core1")
    account, _, resource = core1.partition("/")
    assert resource == "core1"
    assert addresses(pool, account) == [account + "/core0", core1]
    assert addresses(pool, account + "/") == [account + "/core0", core1]
    assert workers_of(pool, "--workers", core1, "-n", "6", "--", "true") == {core1}
    assert workers_of(pool, "--workers", account, "-n", "8", "--", "true") <= set(addresses(pool, account))
    everybody = set(addresses(pool))
    file = pool.scratch / "job.ini"
    file.write_text("[job]\ncommand = true\nqueue = 6\nworkers = */core0 nobody@x\n")
    assert workers_of(pool, str(file)) == {account + "/core0"}
    file = pool.scratch / "job.toml"
    file.write_text('command = ["true"]\nqueue = 6\nworkers = ["*/core?"]\n')
    assert workers_of(pool, str(file)) <= everybody - set(addresses(pool, "desk*@*"))


def test_a_run_on_a_pool_names_its_workers(pool: Pool) -> None:
    words = ("--pool", "default", "--workers", "*/core1", "--", "echo", "{}", ":::", "a", "b", "c", "d")
    done = pool.run("run", *words)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == ["a", "b", "c", "d"]
    before = {w["worker"]: w["completed"] for w in pool.ask("pool")["workers"]}
    assert pool.run("run", *words).returncode == 0
    after = {w["worker"]: w["completed"] for w in pool.ask("pool")["workers"]}
    grown = [name for name in after if after[name] != before[name]]
    assert grown == addresses(pool, "*/core1")


def test_the_pool_is_shown_in_groups(pool: Pool) -> None:
    groups = pool.ask("pool", "--by", "resource", "*/core*")["groups"]
    assert [(g["name"], g["workers"], g["slots"]) for g in groups] == [("core0", 1, 1), ("core1", 1, 1)]
    text = pool.run("pool", "--by", "domain").stdout.split("\n")
    assert text[0].split() == ["DOMAIN", "WORKERS", "IDLE", "SLOTS", "TASKS", "DONE", "FAILED"]
    domain = addresses(pool)[0].partition("@")[2].partition("/")[0]
    assert text[1].split()[:2] == [domain, "3"]
    assert pool.run("pool", "-q", "--by", "domain").stdout.split() == [domain]


def test_who_is_not_meant_and_what_is_no_pattern_is_told(pool: Pool) -> None:
    done = pool.run("pool", "*/core7")
    assert done.returncode != 0
    assert "*/core7 means none of the 3 workers in the pool" in done.stderr
    assert re.search(r"did you mean lab-?\w*@\S+/core[01]\?", done.stderr), done.stderr
    done = pool.run("pool", "desk*")
    assert "a pattern without @ means a domain; did you mean desk*@*?" in done.stderr
    bad = pool.run("submit", "--workers", "a@b@c", "--", "true")
    assert bad.returncode != 0
    assert "more than one @" in bad.stderr
    waiting = ask(pool, "submit", "--workers", "nobody@nowhere", "--", "true")
    assert waiting["warning"] == "`nobody@nowhere` means none of the 3 workers."
    assert pool.run("cancel", str(waiting["job"])).returncode == 0


def test_a_drain_by_a_pattern_is_taken_back_by_it(pool: Pool) -> None:
    assert pool.ask("drain", "*/core*") == {"workers": 2, "drained": True}
    cores, desk = addresses(pool, "*/core*"), set(addresses(pool)) - set(addresses(pool, "*/core*"))
    assert workers_of(pool, "-n", "8", "--", "true") == desk
    states = {w["worker"]: w["state"] for w in pool.ask("pool")["workers"]}
    assert {states[name] for name in cores} == {"draining"}
    assert pool.run("drain", "--undo", "*/core*").stdout == "2 workers back in use.\n"


def test_a_job_file_with_a_bad_pattern_names_its_line(pool: Pool) -> None:
    file = Path(pool.scratch / "bad.ini")
    file.write_text("[job]\ncommand = true\nworkers = a@b@c\n")
    done = pool.run("submit", str(file))
    assert done.returncode != 0
    assert f"{file}:3: workers: 'a@b@c' has more than one @" in done.stderr
