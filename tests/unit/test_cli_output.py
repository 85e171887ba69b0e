"""What people and programs see of tables, records, errors."""

from __future__ import annotations

import io
import json

import pytest

from kestrel.cli.output import Output, cell_text, cut, duration_text, format_table, iso_time, plain, printable
from kestrel.errors import UsageError
from kestrel.protocol import messages as m


def made(mode: str) -> tuple[Output, io.StringIO, io.StringIO]:
    out, err = io.StringIO(), io.StringIO()
    return Output(mode, out, err), out, err  # type: ignore[arg-type]


def test_numbers_are_aligned_to_the_right_and_text_to_the_left() -> None:
    text = format_table(["NAME", "N"], [["a", 5], ["bcdef", 1234]])
    assert text == "NAME      N\na         5\nbcdef  1234\n"


def test_a_table_without_rows_still_has_its_head() -> None:
    assert format_table(["A", "B"], []) == "A  B\n"


def test_a_narrow_terminal_cuts_text_but_never_numbers() -> None:
    text = format_table(["COMMAND", "N"], [["x" * 50, 123456789012]], 30)
    row = text.splitlines()[1]
    assert len(row) <= 30
    assert row.endswith("123456789012")
    assert "…" in row


def test_wide_characters_count_twice() -> None:
    assert cut("日本語", 5) == "日本…"
    assert cut("日本語", 6) == "日本語"


def test_text_of_others_cannot_steer_the_terminal() -> None:
    assert "\x1b" not in format_table(["NAME"], [["evil\x1b[2Jname\nsecond"]])
    assert printable("a\nb") == "a\\nb"


def test_json_records_have_all_fields_and_iso_times() -> None:
    output, out, _ = made("json")
    job = m.JobInfo(job=3, user="ann@x", submitted=1_700_000_000.25)
    output.records([job], columns=["JOB"], row=lambda info: [info.job])
    record = json.loads(out.getvalue())[0]
    assert record["submitted"] == "2023-11-14T22:13:20.250Z"
    assert record["finished"] is None
    assert record["open"] is False
    assert record["counts"]["failed"] == 0


def test_quiet_tables_print_the_first_column_only() -> None:
    output, out, _ = made("quiet")
    output.records([{"id": 1}, {"id": 2}], columns=["ID", "X"], row=lambda r: [r["id"], "x"])
    output.line("chatter")
    output.line("needed", essential=True)
    assert out.getvalue() == "1\n2\nneeded\n"


def test_an_error_names_the_cure_and_json_mode_has_it_as_an_object() -> None:
    output, out, err = made("json")
    output.error(UsageError("no such job", hint="see status"))
    assert err.getvalue() == "kestrel: no such job\n  hint: see status\n"
    assert json.loads(out.getvalue()) == {
        "error": {"code": "usage", "text": "no such job", "hint": "see status"}
    }


def test_events_are_one_line_each() -> None:
    output, out, _ = made("json")
    output.event({"a": "x\ny"})
    output.event({"b": [1]})
    assert [json.loads(line) for line in out.getvalue().splitlines()] == [{"a": "x\ny"}, {"b": [1]}]


def test_a_document_for_people_is_key_and_value() -> None:
    output, out, _ = made("table")
    output.document({"name": "x", "workers": 3})
    assert out.getvalue() == "name     x\nworkers  3\n"


def test_a_stream_that_cannot_encode_gets_escapes() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    Output("table", stream).line("… ä")
    assert raw.getvalue() == b"\\u2026 \\xe4\n"


class _Gone(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_a_broken_pipe_is_noticed_at_once() -> None:
    with pytest.raises(BrokenPipeError):
        Output("table", _Gone()).line("x")


def test_what_cannot_be_printed_is_refused() -> None:
    with pytest.raises(TypeError, match="object"):
        plain(object())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0ms"),
        (0.0124, "12ms"),
        (0.9996, "1s"),
        (1.5, "1.5s"),
        (59.94, "59.9s"),
        (59.96, "1m00s"),
        (192, "3m12s"),
        (3599.7, "1h00m"),
        (7500, "2h05m"),
        (356400, "4d03h"),
        (-2, "-2s"),
    ],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_times_are_utc_and_zero_is_not_yet() -> None:
    assert iso_time(0) == ""
    assert iso_time(1_700_000_000) == "2023-11-14T22:13:20Z"


def test_cells_of_any_kind_are_text() -> None:
    assert [cell_text(v) for v in (None, True, 1.5, ["a", 2], {"k": 1})] == ["", "yes", "1.5", "a 2", "k=1"]
