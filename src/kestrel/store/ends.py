"""The stored end of a task: one form for all makers of the store.

Pure. Called by the makers when a result comes in and when a cancelled range is read back.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import TypeAlias

from kestrel.core.effects import RecordResult
from kestrel.core.model import TaskIndex, TaskState
from kestrel.errors import StoreError
from kestrel.protocol import messages as m

Answer: TypeAlias = list[tuple[int, m.TaskResult]]
"""What reads of results give: (seq, result)."""

BUG_HINT = "This is a bug in Kestrel; please report it. Nothing of this unit was stored."


def misuse(text: str) -> StoreError:
    """The error for writes that no sound manager makes; trying again cannot help."""
    return StoreError(text, hint=BUG_HINT, code="store_misuse")


def check_unit(unit: int, stored: int) -> bool:
    """Whether the writes of unit number `unit` are still to be carried out, when `stored` was the last.

    Raises `StoreError` for a unit that comes before its predecessor is stored: were it taken, the predecessor
    would look stored when it is tried again.
    """
    if unit > stored + 1:
        raise StoreError(
            f"unit {unit} came to the store before unit {stored + 1} was stored",
            hint="units are stored in their order; this one is tried again after the one before it",
            code="unit_too_early",
            retry=True,
        )
    return unit == 0 or unit > stored


def task_result(write: RecordResult) -> m.TaskResult:
    """What is kept of a recorded result: everything but the parameters, which are stored with the job."""
    report: m.AttemptReport | None = write.report
    if report is None:
        return m.TaskResult(
            task=write.task,
            attempt=write.attempt,
            worker=write.worker,
            state=write.state.name,
            exit_code=None,
            reason=write.reason,
        )
    return m.TaskResult(
        task=write.task,
        attempt=write.attempt or report.attempt,
        worker=write.worker,
        state=write.state.name,
        exit_code=report.exit_code,
        signal=report.signal,
        started=report.started,
        wall_s=report.wall_s,
        cpu_s=report.cpu_s,
        memory_kib=report.memory_kib,
        out=report.out,
        err=report.err,
        out_bytes=report.out_bytes,
        err_bytes=report.err_bytes,
        reason=write.reason or report.reason,
    )


def cancelled_result(task: TaskIndex) -> m.TaskResult:
    """The result of a task that was cancelled before any worker had it."""
    return m.TaskResult(task=task, state=TaskState.CANCELLED.name, exit_code=None)


def numbered(ranges: Iterable[tuple[int, int]], seq: int) -> list[tuple[int, int, int]]:
    """Ranges [first, stop) as (first, stop, seq of the first), numbered in the order given from `seq` on.

    Empty ranges are left out; ranges that overlap each other are refused with `StoreError`.
    """
    placed = []
    for first, stop in ranges:
        if stop > first:
            placed.append((first, stop, seq))
            seq += stop - first
    ordered = sorted(placed)
    for (_, before, _), (first, _, _) in pairwise(ordered):
        if first < before:
            raise misuse(f"task {first} occurs in two of the ranges that were to be cancelled")
    return placed
