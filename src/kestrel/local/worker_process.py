"""A worker on this machine as a child process, held by a pipe.

The child is started first and told how to reach the pool later, so that both sides load at the same
time. The pipe stays open as long as the pool lives: when it closes, however the pool ended, the worker
kills what it runs and goes. Imports little on purpose. Called by `LocalPool` and `kestrel run`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from kestrel.errors import EnvironmentProblem
from kestrel.worker.unix_user import task_environment

if TYPE_CHECKING:
    from kestrel.config import PoolAccess

STOP_S_MAX = 5.0


class WorkerProcess:
    """One worker with `slots` slots and a scratch directory of its own; runs tasks in `workdir`."""

    def __init__(self, slots: int, workdir: str = "") -> None:
        """Starts the process. Raises `EnvironmentProblem`."""
        self.slots = slots
        self.directory = Path(tempfile.mkdtemp(prefix="kestrel-worker-"))
        words = [sys.executable, "-m", "kestrel.worker", "--access", "-", "--slots", str(slots), "--quiet"]
        words += ["--dir", str(self.directory), "--workdir", workdir or os.getcwd()]
        try:
            # A session of its own: Ctrl-C is for the command line, which stops the worker in order.
            # What was told to us in our environment, the password of a database perhaps, is not for it.
            self._process = subprocess.Popen(
                words, stdin=subprocess.PIPE, env=task_environment(os.environ, None), start_new_session=True
            )
        except OSError as problem:
            shutil.rmtree(self.directory, ignore_errors=True)
            raise EnvironmentProblem(f"cannot start the local worker: {problem}") from None

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that killed it."""
        return self._process.poll()

    def join(self, access: PoolAccess, *, scratch: Sequence[Path] = ()) -> None:
        """Tell the worker where to go. Raises `EnvironmentProblem` if it has ended already.

        Its own directory and those of `scratch` are removed by the worker if we are killed.
        """
        assert self._process.stdin is not None
        line = {"access": asdict(access), "scratch": [str(path) for path in (self.directory, *scratch)]}
        try:
            self._process.stdin.write(json.dumps(line).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            code = self._process.poll()
            raise EnvironmentProblem(
                f"the local worker ended before it could join (exit code {code})"
            ) from None

    async def stop(self) -> None:
        """Have it leave at once, and wait until it has; then remove its directory."""
        await asyncio.to_thread(self.end)

    def end(self) -> None:
        """The same, blocking."""
        with contextlib.suppress(BrokenPipeError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        try:
            self._process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)
