"""What answers to users have in common: told when stored, refused in words, the job that is meant.

Called by `Requests` and `Questions`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kestrel.core.model import JobId
from kestrel.errors import InternalError, KestrelError, UsageError
from kestrel.manager.jobs import JobEntry
from kestrel.manager.unit import Request, Unit
from kestrel.protocol import messages as m
from kestrel.protocol.ranges import parse_ranges

if TYPE_CHECKING:
    from kestrel.manager.manager import Manager


def tell(manager: Manager, unit: Unit, request: Request, message: m.Message) -> None:
    """Answer when the unit is stored."""
    sender, manner, _ = request
    unit.tells.append(lambda: manager.reply(sender, manner, message))


def refusal(message: m.UserToManager, problem: KestrelError) -> m.Error:
    """What the sender did wrong; a fault of ours is logged, ends this turn, and is not told as his."""
    if isinstance(problem, InternalError):
        raise problem
    return error_of(message.id, problem)


def named(manager: Manager, text: str, size: int) -> list[int]:
    """Tasks that a selector names; raises `UsageError`."""
    return parse_ranges(text, size, count_max=manager.settings.selected_tasks_max)


def known(manager: Manager, job: JobId) -> JobEntry:
    """The books of a job; raises `UsageError` if there is none."""
    entry = manager.jobs.get(job)
    if entry is None:
        raise UsageError(f"there is no job {job}", hint="`status` lists your jobs", code="unknown_job")
    return entry


def error_of(re: str, problem: KestrelError) -> m.Error:
    """The problem as a message."""
    return m.Error(re=re, code=problem.code, text=problem.text, hint=problem.hint)
