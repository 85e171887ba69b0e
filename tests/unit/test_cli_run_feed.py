"""Parameters in pieces: all of them, in order, none too large, and pipes read no further than wanted."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator

import pytest

from kestrel.cli import run_feed
from kestrel.cli.arguments import parse
from kestrel.cli.joblog import LoggedTasks
from kestrel.cli.run_feed import Feed, Selection
from kestrel.errors import EnvironmentProblem, UsageError


def pieces_of(entries: Iterator[list[str]], *, blocking: bool) -> list[list[list[str]]]:
    async def take() -> list[list[list[str]]]:
        feed = Feed(entries, blocking=blocking)
        pieces, ended = [], False
        while not ended:
            piece, ended = await feed.take()
            pieces.append(piece)
        feed.close()
        return pieces

    return asyncio.run(take())


@pytest.mark.parametrize("blocking", [False, True])
def test_pieces_hold_everything_in_order_within_their_bounds(blocking: bool) -> None:
    entries = [[str(i) * (i % 50)] for i in range(25_000)]
    pieces = pieces_of(iter(entries), blocking=blocking)
    assert list(itertools.chain(*pieces)) == entries
    assert all(len(piece) <= run_feed.PIECE_TASKS_MAX for piece in pieces)
    assert all(sum(len(w) for (w,) in piece) <= run_feed.PIECE_BYTES_MAX for piece in pieces)
    assert all(pieces[:-1])


def test_a_short_list_is_one_piece_that_is_known_to_be_the_last() -> None:
    assert pieces_of(iter([["a"], ["b"]]), blocking=False) == [[["a"], ["b"]]]


@pytest.mark.parametrize("letter", ["<", "&", "\x01"])
def test_an_entry_that_no_stanza_holds_is_refused(letter: str) -> None:
    with pytest.raises(UsageError, match="at most 150000"):
        pieces_of(iter([["small"], [letter * 60_000]]), blocking=False)


def test_a_pipe_is_not_read_further_ahead_than_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_feed, "AHEAD_MAX", 5)
    monkeypatch.setattr(run_feed, "PIECE_TASKS_MAX", 2)
    read = 0

    def endless() -> Iterator[list[str]]:
        nonlocal read
        while True:
            read += 1
            yield [str(read)]

    async def take() -> None:
        feed = Feed(endless(), blocking=True)
        piece, ended = await feed.take()
        assert (piece[0], ended) == (["1"], False)
        taken = len(piece) + 1  # one more may be waiting for the next piece
        feed.close()
        assert read <= taken + 5 + 1

    asyncio.run(take())


@pytest.mark.parametrize("blocking", [False, True])
def test_what_reading_raised_arrives(blocking: bool) -> None:
    def broken() -> Iterator[list[str]]:
        yield ["a"]
        raise EnvironmentProblem("the pipe broke")

    with pytest.raises(EnvironmentProblem, match="the pipe broke"):
        pieces_of(broken(), blocking=blocking)


def test_a_selection_without_a_log_is_everything_as_it_is() -> None:
    selection = Selection(parse(["echo", ":::", "a", "b"], None))
    assert list(selection.parameters()) == [["a"], ["b"]]
    assert (selection.seq(1), selection.own_words(["b"]), selection.numbered) == (2, ["b"], False)


def test_a_selection_carries_the_numbers_of_the_whole_bag() -> None:
    logged = LoggedTasks("log")
    logged.add(2, "echo b", failed=False)
    selection = Selection(parse(["echo", ":::", "a", "b", "c"], None), logged)
    assert list(selection.parameters()) == [["a", "1", "0"], ["c", "3", "2"]]
    assert (selection.skipped, selection.seq(1), selection.own_words(["c", "3", "2"])) == (1, 3, ["c"])
