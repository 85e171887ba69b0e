"""Options of `kestrel run` that are understood before anything runs, and what ends mean."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kestrel.cli.run_command import parse_jobs
from kestrel.cli.run_outcome import Halt, exit_code_of, log_entry, reason_of, task_exit_code
from kestrel.errors import UsageError
from kestrel.protocol import messages as m

PROGRAM = [sys.executable, "-c", "from kestrel.cli.main import main; main()", "run"]


def kestrel_run(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *words],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=dict(os.environ),
    )


@pytest.mark.parametrize(
    ("text", "halt"),
    [
        ("never", Halt()),
        ("0", Halt()),
        ("1", Halt("soon", "fail", 1)),
        ("2", Halt("now", "fail", 1)),
        ("now,fail=1", Halt("now", "fail", 1)),
        ("soon,success=3", Halt("soon", "success", 3)),
        ("now,done=10", Halt("now", "done", 10)),
    ],
)
def test_halt_is_read_as_gnu_parallel_writes_it(text: str, halt: Halt) -> None:
    assert Halt.parse(text) == halt


@pytest.mark.parametrize("text", ["", "now,fail", "later,fail=1", "now,fail=0", "now,fail=10%", "3"])
def test_a_halt_that_cannot_be_read_is_refused_with_examples(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Halt.parse(text)
    assert "now,fail=1" in caught.value.hint


def test_halting_is_due_exactly_at_the_count() -> None:
    halt = Halt.parse("now,fail=2")
    assert not halt.is_due(failed=1, succeeded=50)
    assert halt.is_due(failed=2, succeeded=0)
    assert Halt.parse("now,done=3").is_due(failed=1, succeeded=2)
    assert not Halt().is_due(failed=10**6, succeeded=0)


@pytest.mark.parametrize(
    ("text", "jobs"), [(None, 8), ("3", 3), ("50%", 4), ("+2", 10), ("-3", 5), ("-20", 1), ("1%", 1)]
)
def test_jobs_may_be_relative_to_the_cores(text: str | None, jobs: int) -> None:
    assert parse_jobs(text, 8) == jobs


@pytest.mark.parametrize("text", ["0", "many", "1.5", "+5%", ""])
def test_jobs_that_cannot_be_read_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_jobs(text, 8)


def test_exit_codes_are_those_of_gnu_parallel() -> None:
    assert [exit_code_of(n) for n in (0, 1, 100, 101, 5000)] == [0, 1, 100, 101, 101]


@pytest.mark.parametrize(
    ("result", "code", "logged", "reason"),
    [
        (m.TaskResult(task=0), 0, (0, 0), "exit code 0"),
        (m.TaskResult(task=0, state="FAILED", exit_code=7), 7, (7, 0), "exit code 7"),
        (
            m.TaskResult(task=0, state="FAILED", exit_code=None, signal=9),
            137,
            (0, 9),
            "killed by signal 9 (SIGKILL)",
        ),
        (
            m.TaskResult(task=0, state="TIMEOUT", exit_code=None, wall_s=90),
            124,
            (-1, 15),
            "timed out after 1m30s",
        ),
        (m.TaskResult(task=0, state="NODE_FAIL", exit_code=None), 255, (255, 0), "its worker was lost"),
        (m.TaskResult(task=0, state="FAILED", exit_code=None, reason="no disk"), 255, (255, 0), "no disk"),
    ],
)
def test_ends_are_what_a_shell_and_gnu_parallel_call_them(
    result: m.TaskResult, code: int, logged: tuple[int, int], reason: str
) -> None:
    assert task_exit_code(result) == code
    entry = log_entry(result, 1, ":", "x")
    assert (entry.exit_code, entry.signal) == logged
    assert reason_of(result) == reason


def test_a_dry_run_prints_the_commands_and_runs_nothing(tmp_path: Path) -> None:
    done = kestrel_run("--dry-run", "--", f"touch {tmp_path}/{{#}}", ":::", "a b", "c")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"touch {tmp_path}/1\ntouch {tmp_path}/2\n"
    assert not list(tmp_path.iterdir())


def test_options_of_the_command_are_not_ours() -> None:
    done = kestrel_run("--dry-run", "grep", "-v", "--", "-x", ":::", "a")
    assert done.stdout == "grep -v -- -x a\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "no command to run"),
        (["--resume", "--", "true", ":::", "a"], "--joblog"),
        (["--requires", "GPU", "--", "true", ":::", "a"], "--pool"),
        (["--workers", "lab*@pool", "--", "true", ":::", "a"], "--pool"),
        (["--pool", "p", "-j2", "--", "true", ":::", "a"], "--jobs is for a pool of our own"),
        (["--halt", "perhaps", "--", "true", ":::", "a"], "--halt"),
        (["-j", "none", "--", "true", ":::", "a"], "--jobs"),
        (["--joblog", "/does/not/exist/log", "--", "true", ":::", "a"], "/does/not/exist/log"),
        (["--", "true", "::::", "/does/not/exist"], "/does/not/exist"),
    ],
)
def test_mistakes_are_told_with_a_hint_and_255(words: list[str], told: str) -> None:
    done = kestrel_run(*words)
    assert done.returncode == 255
    assert told in done.stderr
    assert "hint: " in done.stderr
    assert "Traceback" not in done.stderr
