"""What is in the spool survives anything but its acknowledgement."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from kestrel.core.execution_events import Ending, Finished
from kestrel.core.model import AttemptEnd
from kestrel.errors import EnvironmentProblem
from kestrel.ports import ProcessEnded
from kestrel.worker.reports import render, report_message
from kestrel.worker.spool import ROOM_BYTES_MIN, FileSpool, MemorySpool
from parts.disk import SmallDisk, small_disk

__all__ = ["small_disk"]


def finished(attempt: int, out: str = "") -> Finished:
    facts = ProcessEnded(attempt, 0, out=out, out_bytes=len(out))
    return render(Ending(3, attempt + 100, attempt, AttemptEnd.COMPLETED, facts=facts))


def kept(directory: Path) -> list[Finished]:
    spool = FileSpool(directory)
    spool.close()
    return list(spool.restored)


def test_what_was_kept_and_not_forgotten_is_there_in_the_next_life(tmp_path: Path) -> None:
    results = [finished(i, 'x\n"&<>\ufffd') for i in range(5)]
    spool = FileSpool(tmp_path)
    assert (spool.life, list(spool.restored)) == (1, [])
    spool.keep(results)
    spool.forget([1, 3])
    spool.close()
    again = FileSpool(tmp_path)
    assert again.life == 2
    assert list(again.restored) == [results[0], results[2], results[4]]
    again.forget([0, 2, 4])
    again.close()
    assert kept(tmp_path) == []
    assert (tmp_path / "finished.journal").stat().st_size < 100


def test_a_torn_last_record_is_dropped_and_the_rest_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = FileSpool(tmp_path)
    spool.keep([finished(1), finished(2)])
    spool.close()
    journal = tmp_path / "finished.journal"
    journal.write_bytes(journal.read_bytes()[:-5])
    assert kept(tmp_path) == [finished(1)]
    assert "spool_torn_record" in caplog.text


def test_a_damaged_record_harms_only_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spool = FileSpool(tmp_path)
    spool.keep([finished(1), finished(2), finished(3)])
    spool.close()
    journal = tmp_path / "finished.journal"
    lines = journal.read_bytes().split(b"\n")
    lines[2] = b"\xff" + lines[2][1:]
    journal.write_bytes(b"\n".join(lines))
    assert kept(tmp_path) == [finished(1), finished(3)]
    assert "spool_damaged" in caplog.text


def test_a_killed_worker_loses_nothing_that_it_kept(tmp_path: Path) -> None:
    program = """
import os, signal, sys
from pathlib import Path
from kestrel.core.execution_events import Finished
from kestrel.worker.spool import FileSpool
body = b'{"job":3,"task":101,"attempt":1}'
FileSpool(Path(sys.argv[1])).keep([Finished(3, 101, 1, body, 1)])
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False, timeout=60)
    assert [f.attempt for f in kept(tmp_path)] == [1]


def test_a_second_worker_in_the_same_directory_is_refused_and_told_who_has_it(tmp_path: Path) -> None:
    spool = FileSpool(tmp_path)
    with pytest.raises(EnvironmentProblem, match=f"in use by another worker.*{os.getpid()}") as problem:
        FileSpool(tmp_path)
    assert problem.value.code == "in_use"
    spool.close()
    FileSpool(tmp_path).close()


def test_the_journal_does_not_grow_with_what_was_forgotten(tmp_path: Path) -> None:
    spool = FileSpool(tmp_path, slack_bytes=10_000)
    spool.keep([finished(0)])
    for i in range(1, 1000):
        spool.keep([finished(i)])
        spool.forget([i])
    assert (tmp_path / "finished.journal").stat().st_size < 15_000
    spool.close()
    assert kept(tmp_path) == [finished(0)]


def test_what_is_kept_is_for_its_owner_only_wherever_it_is_kept(tmp_path: Path) -> None:
    open_to_all = tmp_path / "spool"
    open_to_all.mkdir(mode=0o755)
    mask = os.umask(0)
    try:
        FileSpool(open_to_all).close()
    finally:
        os.umask(mask)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in open_to_all.iterdir()}
    assert modes["finished.journal"] == 0o600


def test_a_full_spool_refuses_and_keeps_what_it_has(tmp_path: Path) -> None:
    spool = FileSpool(tmp_path, bytes_max=2000)
    spool.keep([finished(1)])
    with pytest.raises(EnvironmentProblem, match="is full"):
        spool.keep([finished(2, "x" * 3000)])
    spool.keep([finished(3)])
    spool.close()
    assert kept(tmp_path) == [finished(1), finished(3)]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_a_clear_error(tmp_path: Path) -> None:
    import io

    spool = FileSpool(tmp_path)
    good = spool._file
    spool._file = io.FileIO("/dev/full", "w")
    with pytest.raises(EnvironmentProblem, match="No space left on device") as problem:
        spool.keep([finished(1)])
    assert problem.value.retry
    assert "free some space" in problem.value.hint
    spool._file.close()
    spool._file = good
    spool.keep([finished(2)])
    spool.close()
    assert kept(tmp_path) == [finished(2)]


def test_a_directory_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem, match=r"cannot write the spool .*file/spool"):
        FileSpool(tmp_path / "file" / "spool")


def test_the_memory_spool_counts_lives_and_keeps() -> None:
    spool = MemorySpool()
    spool.keep([finished(1), finished(2)])
    spool.forget([1])
    spool.reopen()
    assert (spool.life, list(spool.restored)) == (2, [finished(2)])


def test_a_report_message_reads_as_one() -> None:
    from kestrel.protocol import codec
    from kestrel.protocol import messages as m

    message = codec.decode_to_manager(report_message(5, [finished(1, 'a"\n'), finished(2)]))
    assert isinstance(message, m.Report)
    assert message.n == 5
    assert [(a.attempt, a.state, a.out) for a in message.attempts] == [
        (1, "completed", 'a"\n'),
        (2, "completed", ""),
    ]


def test_a_life_is_never_counted_twice_even_if_the_journal_is_lost(tmp_path: Path) -> None:
    for expected in (1, 2, 3):
        spool = FileSpool(tmp_path)
        assert spool.life == expected
        spool.close()
        (tmp_path / "finished.journal").unlink()


def test_a_last_line_without_its_end_is_whole_if_its_checksum_says_so(tmp_path: Path) -> None:
    spool = FileSpool(tmp_path)
    spool.keep([finished(1), finished(2)])
    spool.close()
    journal = tmp_path / "finished.journal"
    journal.write_bytes(journal.read_bytes()[:-1])
    assert kept(tmp_path) == [finished(1), finished(2)]


def test_a_journal_of_an_older_version_is_taken_over(tmp_path: Path) -> None:
    body = finished(1).body
    (tmp_path / "finished.journal").write_bytes(b'{"life":7}\n' + body + b'\n{"forget":[5]}\n')
    spool = FileSpool(tmp_path)
    assert (spool.life, list(spool.restored)) == (8, [finished(1)])
    spool.close()
    assert kept(tmp_path) == [finished(1)]


def test_a_changed_byte_is_noticed_even_where_the_text_stays_readable(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = FileSpool(tmp_path)
    spool.keep([finished(1), finished(2)])
    spool.close()
    journal = tmp_path / "finished.journal"
    journal.write_bytes(journal.read_bytes().replace(b'"task":101', b'"task":909'))
    assert kept(tmp_path) == [finished(2)]
    (told,) = [r for r in caplog.records if r.message == "spool_damaged"]
    assert told.__dict__["line"] == 2


def test_a_record_that_this_version_does_not_know_harms_only_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = FileSpool(tmp_path)
    spool.keep([finished(1), Finished(1, 1, 9, b'{"job":1,"later":"invention"}', 1), finished(2)])
    spool.close()
    assert kept(tmp_path) == [finished(1), finished(2)]
    assert "spool_unknown_record" in caplog.text


def test_trying_a_spool_leaves_no_trace(tmp_path: Path) -> None:
    spool = FileSpool(tmp_path)
    spool.keep([finished(1)])
    before = (tmp_path / "finished.journal").read_bytes()
    spool.check()
    assert (tmp_path / "finished.journal").read_bytes() == before
    spool.keep([finished(2)])
    spool.close()
    assert kept(tmp_path) == [finished(1), finished(2)]


def test_a_disk_with_little_room_is_named_while_results_still_fit(small_disk: SmallDisk) -> None:
    spool = FileSpool(small_disk.path)
    spool.check()
    small_disk.fill(leave_bytes=ROOM_BYTES_MIN // 2)
    spool.keep([finished(1)])
    for look in (spool.check_room, spool.check):
        with pytest.raises(EnvironmentProblem, match=r"0\.5 MiB are left on the disk of"):
            look()
    small_disk.empty()
    spool.check()
    spool.close()
    assert kept(small_disk.path) == [finished(1)]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_what_could_not_be_forgotten_on_a_full_disk_is_forgotten_with_the_next(tmp_path: Path) -> None:
    import io

    spool = FileSpool(tmp_path)
    spool.keep([finished(1), finished(2), finished(3)])
    good = spool._file
    spool._file = io.FileIO("/dev/full", "w")
    for attempt in (1, 1):
        with pytest.raises(EnvironmentProblem):
            spool.forget([attempt])
    with pytest.raises(EnvironmentProblem):
        spool.check()
    spool._file.close()
    spool._file = good
    spool.check()
    spool.forget([2])
    spool.close()
    assert kept(tmp_path) == [finished(3)]


def test_a_spool_at_its_bound_makes_room_by_what_was_forgotten(tmp_path: Path) -> None:
    spool = FileSpool(tmp_path, bytes_max=5000)
    for attempt in range(1000):
        spool.keep([finished(attempt, "x" * 100)])
        spool.forget([attempt - 1])
    spool.close()
    assert kept(tmp_path) == [finished(999, "x" * 100)]
