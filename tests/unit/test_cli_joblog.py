"""The job log: GNU parallel's format, readable after a crash, refused for another command."""

from __future__ import annotations

from pathlib import Path

import pytest

from kestrel.cli.joblog import HEAD, JobLog, LogEntry
from kestrel.errors import EnvironmentProblem, UsageError


def entry(seq: int, command: str = "", *, code: int = 0, signal: int = 0) -> LogEntry:
    return LogEntry(seq, ":", 1_700_000_000.5, 1.25, 3, code, signal, command or f"echo {seq}")


def test_lines_are_what_gnu_parallel_writes(tmp_path: Path) -> None:
    log = JobLog.create(tmp_path / "log")
    log.add([entry(1), entry(2, "a\nb", code=3)])
    log.close()
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[0] == HEAD
    assert lines[1] == "1\t:\t1700000000.500\t     1.250\t0\t3\t0\t0\techo 1"
    assert lines[2].endswith("\t3\t0\ta\\nb")
    assert len(lines) == 3


def test_a_torn_last_line_is_removed_and_its_task_is_run_again(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = JobLog.create(path)
    log.add([entry(1), entry(2)])
    log.close()
    path.write_bytes(path.read_bytes()[:-3])
    log, logged = JobLog.resume(path)
    assert logged.is_done(1, "echo 1", also_failed=True)
    assert not logged.is_done(2, "echo 2", also_failed=True)
    log.add([entry(2)])
    log.close()
    assert [line.split("\t")[0] for line in path.read_text().splitlines()] == ["Seq", "1", "2"]


def test_failed_tasks_are_done_or_not_as_asked_and_the_last_line_counts(tmp_path: Path) -> None:
    log = JobLog.create(tmp_path / "log")
    log.add([entry(1, code=1), entry(2, signal=9), entry(3, code=1), entry(3)])
    log.close()
    log, logged = JobLog.resume(tmp_path / "log")
    log.close()
    assert logged.count == 3
    assert [logged.is_done(s, f"echo {s}", also_failed=True) for s in (1, 2, 3, 4)] == [
        True,
        True,
        True,
        False,
    ]
    assert [logged.is_done(s, f"echo {s}", also_failed=False) for s in (1, 2, 3)] == [False, False, True]


def test_a_log_of_another_command_is_refused(tmp_path: Path) -> None:
    log = JobLog.create(tmp_path / "log")
    log.add([entry(1), entry(2, "echo a\nb")])
    log.close()
    log, logged = JobLog.resume(tmp_path / "log")
    log.close()
    assert logged.is_done(2, "echo a\nb", also_failed=True)
    with pytest.raises(UsageError) as caught:
        logged.is_done(1, "rm 1", also_failed=True)
    assert caught.value.code == "other_joblog"
    assert "rm 1" in caught.value.text


def test_a_log_that_does_not_exist_is_begun(tmp_path: Path) -> None:
    log, logged = JobLog.resume(tmp_path / "new")
    log.close()
    assert logged.count == 0
    assert (tmp_path / "new").read_text() == HEAD + "\n"


def test_an_empty_file_is_a_new_log(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("")
    log, _ = JobLog.resume(tmp_path / "log")
    log.close()
    assert (tmp_path / "log").read_text() == HEAD + "\n"


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ("#!/bin/sh\n", ":1:"),
        (HEAD + "\nrubbish\n", ":2:"),
        (HEAD + "\n1\t:\t0\t0\t0\t0\tx\t0\tc\n", ":2:"),
        (HEAD + "\n0\t:\t0\t0\t0\t0\t0\t0\tc\n", ":2:"),
        (HEAD + "\n999999999999\t:\t0\t0\t0\t0\t0\t0\tc\n", ":2:"),
    ],
)
def test_what_is_no_job_log_is_refused_with_the_line_and_left_alone(
    tmp_path: Path, content: str, where: str
) -> None:
    path = tmp_path / "log"
    path.write_text(content)
    with pytest.raises(UsageError) as caught:
        JobLog.resume(path)
    assert f"{path}{where}" in caught.value.text
    assert path.read_text() == content


def test_a_directory_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="nowhere"):
        JobLog.create(tmp_path / "nowhere" / "log")
