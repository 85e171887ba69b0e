"""What peers may send beyond what the types allow: bounds that keep one peer from harming the others.

Pure. A stanza that is too large costs the manager its stream, and so everybody; a number that does not
fit into the store costs the unit. Called by the manager when something comes in, before it is kept.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from kestrel.core.model import AttemptEnd, AttemptOutcome
from kestrel.errors import UsageError
from kestrel.manager.settings import ManagerSettings
from kestrel.protocol import codec
from kestrel.protocol import messages as m

REASON_CHARS_MAX = 1024
SECONDS_MAX = 1e9
"""No attempt lasted longer, and no time limit is longer: 31 years."""
WORD_BYTES_MAX = 6
"""Most bytes that one character takes in a stanza (`\\u0026`)."""

_ENDS = {end.value: end for end in AttemptEnd}


def outcome_of(report: m.AttemptReport, tail_bytes: int) -> AttemptOutcome:
    """A worker's report as an event for the scheduler, cut to what every honest worker sends."""
    code = report.exit_code
    if (
        len(report.out) > tail_bytes
        or len(report.err) > tail_bytes
        or len(report.reason) > REASON_CHARS_MAX
        or report.wall_s > SECONDS_MAX
        or (code is not None and not -(2**31) <= code < 2**32)
    ):
        report = _sound(report, tail_bytes)
    return AttemptOutcome(report.job, report.task, report.attempt, _ENDS[report.state], report.wall_s, report)


def _sound(report: m.AttemptReport, tail_bytes: int) -> m.AttemptReport:
    code = report.exit_code
    return msgspec.structs.replace(
        report,
        out=report.out[-tail_bytes:] if tail_bytes else "",
        err=report.err[-tail_bytes:] if tail_bytes else "",
        reason=report.reason[:REASON_CHARS_MAX],
        wall_s=min(report.wall_s, SECONDS_MAX),
        exit_code=None if code is None else max(-(2**31), min(code, 2**32 - 1)),
    )


def check_profile(profile: m.Profile, settings: ManagerSettings) -> None:
    """Refuse a worker that says more of itself than a list of workers can show. Raises `UsageError`."""
    size = codec.wire_size(codec.encode(msgspec.structs.replace(profile, held=[])))
    if size > settings.profile_bytes_max:
        raise UsageError(
            f"the profile takes {size} bytes, at most {settings.profile_bytes_max} are taken",
            hint="say less in `provides` and `labels`",
            code="too_large",
        )


def check_specification(message: m.Job, spec: m.TaskSpec, settings: ManagerSettings) -> None:
    """Refuse what no worker could be told or could start. Raises `UsageError` that names the field."""
    for name, words in (("command", message.command), ("cleanup", message.cleanup)):
        if words is not None:
            _check_command(name, words)
    for key, value in message.env.items():
        if not key or "=" in key or "\0" in key or "\0" in value:
            raise UsageError(
                f"job: `env` cannot contain {key[:100]!r}", hint="a name without `=`, a value without NUL"
            )
    if "\0" in message.workdir:
        raise UsageError("job: `workdir` cannot contain the character NUL")
    if message.time_limit_s > SECONDS_MAX:
        raise UsageError("job: `time_limit_s` is too long", hint="0 means that there is no limit")
    room = settings.task_bytes_max
    stored = codec.encode(msgspec.structs.replace(message, args=None))
    size = max(codec.wire_size(msgspec.json.encode(spec)), codec.wire_size(stored))
    if size > room:
        raise UsageError(
            f"job: command, env and the like take {size} bytes, at most {room} fit",
            hint="put what is long into a file that the command reads",
            code="too_large",
        )


def _check_command(name: str, words: str | list[str]) -> None:
    if isinstance(words, str) and not words.strip():
        raise UsageError(f"job: `{name}` is empty", hint='e.g. "command": "./run_task.sh"')
    if isinstance(words, list) and not words[0]:
        raise UsageError(f"job: the first word of `{name}` is empty")
    if any("\0" in word for word in ([words] if isinstance(words, str) else words)):
        raise UsageError(f"job: `{name}` cannot contain the character NUL")


def check_parameters(args: Iterable[m.Parameters], settings: ManagerSettings, offset: int = 0) -> None:
    """Refuse parameters that no command can get. Raises `UsageError` that names the task."""
    room = settings.task_bytes_max
    for i, words in enumerate(args):
        chars = 0
        for word in words:
            chars += len(word) + 1
            if "\0" in word:
                raise UsageError(f"job: the arguments of task {offset + i} contain the character NUL")
        if chars * WORD_BYTES_MAX > room and codec.wire_size(msgspec.json.encode(words)) > room:
            raise UsageError(
                f"job: the arguments of task {offset + i} take more than {room} bytes",
                hint="put what is long into a file, and give its name",
                code="too_large",
            )
