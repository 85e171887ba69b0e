"""A command line that cannot be understood: in words for people, as an object for programs."""

from __future__ import annotations

import json
import sys

import pytest

from kestrel.cli.main import main


@pytest.mark.parametrize("words", [["status", "--json", "--foo"], ["stauts", "--json"], ["wait", "--json"]])
def test_misuse_is_told_in_json_when_that_was_asked_for(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["kestrel", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    shown = capsys.readouterr()
    error = json.loads(shown.out)["error"]
    assert ended.value.code == 255
    assert error["code"] == "usage"
    assert error["text"] in shown.err
    assert "--help" in error["hint"]
