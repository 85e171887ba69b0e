"""How jobs and tasks are named on the command line: `17`, `17_3`, `17_[1-3,7]`, `last`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from kestrel.client import Client
from kestrel.errors import UsageError
from kestrel.protocol import messages as m

_SELECTOR = re.compile(r"(?P<job>\d+|last)(?:[_.](?P<tasks>\d+|\[[-0-9,:]+\]))?")


@dataclass(frozen=True, slots=True)
class Selection:
    """A job, and ranges of its tasks (empty: all)."""

    job: int
    tasks: str = ""

    @property
    def task(self) -> int | None:
        """The one task that is named, if it is one."""
        return int(self.tasks) if self.tasks.isdigit() else None

    def one_task(self) -> int:
        """The one task that is named; raises `UsageError` if it is not one."""
        if self.task is None:
            raise UsageError(
                f"{self.job} names a job; this needs one of its tasks", hint=f"e.g. {self.job}_0"
            )
        return self.task


async def select(client: Client, text: str) -> Selection:
    """Read a selector; `last` asks the manager for this user's newest job."""
    match = _SELECTOR.fullmatch(text)
    if match is None:
        raise UsageError(
            f"{text!r} names no job", hint="write a number such as 17, a task such as 17_3, or last"
        )
    tasks = (match["tasks"] or "").strip("[]")
    if match["job"] != "last":
        return Selection(int(match["job"]), tasks)
    status = await client.request(m.Status(), m.JobStatus)
    if not status.jobs:
        raise UsageError("you have no jobs yet", hint="submit one: kestrel submit -- ./my_task.sh")
    return Selection(status.jobs[-1].job, tasks)
