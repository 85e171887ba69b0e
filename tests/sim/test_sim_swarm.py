"""Many seeds in many processes: verdicts in order, failing ones named with the command to replay them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from itertools import count

from kestrel.sim.swarm import play_all, verdict_of
from kestrel.sim.world import World, play, run_seed


def test_verdicts_come_in_order_and_are_those_of_the_seeds() -> None:
    verdicts = list(play_all(range(5, 20), jobs=2))
    assert [v.seed for v in verdicts] == list(range(5, 20))
    assert verdicts[3] == verdict_of(run_seed(8))


def test_an_endless_line_of_seeds_can_be_left() -> None:
    verdicts = play_all(count(1), jobs=2)
    assert [next(verdicts).seed for _ in range(3)] == [1, 2, 3]
    verdicts.close()


def test_a_failing_seed_tells_its_story_and_how_to_replay_it() -> None:
    world = World(1)
    world.timeline.call_later(5.0, lambda: 1 // 0)
    verdict = verdict_of(play(world))
    assert not verdict.ok
    assert verdict.head.startswith("seed 1: ZeroDivisionError")
    assert len(verdict.story.splitlines()) > 20
    assert verdict.replay == "python -m kestrel.sim --seed 1 --verbose"


def test_a_soak_plays_until_it_is_interrupted_and_sums_up() -> None:
    soak = subprocess.Popen(
        [sys.executable, "-u", "-m", "kestrel.sim", "--soak", "--from", "1", "--jobs", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "0"},
    )
    assert soak.stdout is not None
    head = soak.stdout.readline()
    soak.send_signal(signal.SIGINT)
    rest, errors = soak.communicate(timeout=60)
    assert head.startswith("seeds from 1 on")
    assert rest.splitlines()[0] == "stopped"
    assert rest.splitlines()[-1] == "all passed"
    assert (soak.returncode, errors) == (0, "")
