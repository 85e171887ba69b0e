"""docs/joining.md: its commands are run as they stand there, in order, on two machines."""

import os
import re
import subprocess
import sys
from pathlib import Path

from parts.pool import Pool, eventually

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "joining.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh (here|there|worker)\n(.*?)```", PAGE, re.DOTALL)


def test_the_page_can_be_followed_word_for_word(tmp_path):
    assert PAGE.count("```sh") == len(BLOCKS) >= 6
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with Pool(tmp_path) as pool:
        here = pool.env | {"PATH": programs, "USER": "ann", "LOGNAME": "ann"}
        there = here | {
            "XDG_CONFIG_HOME": str(tmp_path / "there"),
            "XDG_DATA_HOME": str(tmp_path / "there-data"),
        }
        for where, block in BLOCKS:
            if where == "worker":
                (command,) = block.splitlines()
                pool.spawn(*command.split()[1:])
                eventually(lambda: pool.ask("pool")["workers"], "the worker joins")
                continue
            done = subprocess.run(
                ["/bin/sh", "-ec", block],
                env=here if where == "here" else there,
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            assert done.returncode == 0, f"{block}\n{done.stdout}{done.stderr}"
        assert [each["account"] for each in pool.ask("account", "list") if each["role"] != "worker"] == [
            "admin"
        ]
        assert pool.ask("pool")["workers"], "who joined with a line that was revoked stays"
