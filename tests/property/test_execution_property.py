"""The worker's execution machine under any order of events: nothing dropped, nothing run twice."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kestrel.core import execution_events as xe
from kestrel.core.execution import Execution, ExecutionSettings

SLOTS = 3
JOBS = {1: 1, 2: 2, 3: 3, 4: 1, 5: 1}
REFUSED = 5
"""The owner of the machine does not let this job run."""


def render(ending: xe.Ending) -> xe.Finished:
    body = f"{ending.end.value}:{ending.attempt}".encode()
    return xe.Finished(ending.job, ending.task, ending.attempt, body, len(body))


class ExecutionMachine(RuleBasedStateMachine):
    """A manager and a launcher that do anything they may, beside the machine."""

    @initialize()
    def begin(self) -> None:
        self.life = 1
        self.now = 0.0
        self.spool: dict[int, xe.Finished] = {}
        self.numbers: set[int] = set()
        self.next_attempt = 1
        self.accepted: set[int] = set()
        self.started: set[int] = set()
        self.settled: set[int] = set()
        """Given back, or acknowledged: not the machine's business any more."""
        self.epoch = 0
        """The latest life of the manager that this process knows."""
        self.welcomed = False
        self.left = False
        self.spool_fails = False
        self.closed = False
        self.stopped: set[int] = set()
        self.sent: xe.SendReport | None = None
        self.known_jobs: set[int] = set()
        self.new_machine()

    def new_machine(self) -> None:
        self.in_launcher: dict[int, int] = {}
        self.machine = Execution(
            ExecutionSettings(
                slots=SLOTS, queued_max=12, finished_max=10, handover_max=4, report_attempts_max=4
            ),
            render,
            life=self.life,
            restored=list(self.spool.values()),
        )

    def handle(self, event: xe.ExecutionEvent) -> list[xe.ExecutionEffect]:
        effects = self.machine.handle(event, self.now)
        for effect in effects:
            match effect:
                case xe.StartAttempts(starts):
                    assert not self.spool_fails, "what ends now cannot be kept"
                    for start in starts:
                        assert start.attempt not in self.started, "run twice"
                        assert start.job != REFUSED
                        assert not self.closed, "the owner needs the machine"
                        self.started.add(start.attempt)
                        self.in_launcher[start.attempt] = start.slots
                case xe.StopProcesses(attempts):
                    assert set(attempts) <= set(self.in_launcher)
                    self.stopped |= set(attempts)
                case xe.KeepFinished(finished):
                    for f in finished:
                        assert f.attempt in self.accepted
                        assert f.attempt not in self.spool
                        assert f.attempt not in self.settled
                        self.spool[f.attempt] = f
                case xe.ForgetFinished(attempts):
                    assert self.sent is not None
                    assert set(attempts) == {f.attempt for f in self.sent.finished}
                    for attempt in attempts:
                        del self.spool[attempt]
                        self.settled.add(attempt)
                    self.sent = None
                case xe.SendReport(number, finished):
                    assert self.welcomed
                    assert all(self.spool[f.attempt] == f for f in finished), "told before it was kept"
                    if number in self.numbers:
                        assert self.sent == effect, "a number stands for one report only"
                    self.numbers.add(number)
                    self.sent = effect
                case xe.SendRevoked(_, attempts):
                    assert not set(attempts) & (set(self.in_launcher) | set(self.spool))
                    assert not set(attempts) & self.settled
                    self.settled |= set(attempts)
                case xe.SendProfile(held):
                    named = {h.attempt for h in held}
                    open_ones = self.accepted - self.settled
                    assert named <= open_ones
                    assert not (set(self.in_launcher) | set(self.spool)) - named
                    self.settled |= open_ones - named
                case xe.LeavePool():
                    assert not self.in_launcher
                    assert not self.left
                    self.left = True
                case xe.AnnounceLoad():
                    assert self.welcomed
        self.machine.check()
        return effects

    # --- the manager ------------------------------------------------------------------------------

    @rule(step=st.sampled_from([0, 0, 1, -1]))
    def welcome(self, step: int) -> None:
        """By the same life of the manager, a new one, or one that has been fenced."""
        epoch = max(1, self.epoch + step)
        old = self.machine.counters.old_welcomes
        if epoch >= self.epoch:
            self.welcomed = True
            self.epoch = epoch
            self.known_jobs = set()
        self.handle(xe.ManagerWelcomed(epoch, 0.005, 60))
        assert self.machine.counters.old_welcomes == old + (epoch < self.epoch)
        assert self.machine.welcomed == self.welcomed

    @rule()
    def manager_lost(self) -> None:
        self.handle(xe.ManagerLost())
        self.welcomed = False

    @rule()
    def introduce(self) -> None:
        self.handle(xe.IntroductionDue(100))
        self.welcomed = False

    @rule(job=st.sampled_from(sorted(JOBS)), count=st.integers(1, 6), with_spec=st.booleans())
    def assign(self, job: int, count: int, with_spec: bool) -> None:
        if not self.epoch:
            return
        first = self.fresh(self.epoch, count)
        self.accepted |= set(range(first, first + count))
        spec = "spec" if with_spec or job not in self.known_jobs else None
        self.known_jobs.add(job)
        tasks = list(range(count))
        self.handle(xe.TasksReceived(job, first, tasks, None, spec, JOBS[job], job == REFUSED))

    def fresh(self, epoch: int, count: int) -> int:
        first = (epoch << 32) + self.next_attempt
        self.next_attempt += count
        return first

    @rule(step=st.sampled_from([-1, 1]), count=st.integers(1, 3))
    def assign_by_another_life(self, step: int, count: int) -> None:
        epoch = self.epoch + step
        if epoch > 0:
            before = self.machine.counters.foreign_tasks
            effects = self.handle(
                xe.TasksReceived(1, self.fresh(epoch, count), list(range(count)), None, "spec", 1)
            )
            assert self.machine.counters.foreign_tasks == before + count
            assert all(isinstance(e, xe.AnnounceLoad | xe.SendReport) for e in effects)

    @rule(data=st.data())
    def assign_again(self, data: st.DataObject) -> None:
        mine = sorted(a for a in self.accepted if a >> 32 == self.epoch)
        if self.life == 1 and mine:
            attempt = data.draw(st.sampled_from(mine))
            before = self.machine.counters.duplicates
            self.handle(xe.TasksReceived(1, attempt, [0], None, "spec", 1))
            assert self.machine.counters.duplicates == before + 1

    @rule(job=st.sampled_from(sorted(JOBS)), count=st.integers(1, 5))
    def revoke(self, job: int, count: int) -> None:
        effects = self.handle(xe.RevocationRequested(job, count))
        answers = [e for e in effects if isinstance(e, xe.SendRevoked)]
        assert len(answers) == 1
        assert len(answers[0].attempts) <= count

    @rule(data=st.data())
    def stop(self, data: st.DataObject) -> None:
        attempts = st.lists(st.sampled_from([*sorted(self.accepted), 7 << 50]), max_size=3)
        self.handle(xe.StopRequested(data.draw(attempts)))

    @precondition(lambda self: self.sent is not None and self.welcomed)
    @rule(offset=st.sampled_from([0, 0, 0, -1, 1]), by=st.sampled_from([0, 0, 1, -1, None]))
    def acknowledge(self, offset: int, by: int | None) -> None:
        """By the life that welcomed, another one, or one that does not say."""
        assert self.sent is not None
        epoch = 0 if by is None else self.epoch + by
        effects = self.handle(xe.ReportStored(self.sent.number + offset, epoch))
        if epoch not in (0, self.epoch):
            assert not any(isinstance(e, xe.ForgetFinished) for e in effects)

    # --- the launcher -----------------------------------------------------------------------------

    @precondition(lambda self: self.in_launcher)
    @rule(
        data=st.data(),
        exit_code=st.sampled_from([0, 0, 1, None]),
        wall=st.sampled_from([0.001, 0.001, 0.001, 5.0]),
        back=st.booleans(),
    )
    def end(self, data: st.DataObject, exit_code: int | None, wall: float, back: bool) -> None:
        attempt = data.draw(st.sampled_from(sorted(self.in_launcher)))
        beyond = sum(self.in_launcher.values()) > SLOTS
        del self.in_launcher[attempt]
        if back and beyond:
            self.started.discard(attempt)
            self.handle(xe.ProcessesEnded([xe.ProcessEnd(attempt, None, unstarted=True)]))
            assert (attempt in self.spool) == (attempt in self.stopped)
        else:
            self.handle(xe.ProcessesEnded([xe.ProcessEnd(attempt, exit_code, wall)]))
            if attempt in self.stopped:
                state = "cancelled"
            else:
                state = "completed" if exit_code == 0 else "failed"
            assert self.spool[attempt].body == f"{state}:{attempt}".encode()

    @rule()
    def launcher_failed(self) -> None:
        lost, self.in_launcher = list(self.in_launcher), {}
        self.handle(xe.LauncherFailed(lost))

    @rule()
    def spool_fails_or_is_mended(self) -> None:
        self.spool_fails = not self.spool_fails
        self.handle(xe.SpoolFailed() if self.spool_fails else xe.SpoolMended())

    @rule(stop=st.booleans())
    def hours_end_or_begin(self, stop: bool) -> None:
        self.closed = not self.closed
        if self.closed:
            waiting = self.accepted - self.settled - set(self.in_launcher) - set(self.spool)
            self.handle(xe.HoursEnded(stop))
            self.settled |= waiting  # told, or known by the next profile
        else:
            self.handle(xe.HoursBegan())

    # --- time, and the worker itself --------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.001, 0.006, 1.0, 25.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.handle(xe.DeadlineReached())
        deadline = self.machine.deadline()
        assert deadline is None or deadline > self.now

    @precondition(lambda self: self.now > 25)
    @rule(kill=st.booleans())
    def shut_down(self, kill: bool) -> None:
        open_ones = self.accepted - self.settled - set(self.in_launcher) - set(self.spool)
        self.handle(xe.ShutdownRequested(kill))
        self.settled |= open_ones  # told, or known by our going

    @precondition(lambda self: self.now > 25)
    @rule()
    def killed_and_started_again(self) -> None:
        """kill -9: only the spool survives; the manager learns from the next profile what is gone."""
        self.life += 1
        self.welcomed = self.left = self.spool_fails = self.closed = False
        self.epoch = 0
        self.sent = None
        self.settled |= self.accepted - set(self.spool)
        self.new_machine()

    @invariant()
    def every_attempt_is_somewhere(self) -> None:
        if not hasattr(self, "machine"):
            return
        for attempt in self.accepted - self.settled:
            places = (
                self.machine.is_waiting(attempt),
                self.machine.is_running(attempt),
                attempt in self.spool,
            )
            assert sum(places) == 1, f"attempt {attempt} is in {places}"
        assert {a for a in self.in_launcher if self.machine.is_running(a)} == set(self.in_launcher)


ExecutionMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestExecutionMachine = ExecutionMachine.TestCase
