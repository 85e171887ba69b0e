"""What logs look like: a line each for who reads logs, words for who waits in front of a command."""

import logging
from collections.abc import Iterator

import pytest

from kestrel.cli.logs import set_up_logs, tell_in_words
from kestrel.errors import StoreError

log = logging.getLogger("kestrel.tried")


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    root = logging.getLogger("kestrel")
    before = root.handlers[:], root.propagate, root.level
    yield
    root.handlers[:], root.propagate = before[0], before[1]
    root.setLevel(before[2])


def test_an_event_is_one_line_also_when_an_error_brings_its_hint(capsys: pytest.CaptureFixture[str]):
    set_up_logs(verbose=False)
    log.warning("store_away", extra={"problem": str(StoreError("it hangs", hint="look there"))})
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].endswith(" WARNING kestrel.tried store_away problem=it hangs hint: look there")


def test_who_waits_reads_words_and_no_events(capsys: pytest.CaptureFixture[str]):
    tell_in_words()
    log.warning("xmpp.keeps_trying", extra={"server": "s", "reason": "No server can be reached (refused)."})
    log.warning("answer_awaited", extra={"text": "the manager m is not there"})
    log.info("xmpp.connected", extra={"address": "a"})
    assert capsys.readouterr().err.splitlines() == [
        "kestrel: No server can be reached (refused); trying again",
        "kestrel: the manager m is not there; waiting",
    ]
