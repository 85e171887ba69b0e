"""Who may log in: accounts with SCRAM keys, and invitations with which accounts are made.

Passwords and tokens are never kept, only what proves them. Several processes may have the same file
open (`kestrel invite` beside `kestrel up`), so nothing is cached. Called by the embedded server and
by whoever hosts it. Names are local parts, prepared here; times are Unix times.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kestrel.errors import AuthenticationError, EnvironmentProblem, UsageError
from kestrel.server.database import open_database
from kestrel.xmpp.jid import JidError, prepare_local
from kestrel.xmpp.sasl import SCRAM_SHA_1, SCRAM_SHA_256, SaslError, ScramKeys, make_keys

ROLES = ("worker", "user", "admin")
MECHANISMS = (SCRAM_SHA_256, SCRAM_SHA_1)
ITERATIONS_MIN, ITERATIONS_MAX = 4096, 10_000
PASSWORD_BYTES_MAX = 1024
TOKEN_BYTES = 24
INVITATIONS_MAX = 100_000
SALT_BYTES = 16


@dataclass(frozen=True, slots=True)
class Account:
    """One account, without its keys."""

    local: str
    role: str
    created: float


@dataclass(frozen=True, slots=True)
class InvitationState:
    """One invitation. `id` is the beginning of the token's hash, to name it when it is revoked."""

    id: str
    role: str
    uses_left: int
    expires: float


class NameTakenError(UsageError):
    """There is an account of this name already."""

    code = "conflict"


def keys_of_password(password: str, iterations: int = ITERATIONS_MIN) -> dict[str, ScramKeys]:
    """SCRAM keys for each mechanism: some milliseconds of computing that releases the interpreter.

    Touches no database, so it may run in a thread. Raises `UsageError` for an unusable password.
    """
    if len(password.encode("utf-8", "replace")) > PASSWORD_BYTES_MAX:
        raise UsageError(
            f"the password is longer than {PASSWORD_BYTES_MAX} bytes", hint="choose a shorter one"
        )
    try:
        return {
            name: make_keys(name, password, secrets.token_bytes(SALT_BYTES), iterations)
            for name in MECHANISMS
        }
    except SaslError as problem:
        raise UsageError(problem.text, hint="choose a password without control characters") from problem


class Accounts:
    """The accounts of one server, in a SQLite file or in memory. Use it from one thread only."""

    def __init__(
        self,
        path: Path | str,
        *,
        iterations: int = ITERATIONS_MIN,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Raises `EnvironmentProblem` if the file cannot be used, `UsageError` for `iterations`."""
        if not ITERATIONS_MIN <= iterations <= ITERATIONS_MAX:
            raise UsageError(
                f"{iterations} password iterations are not between {ITERATIONS_MIN} and {ITERATIONS_MAX}",
                hint=f"use {ITERATIONS_MIN}; a generated password gains nothing from more",
            )
        self.path = path
        self.iterations = iterations
        self._clock = clock
        self.connection = open_database(path)
        self.secret: bytes = self.connection.execute("SELECT secret FROM meta").fetchone()[0]
        """Makes the login challenges for names that have no account."""

    def close(self) -> None:
        """Release the file; may be called twice."""
        self.connection.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing. Raises `EnvironmentProblem` if the file cannot be written."""
        connection = self.connection
        try:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        except sqlite3.Error as problem:
            raise EnvironmentProblem(
                f"the accounts file {self.path} cannot be written: {problem}",
                hint="is the disk full, or does another program hold the file?",
                retry=True,
            ) from problem

    # ----------------------------------------------------------------------------------------------
    # accounts

    def add(self, local: str, password: str, role: str) -> str:
        """A new account; returns its prepared name. Raises `NameTakenError`, `UsageError`."""
        name, keys = _name(local), keys_of_password(password, self.iterations)
        _check_role(role)
        with self.transaction() as connection:
            self._insert(connection, name, keys, role)
        return name

    def put(self, local: str, password: str, role: str) -> str:
        """Make the account, or give it this password and role; returns its prepared name."""
        name, keys = _name(local), keys_of_password(password, self.iterations)
        _check_role(role)
        with self.transaction() as connection:
            connection.execute(
                "INSERT INTO accounts VALUES (?, ?, ?) "
                "ON CONFLICT (local) DO UPDATE SET role = excluded.role",
                (name, role, self._clock()),
            )
            self._write_keys(connection, name, keys)
        return name

    def set_keys(self, local: str, keys: Mapping[str, ScramKeys]) -> None:
        """Another password (`keys_of_password`). Raises `UsageError` if there is no such account."""
        with self.transaction() as connection:
            if not connection.execute("SELECT 1 FROM accounts WHERE local = ?", (local,)).fetchone():
                raise _unknown(local)
            self._write_keys(connection, local, keys)

    def remove(self, local: str) -> None:
        """Forget the account, its keys and its roster. Raises `UsageError` if there is none."""
        with self.transaction() as connection:
            if not connection.execute("DELETE FROM accounts WHERE local = ?", (_name(local),)).rowcount:
                raise _unknown(local)

    def role(self, local: str) -> str | None:
        """Role of the account with this prepared name, or None if there is none."""
        row = self.connection.execute("SELECT role FROM accounts WHERE local = ?", (local,)).fetchone()
        return row[0] if row else None

    def keys(self, local: str, mechanism: str) -> ScramKeys | None:
        """What proves the password of a prepared name, for `SCRAM-SHA-256` or `SCRAM-SHA-1`."""
        row = self.connection.execute(
            "SELECT salt, iterations, stored_key, server_key FROM keys WHERE local = ? AND mechanism = ?",
            (local, mechanism),
        ).fetchone()
        return ScramKeys(*row) if row else None

    def proves(self, local: str, password: str) -> bool:
        """Whether this is the password of the prepared name."""
        keys = self.keys(local, SCRAM_SHA_256)
        if keys is None:
            return False
        try:
            given = make_keys(SCRAM_SHA_256, password, keys.salt, keys.iterations)
        except SaslError:
            return False
        return hmac.compare_digest(given.stored_key, keys.stored_key)

    def everyone(self) -> list[Account]:
        """All accounts by name."""
        rows = self.connection.execute("SELECT local, role, created FROM accounts ORDER BY local")
        return [Account(*row) for row in rows]

    def _insert(
        self, connection: sqlite3.Connection, name: str, keys: Mapping[str, ScramKeys], role: str
    ) -> None:
        try:
            connection.execute("INSERT INTO accounts VALUES (?, ?, ?)", (name, role, self._clock()))
        except sqlite3.IntegrityError:
            raise NameTakenError(
                f"there is an account {name!r} already", hint="choose another name"
            ) from None
        self._write_keys(connection, name, keys)

    @staticmethod
    def _write_keys(connection: sqlite3.Connection, name: str, keys: Mapping[str, ScramKeys]) -> None:
        connection.executemany(
            "INSERT OR REPLACE INTO keys VALUES (?, ?, ?, ?, ?, ?)",
            [
                (name, mechanism, k.salt, k.iterations, k.stored_key, k.server_key)
                for mechanism, k in keys.items()
            ],
        )

    # ----------------------------------------------------------------------------------------------
    # invitations

    def invite(self, role: str, *, uses: int = 1, expires_s: float = 7 * 86400) -> str:
        """A new token that makes `uses` accounts with this role within `expires_s` seconds."""
        _check_role(role)
        if uses < 1 or not expires_s > 0:
            raise UsageError(
                "an invitation needs at least one use and time", hint="e.g. --uses 1 --expires 7d"
            )
        token, now = secrets.token_urlsafe(TOKEN_BYTES), self._clock()
        with self.transaction() as connection:
            connection.execute("DELETE FROM invitations WHERE expires <= ? OR uses_left < 1", (now,))
            count = connection.execute("SELECT count(*) FROM invitations").fetchone()[0]
            if count >= INVITATIONS_MAX:
                raise UsageError(
                    f"{count} invitations are open", hint="revoke some, or use one with many uses"
                )
            connection.execute(
                "INSERT INTO invitations VALUES (?, ?, ?, ?, ?)",
                (_hash(token), role, uses, now + expires_s, now),
            )
        return token

    def check_token(self, token: str) -> str:
        """Role that the token gives. Raises `AuthenticationError` if it gives none any more."""
        row = self.connection.execute(
            "SELECT role FROM invitations WHERE hash = ? AND uses_left > 0 AND expires > ?",
            (_hash(token), self._clock()),
        ).fetchone()
        if row is None:
            raise AuthenticationError(
                "the invitation is unknown, used up, expired or revoked", hint="ask for a new one"
            )
        return str(row[0])

    def redeem(self, token: str, local: str, keys: Mapping[str, ScramKeys]) -> str:
        """Use the token once to make an account; returns its role.

        Raises `AuthenticationError` for the token, `NameTakenError` and `UsageError` for the name; then
        nothing is used up.
        """
        name = _name(local)
        with self.transaction() as connection:
            role = self.check_token(token)
            self._insert(connection, name, keys, role)
            connection.execute(
                "UPDATE invitations SET uses_left = uses_left - 1 WHERE hash = ?", (_hash(token),)
            )
        return role

    def invitations(self) -> list[InvitationState]:
        """Those that can still be used, the next to expire first."""
        rows = self.connection.execute(
            "SELECT substr(hash, 1, 12), role, uses_left, expires FROM invitations "
            "WHERE uses_left > 0 AND expires > ? ORDER BY expires",
            (self._clock(),),
        )
        return [InvitationState(*row) for row in rows]

    def revoke(self, token_or_id: str) -> None:
        """The invitation is worth nothing from now on; accounts made with it stay.

        Takes the token, or the `id` of `invitations`. Raises `UsageError` if there is none.
        """
        known = [state.id for state in self.invitations()]
        prefix = token_or_id if token_or_id in known else _hash(token_or_id)
        with self.transaction() as connection:
            done = connection.execute(
                "DELETE FROM invitations WHERE substr(hash, 1, ?) = ?", (len(prefix), prefix)
            )
            if not done.rowcount:
                raise UsageError("there is no such invitation", hint="it may have expired already")


def _hash(token: str) -> str:
    # A token is 192 random bits: nothing is gained by a slow hash.
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


def _name(local: str) -> str:
    try:
        return prepare_local(local)
    except JidError as problem:
        raise UsageError(problem.text, hint="choose a name of letters, digits, dots and dashes") from problem


def _check_role(role: str) -> None:
    if role not in ROLES:
        raise UsageError(f"there is no role {role!r}", hint=f"use one of {', '.join(ROLES)}")


def _unknown(local: str) -> UsageError:
    return UsageError(f"there is no account {local!r}", hint="check the name")
