"""PostgreSQL's and libpq's errors in words that name the database and the cure.

Called by the rooms `kestrel.store.postgres*`. It must never show a password. Whether trying again may help is
decided here, by SQLSTATE (postgresql.org/docs/current/errcodes-appendix.html) and, where a connection could
not even be made and there is none, by libpq's words.
"""

from __future__ import annotations

import psycopg

from kestrel.errors import StoreError

FULL = "store_full"
"""Code of the `StoreError` when the disk of the server is full."""

_MESSAGE_CHARS_MAX = 500
_QUESTION = "Is the server running on that host and accepting TCP/IP connections?"

_BY_STATE: dict[str, tuple[str, str, bool]] = {
    "53100": (
        "no room left for the database {place}: {problem}",
        "free space on the disk of the PostgreSQL server; what waits is stored as soon as there is room",
        True,
    ),
    "53300": (
        "the server of {place} has too many connections: {problem}",
        "close some, or raise max_connections of the PostgreSQL server (Kestrel needs two for each manager)",
        True,
    ),
    "25006": (
        "the database {place} is read-only: {problem}",
        "this server is a standby (replica): name the primary, or several hosts with "
        "?target_session_attrs=read-write",
        True,
    ),
    "42501": (
        "no permission in the database {place}: {problem}",
        "grant it as the owner: GRANT CREATE, USAGE ON SCHEMA public TO the user of the manager",
        False,
    ),
    "28P01": (
        "the database {place} does not accept the user or the password: {problem}",
        "check both; the password can be given in PGPASSWORD or in ~/.pgpass instead of the address",
        False,
    ),
    "28000": (
        "the database {place} does not let this user in: {problem}",
        "check the user, and pg_hba.conf of the PostgreSQL server",
        False,
    ),
    "3D000": (
        "there is no database {place}: {problem}",
        "make it: createdb NAME (as a user who may), or correct the address",
        False,
    ),
    "55P03": (
        "the database {place} is held up by another session: {problem}",
        "see pg_stat_activity for who holds the lock; it is tried again",
        True,
    ),
    "57014": (
        "the database {place} took too long: {problem}",
        "see what the PostgreSQL server is busy with; it is tried again",
        True,
    ),
}
_BY_CLASS: dict[str, tuple[str, str, bool]] = {
    "08": ("the connection to the database {place} is lost: {problem}", "it is made again", True),
    "40": ("the database {place} rolled a transaction back: {problem}", "it is tried again", True),
    "53": (
        "the server of {place} has not enough resources: {problem}",
        "see its log; it is tried again",
        True,
    ),
    "57": (
        "the server of {place} is stopping, starting, or has ended our session: {problem}",
        "start it if it is down; it is tried again",
        True,
    ),
    "58": (
        "the server of {place} has trouble with its disk: {problem}",
        "check the disk and the log of the PostgreSQL server",
        True,
    ),
    "XX": (
        "the database {place} is damaged, or its server has a bug: {problem}",
        "see the log of the PostgreSQL server; restore the database from a backup",
        False,
    ),
    "25": (
        "the server of {place} ended a transaction that stood still: {problem}",
        "it is tried again",
        True,
    ),
}
_LOST = (
    "the connection to the database {place} is lost: {problem}",
    "start the PostgreSQL server if it is down; the connection is made again",
    True,
)
_UNREACHABLE = (
    "the database {place} cannot be reached: {problem}",
    "start the PostgreSQL server, and check host, port and firewall",
    True,
)
# What libpq and the server say when no connection could be made; no SQLSTATE comes through then.
_BY_WORDS: tuple[tuple[str, tuple[str, str, bool]], ...] = (
    ("password authentication failed", _BY_STATE["28P01"]),
    ("no password supplied", _BY_STATE["28P01"]),
    ("authentication failed", _BY_STATE["28000"]),
    ("pg_hba.conf", _BY_STATE["28000"]),
    ("not permitted to log in", _BY_STATE["28000"]),
    ("permission denied for database", _BY_STATE["42501"]),
    ("too many clients", _BY_STATE["53300"]),
    ("connection slots are reserved", _BY_STATE["53300"]),
    ("too many connections", _BY_STATE["53300"]),
    ("is shutting down", _BY_CLASS["57"]),
    ("is starting up", _BY_CLASS["57"]),
    ("in recovery mode", _BY_CLASS["57"]),
    ("not yet accepting connections", _BY_CLASS["57"]),
    ("is read-only", _BY_STATE["25006"]),
    ("is not in hot standby mode", _BY_STATE["25006"]),
    (
        "Temporary failure in name resolution",
        ("the host of the database {place} cannot be looked up: {problem}", "check the name service", True),
    ),
    (
        "could not translate host name",
        ("there is no host as in {place}: {problem}", "correct the host in the address of the store", False),
    ),
    (
        "failed to resolve host",
        ("there is no host as in {place}: {problem}", "correct the host in the address of the store", False),
    ),
    ("invalid port number", (
        "the address of the database {place} cannot be used: {problem}", "correct the port in it", False
    )),
    ("Connection refused", _UNREACHABLE),
    ("No such file or directory", _UNREACHABLE),
    ("timeout", _UNREACHABLE),
    ("No route to host", _UNREACHABLE),
    ("unreachable", _UNREACHABLE),
    ("does not support SSL", (
        "the server of {place} speaks no TLS, which the address demands: {problem}",
        "turn ssl on in the PostgreSQL server, or change sslmode in the address",
        False,
    )),
    ("certificate", (
        "the certificate of the server of {place} is not accepted: {problem}",
        "see sslmode and sslrootcert in the address of the store",
        False,
    )),
)  # fmt: skip


def misunderstood() -> StoreError:
    """The error for an address that is none. Says nothing of what was in it."""
    return StoreError(
        "the address of the database cannot be understood",
        hint="write postgresql://USER:PASSWORD@HOST:PORT/DATABASE; in a password, %-encode the "
        "characters : / ? # [ ] @ % (as %40 for @), or leave it out and set PGPASSWORD",
        code="store_address",
    )


def explain(problem: Exception, place: str, secret: str = "") -> StoreError:
    """The driver's error as one of ours."""
    said = _words(problem, secret)
    text, hint, retry = _find(problem, said)
    error = StoreError(text.format(place=place, problem=said), hint=hint, retry=retry)
    if getattr(problem, "sqlstate", None) == "53100":
        error.code = FULL
    if not secret or secret not in str(problem):
        error.__cause__ = problem
    return error


def _find(problem: Exception, said: str) -> tuple[str, str, bool]:
    state = getattr(problem, "sqlstate", None)
    if state:
        found = _BY_STATE.get(state) or _BY_CLASS.get(state[:2])
        return found or (
            "the database {place} failed: {problem}",
            "see the log of the PostgreSQL server; kestrel store check looks the store over",
            False,
        )
    if 'database "' in said and "does not exist" in said:
        return _BY_STATE["3D000"]
    if 'role "' in said and "does not exist" in said:
        return _BY_STATE["28000"]
    for words, found in _BY_WORDS:
        if words in said:
            return found
    return _LOST if isinstance(problem, psycopg.OperationalError) else (
        "the database {place} cannot be used: {problem}", "see the log of the PostgreSQL server", False
    )  # fmt: skip


def _words(problem: Exception, secret: str) -> str:
    diagnosis = getattr(problem, "diag", None)
    said = (diagnosis.message_primary if diagnosis is not None else None) or str(problem)
    # libpq asks a question on a line of its own, which our hint answers; psycopg says twice that it failed.
    said = " ".join(said.replace(_QUESTION, "").split()).removeprefix("connection failed: ")
    said = said[:_MESSAGE_CHARS_MAX]
    return said.replace(secret, "…") if secret else said
