"""A Kestrel pool in processes of its own: `kestrel up`, and workers that join by its invitation.

Everything is kept in one scratch directory, and nothing of the user's own configuration is read or
changed. Used by `demo.py` only; real pools are started by hand, with the same two commands.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO

NAME = "fractal"
UP_S_MAX = 60.0
STOP_S_MAX = 15.0


class PoolError(Exception):
    """A process of the pool did not do what it should; the text has the last it said."""


class ProcessPool:
    """Start with `start`, add workers with `add_worker`; `stop` ends all that was started."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.invitation = ""
        self.processes: dict[str, subprocess.Popen[str]] = {}
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("KESTREL_", "XDG_"))}
        self.environment["XDG_DATA_HOME"] = str(scratch / "data")
        self.environment["XDG_CONFIG_HOME"] = str(scratch / "config")

    @property
    def access_file(self) -> Path:
        """Where `kestrel up` leaves what its owner's clients need."""
        return self.scratch / "config" / "kestrel" / "pools" / f"{NAME}.json"

    def start(self) -> None:
        """Start server and manager on a free port, and read the invitation that they print."""
        up = self._spawn("up", "up", "--pool", NAME, "--port", "0", "--json")
        assert up.stdout is not None
        # A pool that neither speaks nor ends is ended, which ends the reading below.
        guard = threading.Timer(UP_S_MAX, up.kill)
        guard.start()
        try:
            greeting = _first_json(up.stdout)
        finally:
            guard.cancel()
        if greeting is None:
            up.wait()
            raise PoolError(f"`kestrel up` ended with exit code {up.returncode}:\n{self.last_words('up')}")
        self.invitation = greeting["invitation"]

    def add_worker(self, name: str, slots: int) -> None:
        """Start a worker; it joins by itself."""
        self._spawn(name, "worker", "--join", self.invitation, "--name", name, "--slots", str(slots))

    def pid(self, name: str) -> int:
        return self.processes[name].pid

    def check_alive(self, name: str) -> None:
        """Raise `PoolError` if the process has ended."""
        code = self.processes[name].poll()
        if code is not None:
            raise PoolError(f"{name} ended with exit code {code}:\n{self.last_words(name)}")

    def last_words(self, name: str) -> str:
        """The end of what a process wrote on its standard error."""
        return "\n".join(self._log(name).read_text(errors="replace").splitlines()[-15:])

    def stop(self) -> None:
        """End all processes in order, workers first; what does not obey in time is killed."""
        for name, process in reversed(self.processes.items()):
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(STOP_S_MAX)
                except subprocess.TimeoutExpired:
                    print(f"{name} did not end when asked; killed", file=sys.stderr)
                    process.kill()
                    process.wait()
            if process.stdout is not None:
                process.stdout.close()

    def _log(self, name: str) -> Path:
        return self.scratch / f"{name}.log"

    def _spawn(self, name: str, *words: str) -> subprocess.Popen[str]:
        with self._log(name).open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "kestrel", *words],
                env=self.environment,
                cwd=self.scratch,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if name == "up" else log,
                stderr=log,
                text=True,
                # Ctrl-C is for the demo, which then ends the pool in order.
                start_new_session=True,
            )
        self.processes[name] = process
        return process


def _first_json(lines: IO[str]) -> dict[str, str] | None:
    """The first JSON object that a program prints, on one line or on several; None if it ends before."""
    text = ""
    for line in lines:
        text += line
        try:
            greeting: dict[str, str] = json.loads(text)
        except ValueError:
            continue
        return greeting
    return None
