"""What simulated tasks do: how long they run, and how they end. Chosen by seed, known by name.

A task's command is `task NAME INDEX`; the launcher looks its behaviour up here. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

NOT_FOUND = 127


@dataclass(frozen=True, slots=True)
class Behaviour:
    """One task. `exit_codes[i]` is how its i-th finished run ends; the last one holds for all later runs."""

    seconds: float
    exit_codes: tuple[int, ...] = (0,)
    kills_worker: int = 0
    """So many runs of it take their whole worker down."""

    def exit_code(self, finished_runs: int) -> int:
        return self.exit_codes[min(finished_runs, len(self.exit_codes) - 1)]


@dataclass(frozen=True, slots=True)
class ScriptMix:
    """Shares of the kinds of tasks in one script."""

    seconds: float = 0.2
    """Typical duration."""
    slow: float = 0.0
    failing: float = 0.0
    """Fail a few times, then succeed."""
    hopeless: float = 0.0
    """Fail always."""
    poisonous: float = 0.0
    missing: float = 0.0
    """Their command does not exist."""


@dataclass(slots=True)
class Scripts:
    """All scripts of a world by name."""

    random: Random
    behaviours: dict[tuple[str, int], Behaviour] = field(default_factory=dict)

    def write(self, name: str, size: int, mix: ScriptMix) -> None:
        """Decide what `size` tasks of a script do."""
        for index in range(size):
            self.behaviours[(name, index)] = self._behaviour(mix)

    def _behaviour(self, mix: ScriptMix) -> Behaviour:
        random = self.random
        seconds = random.uniform(0.2, 1.8) * mix.seconds
        if random.random() < mix.slow:
            seconds *= 20
        chance = random.random()
        if chance < mix.failing:
            return Behaviour(seconds, (1,) * random.randint(1, 3) + (0,))
        chance -= mix.failing
        if chance < mix.hopeless:
            return Behaviour(seconds, (random.randint(1, 100),))
        chance -= mix.hopeless
        if chance < mix.poisonous:
            return Behaviour(seconds, kills_worker=random.choice((1, 2, 1000)))
        chance -= mix.poisonous
        if chance < mix.missing:
            return Behaviour(0.0, (NOT_FOUND,))
        return Behaviour(seconds)

    def behaviour(self, name: str, index: int) -> Behaviour:
        """What this task does; raises KeyError for tasks that nobody wrote, which is a bug in the system."""
        return self.behaviours[(name, index)]
