"""Two hundred histories of the whole system with faults: every law holds in each of them.

A seed that fails here is replayed with `python -m kestrel.sim --seed N --verbose`, and what it found
becomes a named scenario in `test_sim_scenarios.py`.
"""

from __future__ import annotations

import pytest

from kestrel.sim.world import run_seed

CHUNK = 10


@pytest.mark.parametrize("first", range(1, 201, CHUNK))
def test_every_law_holds_in_these_histories(first: int) -> None:
    for seed in range(first, first + CHUNK):
        outcome = run_seed(seed)
        assert outcome.ok, outcome.story()


def test_the_histories_are_full_of_faults_and_of_work() -> None:
    """Judges that see nothing happen would say nothing, too."""
    worlds = [run_seed(seed).world for seed in range(1, 41)]
    struck = {kind for world in worlds for kind in world.faults.struck}
    states = {result.state for w in worlds for user in w.users for plan in user.plans for result in plan.seen}
    managers = [world.manager.manager for world in worlds]
    assert len(struck) == 13
    assert states == {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}
    assert sum(len(world.ledger.runs) for world in worlds) > 1000
    assert any(m is not None and m.scheduler.strays().late for m in managers)
    assert any(m is not None and m.epoch > 3 for m in managers)
