"""Wishes of a simulated world: jobs that name their workers, owners who choose users. Drawn, and judged.

Drawn from a source of their own, so that the rest of a history stays what it was. The first worker takes
everybody's jobs and every list of patterns means it, or a job might have nobody and never end. Called by the
world, the workers' machines and the checkers.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING

import msgspec

from kestrel.core.addresses import Pattern, matching, parts_of
from kestrel.protocol import messages as m
from kestrel.sim.laws import BrokenLawError
from kestrel.sim.ledger import Run

if TYPE_CHECKING:
    from kestrel.sim.hosts import ManagerHost
    from kestrel.sim.world import World

LAW = "wish_ignored"
USER_LISTS = (
    ("user0@example",),
    ("user1@example", "*@elsewhere"),
    ("user?@example",),
    ("nobody@example",),
)
RESTRICTED_SHARE = 0.3
NAMING_SHARE = 0.3
LATE_S = 5.0
"""What was decided before a worker's profile came is stored and sent within this, at the latest."""

_decoder = msgspec.json.Decoder(m.Job)


class Wishes:
    """What users and owners of one world wish."""

    def __init__(self, seed: int) -> None:
        self._random = Random(f"wishes of {seed}")

    def users(self, number: int) -> list[str]:
        """Whose jobs a worker takes in its next life; empty: everybody's."""
        if number == 0 or self._random.random() >= RESTRICTED_SHARE:
            return []
        return list(self._random.choice(USER_LISTS))

    def workers(self, addresses: Sequence[str]) -> list[str]:
        """Patterns of a job; empty: it names nobody. The first address is always meant."""
        if self._random.random() >= NAMING_SHARE:
            return []
        user, domain, resource = parts_of(addresses[0])
        first = self._random.choice((addresses[0], f"{user}@{domain}", f"*/{resource}"))
        another = self._random.choice((*addresses, "worker?@example", "nobody@nowhere"))
        return self._random.choice(([first], [first, another], ["worker*@example"], [domain]))


class WishJudge:
    """Whether managers give, and workers run, only what jobs and owners wish."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._hosts = {worker.address: worker for worker in world.workers}
        self._jobs: dict[int, tuple[str, tuple[Pattern, ...]]] = {}
        """User and patterns of each job that was given to anybody."""
        self._job_of: dict[int, int] = {}
        """Of each attempt that was given."""
        self._unwelcome: dict[tuple[str, int, int], float] = {}
        """When a worker, in one of its sessions with a life of the manager, was first given what it does not
        take: that may have been decided before it said so."""

    def gives(self, host: ManagerHost, worker: str, tasks: m.Tasks) -> None:
        """A manager sends tasks to a worker at this instant."""
        assert host.manager is not None
        for i in range(len(tasks.tasks)):
            self._job_of[tasks.attempt + i] = tasks.job
        user, patterns = self._job(tasks.job)
        if patterns and not matching(patterns, worker):
            named = ", ".join(map(str, patterns))
            raise BrokenLawError(LAW, f"job {tasks.job} names {named}, but is given to {worker}")
        entry = host.manager.workers[worker]
        users = tuple(map(Pattern.parse, entry.profile.users))
        if users and not matching(users, user):
            now = self._world.timeline.now
            since = self._unwelcome.setdefault((worker, host.manager.epoch, entry.session), now)
            if now - since > LATE_S:
                raise BrokenLawError(
                    LAW, f"{worker} is given job {tasks.job} of {user}, whom it does not take"
                )

    def starts(self, run: Run) -> None:
        """A run begins."""
        worker, job = self._hosts.get(run.host), self._job_of.get(run.attempt)
        if worker is None or job is None:
            return  # an attempt that nobody gave: other judges see to that
        user, patterns = self._job(job)
        if patterns and not matching(patterns, run.host):
            raise BrokenLawError(LAW, f"{run.host} runs job {job}, which does not name it")
        if worker.settings.owner.refuses(user):
            raise BrokenLawError(LAW, f"{run.host} runs job {job} of {user}, whom its owner does not take")

    def _job(self, number: int) -> tuple[str, tuple[Pattern, ...]]:
        found = self._jobs.get(number)
        if found is None:
            record = self._world.disk.store.record(number)
            assert record is not None, "given before it was stored: law 1 sees to that"
            patterns = tuple(map(Pattern.parse, _decoder.decode(record.message).workers))
            found = self._jobs[number] = record.user, patterns
        return found
