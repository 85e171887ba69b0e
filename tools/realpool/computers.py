"""Computers of a `Network`: machines with a home directory, on which `kestrel` commands run.

They share the disk of this computer, so that tests can see what tasks did and tell them when to go on; they
share no network, and nothing of what commands keep in their homes. Called by tests and benchmarks.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from kestrel.config import PoolAccess
from realpool.live import LiveServer
from realpool.networks import Machine
from realpool.processes import Hung, Process

COMMAND_S_MAX = 60.0
READY_S_MAX = 30.0
END_S_MAX = 3.0
_OURS = ("KESTREL_", "XDG_")


class Computer:
    """A machine with a home."""

    def __init__(self, machine: Machine, scratch: Path) -> None:
        self.machine = machine
        self.name = machine.name
        self.home = scratch / machine.name
        self.work = self.home / "work"
        self.work.mkdir(parents=True)
        ours = {k: v for k, v in os.environ.items() if not k.startswith(_OURS)}
        # A proxy of this computer is none of theirs.
        self.env = {k: v for k, v in ours.items() if not k.lower().endswith("_proxy")}
        self.env |= {
            "HOME": str(self.home),
            "XDG_DATA_HOME": f"{self.home}/data",
            "XDG_CONFIG_HOME": f"{self.home}/config",
            "COLUMNS": "200",
        }
        self.processes: list[Process] = []
        machine.network.at_end(self.end)

    def words(self, *words: str) -> list[str]:
        """The command that runs `kestrel` with these words here."""
        return self.machine.words(sys.executable, "-m", "kestrel", *words)

    def start(self, name: str, *words: str) -> Process:
        """A `kestrel` command that stays."""
        log = self.home / f"{name}.log"
        process = Process(
            f"{name} on {self.name}", self.words(*words), env=self.env, directory=self.work, log=log
        )
        self.processes.append(process)
        process.start()
        return process

    def start_manager(self, server: LiveServer, *options: str) -> Process:
        """The manager of this server, as its component; returns when it is up."""
        words = ["manager", "--component", server.component, "--host", server.host]
        words += ["--port", str(server.component_port)]
        words += ["--secret-file", self.secret_file("component", server.secret)]
        manager = self.start("manager", *words, "-v", *options)
        manager.wait_for("is up as", READY_S_MAX)
        return manager

    def start_worker(self, access: PoolAccess, *options: str) -> Process:
        """A worker with this account, named after this computer."""
        words = ["worker", "--jid", f"{access.jid}/{self.name}", "--manager", access.manager]
        words += ["--password-file", self.secret_file("worker", access.password)]
        if access.host:
            words += ["--host", access.host, "--port", str(access.port)]
        words += ["--fingerprint", access.fingerprint] if access.fingerprint else []
        return self.start("worker", *words, "-v", *options)

    def use(self, access: PoolAccess) -> None:
        """With which its commands reach their pool."""
        access.save(self.home / "config" / "kestrel" / "pools" / "default.json")

    def run(self, *words: str, text: str = "") -> subprocess.CompletedProcess[str]:
        """A `kestrel` command to its end, with `text` as its standard input."""
        return subprocess.run(
            self.words(*words),
            env=self.env,
            cwd=self.work,
            input=text,
            capture_output=True,
            text=True,
            timeout=COMMAND_S_MAX,
            check=False,
        )

    def say(self, *words: str, text: str = "") -> str:
        """What a `kestrel` command prints. Raises `Hung` with its words if it fails."""
        done = self.run(*words, text=text)
        if done.returncode != 0:
            raise Hung(f"`kestrel {' '.join(words)}` on {self.name} failed:\n{done.stderr}")
        return done.stdout

    def ask(self, *words: str) -> Any:
        """The JSON that a `kestrel` command prints."""
        return json.loads(self.say(words[0], "--json", *words[1:]))

    def secret_file(self, name: str, secret: str) -> str:
        """A file with a secret."""
        path = self.home / f"{name}.secret"
        path.write_text(f"{secret}\n")
        path.chmod(0o600)
        return str(path)

    def end(self) -> None:
        """End what runs here; what is not soon gone (a worker whose tasks still run) is killed."""
        for process in self.processes:
            process.ask_to_end()
        for process in self.processes:
            process.end(END_S_MAX)
