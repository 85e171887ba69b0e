"""Whether what is in a store obeys the laws of Kestrel: numbers without gaps, counts that add up.

Reads only, beside a running manager too, and goes on behind what is damaged as far as it can. Called by
`kestrel store check`, and on every backup.
"""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from kestrel.core.model import JobState, TaskState
from kestrel.errors import StoreError
from kestrel.ports import JobRecord
from kestrel.protocol import messages as m
from kestrel.store.archive import Archive
from kestrel.store.lives import restore_database_steps
from kestrel.store.places import file_of, is_database, open_archive, without_password
from kestrel.store.sqlite_problems import DAMAGED, NOT_A_STORE, repair_steps

FLAWS_KEPT_MAX = 100
FLAWS_PER_JOB_MAX = 10

_LOST = (DAMAGED, NOT_A_STORE, "store_empty")
_TERMINAL = {s.name for s in TaskState if s.terminal}
_job_decoder = msgspec.json.Decoder(m.Job)


@dataclass(slots=True)
class Report:
    """What a check found."""

    store: str
    pool: str = ""
    epoch: int = 0
    """Lives of managers so far."""
    jobs: int = 0
    results: int = 0
    """Tasks that have ended."""
    flaws: list[str] = field(default_factory=list)
    """At most `FLAWS_KEPT_MAX`, in words."""
    flaws_left_out: int = 0
    steps: list[str] = field(default_factory=list)
    """What to do if there are flaws: commands, and words after `#`."""

    @property
    def sound(self) -> bool:
        return not self.flaws

    def add(self, flaw: str) -> None:
        if len(self.flaws) < FLAWS_KEPT_MAX:
            self.flaws.append(flaw)
        else:
            self.flaws_left_out += 1


def check(place: str | os.PathLike[str]) -> Report:
    """Examine the store in this place. Raises `StoreError` and `UsageError` where there is none."""
    report = Report(without_password(place))
    try:
        archive = open_archive(place)
    except StoreError as problem:
        if problem.code not in _LOST:
            raise
        report.add(problem.text)
        archive = None
    if archive is not None:
        try:
            report.pool, report.epoch = archive.pool, archive.epoch
            _examine(archive, report)
        finally:
            archive.close()
    if not report.sound:
        report.steps = _steps(place)
    return report


def _examine(archive: Archive, report: Report) -> None:
    try:
        for flaw in archive.flaws():
            report.add(flaw)
    except StoreError as problem:
        _note(report, problem)
    last = 0
    names: set[tuple[str, str]] = set()
    try:
        for record in archive.jobs():
            report.jobs += 1
            last = record.job
            for flaw in _flaws_of_record(record):
                report.add(flaw)
            name = (record.user, record.submission)
            if record.submission and name in names:
                report.add(
                    f"job {record.job}: its submission id belongs to another job of {record.user}, too"
                )
            names.add(name)
            _examine_results(archive, record, report)
    except StoreError as problem:
        _note(report, problem)
    if archive.next_job <= last:
        report.add(f"the next job would get the number {archive.next_job}, but there is a job {last}")


def _note(report: Report, problem: StoreError) -> None:
    if problem.code not in _LOST:
        raise problem
    report.add(problem.text)


def _flaws_of_record(record: JobRecord) -> Iterator[str]:
    try:
        _job_decoder.decode(record.message)
    except msgspec.DecodeError as problem:
        yield f"job {record.job}: its specification cannot be read: {problem}"
    counts = record.counts
    ended = sum(getattr(counts, name.lower()) for name in _TERMINAL)
    if record.state in (JobState.PENDING, JobState.RUNNING):
        return
    if record.open:
        yield f"job {record.job} has ended, but is open"
    if ended != record.size:
        yield f"job {record.job} has ended, but only {ended} of its {record.size} tasks have"
    if record.state is JobState.COMPLETED and counts.completed != record.size:
        yield f"job {record.job} is completed, but only {counts.completed} of its {record.size} tasks are"


def _examine_results(archive: Archive, record: JobRecord, report: Report) -> None:
    """Numbers 1 … `last` without gaps, each task once, and the counts that the record says."""
    for found, flaw in enumerate(_flaws_of_results(archive, record, report)):
        if found >= FLAWS_PER_JOB_MAX:
            report.flaws_left_out += 1
        else:
            report.add(f"job {record.job}: {flaw}")


def _flaws_of_results(archive: Archive, record: JobRecord, report: Report) -> Iterator[str]:
    seen = bytearray(record.size)
    counted: Counter[str] = Counter()
    expected = 1
    try:
        for seq, result in archive.results(record.job):
            report.results += 1
            if seq > expected:
                yield f"the results {expected} to {seq - 1} are missing"
            elif seq < expected:
                yield f"there are two results with the number {seq}"
            expected = max(expected, seq + 1)
            if result.task >= record.size:
                yield f"result {seq} is of task {result.task}, but there are {record.size} tasks"
                continue
            if seen[result.task]:
                yield f"task {result.task} has two results"
            seen[result.task] = 1
            if result.state not in _TERMINAL:
                yield f"task {result.task} ended as {result.state!r}"
            counted[result.state] += 1
    except StoreError as problem:
        if problem.code not in _LOST:
            raise
        yield f"its results from {expected} on cannot be read: {problem.text}"
        return
    if expected - 1 != record.last:
        yield f"its last result has the number {expected - 1}, but {record.last} are counted"
    for state in sorted(_TERMINAL):
        kept = getattr(record.counts, state.lower())
        if counted[state] != kept:
            yield f"{counted[state]} of its tasks are {state}, but {kept} are counted"


def _steps(place: str | os.PathLike[str]) -> list[str]:
    if not is_database(place):
        return repair_steps(file_of(place))
    shown = shlex.quote(without_password(place))
    return [
        "# put a backup in its place:",
        *restore_database_steps(shown, "BACKUP"),
        f"kestrel store check --store {shown}",
    ]
