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
from kestrel.xmpp.jid import bare

if TYPE_CHECKING:
    from kestrel.manager.manager import Manager


def tell(manager: Manager, unit: Unit, request: Request, message: m.Message) -> None:
    """Answer when the unit is stored."""
    sender, manner, _ = request
    unit.tells.append(lambda: manager.reply(sender, manner, message))


NOTED = frozenset(("busy", "not_admin", "not_allowed", "not_owner"))
"""Codes of refusals that go to the log with the address of who was refused."""


def refusal(manager: Manager, sender: str, message: m.UserToManager, problem: KestrelError) -> m.Error:
    """What the sender did wrong; a fault of ours is logged, ends this turn, and is not told as his."""
    if isinstance(problem, InternalError):
        raise problem
    if problem.code in NOTED:
        manager.refusals.note(sender, problem.code, problem.text)
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


def may_touch(manager: Manager, sender: str, entry: JobEntry) -> bool:
    """Whether the sender may see and change this job: its owner and administrators may."""
    if entry.record.user == bare(sender):
        return manager.access.may(sender, "user") is None
    return manager.access.is_admin(sender)


def owned(manager: Manager, sender: str, job: JobId) -> JobEntry:
    """The books of a job that the sender may see and change; raises `UsageError`."""
    entry = known(manager, job)
    if not may_touch(manager, sender, entry):
        raise UsageError(
            f"job {job} belongs to {entry.record.user}",
            hint="only its owner and the pool's administrators may see or change it",
            code="not_owner",
        )
    return entry


def error_of(re: str, problem: KestrelError) -> m.Error:
    """The problem as a message."""
    return m.Error(re=re, code=problem.code, text=problem.text, hint=problem.hint)
