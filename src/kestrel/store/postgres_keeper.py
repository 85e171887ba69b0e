"""The lease of a shared PostgreSQL: questions about its one row, on a session and a thread of their own.

Called by `kestrel.store.postgres`. While the writer is busy with a long transaction, the lease is
looked at and renewed here all the same; every answer comes within a bound.

It must never let a holder that stands still keep the lease: who takes it waits a while for a commit that is
under way, then has the server end the former holder's session.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import psycopg

from kestrel.errors import InternalError, StoreError
from kestrel.ports import LeaseView
from kestrel.store.postgres_schema import MIGRATIONS, check_owner, make_ready, migrate
from kestrel.store.postgres_session import (
    Address,
    PostgresSettings,
    Session,
    for_caller,
    from_text,
    to_text,
)
from kestrel.store.writing import Post

log = logging.getLogger("kestrel.store")
_T = TypeVar("_T")

_LOOK = """SELECT l.epoch, l.beat, l.holder, EXISTS (
    SELECT 1 FROM pg_stat_activity a WHERE a.pid = l.pid AND coalesce(a.backend_start = l.since, true))
FROM kestrel_lease l"""

_TAKE = """UPDATE kestrel_lease SET epoch = epoch + 1, beat = 0, holder = %s, pid = %s, since = %s
WHERE epoch = %s AND beat = %s RETURNING epoch"""

_RENEW = "UPDATE kestrel_lease SET beat = beat + 1, pid = %s, since = %s WHERE epoch = %s AND holder <> ''"

_RELEASE = "UPDATE kestrel_lease SET holder = '', pid = NULL, since = NULL WHERE epoch = %s"

# backend_start is hidden from other users; then the number of the process must do.
_END_WRITER = """SELECT pg_terminate_backend(a.pid) FROM pg_stat_activity a, kestrel_meta w, kestrel_lease l
WHERE a.pid = w.writer_pid AND coalesce(a.backend_start = w.writer_since, true)
    AND l.epoch = %s AND l.beat = %s"""

_LOCK_NOT_AVAILABLE = "55P03"


class Keeper:
    """Looks, takes, renews, releases: `kestrel.ports.LeaseBook`, and the same for a caller who waits."""

    def __init__(self, address: Address, pool: str, settings: PostgresSettings, post: Post) -> None:
        self._address = address
        self._pool = pool
        self._settings = settings
        self._post = post
        self._wake = threading.Condition()
        self._waiting: deque[tuple[Callable[[], Any], Callable[[Any], None]]] = deque()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._session: Session | None = None
        self._ready = False
        """Whether the database was found to be ours, with its tables."""
        self.taken: int | None = None
        """The epoch that was taken last."""

    # --- on any thread --------------------------------------------------------------------------------

    def put(self, question: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """Have a question answered; `done` is called by `post` with the answer or a `StoreError`."""

        def posted(answer: Any) -> None:
            try:
                self._post(lambda: done(answer))
            except RuntimeError as problem:  # the event loop is closed: nobody is left to tell
                log.warning("lease_answer_undeliverable", extra={"problem": str(problem)})

        self._enqueue(question, posted)

    def ask(self, question: Callable[[], Any]) -> Any:
        """The answer to a question; blocks. Raises what `put` would answer with."""
        answer: Future[Any] = Future()
        self._enqueue(question, answer.set_result)
        found = answer.result()
        if isinstance(found, Exception):
            raise found
        return found

    def close(self) -> None:
        """Answer what was asked, then drop the connection. Blocks; may be called twice, and used again."""
        with self._wake:
            thread, self._thread = self._thread, None
            self._closing = True
            self._wake.notify()
        if thread is not None:
            thread.join()

    def _enqueue(self, question: Callable[[], Any], tell: Callable[[Any], None]) -> None:
        with self._wake:
            if len(self._waiting) >= self._settings.questions_max:
                self._waiting.append((self._overfull, tell))
            else:
                self._waiting.append((question, tell))
            if self._thread is None:
                self._closing = False
                self._thread = threading.Thread(target=self._run, name="kestrel-lease", daemon=True)
                self._thread.start()
            self._wake.notify()

    # --- questions, on the keeper's thread --------------------------------------------------------------

    def look(self) -> LeaseView:
        return self._again(self._view)

    def take(self, seen: LeaseView, holder: str) -> int | None:
        session = self._connected()
        try:
            epoch = self._take(session, seen, holder)
        except psycopg.errors.LockNotAvailable:
            # A commit takes no second; whoever still holds the row stands still.
            session.undo()
            ended = session.ask(_END_WRITER, (seen.epoch, seen.beat))
            log.warning("lease_former_holder_cut_off", extra={"epoch": seen.epoch, "sessions": len(ended)})
            epoch = self._take(session, seen, holder)
        if epoch is not None:
            self.taken = epoch
        return epoch

    def renew(self, epoch: int) -> bool:
        return self._again(lambda s: self._changed(s, _RENEW, (s.pid, s.since, epoch)))

    def release(self, epoch: int) -> bool:
        return self._again(lambda s: self._changed(s, _RELEASE, (epoch,)))

    # --- on the keeper's thread -------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while True:
                with self._wake:
                    while not self._waiting and not self._closing:
                        self._wake.wait()
                    if not self._waiting:
                        return
                    question, tell = self._waiting.popleft()
                tell(self._answer(question))
        finally:
            self._drop()

    def _answer(self, question: Callable[[], Any]) -> Any:
        try:
            return question()
        except Exception as problem:  # noqa: BLE001 - the boundary of a question: whatever it is, it is answered
            told = for_caller(problem, self._address)
            if self._ready and isinstance(problem, psycopg.Error) and isinstance(told, StoreError):
                told.retry = True  # it has worked before: what is wrong now may be mended while we run
            self._drop()  # a new session knows of no transaction, and is quickly made
            return told

    def _again(self, question: Callable[[Session], _T]) -> _T:
        """Ask on the session that is there; if that turns out to be broken, once more on a new one.

        For questions that may be put twice: that the server was restarted since the last is no trouble.
        """
        if self._session is not None:
            try:
                return question(self._session)
            except psycopg.Error:
                if not self._session.lost:
                    raise
                self._drop()
        return question(self._connected())

    def _connected(self) -> Session:
        if self._session is None:
            settings = self._settings
            session = Session(self._address, "lease", settings, settings.keeper_answer_s)
            try:
                session.ask(
                    "SELECT set_config('lock_timeout', %s, false)", (str(int(settings.take_wait_s * 1000)),)
                )
                make_ready(session, self._address.place, self._pool)
            except BaseException:
                session.close()
                raise
            self._session = session
            self._ready = True
        return self._session

    def _view(self, session: Session) -> LeaseView:
        # Looked at each time: meanwhile a newer Kestrel may have been the manager.
        check_owner(session, self._address.place, self._pool)
        ((epoch, beat, holder, connected),) = session.ask(_LOOK)
        return LeaseView(epoch, beat, from_text(holder), bool(holder) and connected)

    def _take(self, session: Session, seen: LeaseView, holder: str) -> int | None:
        if not holder:
            raise InternalError("a lease was to be taken by nobody")
        session.send("BEGIN ISOLATION LEVEL READ COMMITTED")
        rows = session.ask(_TAKE, (to_text(holder), session.pid, session.since, seen.epoch, seen.beat))
        if not rows:
            session.undo()
            return None
        epoch = int(rows[0][0])
        version = check_owner(session, self._address.place, self._pool)
        session.send(
            "UPDATE kestrel_meta SET epoch = %s, unit = 0, pool = CASE pool WHEN '' THEN %s ELSE pool END",
            (epoch, self._pool),
        )
        if version < len(MIGRATIONS):
            migrate(session, version)
            log.info("store_migrated", extra={"before": version, "after": len(MIGRATIONS)})
        session.send("COMMIT")
        session.flush()
        return epoch

    def _changed(self, session: Session, statement: str, values: tuple[object, ...]) -> bool:
        counts: list[int] = []
        session.send(statement, values, lambda _, count: counts.append(count))
        session.flush()
        return counts == [1]

    def _overfull(self) -> None:
        raise StoreError(
            f"{self._settings.questions_max} questions wait for the lease of {self._address.place} already",
            hint="see whether the PostgreSQL server answers",
            code="store_behind",
            retry=True,
        )

    def _drop(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None
