"""An embedded server, managers that stand by for each other, and workers, all as `kestrel` processes.

Around one PostgreSQL, or around one SQLite file (then one manager). It starts parts, knows which manager
is active, and ends them; it never restarts anything by itself. Called by benchmarks and tests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from kestrel.config import PoolAccess
from realpool.postgres import PrivatePostgres, free_port
from realpool.processes import Hung, Process, until

READY_S_MAX = 30.0
NAME = "trial"
UP = "is up as"
WAITS = "Standing by"


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """What the pool consists of."""

    store: str = "postgres"
    """Or `sqlite`."""
    managers: int = 3
    workers: int = 8
    slots: int = 1
    lease: str = ""
    """As `kestrel manager --lease` takes it; empty: the default."""


class RealPool:
    """`with RealPool(scratch, plan) as pool: …`; `scratch` is an empty directory."""

    def __init__(self, scratch: Path, plan: PoolPlan, *, postgres: PrivatePostgres | None = None) -> None:
        """A running PostgreSQL may be handed over, to have a database made in it; it stays the caller's."""
        self.scratch = scratch
        self.plan = plan
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("KESTREL_", "XDG_"))}
        self.env |= {
            "HOME": str(scratch / "home"),
            "XDG_DATA_HOME": str(scratch / "data"),
            "XDG_CONFIG_HOME": str(scratch / "config"),
            "COLUMNS": "200",
        }
        self.work = scratch / "work"
        for each in (scratch / "home", self.work):
            each.mkdir(parents=True, exist_ok=True)
        self.port, self.component_port = free_port(), free_port()
        self.postgres = postgres
        self._own_postgres = plan.store == "postgres" and postgres is None
        self.place = str(scratch / "store.db")
        self.hello: dict[str, Any] = {}
        """What `kestrel server run` said of itself."""
        words = ["server", "run", "--pool", NAME, "--dir", str(scratch / "server")]
        words += ["--port", str(self.port), "--component-port", str(self.component_port), "--json", "-v"]
        self.server = self.process("server", *words)
        self.stubborn: list[str] = []
        """What did not end when it was asked to, and had to be killed."""
        self.managers: dict[str, Process] = {}
        self.workers: dict[str, Process] = {}

    def within(self, name: str) -> Sequence[str]:
        """Words before the command of this process (empty: a user's command), such as `ip netns exec X`."""
        return ()

    def process(self, name: str, *words: str) -> Process:
        """A `kestrel` command that stays, not yet started."""
        return Process(
            name,
            [*self.within(name), sys.executable, "-m", "kestrel", *words],
            env=self.env,
            directory=self.work,
            log=self.scratch / f"{name}.log",
        )

    def run(self, *words: str, patience_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run a `kestrel` command to its end."""
        return subprocess.run(
            [*self.within(""), sys.executable, "-m", "kestrel", *words],
            env=self.env,
            cwd=self.work,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=patience_s,
            check=False,
        )

    # --- its parts ------------------------------------------------------------------------------------

    def start(self) -> None:
        """All of it; returns when a manager is active, the others stand by, and all workers are seen."""
        self.start_store()
        self.start_server()
        for number in range(1, self.plan.managers + 1):
            self.start_manager(f"m{number}")
        for number in range(1, self.plan.workers + 1):
            self.start_worker(f"w{number}")
        self.wait_for_workers(self.plan.workers)

    def start_store(self) -> None:
        """PostgreSQL with a database, if the plan wants one."""
        if self.plan.store != "postgres":
            return
        if self.postgres is None:
            self.postgres = PrivatePostgres()
            self.postgres.start()
        self.place = self.postgres.database()

    def start_server(self) -> None:
        self.server.start()
        self.hello = json.loads(self.server.wait_for("{", READY_S_MAX).text)

    def manager_words(self) -> list[str]:
        """The command of each manager."""
        words = ["manager", *self.identity_words(), "--pool", NAME, "--store", self.place, "-v"]
        words += ["--standby"] if self.plan.store == "postgres" else []
        return words + (["--lease", self.plan.lease] if self.plan.lease else [])

    def identity_words(self) -> list[str]:
        """Who the manager is on the server."""
        words = ["--component", str(self.hello["component"])]
        words += ["--secret-file", str(self.hello["secret_file"])]
        return [*words, "--port", str(self.component_port)]

    def start_manager(self, name: str, *, words: list[str] | None = None) -> Process:
        """One more manager; returns when it is active or stands by."""
        manager = self.managers.get(name)
        if manager is None:
            manager = self.managers[name] = self.process(name, *(words or self.manager_words()))
        manager.start()

        def settled() -> bool:
            if not manager.running:
                raise Hung(f"{name} ended ({manager.exit_code})\n{manager.log()}")
            return any(manager.line(part, since=manager.started) for part in (UP, WAITS))

        until(settled, f"{name} is up or stands by", READY_S_MAX, seen=manager.log)
        return manager

    def start_worker(self, name: str) -> Process:
        """One more worker, or one that was there before; it joins by itself."""
        worker = self.workers.get(name)
        if worker is None:
            words = ["worker", *self.joining_words(name), "--slots", str(self.plan.slots), "-v"]
            words += ["--dir", str(self.scratch / "workers" / name), "--workdir", str(self.work)]
            worker = self.workers[name] = self.process(name, *words)
        worker.start()
        return worker

    def joining_words(self, name: str) -> list[str]:
        """With which a worker of this name reaches the pool."""
        return ["--join", str(self.hello["invitation"]), "--name", name]

    # --- what is known of it --------------------------------------------------------------------------

    @property
    def active(self) -> Process | None:
        """The manager that said last that it is up, if it lives."""
        said = [(line.at, m) for m in self.managers.values() if (line := m.line(UP, since=m.started))]
        if not said:
            return None
        manager = max(said, key=lambda pair: pair[0])[1]
        waits = manager.line(WAITS, since=manager.started)
        up = manager.line(UP, since=manager.started)
        assert up is not None
        return manager if manager.running and (waits is None or waits.at < up.at) else None

    @property
    def standbys(self) -> list[Process]:
        """Managers that live and wait."""
        return [m for m in self.managers.values() if m.running and m is not self.active]

    @property
    def pool_word(self) -> str:
        """What `--pool` must say: the path of an access file."""
        return str(self.scratch / "config" / "kestrel" / "pools" / f"{NAME}.json")

    @property
    def access(self) -> PoolAccess:
        """That of the administrator, for commands on this machine."""
        return PoolAccess.load(Path(self.pool_word))

    def seen_workers(self) -> int:
        """How many workers the manager sees; -1: it gave no answer."""
        done = self.run("pool", "--pool", self.pool_word, "--json")
        return len(json.loads(done.stdout).get("workers", [])) if done.returncode == 0 else -1

    def wait_for_workers(self, count: int) -> None:
        until(
            lambda: self.seen_workers() >= count,
            f"the manager sees {count} workers",
            2 * READY_S_MAX,
            seen=self.describe,
        )

    @property
    def processes(self) -> list[Process]:
        return [self.server, *self.managers.values(), *self.workers.values()]

    def describe(self) -> str:
        """State of every part, and the end of the logs of those that matter, for a report of what hangs."""
        lines = [process.describe() for process in self.processes]
        if self.postgres is not None:
            lines.append(f"postgres: {'runs' if self.postgres.running else 'is down'}")
        for process in (self.server, *self.managers.values()):
            lines += [f"--- log of {process.name}", process.log()]
        return "\n".join(lines)

    # --- the end --------------------------------------------------------------------------------------

    def end_workers_and_managers(self) -> None:
        """In order: workers leave, then managers; so nobody writes any more."""
        for group in (self.workers, self.managers):
            for process in group.values():
                process.ask_to_end()
            for process in group.values():
                self._end(process)

    def _end(self, process: Process) -> None:
        if not process.end():
            self.stubborn.append(f"{process.describe()}\n{process.log()}")

    def end(self) -> None:
        self.end_workers_and_managers()
        self._end(self.server)
        self.end_store()

    def end_store(self) -> None:
        """The database server, if it is ours."""
        if self._own_postgres and self.postgres is not None:
            self.postgres.remove()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.end()
        if self.stubborn and kind is None:
            raise Hung("these had to be killed:\n" + "\n".join(self.stubborn))
