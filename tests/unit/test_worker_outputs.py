"""The bound on output files: the oldest go, the newest never."""

from __future__ import annotations

from pathlib import Path

from kestrel.worker.outputs import Outputs


def test_the_newest_output_stays_even_if_it_is_larger_than_the_bound(tmp_path: Path) -> None:
    outputs = Outputs(str(tmp_path), bytes_max=10)
    (tmp_path / "1").mkdir()
    for task in (0, 1):
        Path(outputs.paths(1, task, 7)[0]).write_bytes(b"x" * 20)
        outputs.ended(1, task, 7, (20, 0), 0)
    assert not Path(outputs.paths(1, 0, 7)[0]).exists()
    assert outputs.read(1, 1, 7, False, 0, 100).data == b"x" * 20
