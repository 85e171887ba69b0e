"""What the evidence says: lost, twice, extra runs and whose fault they were. Pure.

Three witnesses are compared: the proofs that the tasks wrote themselves, the rows of the store, and the
pages that the submitting client was given. Called by `chaos.run`; its own tests plant errors.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

COMPLETED = "COMPLETED"
EPOCH_BITS = 32
SLACK_S = 1.0
"""Clocks of proofs have 10 ms, and what a kill destroys may have ended a moment before it."""
STEADY_S = 0.3
"""Results come at least so often while nothing is wrong."""
PROBLEMS_SHOWN = 20

Task = tuple[int, int]
"""(job, index)"""


@dataclass(frozen=True, slots=True)
class Proof:
    """A line that a task wrote itself: at its start, or (`end`) when it was done."""

    end: bool
    job: int
    task: int
    attempt: int
    worker: str
    at: float


@dataclass(frozen=True, slots=True)
class Row:
    """One stored result. `seq` numbers those of a job."""

    job: int
    task: int
    seq: int
    state: str
    attempt: int
    worker: str


@dataclass(frozen=True, slots=True)
class Submitted:
    """One submission, and the numbers of all jobs that its answers named."""

    id: str
    size: int
    jobs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Strike:
    """What was done to whom, and when it was made good again."""

    kind: str
    """`kill worker`, `stop active` …"""
    target: str
    """Name of the process."""
    at: float
    until: float = 0.0
    """Started again, or continued; 0: the target was back at once."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is known after the end."""

    submitted: Sequence[Submitted]
    proofs: Sequence[Proof]
    torn: Sequence[str]
    """Lines of proof that are no proof."""
    rows: Sequence[Row]
    """What the store has."""
    seen: Sequence[Row]
    """What the client was given."""
    ids_of_jobs: Mapping[int, str]
    """Submission id of each job in the store."""
    strikes: Sequence[Strike] = ()
    progress: Sequence[float] = ()
    """When the client was given new results."""


@dataclass(frozen=True, slots=True)
class Extra:
    """A run of a task that ran before, and why it was run again."""

    task: Task
    worker: str
    cause: str


@dataclass(slots=True)
class Verdict:
    """Counts that must be zero, and counts that are only told."""

    tasks: int = 0
    lost: int = 0
    """Tasks without a result in the store, or whose result the client never saw."""
    twice: int = 0
    """Results too many: of one task, or a whole job for one submission."""
    gaps: int = 0
    """Numbers of results that are missing or used twice."""
    unproven: int = 0
    """COMPLETED results whose attempt has no proof of its end by that worker."""
    disagreeing: int = 0
    """Results that the client saw otherwise than they are stored."""
    restarted: int = 0
    """Attempts that were started more than once: their ids are never used twice."""
    torn: int = 0
    problems: list[str] = field(default_factory=list)
    """The first of them in words."""
    states: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    extras: list[Extra] = field(default_factory=list)
    extra_s: float = 0.0
    """Seconds of work whose result did not count."""
    useful_s: float = 0.0
    longest_gap_s: float = 0.0
    longest_gap_at: float = 0.0
    pauses: dict[str, list[float]] = field(default_factory=dict)
    """Kind of strike → the longest time in which nothing was recorded after each of them."""

    @property
    def sound(self) -> bool:
        """Whether all that must be zero is zero."""
        must = (self.lost, self.twice, self.gaps, self.unproven, self.disagreeing, self.restarted, self.torn)
        return not any(must) and self.tasks > 0

    def note(self, text: str) -> None:
        if len(self.problems) < PROBLEMS_SHOWN:
            self.problems.append(text)


def check(evidence: Evidence) -> Verdict:
    """Compare the witnesses."""
    verdict = Verdict(torn=len(evidence.torn))
    for line in evidence.torn:
        verdict.note(f"a line of proof is torn: {line!r}")
    jobs = _check_submissions(evidence, verdict)
    stored = _check_rows(evidence.rows, jobs, "the store", verdict)
    seen = _check_rows(evidence.seen, jobs, "the client", verdict)
    _check_lost(jobs, stored, seen, verdict)
    runs = _runs(evidence.proofs, verdict)
    _check_proofs(stored, runs, verdict)
    _count_extras(stored, runs, evidence.strikes, verdict)
    _measure_progress(evidence, verdict)
    return verdict


# --------------------------------------------------------------------------------------------------
# Results


def _check_submissions(evidence: Evidence, verdict: Verdict) -> dict[int, int]:
    """Job → its size, of those that were submitted; one job for each submission."""
    jobs = {}
    found = defaultdict(set)
    for job, name in evidence.ids_of_jobs.items():
        found[name].add(job)
    for each in evidence.submitted:
        numbers = set(each.jobs)
        if len(numbers) != 1 or found[each.id] != numbers:
            wrong = f"answers named {sorted(numbers)}, the store has {sorted(found[each.id])}"
            verdict.note(f"submission {each.id!r} is not one job: {wrong}")
            verdict.twice += max(0, len(numbers | found[each.id]) - 1)
            verdict.lost += 0 if found[each.id] else each.size
        for job in numbers:
            jobs[job] = each.size
            verdict.tasks += each.size
    for name in found.keys() - {each.id for each in evidence.submitted}:
        verdict.twice += len(found[name])
        verdict.note(f"jobs {sorted(found[name])} were never submitted (id {name!r})")
    return jobs


def _check_rows(
    rows: Sequence[Row], jobs: Mapping[int, int], whose: str, verdict: Verdict
) -> dict[Task, Row]:
    results: dict[Task, Row] = {}
    numbers: dict[int, list[int]] = defaultdict(list)
    for row in rows:
        key = (row.job, row.task)
        numbers[row.job].append(row.seq)
        if row.job not in jobs or not 0 <= row.task < jobs[row.job]:
            verdict.twice += 1
            verdict.note(f"{whose} has a result of task {row.job}_{row.task}, which nobody submitted")
        elif key in results:
            verdict.twice += 1
            verdict.note(f"{whose} has task {row.job}_{row.task} twice: seq {results[key].seq} and {row.seq}")
        else:
            results[key] = row
    for job, found in numbers.items():
        wrong = len(set(range(1, len(found) + 1)) ^ set(found))
        wrong += sum(count - 1 for count in Counter(found).values() if count > 1)
        if wrong:
            verdict.gaps += wrong
            verdict.note(f"results of job {job} at {whose} are not numbered 1 … {len(found)}")
    return results


def _check_lost(
    jobs: Mapping[int, int], stored: Mapping[Task, Row], seen: Mapping[Task, Row], verdict: Verdict
) -> None:
    for job, size in jobs.items():
        for task in range(size):
            row, shown = stored.get((job, task)), seen.get((job, task))
            if row is None or shown is None:
                verdict.lost += 1
                verdict.note(
                    f"task {job}_{task} has no result at {'the store' if row is None else 'the client'}"
                )
            elif row != shown:
                verdict.disagreeing += 1
                verdict.note(f"task {job}_{task}: the store has {row}, the client saw {shown}")


# --------------------------------------------------------------------------------------------------
# Runs


@dataclass(slots=True)
class _Run:
    attempt: int
    worker: str
    start: float
    end: float | None = None


def _runs(proofs: Iterable[Proof], verdict: Verdict) -> dict[Task, list[_Run]]:
    """Runs of each task, by their start."""
    ends: dict[tuple[int, int, int], Proof] = {}
    starts: dict[tuple[int, int, int], Proof] = {}
    for proof in proofs:
        book = ends if proof.end else starts
        key = (proof.job, proof.task, proof.attempt)
        if key in book:
            verdict.restarted += 1
            verdict.note(f"attempt {proof.attempt} of task {proof.job}_{proof.task} was run more than once")
        book[key] = proof
    for key in ends.keys() - starts.keys():
        verdict.torn += 1
        verdict.note(f"attempt {key[2]} of task {key[0]}_{key[1]} ended without a start")
    runs: dict[Task, list[_Run]] = defaultdict(list)
    for (job, task, attempt), proof in starts.items():
        ended = ends.get((job, task, attempt))
        runs[job, task].append(_Run(attempt, proof.worker, proof.at, ended.at if ended else None))
    for several in runs.values():
        several.sort(key=lambda run: (run.start, run.attempt))
    return runs


def _check_proofs(stored: Mapping[Task, Row], runs: Mapping[Task, Sequence[_Run]], verdict: Verdict) -> None:
    for key, row in stored.items():
        verdict.states[row.state] += 1
        if row.state != COMPLETED:
            continue
        proven = [run for run in runs.get(key, ()) if run.attempt == row.attempt and run.end is not None]
        if not any(run.worker == row.worker for run in proven):
            verdict.unproven += 1
            verdict.note(f"task {row.job}_{row.task} is COMPLETED by {row.worker}, which has no proof of it")


def _count_extras(
    stored: Mapping[Task, Row],
    runs: Mapping[Task, Sequence[_Run]],
    strikes: Sequence[Strike],
    verdict: Verdict,
) -> None:
    for key, several in runs.items():
        verdict.runs += len(several)
        row = stored.get(key)
        for i, run in enumerate(several):
            following = several[i + 1] if i + 1 < len(several) else None
            stop = _end_of(run, following, strikes)
            if row is not None and run.attempt == row.attempt:
                verdict.useful_s += stop - run.start
            else:
                verdict.extra_s += stop - run.start
            if following is not None:
                cause = _cause(run, following.start, strikes)
                verdict.extras.append(Extra(key, following.worker, cause))


def _end_of(run: _Run, following: _Run | None, strikes: Sequence[Strike]) -> float:
    """When it ended, or was killed as far as we know."""
    if run.end is not None:
        return run.end
    killed = [s.at for s in strikes if _is_kill_of(s, run.worker) and s.at >= run.start]
    if killed:
        return min(killed)
    return following.start if following is not None else run.start


def _is_kill_of(strike: Strike, worker: str) -> bool:
    return strike.kind == "kill worker" and strike.target == name_of(worker)


def name_of(worker: str) -> str:
    """Name of the process behind a worker's address."""
    return worker.partition("@")[0]


def _cause(run: _Run, again: float, strikes: Sequence[Strike]) -> str:
    """Why a task that ran was started again: the nearest thing that can have made its first run void."""
    own = [s for s in strikes if s.target == name_of(run.worker) and _touches(s, run.start, again)]
    for kind in ("kill worker", "stop worker"):
        if any(s.kind == kind for s in own):
            return kind
    others = [s for s in strikes if not s.kind.endswith(" worker") and _touches(s, run.start, again)]
    return max(others, key=lambda s: s.at).kind if others else "unexplained"


def _touches(strike: Strike, begin: float, end: float) -> bool:
    return strike.at <= end + SLACK_S and max(strike.at, strike.until) >= begin - SLACK_S


# --------------------------------------------------------------------------------------------------
# Progress


def _measure_progress(evidence: Evidence, verdict: Verdict) -> None:
    """Gaps between results; a strike answers for those that begin with it, until the next strike.

    One that falls into a pause which was there before does not answer for it.
    """
    times = sorted(evidence.progress)
    strikes = sorted(evidence.strikes, key=lambda s: s.at)
    gaps = list(pairwise(times))
    for begin, end in gaps:
        if end - begin > verdict.longest_gap_s:
            verdict.longest_gap_s, verdict.longest_gap_at = end - begin, begin
    for i, strike in enumerate(strikes):
        following = strikes[i + 1].at if i + 1 < len(strikes) else float("inf")
        waits = [
            end - max(begin, strike.at)
            for begin, end in gaps
            if end > strike.at and strike.at - STEADY_S <= begin < following - STEADY_S
        ]
        if waits:
            verdict.pauses.setdefault(strike.kind, []).append(max(waits))


def epochs_of(proofs: Iterable[Proof]) -> dict[int, float]:
    """Life of the manager → first start of a task that it gave out."""
    first: dict[int, float] = {}
    for proof in proofs:
        if not proof.end:
            epoch = proof.attempt >> EPOCH_BITS
            first[epoch] = min(proof.at, first.get(epoch, proof.at))
    return first
