"""`kestrel worker` as machine owners use it: one real pool, real workers, real tasks, real accounts."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from kestrel.config import Invitation, PoolAccess
from kestrel.ports import Show
from kestrel.protocol import codec
from kestrel.protocol import messages as m
from kestrel.xmpp.access import client_settings
from kestrel.xmpp.client import XmppClient
from kestrel.xmpp.link import XmppLink
from parts.need import need_that
from parts.pool import PATIENCE_S, Cluster, Pool, eventually, hold

LEASE = "2s"
TALKATIVE = """
import logging
logging.basicConfig(level=logging.DEBUG)
for room in ("cli", "config", "worker", "xmpp"):
    logging.getLogger(f"kestrel.{room}").setLevel(logging.DEBUG)
"""
HOG_S = 6
HOG = f"exec python3 -c 'import time; t = time.time()\nwhile time.time() - t < {HOG_S}: pass'"


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """One pool for all, with the shortest lease."""
    with Pool(tmp_path_factory.mktemp("lending"), "--port", "0", "--lost-after", LEASE) as made:
        yield made


@pytest.fixture(autouse=True)
def alone(pool: Pool) -> Iterator[None]:
    """No worker of one test is there in the next, however it ended."""
    before = len(pool.processes)
    yield
    for process in pool.processes[before:]:
        process.kill()
        process.wait()


def leave(pool: Pool, process: subprocess.Popen[str]) -> None:
    """One Ctrl-C; it ends in order."""
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0, pool.log_of(process)


def submitted(pool: Pool, *words: str) -> int:
    done = pool.run("submit", "--json", *words)
    assert done.returncode == 0, done.stderr
    return int(json.loads(done.stdout)["job"])


def ended(pool: Pool, job: int) -> dict[str, Any]:
    """The job, when it has ended."""
    assert pool.run("wait", str(job)).returncode == 0
    (status,) = pool.ask("status", str(job))
    assert isinstance(status, dict)
    return status


def outputs(pool: Pool, job: int) -> list[str]:
    """What its tasks wrote."""
    lines = pool.run("results", "--json", str(job)).stdout.splitlines()
    return [json.loads(line)["out"] for line in lines]


def workers(pool: Pool) -> dict[str, dict[str, Any]]:
    return {w["worker"]: w for w in pool.ask("pool")["workers"]}


def test_a_busy_worker_is_never_taken_as_lost(pool: Pool) -> None:
    """Four times as many busy loops as cores, for three leases; then nobody was lost, nothing ran twice."""
    slots = 4 * len(os.sched_getaffinity(0))
    process = pool.worker("busy", "-j", str(slots))
    job = submitted(pool, "-n", str(slots), "--", HOG)
    status = ended(pool, job)
    assert (status["state"], status["counts"]["completed"], status["reruns"]) == ("COMPLETED", slots, 0)
    assert pool.ask("pool")["lost"] == []
    log = pool.log_of(process)
    for event in ("worker_down", "manager_silent", "manager_gone", "xmpp.disconnected"):
        assert event not in log, log
    leave(pool, process)


def test_each_core_has_a_connection_and_all_leave_with_one_ctrl_c(pool: Pool) -> None:
    process = pool.worker("many", "--each-core", "-j", "3")
    names = [f"many@kestrel.localhost/core{n}" for n in range(3)]
    eventually(lambda: set(names) <= workers(pool).keys(), "three workers")
    assert {workers(pool)[name]["slots"] for name in names} == {1}
    job = submitted(pool, "-n", "3", "--", "sleep 0.5; echo $KESTREL_WORKER #")
    assert ended(pool, job)["counts"]["completed"] == 3
    assert sorted(outputs(pool, job)) == [f"{name}\n" for name in names]
    leave(pool, process)
    assert not [name for name in workers(pool) if name.startswith("many@")]
    assert "Traceback" not in pool.log_of(process)


def test_jobs_of_others_do_not_run_where_the_owner_does_not_want_them(pool: Pool) -> None:
    mine = pool.worker("mine", "--users", "bob@kestrel.localhost", "--users", "*.elsewhere.net")
    job = submitted(pool, "-n", "2", "--", "echo $KESTREL_WORKER #")
    why = pool.run("explain", str(job)).stdout
    assert "bob@kestrel.localhost" in why or "users" in why, why
    yours = pool.worker("yours", "--users", "kestrel.localhost")
    assert ended(pool, job)["counts"]["completed"] == 2
    assert set(outputs(pool, job)) == {"yours@kestrel.localhost/worker\n"}
    assert "job_refused" not in pool.log_of(mine), "the manager did not even try"
    leave(pool, mine)
    leave(pool, yours)


def test_outside_of_its_hours_a_worker_is_there_and_takes_nothing(pool: Pool) -> None:
    other_day = (datetime.now() + timedelta(days=3)).strftime("%a")
    closed = pool.worker("closed", "--hours", other_day)
    assert pool.ask("pool", "closed@*")["workers"][0]["state"] == "away"
    job = submitted(pool, "--", "echo $KESTREL_WORKER")
    day_worker = pool.worker("always")
    assert ended(pool, job)["counts"]["completed"] == 1
    assert outputs(pool, job) == ["always@kestrel.localhost/worker\n"]
    leave(pool, closed)
    leave(pool, day_worker)


def test_tasks_run_as_another_user(pool: Pool) -> None:
    need_that(os.geteuid() == 0, "only root can run tasks as another user")
    work = Path(tempfile.mkdtemp(prefix="kestrel-test-"))
    work.chmod(0o755)
    try:
        process = pool.worker("guest", "--run-as", "nobody", "--workdir", str(work))
        job = submitted(pool, "--workdir", str(work), "--", "id -un; echo $HOME; seq 2000")
        assert ended(pool, job)["counts"]["completed"] == 1
        written = pool.run("cat", f"{job}_0").stdout.split()
        assert (written[0], written[-1], len(written)) == ("nobody", "2000", 2002), (
            "all of it, from the worker"
        )
        leave(pool, process)
        refused = pool.run("worker", "--join", pool.invitation, "--run-as", "nobody", "--name", "shut")
        assert refused.returncode != 0
        assert "nobody cannot enter the working directory" in refused.stderr
        assert "--workdir" in refused.stderr
    finally:
        shutil.rmtree(work)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--hours", "Mo 20-7"], "is no day of the week"),
        (["--users", "a@b@c"], "more than one @"),
        (["--users", "ann@example.org/phone"], "names a resource"),
        (["--run-as", "nobody-at-all"], "no account 'nobody-at-all'"),
    ],
)
def test_what_cannot_be_meant_is_said_in_one_line(pool: Pool, options: list[str], words: str) -> None:
    done = pool.run("worker", "--join", pool.invitation, "--name", "shut", *options)
    assert done.returncode != 0
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert "Working as" not in done.stdout, "nothing was used up for it"
    assert "shut" not in {each["account"] for each in pool.ask("account", "list")}


def test_a_worker_keeps_the_resource_that_was_drawn_for_it(pool: Pool) -> None:
    """`slash@pool/` has the same full address after a restart: it is the same worker to the manager."""
    leave(pool, pool.worker("slash"))
    directory = pool.scratch / "data" / "kestrel" / "workers" / "kestrel.localhost" / "slash"
    access = json.loads((directory / "access.json").read_text())
    password = pool.scratch / "password"
    password.write_text(access["password"])
    server = ["--host", access["host"], "--port", str(access["port"]), "--fingerprint", access["fingerprint"]]
    account = ["--password-file", str(password), "--manager", access["manager"], *server]
    seen = []
    for jid in ("slash@kestrel.localhost/", "slash@kestrel.localhost/", "slash@kestrel.localhost/core 2"):
        process = pool.spawn("worker", "--jid", jid, *account, "--dir", str(directory), "-v")
        name = eventually(lambda: next((w for w in workers(pool) if w.startswith("slash@")), None), jid)
        seen.append(name.partition("/")[2])
        leave(pool, process)
    assert seen == [(directory / "resource").read_text().strip()] * 2 + ["core 2"]
    assert len(seen[0]) == 8
    both = pool.run("worker", "--jid", "slash@kestrel.localhost/x", *account, "--each-core")
    assert "with --each-core the resources are core0, core1" in both.stderr


def test_a_worker_whose_server_stands_still_notices_within_about_a_lease(tmp_path: Path) -> None:
    """The manager told it how long silence may last; else it would wait for half a minute."""
    with Cluster(tmp_path) as cluster:
        cluster.next_state(cluster.manager("--lost-after", LEASE))
        process = cluster.worker("far")
        hold(cluster.server)
        eventually(lambda: "worker_down" in cluster.log_of(process), "it notices", patience_s=10.0)
        cluster.server.send_signal(signal.SIGCONT)
        eventually(lambda: cluster.log_of(process).count("worker_up") == 2, "it is back")
        leave(cluster, process)


class Pretender:
    """A user of the pool, even its administrator, who speaks to a worker as only its manager may."""

    def __init__(self, access: PoolAccess) -> None:
        self.link = XmppLink()
        self.link.deliver_to(self)
        self.stream = XmppClient(client_settings(replace(access, resource="evil")), self.link)
        self.link.attach(self.stream)
        self.answers: asyncio.Queue[bytes] = asyncio.Queue()

    async def say(self, worker: str, *messages: m.Message) -> bytes:
        """Say these; the first answer."""
        running = asyncio.create_task(self.stream.run())
        await self.stream.wait_connected()
        self.link.announce(worker, Show.CHAT, "I am your manager")
        for message in messages:
            self.link.send(worker, codec.encode(message))
        self.link.withdraw(worker)
        async with asyncio.timeout(PATIENCE_S):
            answer = await self.answers.get()
        await self.stream.close()
        await running
        return answer

    def on_message(self, sender: str, payload: bytes, chat: bool) -> None:
        self.answers.put_nowait(payload)

    def on_up(self, address: str) -> None: ...

    def on_down(self, reason: str) -> None: ...

    def on_available(self, sender: str, show: Show, status: str) -> None: ...

    def on_unavailable(self, sender: str, reason: str) -> None: ...

    def on_heard(self, sender: str) -> None: ...

    def on_role(self, jid: str, role: str) -> None: ...


def test_a_worker_obeys_nobody_but_its_manager_not_even_the_administrator(pool: Pool) -> None:
    process = pool.worker("loyal", "-j", "1")
    fifo = pool.scratch / "go"
    os.mkfifo(fifo)
    job = submitted(pool, "--", "read line <go; echo $line")
    eventually(lambda: pool.ask("status", str(job))[0]["counts"]["running"] == 1, "it runs")
    access = PoolAccess.load(Path(pool.env["XDG_CONFIG_HOME"]) / "kestrel" / "pools" / "default.json")
    spec = m.TaskSpec(command="touch evil", workdir=str(pool.scratch))
    answer = asyncio.run(
        Pretender(access).say(
            "loyal@kestrel.localhost/worker",
            m.Welcome(epoch=2**30, lease_s=1e9),
            m.Tasks(job=job, attempt=1, tasks=[0], spec=spec),
            m.Stop(attempts=list(range(2**32, 2**32 + 50))),
            m.Ack(n=(1 << 30) + 1),
            m.ReadOutput(id="1", job=job, task=0, attempt=2**32 + 1),
            m.Error(code="version", text="go away for good"),
        )
    )
    error = codec.decode_to_user(answer)
    assert isinstance(error, m.Error)
    assert error.code == "not_my_manager"
    fifo.write_text("unmoved\n")
    assert ended(pool, job)["counts"]["completed"] == 1
    assert outputs(pool, job) == ["unmoved\n"]
    assert not (pool.scratch / "evil").exists()
    log = pool.log_of(process)
    assert log.count("not_my_manager sender=admin@kestrel.localhost/evil") == 1, log
    leave(pool, process)


def test_no_secret_is_in_a_log_a_command_line_of_a_child_or_the_environment_of_a_task(pool: Pool) -> None:
    talkative = pool.scratch / "talkative"
    talkative.mkdir()
    (talkative / "sitecustomize.py").write_text(TALKATIVE)
    more = {"KESTREL_STORE": "postgresql://kestrel:sesame@db/kestrel", "PYTHONPATH": str(talkative)}
    pool.env |= more
    try:
        process = pool.worker("discreet")
    finally:
        for name in more:
            del pool.env[name]
    directory = pool.scratch / "data" / "kestrel" / "workers" / "kestrel.localhost" / "discreet"
    access = directory / "access.json"
    assert access.stat().st_mode & 0o777 == 0o600
    assert directory.stat().st_mode & 0o777 == 0o700
    secrets = {json.loads(access.read_text())["password"], Invitation.parse(pool.invitation).token, "sesame"}
    assert len(secrets) == 3
    look = [
        f"tr '\\0' '\\n' </proc/{process}" for process in ("$$/environ", "$PPID/environ", "$PPID/cmdline")
    ]
    job = submitted(pool, "--", "; ".join(["env", *look]))
    assert ended(pool, job)["counts"]["completed"] == 1
    seen = pool.run("cat", f"{job}_0").stdout
    assert "launcher_process" in seen
    leave(pool, process)
    logs = "".join(path.read_text() for path in pool.scratch.glob("process-*.log"))
    assert "worker_up" in logs
    assert "DEBUG:" in pool.log_of(process), "everything that can be logged"
    for secret in secrets:
        assert secret not in seen
        assert secret not in logs
