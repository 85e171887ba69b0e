"""The lease row of a shared database in memory, with connections that are slow, break or hang as told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kestrel.errors import StoreError
from kestrel.manager.leadership import Leadership, LeaseSettings
from kestrel.ports import LeaseView
from kestrel.sim.clock import ProcessClock, Timeline


@dataclass
class Row:
    """What the database holds."""

    epoch: int = 0
    beat: int = 0
    holder: str = ""
    session: object = None
    """The connection that renewed last."""


class Line:
    """`LeaseBook` over one connection: a question takes `delay_s` to the row and `back_s` back."""

    def __init__(self, row: Row, clock: ProcessClock, timeline: Timeline) -> None:
        self.row = row
        self.clock = clock
        self.timeline = timeline
        self.delay_s = 0.01
        self.back_s = 0.01
        self.broken = False
        """Questions fail before they reach the row."""
        self.deaf: set[str] = set()
        """Questions of these kinds are carried out, and their answers are lost."""
        self.session: object = object()
        self.was_cut = False
        self.asked: list[str] = []
        self.open: dict[str, int] = {}
        self.most_open = 0
        self._last_at = 0.0

    def look(self, done: Callable[[LeaseView | StoreError], None]) -> None:
        self._ask("look", self._view, done)

    def take(self, seen: LeaseView, holder: str, done: Callable[[int | StoreError | None], None]) -> None:
        def take() -> int | None:
            row = self.row
            if (row.epoch, row.beat) != (seen.epoch, seen.beat):
                return None
            self.row.epoch, row.beat, row.holder, row.session = row.epoch + 1, 0, holder, self.session
            return row.epoch

        self._ask("take", take, done)

    def renew(self, epoch: int, done: Callable[[bool | StoreError], None]) -> None:
        def renew() -> bool:
            if self.row.epoch != epoch:
                return False
            self.row.beat += 1
            self.row.session = self.session
            return True

        self._ask("renew", renew, done)

    def release(self, epoch: int, done: Callable[[bool | StoreError], None]) -> None:
        def release() -> bool:
            if self.row.epoch != epoch:
                return False
            self.row.beat, self.row.holder = self.row.beat + 1, ""
            return True

        self._ask("release", release, done)

    def cut(self) -> None:
        """The database loses the session; the next question comes over a new one."""
        if self.row.session is self.session:
            self.row.session = None
        self.session = object()
        self.was_cut = True

    def _view(self) -> LeaseView:
        row = self.row
        return LeaseView(row.epoch, row.beat, row.holder, row.session is not None)

    def _ask(self, kind: str, carry_out: Callable[[], Any], done: Callable[[Any], None]) -> None:
        self.asked.append(kind)
        self.open[kind] = self.open.get(kind, 0) + 1
        self.most_open = max(self.most_open, *self.open.values())
        problem = StoreError("the database does not answer", retry=True)
        failing, deaf = self.broken, kind in self.deaf

        def at_row() -> None:
            answer = problem if failing else carry_out()
            back = max(self.timeline.now + self.back_s, self._last_at)  # in the order of the questions
            self._last_at = back
            self.timeline.call_later(
                back - self.timeline.now,
                lambda: self.clock.deliver(lambda: answered(problem if deaf else answer)),
            )

        def answered(answer: Any) -> None:
            self.open[kind] -= 1
            done(answer)

        self.timeline.call_later(self.delay_s, at_row)


@dataclass
class Candidate:
    """A leadership with its process's clock and its connection, and what it was told."""

    timeline: Timeline
    row: Row
    name: str
    settings: LeaseSettings = field(default_factory=LeaseSettings)
    origin: float = 0.0

    def __post_init__(self) -> None:
        self.clock = ProcessClock(self.timeline, origin=self.origin)
        self.line = Line(self.row, self.clock, self.timeline)
        self.told: list[tuple[str, object]] = []
        self.leadership = Leadership(self.clock, self.line, self.name, self.settings)
        self.leadership.on_taken = lambda epoch: self.told.append(("taken", epoch))
        self.leadership.on_lost = lambda problem: self.told.append(("lost", problem.code))
        self.leadership.on_renewed = lambda: self.told.append(("renewed", self.leadership.epoch))
        self.leadership.on_view = lambda view: self.told.append(("view", view))

    def acts(self) -> bool:
        """Whether it would tell somebody something now, as a process that runs."""
        return not self.clock.dead and not self.clock.suspended and not self.leadership.lapsed()

    def words(self, *kinds: str) -> list[tuple[str, object]]:
        """What it was told of these kinds, in order."""
        return [item for item in self.told if item[0] in kinds]

    def kill(self) -> None:
        """kill -9: the database sees the connection go."""
        self.clock.kill()
        self.line.cut()


def pass_time(timeline: Timeline, seconds: float) -> None:
    """Let virtual time pass."""
    done: list[bool] = []
    timeline.call_later(seconds, lambda: done.append(True))
    while not done and timeline.step():
        continue
