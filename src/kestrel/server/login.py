"""How a client proves who it is: SASL step by step, and accounts by invitation.

No sockets: elements in, answers out; the slow part (hashing a password) is left to the caller, who has
threads for it. It must never tell whether a name exists, nor take a password in the clear from another
machine. Called by the client connection.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from kestrel.server.accounts import Accounts
from kestrel.xmpp import stanza as x
from kestrel.xmpp.jid import JidError, prepare_local
from kestrel.xmpp.sasl import (
    PLAIN,
    SCRAM_SHA_1,
    SCRAM_SHA_256,
    SaslError,
    ScramServer,
    check_password,
    fake_keys,
    parse_plain,
)
from kestrel.xmpp.scram import ScramKeys
from kestrel.xmpp.stream import Stanza

FIELD_CHARS_MAX = 4096
_TOKEN = f"{{{x.NS_INVITATION}}}token"
USER_CHARS_SHOWN = 64
"""Of a claimed name, in the log and where failures are counted."""


@dataclass(frozen=True, slots=True)
class Challenge:
    """Send this and wait for the response."""

    text: str


@dataclass(frozen=True, slots=True)
class Success:
    """`user` is the prepared local part; `data` goes with the success."""

    user: str
    data: str = ""


@dataclass(frozen=True, slots=True)
class Hash:
    """A password must be hashed: call `check` in a thread; if it is true, `user` has logged in."""

    user: str
    password: str
    keys: ScramKeys

    def check(self) -> bool:
        """Some milliseconds of computing."""
        return check_password(SCRAM_SHA_256, self.password, self.keys)


Step = Challenge | Success | Hash


class Login:
    """One connection's tries to log in."""

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts
        self._scram: ScramServer | None = None
        self._mechanism = ""
        self._first = False
        self.user = ""
        """Whose password is being proved, in short; empty while nobody is named."""
        self.failures = 0
        self.registrations = 0
        """Tries to make an account."""

    @staticmethod
    def mechanisms(*, encrypted: bool) -> tuple[str, ...]:
        """What is offered, strongest first; a password itself only where nobody can listen."""
        return (SCRAM_SHA_256, SCRAM_SHA_1, PLAIN) if encrypted else (SCRAM_SHA_256, SCRAM_SHA_1)

    def on_auth(self, mechanism: str, text: str, *, encrypted: bool) -> Step:
        """`<auth/>`. Raises `SaslError`."""
        self._scram = None
        self.user = ""
        if mechanism not in self.mechanisms(encrypted=encrypted):
            raise SaslError("invalid-mechanism", f"{mechanism[:40]!r} is not offered.")
        self._mechanism = mechanism
        if mechanism != PLAIN:
            self._scram = ScramServer(
                mechanism,
                partial(self._keys, mechanism),
                self._accounts.secret,
                self._accounts.iterations,
                name_of=_prepared,
            )
        self._first = True
        return self.on_response(text) if text else Challenge("")

    def on_response(self, text: str) -> Step:
        """`<response/>`. Raises `SaslError`."""
        if not self._mechanism:
            raise SaslError("malformed-request", "No login is under way.")
        first, self._first = self._first, False
        if self._mechanism == PLAIN:
            self._mechanism = ""
            return self._plain(text)
        assert self._scram is not None
        if first:
            return Challenge(self._scram.on_first(text))
        scram, self._mechanism = self._scram, ""
        user, data = scram.on_final(text)
        return Success(prepare_local(user), data)

    def abort(self) -> None:
        """The client gives this try up."""
        self._mechanism = ""
        self._scram = None

    def _keys(self, mechanism: str, user: str) -> ScramKeys | None:
        self.user = user[:USER_CHARS_SHOWN]
        try:
            local = prepare_local(user)
        except JidError:
            return None
        self.user = local[:USER_CHARS_SHOWN]
        return self._accounts.keys(local, mechanism)

    def _plain(self, text: str) -> Hash:
        user, password = parse_plain(text)
        self.user = user[:USER_CHARS_SHOWN]
        try:
            local = prepare_local(user)
        except JidError:
            raise SaslError("not-authorized", "Name or password is wrong.") from None
        self.user = local[:USER_CHARS_SHOWN]
        keys = self._accounts.keys(local, SCRAM_SHA_256)
        if keys is None:
            keys = fake_keys(SCRAM_SHA_256, local, self._accounts.secret, self._accounts.iterations)
        return Hash(local, password, keys)


def _prepared(user: str) -> str:
    """The name as accounts have it; one that none can have stays as it is."""
    try:
        return prepare_local(user)
    except JidError:
        return user


@dataclass(frozen=True, slots=True)
class Registration:
    """What somebody without an account asks for (XEP-0077 with an invitation token)."""

    username: str
    password: str
    token: str
    purpose: str = ""
    """What the account is to be used for, a role; empty: whatever the invitation gives."""

    @classmethod
    def parse(cls, stanza: Stanza) -> Registration | None:
        """From an iq of type set; None if a field is missing or endless."""
        query = stanza.tree()[0]
        fields = (
            query.findtext(f"{{{x.NS_REGISTER}}}username") or "",
            query.findtext(f"{{{x.NS_REGISTER}}}password") or "",
            (query.findtext(_TOKEN) or "").strip(),
        )
        if not all(0 < len(field) <= FIELD_CHARS_MAX for field in fields):
            return None
        token = query.find(_TOKEN)
        return cls(*fields, "" if token is None else token.get("purpose", ""))


REGISTRATION_FORM = (
    f"<query xmlns='{x.NS_REGISTER}'>"
    "<instructions>Accounts are made with an invitation: send its token, a name and a password."
    "</instructions><username/><password/>"
    f"<token xmlns='{x.NS_INVITATION}'/></query>"
)
