"""The output files of attempts: where they are, reading pieces of them, and a bound on what stays.

The launcher writes them and removes those whose end, which travels with the result, holds everything.
The others stay here until there are too many. Called by the worker's agent.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class OutputPiece:
    """Bytes of a stream, and its length so far."""

    data: bytes
    size: int


class Outputs:
    """The output files below one directory: `<job>/<task>.<attempt>.out` and `.err`."""

    def __init__(self, directory: str, *, bytes_max: int = 4 * 1024**3, files_max: int = 100_000) -> None:
        """Nothing is read or made here. `bytes_max`, `files_max`: the oldest go when there are more."""
        self._directory = directory
        self._bytes_max = bytes_max
        self._files_max = files_max
        self._kept: dict[str, int] = {}
        self._bytes = 0

    def load(self) -> None:
        """Take over what an earlier life of the worker left."""
        found: list[tuple[float, str, int]] = []
        for path in Path(self._directory).glob("*/*.*.*"):
            status = path.stat()
            found.append((status.st_mtime, str(path), status.st_size))
        for _, name, size in sorted(found):
            self._keep(name, size)

    def paths(self, job: int, task: int, attempt: int) -> tuple[str, str]:
        """Files for standard output and error."""
        stem = f"{self._directory}/{job}/{task}.{attempt}"
        return f"{stem}.out", f"{stem}.err"

    def ended(self, job: int, task: int, attempt: int, sizes: tuple[int, int], tail_bytes: int) -> None:
        """An attempt has ended with so much output; what the tails hold is not here any more."""
        for path, size in zip(self.paths(job, task, attempt), sizes, strict=True):
            if size > tail_bytes:
                self._keep(path, size)

    def read(self, job: int, task: int, attempt: int, stderr: bool, offset: int, limit: int) -> OutputPiece:
        """A piece of a stream. Raises OSError if there is no such file (any more)."""
        with open(self.paths(job, task, attempt)[stderr], "rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(min(offset, size))
            return OutputPiece(file.read(limit), size)

    def _keep(self, path: str, size: int) -> None:
        self._bytes += size - self._kept.pop(path, 0)
        self._kept[path] = size
        # The newest stays, however large: somebody is about to ask for it.
        while (self._bytes > self._bytes_max or len(self._kept) > self._files_max) and len(self._kept) > 1:
            oldest = next(iter(self._kept))
            self._bytes -= self._kept.pop(oldest)
            Path(oldest).unlink(missing_ok=True)
