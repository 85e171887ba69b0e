"""Two thousand histories of the whole system with faults: every law holds in each of them.

A seed that fails here is replayed with the command that the failure names, and what it found becomes a
named scenario in `test_sim_scenarios.py`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest

from kestrel.sim.faults import Fault
from kestrel.sim.swarm import Verdict, play_all

pytestmark = pytest.mark.timeout(600)
"""Other files of tests take their share of the machine meanwhile."""
SEEDS = 2000
CHUNK = 100


class Histories:
    """Verdicts as they come; the processes begin with the first test that asks."""

    def __init__(self) -> None:
        self._coming: Generator[Verdict, None, None] | None = None
        self.come: list[Verdict] = []

    def until(self, seed: int) -> list[Verdict]:
        """All verdicts up to that seed."""
        if self._coming is None:
            self._coming = play_all(range(1, SEEDS + 1))
        while len(self.come) < seed:
            self.come.append(next(self._coming))
        return self.come[:seed]

    def close(self) -> None:
        if self._coming is not None:
            self._coming.close()


@pytest.fixture(scope="module")
def histories() -> Iterator[Histories]:
    found = Histories()
    yield found
    found.close()


@pytest.mark.parametrize("first", range(1, SEEDS + 1, CHUNK))
def test_every_law_holds_in_these_histories(histories: Histories, first: int) -> None:
    verdicts = histories.until(first + CHUNK - 1)[first - 1 :]
    assert [v.seed for v in verdicts] == list(range(first, first + CHUNK))
    failed = [f"{v.story}\nreplay: {v.replay}" for v in verdicts if not v.ok]
    assert not failed, "\n\n".join(failed)


def test_the_histories_are_full_of_faults_and_of_work(histories: Histories) -> None:
    """Judges that see nothing happen would say nothing, too."""
    verdicts = histories.until(100)
    struck = {kind for v in verdicts for kind in v.struck}
    states = {state for v in verdicts for state in v.states}
    assert struck == {fault.value for fault in Fault}
    assert states == {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}
    assert sum(v.runs for v in verdicts) > 2500
    assert any(v.late for v in verdicts)
    assert any(v.lives > 3 for v in verdicts)
