"""The agent on a clock that the test turns: transport and launcher write down what it does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kestrel.ports import ProcessEnded, Show, StartProcess
from kestrel.protocol import codec
from kestrel.protocol import messages as m
from kestrel.worker.agent import WorkerAgent
from kestrel.worker.settings import OwnerRules, WorkerSettings
from kestrel.worker.spool import MemorySpool, Spool

MANAGER = "manager.kestrel.localhost"
ME = "w1@kestrel.localhost/box"
CHAT, DND, XA = Show.CHAT, Show.DND, Show.XA


@dataclass
class Timer:
    at: float
    callback: Callable[[], None]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


class World:
    """Clock, transport and launcher in one; `said` and `started` are what the agent did since last asked."""

    def __init__(
        self,
        slots: int = 2,
        spool: Spool | None = None,
        directory: str = "/nowhere",
        finished_max: int = 10_000,
        owner: OwnerRules | None = None,
        manager: str = MANAGER,
        wall: float = 1e9,
    ) -> None:
        self.time = 0.0
        self.timers: list[Timer] = []
        self.messages: list[m.Message] = []
        self.answers: list[tuple[str, m.Message, bool]] = []
        """To others than the manager."""
        self.presence: list[tuple[Show | None, str]] = []
        self.order: list[str] = []
        """What was said to the manager, presence and messages in one row."""
        self.started: list[StartProcess] = []
        self.stopped: list[int] = []
        profile = m.Profile(cores=slots, provides=["FOO"])
        settings = WorkerSettings(
            manager,
            profile,
            workdir="/work dir",
            output_directory=directory,
            finished_max=finished_max,
            owner=owner or OwnerRules(),
        )
        self.manager = manager
        self.begin_wall = wall
        self.spool = spool or MemorySpool()
        self.leases: list[float] = []
        self.agent = WorkerAgent(self, self, self, self.spool, settings)
        self.agent.on_lease = self.leases.append

    def now(self) -> float:
        return self.time

    def wall(self) -> float:
        return self.begin_wall + self.time

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        assert delay_s >= 0
        timer = Timer(self.time + delay_s, callback)
        self.timers.append(timer)
        return timer

    def send(self, to: str, payload: bytes, *, chat: bool = False) -> None:
        if to in (self.manager, self.agent.joining.manager):
            self.messages.append(codec.decode_to_manager(payload))
            self.order.append(type(self.messages[-1]).__name__)
        else:
            self.answers.append((to, codec.decode_to_manager(payload), chat))

    def say(self, to: str, text: str) -> None:
        raise AssertionError("a worker does not talk to people")

    def announce(self, to: str, show: Show, status: str) -> None:
        assert to == self.manager
        self.presence.append((show, status))
        self.order.append(show.value)

    def withdraw(self, to: str) -> None:
        self.presence.append((None, ""))

    def ping(self, to: str) -> None:
        raise AssertionError("a worker pings nobody")

    def start(self, processes: Sequence[StartProcess]) -> None:
        self.started += processes

    def stop(self, attempts: Sequence[int]) -> None:
        self.stopped += attempts

    # --- the test's hand ---------------------------------------------------------------------------

    def pass_time(self, seconds: float) -> None:
        end = self.time + seconds
        while True:
            due = [t for t in self.timers if t.at <= end and not t.cancelled]
            if not due:
                break
            timer = min(due, key=lambda t: t.at)
            self.timers.remove(timer)
            self.time = max(self.time, timer.at)
            timer.callback()
            self.agent.execution.check()
        self.time = end

    def tell(self, message: m.Message, sender: str = "") -> None:
        self.agent.on_message(sender or self.manager, codec.encode(message), False)
        self.agent.execution.check()

    def taken(self) -> list[m.Message]:
        messages, self.messages = self.messages, []
        return messages

    def join(self) -> None:
        self.agent.on_up(ME)
        self.tell(m.Welcome(epoch=1, report_delay_s=0.005))
        self.taken()
        self.presence.clear()

    def end(self, attempt: int, **fields: object) -> None:
        self.agent.on_ended([ProcessEnded(attempt, **({"exit_code": 0} | fields))])  # type: ignore[arg-type]
