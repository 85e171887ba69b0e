"""The tables of the PostgreSQL store, how they grow from version to version, and which databases are refused.

Called by the rooms `kestrel.store.postgres*`. It must never write to a database that is not ours, or that a
newer Kestrel wrote. A migration, once released, is never edited: a new one is appended. Migrations run in the
transaction that takes the lease: while an older Kestrel is the active manager, its tables stay as they are.
`kestrel_lease`, and `version` and `pool` of `kestrel_meta`, keep their meaning in all versions to come, so
that managers of two versions can wait for each other.

All tables lie in the first schema of the connection's search_path. `kestrel_meta` has one row: `unit` is the
last numbered unit of this epoch that was stored (with a row of its own for the lease, a renewal never waits
for a commit); `writer_…` is the session that writes. Whoever takes the lease changes both rows, that of the
lease first.
"""

from __future__ import annotations

from collections.abc import Sequence

from kestrel.errors import StoreError
from kestrel.store.postgres_session import Session
from kestrel.store.schema import other_pool

APPLICATION = "kestrel"

CREATION_LOCK = 0x4B53_5452
"""`KSTR`: the advisory lock under which an empty database gets its tables."""

RESULTS_SEQ = "kestrel_results_seq"
"""The constraint that no two results of a job have the same number."""

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE kestrel_meta (
            one int PRIMARY KEY CHECK (one = 1),
            application text NOT NULL,
            version int NOT NULL,
            pool text NOT NULL,
            epoch int8 NOT NULL,
            unit int8 NOT NULL,
            next_job int8 NOT NULL,
            writer_pid int,
            writer_since timestamptz) WITH (fillfactor = 50)""",
        "INSERT INTO kestrel_meta VALUES (1, 'kestrel', 0, '', 0, 0, 1)",
        """CREATE TABLE kestrel_lease (
            one int PRIMARY KEY CHECK (one = 1),
            epoch int8 NOT NULL,
            beat int8 NOT NULL,
            holder text NOT NULL,
            pid int,
            since timestamptz) WITH (fillfactor = 50)""",
        "INSERT INTO kestrel_lease VALUES (1, 0, 0, '')",
        """CREATE TABLE kestrel_jobs (
            job int8 PRIMARY KEY,
            owner text NOT NULL,
            submission text NOT NULL,
            submission_key bytea UNIQUE,
            message bytea NOT NULL,
            size int8 NOT NULL,
            open bool NOT NULL,
            is_cancelled bool NOT NULL DEFAULT false,
            submitted float8 NOT NULL,
            state text NOT NULL,
            finished float8 NOT NULL,
            last int8 NOT NULL DEFAULT 0,
            completed int8 NOT NULL DEFAULT 0,
            failed int8 NOT NULL DEFAULT 0,
            cancelled int8 NOT NULL DEFAULT 0,
            timeout int8 NOT NULL DEFAULT 0,
            node_fail int8 NOT NULL DEFAULT 0) WITH (fillfactor = 70)""",
        """CREATE TABLE kestrel_params (
            job int8 NOT NULL,
            chunk int8 NOT NULL,
            body bytea NOT NULL,
            PRIMARY KEY (job, chunk))""",
        """CREATE TABLE kestrel_results (
            job int8 NOT NULL,
            task int8 NOT NULL,
            seq int8 NOT NULL,
            state int2 NOT NULL,
            body text NOT NULL,
            PRIMARY KEY (job, task),
            CONSTRAINT kestrel_results_seq UNIQUE (job, seq))""",
        """CREATE TABLE kestrel_cancelled (
            job int8 NOT NULL,
            first int8 NOT NULL,
            stop int8 NOT NULL,
            seq int8 NOT NULL,
            PRIMARY KEY (job, first),
            CONSTRAINT kestrel_cancelled_seq UNIQUE (job, seq))""",
        """CREATE TABLE kestrel_troubles (
            job int8 NOT NULL,
            task int8 NOT NULL,
            failures int8 NOT NULL,
            losses int8 NOT NULL,
            given_out bool NOT NULL,
            counted text NOT NULL,
            PRIMARY KEY (job, task))""",
        # Keys are hashes: an address may be longer than an index allows.
        "CREATE TABLE kestrel_workers (key bytea PRIMARY KEY, worker text NOT NULL)",
        "CREATE TABLE kestrel_drained (key bytea PRIMARY KEY, worker text NOT NULL)",
    ),
    ("ALTER TABLE kestrel_troubles ADD COLUMN cancelling bool NOT NULL DEFAULT false",),
)
"""`MIGRATIONS[n]` makes version n + 1 out of version n."""

_LOOK = """SELECT current_schema(), to_regclass('kestrel_meta') IS NOT NULL, pg_is_in_recovery(),
    current_setting('server_encoding'), current_setting('server_version_num')::int, (
        SELECT count(*) FROM pg_class c WHERE c.relnamespace = current_schema()::regnamespace
        AND c.relkind IN ('r', 'p', 'v', 'm', 'f') AND NOT EXISTS (
            SELECT 1 FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
            AND d.deptype = 'e'))"""

SERVER_VERSION_MIN = 120000


def check_owner(
    session: Session, place: str, pool: str, newest: int = len(MIGRATIONS), *, to_write: bool = True
) -> int:
    """The version of the tables (0: none yet); raises `StoreError` if the database is not for us to touch."""
    ((schema, ours, standby, encoding, server, tables),) = session.ask(_LOOK)
    if server < SERVER_VERSION_MIN:
        raise StoreError(
            f"the server of {place} is PostgreSQL {server // 10000}, which is too old",
            hint=f"use PostgreSQL {SERVER_VERSION_MIN // 10000} or newer",
        )
    if schema is None:
        raise StoreError(
            f"no schema that exists is in the search_path of {place}",
            hint="CREATE SCHEMA, or correct the search_path of the user or in the address",
        )
    if standby and to_write:
        raise StoreError(
            f"the server of {place} is a read-only standby (replica)",
            hint="name the primary, or several hosts with ?target_session_attrs=read-write",
        )
    if ours:
        return _check_version(session, place, pool, newest)
    if tables:
        raise StoreError(
            f"the database {place} has tables of another application in its schema {schema}",
            hint="make a database for Kestrel alone (createdb kestrel); this one was left as it was",
        )
    if encoding != "UTF8":
        raise StoreError(
            f"the database {place} has the encoding {encoding}, in which not every output can be stored",
            hint="make another one: createdb --encoding=UTF8 --template=template0 kestrel",
        )
    return 0


def _check_version(session: Session, place: str, pool: str, newest: int) -> int:
    ((application, found, owner),) = session.ask("SELECT application, version, pool FROM kestrel_meta")
    if application != APPLICATION:
        raise StoreError(
            f"the database {place} belongs to another application ({application!r})",
            hint="make a database for Kestrel alone (createdb kestrel); this one was left as it was",
        )
    if found > newest:
        raise StoreError(
            f"the database {place} was written by a newer Kestrel: its schema is version {found}, "
            f"this program knows up to version {newest}",
            hint="start the newer Kestrel, or name another database; this one was left as it was",
        )
    if pool and owner not in ("", pool):
        raise other_pool(place, owner, pool)
    return int(found)


def make_ready(
    session: Session, place: str, pool: str, migrations: Sequence[Sequence[str]] = MIGRATIONS
) -> int:
    """Give an empty database its tables → the version now. Two managers may do this at once."""
    version = check_owner(session, place, pool, len(migrations))
    if version:
        return version
    session.send("BEGIN ISOLATION LEVEL READ COMMITTED")
    session.send("SELECT pg_advisory_xact_lock(%s)", (CREATION_LOCK,))
    try:
        version = check_owner(session, place, pool, len(migrations))
        if not version:
            version = migrate(session, 0, migrations)
        session.send("COMMIT")
        session.flush()
    except BaseException:
        session.undo()
        raise
    return version


def migrate(session: Session, version: int, migrations: Sequence[Sequence[str]] = MIGRATIONS) -> int:
    """Bring the tables from this version to the newest, inside the open transaction → the newest."""
    for number, statements in enumerate(migrations[version:], version + 1):
        for statement in statements:
            session.send(statement)
        session.send("UPDATE kestrel_meta SET version = %s", (number,))
    session.flush()
    return len(migrations)
