"""The store in memory: for tests and the simulator.

Behaves as the others do, answers included, but keeps everything in the object: closed and opened again it
stands for a manager that was restarted. It must never answer from inside `commit`.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, assert_never

import msgspec

from kestrel.core.effects import (
    RecordCancelled,
    RecordJobEnded,
    RecordResult,
    RecordTrouble,
    RecordWorker,
)
from kestrel.core.model import JobId, JobState, RestoredJob, TaskState, Trouble, WorkerId
from kestrel.errors import InternalError, StoreError
from kestrel.ports import (
    AddJob,
    AddTasks,
    Clock,
    CloseJob,
    CommitDone,
    CommitFailed,
    DrainWorker,
    JobRecord,
    Read,
    ReadParams,
    ReadResults,
    ReadTaskRange,
    ReadTaskResults,
    StoreContent,
    Write,
)
from kestrel.protocol import messages as m
from kestrel.store.ends import Answer, cancelled_result, check_unit, misuse, numbered, task_result

Done: TypeAlias = Callable[[CommitDone | CommitFailed], None]
Undo: TypeAlias = Callable[[], object]
_LIVE = (JobState.PENDING, JobState.RUNNING)


@dataclass(slots=True)
class _Job:
    """A job with all its tasks. `record` is current but for `counts`, `last` and `reruns`."""

    record: JobRecord
    cancelled: bool = False
    last: int = 0
    params: list[list[str]] = field(default_factory=list)
    """May be shorter than the job: the rest has none."""
    results: dict[int, tuple[int, m.TaskResult]] = field(default_factory=dict)
    by_seq: dict[int, int] = field(default_factory=dict)
    ranges: list[tuple[int, int, int]] = field(default_factory=list)
    """Cancelled (first, stop, seq), by first."""
    ranges_by_seq: list[tuple[int, int, int]] = field(default_factory=list)
    """The same as (seq, first, stop), by seq."""
    counts: list[int] = field(default_factory=lambda: [0] * len(TaskState))
    troubles: dict[int, Trouble] = field(default_factory=dict)

    def end_of(self, task: int) -> tuple[int, m.TaskResult] | None:
        """The stored end of a task."""
        found = self.results.get(task)
        if found is None:
            at = bisect_right(self.ranges, (task, 2**63)) - 1
            if at >= 0 and task < self.ranges[at][1]:
                first, _, seq = self.ranges[at]
                found = (seq + task - first, cancelled_result(task))
        return found

    def numbered(self, seq: int) -> tuple[int, m.TaskResult] | None:
        """The end that has this number."""
        task = self.by_seq.get(seq)
        if task is not None:
            return self.results[task]
        at = bisect_right(self.ranges_by_seq, (seq, 2**63)) - 1
        if at < 0:
            return None
        begin, first, stop = self.ranges_by_seq[at]
        task = first + seq - begin
        return (seq, cancelled_result(task)) if task < stop else None

    def check(self, task: int) -> None:
        """Refuse what is recorded for a task that is not there (yet)."""
        if task >= self.record.size:
            raise misuse(f"job {self.record.job} has no task {task}, but something was recorded for it")

    def params_of(self, task: int) -> list[str]:
        return self.params[task] if task < len(self.params) else []


class MemoryStore:
    """`kestrel.ports.Store` without a disk; `clock` brings the answers and tells when jobs ended."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._jobs: dict[JobId, _Job] = {}
        self._submissions: dict[tuple[str, str], JobId] = {}
        self._epoch = 0
        self._unit = 0
        """Number of the last unit of this life that was stored."""
        self._next_job = 1
        self._workers: set[WorkerId] = set()
        self._drained: set[WorkerId] = set()
        self._open = False
        self._answers: deque[tuple[int, Done, CommitDone | CommitFailed]] = deque()

    def open(self, terms_of: Callable[[JobRecord], Any]) -> StoreContent:
        """Count the epoch up and tell all. Answers that a former life did not hear are dropped: opening
        without `close` stands for a manager that was killed."""
        self._epoch += 1
        self._unit = 0
        self._open = True
        records = [_record(job) for _, job in sorted(self._jobs.items())]
        return StoreContent(
            epoch=self._epoch,
            next_job=self._next_job,
            jobs=records,
            unfinished=[_restored(self._jobs[r.job], r, terms_of(r)) for r in records if r.state in _LIVE],
            workers=tuple(sorted(self._workers)),
            drained=frozenset(self._drained),
        )

    def commit(self, writes: Sequence[Write], reads: Sequence[Read], done: Done, *, unit: int = 0) -> None:
        """Carry the unit out now, answer later."""
        if not self._open:
            raise InternalError("a unit was committed to a store that is not open")
        outcome: CommitDone | CommitFailed
        undo: list[Undo] = []
        try:
            fresh = check_unit(unit, self._unit)
            duplicates = self._write(writes, undo) if fresh else 0
            outcome = CommitDone([self._read(read) for read in reads], duplicates)
            self._unit = max(self._unit, unit)
        except StoreError as problem:
            for step in reversed(undo):
                step()
            outcome = CommitFailed(problem)
        self._answers.append((self._epoch, done, outcome))
        self._clock.call_later(0, self._deliver)

    def shortage(self) -> StoreError | None:
        """Memory is never short."""
        return None

    def close(self) -> None:
        """Answers that are on their way still arrive."""
        self._open = False

    def _deliver(self) -> None:
        """One answer a call, the oldest first, whatever order the clock's calls come in."""
        epoch, done, outcome = self._answers.popleft()
        if epoch == self._epoch:
            done(outcome)

    # --- writes ---------------------------------------------------------------------------------------

    def _write(self, writes: Sequence[Write], undo: list[Undo]) -> int:
        duplicates = 0
        for write in writes:
            match write:
                case AddJob():
                    self._add_job(write, undo)
                case AddTasks():
                    self._add_tasks(write, undo)
                case CloseJob(number, cancelled):
                    job = self._job(number)
                    undo.append(lambda job=job, was=job.cancelled: setattr(job, "cancelled", was))  # type: ignore[misc]
                    job.cancelled = job.cancelled or cancelled
                    self._change(job, undo, open=False)
                case RecordResult():
                    duplicates += not self._record(write, undo)
                case RecordTrouble():
                    self._trouble(write, undo)
                case RecordCancelled():
                    self._cancel(write, undo)
                case RecordJobEnded(number, state):
                    job = self._job(number)
                    if job.record.state in _LIVE:
                        self._change(job, undo, state=state, finished=self._clock.wall())
                    self._change(job, undo, open=False)
                case RecordWorker(worker, present):
                    _put(self._workers, worker, present, undo)
                case DrainWorker(worker, drained):
                    _put(self._drained, worker, drained, undo)
                case _:
                    assert_never(write)
        return duplicates

    def _add_job(self, write: AddJob, undo: list[Undo]) -> None:
        record = write.record
        if write.params is not None and len(write.params) != record.size:
            raise misuse(f"job {record.job} of {record.size} tasks came with {len(write.params)} parameters")
        name = (record.user, record.submission)
        if record.job in self._jobs or (record.submission and name in self._submissions):
            raise misuse(
                f"job {record.job} of {record.user} exists already, or its submission id "
                f"{record.submission!r} belongs to another job"
            )
        undo.append(lambda was=self._next_job: setattr(self, "_next_job", was))  # type: ignore[misc]
        self._jobs[record.job] = _Job(record, params=[list(words) for words in write.params or ()])
        undo.append(lambda: self._jobs.pop(record.job))
        self._next_job = max(self._next_job, record.job + 1)
        if record.submission:
            self._submissions[name] = record.job
            undo.append(lambda: self._submissions.pop(name))

    def _add_tasks(self, write: AddTasks, undo: list[Undo]) -> None:
        job = self._job(write.job)
        size = job.record.size
        if write.offset > size:
            raise misuse(f"job {write.job} has {size} tasks, but more were added from {write.offset} on")
        fresh = write.params[size - write.offset :]
        if fresh and not job.record.open:
            raise misuse(f"job {write.job} is closed, but tasks were added")
        had = len(job.params)
        undo.append(lambda: job.params.__delitem__(slice(had, None)))
        if fresh:
            job.params += [[] for _ in range(size - had)]
            job.params += [list(words) for words in fresh]
        self._change(job, undo, size=size + len(fresh), open=job.record.open and not write.last)

    def _record(self, write: RecordResult, undo: list[Undo]) -> bool:
        job = self._job(write.job)
        if job.end_of(write.task) is not None:
            return False
        job.check(write.task)
        if job.numbered(write.seq) is not None:
            raise misuse("two results of a job have the same number")
        job.results[write.task] = (write.seq, task_result(write))
        job.by_seq[write.seq] = write.task
        undo.append(lambda: (job.results.pop(write.task), job.by_seq.pop(write.seq)))
        self._count(job, write.state, 1, write.seq, undo)
        return True

    def _trouble(self, write: RecordTrouble, undo: list[Undo]) -> None:
        job = self._job(write.job)
        job.check(write.task)
        troubles = job.troubles
        before = troubles.get(write.task)

        def take_back() -> None:
            if before is None:
                del troubles[write.task]
            else:
                troubles[write.task] = before

        undo.append(take_back)
        troubles[write.task] = Trouble(
            write.failures, write.losses, write.given_out, tuple(write.counted), write.cancelling
        )

    def _cancel(self, write: RecordCancelled, undo: list[Undo]) -> None:
        job = self._job(write.job)
        ranges = numbered(write.ranges, write.seq)
        for first, stop, seq in ranges:
            job.check(stop - 1)
            for task in range(first, stop):
                if job.end_of(task) is not None:
                    raise misuse(f"job {write.job}: task {task} was cancelled, but has ended before")
                if job.numbered(seq + task - first) is not None:
                    raise misuse(f"job {write.job}: number {seq + task - first} is used by another result")
        was, was_by_seq = list(job.ranges), list(job.ranges_by_seq)

        def take_back() -> None:
            job.ranges, job.ranges_by_seq = was, was_by_seq

        undo.append(take_back)
        for first, stop, seq in ranges:
            insort(job.ranges, (first, stop, seq))
            insort(job.ranges_by_seq, (seq, first, stop))
            self._count(job, TaskState.CANCELLED, stop - first, seq + stop - first - 1, undo)

    def _count(self, job: _Job, state: TaskState, count: int, seq: int, undo: list[Undo]) -> None:
        last = job.last

        def take_back() -> None:
            job.counts[state] -= count
            job.last = last

        undo.append(take_back)
        job.counts[state] += count
        job.last = max(last, seq)

    def _change(self, job: _Job, undo: list[Undo], **fields: Any) -> None:
        undo.append(lambda was=job.record: setattr(job, "record", was))  # type: ignore[misc]
        job.record = replace(job.record, **fields)

    def _job(self, number: JobId) -> _Job:
        job = self._jobs.get(number)
        if job is None:
            raise misuse(f"the store knows no job {number}")
        return job

    # --- reads ----------------------------------------------------------------------------------------

    def _read(self, read: Read) -> Any:
        job = self._job(read.job)
        match read:
            case ReadParams(_, tasks):
                for task in tasks:
                    if not 0 <= task < job.record.size:
                        raise misuse(f"job {read.job} has no task {task}, but its parameters were asked for")
                return [job.params_of(task) for task in tasks]
            case ReadResults(_, after, limit):
                ends = (job.numbered(seq) for seq in range(after + 1, job.last + 1))
                return _first(ends, limit, job)
            case ReadTaskResults(_, tasks):
                return _first((job.end_of(task) for task in sorted(set(tasks))), len(tasks), job)
            case ReadTaskRange(_, first, states, limit):
                ends = (job.end_of(task) for task in range(first, job.record.size))
                return _first((e for e in ends if e and (not states or e[1].state in states)), limit, job)
            case _:
                assert_never(read)


def _put(names: set[WorkerId], worker: WorkerId, there: bool, undo: list[Undo]) -> None:
    if there and worker not in names:
        names.add(worker)
        undo.append(lambda: names.remove(worker))
    elif not there and worker in names:
        names.remove(worker)
        undo.append(lambda: names.add(worker))


def _first(ends: Iterable[tuple[int, m.TaskResult] | None], limit: int, job: _Job) -> Answer:
    found: Answer = []
    for end in ends:
        if len(found) >= limit:
            break
        if end is not None:
            seq, result = end
            params = job.params_of(result.task)
            found.append((seq, msgspec.structs.replace(result, params=params) if params else result))
    return found


def _record(job: _Job) -> JobRecord:
    counts = {s.name.lower(): job.counts[s] for s in TaskState if s.terminal}
    return replace(
        job.record,
        last=job.last,
        counts=m.TaskCounts(**counts),
        reruns=sum(trouble.losses for trouble in job.troubles.values()),
    )


def _restored(job: _Job, record: JobRecord, terms: Any) -> RestoredJob:
    states = bytearray(record.size)
    for task, (_, result) in job.results.items():
        states[task] = TaskState[result.state]
    for first, stop, _ in job.ranges:
        states[first:stop] = bytes([TaskState.CANCELLED]) * (stop - first)
    return RestoredJob(
        job=record.job,
        terms=terms,
        states=states,
        open=record.open,
        cancelled=job.cancelled,
        troubles=dict(job.troubles),
        reruns=record.reruns,
    )
