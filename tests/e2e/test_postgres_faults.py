"""The store in PostgreSQL and what happens to servers, networks and managers: nothing lost, nothing twice."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import parts.postgres
from kestrel.errors import StoreError
from kestrel.ports import FENCED, CommitDone, CommitFailed, LeaseView, Read, ReadResults, Write
from parts.cutting import CuttingProxy
from parts.postgres import Postgres, frozen
from parts.stores import Bench, Loop, Maker, ends, job, result

parts.postgres.need_psycopg()

from kestrel.store.postgres import PostgresSettings, PostgresStore  # noqa: E402 - may be missing

QUICK = PostgresSettings(
    keeper_answer_s=1.0, answer_s=2.0, take_wait_s=0.3, reconnect_s=0.01, reconnect_s_max=0.1
)
TRIES_MAX = 2000


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """One that may be killed, with fsync."""
    with Postgres() as server:
        yield server


class Manager(Bench):
    """Numbers its units, and tries again what failed with `retry`, as a manager does."""

    def __init__(self, place: str, settings: PostgresSettings = QUICK) -> None:
        def make(loop: Loop, path: Any, pool: str) -> PostgresStore:
            return PostgresStore(place, loop.calls.put, pool=pool, settings=settings)

        super().__init__(Maker(make), path=None)  # type: ignore[arg-type]
        self.unit = 0
        self.failures: list[StoreError] = []

    def keep(self, *writes: Write, reads: tuple[Read, ...] = ()) -> CommitDone:
        self.unit += 1
        for _ in range(TRIES_MAX):
            outcome = self.commit(*writes, reads=reads, unit=self.unit)
            if isinstance(outcome, CommitDone):
                return outcome
            assert isinstance(outcome.problem, StoreError)
            self.failures.append(outcome.problem)
            if not outcome.problem.retry:
                raise outcome.problem
            threading.Event().wait(0.01)  # as a manager waits before it tries again
        raise AssertionError(f"it does not work any more: {self.failures[-1]}")

    def ask(self, question: Callable[[Callable[[Any], None]], None]) -> Any:
        answers: list[Any] = []
        question(answers.append)
        while not answers:
            self.loop.run_one()
        return answers[0]

    def look(self) -> LeaseView:
        view = self.ask(self.store.look)  # type: ignore[attr-defined]
        assert isinstance(view, LeaseView), view
        return view

    def take(self, name: str = "me") -> int | None:
        return self.ask(lambda done: self.store.take(self.look(), name, done))  # type: ignore[attr-defined, no-any-return]


@pytest.fixture
def manager(server: Postgres) -> Iterator[Callable[..., Manager]]:
    made: list[Manager] = []

    def make(place: str, settings: PostgresSettings = QUICK) -> Manager:
        made.append(Manager(place, settings))
        return made[-1]

    yield make
    for one in made:
        one.store.close()


Make = Callable[..., Manager]


def end_sessions(server: Postgres, place: str, work: str = "%") -> None:
    server.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE pid <> pg_backend_pid() AND datname = current_database() AND application_name LIKE %s",
        place,
        (f"kestrel {work}",),
    )


def test_a_session_that_the_server_ends_is_made_anew_and_nobody_notices(
    server: Postgres, manager: Make, caplog: pytest.LogCaptureFixture
) -> None:
    place = server.database()
    caplog.set_level("INFO")
    one = manager(place)
    one.open()
    one.keep(job(size=50))
    for task in range(50):
        if task % 10 == 5:
            end_sessions(server, place)
        one.keep(result(task, task + 1))
    messages = [record.message for record in caplog.records]
    assert messages.count("store_connection_lost") == messages.count("store_connected_again") == 5
    assert one.failures == []
    assert len(one.read(ReadResults(1, 0, 99))) == 50
    assert one.look().epoch == 1


@pytest.mark.parametrize("answered", [True, False])
def test_a_commit_whose_answer_is_lost_is_stored_once(
    server: Postgres, manager: Make, answered: bool
) -> None:
    place = server.database()
    with CuttingProxy(server.port) as proxy:
        one = manager(place.replace(f":{server.port}", f":{proxy.port}"))
        one.open()
        one.keep(job(1))
        proxy.cut_at(b"COMMIT", answered=answered)
        done = one.keep(job(2), result(0, 1, number=1), reads=(ReadResults(1, 0, 9),))
        assert proxy.cut.is_set()
        assert done.duplicates == 0
        assert ends(done.answers[0]) == [(1, 0, "COMPLETED")]
        one.store.close()
    content = manager(place).open()
    assert [record.job for record in content.jobs] == [1, 2]
    assert content.jobs[0].counts.completed == 1


@pytest.mark.parametrize("kill", [False, True], ids=["restarted", "killed"])
def test_a_server_that_goes_and_comes_back_loses_nothing_that_was_answered(
    server: Postgres, manager: Make, kill: bool
) -> None:
    one = manager(server.database())
    one.open()
    one.keep(job(size=10_000))
    answered: list[int] = []
    halfway, stop = threading.Event(), threading.Event()

    def stream() -> None:
        for task in range(10_000):
            one.keep(result(task, task + 1))
            answered.append(task)
            if task == 20:
                halfway.set()
            if stop.is_set():
                return

    thread = threading.Thread(target=stream)
    thread.start()
    assert halfway.wait(60)
    server.restart(kill=kill)
    before = len(answered)
    for _ in range(TRIES_MAX):
        if len(answered) > before + 20:
            break
        threading.Event().wait(0.01)
    stop.set()
    thread.join()
    assert one.failures, "nothing was cut"
    assert all(problem.retry for problem in one.failures)
    assert len(answered) > before + 20, "it goes on by itself"
    found = ends(one.read(ReadResults(1, 0, 10_001)))
    assert [task for _, task, _ in found] == answered
    assert one.ask(lambda done: one.store.renew(1, done)) is True  # type: ignore[attr-defined]


def test_a_server_that_stands_still_is_given_up_and_found_again(server: Postgres, manager: Make) -> None:
    one = manager(server.database())
    one.open()
    one.keep(job())
    with frozen(server):
        answer = one.ask(one.store.look)  # type: ignore[attr-defined]
        assert isinstance(answer, StoreError)
        assert answer.retry
        outcome = one.commit(result(0, 1), unit=2)
        assert isinstance(outcome, CommitFailed)
        assert isinstance(outcome.problem, StoreError)
        assert outcome.problem.retry
    one.unit = 1
    assert one.keep(result(0, 1)).duplicates == 0
    assert one.look().epoch == 1


STOPPED_HOLDER = """
import signal, sys, time
from kestrel.store.postgres import PostgresSettings, PostgresStore
from kestrel.store.postgres_session import Address
from kestrel.store.postgres_writer import Writer
settings = PostgresSettings(transaction_idle_s=600)
store = PostgresStore(sys.argv[1], lambda call: None, settings=settings)
epoch = store.open(lambda record: None).epoch
session = Writer(Address(sys.argv[1]), settings, epoch, time.time).connect()
session.send("BEGIN")
session.ask("UPDATE kestrel_meta SET unit = 7 WHERE epoch = %s RETURNING unit", (epoch,))
print("inside", flush=True)
signal.pause()
"""


def test_a_stopped_holder_with_an_open_transaction_cannot_keep_the_lease(
    server: Postgres, manager: Make
) -> None:
    place = server.database()
    holder = subprocess.Popen([sys.executable, "-c", STOPPED_HOLDER, place], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"inside\n"
        holder.send_signal(signal.SIGSTOP)
        other = manager(place)
        assert other.take() == 2
        assert other.open().epoch == 2
        other.keep(job())
    finally:
        holder.kill()
        holder.wait()
        assert holder.stdout is not None
        holder.stdout.close()


def test_managers_that_take_over_from_each_other_in_full_flight_lose_and_double_nothing(
    server: Postgres, manager: Make
) -> None:
    place = server.database()
    first = manager(place)
    first.open()
    first.keep(job(size=100_000))
    first.store.close()
    stored: list[int] = []

    def live(one: Manager, epoch: int, streaming: threading.Event, seconds: list[StoreError]) -> None:
        content = one.open()
        assert content.epoch == epoch
        seq = content.jobs[0].last
        assert seq == len(content.unfinished[0].states) - content.unfinished[0].states.count(0)
        unit = 0
        open_units: dict[int, int] = {}
        while True:
            unit, seq = unit + 1, seq + 1
            open_units[unit] = seq - 1

            def heard(outcome: CommitDone | CommitFailed, unit: int = unit) -> None:
                if isinstance(outcome, CommitDone):
                    assert outcome.duplicates == 0
                    stored.append(open_units.pop(unit))
                else:
                    assert isinstance(outcome.problem, StoreError)
                    seconds.append(outcome.problem)

            one.store.commit([result(seq - 1, seq)], [], heard, unit=unit)
            while len(open_units) > 20 or not one.loop.calls.empty():
                one.loop.run_one()
                if seconds:
                    return
            if unit > 100:
                streaming.set()

    previous: threading.Thread | None = None
    ends_of: list[list[StoreError]] = []
    for epoch in range(2, 8):
        one = manager(place)
        assert one.take(f"manager {epoch}") == epoch
        streaming = threading.Event()
        ends_of.append([])
        thread = threading.Thread(target=live, args=(one, epoch, streaming, ends_of[-1]))
        thread.start()
        if previous is not None:
            previous.join()
        assert streaming.wait(60)
        previous = thread
    last = manager(place)
    assert last.take("the last") == 8
    assert previous is not None
    previous.join()
    assert all(problems and problems[0].code == FENCED for problems in ends_of)
    content = last.open()
    found = ends(last.read(ReadResults(1, 0, 100_000)))
    assert [seq for seq, _, _ in found] == list(range(1, len(found) + 1))
    assert len({task for _, task, _ in found}) == len(found) == content.jobs[0].counts.completed
    # What was told as stored is there, once; what was under way when the lease went may be there, too.
    assert len(set(stored)) == len(stored)
    assert set(stored) <= {task for _, task, _ in found}
