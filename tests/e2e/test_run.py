"""`kestrel run` as people use it: real processes, a real server, real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from parts.pool import eventually

PROGRAM = [sys.executable, "-c", "from kestrel.cli.main import main; main()", "run"]
TIME_S_MAX = 60


def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "HOME": str(home), "XDG_CONFIG_HOME": "", "XDG_DATA_HOME": "", "TMPDIR": str(home)}


def run(home: Path, *words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*PROGRAM, *words],
        input=stdin,
        capture_output=True,
        timeout=TIME_S_MAX,
        check=False,
        cwd=home,
        env=environment(home),
    )


def start(home: Path, *words: str) -> subprocess.Popen[bytes]:
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*PROGRAM, *words], stdin=pipe, stdout=pipe, stderr=pipe, cwd=home, env=environment(home)
    )


def test_three_words_are_printed_and_the_code_is_0(tmp_path: Path) -> None:
    done = run(tmp_path, "-k", "--", "echo {}", ":::", "a", "b", "c")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"a\nb\nc\n", b"")
    assert not list(tmp_path.glob("kestrel-*")), "the pool leaves nothing behind"


def test_two_failures_are_2(tmp_path: Path) -> None:
    done = run(tmp_path, "--", "false", ":::", "1", "2")
    assert (done.returncode, done.stdout, done.stderr) == (2, b"", b"")


def test_a_command_that_does_not_exist_is_named(tmp_path: Path) -> None:
    done = run(tmp_path, "--", "no-such-command", ":::", "x")
    assert done.returncode == 1
    assert b"no-such-command" in done.stderr


def test_input_order_is_kept_over_many_tasks(tmp_path: Path) -> None:
    numbers = [str(i) for i in range(500)]
    done = run(tmp_path, "-k", "-j4", "--", "echo", stdin="\n".join(numbers).encode())
    assert done.returncode == 0
    assert done.stdout.decode().split() == numbers


def test_big_binary_output_arrives_byte_for_byte(tmp_path: Path) -> None:
    data = bytes(range(256)) * 4000
    (tmp_path / "data").write_bytes(data)
    done = run(tmp_path, "-k", "--", "cat", ":::", "data", "data")
    assert done.returncode == 0
    assert done.stdout == data * 2


def test_short_output_that_is_no_text_arrives_byte_for_byte(tmp_path: Path) -> None:
    done = run(tmp_path, "-k", "--", r"printf '\377\000{}'", ":::", "a", "b")
    assert (done.returncode, done.stdout) == (0, b"\xff\0a\xff\0b")


def test_lines_are_run_while_more_are_to_come(tmp_path: Path) -> None:
    with start(tmp_path, "--", "echo") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"one\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"one\n"
        process.stdin.write(b"two\n")
        process.stdin.close()
        assert process.stdout.readline() == b"two\n"
        assert process.wait(TIME_S_MAX) == 0


def test_a_task_that_takes_too_long_is_stopped_and_told(tmp_path: Path) -> None:
    done = run(tmp_path, "--timeout", "0.3", "--", "sleep", ":::", "60")
    assert done.returncode == 1
    assert b"timed out" in done.stderr or b"time limit" in done.stderr


def seqs(path: Path) -> list[int]:
    return sorted(int(line.split("\t")[0]) for line in path.read_text().splitlines()[1:])


def test_an_interrupted_run_is_resumed_from_its_log_and_runs_nothing_twice(tmp_path: Path) -> None:
    words = [
        "-j1",
        "-k",
        "--joblog",
        "log",
        "--",
        "echo {} >> ran; echo {}; [ {} != 3 ] || [ -e go ] || sleep 60",
    ]
    words += [":::", "1", "2", "3", "4"]
    with start(tmp_path, *words) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == [b"1\n", b"2\n"]
        process.send_signal(signal.SIGINT)
        rest, err = process.communicate(timeout=TIME_S_MAX)
    assert process.returncode == 130
    assert b"interrupted: 2 tasks done" in err
    assert rest == b""
    assert seqs(tmp_path / "log") == [1, 2]
    (tmp_path / "go").touch()
    (tmp_path / "ran").unlink()
    done = run(tmp_path, "--resume", *words)
    assert (done.returncode, done.stdout) == (0, b"3\n4\n")
    assert (tmp_path / "ran").read_text() == "3\n4\n"
    assert seqs(tmp_path / "log") == [1, 2, 3, 4]
    other = run(tmp_path, "--resume", "--joblog", "log", "--", "rm", ":::", "1")
    assert other.returncode == 255
    assert b"another command" in other.stderr


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_no_task_outlives_an_interrupted_run(tmp_path: Path, number: signal.Signals) -> None:
    with start(tmp_path, "-j2", "--", "echo $$; exec sleep 61.{}", ":::", "1", "2") as process:
        pids = wait_for_tasks(2, b"61.")
        process.send_signal(number)
        process.communicate(timeout=TIME_S_MAX)
    assert process.returncode == 128 + number
    assert not [pid for pid in pids if is_running(pid, b"61.")]


def wait_for_tasks(count: int, word: bytes) -> list[int]:
    tick = threading.Event()
    while True:
        found = [
            int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and is_running(int(p.name), word)
        ]
        if len(found) >= count:
            return found
        tick.wait(0.02)


def is_running(pid: int, word: bytes) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return words[0] == b"sleep" and len(words) > 1 and words[1].startswith(word)


def test_a_reader_that_has_seen_enough_ends_the_run(tmp_path: Path) -> None:
    with start(tmp_path, "--", "echo") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"x\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"x\n"
        process.stdout.close()
        process.stdin.write(b"y\n")
        process.stdin.flush()
        assert process.wait(TIME_S_MAX) == 141
        assert process.stderr is not None
        assert process.stderr.read() == b""
        process.stdin.close()


def test_a_killed_run_leaves_neither_processes_nor_files(tmp_path: Path) -> None:
    task = f"echo $$ > {tmp_path}/pid; exec sleep 600"
    with start(tmp_path, "--", task, ":::", "1") as process:
        pid_file = tmp_path / "pid"
        eventually(lambda: pid_file.exists() and pid_file.read_text().strip(), "the task runs")
        assert len(list(tmp_path.glob("kestrel-*"))) == 2
        process.kill()
        process.wait()
    pid = int(pid_file.read_text())
    eventually(lambda: not Path(f"/proc/{pid}").exists(), "the task is killed")
    eventually(lambda: not list(tmp_path.glob("kestrel-*")), "the scratch directories are removed")


def test_a_run_whose_worker_is_killed_goes_on_with_another(tmp_path: Path) -> None:
    """The first task kills the agent that its launcher serves, once; the run ends all the same."""
    command = "test -e killed || { touch killed; kill -9 $(ps -o ppid= -p $(ps -o ppid= -p $$)); }; echo {}"
    done = run(tmp_path, "-j1", "--", command, ":::", "a", "b")
    assert (done.returncode, sorted(done.stdout.split())) == (0, [b"a", b"b"])
    assert b"killed by signal 9" in done.stderr


def test_json_is_one_object_a_line(tmp_path: Path) -> None:
    import json

    done = run(tmp_path, "--json", "-k", "--", "echo {}; exit {}", ":::", "0", "5")
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(r["seq"], r["exit_code"], r["stdout"]) for r in records] == [(1, 0, "0\n"), (2, 5, "5\n")]
    assert done.returncode == 1
