"""A history is its seed: the same on every interpreter, whatever its hash seed, and by the command too."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from kestrel.sim.world import run_seed

SEED = "11"
STANDBYS = "4"
"""A seed whose managers stand by for each other."""


def simulate(*arguments: str, hash_seed: str = "0") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kestrel.sim", *arguments],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.parametrize("seed", [SEED, STANDBYS])
def test_the_log_does_not_depend_on_the_hash_seed(seed: str) -> None:
    runs = [simulate("--seed", seed, "--digest", hash_seed=h) for h in ("1", "2")]
    digests = [run.stdout.splitlines()[0] for run in runs]
    world = run_seed(int(seed)).world
    assert digests[0] == digests[1] == world.trace.digest()
    assert (len(world.managers) > 1) == (seed == STANDBYS)


def test_other_seeds_are_other_histories() -> None:
    assert run_seed(1).world.trace.digest() != run_seed(2).world.trace.digest()


def test_a_seed_is_replayed_with_its_log() -> None:
    run = simulate("--seed", SEED, "--verbose")
    lines = run.stdout.splitlines()
    assert run.returncode == 0
    assert lines[-1].startswith(f"seed {SEED}: ok")
    assert any('{"type":"welcome"' in line for line in lines)


def test_many_seeds_are_tried() -> None:
    run = simulate("--seeds", "1-3")
    assert run.returncode == 0
    assert run.stdout.splitlines()[-1] == "all passed"


def test_a_wrong_range_is_explained() -> None:
    run = simulate("--seeds", "a-b")
    assert run.returncode == 2
    assert "write it like 1-200" in run.stderr
