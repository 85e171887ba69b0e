"""Addresses that are none, servers that are not there, databases that are not ours: refused in plain words.

Every message names the database, says what to do, and never shows a password.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

import parts.postgres
from kestrel.errors import KestrelError, StoreError
from kestrel.ports import LeaseView
from kestrel.store.archive import Archive
from parts.postgres import Postgres
from parts.prosody import free_port
from parts.stores import Bench, Loop, Maker, ends, job, result, words

parts.postgres.need_psycopg()

import psycopg  # noqa: E402 - it may be missing

from kestrel.store import postgres_schema as schema  # noqa: E402
from kestrel.store.postgres import PostgresSettings, PostgresStore  # noqa: E402
from kestrel.store.postgres_archive import PostgresArchive  # noqa: E402
from kestrel.store.postgres_problems import explain  # noqa: E402
from kestrel.store.postgres_session import Address, Session, from_text, to_text  # noqa: E402

SECRET = "p4ss-w0rd"


@pytest.fixture(scope="module")
def server() -> Postgres:
    return parts.postgres.shared()


def store(place: str, post: Callable[[Callable[[], None]], object] = lambda call: None) -> PostgresStore:
    return PostgresStore(place, post)


def refused(place: str) -> StoreError:
    """Why it cannot be opened."""
    one = store(place)
    try:
        with pytest.raises(StoreError) as caught:
            one.open(lambda record: None)
    finally:
        one.close()
    assert caught.value.hint
    assert SECRET not in shown(caught.value)
    return caught.value


def shown(problem: BaseException | None) -> str:
    """All that a log or a terminal may show of an error."""
    text = ""
    while problem is not None:
        text += f"{problem!r} {problem} {getattr(problem, 'hint', '')} "
        problem = problem.__cause__
    return text


def in_state(server: Postgres, place: str) -> list[tuple[Any, ...]]:
    return server.execute(
        "SELECT relname FROM pg_class WHERE relnamespace = current_schema()::regnamespace ORDER BY 1", place
    )


@pytest.mark.parametrize(
    "dsn",
    [
        f"postgresql://user:{SECRET}@host:port/db",
        f"postgresql://user:{SECRET}/x@host/db",
        "postgresql://user:5432/x@host/db",
        f"postgresql://user:{SECRET}@host/db?no_such_option=1",
        f"postgresql://user:{SECRET}@[::1/db",
        f"postgresql://user:%zz{SECRET}@host/db",
    ],
)
def test_an_address_that_is_none_is_refused_without_showing_it(dsn: str) -> None:
    with pytest.raises(StoreError) as caught:
        store(dsn)
    assert "cannot be understood" in caught.value.text
    assert "%-encode" in caught.value.hint
    assert not caught.value.retry
    assert SECRET not in shown(caught.value)
    assert caught.value.__context__ is None or caught.value.__suppress_context__


@pytest.mark.parametrize("query", ["", f"?password={SECRET}"])
def test_the_place_as_shown_has_no_password(query: str) -> None:
    place = store(f"postgresql://ann:{SECRET}@db.example.org:5433/pool{query}").place
    assert place == "postgresql://ann@db.example.org:5433/pool"


def test_a_server_that_is_not_there_may_come(server: Postgres) -> None:
    problem = refused(f"postgresql://ann:{SECRET}@127.0.0.1:{free_port()}/pool")
    assert "cannot be reached" in problem.text
    assert problem.retry


def test_a_host_that_is_not_there_is_named() -> None:
    problem = refused(f"postgresql://ann:{SECRET}@no-such-host.invalid/pool")
    assert "no-such-host.invalid" in problem.text


def test_a_wrong_password_is_refused(server: Postgres) -> None:
    problem = refused(server.dsn(password=SECRET))
    assert "password" in problem.text
    assert not problem.retry


def test_a_user_that_is_not_there_is_refused(server: Postgres) -> None:
    assert "user" in refused(server.dsn(user="nobody_here", password=SECRET)).text


def test_a_database_that_is_not_there_is_named_with_the_cure(server: Postgres) -> None:
    problem = refused(server.dsn("no_such_pool"))
    assert "there is no database" in problem.text
    assert "createdb" in problem.hint
    assert not problem.retry


def test_without_the_right_to_create_tables_nothing_is_done(server: Postgres) -> None:
    place = server.database()
    server.execute(f"CREATE ROLE guest LOGIN PASSWORD '{SECRET}'", place)
    server.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC", place)
    guest = place.replace(f"kestrel:{parts.postgres.PASSWORD}@", f"guest:{SECRET}@")
    problem = refused(guest)
    assert "permission" in problem.text
    assert "GRANT" in problem.hint
    assert in_state(server, place) == []


def test_a_read_only_server_is_told_from_others(server: Postgres) -> None:
    place = server.database()
    problem = refused(f"{place}?options=-cdefault_transaction_read_only%3Don")
    assert "read-only" in problem.text
    assert "primary" in problem.hint


def test_a_server_with_too_many_connections_may_have_room_later(server: Postgres) -> None:
    place = server.database()
    name = place.rpartition("/")[2]
    server.execute(f"CREATE ROLE many LOGIN PASSWORD '{SECRET}'")
    server.execute(f"ALTER DATABASE {name} CONNECTION LIMIT 0")
    problem = refused(place.replace(f"kestrel:{parts.postgres.PASSWORD}@", f"many:{SECRET}@"))
    assert "too many connections" in problem.text
    assert problem.retry


def test_a_database_of_another_application_is_left_as_it_was(server: Postgres) -> None:
    place = server.database()
    server.execute("CREATE TABLE invoices (number int)", place)
    before = in_state(server, place)
    problem = refused(place)
    assert "another application" in problem.text
    assert "createdb" in problem.hint
    assert in_state(server, place) == before


def test_a_database_that_cannot_hold_every_character_is_refused(server: Postgres) -> None:
    server.execute("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0")
    assert "LATIN1" in refused(server.dsn("latin")).text


def test_a_search_path_that_leads_nowhere_is_refused(server: Postgres) -> None:
    assert "search_path" in refused(f"{server.database()}?options=-csearch_path%3Dnowhere").text


def test_a_newer_database_is_refused_with_both_versions_and_stays_as_it_was(server: Postgres) -> None:
    place = server.database()
    one = store(place)
    one.open(lambda record: None)
    one.close()
    newer = len(schema.MIGRATIONS) + 1
    server.execute("UPDATE kestrel_meta SET version = %s", place, (newer,))
    before = server.execute("SELECT * FROM kestrel_meta, kestrel_lease", place)
    problem = refused(place)
    assert f"version {newer}" in problem.text
    assert f"version {newer - 1}" in problem.text
    assert not problem.retry
    assert server.execute("SELECT * FROM kestrel_meta, kestrel_lease", place) == before


def test_two_managers_that_find_an_empty_database_make_its_tables_once(server: Postgres) -> None:
    for _ in range(5):
        place = server.database()
        answers: list[Any] = []
        answered = threading.Semaphore(0)
        together = threading.Barrier(4)

        def heard(
            answer: Any, answers: list[Any] = answers, answered: threading.Semaphore = answered
        ) -> None:
            answers.append(answer)
            answered.release()

        def start(one: PostgresStore, together: threading.Barrier = together, heard: Any = heard) -> None:
            together.wait()
            one.look(heard)

        stores = [store(place, lambda call: call()) for _ in range(4)]
        threads = [threading.Thread(target=start, args=(one,)) for one in stores]
        for thread in threads:
            thread.start()
        for _ in threads:
            assert answered.acquire(timeout=60)
        for thread, one in zip(threads, stores, strict=True):
            thread.join()
            one.close()
        assert answers == [LeaseView(0, 0, "", False)] * 4


def test_migrations_run_when_the_lease_is_taken_and_not_before(server: Postgres) -> None:
    """While an older Kestrel is the active manager, a newer one that stands by leaves its tables alone."""
    place = server.database()
    one = store(place)
    one.open(lambda record: None)
    one.close()
    session = Session(Address(place), "test", PostgresSettings(), 30.0)
    now = len(schema.MIGRATIONS)
    steps = (*schema.MIGRATIONS, ("ALTER TABLE kestrel_jobs ADD COLUMN colour text",), ("SELECT 1",))
    try:
        assert schema.make_ready(session, "", "", steps) == now
        assert schema.check_owner(session, "", "", len(steps)) == now
        session.send("BEGIN")
        assert schema.migrate(session, now, steps) == now + 2
        session.undo()
        assert schema.check_owner(session, "", "", len(steps)) == now
        session.send("BEGIN")
        schema.migrate(session, now, steps)
        session.ask("COMMIT")
        assert schema.check_owner(session, "", "", len(steps)) == now + 2
        assert session.ask("SELECT colour FROM kestrel_jobs") == []
    finally:
        session.close()


@pytest.mark.parametrize("text", ["", "plain", "\0", "\\0", "\\\0", "a\\\\0\0", "\\", "ünï\0✓\\"])
def test_every_text_comes_back_from_a_column_that_cannot_hold_nul(text: str) -> None:
    assert "\0" not in to_text(text)
    assert from_text(to_text(text)) == text


class FromServer(Exception):
    """An error as the driver raises it."""

    def __init__(self, sqlstate: str) -> None:
        super().__init__(f"said with {SECRET}")
        self.sqlstate = sqlstate


@pytest.mark.parametrize(
    ("sqlstate", "retry"),
    [
        ("53100", True),
        ("53200", True),
        ("53300", True),
        ("40001", True),
        ("40P01", True),
        ("55P03", True),
        ("57014", True),
        ("57P01", True),
        ("57P03", True),
        ("58030", True),
        ("08006", True),
        ("25P03", True),
        ("42501", False),
        ("42P01", False),
        ("XX001", False),
    ],
)
def test_what_may_pass_is_tried_again_and_nothing_shows_a_password(sqlstate: str, retry: bool) -> None:
    problem = explain(FromServer(sqlstate), "postgresql://here", SECRET)
    assert problem.retry is retry
    assert "postgresql://here" in problem.text
    assert problem.hint
    assert SECRET not in shown(problem)


def test_a_server_that_is_not_there_is_told_in_one_line_without_questions() -> None:
    said = (
        'connection failed: connection to server at "127.0.0.1", port 1 failed: Connection refused\n'
        "\tIs the server running on that host and accepting TCP/IP connections?"
    )
    problem = explain(psycopg.OperationalError(said), "postgresql://here")
    assert problem.retry
    assert problem.text == (
        "the database postgresql://here cannot be reached: "
        'connection to server at "127.0.0.1", port 1 failed: Connection refused'
    )


def test_an_address_that_cannot_be_is_not_tried_again() -> None:
    problem = explain(psycopg.OperationalError('connection is bad: invalid port number: "99999"'), "here")
    assert not problem.retry
    assert problem.hint == "correct the port in it"


def archived(place: str) -> Archive:
    return PostgresArchive(place)


def filled(server: Postgres) -> str:
    place = server.database()
    bench = Bench(Maker(lambda loop, _, pool: PostgresStore(place, loop.calls.put, pool=pool)), None, "blue")  # type: ignore[arg-type]
    bench.open()
    bench.done(job(size=3, params=words(0, 1, 2)), job(2), result(1, 1), result(0, 2), unit=1)
    bench.store.close()
    return place


def test_an_archive_shows_what_is_there_beside_a_running_manager(server: Postgres) -> None:
    place = filled(server)
    loop = Loop()
    running = PostgresStore(place, loop.calls.put)
    records = running.open(lambda record: None).jobs
    archive = archived(place)
    try:
        assert (archive.pool, archive.epoch, archive.next_job) == ("blue", 2, 3)
        assert list(archive.jobs()) == records
        outcomes: list[object] = []
        running.commit([result(2, 3)], [], outcomes.append, unit=1)
        while not outcomes:
            loop.run_one()
        found = list(archive.results(1))
        assert ends(found) == [(1, 1, "COMPLETED"), (2, 0, "COMPLETED")]
        assert [r.params for _, r in found] == words(1, 0)
        assert list(archive.flaws()) == []
    finally:
        archive.close()
        running.close()


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        ("DELETE FROM kestrel_jobs WHERE job = 1", "job 1"),
        ("INSERT INTO kestrel_cancelled VALUES (1, 0, 2, 9)", "task 0"),
        ("INSERT INTO kestrel_troubles VALUES (2, 99, 0, 0, false, '[]')", "task 99"),
        ("UPDATE kestrel_lease SET epoch = 77", "epoch 77"),
    ],
)
def test_rows_that_contradict_each_other_are_found(server: Postgres, damage: str, word: str) -> None:
    place = filled(server)
    server.execute(damage, place)
    archive = archived(place)
    try:
        assert any(word in flaw for flaw in archive.flaws())
    finally:
        archive.close()


def test_a_report_that_is_damaged_is_an_error_of_the_store(server: Postgres) -> None:
    place = filled(server)
    server.execute("UPDATE kestrel_results SET body = '{' WHERE seq = 1", place)
    archive = archived(place)
    try:
        with pytest.raises(StoreError, match="damaged"):
            list(archive.results(1))
    finally:
        archive.close()


def test_an_archive_of_a_database_without_tables_is_refused(server: Postgres) -> None:
    with pytest.raises(KestrelError, match="empty"):
        archived(server.database())
