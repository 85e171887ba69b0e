"""Joining with real processes: invitations for workers and users, what ends them, and who may do what."""

import json
import os
import stat
import subprocess
import sys
from dataclasses import replace

import pytest

from kestrel.config import Invitation, PoolAccess
from parts.pool import Pool, eventually


class Machine:
    """Another machine: a home of its own, and nothing else."""

    def __init__(self, path):
        self.path = path
        self.config = path / "config"
        env = {k: v for k, v in os.environ.items() if not k.startswith(("KESTREL_", "XDG_"))}
        self.env = env | {
            "HOME": str(path),
            "XDG_CONFIG_HOME": str(self.config),
            "XDG_DATA_HOME": str(path / "d"),
        }
        path.mkdir(exist_ok=True)

    def run(self, *words, text="", code=0, **env):
        done = subprocess.run(
            [sys.executable, "-m", "kestrel", *words],
            env=self.env | env,
            cwd=self.path,
            input=text,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def ask(self, *words, **more):
        return json.loads(self.run(*words, "--json", **more).stdout)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    with Pool(tmp_path_factory.mktemp("joining")) as pool:
        yield pool


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path / "machine")


def invited(pool, *words):
    return pool.ask("invite", *words)


def test_a_user_joins_uses_the_pool_and_is_ended(pool, machine):
    made = invited(pool, "--role", "user", "--name", "for ann", "--expires", "1h")
    listed = {each["id"]: each for each in pool.ask("invite", "list")}
    assert (listed[made["id"]]["name"], listed[made["id"]]["uses_left"]) == ("for ann", 1)
    joined = machine.ask("join", "-", "--name", "Ann", text=made["invitation"] + "\n")
    assert joined["jid"] == "ann@kestrel.localhost"
    path = machine.config / "kestrel/pools/default.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert made["id"] not in {each["id"] for each in pool.ask("invite", "list")}
    # Again with the same line: the account is kept, and nothing is asked for.
    again = machine.run("join", made["invitation"])
    assert "ann@kestrel.localhost" in again.stdout
    assert "was not used" in again.stdout
    assert "kestrel submit" in again.stdout
    assert [each["user"] for each in machine.ask("status")] == []
    accounts = {each["account"]: each for each in pool.ask("account", "list")}
    assert (accounts["ann"]["role"], accounts["ann"]["invitation"]) == ("user", made["id"])
    pool.run("account", "remove", "ann")
    gone = machine.run("status", code=255)
    assert "not-authorized" in gone.stderr
    # The line is used up, which is said; and with a new one the access is made anew.
    used = machine.run("join", made["invitation"], code=255)
    assert "used up" in used.stderr
    assert (
        machine.ask("join", invited(pool, "--role", "admin")["invitation"], "--name", "ann")["workers"] >= 0
    )
    assert "admin" in {each["role"] for each in pool.ask("account", "list") if each["account"] == "ann"}


def test_a_line_for_workers_is_not_used_up_by_a_user_nor_the_other_way_round(pool, machine):
    worker, user = invited(pool), invited(pool, "--role", "user")
    refused = machine.run("join", worker["invitation"], code=255)
    assert "kestrel worker --join" in refused.stderr
    refused = machine.run("worker", "--join", "-", text=user["invitation"], code=255)
    assert "kestrel join" in refused.stderr
    left = {each["id"]: each["uses_left"] for each in pool.ask("invite", "list")}
    assert left[worker["id"]] == left[user["id"]] == 1


def test_a_worker_account_may_not_submit(pool, machine):
    line = Invitation.parse(invited(pool)["invitation"])
    # Whoever has the token need not say what it is for.
    script = (
        "import asyncio, sys; from kestrel.xmpp.register import register\n"
        "from kestrel.config import Invitation, PoolAccess; from pathlib import Path\n"
        "i = Invitation.parse(sys.stdin.read())\n"
        "made = asyncio.run(register(i.host, i.port, i.domain, i.token, fingerprint=i.fingerprint))\n"
        "PoolAccess(i.manager, *made, i.host, i.port, i.fingerprint).save(Path('access.json'))\n"
    )
    subprocess.run(
        [sys.executable, "-c", script],
        input=str(line),
        text=True,
        check=True,
        cwd=machine.path,
        env=machine.env,
    )
    for words in (["submit", "--", "true"], ["status"], ["cancel", "1"], ["pool"]):
        refused = machine.run(words[0], "--pool", "./access.json", *words[1:], code=255)
        assert "may not" in refused.stderr or "not allowed" in refused.stderr.lower(), refused.stderr


def test_a_worker_outlives_its_invitation_and_not_its_account(pool, tmp_path):
    made = invited(pool, "--uses", "2")
    line = tmp_path / "line.txt"
    line.write_text(f"kestrel worker --join {made['invitation']}\n")
    process = pool.spawn("worker", "--join", f"@{line}", "--name", "steady", "-v")
    eventually(lambda: pool.shows("steady"), "the worker joins")
    told = pool.run("invite", "revoke", made["invitation"]).stdout
    assert made["id"] in told
    assert "steady" in told
    assert "kestrel account remove" in told
    assert pool.run("invite", "revoke", made["id"]).returncode == 255
    late = Machine(tmp_path / "late").run("worker", "--join", "-", text=made["invitation"], code=255)
    assert "revoked" in late.stderr
    assert pool.run("submit", "--wait", "--", "echo", "still").returncode == 0
    pool.ask("account", "role", "steady", "user")
    eventually(lambda: not pool.shows("steady"), "a user does not work")
    assert pool.ask("account", "remove", "steady@kestrel.localhost")["removed"]
    assert process.wait(30) == 255
    assert "was the account removed?" in pool.log_of(process)
    assert not pool.shows("steady")


def test_an_invitation_in_the_environment_is_taken_and_not_handed_to_tasks(pool):
    pool.env["KESTREL_INVITATION"] = invited(pool)["invitation"]
    try:
        pool.spawn("worker", "--name", "env-worker", "-v")
        eventually(lambda: pool.shows("env-worker"), "the worker joins")
    finally:
        del pool.env["KESTREL_INVITATION"]
    done = pool.run("submit", "--wait", "--workers", "env-worker@kestrel.localhost", "--", "env")
    assert done.returncode == 0, done.stderr
    job = max(each["job"] for each in pool.ask("status", "--all"))
    assert "INVITATION" not in pool.run("cat", f"{job}_0").stdout


def test_what_belongs_to_the_machine_of_the_pool_says_so_elsewhere(pool, machine):
    machine.ask("join", invited(pool, "--role", "user")["invitation"], "--name", "bob")
    for words in (["invite"], ["invite", "list"], ["invite", "revoke", "x"], ["account", "list"]):
        refused = machine.run(*words, code=255)
        assert "where `kestrel up` runs" in refused.stderr


def test_a_line_with_a_wrong_password_leaves_nothing_behind(pool, machine):
    right = Invitation.parse(invited(pool, "--role", "user")["invitation"])
    refused = machine.run("join", str(replace(right, user="admin", token="wrong")), code=255)
    assert "not-authorized" in refused.stderr
    assert not (machine.config / "kestrel/pools/default.json").exists()


def test_another_pool_of_the_same_name_is_not_overwritten(pool, machine):
    path = machine.config / "kestrel/pools/default.json"
    PoolAccess("m.example.org", "ann@example.org", "pw").save(path)
    before = path.read_text()
    refused = machine.run("join", invited(pool, "--role", "user")["invitation"], code=255)
    assert "--pool" in refused.stderr
    assert path.read_text() == before
    PoolAccess("manager.kestrel.localhost", "ann@kestrel.localhost", "pw", fingerprint="ab" * 32).save(path)
    refused = machine.run("join", invited(pool, "--role", "user")["invitation"], code=255)
    assert "another domain or certificate" in refused.stderr


def test_the_account_of_this_machines_commands_is_not_removed_by_mistake(pool):
    refused = pool.run("account", "remove", "admin")
    assert refused.returncode == 255
    assert "commands on this machine" in refused.stderr
    assert pool.run("account", "remove", "nobody").returncode == 255
    assert pool.run("account", "role", "nobody", "user").returncode == 255


def test_a_line_for_an_account_of_another_server(machine):
    (machine.path / "pw").write_text("s3cret/+@:\n")
    fingerprint = "ab" * 32
    words = ["--jid", "Node7@Example.org", "--password-file", "pw", "--manager", "kestrel.example.org"]
    line = machine.run(
        "invite", *words, "--host", "wss://x.example.org/ws", "--fingerprint", fingerprint
    ).stdout
    found = Invitation.parse(line)
    assert (found.user, found.token, found.domain) == ("node7", "s3cret/+@:", "example.org")
    assert (found.host, found.via, found.path, found.port) == ("x.example.org", "wss", "/ws", 0)
    assert (found.manager, found.fingerprint) == ("kestrel.example.org", fingerprint)
    plain = Invitation.parse(machine.run("invite", *words).stdout)
    assert (plain.host, plain.port) == ("example.org", 0)
    uri = "xmpp:example.org?register;preauth=tok%2Fen;ibr=y"
    found = Invitation.parse(machine.run("invite", "--from", uri, "--manager", "kestrel.example.org").stdout)
    assert (found.user, found.token, found.domain) == ("", "tok/en", "example.org")


@pytest.mark.parametrize(
    "words",
    [
        ["--jid", "node7@example.org"],
        ["--jid", "node7@example.org", "--manager", "m.example.org"],
        ["--jid", "node7@example.org", "--manager", "m.example.org", "--password-file", "missing"],
        ["--jid", "example.org", "--manager", "m.example.org"],
        ["--from", "xmpp:example.org?register", "--manager", "m.example.org"],
        ["--from", "xmpp:ann@example.org?register;preauth=x", "--manager", "m.example.org"],
        ["--from", "https://example.org", "--manager", "m.example.org"],
        ["--manager", "m.example.org"],
    ],
)
def test_what_is_missing_for_another_server_is_named(machine, words):
    refused = machine.run("invite", *words, code=255)
    assert "hint:" in refused.stderr
