"""A private PostgreSQL server: own directory, own free port on loopback, started, frozen and killed by pid.

It runs as `postgres` (else `nobody`) when we are root, which it refuses to serve. Called by
`realpool.pool`, and by tests through `parts.postgres`; it must never touch a server that it did not start.
"""

from __future__ import annotations

import itertools
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from realpool.processes import state_of

READY_S_MAX = 60.0
STOP_S_MAX = 20.0
USER = "kestrel"
PASSWORD = "not-a-secret"

# Small and fast; whether it is durable is the maker's choice. No restart after a backend was killed would
# hide what a crash does, so that stays as it is by default.
CONFIG = """
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = ''
max_connections = {connections}
shared_buffers = 128MB
fsync = {fsync}
synchronous_commit = on
full_page_writes = on
wal_level = minimal
max_wal_senders = 0
max_wal_size = 4GB
autovacuum_naptime = 5min
log_min_messages = warning
log_line_prefix = '%m [%p] '
timezone = 'UTC'
lc_messages = 'C'
{extra}
"""

_databases = itertools.count(1)


def free_port() -> int:
    """A port on loopback that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def postgres_programs() -> Path | None:
    """Directory of the newest PostgreSQL's programs; Debian keeps them off the PATH."""
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/postgres"),
        key=lambda p: int(re.sub(r"\D", "", p.parts[4]) or 0),
    )
    if found:
        return found[-1].parent
    path = shutil.which("postgres")
    if path is not None and (Path(path).resolve().parent / "initdb").exists():
        return Path(path).resolve().parent
    return None


def _other_user() -> dict[str, Any]:
    """Arguments for `subprocess` to be somebody else than root."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    raise AssertionError("neither a user postgres nor nobody, and PostgreSQL does not run as root")


class PrivatePostgres:
    """`with PrivatePostgres() as server: server.database() …`.

    `fsync` may be off where nothing is killed or measured.
    """

    def __init__(
        self, *, fsync: bool = True, connections: int = 50, extra: str = "", place: str | None = None
    ) -> None:
        """Makes the cluster; `start` starts it."""
        programs = postgres_programs()
        assert programs is not None, "postgres is missing: apt-get install postgresql"
        self._programs = programs
        self._who = _other_user()
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        self.directory = Path(tempfile.mkdtemp(prefix="kestrel-postgres-", dir=place))
        self.data = self.directory / "data"
        try:
            self._make(
                CONFIG.format(port=self.port, fsync=str(fsync).lower(), connections=connections, extra=extra)
            )
        except BaseException:
            self.remove()
            raise

    def _make(self, config: str) -> None:
        secret = self.directory / "secret"
        secret.write_text(PASSWORD)
        if self._who:
            for path in (self.directory, secret):
                os.chown(path, self._who["user"], self._who["group"])
        self._run(
            "initdb", "-D", str(self.data), "-U", USER, "-A", "scram-sha-256", f"--pwfile={secret}",
            "--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions",
        )  # fmt: skip
        with (self.data / "postgresql.conf").open("a") as file:
            file.write(config)

    def _run(self, program: str, *words: str) -> None:
        done = subprocess.run(
            [self._programs / program, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self.directory,
            timeout=READY_S_MAX,
            check=False,
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
            **self._who,
        )
        assert done.returncode == 0, f"{program} failed:\n{done.stdout.decode(errors='replace')}"

    # --- what may be asked ----------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """Of the postmaster."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        path = self.directory / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def dsn(self, database: str = "postgres", *, user: str = USER, password: str = PASSWORD) -> str:
        return f"postgresql://{user}:{password}@127.0.0.1:{self.port}/{database}"

    def database(self) -> str:
        """DSN of a new, empty database."""
        name = f"test{next(_databases)}"
        self.execute(f"CREATE DATABASE {name}")
        return self.dsn(name)

    def execute(
        self, statement: str, dsn: str = "", values: tuple[object, ...] = ()
    ) -> list[tuple[Any, ...]]:
        """Run it in a session of its own → its rows."""
        import psycopg

        with psycopg.connect(dsn or self.dsn(), autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), values or None)
            return cursor.fetchall() if cursor.description else []

    # --- life and death -------------------------------------------------------------------------------

    def start(self) -> None:
        """Start it, again too, and wait until it answers."""
        assert self._process is None
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", str(self.data)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
                start_new_session=True,
                **self._who,
            )
        self._wait_until_ready()

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + READY_S_MAX
        pid_file = self.data / "postmaster.pid"
        while True:
            # The last line of postmaster.pid says it (pidfile.h: LOCK_FILE_LINE_PM_STATUS).
            with suppress(OSError, IndexError):
                lines = pid_file.read_text().splitlines()
                if int(lines[0]) == self._process.pid and lines[7].strip() == "ready":
                    return
            assert self._process.poll() is None, f"PostgreSQL ended:\n{self.log[-3000:]}"
            assert time.monotonic() < deadline, f"PostgreSQL does not answer:\n{self.log[-3000:]}"
            time.sleep(0.01)

    def stop(self, *, kill: bool = False) -> None:
        """End it (fast shutdown: sessions are cut off); `kill`: all its processes, as a crash."""
        process, self._process = self._process, None
        if process is None:
            return
        children = self._children(process.pid)
        if kill:
            for pid in (process.pid, *children):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        else:
            process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            for pid in (process.pid, *children):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()
        # Shared memory and port are free when the last child is gone.
        deadline = time.monotonic() + STOP_S_MAX
        while any(state_of(pid) not in ("", "Z", "X") for pid in children) and time.monotonic() < deadline:
            time.sleep(0.01)

    def kill(self) -> None:
        """`kill -9` of the postmaster and all its children; returns when all are gone."""
        self.stop(kill=True)

    def restart(self, *, kill: bool = False) -> None:
        self.stop(kill=kill)
        self.start()

    def hold(self) -> None:
        """SIGSTOP for the postmaster and all that it has started."""
        self._signal_all(signal.SIGSTOP)

    def go_on(self) -> None:
        """SIGCONT for all of them."""
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, number: signal.Signals) -> None:
        for pid in (self.pid, *self._children(self.pid)):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    @staticmethod
    def _children(pid: int) -> list[int]:
        with suppress(OSError):
            return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return []

    def remove(self) -> None:
        """End it, and remove all that it wrote."""
        if self._process is not None:
            self.go_on()
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> PrivatePostgres:
        try:
            self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()
