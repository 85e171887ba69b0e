"""A manager on a virtual clock with a memory store and a transport that only notes what is sent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from kestrel.core.model import SchedulerSettings
from kestrel.manager.jobs import terms_of
from kestrel.manager.manager import Manager
from kestrel.manager.settings import ManagerSettings
from kestrel.ports import Show
from kestrel.protocol import codec
from kestrel.protocol import messages as m
from kestrel.sim.clock import ProcessClock, Timeline
from kestrel.store import MemoryStore

USER = "ann@example.org/phone"
WORKER = "w1@example.org/worker"


@dataclass
class Notes:
    """A transport that keeps what is sent, in order."""

    sent: list[tuple[str, m.Message, bool]] = field(default_factory=list)
    said: list[tuple[str, str]] = field(default_factory=list)
    presence: list[tuple[str, Show]] = field(default_factory=list)
    pings: list[str] = field(default_factory=list)

    def send(self, to: str, payload: bytes, *, chat: bool = False) -> None:
        try:
            message: m.Message = codec.decode_to_user(payload)
        except codec.ProtocolError:
            message = codec.decode_to_worker(payload)
        self.sent.append((to, message, chat))

    def say(self, to: str, text: str) -> None:
        self.said.append((to, text))

    def announce(self, to: str, show: Show, status: str) -> None:
        self.presence.append((to, show))

    def withdraw(self, to: str) -> None:
        self.presence.append((to, Show.XA))

    def ping(self, to: str) -> None:
        self.pings.append(to)


class Rig:
    """One manager life after the other on one store."""

    def __init__(
        self, settings: ManagerSettings | None = None, *, lapsed: Callable[[], bool] | None = None
    ) -> None:
        self.timeline = Timeline()
        self.clock = ProcessClock(self.timeline)
        self.store = MemoryStore(self.clock)
        self.settings = settings or ManagerSettings(
            scheduler=replace(SchedulerSettings(), settle_s=1.0), tick_s=0.5
        )
        self.lapsed = lapsed
        self.start()

    def start(self) -> None:
        self.notes = Notes()
        self.manager = Manager(self.clock, self.notes, self.store, self.settings, lapsed=self.lapsed)
        self.manager.start(self.store.open(terms_of))
        self.manager.on_up("manager.example.org")

    def restart(self) -> None:
        """As after kill -9: the old manager is not asked."""
        self.manager._end()
        self.start()

    def run(self, seconds: float = 0.1) -> None:
        """Let virtual time pass."""
        until = self.clock.now() + seconds
        done: list[bool] = []
        self.clock.call_later(seconds, lambda: done.append(True))
        while not done and self.timeline.step():
            assert self.clock.now() <= until + 1e-6

    def tell(self, sender: str, message: m.Message, *, chat: bool = False) -> None:
        self.manager.on_message(sender, codec.encode(message), chat)

    def ask(self, message: m.Message, sender: str = USER) -> m.Message:
        """Send, let it settle, and give the one answer to that sender."""
        before = len(self.notes.sent)
        self.tell(sender, message)
        self.run()
        answers = [msg for to, msg, _ in self.notes.sent[before:] if to == sender]
        assert len(answers) == 1, answers
        return answers[0]

    def join(self, worker: str = WORKER, **profile: object) -> None:
        self.manager.on_available(worker, Show.CHAT, "")
        self.tell(worker, m.Profile(**profile))  # type: ignore[arg-type]
        self.run()

    def to(self, address: str, kind: type[m.Message]) -> list[m.Message]:
        """Everything of this type that was sent there."""
        return [msg for to, msg, _ in self.notes.sent if to == address and isinstance(msg, kind)]

    def finish(self, tasks: m.Tasks, worker: str = WORKER, n: int = 1, **fields: object) -> None:
        """Report all attempts of an assignment as ended."""
        reports = [
            m.AttemptReport(job=tasks.job, task=task, attempt=tasks.attempt + i, **fields)  # type: ignore[arg-type]
            for i, task in enumerate(tasks.tasks)
        ]
        self.tell(worker, m.Report(n=n, attempts=reports))
        self.run()
