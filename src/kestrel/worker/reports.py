"""From the end of an attempt to the bytes that are spooled and sent. Pure; called by agent and spool."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from kestrel.core.execution_events import Ending, Finished
from kestrel.core.model import AttemptEnd
from kestrel.ports import ProcessEnded
from kestrel.protocol.codec import wire_size
from kestrel.protocol.messages import AttemptReport

_encoder = msgspec.json.Encoder()

REASON_LENGTH_MAX = 1000

_State = Literal["completed", "failed", "timeout", "cancelled", "lost"]
_STATES: dict[AttemptEnd, _State] = {
    AttemptEnd.COMPLETED: "completed",
    AttemptEnd.FAILED: "failed",
    AttemptEnd.TIMEOUT: "timeout",
    AttemptEnd.CANCELLED: "cancelled",
    AttemptEnd.LOST: "lost",
}


def render(ending: Ending) -> Finished:
    """The report of an ending (`facts`: `ProcessEnded`, or None if it never started) as JSON."""
    facts: ProcessEnded | None = ending.facts
    reason = ending.reason[:REASON_LENGTH_MAX]
    state = _STATES[ending.end]
    if facts is None:
        report = AttemptReport(
            job=ending.job,
            task=ending.task,
            attempt=ending.attempt,
            state=state,
            exit_code=None,
            reason=reason,
        )
    else:
        report = AttemptReport(
            job=ending.job,
            task=ending.task,
            attempt=ending.attempt,
            state=state,
            exit_code=facts.exit_code,
            signal=facts.signal,
            started=round(facts.started, 6),
            wall_s=round(facts.wall_s, 6),
            cpu_s=round(facts.cpu_s, 6),
            memory_kib=facts.memory_kib,
            out=facts.out,
            err=facts.err,
            out_bytes=facts.out_bytes,
            err_bytes=facts.err_bytes,
            reason=reason,
        )
    body = _encoder.encode(report)
    return Finished(ending.job, ending.task, ending.attempt, body, wire_size(body) + 1)


def report_message(number: int, finished: Sequence[Finished]) -> bytes:
    """A `report` message of these."""
    return b'{"type":"report","n":%d,"attempts":[%b]}' % (number, b",".join([f.body for f in finished]))
