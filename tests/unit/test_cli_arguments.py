"""What stands after `--`: GNU parallel's grammar of lists."""

from __future__ import annotations

import io
import itertools
import os
from pathlib import Path

import pytest

from kestrel.cli.arguments import ARGUMENT_BYTES_MAX, Bag, numbered, parse
from kestrel.errors import EnvironmentProblem, UsageError
from kestrel.protocol.placeholders import Template


def parsed(*words: str, stdin: bytes | None = None) -> tuple[str, list[list[str]], int | None]:
    bag = parse(words, None if stdin is None else io.BytesIO(stdin))
    return bag.command, list(bag.parameters), bag.count


def test_words_are_joined_and_the_argument_is_appended() -> None:
    assert parsed("echo", "hello", ":::", "a", "b") == ("echo hello {}", [["a"], ["b"]], 2)


def test_a_placeholder_anywhere_is_enough() -> None:
    assert parsed("echo {.} >{#}.txt", ":::", "a")[0] == "echo {.} >{#}.txt"


def test_several_lists_make_all_combinations_the_last_fastest() -> None:
    _, rows, count = parsed("echo", ":::", "a", "b", ":::", "1", "2")
    assert rows == [["a", "1"], ["a", "2"], ["b", "1"], ["b", "2"]]
    assert count == 4


def test_linked_lists_go_together_and_the_shortest_ends() -> None:
    _, rows, count = parsed("echo", ":::", "a", "b", "c", ":::+", "1", "2", ":::", "x", "y")
    assert rows == [["a", "1", "x"], ["a", "1", "y"], ["b", "2", "x"], ["b", "2", "y"]]
    assert count == 4


def test_files_give_an_argument_a_line(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("one\ntwo words\n\nlast")
    (tmp_path / "b").write_text("")
    assert parsed("echo", "::::", str(tmp_path / "a"))[1:] == ([["one"], ["two words"], [""], ["last"]], 4)
    assert parsed("echo", "::::", str(tmp_path / "b"))[1:] == ([], 0)
    both = parsed("echo", "::::", str(tmp_path / "a"), str(tmp_path / "b"))
    assert both[1:] == ([], 0)


def test_without_a_list_the_arguments_come_from_standard_input() -> None:
    assert parsed("echo", stdin=b"a\nb c\n") == ("echo {}", [["a"], ["b c"]], None)


def test_a_dash_is_standard_input_beside_other_lists() -> None:
    assert parsed("echo", ":::", "x", "::::", "-", stdin=b"a\nb\n")[1] == [["x", "a"], ["x", "b"]]


class _Endless(io.RawIOBase):
    """`yes`, which says how much was read of it."""

    pieces = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        self.pieces += 1
        return b"y\n" * 1000


def test_an_endless_input_is_read_no_further_than_needed() -> None:
    source = _Endless()
    bag = parse(["echo"], source)  # type: ignore[arg-type]
    assert len(list(itertools.islice(bag.parameters, 1500))) == 1500
    assert source.pieces == 2
    assert bag.blocking


def test_a_line_of_a_pipe_is_there_before_the_next_one_is_written() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb", buffering=0) as stream, os.fdopen(writing, "wb", buffering=0) as other:
        bag = parse(["echo"], stream)
        other.write(b"first\nhal")
        assert next(bag.parameters) == ["first"]
        other.write(b"f\n")
        assert next(bag.parameters) == ["half"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "no command"),
        ([":::", "a"], "no command to run, only :::"),
        ([" ", ":::", "a"], "the command is empty"),
        (["echo", "::::"], "no file after ::::"),
        (["echo", "::::", "/does/not/exist"], "/does/not/exist: No such file"),
        (["echo", "::::", "/"], "/: Is a directory"),
        (["echo", ":::+", "a"], "there is none"),
        (["echo", ":::", "a\0b"], "NUL"),
        (["echo", ":::", "\udcff"], "not UTF-8"),
        (["echo", ":::", "x" * (ARGUMENT_BYTES_MAX + 1)], "bytes"),
        (["echo", "::::", "-", "-"], "one list"),
    ],
)
def test_mistakes_are_named_with_a_cure(words: list[str], text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(words, io.BytesIO(b""))
    assert text in caught.value.text


def test_a_terminal_as_input_is_a_mistake_with_a_hint() -> None:
    with pytest.raises(UsageError) as caught:
        parse(["echo"], io.BytesIO(), stdin_is_terminal=True)
    assert "terminal" in caught.value.text
    assert ":::" in caught.value.hint


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"a\n\xff\n", "line 2 of standard input is not UTF-8"),
        (b"a\nb\nc\0", "line 3"),
        (b"a" * 70_000, "line 1"),
    ],
)
def test_a_bad_line_is_named_by_its_number(data: bytes, text: str) -> None:
    bag = parse(["echo"], io.BytesIO(data))
    with pytest.raises(UsageError) as caught:
        list(bag.parameters)
    assert text in caught.value.text


class _Broken(io.RawIOBase):
    def read(self, size: int = -1) -> bytes:
        raise OSError(5, "Input/output error")


def test_an_input_that_cannot_be_read_is_the_environments_fault() -> None:
    bag = parse(["echo"], _Broken())  # type: ignore[arg-type]
    with pytest.raises(EnvironmentProblem, match="Input/output error"):
        next(bag.parameters)


@pytest.mark.parametrize(
    "command", ["echo {}", "echo {#} {}", "echo {#0}-{1}-{2.}-{3}", "echo '{}' \"{/} {#}\"", "x {.}{//}{/.}"]
)
def test_numbered_commands_mean_the_same(command: str) -> None:
    words, index = ["/tmp/a b.txt", "it's"], 41
    expected = Template(command).fill(words, index)
    assert Template(numbered(command, 2)).fill([*words, str(index + 1), str(index)], 7) == expected


def test_a_bag_says_how_many_words_its_tasks_have() -> None:
    bag: Bag = parse(["echo", ":::", "a", ":::+", "b", ":::", "c"], None)
    assert bag.width == 3
    assert not bag.blocking
