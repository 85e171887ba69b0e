"""Laws about managers that follow each other: one voice, one writer, numbers that are never used twice.

* `fenced_write`: once a manager has taken the lease, nothing of an older epoch is stored.
* `lapsed_tells`: a manager that has lapsed sends no message and says no word.
* `two_voices`: whose place was taken because its lease had run out, or was given back, sends nothing from
  that instant on. Only where an orphaned lease was taken (the database had lost its holder's session, as when
  the holder was killed) may a holder that lives after all go on until it would lapse; and one whose machine
  slept, for it does not know that time passed. What these say is not heeded, which is the next law.
* `stale_run`: a worker runs nothing of what it was given by an older manager than the one that welcomed it.
* `attempt_reused`: no two tasks, workers or managers ever get the same attempt id, and it names its epoch.
* `drained_given`: who was drained, and the user was told so, is given nothing by this manager or a later one.
* `counted_twice`: no more failures of a task are stored than attempts of it really failed, and it is
  `failed_early` if it is recorded as failed before it failed once more than it may be tried again.

Called by the checkers at the instant of what they judge. Never changes anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from kestrel.core import effects as fx
from kestrel.core.model import ATTEMPTS_PER_EPOCH_BITS, TaskState
from kestrel.ports import AddJob, LeaseView, Write
from kestrel.protocol import codec
from kestrel.protocol import messages as m
from kestrel.sim.laws import BrokenLawError
from kestrel.sim.ledger import Run

if TYPE_CHECKING:
    from kestrel.sim.hosts import ManagerHost
    from kestrel.sim.user import JobPlan
    from kestrel.sim.world import World

_TASKS = b'{"type":"tasks"'


@dataclass(frozen=True, slots=True)
class Take:
    """A change of the lease, as it was justified at that instant."""

    epoch: int
    at: float
    host: str
    orphaned: bool
    """The database had lost the session of a holder that had not given the lease back."""


class Reigns:
    """What is known of all managers of one world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.takes: dict[int, Take] = {}
        self._given: dict[int, tuple[str, int, int]] = {}
        """Of each attempt: worker, job, task."""
        self._stale: dict[str, set[int]] = {}
        """Attempts that reached a worker too late."""
        self._drained: dict[str, int] = {}
        """Workers that are drained, and the epoch of the manager that said so first."""
        self._plans: dict[int, JobPlan] = {}
        """By number of the stored job."""

    # --- one writer ---------------------------------------------------------------------------------

    def took(self, host: ManagerHost, epoch: int, seen: LeaseView) -> None:
        """A manager takes the lease at this instant."""
        orphaned = bool(seen.holder) and not seen.connected
        self.takes[epoch] = Take(epoch, self._world.timeline.now, host.name, orphaned)

    def stored(self, epoch: int, writes: Sequence[Write]) -> None:
        """A unit was stored at this instant."""
        current = self._world.disk.store.epoch
        if epoch != current:
            raise BrokenLawError("fenced_write", f"a unit of epoch {epoch} was stored in epoch {current}")
        for write in writes:
            if isinstance(write, AddJob):
                self._plans[write.record.job] = self._plan(write)
            elif isinstance(write, fx.RecordTrouble):
                self._check_failures(write.job, write.task, write.failures)
            elif isinstance(write, fx.RecordResult) and write.state in (TaskState.FAILED, TaskState.TIMEOUT):
                self._check_tries(write.job, write.task)

    def _plan(self, write: AddJob) -> JobPlan:
        record = write.record
        mine = [p for user in self._world.users for p in user.plans if user.bare == record.user]
        name = msgspec.json.decode(record.message)["name"] if not record.submission else ""
        return next(p for p in mine if name == p.script or p.message.id == record.submission)

    def _check_failures(self, job: int, task: int, failures: int) -> None:
        failed = self._world.ledger.failing((self._plans[job].script, task))
        if failures > failed:
            raise BrokenLawError(
                "counted_twice", f"task {job}_{task} failed {failed} times, stored are {failures} failures"
            )

    def _check_tries(self, job: int, task: int) -> None:
        plan = self._plans[job]
        failed = self._world.ledger.failing((plan.script, task))
        if plan.cancel_after_s is None and failed <= plan.message.retries:
            raise BrokenLawError(
                "failed_early",
                f"task {job}_{task} is recorded as failed, but failed {failed} times of "
                f"{plan.message.retries + 1}",
            )

    # --- one voice ----------------------------------------------------------------------------------

    def speaks(self, host: ManagerHost, to: str, payload: bytes) -> None:
        """A manager sends a message, or says a word, at this instant."""
        manager = host.manager
        if manager is None or host.leadership is None:
            return  # alone on its store
        epoch = manager.epoch
        if host.lapsed():
            raise BrokenLawError(
                "lapsed_tells", f"{host.name}, epoch {epoch}, has lapsed and tells {to} {payload[:80]!r}"
            )
        successor = self.takes.get(epoch + 1)
        if successor is not None and not successor.orphaned and not host.clock.slept_s:
            raise BrokenLawError(
                "two_voices",
                f"{host.name}, epoch {epoch}, tells {to} {payload[:80]!r}, but {successor.host} has taken "
                f"over {self._world.timeline.now - successor.at:.3f} s ago",
            )

    # --- attempts -----------------------------------------------------------------------------------

    def gives(self, host: ManagerHost, worker: str, tasks: m.Tasks) -> None:
        """A manager sends tasks to a worker at this instant."""
        assert host.manager is not None
        epoch = host.manager.epoch
        if tasks.attempt >> ATTEMPTS_PER_EPOCH_BITS != epoch:
            raise BrokenLawError(
                "attempt_reused", f"attempt {tasks.attempt} was given by the manager of epoch {epoch}"
            )
        for i, task in enumerate(tasks.tasks):
            attempt = tasks.attempt + i
            before = self._given.setdefault(attempt, (worker, tasks.job, task))
            if before != (worker, tasks.job, task):
                raise BrokenLawError(
                    "attempt_reused",
                    f"attempt {attempt} is {tasks.job}_{task} for {worker}, and was {before} before",
                )
        since = self._drained.get(worker)
        if since is not None and since <= epoch:
            raise BrokenLawError(
                "drained_given",
                f"{worker} is drained since epoch {since}, and is given {tasks.job}_{tasks.tasks[:5]}",
            )

    def hears(self, worker: str, known_epoch: int, payload: bytes) -> None:
        """A worker gets a message at this instant, and obeys managers of this epoch."""
        if payload.startswith(_TASKS):
            message = codec.decode_to_worker(payload)
            assert isinstance(message, m.Tasks)
            if message.attempt >> ATTEMPTS_PER_EPOCH_BITS < known_epoch:
                attempts = range(message.attempt, message.attempt + len(message.tasks))
                self._stale.setdefault(worker, set()).update(attempts)

    def starts(self, run: Run) -> None:
        """A run begins."""
        if run.attempt in self._stale.get(run.host, ()):
            raise BrokenLawError(
                "stale_run", f"{run.host} runs attempt {run.attempt}, which an older manager gave it"
            )

    # --- drains -------------------------------------------------------------------------------------

    def says_drained(self, host: ManagerHost, drain: m.Drain) -> None:
        """A manager tells a user that a worker is drained."""
        if not drain.undo and host.manager is not None:
            self._drained.setdefault(drain.worker, host.manager.epoch)

    def wants_back(self, worker: str) -> None:
        """A user wants a worker back, as of this instant."""
        self._drained.pop(worker, None)
