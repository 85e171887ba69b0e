"""SASL for both ends (RFC 4422, 4616, 5802, 7677), step by step over `kestrel.xmpp.scram`.

Pure: base64 texts in, base64 texts out; the only chance in it is the nonces. A client believes a server
only after its signature was checked; a server answers for users that do not exist as it does for those
that do. Called by the client and by the embedded server.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import secrets
from collections.abc import Callable, Sequence

from kestrel.errors import AuthenticationError, PeerError
from kestrel.xmpp import scram
from kestrel.xmpp.scram import SaltedKeys, ScramError, ScramKeys

ITERATIONS_MAX = 1_000_000
"""A server that asks for more would only burn the client's time."""
ITERATIONS_MIN = 4096
"""A server that asks for less would learn too much of the password (RFC 7677 section 4)."""
MESSAGE_CHARS_MAX = 4096
"""Longest SASL message in base64."""
NONCE_BYTES = 18

SCRAM_SHA_256 = "SCRAM-SHA-256"
SCRAM_SHA_1 = "SCRAM-SHA-1"
PLAIN = "PLAIN"
CLIENT_ORDER = (SCRAM_SHA_256, SCRAM_SHA_1, PLAIN)
"""Strongest first."""

_SALTED = SaltedKeys()
"""Of this process: thousands of sessions of one account salt its password once."""
_HEADER = "n,,"
"""No binding to a channel, and nobody else's name (RFC 5802 section 7)."""
_FLAGS = ("n", "y")
"""What a client may say of channel binding to a server that does not offer it."""


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

    def __init__(
        self,
        offered: Sequence[str],
        user: str,
        password: str,
        *,
        encrypted: bool,
        salted: SaltedKeys = _SALTED,
        nonce: str = "",
    ) -> None:
        """Choose the strongest mechanism; PLAIN only if the stream is encrypted.

        `salted` remembers the keys of passwords; `nonce` is a random one unless it is given.
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
        self._salted = salted
        self._bare = ""
        self._nonce = nonce or secrets.token_urlsafe(NONCE_BYTES)
        self._signature = b""
        """What the server must answer to our proof; empty before that."""
        try:
            if self.mechanism == PLAIN:
                self.first = encode(f"\0{user}\0{password}".encode())
            else:
                self._password = scram.prepare(password)
                self._bare = f"n={scram.user_text(scram.prepare(user))},r={self._nonce}"
                self.first = encode((_HEADER + self._bare).encode())
        except (ScramError, UnicodeEncodeError) as problem:
            raise AuthenticationError(
                f"The name {user!r} or its password contains characters that cannot be used to log in.",
                hint="Choose a password without control characters.",
            ) from problem

    def on_challenge(self, text: str) -> str:
        """The answer to a challenge. Raises `AuthenticationError`, `SaslError`."""
        if self._finished:
            raise SaslError("malformed-request", "The server sent a challenge that was not expected.")
        message = _decode_text(text)
        if message.startswith(("v=", "e=")):
            # Some servers send their signature as a last challenge (RFC 5802 section 5).
            self._check(message)
            return "="
        if self._signature:
            raise SaslError("malformed-request", "The server sent a challenge that was not expected.")
        try:
            return encode(self._final(message).encode())
        except ScramError as problem:
            raise AuthenticationError(f"The server's login challenge is wrong: {problem}.") from problem

    def _final(self, challenge: str) -> str:
        """The proof, and with it what we expect to hear."""
        nonce, salt_text, count = scram.fields_of(challenge, "rsi")
        iterations = _iterations(count)
        salt = scram.bytes_of(salt_text)
        if len(salt) < scram.SALT_BYTES_MIN:
            raise ScramError("its salt is too short")
        if not scram.nonce_of(nonce).startswith(self._nonce) or nonce == self._nonce:
            raise ScramError("it answers another login")
        keys = self._salted.of(self.mechanism, self._password, salt, iterations)
        without_proof = f"c={scram.text_of(_HEADER.encode())},r={nonce}"
        message = f"{self._bare},{challenge},{without_proof}".encode()
        self._signature = scram.server_signature(self.mechanism, keys.server_key, message)
        proof = scram.client_proof(self.mechanism, keys.client_key, message)
        return f"{without_proof},p={scram.text_of(proof)}"

    def on_success(self, text: str) -> None:
        """The server says yes: check that it knew the password too (SCRAM).

        Raises `AuthenticationError` if it did not prove that.
        """
        if not self._finished:
            self._check(_decode_text(text) if text.strip() else "")

    def _check(self, message: str) -> None:
        try:
            if message.startswith("e="):
                raise ScramError(message[2:60])
            (given,) = scram.fields_of(message, "v")
            if not self._signature or not hmac.compare_digest(scram.bytes_of(given), self._signature):
                raise ScramError("its signature is not the one of our password")
        except ScramError as problem:
            raise AuthenticationError(
                f"The server did not prove that it knows this account ({problem}).",
                hint="Somebody may be in between: check the address and the certificate.",
            ) from problem
        self._finished = True


def _iterations(text: str) -> int:
    count = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
    if not ITERATIONS_MIN <= count <= ITERATIONS_MAX:
        raise AuthenticationError(
            f"The server asks for {text[:20]} password iterations; "
            f"{ITERATIONS_MIN} to {ITERATIONS_MAX} are accepted."
        )
    return count


# --------------------------------------------------------------------------------------------------
# Server


def make_keys(mechanism: str, password: str, salt: bytes, iterations: int = ITERATIONS_MIN) -> ScramKeys:
    """Keys of a new password. `salt` is fresh and random, at least 12 bytes. Raises `SaslError`."""
    if not password:
        raise SaslError("malformed-request", "An empty password cannot be used.")
    try:
        return scram.keys_of(mechanism, scram.prepare(password), salt, iterations)
    except (ScramError, UnicodeEncodeError) as problem:
        raise SaslError("malformed-request", f"This password cannot be used: {problem}.") from problem


def fake_keys(mechanism: str, user: str, secret: bytes, iterations: int = ITERATIONS_MIN) -> ScramKeys:
    """Keys for a user that does not exist: always the same for one name, and no password fits.

    `secret` is random, and the same as long as the accounts live.
    """
    return scram.fake_keys(mechanism, user, secret, iterations)


KeysOf = Callable[[str], ScramKeys | None]
"""The name as the client writes it → its keys for this mechanism, or None if there is no such user."""


class ScramServer:
    """The server's side of one SCRAM exchange: `on_first`, then `on_final`."""

    __slots__ = (
        "_header",
        "_iterations",
        "_keys",
        "_keys_of",
        "_known",
        "_mechanism",
        "_name_of",
        "_nonce",
        "_secret",
        "_so_far",
        "user",
    )

    def __init__(
        self,
        mechanism: str,
        keys_of: KeysOf,
        secret: bytes,
        iterations: int = ITERATIONS_MIN,
        *,
        name_of: Callable[[str], str] = str,
    ) -> None:
        """`secret` makes the challenges for users that do not exist (`fake_keys`), with `iterations`.

        `name_of`: all ways to write a name → the one way. If two of them got different challenges, that
        would tell that there is no such user.
        """
        self._name_of = name_of
        self._iterations = iterations
        self._mechanism = mechanism
        self._keys_of = keys_of
        self._secret = secret
        self._keys: ScramKeys | None = None
        self._known = False
        self._header = self._nonce = self._so_far = ""
        self.user = ""
        """Who the client says that it is, once it has."""

    def on_first(self, text: str, *, nonce: str = "") -> str:
        """The client's first message → the challenge. `nonce` is ours, else a random one.

        Raises `SaslError`.
        """
        message = _decode_text(text)
        flag, _, rest = message.partition(",")
        authorization, comma, bare = rest.partition(",")
        if authorization:
            # Acting for somebody else is not supported: `a=` must be absent (RFC 5802 section 7).
            raise SaslError("invalid-authzid", "Logging in for somebody else is not supported.")
        try:
            if flag not in _FLAGS or not comma:
                raise ScramError("it asks for what is not offered")
            name, theirs = scram.fields_of(bare, "nr")
            self.user = user = scram.user_of(name)
            self._nonce = scram.nonce_of(theirs) + (nonce or secrets.token_urlsafe(NONCE_BYTES))
        except ScramError as problem:
            raise SaslError("malformed-request", f"The first SCRAM message is wrong: {problem}") from problem
        keys = self._keys_of(user)
        self._known = keys is not None
        if keys is None:
            keys = fake_keys(self._mechanism, self._name_of(user), self._secret, self._iterations)
        self._keys = keys
        self._header = scram.text_of(f"{flag},,".encode())
        challenge = f"r={self._nonce},s={scram.text_of(keys.salt)},i={keys.iterations}"
        self._so_far = f"{bare},{challenge}"
        return encode(challenge.encode())

    def on_final(self, text: str) -> tuple[str, str]:
        """The client's proof → (user, data for `<success/>`). Raises `SaslError`, not-authorized."""
        message = _decode_text(text)
        keys, self._keys = self._keys, None
        without_proof, _, proof = message.rpartition(",p=")
        try:
            header, nonce = scram.fields_of(without_proof, "cr")
            given = scram.bytes_of(proof)
        except ScramError as problem:
            raise SaslError("malformed-request", f"The last SCRAM message is wrong: {problem}") from problem
        if keys is None:
            raise SaslError("malformed-request", "The last SCRAM message came before the first.")
        said = f"{self._so_far},{without_proof}".encode()
        right = scram.is_proof(self._mechanism, keys, said, given)
        if not (right and self._known and nonce == self._nonce and header == self._header):
            raise SaslError("not-authorized", "Name or password is wrong.")
        signature = scram.server_signature(self._mechanism, keys.server_key, said)
        return self.user, encode(b"v=" + scram.text_of(signature).encode())


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
