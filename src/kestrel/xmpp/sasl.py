"""SASL for both ends (RFC 4422, 4616, 5802, 7677), step by step over scramp.

Pure: base64 texts in, base64 texts out; the only chance in it is scramp's nonce. A client believes a
server only after its signature was checked; a server answers for users that do not exist as it does
for those that do. Called by the client and by the embedded server.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scramp import ScramClient, ScramException, ScramMechanism

from kestrel.errors import AuthenticationError, PeerError

ITERATIONS_MAX = 1_000_000
"""A server that asks for more would only burn the client's time."""
ITERATIONS_MIN = 4096
"""A server that asks for less would learn too much of the password (RFC 7677 section 4)."""
MESSAGE_CHARS_MAX = 4096
"""Longest SASL message in base64."""

SCRAM_SHA_256 = "SCRAM-SHA-256"
SCRAM_SHA_1 = "SCRAM-SHA-1"
PLAIN = "PLAIN"
CLIENT_ORDER = (SCRAM_SHA_256, SCRAM_SHA_1, PLAIN)
"""Strongest first."""
_HASHES = {SCRAM_SHA_256: "sha256", SCRAM_SHA_1: "sha1"}


class SaslError(PeerError):
    """A SASL message is not acceptable. `condition` is the element to send (RFC 6120 section 6.5)."""

    code = "sasl"

    def __init__(self, condition: str, text: str) -> None:
        super().__init__(text)
        self.condition = condition


def encode(data: bytes) -> str:
    """SASL data as it travels: base64, and `=` for what is empty (RFC 6120 section 6.4.2)."""
    return base64.b64encode(data).decode("ascii") if data else "="


def decode(text: str) -> bytes:
    """The reverse of `encode`. Raises `SaslError`."""
    text = text.strip()
    if text == "=":
        return b""
    if len(text) > MESSAGE_CHARS_MAX:
        raise SaslError("malformed-request", "A SASL message is too long.")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as problem:
        raise SaslError("incorrect-encoding", "A SASL message is not base64.") from problem


def _decode_text(text: str) -> str:
    try:
        return decode(text).decode("utf-8")
    except UnicodeDecodeError as problem:
        raise SaslError("malformed-request", "A SASL message is not UTF-8.") from problem


# --------------------------------------------------------------------------------------------------
# Client


class SaslClient:
    """One attempt to log in. Send `first`, answer each challenge with `on_challenge`, then `on_success`."""

    def __init__(self, offered: Sequence[str], user: str, password: str, *, encrypted: bool) -> None:
        """Choose the strongest mechanism; PLAIN only if the stream is encrypted.

        Raises `AuthenticationError` if none can be used, or if the password cannot be prepared.
        """
        usable = [name for name in CLIENT_ORDER if name in offered and (encrypted or name != PLAIN)]
        if not usable:
            shown = ", ".join(offered) or "none"
            hint = "Use a server that offers SCRAM-SHA-256 or SCRAM-SHA-1."
            if PLAIN in offered:
                hint = "PLAIN is used on encrypted connections only: let the server offer STARTTLS."
            raise AuthenticationError(f"The server offers no usable way to log in ({shown}).", hint=hint)
        self.mechanism = usable[0]
        self._finished = self.mechanism == PLAIN
        self._scram: ScramClient | None = None
        try:
            if self.mechanism == PLAIN:
                self.first = encode(f"\0{user}\0{password}".encode())
            else:
                self._scram = ScramClient([self.mechanism], user, password)
                self.first = encode(self._scram.get_client_first().encode())
        except (ScramException, UnicodeEncodeError) as problem:
            raise AuthenticationError(
                f"The name {user!r} or its password contains characters that cannot be used to log in.",
                hint="Choose a password without control characters.",
            ) from problem

    def on_challenge(self, text: str) -> str:
        """The answer to a challenge. Raises `AuthenticationError`, `SaslError`."""
        scram = self._scram
        if scram is None or self._finished:
            raise SaslError("malformed-request", "The server sent a challenge that was not expected.")
        message = _decode_text(text)
        if message.startswith(("v=", "e=")):
            # Some servers send their signature as a last challenge (RFC 5802 section 5).
            self._check(message)
            return "="
        self._check_iterations(message)
        try:
            scram.set_server_first(message)
            return encode(scram.get_client_final().encode())
        except ScramException as problem:
            raise AuthenticationError(f"The server's login challenge is wrong: {problem}.") from problem

    def on_success(self, text: str) -> None:
        """The server says yes: check that it knew the password too (SCRAM).

        Raises `AuthenticationError` if it did not prove that.
        """
        if not self._finished:
            self._check(_decode_text(text) if text.strip() else "")

    def _check(self, message: str) -> None:
        assert self._scram is not None
        try:
            self._scram.set_server_final(message)
        except ScramException as problem:
            raise AuthenticationError(
                f"The server did not prove that it knows this account ({problem}).",
                hint="Somebody may be in between: check the address and the certificate.",
            ) from problem
        self._finished = True

    @staticmethod
    def _check_iterations(message: str) -> None:
        for part in message.split(","):
            if part.startswith("i="):
                count = int(part[2:]) if part[2:].isdigit() and len(part) < 12 else 0
                if not ITERATIONS_MIN <= count <= ITERATIONS_MAX:
                    raise AuthenticationError(
                        f"The server asks for {part[2:][:20]} password iterations; "
                        f"{ITERATIONS_MIN} to {ITERATIONS_MAX} are accepted."
                    )


# --------------------------------------------------------------------------------------------------
# Server


@dataclass(frozen=True, slots=True)
class ScramKeys:
    """What a server keeps of a password, for one hash (RFC 5802 section 3)."""

    salt: bytes
    iterations: int
    stored_key: bytes
    server_key: bytes


def make_keys(mechanism: str, password: str, salt: bytes, iterations: int = ITERATIONS_MIN) -> ScramKeys:
    """Keys of a new password. `salt` is fresh and random, at least 12 bytes. Raises `SaslError`."""
    if not password:
        raise SaslError("malformed-request", "An empty password cannot be used.")
    try:
        kept = ScramMechanism(mechanism).make_auth_info(password, iteration_count=iterations, salt=salt)
    except (ScramException, UnicodeEncodeError) as problem:
        raise SaslError("malformed-request", f"This password cannot be used: {problem}.") from problem
    return ScramKeys(kept[0], kept[3], kept[1], kept[2])


def fake_keys(mechanism: str, user: str, secret: bytes, iterations: int = ITERATIONS_MIN) -> ScramKeys:
    """Keys for a user that does not exist: always the same for one name, and no password fits.

    `secret` is random, and the same as long as the accounts live.
    """
    name = _HASHES[mechanism]
    size = hashlib.new(name).digest_size

    def derived(purpose: bytes) -> bytes:
        return hmac.new(secret, b"\0".join((purpose, mechanism.encode(), user.encode())), name).digest()

    return ScramKeys(derived(b"salt")[:16], iterations, derived(b"stored")[:size], derived(b"server")[:size])


KeysOf = Callable[[str], ScramKeys | None]
"""A prepared local part → its keys for the mechanism asked for, or None if there is no such user."""


class ScramServer:
    """The server's side of one SCRAM exchange: `on_first`, then `on_final`."""

    __slots__ = ("_exchange", "_known", "_user")

    def __init__(self, mechanism: str, keys_of: KeysOf, secret: bytes) -> None:
        """`secret` makes the challenges for users that do not exist (`fake_keys`)."""
        self._user = ""
        self._known = False

        def find(user: str) -> tuple[bytes, bytes, bytes, int]:
            self._user = user
            keys = keys_of(user)
            self._known = keys is not None
            if keys is None:
                keys = fake_keys(mechanism, user, secret)
            return keys.salt, keys.stored_key, keys.server_key, keys.iterations

        self._exchange = ScramMechanism(mechanism).make_server(find)

    def on_first(self, text: str) -> str:
        """The client's first message → the challenge. Raises `SaslError`."""
        message = _decode_text(text)
        self._check_authorization(message)
        try:
            self._exchange.set_client_first(message)
            return encode(self._exchange.get_server_first().encode())
        except ScramException as problem:
            raise SaslError("malformed-request", f"The first SCRAM message is wrong: {problem}") from problem

    def on_final(self, text: str) -> tuple[str, str]:
        """The client's proof → (user, data for `<success/>`). Raises `SaslError`, not-authorized."""
        message = _decode_text(text)
        try:
            self._exchange.set_client_final(message)
            final = self._exchange.get_server_final()
        except ScramException as problem:
            raise SaslError("not-authorized", "Name or password is wrong.") from problem
        if not self._known or not final.startswith("v="):
            raise SaslError("not-authorized", "Name or password is wrong.")
        return self._user, encode(final.encode())

    @staticmethod
    def _check_authorization(message: str) -> None:
        """Acting for somebody else is not supported: `a=` must be absent (RFC 5802 section 7)."""
        if message.split(",", 2)[1:2] not in ([""], []):
            raise SaslError("invalid-authzid", "Logging in for somebody else is not supported.")


def parse_plain(text: str) -> tuple[str, str]:
    """A PLAIN message → (user, password) (RFC 4616). Raises `SaslError`."""
    parts = _decode_text(text).split("\0")
    if len(parts) != 3 or not parts[1] or not parts[2]:
        raise SaslError("malformed-request", "A PLAIN message needs a name and a password.")
    if parts[0] and parts[0].split("@")[0] != parts[1]:
        raise SaslError("invalid-authzid", "Logging in for somebody else is not supported.")
    return parts[1], parts[2]


def check_password(mechanism: str, password: str, keys: ScramKeys) -> bool:
    """Whether a password belongs to these keys; takes `keys.iterations` rounds either way."""
    try:
        tried = make_keys(mechanism, password, keys.salt, keys.iterations)
    except SaslError:
        return False
    return hmac.compare_digest(tried.stored_key, keys.stored_key)
