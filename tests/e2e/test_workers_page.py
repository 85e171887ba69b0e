"""docs/workers.md: each command on the page is run as it stands there, and joins a real pool."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from parts.need import need_that
from parts.pool import Pool, eventually

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "workers.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    with Pool(tmp_path_factory.mktemp("page")) as made:
        yield made


def test_the_page_shows_commands() -> None:
    assert len(COMMANDS) >= 6
    assert all(command.startswith('kestrel worker --join "$LINE"') for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_joins_the_pool_and_leaves_with_ctrl_c(pool: Pool, command: str) -> None:
    if "--run-as" in command:
        need_that(os.geteuid() == 0, "only root can run tasks as another user")
    programs = str(Path(sys.executable).parent)
    env = pool.env | {"LINE": pool.invitation, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    with (pool.scratch / "page.log").open("w") as log:
        process = subprocess.Popen(
            ["/bin/sh", "-c", f"exec {command}"],
            env=env,
            cwd=pool.scratch,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
        )

    def problem() -> str:
        return (pool.scratch / "page.log").read_text()

    def joined() -> bool:
        assert process.poll() is None, problem()
        return bool(pool.ask("pool")["workers"])

    try:
        eventually(joined, command)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0, problem()
        assert problem() == "", "nothing to complain about"
    finally:
        process.kill()
        process.wait()
