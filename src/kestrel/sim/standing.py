"""Laws about the state between two events: machines are sound, books agree, everything is bounded.

Looks into the production shells, and compares what lives with what is stored. Called by the checkers every
few steps. Never changes anything.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from kestrel.core import events as ev
from kestrel.manager.jobs import terms_of
from kestrel.sim.laws import BrokenLawError
from kestrel.sim.rebuilding import differences

if TYPE_CHECKING:
    from kestrel.manager.manager import Manager
    from kestrel.sim.hosts import WorkerHost
    from kestrel.sim.world import World

REBUILD_PROBABILITY = 0.2
"""Share of the checks at which a second scheduler is built from the store."""


class Standing:
    """The judge of one world's present state."""

    def __init__(self, world: World) -> None:
        self._world = world

    def after_steps(self) -> None:
        """Judge now."""
        for worker in self._world.workers:
            if worker.agent is not None and not worker.clock.dead:
                self._check_worker(worker)
        for host in self._world.managers:
            if host.manager is not None and not host.manager._closed:
                self._check_manager(host.manager)

    def _check_manager(self, manager: Manager) -> None:
        manager.scheduler.check_invariants()
        self._check_bounds(manager)
        if manager._unit is None and not manager._inbox:
            self._check_books(manager)
        writes = manager.epoch == self._world.disk.store.epoch
        if writes and manager._unit is None and self._world.random.random() < REBUILD_PROBABILITY:
            self.compare_rebuilt(manager)
        if manager.counters["duplicates"]:
            raise BrokenLawError("recorded_twice", "the scheduler recorded a result for a task that had one")

    def _check_books(self, manager: Manager) -> None:
        """Shell and scheduler know the same workers, and the same of them as drained."""
        views = manager.scheduler.workers()
        if manager.workers.keys() != views.keys():
            names = sorted(manager.workers.keys() ^ views.keys())
            raise BrokenLawError("books_differ", f"only the shell or only the scheduler knows {names}")
        for name, view in views.items():
            if view.drained != manager.is_drained(name):
                raise BrokenLawError(
                    "books_differ", f"{name} is drained: {view.drained}, shell and core disagree"
                )

    def compare_rebuilt(self, manager: Manager) -> None:
        """A scheduler built from the store now knows all that the live one knows of what is stored."""
        content = self._world.disk.store.peek(terms_of)
        found = differences(manager.scheduler, manager.settings.scheduler, content, manager.clock.now())
        if content.drained != manager.roster.drained_by_user:
            drained = sorted(content.drained ^ manager.roster.drained_by_user)
            found.append(f"{drained} are drained only live, or only in the store")
        if found:
            raise BrokenLawError("rebuilt_differs", "; ".join(found[:5]))

    def _check_worker(self, worker: WorkerHost) -> None:
        agent, settings = worker.agent, worker.settings
        assert agent is not None
        assert worker.spool is not None
        execution = agent.execution
        execution.check()
        queued, kept = len(execution._queue), len(execution._reports.kept)
        in_hand = len(execution._running)
        ahead = execution.settings.handover_max + settings.slots
        if queued > settings.queued_max + ahead:
            raise BrokenLawError("unbounded", f"{worker.address} has {queued} attempts waiting")
        if kept > settings.finished_max + settings.queued_max + ahead or in_hand > ahead:
            raise BrokenLawError("unbounded", f"{worker.address} keeps {kept} reports and runs {in_hand}")
        missing = execution._reports.kept.keys() - worker.spool.kept.keys()
        if agent.keeper.failing:  # and it starts nothing meanwhile, which `execution.check` sees to
            missing -= agent.keeper._unwritten.keys()
        if missing:
            raise BrokenLawError(
                "not_spooled", f"{worker.address} has unacknowledged {sorted(missing)[:5]} in memory only"
            )

    def _check_bounds(self, manager: Manager) -> None:
        """Whatever waits in the manager is bounded by a setting."""
        settings = manager.settings
        waiters = [w for entry in manager.jobs.values() for w in entry.waiters]
        _bound("waiting messages", "", len(manager._inbox), settings.inbox_max)
        _bound("ticks", "", sum(isinstance(item, ev.TimePassed) for item in manager._inbox), 1)
        _bound("output requests", "", len(manager.requests.outputs._relays), settings.relays_max)
        _bound("waiting readers", "", len(waiters), settings.waiters_max)
        for job, entry in manager.jobs.items():
            _bound("watchers of job", job, len(entry.watchers), settings.watchers_per_job_max)
        # adopted ones and those that a lost assignment left behind come on top of what is assigned
        kept_there = max(self._world.settings.queued_max) + 2 * max(self._world.settings.finished_max)
        for name, view in manager.scheduler.workers().items():
            _bound("attempts of", name, view.in_hand, settings.scheduler.backlog_max + kept_there)
        asked = Counter((w.sender, w.request.id) for w in waiters)
        if asked and max(asked.values()) > 1:
            raise BrokenLawError("unbounded", "a repeated request waits twice, and will be answered twice")


def _bound(what: str, whose: object, count: int, most: int) -> None:
    if count > most:
        raise BrokenLawError("unbounded", f"{what} {whose}: {count}, allowed are {most}")
