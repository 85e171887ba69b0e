"""What the end of a task means for `kestrel run`: exit codes, halting, log lines, words, JSON records.

Pure. Called by `run`.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kestrel.cli.joblog import LogEntry
from kestrel.cli.output import cut, duration_text, printable
from kestrel.errors import UsageError
from kestrel.protocol import messages as m

FAILURES = frozenset({"FAILED", "TIMEOUT", "NODE_FAIL"})
FAILED_TASKS_CODE_MAX = 100
"""More failed tasks than this give the exit code 101, as in GNU parallel."""
FAILURES_NAMED_MAX = 3


@dataclass(frozen=True, slots=True)
class Halt:
    """When to give up on the rest: after `count` tasks that failed, succeeded or are done."""

    when: Literal["now", "soon", "never"] = "never"
    what: Literal["fail", "success", "done"] = "fail"
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Halt:
        """Reads `never`, `now,fail=1`, `soon,success=3` … and GNU parallel's 0, 1, 2. Raises `UsageError`."""
        text = {"0": "never", "1": "soon,fail=1", "2": "now,fail=1"}.get(text.strip(), text.strip())
        if text == "never":
            return cls()
        match = re.fullmatch(r"(now|soon)(?:,(fail|success|done)=([1-9][0-9]{0,8}))?", text)
        if match is None:
            raise UsageError(
                f"cannot read --halt {text!r}",
                hint="write never, now,fail=1, soon,fail=3, now,success=1 or soon,done=100",
            )
        when, what, count = match.groups()
        return cls(when, what or "fail", int(count or 1))  # type: ignore[arg-type]

    def is_due(self, *, failed: int, succeeded: int) -> bool:
        """Whether it is time, with so many tasks ended."""
        if self.when == "never":
            return False
        so_far = {"fail": failed, "success": succeeded, "done": failed + succeeded}[self.what]
        return so_far >= self.count


def exit_code_of(failed: int) -> int:
    """0, the number of failed tasks up to 100, or 101."""
    return min(failed, FAILED_TASKS_CODE_MAX + 1)


def task_exit_code(result: m.TaskResult) -> int:
    """What a shell would call the end of this task: 124 for a time-out, 128+n for signal n."""
    if result.state == "TIMEOUT":
        return 124
    if result.signal:
        return 128 + result.signal
    if result.exit_code is not None and (result.exit_code or result.state == "COMPLETED"):
        return result.exit_code
    return 255


def log_entry(result: m.TaskResult, seq: int, host: str, command: str) -> LogEntry:
    """The task's line in the job log; a time-out is -1 with a signal, as GNU parallel writes it."""
    code, number = task_exit_code(result), result.signal
    if result.state == "TIMEOUT":
        code, number = -1, result.signal or int(signal.SIGTERM)
    elif number:
        code = 0
    return LogEntry(seq, host, result.started, result.wall_s, result.out_bytes, code, number, command)


def is_explained_by_itself(result: m.TaskResult) -> bool:
    """Whether a failed task can be expected to have said itself what is wrong."""
    return result.state == "FAILED" and not result.signal and not result.reason


def reason_of(result: m.TaskResult) -> str:
    """Why it failed, in few words."""
    if result.reason:
        return result.reason
    if result.state == "TIMEOUT":
        return f"timed out after {duration_text(result.wall_s)}"
    if result.signal:
        return f"killed by signal {result.signal} ({signal_name(result.signal)})"
    if result.state == "NODE_FAIL":
        return "its worker was lost"
    return f"exit code {result.exit_code}"


def signal_name(number: int) -> str:
    """`SIGKILL`; names differ between systems, numbers that ours does not know stay numbers."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


def failure_text(seq: int, words: Sequence[str], result: m.TaskResult) -> str:
    """One failed task: its number and arguments, and why."""
    arguments = cut(printable(" ".join(words)), 40)
    return f"{seq}{f' [{arguments}]' if arguments else ''} ({printable(reason_of(result))})"


def failures_line(failed: int, total: int, first: Sequence[str]) -> str:
    """`2 of 9 tasks failed: 3 [a] (exit code 1), …`."""
    more = ", …" if failed > len(first) else ""
    noun = "task" if total == 1 else "tasks"
    return f"{failed} of {total} {noun} failed: {', '.join(first)}{more}"


def record_of(
    result: m.TaskResult, seq: int, words: Sequence[str], command: str, out: bytes, err: bytes
) -> dict[str, Any]:
    """The task's line in JSON. Text is cut if it is shorter than `stdout_bytes` says."""
    return {
        "seq": seq,
        "args": list(words),
        "command": command,
        "state": result.state,
        "exit_code": result.exit_code,
        "signal": result.signal,
        "reason": result.reason,
        "worker": result.worker,
        "started": result.started,
        "wall_s": result.wall_s,
        "cpu_s": result.cpu_s,
        "memory_kib": result.memory_kib,
        "stdout": out.decode("utf-8", "replace"),
        "stderr": err.decode("utf-8", "replace"),
        "stdout_bytes": result.out_bytes,
        "stderr_bytes": result.err_bytes,
    }
