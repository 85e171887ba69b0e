"""Which of several managers acts: stands by, takes the lease, renews it, notices when it is lost.

A reactor over `Clock` and `LeaseBook`, so that the service and the simulator drive the same code. No clock
but the own monotonic one is compared with itself: who waits takes the lease when (epoch, beat) has stood
still for `lease_s`; who holds it acts until `lease_s - margin_s` after it sent its last successful renewal.
Because the event loop that does the work also drives the renewals, a process that hangs or is stopped
lapses by itself.

It must never believe that a lease is its own but by the answer to its own `take`, and never put a second
question of a kind while one is under way: a database that hangs is not buried in questions. Called by
`ManagerService` and the simulator.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from kestrel.errors import InternalError, StoreError, UsageError
from kestrel.ports import FENCED, Clock, LeaseBook, LeaseView, TimerHandle

log = logging.getLogger("kestrel.manager")


@dataclass(frozen=True, slots=True)
class LeaseSettings:
    """How soon a manager that is gone is replaced. All managers of a pool must agree on `lease_s`."""

    lease_s: float = 5.0
    """So long the lease must have stood still before another takes it."""
    renew_s: float = 1.0
    """Between two renewals."""
    poll_s: float = 0.25
    """Between two looks of who stands by; also before a question that failed is put again."""
    orphan_s: float = 0.5
    """So long the lease of a holder that the database does not see any more must have stood still."""
    margin_s: float = 0.5
    """The holder stops acting so long before others may take the lease."""

    def __post_init__(self) -> None:
        if not 0 < self.renew_s < self.lease_s - self.margin_s < self.lease_s or self.poll_s <= 0:
            raise UsageError(
                f"a lease of {self.lease_s:g} s cannot be renewed every {self.renew_s:g} s "
                f"with a margin of {self.margin_s:g} s",
                hint="renew_s < lease_s - margin_s, and nothing may be 0",
            )

    @classmethod
    def of(cls, lease_s: float) -> LeaseSettings:
        """Everything in the usual proportion to `lease_s`. Raises `UsageError`."""
        return cls(lease_s, lease_s / 5, lease_s / 20, lease_s / 10, lease_s / 10)


class _State(Enum):
    IDLE = "idle"
    WAITING = "waiting"
    TAKING = "taking"
    HOLDING = "holding"
    LOST = "lost"
    CLOSED = "closed"


def replaced() -> StoreError:
    """The end of a manager whose place another one has taken."""
    return StoreError(
        "another manager has taken over",
        hint="nothing is lost: the other one goes on with what is stored; this one can stand by again",
        code=FENCED,
    )


class Leadership:
    """One candidacy for the lease of a pool: `stand_by` first, `release` or `close` last."""

    def __init__(
        self,
        clock: Clock,
        book: LeaseBook,
        holder: str,
        settings: LeaseSettings | None = None,
        *,
        patience_s: float | None = None,
    ) -> None:
        """`patience_s`: so long after it lapsed a lease that cannot be renewed is given up, so that its owner
        lets go of what a successor needs, such as its address; None: never."""
        self.settings = settings or LeaseSettings()
        self.holder = holder
        self.epoch = 0
        """Of the lease that we have, or had; 0: we never had it."""
        self.on_taken: Callable[[int], None] | None = None
        """The lease is ours, with this epoch."""
        self.on_lost: Callable[[StoreError], None] | None = None
        """It was ours, and is another one's (code `FENCED`), or was given up; told once."""
        self.on_renewed: Callable[[], None] | None = None
        """It is still ours, and we may act (again)."""
        self.on_view: Callable[[LeaseView], None] | None = None
        """What every look of who stands by shows."""
        self.on_trouble: Callable[[StoreError], None] | None = None
        """A question was not answered; it is put again, unless this closes the candidacy."""
        self._patience_s = patience_s
        self._clock = clock
        self._book = book
        self._state = _State.IDLE
        self._timer: TimerHandle | None = None
        self._acts_until = 0.0
        self._acts_until_wall = 0.0
        # What was seen while standing by.
        self._seen: tuple[int, int] | None = None
        self._still_since = 0.0
        self._alone_since: float | None = None
        self._answered_since: float | None = None
        self.problem: StoreError | None = None
        """Why the last question was not answered; None: it was."""
        self._when_given_back: Callable[[], object] | None = None

    # --- what the owner calls ---------------------------------------------------------------------------

    def stand_by(self) -> None:
        """Begin to look, and take the lease as soon as that is right. Once only."""
        if self._state is not _State.IDLE:
            raise InternalError(f"a candidacy begins once, and this one is {self._state.value}")
        self._state = _State.WAITING
        self._look()

    def close(self) -> None:
        """Ask nothing more and tell nothing more; a lease that we have runs out by itself."""
        self._end()

    def release(self, done: Callable[[], object] | None = None) -> None:
        """Give the lease back, if we have it, and close. `done` when that is answered, whatever the answer;
        at once if there is nothing to give back."""
        former = self._state
        self._end()
        if former is _State.HOLDING:
            self._give_back(self.epoch, done)
        elif former is _State.TAKING:
            self._when_given_back = done
        elif done is not None:
            done()

    @property
    def held(self) -> bool:
        """Whether the lease is ours for all that we know, lapsed or not."""
        return self._state is _State.HOLDING

    def lapsed(self) -> bool:
        """Whether nobody may be told anything now: others may have taken the lease, or will soon.

        The wall clock is asked, too, because the monotonic one stands still on some systems while the
        machine sleeps. Should it jump forward, we pause until the next renewal.
        """
        return (
            self._state is not _State.HOLDING
            or self._clock.now() >= self._acts_until
            or self._clock.wall() >= self._acts_until_wall
        )

    # --- standing by --------------------------------------------------------------------------------------

    def _look(self) -> None:
        self._timer = None
        self._book.look(self._on_look)

    def _on_look(self, answer: LeaseView | StoreError) -> None:
        if self._state is not _State.WAITING:
            return
        if isinstance(answer, StoreError):
            self._answered_since = self._alone_since = None
            self._look_later()
            self._trouble("lease_not_seen", answer)
            return
        self._well()
        if self._is_ripe(answer):
            self._take(answer)
        else:
            self._look_later()
        if self.on_view is not None:
            self.on_view(answer)

    def _look_later(self) -> None:
        self._timer = self._clock.call_later(self.settings.poll_s, self._look)

    def _is_ripe(self, view: LeaseView) -> bool:
        """Whether the lease may be taken: it was given back, or its holder has had all its time.

        Time is counted from when an answer came: the beat that it shows was sent earlier than that.
        """
        now, settings = self._clock.now(), self.settings
        if self._answered_since is None:
            self._answered_since = now
        if self._seen != (view.epoch, view.beat):
            self._seen = (view.epoch, view.beat)
            self._still_since = now
            self._alone_since = None
        if view.connected:
            self._alone_since = None
        elif self._alone_since is None:
            self._alone_since = now
        if not view.holder:
            return True
        if self._alone_since is not None and now - self._alone_since >= settings.orphan_s:
            return True
        # Where the database was away, its holder gets a moment to come back as well.
        return now - self._still_since >= settings.lease_s and now - self._answered_since >= settings.orphan_s

    def _take(self, seen: LeaseView) -> None:
        self._state = _State.TAKING
        sent, wall = self._clock.now(), self._clock.wall()
        self._book.take(seen, self.holder, lambda answer: self._on_take(answer, sent, wall))

    def _on_take(self, answer: int | StoreError | None, sent: float, wall: float) -> None:
        if self._state is not _State.TAKING:
            done, self._when_given_back = self._when_given_back, None
            if isinstance(answer, int):
                self._give_back(answer, done)  # we closed meanwhile: others need not wait for it to run out
            elif done is not None:
                done()
            return
        if not isinstance(answer, int):
            # Somebody was quicker, or nobody knows: should it be ours, with only the answer lost, then we
            # cannot know that, and wait for it like for another one's.
            self._state = _State.WAITING
            self._look_later()
            if answer is not None:
                self._trouble("lease_not_taken", answer)
            return
        self._well()
        self._state = _State.HOLDING
        self.epoch = answer
        self._extend(sent, wall)
        self._renew_later(sent)
        log.info("lease_taken", extra={"epoch": answer, "holder": self.holder})
        if self.on_taken is not None:
            self.on_taken(answer)

    # --- holding ------------------------------------------------------------------------------------------

    def _extend(self, sent: float, wall: float) -> None:
        length_s = self.settings.lease_s - self.settings.margin_s
        self._acts_until = sent + length_s
        self._acts_until_wall = wall + length_s

    def _renew_later(self, sent: float) -> None:
        delay_s = max(0.0, sent + self.settings.renew_s - self._clock.now())
        self._timer = self._clock.call_later(delay_s, self._renew)

    def _renew(self) -> None:
        self._timer = None
        sent, wall = self._clock.now(), self._clock.wall()
        self._book.renew(self.epoch, lambda answer: self._on_renewal(answer, sent, wall))

    def _on_renewal(self, answer: bool | StoreError, sent: float, wall: float) -> None:
        if self._state is not _State.HOLDING:
            return
        if isinstance(answer, StoreError):
            if self._patience_s is not None and self._clock.now() - self._acts_until >= self._patience_s:
                self._give_up(answer)
                return
            self._timer = self._clock.call_later(self.settings.poll_s, self._renew)
            self._trouble("lease_not_renewed", answer)
        elif answer:
            self._well()
            self._extend(sent, wall)
            self._renew_later(sent)
            if self.on_renewed is not None and not self.lapsed():
                self.on_renewed()
        else:
            self._end(_State.LOST)
            log.warning("lease_lost", extra={"epoch": self.epoch, "holder": self.holder})
            if self.on_lost is not None:
                self.on_lost(replaced())

    def _give_up(self, problem: StoreError) -> None:
        self._end(_State.LOST)
        log.warning("lease_given_up", extra={"epoch": self.epoch, "problem": problem.text})
        if self.on_lost is not None:
            self.on_lost(
                StoreError(
                    f"the lease could not be renewed for too long: {problem.text}",
                    hint="nothing is lost: who can reach the database goes on with what is stored",
                    retry=True,
                )
            )

    # --- the end ------------------------------------------------------------------------------------------

    def _end(self, state: _State = _State.CLOSED) -> None:
        self._state = state
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_back(self, epoch: int, done: Callable[[], object] | None) -> None:
        def answered(answer: bool | StoreError) -> None:
            if isinstance(answer, StoreError):
                log.warning("lease_not_released", extra={"epoch": epoch, "problem": answer.text})
            elif answer:
                log.info("lease_released", extra={"epoch": epoch})
            if done is not None:
                done()

        self._book.release(epoch, answered)

    # --- logs ---------------------------------------------------------------------------------------------

    def _trouble(self, event: str, problem: StoreError) -> None:
        """Logged once for each kind of trouble in a row; not if our owner gives up for it, and says so."""
        former, self.problem = self.problem, problem
        if self.on_trouble is not None:
            self.on_trouble(problem)
        if self._state is not _State.CLOSED and (former is None or former.text != problem.text):
            log.warning(event, extra={"epoch": self.epoch, "problem": problem.text})

    def _well(self) -> None:
        if self.problem is not None:
            self.problem = None
            log.info("lease_answers_again", extra={"epoch": self.epoch})
