"""How many tasks go to whom: fills hungry workers, and takes back from full ones when others are idle.

Called once per `Scheduler.handle`, after all events are applied. Which job is next is decided by
`matching`; here it is decided how much of it a worker gets:

* a full hand is what its slots can run plus about `lookahead_s` of work, by the job's measured task
  duration; long tasks, tasks that must not run twice and tasks of unknown length travel (nearly) alone;
* it is filled up again when less than half is left, so that short tasks travel by the hundred;
* nobody gets more than his fair part of what is queued: guided self-scheduling (Polychronopoulos and
  Kuck 1987, DOI 10.1109/TC.1987.5009495), down to parcels that are not worth a message of their own;
* when somebody is idle and nothing is queued for him, the fullest hand is asked to give back half of
  what it cannot have started;
* a worker in trouble (`quarantine`) is asked to give back all of that, and gets probes only.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from kestrel.core import effects as fx
from kestrel.core.books import Books
from kestrel.core.jobs import TASK_S_MIN, UNIT, Attempt, Job
from kestrel.core.model import TaskState
from kestrel.core.pool import Worker
from kestrel.core.signatures import Crew, Signature, WorkerClass
from kestrel.core.story import Entry

LENDERS_LOOKED_AT_MAX: Final = 32
"""How many candidates one search for a full hand looks at; the next event goes on where it stopped."""


class Dispatch:
    """Turns queued tasks into assignments."""

    def __init__(self, books: Books) -> None:
        self.books = books

    def settle(self) -> None:
        """Hand out what can be handed out; then say which jobs ended and which changed."""
        books = self.books
        self._release_settled()
        fresh: dict[Signature, None] = {}
        for job in books.touched:
            if job.suspects and job.last_seq == job.size and not job.open:
                books.quarantine.job_is_over(job)
            if job.ended is None and books.matching.update(job):
                fresh[job.signature] = None
        for signature in fresh:
            self._feed_takers_of(signature)
        dirty = [cls for cls in books.pool.dirty if cls.hungry]
        self._feed(dirty)
        named = [worker for worker in books.pool.dirty_named if worker.named]
        for worker in named:
            self._feed_named(worker)
        for cls in dirty:
            if cls.idle:
                self._balance(cls)
        for worker in named:
            if worker.idle:
                self._balance_named(worker)
        books.pool.dirty.clear()
        books.pool.dirty_named.clear()
        if books.quarantine.barred:
            self._ask_the_barred()
            for worker in books.quarantine.due():
                self._give_probe(worker)
        touched, books.touched = books.touched, {}
        for job in touched:
            books.end_if_done(job)
        books.effects.extend([fx.AnnounceJob(job.id) for job in touched])

    def _release_settled(self) -> None:
        """The grace period after a restart is over: what is still queued has no worker."""
        books = self.books
        settling = books.settling
        if not settling.active or not settling.is_over(books.now):
            return
        jobs, missing = settling.finish()
        books.effects.extend([fx.RecordWorker(worker, False) for worker in missing])
        for job in jobs:
            books.touched[job] = None
            if job.cancelled:
                books.cancel_queued(job, job.cancel_queued())
                job.marks = {task: mark for task, mark in job.marks.items() if task in job.running}
                continue
            unwanted = [t for t, mark in job.marks.items() if mark.cancelling and t not in job.running]
            books.cancel_waiting(job, sorted(unwanted))
            if not job.terms.restart:
                self._set_aside_given_out(job)

    def _set_aside_given_out(self, job: Job) -> None:
        """Nobody came back with these, and they must not run twice."""
        lost = "it was given out before the manager was restarted, and no worker came back with it"
        reason = f"{lost}; it must not run twice"
        for task in [t for t, mark in job.marks.items() if mark.given_out and t not in job.running]:
            self.books.finish(job, task, TaskState.NODE_FAIL, 0, "", reason=reason)

    # --- filling hands --------------------------------------------------------------------------------

    def _feed_takers_of(self, signature: Signature) -> None:
        """Queued tasks appeared: serve those who want work, the classes in turn."""
        matching = self.books.matching
        while signature.ready and (worker := matching.taker_of(signature)) is not None:
            job = matching.best_of(worker)
            if job is not None:
                self._serve(worker, job)

    def _feed(self, classes: list[WorkerClass]) -> None:
        """Somebody in these classes wants work: serve the classes in turn."""
        line = deque(classes)
        while line:
            cls = line.popleft()
            job = self.books.matching.best_for(cls) if cls.hungry else None
            worker = cls.hungry.first() if job is not None else None
            if worker is not None and worker.named:
                job = self.books.matching.best_of(worker)
            if job is not None and worker is not None:
                self._serve(worker, job)
                line.append(cls)

    def _feed_named(self, worker: Worker) -> None:
        """This worker wants work, and jobs name it."""
        while worker in worker.cls.hungry:
            job = self.books.matching.best_of(worker)
            if job is None:
                break
            self._serve(worker, job)

    def _serve(self, worker: Worker, job: Job) -> None:
        """Give a hungry worker its part of a job, or take it out of the line."""
        room = self._room(worker, job)
        if room < 1:
            self.books.pool.sate(worker)
            return
        part = self._fair_part(worker, job)
        self._assign(worker, job, min(room, part, self.books.settings.batch_max))
        if part < room and worker.used >= worker.offer.slots:
            self.books.pool.sate(worker)

    def _room(self, worker: Worker, job: Job) -> int:
        """How many tasks of the job the worker's hand should take now; 0 when there is no free slot for it.

        A free slot that is too narrow for the task is reason enough for one: it waits there for the
        others to end, else narrow tasks would keep a wide one out for ever.
        """
        slots = worker.offer.slots
        room = (slots * UNIT - worker.load()) // job.unit
        if not job.samples and job.terms.restart:
            a_little = 1 + slots // 4
            room = max(room, (slots + a_little - worker.used) // job.terms.slots)
        if room < 1:
            if worker.used >= slots:
                return 0
            room = 1
        return min(room, self.books.settings.backlog_max - len(worker.hand))

    def _fair_part(self, worker: Worker, job: Job) -> int:
        """The worker's part of the queue by its slots, but no less than a parcel worth sending."""
        slots = worker.offer.slots
        part = -(-job.queued * slots // job.signature.capacity)
        if job.samples:
            a_time = int(self.books.settings.parcel_s_min / max(job.task_s, TASK_S_MIN))
            part = max(part, slots // job.terms.slots * a_time)
        return part

    def _assign(self, worker: Worker, job: Job, count: int) -> None:
        books = self.books
        tasks = job.take(count)
        first = books.next_attempt
        books.next_attempt = first + len(tasks)
        hand, running = worker.hand, job.running
        if not hand:
            worker.progress = books.now
        for number, task in enumerate(tasks, first):
            hand[number] = running[task] = Attempt(number, job, task, worker)
        worker.count(job, len(tasks))
        if not job.terms.restart:
            for task in tasks:
                books.give_out(job, task, True)
        books.touched[job] = None
        books.matching.update(job)
        books.effects.append(fx.AssignTasks(worker.id, job.id, first, list(tasks)))
        books.story.add(Entry(books.now, job.id, tasks, "given out", worker.id, first, True))
        books.pool.refresh(worker)
        self._note_excess(worker, job)

    # --- workers in trouble ---------------------------------------------------------------------------

    def _ask_the_barred(self) -> None:
        """Have them give back what they have not started, one job at a time, and each job once."""
        books = self.books
        for worker in list(books.quarantine.asking):
            if worker.revoking is not None:
                continue
            asked = books.quarantine.barred[worker].asked
            jobs = (j for j in worker.per_job if j.ended is None and j.id not in asked)
            job = next((j for j in jobs if _excess(worker, j) > 0), None)
            if job is None:
                del books.quarantine.asking[worker]
                continue
            asked.add(job.id)
            self._revoke(worker, job, _excess(worker, job))

    def _give_probe(self, worker: Worker) -> None:
        """One task, to see whether the worker is well again; if there is none that fits, it waits for one."""
        free = worker.offer.slots - worker.used
        if worker.drained or free < 1:
            return
        job = self.books.matching.probe_for(worker, free)
        if job is not None:
            number = self.books.next_attempt
            self._assign(worker, job, 1)
            self.books.quarantine.probe_given(worker, worker.hand[number])

    # --- taking back ----------------------------------------------------------------------------------

    def note_excess(self, worker: Worker) -> None:
        """The worker's hand was changed by more than reports: see what it could give back."""
        for job in worker.per_job:
            if job.ended is None:
                self._note_excess(worker, job)

    def _note_excess(self, worker: Worker, job: Job) -> None:
        excess = _excess(worker, job)
        if excess > 0:
            job.lenders.put(worker, -excess)
            self.books.matching.lend(job)

    def look_for_balance(self) -> None:
        """Time passed: tasks may take longer than was thought while others are idle."""
        matching = self.books.matching
        for signature in list(matching.lending):
            if not signature.lenders:
                del matching.lending[signature]
                continue
            if isinstance(signature, Crew):
                self._relieve(signature, matching.naming.idle_in(signature))
            for cls in signature.hungry:
                if cls.idle and not self._relieve(signature, cls.idle):
                    break

    def _balance(self, cls: WorkerClass) -> None:
        """Workers of this class are idle, and nothing is queued that they could run."""
        for signature in cls.signatures:
            if signature.lenders:
                self._relieve(signature, cls.idle)

    def _balance_named(self, worker: Worker) -> None:
        """This worker is idle, and nothing is queued that names it."""
        for crew in worker.named:
            if crew.lenders:
                self._relieve(crew, self.books.matching.naming.idle_in(crew))

    def _relieve(self, signature: Signature, idle: int) -> bool:
        """Ask for at most as many hands' excess as there are idle workers; false if none was found."""
        while signature.revokes < idle:
            if not self._revoke_from_fullest(signature):
                return False
        return True

    def _revoke_from_fullest(self, signature: Signature) -> bool:
        """The keys in `lenders` are upper bounds: reports only make hands smaller."""
        books = self.books
        for _ in range(LENDERS_LOOKED_AT_MAX):
            job = next(iter(signature.lenders), None)
            if job is None:
                return False
            worker = job.lenders.first()
            if worker is None:
                del signature.lenders[job]
                continue
            excess = _excess(worker, job)
            if excess <= 0 or worker.revoking is not None:
                job.lenders.discard(worker)
            elif job.lenders.key(worker) != -excess:
                job.lenders.put(worker, -excess)
            elif self._wait_s(worker, job, excess) < books.settings.parcel_s_min:
                signature.lenders.move_to_end(job)
                if len(signature.lenders) == 1:
                    return False
            else:
                job.lenders.discard(worker)
                self._revoke(worker, job, (excess + 1) // 2)
                return True
        return False

    def _revoke(self, worker: Worker, job: Job, count: int) -> None:
        worker.revoking = job
        job.revokes += 1
        job.signature.revokes += 1
        self.books.effects.append(fx.RevokeTasks(worker.id, job.id, count))

    def _wait_s(self, worker: Worker, job: Job, excess: int) -> float:
        """How long the worker will need for its excess; its silence says that tasks are long."""
        task_s = max(job.task_s, self.books.now - worker.progress)
        return excess * job.terms.slots * task_s / worker.offer.slots


def _excess(worker: Worker, job: Job) -> int:
    """How many tasks of the job the worker has, but cannot have started."""
    over = worker.used - worker.offer.slots
    return min(worker.per_job.get(job, 0), -(-over // job.terms.slots))
