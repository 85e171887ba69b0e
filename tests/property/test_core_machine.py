"""The scheduler against workers that join, report, repeat themselves, vanish, come back and lie.

The machine plays all workers and the store. After each step every part of the scheduler's state must
agree, the store must have been told everything exactly once, and in the end, with healthy workers, every
task must have its result.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kestrel.core import effects as fx
from kestrel.core import events as ev
from kestrel.core.addresses import Pattern, matching
from kestrel.core.model import (
    COUNTED_MAX,
    AttemptEnd,
    AttemptOutcome,
    HeldByWorker,
    JobState,
    JobTerms,
    RestoredJob,
    SchedulerSettings,
    TaskState,
    Trouble,
    WorkerOffer,
)
from kestrel.core.scheduler import Scheduler

SETTINGS = SchedulerSettings(
    batch_max=5,
    backlog_max=12,
    lease_s=10.0,
    probe_s=4.0,
    losses_max=3,
    story_length=64,
    story_tasks_max=200,
    superseded_max=2,
    settle_s=2.0,
    quarantine_failures=2,
    parole_s=3.0,
    parole_s_max=8.0,
    parcel_s_min=0.01,
)
TAGS = ["foo", "bar"]
TERMINAL = [s for s in TaskState if s.terminal]
HEALTHY = ("healthy@pool/1", "w@pool/0")
"""Who works everything off in the end: each list of patterns means one of them."""
pattern_lists = st.sampled_from(
    [
        (),
        (),
        tuple(map(Pattern.parse, ["w@pool/0"])),
        tuple(map(Pattern.parse, ["*/1"])),
        tuple(map(Pattern.parse, ["w@pool/?", "nobody@pool"])),
        tuple(map(Pattern.parse, ["h*@pool", "*@pool/0", "w@*/2"])),
    ]
)
user_lists = st.sampled_from(
    [
        (),
        (),
        tuple(map(Pattern.parse, ["ann@pool"])),
        tuple(map(Pattern.parse, ["bob@pool", "ann@elsewhere"])),
        tuple(map(Pattern.parse, ["*@pool"])),
        tuple(map(Pattern.parse, ["nobody@pool"])),
    ]
)
tag_sets = st.sets(st.sampled_from(TAGS)).map(frozenset)


@dataclass
class FakeWorker:
    """What a worker process knows. It lives on when its connection is gone."""

    offer: WorkerOffer
    joined: bool = False
    hand: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Attempt → job, task; the oldest first."""
    stopped: set[int] = field(default_factory=set)
    revoke: tuple[int, int] | None = None
    number: int = 0
    spool: dict[int, list[AttemptOutcome]] = field(default_factory=dict)
    """Reports that were not acknowledged."""

    def held(self) -> list[HeldByWorker]:
        running = [HeldByWorker(job, task, attempt) for attempt, (job, task) in self.hand.items()]
        finished = [HeldByWorker(o.job, o.task, o.attempt) for r in self.spool.values() for o in r]
        return running + finished


@dataclass
class Stored:
    """A job as the store has it."""

    terms: JobTerms
    states: bytearray
    open: bool
    cancelled: bool = False
    troubles: dict[int, Trouble] = field(default_factory=dict)
    last_seq: int = 0
    reruns: int = 0
    ended: JobState | None = None


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.epoch = 1
        self.now = 100.0
        self.scheduler = Scheduler(SETTINGS, self.epoch)
        self.jobs: dict[int, Stored] = {}
        self.workers: dict[str, FakeWorker] = {}
        self.seen: set[int] = set()
        """Attempt ids that were given out, in all epochs."""
        self.once: set[tuple[int, int]] = set()
        """Tasks that must not run twice and may have been started."""
        self.fresh_job = 1
        self.probes = 0
        self.unwanted: set[tuple[int, int]] = set()
        """Tasks that users have cancelled while workers had them."""
        self.quarantined: set[str] = set()
        """Whose quarantine was announced, and not its end."""
        self.dealt_with: set[int] = set()
        """Attempts whose reported end was counted, in all epochs."""
        self.present: set[str] = set()
        """Who is in the pool, as the store has it."""

    # --- the store and the network ----------------------------------------------------------------------

    def handle(self, *events: ev.Event, deliver: bool = True) -> list[fx.Effect]:
        for event in events:
            if isinstance(event, ev.AttemptsReported):
                self.note_retries(event)
        for worker in self.workers.values():
            if worker.revoke is not None and all(job != worker.revoke[0] for job, _ in worker.hand.values()):
                worker.revoke = None  # it has nothing left to give back, and the scheduler will know
        effects = self.scheduler.handle(events, self.now)
        for effect in effects:
            self.carry_out(effect, deliver)
        return effects

    def note_retries(self, event: ev.AttemptsReported) -> None:
        """A reported end that allows another try frees tasks that must not run twice."""
        for outcome in event.outcomes:
            if outcome.end in (AttemptEnd.FAILED, AttemptEnd.TIMEOUT) or not outcome.wall_s:
                self.once.discard((outcome.job, outcome.task))

    def carry_out(self, effect: fx.Effect, deliver: bool) -> None:
        match effect:
            case fx.RecordResult():
                job = self.jobs[effect.job]
                assert not TaskState(job.states[effect.task]).terminal, "recorded twice"
                assert effect.seq == job.last_seq + 1
                assert effect.state.terminal
                job.last_seq += 1
                job.states[effect.task] = effect.state
                job.troubles.pop(effect.task, None)
            case fx.RecordTrouble(number, task, failures, losses, given_out, counted, cancelling):
                job = self.jobs[number]
                assert not TaskState(job.states[task]).terminal
                before = job.troubles.get(task, Trouble())
                failed, lost = failures - before.failures, losses - before.losses
                fresh = set(counted) - set(before.counted)
                blamed = bool(fresh) and (failed, lost) == (0, 0)  # on the worker: it was a probe
                assert not (blamed and not job.terms.restart), "what must not run twice was a probe"
                assert (failed, lost) in {(1, 0), (0, 1), (0, -1), (0, 0)}
                told = given_out != before.given_out or cancelling != before.cancelling
                assert failed or lost or blamed or told
                assert cancelling >= before.cancelling
                if cancelling:
                    self.unwanted.add((number, task))
                assert not (given_out and job.terms.restart)
                assert len(set(counted)) == len(counted) <= COUNTED_MAX
                assert not fresh & self.dealt_with, "an end counted twice"
                assert len(fresh) == failed or (len(fresh) <= 1 and (lost == 1 or blamed))
                self.dealt_with |= fresh
                job.troubles[task] = Trouble(failures, losses, given_out, counted, cancelling)
                job.reruns += losses - before.losses
            case fx.RecordCancelled(number, ranges, seq):
                job = self.jobs[number]
                assert seq == job.last_seq + 1
                for start, stop in ranges:
                    assert start < stop
                    for task in range(start, stop):
                        assert not TaskState(job.states[task]).terminal, "recorded twice"
                        job.states[task] = TaskState.CANCELLED
                        job.troubles.pop(task, None)
                        job.last_seq += 1
            case fx.RecordJobEnded(number, state):
                job = self.jobs[number]
                assert job.ended is None, "ended twice"
                assert not job.open
                assert job.last_seq == len(job.states)
                job.ended = state
            case fx.AssignTasks():
                self.assigned(effect)
            case fx.StopAttempts(name, attempts):
                worker = self.workers[name]
                assert worker.joined
                worker.stopped.update(set(attempts) & worker.hand.keys())
            case fx.RevokeTasks(name, number, count):
                worker = self.workers[name]
                assert worker.joined
                assert worker.revoke is None, "asked twice at a time"
                assert count >= 1
                worker.revoke = (number, count)
            case fx.AcknowledgeReport(name, number):
                if deliver and name in self.workers:
                    spool = self.workers[name].spool
                    for n in [n for n in spool if n <= number]:
                        del spool[n]
            case fx.RecordWorker(name, present):
                (self.present.add if present else self.present.discard)(name)
            case fx.AnnounceWorkerLost(name):
                assert name not in self.present
                self.workers[name].joined = False
                self.workers[name].revoke = None
                self.quarantined.discard(name)
            case fx.AnnounceWorkerQuarantined(name, reason):
                assert name not in self.quarantined, "quarantined twice"
                assert len(self.scheduler.workers()) > 1, "a pool of one worker quarantines nobody"
                assert reason
                self.quarantined.add(name)
            case fx.AnnounceQuarantineLifted(name):
                self.quarantined.remove(name)
            case fx.WelcomeWorker(name) | fx.ProbeWorker(name):
                assert name in self.present
                assert self.workers[name].joined
            case fx.RefuseWorker(name):
                assert name not in self.workers or not self.workers[name].joined
            case fx.AnnounceJob(number):
                assert number in self.jobs

    def assigned(self, effect: fx.AssignTasks) -> None:
        worker, job = self.workers[effect.worker], self.jobs[effect.job]
        assert worker.joined
        assert job.terms.requires <= worker.offer.provides
        assert job.terms.slots <= worker.offer.slots
        assert self.may_run(job, effect.worker)
        assert 1 <= len(effect.tasks) <= SETTINGS.batch_max
        assert len(set(effect.tasks)) == len(effect.tasks)
        for attempt, task in enumerate(effect.tasks, effect.attempt):
            assert attempt not in self.seen, "an attempt id was used twice"
            assert attempt >> 32 == self.epoch
            assert not TaskState(job.states[task]).terminal
            assert (effect.job, task) not in self.unwanted, "given out though a user cancelled it"
            self.seen.add(attempt)
            if not job.terms.restart:
                assert (effect.job, task) not in self.once, "ran twice"
                self.once.add((effect.job, task))
            worker.hand[attempt] = (effect.job, task)
        view = self.scheduler.workers()[effect.worker]
        assert not view.drained
        if view.reason:
            assert len(effect.tasks) == 1, "more than a probe"
            assert job.terms.restart or not self.others_run(job, effect.worker), "no probe"
            assert view.in_hand == len(worker.hand)
            self.probes += 1

    def may_run(self, job: Stored, name: str) -> bool:
        """Whether job and owner want that."""
        terms, users = job.terms, self.workers[name].offer.users
        return (not terms.workers or matching(terms.workers, name)) and (
            not users or matching(users, terms.user)
        )

    def others_run(self, job: Stored, name: str) -> bool:
        """Whether somebody else takes tasks of the job as usual."""
        return any(
            other != name
            and not view.drained
            and not view.reason
            and job.terms.requires <= view.offer.provides
            and job.terms.slots <= view.slots
            and self.may_run(job, other)
            for other, view in self.scheduler.workers().items()
        )

    def joined(self) -> list[str]:
        return [name for name, w in self.workers.items() if w.joined]

    def choose(self, data: st.DataObject, names: list[str]) -> FakeWorker:
        return self.workers[data.draw(st.sampled_from(names))]

    def name_of(self, worker: FakeWorker) -> str:
        return next(name for name, w in self.workers.items() if w is worker)

    # --- users ------------------------------------------------------------------------------------------

    @initialize()
    def begin(self) -> None:
        self.submit(9, frozenset(), 1, 0, 1, True, False, "ann@pool")
        self.submit(5, frozenset(["foo"]), 1, 0, 2, True, True, "bob@pool")
        self.join(2, frozenset(["foo"]))
        self.join(1, frozenset())

    @rule(
        size=st.integers(0, 12),
        requires=tag_sets,
        slots=st.integers(1, 3),
        priority=st.integers(-1, 1),
        retries=st.integers(0, 2),
        restart=st.booleans(),
        is_open=st.booleans(),
        user=st.sampled_from(["ann@pool", "bob@pool"]),
        workers=pattern_lists,
    )
    def submit(
        self,
        size: int,
        requires: frozenset[str],
        slots: int,
        priority: int,
        retries: int,
        restart: bool,
        is_open: bool,
        user: str,
        workers: tuple[Pattern, ...] = (),
    ) -> None:
        number, self.fresh_job = self.fresh_job, self.fresh_job + 1
        terms = JobTerms(user, requires, slots, priority, retries, restart, workers)
        self.jobs[number] = Stored(terms, bytearray(size), is_open)
        self.handle(ev.JobSubmitted(number, terms, size, is_open))

    @precondition(lambda self: any(j.open for j in self.jobs.values()))
    @rule(data=st.data(), count=st.integers(0, 5), last=st.booleans())
    def extend(self, data: st.DataObject, count: int, last: bool) -> None:
        number = data.draw(st.sampled_from([n for n, j in self.jobs.items() if j.open]))
        self.jobs[number].states.extend(bytes(count))
        self.jobs[number].open = not last
        self.handle(ev.JobExtended(number, count, last))

    @rule(data=st.data(), really=st.sampled_from([False, False, False, True]))
    def cancel_job(self, data: st.DataObject, really: bool) -> None:
        if not really:
            return
        number = data.draw(st.sampled_from(sorted(self.jobs)))
        job = self.jobs[number]
        if job.ended is None:
            job.open = False
            job.cancelled = True
        self.handle(ev.JobCancelled(number))

    @rule(data=st.data(), tasks=st.lists(st.integers(0, 15), max_size=6))
    def cancel_tasks(self, data: st.DataObject, tasks: list[int]) -> None:
        self.handle(ev.JobCancelled(data.draw(st.sampled_from(sorted(self.jobs))), tasks))

    @rule()
    def forget_ended(self) -> None:
        for number, job in self.jobs.items():
            if job.ended is not None and self.scheduler.has_job(number):
                self.scheduler.forget(number)

    @precondition(lambda self: self.joined())
    @rule(data=st.data(), drained=st.booleans(), pardoned=st.booleans())
    def drain(self, data: st.DataObject, drained: bool, pardoned: bool) -> None:
        name = data.draw(st.sampled_from(self.joined()))
        self.handle(ev.WorkerDrained(name, drained, pardoned and not drained))
        if pardoned and not drained:
            assert not self.scheduler.workers()[name].quarantined

    # --- workers ----------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.workers) < 5)
    @rule(slots=st.integers(1, 4), provides=tag_sets, users=user_lists)
    def join(self, slots: int, provides: frozenset[str], users: tuple[Pattern, ...] = ()) -> None:
        name = f"w@pool/{len(self.workers)}"
        self.workers[name] = FakeWorker(WorkerOffer(slots, provides, users))
        self.come_back(name)

    def come_back(self, name: str) -> None:
        worker = self.workers[name]
        worker.joined = True
        worker.revoke = None
        self.handle(ev.WorkerJoined(name, worker.offer, worker.held()))

    @precondition(lambda self: self.workers)
    @rule(data=st.data(), slots=st.integers(1, 4), provides=tag_sets, users=user_lists, change=st.booleans())
    def rejoin(
        self,
        data: st.DataObject,
        slots: int,
        provides: frozenset[str],
        users: tuple[Pattern, ...],
        change: bool,
    ) -> None:
        name = data.draw(st.sampled_from(sorted(self.workers)))
        if change:
            self.workers[name].offer = WorkerOffer(slots, provides, users)
        self.come_back(name)

    @precondition(lambda self: any(self.workers[n].hand for n in self.joined()))
    @rule(data=st.data())
    def rejoin_without_some(self, data: st.DataObject) -> None:
        """An assignment was lost on the way, or the worker was started again."""
        worker = self.choose(data, [n for n in self.joined() if self.workers[n].hand])
        for attempt in data.draw(st.sets(st.sampled_from(list(worker.hand)))):
            job, task = worker.hand.pop(attempt)
            if not self.jobs[job].terms.restart:
                self.once.discard((job, task))
        self.come_back(self.name_of(worker))

    @precondition(lambda self: self.joined())
    @rule(data=st.data(), survives=st.booleans())
    def lose(self, data: st.DataObject, survives: bool) -> None:
        name = data.draw(st.sampled_from(self.joined()))
        self.handle(ev.WorkerLost(name, "gone"))
        if not survives:
            self.workers[name].hand.clear()
            self.workers[name].stopped.clear()

    @precondition(lambda self: any(w.hand for w in self.workers.values()))
    @rule(data=st.data(), end=st.sampled_from(AttemptEnd), deliver=st.booleans())
    def report(self, data: st.DataObject, end: AttemptEnd, deliver: bool) -> None:
        """By a worker that is in the pool or was given up; sometimes the answer is lost."""
        worker = self.choose(data, sorted(n for n, w in self.workers.items() if w.hand))
        oldest = list(worker.hand)[:4]
        attempts = data.draw(st.lists(st.sampled_from(oldest), min_size=1, max_size=4, unique=True))
        wall_s = data.draw(st.sampled_from([0.0, 0.001, 0.3, 5.0]))
        outcomes = []
        for attempt in attempts:
            job, task = worker.hand.pop(attempt)
            worker.stopped.discard(attempt)
            outcomes.append(AttemptOutcome(job, task, attempt, end, wall_s))
        worker.number += 1
        worker.spool[worker.number] = outcomes
        self.handle(ev.AttemptsReported(self.name_of(worker), worker.number, outcomes), deliver=deliver)

    @precondition(lambda self: any(w.hand for w in self.workers.values()))
    @rule(data=st.data())
    def report_quick_successes(self, data: st.DataObject) -> None:
        """Short tasks: from now on they travel by the dozen."""
        self.report(data=data, end=AttemptEnd.COMPLETED, deliver=True)

    @precondition(lambda self: any(w.hand for w in self.workers.values()))
    @rule(data=st.data())
    def report_failures(self, data: st.DataObject) -> None:
        self.report(data=data, end=AttemptEnd.FAILED, deliver=True)

    @precondition(lambda self: sum(bool(self.workers[n].hand) for n in self.joined()) > 1)
    @rule(rounds=st.integers(5, 10))
    def one_worker_is_broken(self, rounds: int) -> None:
        """It fails, one after the other, what others complete."""
        bad = min(n for n in self.joined() if self.workers[n].hand)
        self.submit(20, frozenset(), 1, 1, 3, True, False, "ann@pool")
        for _ in range(rounds):
            for name in [n for n in self.joined() if self.workers[n].hand]:
                worker = self.workers[name]
                attempt = next(iter(worker.hand))
                end = AttemptEnd.FAILED if name == bad else AttemptEnd.COMPLETED
                outcome = AttemptOutcome(*worker.hand.pop(attempt), attempt, end, 0.01)
                worker.stopped.discard(attempt)
                worker.number += 1
                worker.spool[worker.number] = [outcome]
                self.handle(ev.AttemptsReported(name, worker.number, [outcome]))

    @precondition(lambda self: any(v.reason for v in self.scheduler.workers().values()))
    @rule(end=st.sampled_from([*AttemptEnd, AttemptEnd.FAILED, AttemptEnd.COMPLETED, None]))
    def parole_is_over(self, end: AttemptEnd | None) -> None:
        """Who is in trouble gets a probe, and says how it ended; or its connection breaks."""
        for _ in range(3):
            self.now += 3.0
            self.handle(*(ev.WorkerHeard(name) for name in self.joined()), ev.TimePassed())
        for name, view in self.scheduler.workers().items():
            worker = self.workers[name]
            if not view.reason or not worker.hand:
                continue
            attempt = next(reversed(worker.hand))
            if end is None:
                self.come_back(name)
                continue
            outcome = AttemptOutcome(*worker.hand.pop(attempt), attempt, end, 0.01)
            worker.stopped.discard(attempt)
            worker.number += 1
            worker.spool[worker.number] = [outcome]
            self.handle(ev.AttemptsReported(name, worker.number, [outcome]))

    @precondition(lambda self: any(w.stopped & w.hand.keys() for w in self.workers.values()))
    @rule(data=st.data())
    def stop_as_told(self, data: st.DataObject) -> None:
        names = sorted(n for n, w in self.workers.items() if w.stopped & w.hand.keys())
        worker = self.choose(data, names)
        stopped = sorted(worker.stopped & worker.hand.keys())
        outcomes = [AttemptOutcome(*worker.hand.pop(a), a, AttemptEnd.CANCELLED, 0.1) for a in stopped]
        worker.stopped.clear()
        worker.number += 1
        worker.spool[worker.number] = outcomes
        self.handle(ev.AttemptsReported(self.name_of(worker), worker.number, outcomes))

    @precondition(lambda self: any(w.spool for w in self.workers.values()))
    @rule(data=st.data())
    def repeat_report(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(n for n, w in self.workers.items() if w.spool)))
        worker = self.workers[name]
        number = data.draw(st.sampled_from(sorted(worker.spool)))
        counts = {n: self.scheduler.counts(n) for n in self.scheduler.job_ids()}
        old = all(o.attempt >> 32 == self.epoch for o in worker.spool[number])
        self.handle(ev.AttemptsReported(name, number, worker.spool[number]))
        if old:
            for n in counts:
                after, before = self.scheduler.counts(n), counts[n]
                assert (after.failed, after.completed) == (before.failed, before.completed)

    @precondition(lambda self: any(w.revoke for w in self.workers.values()))
    @rule(data=st.data(), less=st.integers(0, 2))
    def answer_revoke(self, data: st.DataObject, less: int) -> None:
        name = data.draw(st.sampled_from(sorted(n for n, w in self.workers.items() if w.revoke)))
        worker = self.workers[name]
        assert worker.revoke is not None
        number, count = worker.revoke
        mine = [a for a, (job, _) in worker.hand.items() if job == number]
        given = mine[::-1][: max(0, count - less)]
        for attempt in given:
            self.once.discard(worker.hand.pop(attempt))
        worker.revoke = None
        self.handle(ev.AttemptsRevoked(name, number, given[::-1]))

    @precondition(lambda self: any(self.workers[n].hand for n in self.joined()))
    @rule(data=st.data(), count=st.integers(1, 4))
    def give_back_unasked(self, data: st.DataObject, count: int) -> None:
        """A worker may return what it has not started, e.g. when its owner wants the machine."""
        worker = self.choose(data, [n for n in self.joined() if self.workers[n].hand])
        number, _ = worker.hand[next(reversed(worker.hand))]
        given = [a for a, (job, _) in worker.hand.items() if job == number][-count:]
        for attempt in given:
            self.once.discard(worker.hand.pop(attempt))
        if worker.revoke is not None and worker.revoke[0] == number:
            worker.revoke = None
        self.handle(ev.AttemptsRevoked(self.name_of(worker), number, [*given, given[0]]))

    @rule(
        name=st.sampled_from(["w@pool/0", "w@pool/1", "liar@pool/x"]),
        job=st.integers(1, 4),
        task=st.integers(-1, 14),
        attempt=st.integers(0, 40),
    )
    def lie(self, name: str, job: int, task: int, attempt: int) -> None:
        """A report of an attempt of this epoch that its sender was never given changes nothing."""
        number = (self.epoch << 32) + attempt
        worker = self.workers.get(name)
        if worker is not None and worker.hand.get(number) == (job, task):
            return
        if any(o.attempt == number for w in self.workers.values() for r in w.spool.values() for o in r):
            return
        refused = (self.scheduler.strays().refused, self.scheduler.strays().duplicates)
        outcome = AttemptOutcome(job, task, number, AttemptEnd.COMPLETED, 0.1)
        if any((job, task) == pair for w in self.workers.values() for pair in w.hand.values()):
            outcome = AttemptOutcome(job, task, (self.epoch << 32) + 10_000 + attempt, AttemptEnd.COMPLETED)
        counts = {n: self.scheduler.counts(n) for n in self.scheduler.job_ids()}
        effects = self.handle(ev.AttemptsReported(name, 0, [outcome]), deliver=False)
        known = worker is not None and worker.joined
        acknowledge = fx.AcknowledgeReport(name, 0)
        if self.scheduler.strays().late == 0 and known:
            assert acknowledge in effects
        after = (self.scheduler.strays().refused, self.scheduler.strays().duplicates)
        if sum(after) > sum(refused):
            for n in counts:
                assert self.scheduler.counts(n).completed == counts[n].completed

    # --- time -------------------------------------------------------------------------------------------

    @rule(step_s=st.sampled_from([0.01, 0.5, 3.0, 3.9, 11.0]), heard=st.sets(st.integers(0, 4)))
    def time_passes(self, step_s: float, heard: set[int]) -> None:
        self.now += step_s
        alive = [
            ev.WorkerHeard(n) for i, n in enumerate(self.workers) if i in heard and self.workers[n].joined
        ]
        before = self.scheduler.workers()
        self.handle(ev.TimePassed(), *alive)
        if step_s > SETTINGS.probe_s:
            assert self.scheduler.workers().keys() == before.keys(), "lost for time that stood still"
        for name in self.joined():
            assert self.now - self.scheduler.workers()[name].heard < SETTINGS.lease_s
        wake = self.scheduler.next_wake(self.now)
        assert wake is None or wake >= self.now

    # --- the manager ------------------------------------------------------------------------------------

    def rebuilt(self, epoch: int) -> Scheduler:
        """A scheduler made from nothing but what was recorded."""
        scheduler = Scheduler(SETTINGS, epoch)
        restored = [
            RestoredJob(n, j.terms, bytearray(j.states), j.open, j.cancelled, dict(j.troubles), j.reruns)
            for n, j in self.jobs.items()
            if j.ended is None
        ]
        assert scheduler.handle([ev.JobRestored(r) for r in restored], self.now) == []
        scheduler.check_invariants()
        return scheduler

    @rule(really=st.sampled_from([False, False, True]), known=st.booleans())
    def restart_manager(self, really: bool, known: bool) -> None:
        if not really:
            return
        self.epoch += 1
        self.scheduler = self.rebuilt(self.epoch)
        self.quarantined.clear()
        for worker in self.workers.values():
            worker.joined = False
            worker.revoke = None
        expected = sorted(self.present) if known else None
        for effect in self.handle(ev.WorkersExpected(expected)):
            assert not isinstance(effect, fx.AssignTasks)
        assert self.scheduler.expected() == (self.present if known else set())

    @precondition(lambda self: self.scheduler.expected())
    @rule(data=st.data())
    def somebody_is_reported_gone(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.scheduler.expected())))
        self.handle(ev.WorkerLost(name, "not there"))
        assert name not in self.present

    # --- what must always hold ----------------------------------------------------------------------------

    @invariant()
    def state_agrees_with_itself(self) -> None:
        self.scheduler.check_invariants()

    @invariant()
    def store_was_told_everything(self) -> None:
        other = self.rebuilt(self.epoch + 1)
        for number, stored in self.jobs.items():
            if not self.scheduler.has_job(number):
                assert stored.ended is not None
                continue
            size = self.scheduler.size(number)
            assert size == len(stored.states)
            states = [self.scheduler.task_state(number, t) for t in range(size)]
            assert bytes(TaskState.QUEUED if s is TaskState.RUNNING else s for s in states) == stored.states
            assert self.scheduler.last_seq(number) == stored.last_seq
            if stored.ended is not None:
                assert self.scheduler.job_state(number) is stored.ended
                continue
            assert other.last_seq(number) == stored.last_seq
            assert other.reruns(number) == self.scheduler.reruns(number)
            assert other.is_open(number) == self.scheduler.is_open(number)
            live, again = self.scheduler.counts(number), other.counts(number)
            assert again.queued == live.queued + live.running
            again.queued, again.running = live.queued, live.running
            assert again == live
            for task in range(size):
                assert other.trouble(number, task) == self.scheduler.trouble(number, task)

    @invariant()
    def store_knows_who_is_there(self) -> None:
        assert self.present == set(self.scheduler.workers()) | self.scheduler.expected() or (
            self.scheduler.expected() == set() and self.present >= set(self.scheduler.workers())
        )

    @invariant()
    def quarantine_is_announced(self) -> None:
        views = self.scheduler.workers()
        assert {name for name, view in views.items() if view.quarantined} == self.quarantined
        assert all(view.reason for view in views.values() if view.quarantined)

    @invariant()
    def questions_are_answered(self) -> None:
        workers, slots, busy = self.scheduler.totals()
        assert workers == len(self.joined())
        assert 0 <= busy <= slots
        for number in self.scheduler.job_ids():
            assert self.scheduler.explain(number, None, self.now)
            self.scheduler.warning(number, self.now)
            for task in range(self.scheduler.size(number)):
                assert self.scheduler.explain(number, task, self.now)
                self.scheduler.story(number, task, self.now)
                assert (self.scheduler.task_worker(number, task) is not None) == (
                    self.scheduler.task_state(number, task) is TaskState.RUNNING
                )

    # --- the end ------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        """With healthy workers, every task gets its result and every job ends."""
        for number, job in self.jobs.items():
            if job.open:
                job.open = False
                self.handle(ev.JobExtended(number, 0, True))
        for name in HEALTHY:
            known = self.workers.setdefault(name, FakeWorker(WorkerOffer(1)))
            known.offer = WorkerOffer(4, frozenset(TAGS))
        for name in self.workers:
            self.come_back(name)
        self.handle(*(ev.WorkerDrained(name, False) for name in self.workers))
        self.now += SETTINGS.settle_s
        for _ in range(200):
            self.work_off()
            if all(job.ended is not None for job in self.jobs.values()):
                break
        self.scheduler.check_invariants()
        assert {n: j.ended for n, j in self.jobs.items() if j.ended is None} == {}
        for worker in self.workers.values():
            worker.hand.clear()
        assert all(view.used == 0 for view in self.scheduler.workers().values()), "hands are not empty"

    def work_off(self) -> None:
        """Everybody answers everything."""
        self.now += 0.5
        for name, worker in self.workers.items():
            if worker.revoke is not None:
                number, _ = worker.revoke
                worker.revoke = None
                self.handle(ev.AttemptsRevoked(name, number, []))
            outcomes = []
            for attempt, (job, task) in list(worker.hand.items()):
                end = AttemptEnd.CANCELLED if attempt in worker.stopped else AttemptEnd.COMPLETED
                outcomes.append(AttemptOutcome(job, task, attempt, end, 0.01))
                del worker.hand[attempt]
            worker.number += 1
            worker.spool[worker.number] = outcomes
            for number in sorted(worker.spool):
                self.handle(ev.AttemptsReported(name, number, worker.spool[number]))
        self.handle(ev.TimePassed())


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=80,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
