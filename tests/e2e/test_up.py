"""A pool over processes: `kestrel up`, workers that join, jobs that end, workers that are killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from parts.pool import Pool, eventually

JOB = """\
[job]
queue=50
command=./run_task.sh
cleanup=./cleanup.sh
requires=PYTHON FOO
"""


def script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def pool(tmp_path: Path):
    with Pool(tmp_path) as running:
        yield running


def test_the_ancestors_job_file_runs_on_a_worker_that_joined_by_invitation(pool: Pool, tmp_path: Path):
    script(tmp_path / "run_task.sh", 'echo "ran $1"; echo "$1" >> ran.txt')
    script(tmp_path / "cleanup.sh", 'echo "$1" >> cleaned.txt')
    (tmp_path / "job.ini").write_text(JOB)
    pool.worker("one", "--provides", "python foo", "--slots", "4")
    submitted = pool.ask("submit", "job.ini", "--wait")
    assert submitted["size"] == 50
    assert submitted["state"] == "COMPLETED"
    everything = sorted(range(50))
    assert sorted(int(x) for x in (tmp_path / "ran.txt").read_text().split()) == everything
    assert sorted(int(x) for x in (tmp_path / "cleaned.txt").read_text().split()) == everything
    assert pool.run("cat", "1_7").stdout == "ran 7\n"
    status = pool.run("status")
    assert "COMPLETED" in status.stdout
    assert "./run_task.sh" in status.stdout


def test_a_job_that_nobody_can_run_says_why(pool: Pool):
    pool.worker("plain")
    done = pool.run("submit", "--requires", "FPGA", "-n", "2", "--", "true")
    assert done.returncode == 0
    assert "FPGA".casefold() in (done.stdout + done.stderr).casefold()
    explained = pool.run("explain", "1")
    assert "0 of 1" in explained.stdout


def test_a_killed_worker_is_gone_at_once_and_its_task_runs_elsewhere(pool: Pool, tmp_path: Path):
    victim = pool.worker("victim", "--slots", "1")
    command = "echo $KESTREL_WORKER >> starts.txt; while [ ! -e go ]; do sleep 0.05; done"
    pool.run("submit", "--", command)
    starts = tmp_path / "starts.txt"
    eventually(lambda: starts.exists() and starts.read_text().count("\n") == 1, "the task starts")
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    eventually(lambda: not pool.shows("victim"), "the pool shows it gone", 5)
    assert pool.ask("pool")["lost"][0]["worker"].startswith("victim")
    pool.worker("heir")
    eventually(lambda: starts.read_text().count("\n") == 2, "the task starts elsewhere")
    (tmp_path / "go").touch()
    done = pool.run("wait", "1")
    assert done.returncode == 0, done.stderr
    assert [line.split("@")[0] for line in starts.read_text().split()] == ["victim", "heir"]


def test_jobs_and_results_survive_the_end_of_the_pool(tmp_path: Path):
    with Pool(tmp_path, "--port", "0") as pool:
        pool.worker("one")
        pool.run("submit", "--wait", "--", "echo", "kept")
        pool.run("submit", "--requires", "later", "--", "echo", "later")
    with Pool(tmp_path, "--port", "0") as pool:
        jobs = pool.ask("status")
        assert [(j["job"], j.get("state", "PENDING")) for j in jobs] == [(1, "COMPLETED"), (2, "PENDING")]
        assert pool.run("cat", "1_0").stdout == "kept\n"
        pool.worker("two", "--provides", "LATER")
        assert pool.run("wait", "2").returncode == 0


def test_a_killed_pool_comes_back_with_everything_and_adopts_what_runs(tmp_path: Path):
    with Pool(tmp_path, "--port", "0") as pool:
        port = str(pool.address[1])
        worker = pool.worker("one", "--slots", "1")
        pool.run("submit", "--", "echo start >> runs.txt; while [ ! -e go ]; do sleep 0.05; done")
        runs = tmp_path / "runs.txt"
        eventually(runs.exists, "the task starts")
        pool.up.send_signal(signal.SIGKILL)
        pool.up.wait()
        with Pool(tmp_path, "--port", port) as again:
            eventually(lambda: again.shows("one"), "the worker comes back")
            (tmp_path / "go").touch()
            assert again.run("wait", "1").returncode == 0
            assert runs.read_text() == "start\n"
            assert worker.poll() is None


def test_a_pool_killed_in_the_middle_of_everything_goes_on_where_it_was(tmp_path: Path):
    """Done stays done, cancelled stays cancelled, what runs goes on, what waits comes next; all once."""
    with Pool(tmp_path, "--port", "0") as pool:
        worker = pool.worker("one", "--slots", "3")
        assert pool.run("submit", "--wait", "--", "echo kept; echo done >> starts.txt").returncode == 0
        pool.run("submit", "--", "echo long >> starts.txt; sleep 3; echo ended >> starts.txt")
        pool.run("submit", "-n", "2", "--", "echo $$ >> pids.txt; sleep 600")
        pids, starts = tmp_path / "pids.txt", tmp_path / "starts.txt"
        eventually(lambda: pids.exists() and len(pids.read_text().split()) == 2, "two tasks run")
        pool.run("submit", "-n", "20", "--", "echo short >> starts.txt; :")
        assert "2 tasks cancelled" in pool.run("cancel", "3").stdout
        waiting = pool.spawn("wait", "2", "4")
        pool.up.send_signal(signal.SIGKILL)
        pool.up.wait()
        with Pool(tmp_path, "--port", str(pool.address[1])) as again:
            assert waiting.wait(60) == 0, pool.log_of(waiting)
            assert again.run("wait", "3").returncode == 2
            states = [job["state"] for job in again.ask("status")]
            assert states == ["COMPLETED", "COMPLETED", "CANCELLED", "COMPLETED"]
            assert again.run("cat", "1_0").stdout == "kept\n"
            for pid in pids.read_text().split():
                eventually(lambda pid=pid: not _alive(int(pid)), f"process {pid} ends")
            assert len(pids.read_text().split()) == 2
            assert Counter(starts.read_text().split()) == {"done": 1, "long": 1, "ended": 1, "short": 20}
            assert worker.poll() is None


def test_a_submission_repeated_after_the_pool_was_killed_is_the_same_job(tmp_path: Path):
    with Pool(tmp_path, "--port", "0") as pool:
        (tmp_path / "job.json").write_text('{"command": "true", "id": "nightly", "queue": 3}')
        first = pool.ask("submit", "job.json")
        pool.up.send_signal(signal.SIGKILL)
        pool.up.wait()
        with Pool(tmp_path, "--port", str(pool.address[1])) as again:
            assert again.ask("submit", "job.json")["job"] == first["job"]
            assert len(again.ask("status")) == 1


def test_cancelling_stops_what_runs(pool: Pool, tmp_path: Path):
    pool.worker("one", "--slots", "2")
    pool.run("submit", "-n", "5", "--", "echo $$ >> pids.txt; sleep 600")
    pids = tmp_path / "pids.txt"
    eventually(lambda: pids.exists() and len(pids.read_text().split()) == 2, "two tasks run")
    assert "5 tasks cancelled" in pool.run("cancel", "last").stdout
    assert pool.run("wait", "1").returncode == 5
    for pid in pids.read_text().split():
        eventually(lambda pid=pid: not _alive(int(pid)), f"process {pid} ends")
    assert pool.ask("status", "1")[0]["state"] == "CANCELLED"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_drained_worker_gets_nothing_until_it_is_undone(pool: Pool):
    pool.worker("one")
    address = pool.ask("pool")["workers"][0]["worker"]
    assert pool.run("drain", address).returncode == 0
    pool.run("submit", "--", "true")
    assert pool.ask("pool")["workers"][0]["state"] == "draining"
    assert "drain" in pool.run("explain", "1").stdout
    assert pool.run("drain", address, "--undo").returncode == 0
    assert pool.run("wait", "1").returncode == 0


def test_what_is_secret_can_be_read_by_its_owner_only(pool: Pool, tmp_path: Path):
    secrets = [p for p in tmp_path.rglob("*") if p.is_file() and p.suffix in (".json", ".db")]
    assert secrets
    for path in secrets:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


class TestMistakes:
    """Each is answered in words that name the thing and the cure."""

    def test_a_taken_port(self, tmp_path: Path):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = str(taken.getsockname()[1])
            done = run_up(tmp_path, "--port", port)
        assert done.returncode == 255
        assert port in done.stderr
        assert "--port" in done.stderr

    def test_an_unreadable_directory(self, tmp_path: Path):
        (tmp_path / "file").write_text("in the way")
        done = run_up(tmp_path, "--port", "0", "--dir", str(tmp_path / "file" / "pool"))
        assert done.returncode == 255
        assert str(tmp_path / "file" / "pool") in done.stderr
        assert "Traceback" not in done.stderr

    def test_a_second_manager_on_the_same_directory(self, pool: Pool):
        done = pool.run("up", "--port", "0")
        assert done.returncode == 255
        assert "hint" in done.stderr
        assert "Traceback" not in done.stderr

    def test_no_pool(self, tmp_path: Path):
        done = Pool(tmp_path).run("status")
        assert done.returncode == 255
        assert "kestrel up" in done.stderr

    def test_a_pool_that_is_down(self, tmp_path: Path):
        with Pool(tmp_path) as pool:
            pass
        done = pool.run("status")
        assert done.returncode == 255
        assert f":{pool.address[1]}" in done.stderr
        assert "kestrel up" in done.stderr

    def test_a_spoiled_invitation(self, pool: Pool):
        done = pool.run("worker", "--join", "kestrel:/oops")
        assert done.returncode == 255
        assert "kestrel://" in done.stderr
        wrong = pool.invitation.replace("kestrel://", "kestrel://x", 1)
        done = pool.run("worker", "--join", wrong, "--name", "liar")
        assert done.returncode == 255
        assert "invitation" in done.stderr

    def test_an_unknown_job(self, pool: Pool):
        done = pool.run("status", "17")
        assert done.returncode == 255
        assert "no job 17" in done.stderr
        done = pool.run("status", "17", "--json")
        assert json.loads(done.stdout)["error"]["code"] == "unknown_job"

    def test_a_job_file_with_a_typo(self, pool: Pool, tmp_path: Path):
        (tmp_path / "job.ini").write_text("[job]\nqeue=5\ncommand=true\n")
        done = pool.run("submit", "job.ini")
        assert done.returncode == 255
        assert "job.ini:2" in done.stderr
        assert "queue" in done.stderr

    def test_a_missing_job_file(self, pool: Pool):
        done = pool.run("submit", "missing.ini")
        assert done.returncode == 255
        assert "missing.ini" in done.stderr

    def test_a_command_that_does_not_exist(self, pool: Pool):
        pool.worker("one")
        done = pool.run("submit", "--wait", "--", "no-such-program")
        assert done.returncode == 1
        assert "no-such-program" in pool.run("results", "1").stdout

    def test_a_mistyped_command(self, pool: Pool):
        done = pool.run("statsu")
        assert done.returncode == 255
        assert "status" in done.stderr


def run_up(scratch: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return Pool(scratch).run("up", *options)
