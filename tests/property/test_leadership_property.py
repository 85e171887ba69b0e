"""Whatever stops, breaks or is slow: never do two managers act, and in the end one does."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from kestrel.manager.leadership import LeaseSettings
from kestrel.sim.clock import Timeline
from parts.leases import Candidate, Row

NAMES = 3
LEASE = LeaseSettings()

STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["stop", "go", "kill", "cut", "break", "mend", "deaf", "hear", "slow", "fast", "release", "wall"]
        ),
        st.integers(0, NAMES - 1),
        st.floats(0.0, 7.0),
    ),
    max_size=30,
)


class World:
    """Candidates on one row; a dead one is replaced by a new process with the same name."""

    def __init__(self) -> None:
        self.timeline = Timeline()
        self.row = Row()
        self.lives = 0
        self.all: list[Candidate] = []
        self.now = [self.born(i) for i in range(NAMES)]

    def born(self, i: int) -> Candidate:
        self.lives += 1
        candidate = Candidate(self.timeline, self.row, f"m{i}", LEASE, origin=37.0 * self.lives)
        taken = candidate.leadership.on_taken
        assert taken is not None

        def on_taken(epoch: int) -> None:
            taken(epoch)
            self.check_taken(candidate)

        candidate.leadership.on_taken = on_taken
        self.all.append(candidate)
        candidate.leadership.stand_by()
        return candidate

    def check_taken(self, new: Candidate) -> None:
        """Nobody else both acts and may write; who still acts was cut off by the database itself."""
        assert new.leadership.epoch <= self.row.epoch
        for other in self.all:
            if other is not new and other.acts():
                assert other.leadership.epoch < new.leadership.epoch
                assert other.line.was_cut, "only who was seen to be gone is replaced while it acts"

    def do(self, what: str, i: int) -> None:
        candidate = self.now[i]
        line = candidate.line
        match what:
            case "stop":
                candidate.clock.suspend()
            case "go":
                candidate.clock.resume()
            case "kill":
                candidate.kill()
                self.now[i] = self.born(i)
            case "cut":
                line.cut()
            case "break":
                line.broken = True
            case "mend":
                line.broken = False
            case "deaf":
                line.deaf = {"take", "renew"}
            case "hear":
                line.deaf = set()
            case "slow":
                line.delay_s, line.back_s = 2.0, 3.0
            case "fast":
                line.delay_s = line.back_s = 0.01
            case "wall":
                candidate.clock.wall_offset_s += 50.0
            case _:
                if not candidate.clock.suspended:
                    candidate.leadership.release()
                    self.now[i] = self.born(i)

    def step(self) -> None:
        self.timeline.step()
        acting = [c for c in self.all if c.acts()]
        latest = [c for c in acting if c.leadership.epoch == self.row.epoch]
        assert len(latest) <= 1
        for candidate in acting:
            if candidate not in latest:
                # Fenced, and not aware of it: bounded by its lease, and only after a cut or a release.
                assert candidate.line.was_cut
        for candidate in self.all:
            assert candidate.line.most_open <= 1

    def run(self, seconds: float) -> None:
        until = self.timeline.now + seconds
        self.timeline.call_later(seconds, lambda: None)
        while self.timeline.now < until:
            self.step()


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_at_most_one_acts_and_in_the_end_one_does(steps: list[tuple[str, int, float]]):
    world = World()
    for what, i, seconds in steps:
        world.do(what, i)
        world.run(seconds)
    for candidate in world.now:
        candidate.line.broken = False
        candidate.line.deaf = set()
        candidate.line.delay_s = candidate.line.back_s = 0.01
        candidate.clock.resume()
    world.run(10)
    for i, candidate in enumerate(world.now):
        if candidate.words("lost"):
            world.now[i] = world.born(i)
    world.run(20)
    assert [c.acts() for c in world.now].count(True) == 1
