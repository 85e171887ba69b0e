"""Answers users who ask for a task's output: from the store, or through the worker that has the files.

Called by `Questions` only. What it asks of workers is bounded in number and in time.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from kestrel.errors import UsageError
from kestrel.manager.access import is_of
from kestrel.manager.answers import may_touch
from kestrel.manager.jobs import JobEntry
from kestrel.manager.unit import Request, Unit
from kestrel.manager.words import Manner
from kestrel.ports import ReadTaskResults
from kestrel.protocol import messages as m

if TYPE_CHECKING:
    from kestrel.manager.manager import Manager


@dataclass(slots=True)
class Relay:
    """A user's output request that a worker is to answer."""

    sender: str
    manner: Manner
    request: m.Output
    worker: str
    until: float


class Outputs:
    """Pieces of output for users, and the requests that wait for workers."""

    def __init__(self, manager: Manager) -> None:
        self.manager = manager
        self._relays: dict[str, Relay] = {}
        self._relay_count = 0

    def answer(self, request: Request, message: m.Output, entry: JobEntry, unit: Unit) -> None:
        """Answer from the store or through the worker; raises `UsageError` for a task that is none."""
        if message.task >= entry.size:
            raise UsageError(f"job {message.job} has no task {message.task}: it has {entry.size}")
        where = None
        scheduler = self.manager.scheduler
        if scheduler.has_job(message.job):
            where = scheduler.task_worker(message.job, message.task)
        if where is not None:
            worker, attempt = where
            unit.tells.append(lambda: self._relay(request, message, worker, attempt))
            return
        unit.read(
            ReadTaskResults(message.job, [message.task]),
            lambda found: self._output_of_ended(request, message, found),
        )

    def _output_of_ended(
        self, request: Request, message: m.Output, found: list[tuple[int, m.TaskResult]]
    ) -> None:
        sender, manner, _ = request
        reply = self.manager.reply
        if not found:
            text = f"task {message.job}_{message.task} has not started yet, so it has no output"
            reply(sender, manner, m.Error(re=message.id, code="no_output", text=text))
            return
        result = found[0][1]
        stdout = message.stream == "stdout"
        text, size = (result.out, result.out_bytes) if stdout else (result.err, result.err_bytes)
        data = text.encode()
        if len(data) == size and "\ufffd" not in text:
            piece = data[message.offset : message.offset + message.limit]
            part = m.OutputPart(
                re=message.id,
                job=message.job,
                task=message.task,
                attempt=result.attempt,
                stream=message.stream,
                offset=message.offset,
                data=base64.b64encode(piece).decode(),
                size=size,
                final=True,
            )
            reply(sender, manner, part)
        else:
            self._relay(request, message, result.worker, result.attempt)

    def _relay(self, request: Request, message: m.Output, worker: str, attempt: int) -> None:
        """Ask the worker that has the files."""
        sender, manner, _ = request
        manager = self.manager
        problem = ""
        if worker not in manager.workers:
            problem = f"the output stayed on worker {worker}, which is not there now"
        elif len(self._relays) >= manager.settings.relays_max:
            problem = "too many output requests wait for workers"
        if problem:
            error = m.Error(
                re=message.id,
                code="output_unreachable",
                text=problem,
                hint=f"its last part is stored: see the results of {message.job}_{message.task}",
            )
            manager.reply(sender, manner, error)
            return
        self._relay_count += 1
        key = str(self._relay_count)
        until = manager.clock.now() + manager.settings.relay_s_max
        self._relays[key] = Relay(sender, manner, message, worker, until)
        ask = m.ReadOutput(
            id=key,
            job=message.job,
            task=message.task,
            attempt=attempt,
            stream=message.stream,
            offset=message.offset,
            limit=message.limit,
        )
        manager.send_worker(worker, ask)

    def awaits(self, worker: str, key: str) -> bool:
        """Whether this worker was asked for something, and has not answered."""
        relay = self._relays.get(key)
        return relay is not None and relay.worker == worker

    def relay_answer(self, worker: str, part: m.OutputPart) -> None:
        """A worker sent output: hand it on to who asked."""
        relay = self._relays.get(part.re)
        if relay is None or relay.worker != worker:
            return
        del self._relays[part.re]
        asked = relay.request
        if len(part.data) > 4 * (asked.limit // 3 + 1):
            text = f"worker {worker} sent more than was asked for"
            error = m.Error(re=asked.id, code="output_unreachable", text=text)
            self.manager.reply(relay.sender, relay.manner, error)
            return
        answer = msgspec.structs.replace(
            part, re=asked.id, job=asked.job, task=asked.task, stream=asked.stream, offset=asked.offset
        )
        self.manager.reply(relay.sender, relay.manner, answer)

    def relay_error(self, worker: str, error: m.Error) -> None:
        """A worker could not answer."""
        relay = self._relays.get(error.re)
        if relay is None or relay.worker != worker:
            return
        del self._relays[error.re]
        self.manager.reply(relay.sender, relay.manner, msgspec.structs.replace(error, re=relay.request.id))

    def drop(self, whose: str) -> list[Request]:
        """Forget the requests of this account, or domain, that may not be made any more, and give them."""
        manager = self.manager
        dropped: list[Request] = []
        for key, relay in list(self._relays.items()):
            entry = manager.jobs[relay.request.job]
            if is_of(relay.sender, whose) and not may_touch(manager, relay.sender, entry):
                del self._relays[key]
                dropped.append((relay.sender, relay.manner, relay.request))
        return dropped

    def unanswered(self) -> list[Request]:
        """Requests that wait for workers."""
        return [(r.sender, r.manner, r.request) for r in self._relays.values()]

    def expire(self, now: float) -> None:
        """Tell those who waited too long that the worker did not answer."""
        manager = self.manager
        for key, relay in list(self._relays.items()):
            if relay.until <= now:
                del self._relays[key]
                text = f"worker {relay.worker} did not answer"
                manager.reply(
                    relay.sender,
                    relay.manner,
                    m.Error(re=relay.request.id, code="output_unreachable", text=text, hint="try again"),
                )
