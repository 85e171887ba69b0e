"""docs/servers is followed word for word, in an empty home; and each line of the configurations is explained.

What is in `sh` blocks is run, in order, in one shell. Only the numbers of ports are changed. Blocks for root
(`console`) are not run.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from kestrel.local.foreign import ServerPlan, ejabberd_yml, prosody_cfg
from parts.need import need
from realpool.live import answers
from realpool.postgres import free_port
from realpool.processes import Hung, send, until

PAGES = Path(__file__).resolve().parents[2] / "docs" / "servers"
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PORT = re.compile(r"^(\w*PORT)=\d+$", re.MULTILINE)
PATIENCE_S = 120.0
END_S = 30.0
KINDS = pytest.mark.parametrize("kind", ["prosody", "ejabberd"])
PROGRAMS = {"prosody": ("prosody", "prosodyctl"), "ejabberd": ("ejabberdctl", "erl")}


def commands_of(page: str) -> tuple[str, list[int]]:
    """One script of all blocks, with ports that are free; and these."""
    ports: list[int] = []

    def other(match: re.Match[str]) -> str:
        ports.append(free_port())
        return f"{match[1]}={ports[-1]}"

    return PORT.sub(other, "\n".join(BLOCK.findall(page))), ports


def processes_in(directory: Path) -> list[int]:
    """Those that were started there and still run."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                where = os.readlink(f"/proc/{entry}/cwd")
            except OSError:
                continue
            if where.startswith(str(directory)):
                found.append(int(entry))
    return found


@KINDS
def test_who_follows_the_page_has_a_pool(kind: str, tmp_path: Path):
    for program in PROGRAMS[kind]:
        need(program)
    script, ports = commands_of((PAGES / f"{kind}.md").read_text(encoding="utf-8"))
    assert len(ports) == 4
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("KESTREL_", "XDG_"))}
    path = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", ""), "/usr/sbin"])
    home = tmp_path / "home"
    home.mkdir()
    with subprocess.Popen(
        ["bash", "-eu", "-c", script],
        env=kept | {"HOME": str(home), "PATH": path, "COLUMNS": "200"},
        cwd=home,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as shell:
        try:
            said, _ = shell.communicate(timeout=PATIENCE_S)
            with suppress(Hung):  # what a server had started may end a moment after it
                until(lambda: not processes_in(tmp_path), "all have ended", END_S)
        finally:
            shell.kill()
            left = processes_in(tmp_path)
            for pid in left:
                send(pid, signal.SIGKILL)
    logs = "\n".join(f"--- {each}\n{each.read_text()[-2000:]}" for each in home.glob("*/*.out"))
    assert shell.returncode == 0, said + logs
    assert not left, f"these were left behind: {left}\n{said}{logs}"
    assert "hello from task 9" in said, said + logs
    for worker in ("worker@localhost/one", "worker@localhost/two"):
        assert worker in said, said + logs
    until(lambda: not any(map(answers, ports)), "the ports are closed", END_S)


@KINDS
@pytest.mark.parametrize("listen", ["127.0.0.1", "0.0.0.0"])
def test_each_setting_is_explained_on_the_page(kind: str, listen: str):
    plan = ServerPlan(
        domain="localhost",
        component="kestrel.localhost",
        secret="hush",
        data="/data",
        logs="/logs",
        certificate="/c.pem",
        key="/k.pem",
        pidfile="/pid",
        listen=listen,
        as_root=True,
    )
    text = prosody_cfg(plan) if kind == "prosody" else ejabberd_yml(plan)
    text = re.sub(r"(--|#) .*$", "", text, flags=re.MULTILINE)
    names = re.findall(
        r"^ *([a-z_0-9]+) = " if kind == "prosody" else r"^[ -]*([a-z_0-9]+):", text, re.MULTILINE
    )
    assert len(names) > 20
    page = (PAGES / f"{kind}.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"`([a-z_0-9]+)`", page))
    assert {*names} - explained <= {"info"}
