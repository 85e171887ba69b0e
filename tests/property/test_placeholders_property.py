"""A value is never code: through a real shell and as plain words a command means the same."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kestrel.protocol.placeholders import Template, has_placeholder, simplify

_LETTERS = st.one_of(
    st.sampled_from(list("ab ./'\"$`\\!*?~#&|;<>(){}[]=\n\t%-")),
    st.characters(blacklist_characters="\0\1", blacklist_categories=["Cs"]),
)
VALUES = st.text(_LETTERS, max_size=12)
PLACEHOLDERS = st.sampled_from(
    ["{}", "{.}", "{/}", "{//}", "{/.}", "{1}", "{2}", "{2.}", "{1/}", "{3/.}", "{#}", "{#0}"]
)
WORDS = st.tuples(st.text("abx-/.,", max_size=3), PLACEHOLDERS, st.text("abx-/.,", max_size=3)).map("".join)


def shell_words(argv: list[str]) -> list[str]:
    done = subprocess.run(argv, capture_output=True, check=True)
    assert done.stderr == b""
    return done.stdout.decode("utf-8", "surrogateescape").split("\1")[:-1]


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(WORDS, min_size=1, max_size=3), st.lists(VALUES, max_size=3), st.integers(0, 10**8))
def test_shell_form_and_list_form_give_the_same_words(
    words: list[str], params: list[str], index: int
) -> None:
    listed = Template(["x", *words]).fill(params, index)[1:]
    shell = Template("printf '%s\\001' x " + " ".join(words)).fill(params, index)
    assert shell[:2] == ["/bin/sh", "-c"]
    assert shell_words(shell)[1:] == listed


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    VALUES,
    st.sampled_from(
        ['"{1}"', "'{1}'", "{1}", '"a b{1}c"', "\"$(printf '%s.' {1})\"", '"$(printf %s. "{1}")"']
    ),
)
def test_a_value_inside_of_quotes_stays_one_word(value: str, quoted: str) -> None:
    got = shell_words(Template(f"printf '%s\\001' {quoted}").fill([value], 0))
    before, after = {'"a b{1}c"': ("a b", "c")}.get(quoted, ("", "." if "$(" in quoted else ""))
    assert got == [before + value + after]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text("ab '\"{}1#/.-,:@%+=", max_size=20), st.lists(VALUES, min_size=1, max_size=2))
def test_simplify_changes_nothing_of_what_a_shell_would_do(tail: str, params: list[str]) -> None:
    simple = simplify("x " + tail)
    if isinstance(simple, str):
        return
    listed = Template(simple).fill(params, 4)
    shell = Template("printf '%s\\001' x " + tail).fill(params, 4)
    assert shell_words(shell) == listed


@pytest.mark.parametrize("word", ["{}", "{1}", "{#}", "{#0}", "a{/.}b"])
def test_a_filled_in_value_that_looks_like_a_placeholder_is_left_alone(word: str) -> None:
    assert Template(["x", "{1}"]).fill([word], 3) == ["x", word]
    assert has_placeholder(word)
