"""Workers on other servers: what is sent to them may be lost, and nobody hears of it.

Within one server a message is lost only with its recipient's session, and then the server says so. Between
two servers there is a connection of its own. If that breaks, what was under way is lost in silence, while
the worker stays where it is, answers the next ping by the next connection, and passes for one that has what
it was given. So a worker of another domain that was given something is asked once, when all has been quiet
for a lease, to introduce itself again: what it does not list was lost, and is given out anew.

It was heard within that time, or it would be lost; what was sent before had gone by then one way or the
other, because each connection between servers keeps the order. Only tasks that are given out in the moment
between question and answer are taken back for nothing. Called by the manager, its roster and its carrier.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from kestrel.core.addresses import parts_of
from kestrel.core.model import WorkerId
from kestrel.protocol import messages as m

if TYPE_CHECKING:
    from kestrel.manager.manager import Manager

log = logging.getLogger("kestrel.manager")


class FarWorkers:
    """Whom to ask, and when. Remembers workers that are in the pool, and no others."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        self._since: dict[WorkerId, float] = {}
        """When something was sent last that no introduction has confirmed yet; the longest ago first."""

    def sent(self, worker: WorkerId) -> None:
        """Something was sent to it that must not be lost."""
        if self._is_far(worker):
            self._since.pop(worker, None)
            self._since[worker] = self._manager.clock.now()

    def settled(self, worker: WorkerId) -> None:
        """It has introduced itself, or has gone."""
        self._since.pop(worker, None)

    def tick(self) -> None:
        """Ask those of whom it is time, so many at once."""
        settings, now = self._manager.settings, self._manager.clock.now()
        due = now - max(settings.far_quiet_s, settings.scheduler.lease_s)
        text = "something may have been lost between your server and the manager's"
        message = m.Error(code="unknown_worker", text=text, hint="send a profile")
        for worker in list(self._since)[: settings.recalls_per_tick_max]:
            if self._since[worker] > due:
                return
            log.debug("far_worker_asked", extra={"worker": worker})
            self._manager.send_worker(worker, message)
            self.sent(worker)  # and again, if there is no answer

    def _is_far(self, worker: WorkerId) -> bool:
        home = self._manager.access.home
        return bool(home) and worker in self._manager.workers and parts_of(worker).domain != home
