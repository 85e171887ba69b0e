"""Who may log in: accounts with SCRAM keys, and invitations with which accounts are made.

Passwords and tokens are never kept, only what proves them. Several processes may have the same file
open (`kestrel invite` beside `kestrel up`), so nothing is cached; `version` tells when something may have
changed. Called by the embedded server and by whoever hosts it. Names are local parts, prepared here; times
are Unix times.
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
from kestrel.xmpp.sasl import SCRAM_SHA_1, SCRAM_SHA_256, SaslError, make_keys
from kestrel.xmpp.scram import ScramKeys

ROLES = ("worker", "user", "admin")
MECHANISMS = (SCRAM_SHA_256, SCRAM_SHA_1)
ITERATIONS_MIN, ITERATIONS_MAX = 4096, 10_000
PASSWORD_BYTES_MAX = 1024
TOKEN_BYTES = 24
INVITATIONS_MAX = 100_000
INVITATION_NAME_CHARS_MAX = 100
REMEMBERED_S = 30 * 86400.0
"""How long one that is used up or expired is kept, so that who comes with it is told which."""
INVITATION_ID_CHARS = 12
SALT_BYTES = 16


@dataclass(frozen=True, slots=True)
class Account:
    """One account, without its keys."""

    local: str
    role: str
    created: float
    invitation: str = ""
    """`id` of the invitation that it was made with, if it was made with one."""


@dataclass(frozen=True, slots=True)
class InvitationState:
    """One invitation. `id` is the beginning of the token's hash, to name it when it is revoked."""

    id: str
    role: str
    uses_left: int
    expires: float
    name: str = ""
    """What it is for, in the words of who made it."""


_ACCOUNTS = "SELECT local, role, created, invitation FROM accounts"


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
        self._own_changes = 0

    def version(self) -> tuple[int, int]:
        """Another one whenever accounts may have been changed or removed, by whomever.

        Accounts that are made by an invitation need not change it. Raises `EnvironmentProblem`.
        """
        with self._reading():
            # Counts the commits of all other connections (sqlite.org/pragma.html#pragma_data_version).
            row = self.connection.execute("PRAGMA data_version").fetchone()
        return row[0], self._own_changes

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as problem:
            raise EnvironmentProblem(
                f"the accounts file {self.path} cannot be read: {problem}",
                hint="is it damaged? `kestrel up` with another --dir makes a new one",
                retry=True,
            ) from problem

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
                "INSERT INTO accounts (local, role, created) VALUES (?, ?, ?) "
                "ON CONFLICT (local) DO UPDATE SET role = excluded.role",
                (name, role, self._clock()),
            )
            self._write_keys(connection, name, keys)
        self._own_changes += 1
        return name

    def set_keys(self, local: str, keys: Mapping[str, ScramKeys]) -> None:
        """Another password (`keys_of_password`). Raises `UsageError` if there is no such account."""
        with self.transaction() as connection:
            if not connection.execute("SELECT 1 FROM accounts WHERE local = ?", (local,)).fetchone():
                raise _unknown(local)
            self._write_keys(connection, local, keys)
        self._own_changes += 1

    def set_role(self, local: str, role: str) -> None:
        """Another role. Raises `UsageError` if there is no such account or role."""
        _check_role(role)
        with self.transaction() as connection:
            done = connection.execute("UPDATE accounts SET role = ? WHERE local = ?", (role, _name(local)))
            if not done.rowcount:
                raise _unknown(local)
        self._own_changes += 1

    def remove(self, local: str) -> None:
        """Forget the account, its keys and its roster. Raises `UsageError` if there is none."""
        with self.transaction() as connection:
            if not connection.execute("DELETE FROM accounts WHERE local = ?", (_name(local),)).rowcount:
                raise _unknown(local)
        self._own_changes += 1

    def account(self, local: str) -> Account | None:
        """The account with this prepared name, or None. Raises `EnvironmentProblem`."""
        with self._reading():
            row = self.connection.execute(f"{_ACCOUNTS} WHERE local = ?", (local,)).fetchone()
        return Account(*row) if row else None

    def role(self, local: str) -> str | None:
        """Role of the account with this prepared name, or None if there is none."""
        account = self.account(local)
        return account.role if account else None

    def keys(self, local: str, mechanism: str) -> ScramKeys | None:
        """What proves the password of a prepared name, for `SCRAM-SHA-256` or `SCRAM-SHA-1`.

        Raises `EnvironmentProblem`.
        """
        with self._reading():
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
        with self._reading():
            return [Account(*row) for row in self.connection.execute(f"{_ACCOUNTS} ORDER BY local")]

    def _insert(
        self,
        connection: sqlite3.Connection,
        name: str,
        keys: Mapping[str, ScramKeys],
        role: str,
        invitation: str = "",
    ) -> None:
        try:
            connection.execute(
                "INSERT INTO accounts (local, role, created, invitation) VALUES (?, ?, ?, ?)",
                (name, role, self._clock(), invitation),
            )
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

    def invite(self, role: str, *, uses: int = 1, expires_s: float = 7 * 86400, name: str = "") -> str:
        """A new token that makes `uses` accounts with this role within `expires_s` seconds.

        `name` says what it is for. Raises `UsageError`.
        """
        _check_role(role)
        if len(name) > INVITATION_NAME_CHARS_MAX or not name.isprintable():
            raise UsageError(
                f"the name of an invitation is one line of at most {INVITATION_NAME_CHARS_MAX} characters",
                hint="e.g. --name 'room 12'",
            )
        if uses < 1 or not expires_s > 0:
            raise UsageError(
                "an invitation needs at least one use and time", hint="e.g. --uses 1 --expires 7d"
            )
        token, now = secrets.token_urlsafe(TOKEN_BYTES), self._clock()
        with self.transaction() as connection:
            forgotten = now - REMEMBERED_S
            connection.execute(
                "DELETE FROM invitations WHERE expires <= ? OR (uses_left < 1 AND created <= ?)",
                (forgotten, forgotten),
            )
            count = connection.execute("SELECT count(*) FROM invitations").fetchone()[0]
            if count >= INVITATIONS_MAX:
                raise UsageError(
                    f"{count} invitations are open", hint="revoke some, or use one with many uses"
                )
            connection.execute(
                "INSERT INTO invitations (hash, role, uses_left, expires, created, name) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (_hash(token), role, uses, now + expires_s, now, name),
            )
        return token

    @staticmethod
    def id_of(token: str) -> str:
        """Under which `invitations` shows the one with this token."""
        return _hash(token)[:INVITATION_ID_CHARS]

    def check_token(self, token: str) -> str:
        """Role that the token gives. Raises `AuthenticationError` with the reason if it gives none."""
        with self._reading():
            row = self.connection.execute(
                "SELECT role, uses_left, expires FROM invitations WHERE hash = ?", (_hash(token),)
            ).fetchone()
        reason = ""
        if row is None:
            reason = "is unknown or was revoked"
        elif row[2] <= self._clock():
            reason = "has expired"
        elif row[1] < 1:
            reason = "is used up"
        if reason:
            raise AuthenticationError(f"the invitation {reason}", hint="ask for a new one")
        return str(row[0])

    def redeem(self, token: str, local: str, keys: Mapping[str, ScramKeys]) -> str:
        """Use the token once to make an account; returns its role.

        Raises `AuthenticationError` for the token, `NameTakenError` and `UsageError` for the name; then
        nothing is used up.
        """
        name = _name(local)
        with self.transaction() as connection:
            role = self.check_token(token)
            self._insert(connection, name, keys, role, self.id_of(token))
            connection.execute(
                "UPDATE invitations SET uses_left = uses_left - 1 WHERE hash = ?", (_hash(token),)
            )
        return role

    def invitations(self) -> list[InvitationState]:
        """Those that can still be used, the next to expire first."""
        with self._reading():
            rows = self.connection.execute(
                f"SELECT substr(hash, 1, {INVITATION_ID_CHARS}), role, uses_left, expires, name "
                "FROM invitations WHERE uses_left > 0 AND expires > ? ORDER BY expires",
                (self._clock(),),
            )
            return [InvitationState(*row) for row in rows]

    def revoke(self, token_or_id: str) -> str:
        """The invitation is worth nothing from now on; accounts made with it stay. Returns its `id`.

        Takes the token, or the `id` as `invitations` and the accounts made with it tell it. Raises
        `UsageError` if there is none.
        """
        with self.transaction() as connection:
            known = connection.execute(
                "SELECT 1 FROM invitations WHERE substr(hash, 1, ?) = ?", (INVITATION_ID_CHARS, token_or_id)
            ).fetchone()
            prefix = token_or_id if known else _hash(token_or_id)
            done = connection.execute(
                "DELETE FROM invitations WHERE substr(hash, 1, ?) = ?", (len(prefix), prefix)
            )
            if not done.rowcount:
                raise UsageError(
                    "there is no such invitation",
                    hint="`kestrel invite list` shows those that can still be used",
                )
        return prefix[:INVITATION_ID_CHARS]


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
    return UsageError(f"there is no account {local!r}", hint="`kestrel account list` shows the names")
