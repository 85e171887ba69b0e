"""Placeholders by example."""

from __future__ import annotations

import pytest

from kestrel.protocol.placeholders import Template, has_placeholder, simplify, with_argument, with_index


@pytest.mark.parametrize(
    ("word", "value", "expected"),
    [
        ("{}", "dir/file.tar.gz", "dir/file.tar.gz"),
        ("{.}", "dir/file.tar.gz", "dir/file.tar"),
        ("{.}", "di.r/file", "di.r/file"),
        ("{/}", "dir/file.c", "file.c"),
        ("{//}", "dir/sub/file.c", "dir/sub"),
        ("{//}", "file.c", "."),
        ("{//}", "/file.c", "/"),
        ("{/.}", "dir/file.c", "file"),
        ("{1/.}", "dir/file.c", "file"),
        ("{#}", "x", "8"),
        ("{#0}", "x", "7"),
        ("{2}", "x", ""),
        ("out-{/.}.{#}.png", "a/b.c", "out-b.8.png"),
    ],
)
def test_a_placeholder_stands_for_its_part_of_the_value(word: str, value: str, expected: str) -> None:
    assert Template(["run", word]).fill([value], 7) == ["run", expected]


def test_all_parameters_become_words_of_their_own_in_both_forms() -> None:
    assert Template(["run", "-f{}"]).fill(["a b", "c"], 0) == ["run", "-fa b", "c"]
    assert Template("run -f{}").fill(["a b", "c"], 0) == ["/bin/sh", "-c", "run -f'a b' c"]
    assert Template(["run", "{}"]).fill([], 0) == ["run"]


def test_without_parameters_the_index_is_the_parameter() -> None:
    assert Template(["run", "{}", "{1}", "{#}"]).fill(None, 41) == ["run", "41", "41", "42"]


def test_what_is_appended() -> None:
    assert with_argument("wc -l") == "wc -l {}"
    assert with_argument(["wc"]) == ["wc", "{}"]
    assert Template(with_index(["run"])).fill(None, 0) == ["run", "0"]
    assert with_index("run") == "run {#0}"


@pytest.mark.parametrize("text", ["{", "{}{", "{a}", "{0}", "{print}", "{1,2}", "{##}", "{-1}"])
def test_only_placeholders_count_as_such(text: str) -> None:
    assert has_placeholder(text) is ("{}" in text)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("true", ["true"]),
        ("echo {}", ["echo", "{}"]),
        ("./run 'a b' --x=5 {1.}", ["./run", "a b", "--x=5", "{1.}"]),
        ('prog "" x', ["prog", "", "x"]),
    ],
)
def test_a_plain_command_needs_no_shell(command: str, words: list[str]) -> None:
    assert simplify(command) == words


@pytest.mark.parametrize(
    "command",
    [
        "a | b", "a; b", "a && b", "a > f", "a < f", "echo $HOME", "echo `x`", "ls *.c", "ls ?", "ls [ab]",
        "(a)", "a &", "ls ~", "a # b", "X=1 prog", "exit 3", "cd x", "if", "echo {a,b}", "a\nb", "echo 'open",
        "! a", "echo a\\ b", "{}", "{} x", "", "  ", "echo '{}'", 'echo "a {} b"', ". file", "exec x",
    ],
)  # fmt: skip
def test_what_a_shell_may_understand_stays_with_it(command: str) -> None:
    assert simplify(command) == command


def test_windows_uses_its_own_shell() -> None:
    assert Template("echo {}", windows=True).fill(["a b"], 0) == ["cmd.exe", "/c", 'echo "a b"']
