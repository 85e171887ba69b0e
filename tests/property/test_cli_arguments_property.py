"""Lists of arguments, whatever is in them."""

from __future__ import annotations

import io
import itertools

from hypothesis import given
from hypothesis import strategies as st

from kestrel.cli.arguments import numbered, parse
from kestrel.protocol.placeholders import Template

words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8).filter(
    lambda word: word not in (":::", ":::+", "::::", "::::+")
)
lists = st.lists(st.lists(words, max_size=4), min_size=1, max_size=3)
pieces = st.lists(
    st.sampled_from(
        [
            "{}",
            "{.}",
            "{/}",
            "{//}",
            "{/.}",
            "{#}",
            "{#0}",
            "{1}",
            "{2/}",
            "{4}",
            "'",
            '"',
            " ",
            "x",
            "$(",
            ")",
        ]
    ),
    max_size=8,
)


@given(lists)
def test_lists_make_all_combinations_in_order(given_lists: list[list[str]]) -> None:
    line = ["echo"]
    for each in given_lists:
        line += [":::", *each]
    bag = parse(line, None)
    expected = [list(row) for row in itertools.product(*given_lists)]
    assert list(bag.parameters) == expected
    assert bag.count == len(expected)


@given(st.lists(words.filter(lambda word: "\n" not in word)), st.integers(1, 7), st.booleans())
def test_lines_are_the_same_however_they_are_cut(lines: list[str], size: int, end: bool) -> None:
    text = "\n".join(lines)
    if end or not text or lines[-1] == "":
        text += "\n" if lines else ""

    class Slow(io.BytesIO):
        def read(self, _size: int | None = -1, /) -> bytes:
            return super().read(size)

    assert list(parse(["echo"], Slow(text.encode())).parameters) == [[line] for line in lines]


@given(pieces, st.lists(words, min_size=1, max_size=3), st.integers(0, 10**6))
def test_a_numbered_command_becomes_the_same_for_each_task(
    command_pieces: list[str], params: list[str], index: int
) -> None:
    command = "echo " + "".join(command_pieces)
    expected = Template(command).fill(params, index)
    carried = [*params, str(index + 1), str(index)]
    assert Template(numbered(command, len(params))).fill(carried, 0) == expected
