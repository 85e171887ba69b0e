"""Job files: three syntaxes, the same keys, all mistakes at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from kestrel.cli.jobfile import JobFileError, parse_job, read_job_file
from kestrel.errors import EnvironmentProblem
from kestrel.protocol import messages as m

HERE = Path("/where/it/was/submitted")


def job(text: str, name: str = "job") -> m.Job:
    return parse_job(text, name, HERE)


def mistakes(text: str, name: str = "job.ini", directory: Path = HERE) -> list[str]:
    with pytest.raises(JobFileError) as caught:
        parse_job(text, name, directory)
    return caught.value.mistakes


def test_the_ancestors_ini_is_understood_as_it_stands() -> None:
    text = "[job]\nqueue=50\ncommand=./run_task.sh\ncleanup=./cleanup.sh\nrequires=PYTHON FOO\n  BAR\n"
    assert job(text) == m.Job(
        command="./run_task.sh",
        queue=50,
        cleanup="./cleanup.sh",
        requires=["PYTHON", "FOO", "BAR"],
        workdir=str(HERE),
    )


def test_toml_and_json_and_ini_say_the_same() -> None:
    toml = job('command = ["./x", "a b"]\nqueue = 3\ntime_limit = "1h30m"\nretries = 2\n[env]\nA = "1"\n')
    as_json = job(
        '{"type": "job", "command": ["./x", "a b"], "queue": 3, "time_limit_s": 5400, "max_retries": 2,'
        ' "env": {"A": "1"}}'
    )
    assert toml == as_json
    assert toml.time_limit_s == 5400
    ini = job("[job]\ncommand: ./x\nqueue: 3\ntime_limit: 01:30:00\nretries: 2\n[env]\nA = 1\n")
    assert (ini.queue, ini.time_limit_s, ini.retries, ini.env) == (3, 5400, 2, {"A": "1"})


def test_toml_may_have_a_table_job_like_the_ini() -> None:
    made = job('[job]\ncommand = "./x"\nrequires = ["A", "B C"]\nslots = 2\n[job.env]\nX = "y"\n', "job.toml")
    assert (made.command, made.requires, made.slots, made.env) == ("./x", ["A", "B", "C"], 2, {"X": "y"})


@pytest.mark.parametrize(
    ("text", "args", "queue"),
    [
        ('array = "0-3"', None, 4),
        ('array = "1-7:2"', [["1"], ["3"], ["5"], ["7"]], None),
        ('array = "9,1,3-4,3"', [["1"], ["3"], ["4"], ["9"]], None),
    ],
)
def test_an_array_gives_a_task_per_index_and_appends_nothing(
    text: str, args: list[list[str]] | None, queue: int | None
) -> None:
    made = job(f'command = "./x"\n{text}\n')
    assert (made.args, made.queue, made.append_index) == (args, queue, False)


def test_args_may_be_words_or_lists_of_words() -> None:
    assert job('command = "x"\nargs = ["a", 2, ["b", "c"]]').args == [["a"], ["2"], ["b", "c"]]
    assert job("[job]\ncommand = x\nargs =\n  a\n  b c\n").args == [["a"], ["b c"]]


def test_each_line_is_relative_to_where_the_job_is_submitted(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("one\ntwo\n")
    made = parse_job('command = "x"\neach_line = "list.txt"\nworkdir = "sub"\n', "j.toml", tmp_path)
    assert made.args == [["one"], ["two"]]
    assert made.workdir == str(tmp_path / "sub")


def test_all_mistakes_are_told_at_once_in_order_with_their_lines() -> None:
    assert mistakes(
        "[job]\n# comment\nqeue = 3\ncommand = ./x\nqueue = many\n\npriority = 5000\nqueue = 2\n"
    ) == [
        'job.ini:3: unknown key "qeue"; did you mean "queue"?',
        "job.ini:5: queue: 'many' is no whole number; write a number from 1 to 100000000",
        "job.ini:7: priority: 5000 is out of range; write a number from -1000 to 1000",
        'job.ini:8: "queue" was given before, in line 5',
    ]


def test_toml_mistakes_have_lines_too() -> None:
    found = mistakes('command = ""\n\n[env]\nA = [1]\n\n[extra]\nb = 1\n', "j.toml")
    assert [line.split(": ")[0] for line in found] == ["j.toml:1", "j.toml:3", "j.toml:6"]
    assert mistakes('command = "x"\nqueue = \n', "j.toml")[0].startswith("j.toml:2: not TOML: ")
    assert mistakes('command = "x\n', "j.toml")[0].startswith("j.toml:1: not TOML: ")


def test_json_mistakes_have_lines_too() -> None:
    assert mistakes('{"command": "x",\n "queue": "3",\n "typo": 1}', "j.json")[0].startswith(
        "j.json:2: queue"
    )
    assert mistakes('{"command": "x",\n ?}', "j")[0].startswith("j:2: not JSON")
    assert mistakes('{"type": "cancel", "job": 3}')[0].startswith("job.ini:1:")
    assert "object" in mistakes("[1]", "j.json")[0]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", 'there is no "command"'),
        ("[job]\nqueue = 3\n", 'there is no "command"'),
        ("[job]\ncommand = x\nqueue = 3\narray = 0-4\n", '"array" and "queue" (line 3) exclude each other'),
        ("[job]\ncommand = x\narray = 0-4%2\n", "cannot limit"),
        ("[job]\ncommand = x\narray = 4-0\n", "is empty"),
        ("[job]\ncommand = x\neach_line = /does/not/exist\n", "cannot read /does/not/exist"),
        ("[job]\ncommand = x\ntime_limit = soon\n", "duration"),
        ("[job]\ncommand = x\nrestart = perhaps\n", '"always" or "never"'),
        ("[job]\ncommand = x\nappend_index = perhaps\n", "neither true nor false"),
        ("[job]\ncommand = x\nenv = NOVALUE\n", "NAME=value"),
        ("[jobs]\ncommand = x\n", "unknown section [jobs]; a job file has [job]"),
        ("[job]\nwhat is this\n", "cannot read 'what is this'"),
    ],
)
def test_each_kind_of_mistake_is_told(text: str, told: str) -> None:
    assert any(told in line for line in mistakes(text)), mistakes(text)


def test_a_mistyped_command_is_told_once() -> None:
    assert mistakes("[job]\ncomand = x\n") == ['job.ini:2: unknown key "comand"; did you mean "command"?']


def test_a_file_is_read_and_its_directory_of_submission_is_the_current_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.ini").write_bytes(b"\xef\xbb\xbf[job]\r\ncommand = ./x\r\nqueue = 2\r\n")
    assert read_job_file("job.ini") == m.Job(command="./x", queue=2, workdir=str(tmp_path))
    (tmp_path / "bad.ini").write_bytes(b"[job]\ncommand = \xff\n")
    with pytest.raises(JobFileError, match=r"bad\.ini:2: not UTF-8"):
        read_job_file("bad.ini")
    with pytest.raises(EnvironmentProblem, match=r"missing\.ini"):
        read_job_file("missing.ini")


def test_workers_are_named_by_patterns_in_every_syntax() -> None:
    wanted = ["lab*@pool", "*/core2"]
    ini = job("[job]\ncommand = ./x\nworkers = lab*@pool\n  */core2\n")
    toml = job('command = "./x"\nworkers = "lab*@pool */core2"\n', "job.toml")
    as_json = job('{"command": "./x", "workers": ["lab*@pool", "*/core2"]}')
    assert [made.workers for made in (ini, toml, as_json)] == [wanted] * 3
    with_space = job('command = "./x"\nworkers = ["ann@pool/her laptop"]\n', "job.toml")
    assert with_space.workers == ["ann@pool/her laptop"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("workers = a@b@c", "job.ini:3: workers: 'a@b@c' has more than one @; write addresses"),
        ("wrokers = a@b", 'job.ini:3: unknown key "wrokers"; did you mean "workers"?'),
        ("workers = " + "a " * 65, "job.ini:3: workers: 65 patterns; at most 64 are possible"),
    ],
)
def test_what_is_no_pattern_is_named_with_its_line(line: str, words: str) -> None:
    (mistake,) = mistakes(f"[job]\ncommand = ./x\n{line}\n")
    assert mistake.startswith(words)
