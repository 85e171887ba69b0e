"""`kestrel store` says what it does, in words and in JSON, and ends with 255 when something is wrong."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kestrel.core.effects import RecordCancelled, RecordResult
from kestrel.core.model import TaskState
from kestrel.ports import AddJob, JobRecord
from kestrel.protocol import messages as m
from kestrel.store import SqliteStore


def fill(path: Path, jobs: int = 2, results: int = 3) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    store = SqliteStore(path, lambda call: None, pool=path.parent.name)
    store.open(lambda record: None)
    for job in range(1, jobs + 1):
        params = [[f"ünï {task}", "\x1b[1m"] for task in range(results + 2)]
        message = b'{"type":"job","command":"echo {1}","env":{"A":"1"}}'
        record = JobRecord(job, "ann@pool", f"s{job}", message, len(params), True, 1.7e9)
        said = [
            m.AttemptReport(job=job, task=task, attempt=task + 1, started=1.7e9, out=f"out {task}\n")
            for task in range(results)
        ]
        writes: list[Any] = [AddJob(record, params)]
        writes += [
            RecordResult(job, task, task + 1, TaskState.FAILED, task + 1, "w@pool/1", said[task])
            for task in range(results)
        ]
        writes.append(RecordCancelled(job, [(results, results + 1)], results + 1))
        store.commit(writes, (), lambda outcome: None)
    store.close()


class Shell:
    """Runs `kestrel store …` with a data directory of its own."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("KESTREL_", "XDG_"))}
        self.env |= {"XDG_DATA_HOME": str(scratch / "data"), "HOME": str(scratch), "COLUMNS": "200"}

    def run(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "kestrel", "store", *words],
            env={**self.env, **env},
            cwd=self.scratch,
            capture_output=True,
            text=True,
            check=False,
        )

    def good(self, *words: str, **env: str) -> str:
        done = self.run(*words, **env)
        assert done.returncode == 0, done.stderr
        assert not done.stderr
        return done.stdout

    def bad(self, *words: str, **env: str) -> str:
        done = self.run(*words, **env)
        assert done.returncode == 255
        assert "Traceback" not in done.stderr
        assert "hint:" in done.stderr
        return done.stderr


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    shell = Shell(tmp_path)
    fill(tmp_path / "data" / "kestrel" / "default" / "store.db")
    return shell


def spoiled(path: Path) -> Path:
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("UPDATE jobs SET failed = 9 WHERE job = 1")
    connection.close()
    return path


def test_the_store_is_that_of_the_pool_unless_another_is_named(shell: Shell) -> None:
    other = shell.scratch / "blue" / "other.db"
    fill(other, jobs=5)
    assert "2 jobs, 8 tasks" in shell.good("check")
    assert "5 jobs" in shell.good("check", "--store", str(other))
    assert "5 jobs" in shell.good("check", KESTREL_STORE=str(other))
    assert "2 jobs" in shell.good("check", "--pool", "default")
    assert "5 jobs" in shell.good("check", "--pool", "blue", KESTREL_STORE=str(other))
    assert "belongs to the pool 'blue'" in shell.bad("check", "--store", str(other), "--pool", "green")
    assert "no store" in shell.bad("check", "--pool", "green")
    assert "--pool" in shell.bad("check", "--pool", "green")


def test_a_check_in_json_says_what_the_words_say(shell: Shell) -> None:
    path = shell.scratch / "data" / "kestrel" / "default" / "store.db"
    said = json.loads(shell.good("check", "--json"))
    assert said["sound"] is True
    assert (said["store"], said["pool"], said["jobs"], said["results"]) == (str(path), "default", 2, 8)
    assert (said["flaws"], said["steps"]) == ([], [])
    spoiled(path)
    done = shell.run("check", "--json")
    assert done.returncode == 255
    said = json.loads(done.stdout)
    assert said["sound"] is False
    assert said["flaws"] == ["job 1: 3 of its tasks are FAILED, but 9 are counted"]
    assert said["steps"]
    done = shell.run("check")
    assert done.returncode == 255
    assert said["flaws"][0] in done.stdout
    for step in said["steps"]:
        assert step in done.stdout
    assert "not sound" in done.stderr


def test_mistakes_in_json_are_told_in_json(shell: Shell) -> None:
    done = shell.run("check", "--store", "nowhere.db", "--json")
    assert done.returncode == 255
    assert json.loads(done.stdout)["error"]["code"] == "no_store"


def test_a_backup_is_told_with_how_to_restore_it(shell: Shell) -> None:
    said = shell.good("backup", "copy.db")
    assert "2 jobs with 8 results" in said
    assert "cp copy.db" in said
    assert "copy.db exists" in shell.bad("backup", "copy.db")
    made = json.loads(shell.good("backup", "copy.db", "--force", "--json"))
    assert (made["backup"], made["jobs"], made["results"]) == ("copy.db", 2, 8)
    assert made["size_bytes"] == (shell.scratch / "copy.db").stat().st_size
    assert "sound" in shell.good("check", "--store", "copy.db")


def test_an_export_has_every_job_and_every_result(shell: Shell) -> None:
    lines = [json.loads(line) for line in shell.good("export").splitlines()]
    assert [(r["type"], r["job"], r.get("seq")) for r in lines] == [
        ("job", 1, None),
        *(("result", 1, n) for n in range(1, 5)),
        ("job", 2, None),
        *(("result", 2, n) for n in range(1, 5)),
    ]
    assert lines[0] == {
        "type": "job",
        "job": 1,
        "user": "ann@pool",
        "submission": "s1",
        "state": "PENDING",
        "size": 5,
        "open": True,
        "submitted": "2023-11-14T22:13:20Z",
        "finished": None,
        "last": 4,
        "counts": {"completed": 0, "failed": 3, "cancelled": 1, "timeout": 0, "node_fail": 0}
        | {"queued": 0, "running": 0},
        "reruns": 0,
        "specification": {"type": "job", "command": "echo {1}", "env": {"A": "1"}},
    }
    second = lines[2]
    assert (second["task"], second["state"], second["out"]) == (1, "FAILED", "out 1\n")
    assert (second["started"], second["exit_code"]) == ("2023-11-14T22:13:20Z", 0)
    assert second["params"] == ["ünï 1", "\x1b[1m"]
    cancelled = lines[4]
    assert (cancelled["state"], cancelled["started"], cancelled["worker"]) == ("CANCELLED", None, "")
    assert set(cancelled) == set(second)


def test_an_export_of_one_job_goes_into_a_file(shell: Shell) -> None:
    assert shell.good("export", "--job", "2", "-o", "two.jsonl") == ""
    lines = [json.loads(line) for line in (shell.scratch / "two.jsonl").read_text().splitlines()]
    assert [r["job"] for r in lines] == [2] * 5
    assert "no job 7" in shell.bad("export", "--job", "7", "-o", "seven.jsonl")
    assert "cannot write" in shell.bad("export", "-o", "nowhere/all.jsonl")
    assert sorted(p.name for p in shell.scratch.iterdir() if p.is_file()) == ["two.jsonl"]


def test_an_export_of_a_damaged_store_says_so_after_what_could_be_read(shell: Shell) -> None:
    path = shell.scratch / "data" / "kestrel" / "default" / "store.db"
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("UPDATE reports SET body = '{' WHERE position > 2 << 32")
    connection.close()
    done = shell.run("export")
    assert done.returncode == 255
    assert "damaged" in done.stderr
    assert "kestrel store check" in done.stderr


def test_a_reader_that_goes_away_ends_an_export_quietly(shell: Shell) -> None:
    fill(shell.scratch / "big" / "store.db", jobs=1, results=20_000)
    words = [sys.executable, "-m", "kestrel", "store", "export", "--store", "big/store.db"]
    process = subprocess.Popen(
        words, env=shell.env, cwd=shell.scratch, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith(b'{"type":"job"')
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr:
        assert process.stderr.read() == b""
    assert process.wait() == 141


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_memory_of_an_export_does_not_grow_with_the_job(shell: Shell) -> None:
    script = (
        "import re, sys\n"
        "from kestrel.cli.store import _chunks\n"
        "total = sum(len(chunk) for chunk in _chunks(sys.argv[1], None))\n"
        "print(total, re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1])\n"
    )
    peaks, sizes = [], []
    for results in (20_000, 80_000):
        path = shell.scratch / f"of{results}" / "store.db"
        fill(path, jobs=1, results=results)
        said = subprocess.run(
            [sys.executable, "-c", script, str(path)],
            env=shell.env,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        sizes.append(int(said[0]) // 1024)
        peaks.append(int(said[1]))
    assert peaks[1] - peaks[0] < (sizes[1] - sizes[0]) / 3, f"KiB of memory {peaks} for {sizes} of lines"
