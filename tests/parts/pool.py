"""A pool of real processes for tests: `kestrel up`, workers, and commands, in scratch directories.

`Cluster` is the same with server and managers apart. Everything is started and ended by pid; waiting is
for lines that the programs print, or by asking again.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

PATIENCE_S = 30.0
_T = TypeVar("_T")


def eventually(question: Callable[[], _T | None], what: str, patience_s: float = PATIENCE_S) -> _T:
    """Ask again until the answer is neither None nor False; for facts that nobody announces."""
    until = time.monotonic() + patience_s
    pause = threading.Event()
    while True:
        answer = question()
        if answer is not None and answer is not False:
            return answer
        assert time.monotonic() < until, f"in {patience_s} s this did not happen: {what}"
        pause.wait(0.02)


class Pool:
    """`kestrel up` in a scratch directory; use as a context manager."""

    def __init__(self, scratch: Path, *up_options: str) -> None:
        self.scratch = scratch
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("KESTREL_", "XDG_"))}
        self.env |= {
            "HOME": str(scratch / "home"),
            "XDG_DATA_HOME": str(scratch / "data"),
            "XDG_CONFIG_HOME": str(scratch / "config"),
            "COLUMNS": "200",
        }
        (scratch / "home").mkdir(exist_ok=True)
        self.processes: list[subprocess.Popen[str]] = []
        self.up_options = up_options or ("--port", "0")
        self.invitation = ""
        self.address: tuple[str, int] = ("", 0)

    def __enter__(self) -> Pool:
        self.up = self.spawn("up", "--json", *self.up_options, "-v")
        try:
            assert self.up.stdout is not None
            line = self.up.stdout.readline()
            assert line, f"kestrel up ended: {self.log_of(self.up)}"
            hello = json.loads(line)
        except BaseException:
            self.__exit__()
            raise
        self.invitation = hello["invitation"]
        self.address = (hello["host"], hello["port"])
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self.processes):
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()

    def log_path(self, number: int) -> Path:
        return self.scratch / f"process-{number}.log"

    def log_of(self, process: subprocess.Popen[str]) -> str:
        return self.log_path(self.processes.index(process)).read_text()

    def spawn(self, *words: str) -> subprocess.Popen[str]:
        """Start a `kestrel` command that stays."""
        with self.log_path(len(self.processes)).open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "kestrel", *words],
                env=self.env,
                cwd=self.scratch,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.processes.append(process)
        return process

    def run(self, *words: str, text: str = "") -> subprocess.CompletedProcess[str]:
        """Run a `kestrel` command to its end."""
        return subprocess.run(
            [sys.executable, "-m", "kestrel", *words],
            env=self.env,
            cwd=self.scratch,
            input=text,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def ask(self, *words: str) -> Any:
        """The JSON that a command prints; it must succeed."""
        done = self.run(*words, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def worker(self, name: str, *options: str) -> subprocess.Popen[str]:
        """Join one worker and wait until the pool shows it."""
        process = self.spawn("worker", "--join", self.invitation, "--name", name, "-v", *options)
        eventually(lambda: self.shows(name) or self._still_alive(process), f"worker {name} joins")
        return process

    def _still_alive(self, process: subprocess.Popen[str]) -> None:
        assert process.poll() is None, self.log_of(process)

    def shows(self, name: str) -> bool:
        """Whether the pool shows a worker whose address begins with this name."""
        return any(w["worker"].startswith(name) for w in self.ask("pool").get("workers", []))


def kill(process: subprocess.Popen[str]) -> None:
    """`kill -9`; returns when it is dead."""
    process.send_signal(signal.SIGKILL)
    process.wait()


def hold(process: subprocess.Popen[str]) -> None:
    """SIGSTOP: it stands still, and its connections stay open; `SIGCONT` lets it go on."""
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)


class Cluster(Pool):
    """`kestrel server run`, with managers as processes of their own; all fail and come back one by one."""

    def __init__(self, scratch: Path, *server_options: str) -> None:
        super().__init__(scratch)
        self.server_options = server_options
        self.hello: dict[str, Any] = {}
        self.server: subprocess.Popen[str]

    def __enter__(self) -> Cluster:
        try:
            self.start_server("--port", "0", "--component-port", "0")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            if process.poll() is None:  # what stands still could not end
                process.send_signal(signal.SIGCONT)
        super().__exit__()

    def start_server(self, *ports: str) -> None:
        """The server; again with the ports that it had."""
        if self.hello:
            ports = ("--port", str(self.hello["port"]), "--component-port", str(self.hello["component_port"]))
        self.server = self.spawn("server", "run", "--json", *ports, *self.server_options, "-v")
        self.hello = json.loads(self.line_of(self.server))
        self.invitation = self.hello["invitation"]
        self.address = (self.hello["host"], self.hello["port"])

    def manager(self, *options: str) -> subprocess.Popen[str]:
        """One more manager for the component, with `--json`; not waited for (`next_state` does)."""
        words = ("--component", self.hello["component"], "--secret-file", self.hello["secret_file"])
        return self.spawn(
            "manager", *words, "--port", str(self.hello["component_port"]), "--json", "-v", *options
        )

    def next_state(self, manager: subprocess.Popen[str]) -> dict[str, Any]:
        """What a manager says next of itself: `{"state": "standby" or "active", …}`."""
        state = json.loads(self.line_of(manager))
        assert isinstance(state, dict)
        return state

    def line_of(self, process: subprocess.Popen[str]) -> str:
        """The next line that it prints; fails with its log if it ends instead."""
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, f"it ended instead of printing something: {self.log_of(process)}"
        return line
