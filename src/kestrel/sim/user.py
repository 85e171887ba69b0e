"""A scripted user: submits jobs, repeats itself when it hears nothing, and reads results by cursor.

A plain reactor like the production shells; it stands for any program that keeps to the protocol. Every
request that is not answered is sent again, unchanged, which the protocol promises to be safe. What it
has seen is what the checkers judge. Called by the world.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

import msgspec

from kestrel.errors import InternalError
from kestrel.ports import Clock, Show, Transport
from kestrel.protocol import codec
from kestrel.protocol import messages as m

RESEND_S = 4.0
TRY_AGAIN = frozenset(("busy", "going", "store"))
"""Codes of errors on which a request is put again: the manager is busy, leaves, or its store fails."""
WAIT_RESEND_S = 25.0
"""A `results` request with `wait` is answered within the manager's `wait_s_max`."""


@dataclass(slots=True)
class JobPlan:
    """One submission, from the wish to the last result."""

    script: str
    message: m.Job
    pieces: list[list[m.Parameters]] = field(default_factory=list)
    """Parameters that follow in `extend` messages."""
    size: int = 0
    cancel_after_s: float | None = None
    cancel_tasks: str = ""
    repeat_after_s: float | None = None
    """The whole submission is sent once more, as a user does who does not trust us."""
    page: int = 50
    watch: bool = False
    # what became of it
    job: int | None = None
    sent_size: int = 0
    cancelled: bool = False
    """The manager accepted that the whole job is cancelled."""
    accepted: list[int] = field(default_factory=list)
    """Numbers in all `accepted` answers to the submission."""
    cursor: int = 0
    seen: list[m.TaskResult] = field(default_factory=list)
    done: bool = False
    complaints: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Pending:
    message: m.UserToManager
    plan: JobPlan | None
    sends: int = 0


class ScriptedUser:
    """Implements `TransportEvents`."""

    def __init__(
        self,
        name: str,
        manager: str,
        clock: Clock,
        transport: Transport,
        random: Random,
        plans: list[JobPlan],
    ) -> None:
        self.name = name
        self.plans = plans
        self.words_heard = 0
        self._manager = manager
        self._clock = clock
        self._transport = transport
        self._random = random
        self._pending: dict[str, _Pending] = {}
        self._count = 0
        self._up = False
        self._drains: dict[str, bool] = {}
        self._chat = random.random() < 0.3
        """Sends its JSON in bodies, as scripts with a plain XMPP library do."""

    @property
    def bare(self) -> str:
        """Address without the resource: who owns the jobs."""
        return self.name.partition("/")[0]

    @property
    def finished(self) -> bool:
        """Every job of this user has ended and all its results were read."""
        return all(plan.done for plan in self.plans)

    def pending(self, key: str) -> m.UserToManager | None:
        """The request of this id, if it is not answered yet."""
        found = self._pending.get(key)
        return None if found is None else found.message

    @property
    def unanswered(self) -> list[m.UserToManager]:
        """All requests that are not answered yet."""
        return [pending.message for pending in self._pending.values()]

    def submit(self, plan: JobPlan) -> None:
        """Begin with one job."""
        self._ask(plan.message, plan, fixed=True)

    def drain(self, worker: str, undo: bool) -> None:
        """Want a worker drained, or not any more. The last wish counts, so one is asked at a time."""
        under_way = worker in self._drains
        self._drains[worker] = undo
        if not under_way:
            self._ask(m.Drain(worker=worker, undo=undo), None)

    def ask(self, message: m.UserToManager) -> None:
        """Ask something; whatever is answered, it must not disturb."""
        self._ask(message, None)

    def say(self, words: str) -> None:
        """Plain words, as a person types them."""
        if self._up:
            self._transport.send(self._manager, words.encode(), chat=True)

    # --- what the transport tells -----------------------------------------------------------------

    def on_up(self, address: str) -> None:
        self._up = True
        self._transport.announce(self._manager, Show.ONLINE, "user")
        self._send_all()

    def on_down(self, reason: str) -> None:
        self._up = False

    def on_available(self, sender: str, show: Show, status: str) -> None:
        """The manager is there (again)."""
        self._send_all()

    def on_unavailable(self, sender: str, reason: str) -> None:
        """The manager is away; whatever is pending is sent again in its time."""

    def on_heard(self, sender: str) -> None:
        """Nobody is pinged."""

    def on_message(self, sender: str, payload: bytes, chat: bool) -> None:
        if chat and not payload.startswith(b"{"):
            self.words_heard += 1
            return
        message = codec.decode_to_user(payload)
        if isinstance(message, m.Event):
            return
        pending = self._pending.pop(message.re, None)
        if pending is None:
            return  # a second answer to a request that was sent twice
        if isinstance(message, m.Error) and message.code in TRY_AGAIN:
            self._again_later(pending)
        elif isinstance(pending.message, m.Drain):
            self._on_drained(pending.message)
        elif pending.plan is None:
            return  # a question; whatever was answered
        elif isinstance(message, m.Error):
            what = type(pending.message).__name__
            pending.plan.complaints.append(f"{what}: {message.code}: {message.text}")
        else:
            self._on_answer(pending.plan, pending.message, message)

    # --- requests ---------------------------------------------------------------------------------

    def _ask(self, message: m.UserToManager, plan: JobPlan | None, *, fixed: bool = False) -> None:
        if not fixed:
            self._count += 1
            message = msgspec.structs.replace(message, id=f"{self.name}#{self._count}")
        if message.id in self._pending:
            return
        self._pending[message.id] = _Pending(message, plan)
        self._send(message.id)

    def _send(self, key: str) -> None:
        """Send, and again if no answer comes."""
        pending = self._pending.get(key)
        if pending is None:
            return
        pending.sends += 1
        if self._up:
            self._transport.send(self._manager, codec.encode(pending.message), chat=self._chat)
        waits = isinstance(pending.message, m.Results) and pending.message.wait
        sends = pending.sends
        delay = (WAIT_RESEND_S if waits else RESEND_S) * self._random.uniform(0.8, 1.2)
        self._clock.call_later(delay, lambda: self._send_again(key, sends))

    def _send_again(self, key: str, sends: int) -> None:
        pending = self._pending.get(key)
        if pending is not None and pending.sends == sends:
            self._send(key)

    def _send_all(self) -> None:
        for key in list(self._pending):
            self._send(key)

    # --- answers ----------------------------------------------------------------------------------

    def _again_later(self, pending: _Pending) -> None:
        """Not now: the manager asks to be asked again."""
        key = pending.message.id
        self._pending[key] = pending
        pending.sends += 1
        sends = pending.sends
        self._clock.call_later(RESEND_S, lambda: self._send_again(key, sends))

    def _on_drained(self, request: m.Drain) -> None:
        """Done, or there is no such worker; either way the wish may have changed meanwhile."""
        wish = self._drains.pop(request.worker)
        if wish is not request.undo:
            self.drain(request.worker, wish)

    def _on_answer(self, plan: JobPlan, request: m.UserToManager, answer: m.ManagerToUser) -> None:
        if isinstance(request, m.Job) and isinstance(answer, m.Accepted):
            self._on_accepted(plan, answer)
        elif isinstance(request, m.Extend) and isinstance(answer, m.Accepted):
            plan.sent_size = request.offset + len(request.args)
            self._extend(plan)
        elif isinstance(request, m.Cancel) and isinstance(answer, m.Accepted):
            # a cancellation whose answer was lost is told to have happened before
            took = not answer.warning or answer.warning.endswith("CANCELLED")
            plan.cancelled = plan.cancelled or (not request.tasks and took)
        elif isinstance(request, m.Results) and isinstance(answer, m.ResultPage):
            self._on_page(plan, request, answer)
        elif not isinstance(request, m.Watch):
            plan.complaints.append(f"{type(request).__name__} was answered with {type(answer).__name__}")

    def _on_accepted(self, plan: JobPlan, answer: m.Accepted) -> None:
        if answer.job is None:
            raise InternalError("a submission was accepted without a number")
        plan.accepted.append(answer.job)
        if plan.job is not None:
            return  # the repeated submission
        plan.job = answer.job
        plan.sent_size = len(plan.message.args or ()) if plan.message.queue is None else plan.message.queue
        if plan.cancel_after_s is not None:
            self._clock.call_later(plan.cancel_after_s, lambda: self._cancel(plan))
        if plan.repeat_after_s is not None:
            self._clock.call_later(plan.repeat_after_s, lambda: self._ask(plan.message, plan, fixed=True))
        if plan.watch:
            self._ask(m.Watch(job=answer.job), plan)
        self._extend(plan)
        self._read(plan)

    def _extend(self, plan: JobPlan) -> None:
        if plan.job is None or not plan.pieces:
            return
        piece = plan.pieces.pop(0)
        message = m.Extend(job=plan.job, offset=plan.sent_size, args=piece, last=not plan.pieces)
        self._ask(message, plan)

    def _cancel(self, plan: JobPlan) -> None:
        assert plan.job is not None
        self._ask(m.Cancel(job=plan.job, tasks=plan.cancel_tasks), plan)

    def _read(self, plan: JobPlan) -> None:
        assert plan.job is not None
        self._ask(m.Results(job=plan.job, after=plan.cursor, limit=plan.page, wait=True), plan)

    def _on_page(self, plan: JobPlan, request: m.Results, page: m.ResultPage) -> None:
        if request.after != plan.cursor:
            plan.complaints.append(f"answer from {request.after}, but the cursor is at {plan.cursor}")
        plan.seen.extend(page.results)
        plan.cursor = page.last
        if page.done:
            plan.done = True
        else:
            self._read(plan)
