"""A small disk of its own for a test: a tmpfs, mounted and unmounted by the test. Needs root."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SIZE_BYTES = 32 * 2**20


@dataclass(frozen=True)
class SmallDisk:
    """A file system that a test can fill."""

    path: Path
    size_bytes: int = SIZE_BYTES

    def fill(self, leave_bytes: int) -> None:
        """Put a file on it that leaves so much room."""
        with self._ballast.open("ab") as file:
            excess = shutil.disk_usage(self.path).free - leave_bytes
            while excess > 0:
                excess -= file.write(bytes(min(excess, 2**20)))
                file.flush()

    def empty(self) -> None:
        """Take that file away again."""
        self._ballast.unlink()

    @property
    def _ballast(self) -> Path:
        return self.path / "ballast"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """32 MiB; without the right to mount no test: a loud skip, but a failure for root in CI."""
    place = tmp_path / "small"
    place.mkdir()
    if sys.platform != "linux":
        pytest.skip("no small disk can be made here: only Linux has tmpfs")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_BYTES}", "none", str(place)]
    tried = subprocess.run(mount, capture_output=True, text=True, check=False)
    if tried.returncode:
        text = f"no small disk can be mounted: {tried.stderr.strip()}"
        if os.environ.get("CI") and os.geteuid() == 0:
            pytest.fail(text)
        pytest.skip(text)
    try:
        yield SmallDisk(place)
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)
