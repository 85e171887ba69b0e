"""One session with PostgreSQL: statements go out in batches, and every wait for an answer has a bound.

Called by the rooms `kestrel.store.postgres*`, each session by one thread at a time. It must never wait for a
server for ever, and never show the password of an address.

Every wait for the server gives the interpreter's lock away and must win it back, which costs up to 5 ms while
the event loop is busy. So statements are collected (`send`) and travel together, in one round trip
(libpq's pipeline mode), when somebody wants rows (`ask`) or all answers (`flush`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import psycopg
from psycopg.adapt import Buffer, Dumper
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import Format
from psycopg.types.numeric import Int8BinaryDumper

from kestrel.errors import InternalError, StoreError
from kestrel.store.postgres_problems import explain, misunderstood

Row: TypeAlias = tuple[Any, ...]
Check: TypeAlias = Callable[[list[Row], int], object]
"""Called with the rows and the row count of a statement; may raise `StoreError`."""

# It warns of what we tell in words of our own: every broken connection, once for each level it passes.
logging.getLogger("psycopg").setLevel(logging.ERROR)

KEEPALIVE_IDLE_S = 5
KEEPALIVE_INTERVAL_S = 2
KEEPALIVE_COUNT = 3
TEXT_OID = 25
TEXT_ARRAY_OID = 1009


@dataclass(frozen=True, slots=True)
class PostgresSettings:
    """Bounds of the store."""

    queue_units_max: int = 10_000
    """Units that may wait; one more is answered (in its turn) with `CommitFailed`, to be tried again."""
    group_writes_max: int = 20_000
    """Writes after which a transaction takes in no further unit."""
    statement_bytes_max: int = 32 * 2**20
    """Encoded size of the results in one statement."""
    params_cache_bytes_max: int = 16 * 2**20
    """Encoded size of the parameters kept decoded."""
    jobs_cached_max: int = 100_000
    """Jobs whose size is kept in memory."""
    states_read_at_once: int = 4_000_000
    """Tasks whose states are fetched by one statement at the start."""
    connect_s: int = 2
    """To reach the server, for each of its addresses; less than 2 is not possible with libpq."""
    answer_s: float = 30.0
    """For the server to answer the writer; then the connection is given up."""
    keeper_answer_s: float = 2.0
    """For the server to answer a question about the lease."""
    open_s: float = 600.0
    """For the server to answer while the store is read at the start."""
    take_wait_s: float = 1.0
    """How long who takes the lease waits for a commit of the former holder, before it ends that session."""
    transaction_idle_s: float = 5.0
    """The server ends a session of ours that stands still for so long inside a transaction."""
    lock_wait_s: float = 5.0
    """How long the writer waits for a lock; then the unit is tried again."""
    reconnect_s: float = 0.1
    """Pause before a broken connection of the writer is made anew; doubles up to `reconnect_s_max`."""
    reconnect_s_max: float = 1.0
    questions_max: int = 100
    """Questions about the lease that may wait; one more is answered with an error."""


class TextArray(bytes):
    """Value for a `text[]` parameter, in the server's binary format; made by `text_array`."""

    __slots__ = ()


class _TextArrayDumper(Dumper):
    format = Format.BINARY
    oid = TEXT_ARRAY_OID

    def dump(self, obj: TextArray) -> Buffer:
        return bytes(obj)


def text_array(items: Sequence[bytes]) -> TextArray:
    """UTF-8 texts as one parameter (array_recv: dimensions, flags, type, length, lower bound, items)."""
    parts = [b"".join(n.to_bytes(4, "big") for n in (1, 0, TEXT_OID, len(items), 1))]
    for item in items:
        parts.append(len(item).to_bytes(4, "big"))
        parts.append(item)
    return TextArray(b"".join(parts))


def int_array(numbers: Sequence[int]) -> str:
    """Whole numbers as one parameter, to be cast by the statement."""
    return "{" + ",".join(map(str, numbers)) + "}"


class NoAnswer(psycopg.OperationalError):
    """The server did not answer within the bound."""


class _Connection(psycopg.Connection[Row]):
    """A connection whose waits end."""

    answer_s = 30.0

    def wait(self, gen: Any, *args: Any, **options: Any) -> Any:
        return super().wait(_bounded(gen, self.answer_s), *args, **options)


def _bounded(gen: Generator[Any, Any, Any], seconds: float) -> Generator[Any, Any, Any]:
    """The same talk with the socket, given up after so many seconds (psycopg wakes it every 0.1 s)."""
    until = time.monotonic() + seconds
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if not ready and time.monotonic() >= until:
                gen.close()
                raise NoAnswer(f"the server has not answered for {seconds:g} s")
            wanted = gen.send(ready)
    except StopIteration as end:
        return end.value


class Address:
    """Where the database is: `dsn` as libpq understands it. `place` is what people are shown: no password."""

    def __init__(self, dsn: str) -> None:
        try:
            self.options: dict[str, Any] = dict(conninfo_to_dict(dsn))
        except psycopg.Error:
            raise misunderstood() from None  # libpq's words may contain parts of the password
        # A password with a / in it makes itself the port, and the host a part of the name of the database.
        ports = str(self.options.get("port") or "").split(",")
        if not all(port.isdigit() or not port for port in ports) or "@" in str(self.options.get("dbname")):
            raise misunderstood()
        user = f"{self.options['user']}@" if self.options.get("user") else ""
        host = str(self.options.get("host") or self.options.get("hostaddr") or "")
        port = f":{self.options['port']}" if self.options.get("port") else ""
        self.place = f"postgresql://{user}{host}{port}/{self.options.get('dbname') or ''}"
        self.secret = str(self.options.get("password") or "")

    def explain(self, problem: Exception) -> StoreError:
        """What the caller is told of an error of the driver."""
        return explain(problem, self.place, self.secret)


class Session:
    """A connection with the bounds set, in autocommit: transactions are begun and ended by statements.

    `work`: what it is for, in `application_name`. Errors are psycopg's; `Address.explain` translates them.
    After an error inside a transaction the caller calls `undo`; after a lost connection, `close`.
    """

    def __init__(self, address: Address, work: str, settings: PostgresSettings, answer_s: float) -> None:
        options: dict[str, Any] = {
            "connect_timeout": settings.connect_s,
            "application_name": f"kestrel {work}",
            "keepalives": 1,
            "keepalives_idle": KEEPALIVE_IDLE_S,
            "keepalives_interval": KEEPALIVE_INTERVAL_S,
            "keepalives_count": KEEPALIVE_COUNT,
            "tcp_user_timeout": int(answer_s * 1000),
        } | address.options
        options["client_encoding"] = "UTF8"
        self._sent: list[tuple[str, Sequence[object], Check | None]] = []
        self._connection = _Connection.connect(autocommit=True, **options)
        try:
            self._connection.answer_s = answer_s
            self._connection.adapters.register_dumper(int, Int8BinaryDumper)
            self._connection.adapters.register_dumper(TextArray, _TextArrayDumper)
            self.send("SELECT set_config('lock_timeout', %s, false)", (_ms(settings.lock_wait_s),))
            self.send(
                "SELECT set_config('idle_in_transaction_session_timeout', %s, false)",
                (_ms(settings.transaction_idle_s),),
            )
            for name, value in (
                ("tcp_keepalives_idle", KEEPALIVE_IDLE_S),
                ("tcp_keepalives_interval", KEEPALIVE_INTERVAL_S),
                ("tcp_keepalives_count", KEEPALIVE_COUNT),
            ):
                self.send("SELECT set_config(%s, %s, false)", (name, str(value)))
            # Bounds for the sessions of people, set for a role or a server. Ours are kept by this side.
            self.send(
                "SELECT set_config(name, '0', false) FROM pg_settings"
                " WHERE name IN ('statement_timeout', 'transaction_timeout', 'idle_session_timeout')"
            )
            self.send(
                "SELECT set_config('synchronous_commit', 'on', false)"
                " WHERE current_setting('synchronous_commit') = 'off'"
            )
            ((self.pid, self.since),) = self.ask(
                "SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()"
            )
        except BaseException:
            self.close()
            raise

    @property
    def lost(self) -> bool:
        """Whether the connection is gone."""
        return self._connection.closed

    @property
    def in_transaction(self) -> bool:
        return self._connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE

    def set_bound(self, answer_s: float) -> None:
        """From now on, how long to wait for an answer."""
        self._connection.answer_s = answer_s

    def send(self, statement: str, values: Sequence[object] = (), check: Check | None = None) -> None:
        """Have it run with the next batch; `check` is called when that is answered, in the order sent."""
        self._sent.append((statement, values, check))

    def ask(self, statement: str, values: Sequence[object] = ()) -> list[Row]:
        """Run all that was sent, then this → its rows."""
        found: list[list[Row]] = []
        self.send(statement, values, lambda rows, _: found.append(rows))
        self.flush()
        return found[0]

    def flush(self) -> None:
        """Run what was sent, in one round trip; raises the first error."""
        sent, self._sent = self._sent, []
        if not sent:
            return
        try:
            if len(sent) == 1:
                cursors = [self._run(*sent[0][:2])]
            else:
                with self._connection.pipeline():
                    cursors = [self._run(statement, values) for statement, values, _ in sent]
        except psycopg.Error as problem:
            if isinstance(problem, NoAnswer):
                self.close()
            raise
        for cursor, (_, _, check) in zip(cursors, sent, strict=True):
            if check is not None:
                check(cursor.fetchall() if cursor.description else [], cursor.rowcount)

    def undo(self) -> None:
        """Forget what was not sent yet, and roll back."""
        self._sent.clear()
        if not self.lost and self.in_transaction:
            self._connection.execute("ROLLBACK")

    def close(self) -> None:
        self._sent.clear()
        self._connection.close()

    def _run(self, statement: str, values: Sequence[object]) -> psycopg.Cursor[Row]:
        cursor = self._connection.cursor(binary=True)
        cursor.execute(statement.encode(), values or None)
        return cursor


def for_caller(problem: Exception, address: Address) -> Exception:
    """What a unit or a question that failed is told."""
    if isinstance(problem, psycopg.Error):
        return address.explain(problem)
    if isinstance(problem, (StoreError, InternalError)):
        return problem
    bug = InternalError(f"the store {address.place} cannot carry this out: {problem!r}")
    bug.__cause__ = problem
    return bug


def _ms(seconds: float) -> str:
    return str(int(seconds * 1000))


def to_text(value: str) -> str:
    """As kept in a text column, which cannot hold NUL."""
    return value.replace("\\", "\\\\").replace("\0", "\\0")


def from_text(value: str) -> str:
    """The inverse of `to_text`."""
    if "\\" not in value:
        return value
    return "\\".join(part.replace("\\0", "\0") for part in value.split("\\\\"))
