"""The chaos of `make chaos` in small: a few thousand tasks, a strike every two seconds, zeros at the end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from parts.postgres import need_postgres

CHAOS = Path(__file__).resolve().parents[2] / "benchmarks" / "chaos"
LIMIT_S = 110


@pytest.mark.parametrize("store", ["postgres", "sqlite"])
def test_nothing_is_lost_or_recorded_twice_while_everything_is_struck(store: str):
    if store == "postgres":
        need_postgres()
    words = ["--tasks", "3000", "--jobs", "4", "--slow-every", "25", "--slow-s", "0.5", "--calm", "0"]
    words += ["--store", store, "--lease", "2s"] if store == "postgres" else ["--store", store]
    words += ["--every", "1.8", "--long-stop", "3", "--workers", "4", "--limit", str(LIMIT_S - 20)]
    env = {k: v for k, v in os.environ.items() if not k.startswith("KESTREL_")}
    done = subprocess.run(
        [sys.executable, str(CHAOS), *words],
        env=env,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    shown = done.stdout + done.stderr
    assert done.returncode == 0, shown
    assert "| **tasks lost** | **0** |" in shown
    assert "| **recorded twice** | **0** |" in shown
    assert "| kill worker |" in shown, f"nothing was struck:\n{shown}"
    assert "| kill active |" in shown or "| stop active |" in shown, f"no manager was struck:\n{shown}"
