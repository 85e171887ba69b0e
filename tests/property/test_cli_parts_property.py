"""Printing in order, logs that were torn, tables, selectors, job files: whatever comes."""

from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path

from hypothesis import event, given
from hypothesis import strategies as st

from kestrel.cli.jobfile import JobFileError, parse_job
from kestrel.cli.joblog import HEAD, JobLog, LogEntry
from kestrel.cli.output import Output, duration_text, format_table, text_width
from kestrel.cli.run import SELECTORS_CHARS_MAX, selectors
from kestrel.cli.run_print import Tagger, TaskPrinter
from kestrel.protocol.ranges import parse_ranges

texts = st.binary(max_size=12)


class _Sink:
    """Standard output and error as bytes."""

    def __init__(self) -> None:
        self.out = io.TextIOWrapper(io.BytesIO())
        self.err = io.TextIOWrapper(io.BytesIO())
        self.output = Output("table", self.out, self.err)

    def got(self) -> tuple[bytes, bytes]:
        return self.out.buffer.getvalue(), self.err.buffer.getvalue()  # type: ignore[attr-defined]


@given(st.data())
def test_keep_order_prints_in_order_whatever_the_ends_and_the_memory(data: st.DataObject) -> None:
    tasks = data.draw(st.lists(st.tuples(texts, texts), max_size=12))
    order = data.draw(st.permutations(range(len(tasks))))
    sink = _Sink()
    bound = data.draw(st.sampled_from([0, 5, 1000]))
    with contextlib.closing(TaskPrinter(keep_order=True, held_bytes_max=bound)) as printer:
        for count, index in enumerate(order, 1):
            out, err = tasks[index]
            half = len(out) // 2
            printer.part(index, out[:half])
            printer.part(index, out[half:])
            printer.part(index, err, err=True)
            printer.end(index)
            if data.draw(st.booleans()):
                printer.write_all(sink.output)
                done = next((i for i in range(len(tasks)) if i not in order[:count]), len(tasks))
                assert sink.got()[0] == b"".join(out for out, _ in tasks[:done])
        printer.write_all(sink.output)
        assert printer.printed == len(tasks)
    assert sink.got() == (b"".join(out for out, _ in tasks), b"".join(err for _, err in tasks))


@given(st.lists(texts), st.binary(min_size=1, max_size=3).filter(lambda tag: b"\n" not in tag))
def test_tags_do_not_depend_on_how_a_stream_is_cut(parts: list[bytes], tag: bytes) -> None:
    tagger = Tagger(tag)
    whole = b"".join(parts)
    lines = whole.split(b"\n")
    if lines[-1] == b"":
        expected = b"".join(tag + line + b"\n" for line in lines[:-1])
    else:
        expected = b"\n".join(tag + line for line in lines)
    assert b"".join(tagger.feed(part) for part in parts) == expected


@given(
    st.lists(st.tuples(st.integers(1, 30), st.booleans(), st.text(max_size=6)), max_size=12),
    st.integers(0, 60),
)
def test_a_log_cut_anywhere_knows_exactly_its_whole_lines(
    ends: list[tuple[int, bool, str]], cut_off: int
) -> None:
    entries = [LogEntry(seq, ":", 1.0, 0.5, 0, int(bad), 0, f"echo {text}") for seq, bad, text in ends]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "log"
        log = JobLog.create(path)
        log.add(entries)
        log.close()
        data = path.read_bytes()
        kept = data[: max(len(HEAD) + 1, len(data) - cut_off)]
        path.write_bytes(kept)
        log, logged = JobLog.resume(path)
        log.close()
        whole = kept.count(b"\n") - 1
        last = {entry.seq: entry for entry in entries[:whole]}
        assert logged.count == len(last)
        for seq, entry in last.items():
            assert logged.is_done(seq, entry.command, also_failed=True)
            assert logged.is_done(seq, entry.command, also_failed=False) == (entry.exit_code == 0)


@given(st.sets(st.integers(0, 5000)))
def test_selectors_name_exactly_the_tasks_in_short_pieces(tasks: set[int]) -> None:
    made = list(selectors(sorted(tasks)))
    assert all(0 < len(text) <= SELECTORS_CHARS_MAX for text in made)
    assert [t for text in made for t in parse_ranges(text, 5001)] == sorted(tasks)


cells = st.one_of(st.text(max_size=30), st.integers(-(10**6), 10**6), st.none())


@given(st.lists(st.tuples(cells, cells, cells), max_size=5), st.one_of(st.none(), st.integers(1, 60)))
def test_a_table_has_a_line_per_row_and_columns_that_line_up(
    rows: list[tuple[object, object, object]], width: int | None
) -> None:
    text = format_table(["A", "B", "C"], rows, width)
    lines = text.split("\n")
    assert len(lines) == len(rows) + 2
    assert all(line.isprintable() for line in lines)
    if width is not None and width >= 3 * 8 + 4:
        assert max(text_width(line) for line in lines) <= width


@given(st.floats(0, 1e9), st.floats(0, 1e9))
def test_durations_are_short(a: float, b: float) -> None:
    assert len(duration_text(a)) <= 9
    assert (a == b) <= (duration_text(a) == duration_text(b))


@given(st.text(max_size=80), st.sampled_from(["job", "job.toml", "job.json", "job.ini"]))
def test_no_text_breaks_the_reader_of_job_files(text: str, name: str) -> None:
    found: list[str] = []
    try:
        parse_job(text, name, Path("/x"))
    except JobFileError as problem:
        found = problem.mistakes
        event("mistakes")
    assert all(line.startswith(f"{name}:") for line in found)
