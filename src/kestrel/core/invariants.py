"""What must hold of the scheduler's state between two events; each line of it was a bug somewhere once.

Only reads, looks at everything, and raises `InternalError` with what is remembered of the thing
concerned. Called by tests, by the simulator after each step, and by whoever doubts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import isinf

from kestrel.core.books import Books
from kestrel.core.jobs import REQUEUED, RUNNING, UNIT, Attempt, Job
from kestrel.core.model import JobId, TaskIndex, TaskState
from kestrel.core.naming import LEVEL_BITS
from kestrel.core.pool import Worker
from kestrel.core.quarantine import ROWS_MAX
from kestrel.core.signatures import Crew, Signature, may_run
from kestrel.errors import InternalError


@dataclass(frozen=True, slots=True)
class Fault:
    """Two parts of the state that disagree."""

    text: str
    job: JobId | None = None
    task: TaskIndex | None = None


def check(books: Books) -> None:
    """Raise `InternalError` for the first fault; the text names them all."""
    faults = [*_faults(books)]
    if not faults:
        return
    story: list[str] = []
    for fault in faults:
        if fault.job is not None:
            story += books.story.tell(fault.job, fault.task, books.now)
    raise InternalError("; ".join(fault.text for fault in faults), story="\n".join(story))


def _faults(books: Books) -> Iterator[Fault]:
    for job in books.jobs.values():
        yield from _job_faults(books, job)
    for worker in books.pool.workers.values():
        yield from _worker_faults(books, worker)
    yield from _pool_faults(books)
    yield from _settling_faults(books)
    yield from _quarantine_faults(books)
    yield from _matching_faults(books)
    yield from _naming_faults(books)
    yield from _dispatch_faults(books)


def _job_faults(books: Books, job: Job) -> Iterator[Fault]:
    name = f"job {job.id}"
    found = [job.states.count(state) for state in TaskState]
    found[TaskState.QUEUED] += job.states.count(REQUEUED)
    if found != job.counts or sum(found) != job.size:
        yield Fault(f"{name}: counts are {job.counts}, the bytes say {found}", job.id)
    terminal = sum(found[TaskState.COMPLETED :])
    if job.last_seq != terminal:
        yield Fault(f"{name}: {job.last_seq} results are numbered, {terminal} tasks are terminal", job.id)
    for text in job.queue_faults():
        yield Fault(f"{name}: {text}", job.id)
    running = {task for task, byte in enumerate(job.states) if byte == RUNNING}
    if running != job.running.keys():
        yield Fault(f"{name}: runs {sorted(job.running)}, the bytes say {sorted(running)}", job.id)
    for task, mark in job.marks.items():
        if job.state(task).terminal:
            yield Fault(f"{name}: task {task} has ended, but is marked", job.id, task)
        if mark.twins and task not in job.running:
            yield Fault(f"{name}: task {task} has twins, but does not run", job.id, task)
        if mark.cancelling and task not in job.running and not job.settling:
            yield Fault(f"{name}: task {task} is being cancelled, but does not run", job.id, task)
        if mark.losses >= books.settings.losses_max:
            yield Fault(f"{name}: task {task} is poison, but was not set aside", job.id, task)
        if len(mark.superseded) > books.settings.superseded_max:
            yield Fault(f"{name}: task {task} remembers too many attempts", job.id, task)
    for attempt in _live(job):
        if attempt.worker.hand.get(attempt.id) is not attempt or attempt.void:
            text = f"{name}: task {attempt.task} runs on {attempt.worker.id}, which does not have it"
            yield Fault(text, job.id, attempt.task)
    if (job.ended is not None) != (not job.open and terminal == job.size and not job.settling):
        yield Fault(f"{name}: ended is {job.ended}, though {terminal} of {job.size} are terminal", job.id)
    if job.cancelled and job.queued and not job.settling:
        yield Fault(f"{name}: is cancelled, but has queued tasks", job.id)


def _live(job: Job) -> list[Attempt]:
    return [*job.running.values(), *(twin for mark in job.marks.values() for twin in mark.twins)]


def _worker_faults(books: Books, worker: Worker) -> Iterator[Fault]:
    name = f"worker {worker.id}"
    per_job = Counter(attempt.job for attempt in worker.hand.values())
    if per_job != worker.per_job:
        yield Fault(f"{name}: counts of its hand are wrong")
    used = sum(attempt.job.terms.slots for attempt in worker.hand.values())
    slots = worker.offer.slots
    if used != worker.used or worker.busy != min(used, slots):
        yield Fault(f"{name}: {worker.used} slots are counted as used, {used} are")
    for number, attempt in worker.hand.items():
        job, task = attempt.job, attempt.task
        if number != attempt.id or attempt.worker is not worker:
            yield Fault(
                f"{name}: holds attempt {attempt.id} of {attempt.worker.id} as {number}", job.id, task
            )
        if number >= books.next_attempt:
            yield Fault(f"{name}: holds attempt {number}, which was never given out", job.id, task)
        if not attempt.void and not attempt.unwelcome and not may_run(job, worker):
            text = f"{name}: has attempt {number}, though the job or the owner does not want that"
            yield Fault(text, job.id, task)
        if not attempt.void and not any(live is attempt for live in _attempts_of(job, task)):
            yield Fault(f"{name}: attempt {number} is live, but its task does not know it", job.id, task)
    if worker.revoking is not None and worker.revoking not in worker.per_job:
        yield Fault(f"{name}: was asked to give back tasks of a job that it does not hold")
    if books.pool.workers.get(worker.id) is not worker or worker not in worker.cls.members:
        yield Fault(f"{name}: is not where it belongs")
    if not worker.takes_tasks and worker in worker.cls.hungry:
        yield Fault(f"{name}: is drained or barred, but wants work")
    should_be_idle = worker.takes_tasks and used < slots and len(worker.hand) < books.settings.backlog_max
    if worker.idle != should_be_idle or (worker.idle and worker not in worker.cls.hungry):
        yield Fault(f"{name}: idle is {worker.idle} with {used} of {slots} slots used")


def _attempts_of(job: Job, task: TaskIndex) -> list[Attempt]:
    mark = job.marks.get(task)
    current = job.running.get(task)
    return ([] if current is None else [current]) + ([] if mark is None else mark.twins)


def _pool_faults(books: Books) -> Iterator[Fault]:
    pool = books.pool
    workers = pool.workers.values()
    if pool.slots != sum(w.offer.slots for w in workers) or pool.busy != sum(w.busy for w in workers):
        yield Fault(f"the pool counts {pool.busy} of {pool.slots} slots as busy, which is wrong")
    order = [w.heard for w in pool._by_heard]
    if order != sorted(order) or len(order) != len(workers) or len(pool._by_touched) != len(workers):
        yield Fault("the order of leases is wrong")
    in_hand: Counter[Job] = Counter()
    for worker in workers:
        in_hand.update(worker.per_job)
    for job in books.jobs.values():
        if job.in_hand != in_hand[job]:
            yield Fault(
                f"job {job.id}: {job.in_hand} attempts are counted, {in_hand[job]} are in hand", job.id
            )
    for user in books.users.values():
        load = sum(job.unit * job.in_hand for job in in_hand.keys() | books.jobs.values() if job.user is user)
        jobs = sum(job.user is user for job in books.jobs.values())
        if user.load != load or user.jobs != jobs:
            yield Fault(f"user {user.name}: load is {user.load}, should be {load}")


def _settling_faults(books: Books) -> Iterator[Fault]:
    settling = books.settling
    waiting = {job for job in books.jobs.values() if job.settling}
    if settling.jobs.keys() != waiting or any(job.ended is not None for job in waiting):
        yield Fault("jobs that wait for their workers are not those that are listed so")
    back = settling.awaited.keys() & books.pool.workers.keys()
    if back:
        yield Fault(f"workers {sorted(back)} are awaited, but are in the pool")
    if settling.active and settling.is_over(books.now):
        yield Fault("nobody is awaited any more, but restored jobs wait")


def _quarantine_faults(books: Books) -> Iterator[Fault]:
    quarantine = books.quarantine
    barred = {w: w.bar for w in books.pool.workers.values() if w.bar is not None}
    if barred != quarantine.barred:
        yield Fault("workers in trouble are not those that are listed so")
    for worker, bar in quarantine.barred.items():
        name = f"worker {worker.id}"
        places = (bar.probe is not None) + (worker in quarantine.ready) + (worker in quarantine.paroles)
        if places != 1 or isinf(bar.until) == (worker in quarantine.paroles):
            yield Fault(f"{name}: is in trouble, but in {places} places of the line for probes")
        if bar.probe is not None and worker.hand.get(bar.probe.id) is not bar.probe:
            yield Fault(f"{name}: does not have its probe {bar.probe.id}")
        job = books.jobs.get(bar.job)
        if (job is None or worker not in job.suspects) is not bar.proven:
            yield Fault(f"{name}: is held back for job {bar.job}, which does not know it", bar.job)
        if not bar.proven and bar.job not in worker.rows:
            yield Fault(f"{name}: is held back without reason", bar.job)
    suspects = {w for job in books.jobs.values() for w in job.suspects}
    if suspects != {w for w, bar in barred.items() if not bar.proven}:
        yield Fault("workers that are held back are not those that jobs know")
    lines = quarantine.ready.keys() | quarantine.asking.keys() | set(quarantine.paroles)
    if not lines <= barred.keys():
        yield Fault("a worker that is in no trouble waits for a probe")
    for worker in books.pool.workers.values():
        if len(worker.rows) > ROWS_MAX or any(row.count < 1 for row in worker.rows.values()):
            yield Fault(f"worker {worker.id}: its rows of failures are wrong")


def _matching_faults(books: Books) -> Iterator[Fault]:
    matching = books.matching
    for job in matching.jobs.values():
        ready = job.queued > 0 and not job.settling
        waiting = job.signature.ready.get(job.terms.priority, {}).get(job.user, [])
        if job.listed != ready or waiting.count(job.id) != ready or waiting != sorted(waiting):
            yield Fault(f"job {job.id}: being a candidate is {job.listed}, should be {ready}", job.id)
    if matching.jobs.keys() != {job.id for job in books.jobs.values() if job.ended is None}:
        yield Fault("jobs that have not ended are not those that are matched")
    for signature in matching.all_signatures():
        yield from _signature_faults(books, signature)
    for user, jobs in matching.users.items():
        kind = {owner for owner in matching.owners.values() if owner.takes(user.name)}
        if user.kind != kind or {job for job in matching.jobs.values() if job.user is user} != jobs.keys():
            yield Fault(f"user {user.name}: his jobs or the owners who take them are wrong")
    for patterns, owner in matching.owners.items():
        classes = sum(cls.owner is owner for cls in matching.classes.values())
        if owner.patterns != patterns or owner.classes != classes:
            yield Fault("an owner's list of users or the number of its classes is wrong")
    for cls in matching.classes.values():
        if not cls.members or cls.capacity != sum(w.offer.slots for w in cls.members if w.takes_tasks):
            yield Fault(f"class {cls.offer}: members or capacity are wrong")
        if cls.idle != sum(w.idle for w in cls.members) or any(w not in cls.members for w in cls.hungry):
            yield Fault(f"class {cls.offer}: idle or hungry workers are wrong")


def _signature_faults(books: Books, signature: Signature) -> Iterator[Fault]:
    matching = books.matching
    name = f"signature {sorted(signature.requires)}/{signature.slots}"
    if isinstance(signature, Crew):
        name += f" of {signature.user.name} for {[str(pattern) for pattern in signature.patterns]}"
        yield from _crew_faults(books, signature, name)
    else:
        fitting = {cls for cls in matching.classes.values() if signature.suits(cls)}
        if fitting != signature.classes.keys() or any(signature not in cls.signatures for cls in fitting):
            yield Fault(f"{name}: its classes are wrong")
        if signature.hungry.keys() != {cls for cls in fitting if cls.hungry}:
            yield Fault(f"{name}: its hungry classes are wrong")
        if (signature in matching.ready) != bool(signature.ready):
            yield Fault(f"{name}: being ready is wrong")
    if signature.capacity != sum(w.offer.slots for w in signature.members() if w.takes_tasks):
        yield Fault(f"{name}: capacity is wrong")
    if signature.jobs != sum(job.signature is signature for job in matching.jobs.values()):
        yield Fault(f"{name}: the number of its jobs is wrong")
    if signature.lenders and signature not in matching.lending:
        yield Fault(f"{name}: somebody could give back tasks of it, and will not be asked")
    asked = sum(
        w.revoking is not None and w.revoking.signature is signature for w in books.pool.workers.values()
    )
    if signature.revokes != asked:
        yield Fault(f"{name}: {signature.revokes} revocations are counted, {asked} are out")


def _crew_faults(books: Books, crew: Crew, name: str) -> Iterator[Fault]:
    named = {w for w in books.pool.workers.values() if crew.suits(w.cls) and crew.means(w)}
    if set(crew.members()) != named or any(w.named.count(crew) != 1 for w in named):
        yield Fault(f"{name}: its workers are wrong")
    if crew.classes or crew.hungry or any(job.signature is crew for job in books.jobs.values()) is False:
        yield Fault(f"{name}: it has classes, or no jobs")


def _naming_faults(books: Books) -> Iterator[Fault]:
    naming = books.matching.naming
    crews = set(naming.crews.values())
    for worker in books.pool.workers.values():
        name = f"worker {worker.id}"
        if not crews.issuperset(worker.named):
            yield Fault(f"{name}: is named by jobs that have ended")
        level = -1
        if worker.named and worker in worker.cls.hungry:
            level = worker.cls.hungry.key(worker) >> LEVEL_BITS
        if naming.level_of(worker) != level or worker.level != level:
            yield Fault(f"{name}: its level is {worker.level}, should be {level}")


def _dispatch_faults(books: Books) -> Iterator[Fault]:
    """After an event is handled nobody is idle whom a queued task fits."""
    if books.touched or books.effects or books.pool.dirty or books.pool.dirty_named:
        yield Fault("something was not settled")
    for cls in books.matching.classes.values():
        job = books.matching.best_for(cls)
        if cls.idle and job is not None:
            yield Fault(f"{cls.idle} workers of a class are idle, though job {job.id} waits", job.id)
    for worker in books.pool.workers.values():
        found = books.matching.best_of(worker) if worker.idle else None
        if found is not None:
            yield Fault(f"worker {worker.id} is idle, though job {found.id} waits", found.id)
        for job in worker.per_job:
            if not 0 < job.unit <= UNIT * job.terms.slots:
                yield Fault(f"job {job.id}: unit {job.unit} is out of bounds", job.id)
