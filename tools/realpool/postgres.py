"""A private PostgreSQL server: own directory, free port, no password on loopback, ended by pid.

It runs as `nobody` when we are root, which it refuses to serve, and is as durable as by default (fsync
on). Called by `realpool.pool` and by tests; the one thing it must never do is to touch a server that it
did not start.
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from realpool.processes import Hung, send, state_of, tree, until

READY_S_MAX = 30.0
END_S_MAX = 15.0


def postgres_program(name: str) -> str | None:
    """Path of a program of PostgreSQL; Debian keeps most of them off the PATH."""
    kept = sorted(glob.glob(f"/usr/lib/postgresql/*/bin/{name}"), reverse=True)
    return kept[0] if kept else shutil.which(name)


def free_port() -> int:
    """A port on loopback that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class PrivatePostgres:
    """`with PrivatePostgres() as server: server.dsn("pool") …`"""

    def __init__(self, *options: str) -> None:
        """`options`: settings of the server, as `name=value`."""
        self.port = free_port()
        self.directory = Path(tempfile.mkdtemp(prefix="kestrel-postgres-"))
        self.stopped: list[int] = []
        """Pids that are held by SIGSTOP."""
        self._options = options
        self._who: dict[str, Any] = {}
        if os.geteuid() == 0:
            self._who = {"user": "nobody", "group": "nogroup", "extra_groups": []}
        self._process: subprocess.Popen[bytes] | None = None

    def dsn(self, database: str = "postgres") -> str:
        """For libpq."""
        return f"postgresql://kestrel@127.0.0.1:{self.port}/{database}"

    def create(self) -> None:
        """Make the directory of an empty cluster."""
        if self._who:
            shutil.chown(self.directory, "nobody", "nogroup")
        words = ["initdb", "-D", str(self.directory / "data"), "-U", "kestrel", "-A", "trust"]
        self._call(*words, "-E", "UTF8", "--locale=C", "--no-sync")

    def create_database(self, name: str) -> str:
        """One more database; returns its DSN."""
        self._call("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "kestrel", name)
        return self.dsn(name)

    def _call(self, program: str, *words: str) -> None:
        path = postgres_program(program)
        assert path is not None, f"{program} is missing: apt-get install postgresql"
        done = subprocess.run(
            [path, *words], cwd=self.directory, capture_output=True, text=True, check=False, **self._who
        )
        if done.returncode:
            raise Hung(f"{program} failed ({done.returncode}): {done.stdout}{done.stderr}")

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.launch()
        until(self.ready, "PostgreSQL answers", READY_S_MAX, seen=self.log)

    def launch(self) -> None:
        """Start it."""
        program = postgres_program("postgres")
        assert program is not None, "postgres is missing: apt-get install postgresql"
        words = [program, "-D", str(self.directory / "data"), "-p", str(self.port), "-k", ""]
        words += ["-c", "listen_addresses=127.0.0.1"]
        for option in self._options:
            words += ["-c", option]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                words,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **self._who,
            )

    def ready(self) -> bool:
        """Whether it answers; a server that could not start is started again."""
        if not self.running:  # e.g. a child of the one that was killed still had the shared memory
            self.launch()
            return False
        program = postgres_program("pg_isready")
        assert program is not None
        words = [program, "-q", "-h", "127.0.0.1", "-p", str(self.port), "-t", "1"]
        return subprocess.run(words, check=False).returncode == 0

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def log(self) -> str:
        """The end of what it has logged."""
        path = self.directory / "log"
        return path.read_text(errors="replace")[-3000:] if path.exists() else ""

    # --- what may happen to it ------------------------------------------------------------------------

    def kill(self) -> None:
        """`kill -9` of the postmaster and all its children; returns when all are gone."""
        assert self._process is not None
        self.stopped = []
        pids = tree(self._process.pid)
        for pid in pids:
            send(pid, signal.SIGKILL)
        self._process.wait()
        until(
            lambda: not any(state_of(pid) not in ("", "Z") for pid in pids),
            "all processes of PostgreSQL are gone",
            END_S_MAX,
        )

    def hold(self) -> None:
        """SIGSTOP for all of it."""
        self.stopped = []
        for pid in tree(self.pid):
            send(pid, signal.SIGSTOP)
            self.stopped.append(pid)

    def go_on(self) -> None:
        """SIGCONT for all that was held."""
        for pid in reversed(self.stopped):
            send(pid, signal.SIGCONT)
        self.stopped = []

    def restart(self) -> None:
        """End it at once, cutting all connections in order (`fast`), and start it again."""
        self.stop()
        self.start()

    def stop(self) -> None:
        """End it (mode `fast`)."""
        process, self._process = self._process, None
        if process is None:
            return
        self.go_on()
        send(process.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_S_MAX)
            return
        for pid in tree(process.pid):
            send(pid, signal.SIGKILL)
        process.wait()

    def remove(self) -> None:
        """End it and remove its directory."""
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> PrivatePostgres:
        try:
            self.create()
            self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()
