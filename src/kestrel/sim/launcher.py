"""A simulated launcher: processes that take virtual time, and a ledger of what really ran.

Implements `kestrel.ports.Launcher` as the production launcher behaves: it keeps to its slots, starts
in order, gives back what found no slot for a while, and loses everything when it dies. One launcher
object lives as long as its worker's process; `fail` is the death of the launcher process alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

from kestrel.errors import InternalError
from kestrel.ports import LauncherEvents, ProcessEnded, StartProcess
from kestrel.sim.clock import ProcessClock, Timeline, Timer
from kestrel.sim.ledger import Ledger, Run, RunEnd
from kestrel.sim.scripts import NOT_FOUND, Behaviour, Scripts
from kestrel.sim.trace import Trace

UNSTARTED_S = 0.2
SLOW_S_MAX = 60.0
"""No process takes so much longer on a slow machine, or histories would never end."""
BAD_S = 0.01
BAD_CODE = 71
"""How processes end on a machine that fails everything."""
SIGTERM = 15


@dataclass(slots=True)
class _Process:
    start: StartProcess
    run: Run
    behaviour: Behaviour
    began: float
    timer: Timer


@dataclass(frozen=True, slots=True)
class Machinery:
    """What all launchers of a world share."""

    timeline: Timeline
    random: Random
    trace: Trace
    ledger: Ledger
    scripts: Scripts


@dataclass(slots=True)
class Health:
    """What is wrong with a machine, in all lives of its worker."""

    bad: bool = False
    """Whatever starts on it fails at once, as when a library is missing or the disk is full."""
    slowness: float = 1.0
    """Its processes take so many times longer."""


class SimLauncher:
    """The launcher of one life of one worker."""

    def __init__(
        self,
        machinery: Machinery,
        host: str,
        slots: int,
        clock: ProcessClock,
        on_poison: Callable[[], None],
        health: Health,
    ) -> None:
        """`on_poison` is called when a task takes its worker down."""
        self._m = machinery
        self._host = host
        self._slots = slots
        self._clock = clock
        self._on_poison = on_poison
        self._health = health
        self._events: LauncherEvents | None = None
        self._waiting: deque[tuple[float, StartProcess]] = deque()
        self._unsent: list[StartProcess] = []
        self._running: dict[int, _Process] = {}
        self._untold: dict[int, ProcessEnded] = {}
        self._busy = 0
        self._there = True

    def attach(self, events: LauncherEvents) -> None:
        """Tell these from now on."""
        self._events = events

    @property
    def running(self) -> int:
        return len(self._running)

    # --- ports.Launcher ---------------------------------------------------------------------------

    def start(self, processes: Sequence[StartProcess]) -> None:
        if not self._there:
            self._unsent.extend(processes)
            return
        now = self._m.timeline.now
        self._waiting.extend((now, p) for p in processes)
        self._clock.call_later(0.0005, self._start_waiting)

    def stop(self, attempts: Sequence[int]) -> None:
        wanted = set(attempts)
        for p in [p for p in self._unsent if p.attempt in wanted]:
            self._unsent.remove(p)
            self._tell(ProcessEnded(p.attempt, None, unstarted=True))
        for waiting in [w for w in self._waiting if w[1].attempt in wanted]:
            self._waiting.remove(waiting)
            self._tell(ProcessEnded(waiting[1].attempt, None, unstarted=True))
        for attempt in attempts:
            process = self._running.get(attempt)
            if process is not None:
                process.timer.cancel()
                grace = self._m.random.uniform(0.0, 0.5)
                process.timer = self._clock.call_later(
                    grace,
                    lambda p=process: self._end(p, RunEnd.STOPPED, None),  # type: ignore[misc]
                )

    # --- processes --------------------------------------------------------------------------------

    def _start_waiting(self) -> None:
        now = self._m.timeline.now
        waiting = self._waiting
        while waiting and (self._busy + waiting[0][1].slots <= self._slots or not self._running):
            self._start_one(waiting.popleft()[1])
        if waiting:
            late = waiting[0][0] + UNSTARTED_S - now
            if late <= 0:
                for _, p in waiting:
                    self._tell(ProcessEnded(p.attempt, None, unstarted=True))
                waiting.clear()
            else:
                self._clock.call_later(late, self._start_waiting)

    def _start_one(self, start: StartProcess) -> None:
        name, index = _script_of(start.argv)
        bad = self._health.bad
        behaviour = self._m.scripts.behaviour(name, index)
        if bad:
            behaviour = Behaviour(BAD_S, (BAD_CODE,))
        elif self._health.slowness != 1.0:
            extra_s = min(behaviour.seconds * (self._health.slowness - 1.0), SLOW_S_MAX)
            behaviour = replace(behaviour, seconds=behaviour.seconds + extra_s)
        ledger = self._m.ledger
        earlier = [r for r in ledger.by_task[(name, index)] if r.end is RunEnd.EXITED and not r.bad]
        code = behaviour.exit_code(len(earlier))
        if code == NOT_FOUND:
            ledger.not_found[(name, index)].add(start.attempt)
            self._tell(ProcessEnded(start.attempt, NOT_FOUND, reason="command not found: task"))
            return
        now = self._m.timeline.now
        run = ledger.start(now, (name, index), start.attempt, self._host, bad)
        self._m.trace.add(now, "run", self._host, start.attempt, name, index)
        self._busy += start.slots
        if len(ledger.by_task[run.key]) <= behaviour.kills_worker:
            timer = self._clock.call_later(behaviour.seconds / 2, self._on_poison)
        elif 0 < start.time_limit_s < behaviour.seconds:
            timer = self._clock.call_later(
                start.time_limit_s, lambda: self._end(process, RunEnd.TIMED_OUT, None)
            )
        else:
            timer = self._clock.call_later(behaviour.seconds, lambda: self._end(process, RunEnd.EXITED, code))
        process = _Process(start, run, behaviour, now, timer)
        self._running[start.attempt] = process

    def _end(self, process: _Process, end: RunEnd, code: int | None) -> None:
        now = self._m.timeline.now
        attempt = process.start.attempt
        del self._running[attempt]
        self._busy -= process.start.slots
        self._m.ledger.end(now, process.run, end, code)
        self._m.trace.add(now, "run_end", self._host, attempt, end.value, code)
        wall = now - process.began
        name, index = process.run.key
        self._tell(
            ProcessEnded(
                attempt,
                code,
                signal=0 if end is RunEnd.EXITED else SIGTERM,
                started=self._clock.wall() - wall,
                wall_s=wall,
                cpu_s=wall / 2,
                memory_kib=1000,
                out=f"{name} {index}\n",
                out_bytes=len(name) + len(str(index)) + 2,
                timed_out=end is RunEnd.TIMED_OUT,
            )
        )
        self._start_waiting()

    def _tell(self, ended: ProcessEnded) -> None:
        """Ends travel through a pipe: in order, together with others, lost when the launcher dies."""
        if not self._untold:
            self._clock.call_later(0.001, self._tell_all)
        self._untold[ended.attempt] = ended

    def _tell_all(self) -> None:
        untold, self._untold = self._untold, {}
        if untold:
            assert self._events is not None, "a launcher needs an owner before it starts anything"
            self._events.on_ended(list(untold.values()))

    # --- faults -----------------------------------------------------------------------------------

    def _kill_all(self) -> list[int]:
        held = [*self._running, *self._untold, *(p.attempt for _, p in self._waiting)]
        for process in self._running.values():
            process.timer.cancel()
            self._m.ledger.end(self._m.timeline.now, process.run, RunEnd.KILLED)
        self._running.clear()
        self._untold.clear()
        self._waiting.clear()
        self._busy = 0
        return held

    def die(self) -> None:
        """The worker's process is gone, and the launcher kills everything."""
        self._kill_all()
        self._unsent.clear()

    def fail(self) -> None:
        """The launcher process is killed; the agent hears of it, and a new one is started."""
        if not self._there or self._clock.dead:
            return
        self._there = False
        lost = self._kill_all()
        self._m.trace.add(self._m.timeline.now, "launcher_lost", self._host, lost)
        self._clock.call_later(0.0, lambda: self._tell_lost(lost))
        self._clock.call_later(self._m.random.uniform(0.1, 1.0), self._recover)

    def _tell_lost(self, lost: list[int]) -> None:
        assert self._events is not None
        self._events.on_launcher_lost(lost)

    def _recover(self) -> None:
        self._there = True
        unsent, self._unsent = self._unsent, []
        if unsent:
            self.start(unsent)


def _script_of(argv: Sequence[str]) -> tuple[str, int]:
    """`task NAME INDEX`, as it arrives after all substitutions."""
    if len(argv) != 3 or argv[0] != "task":
        raise InternalError(f"a worker was to run {list(argv)!r}, which nobody submitted")
    return argv[1], int(argv[2])
