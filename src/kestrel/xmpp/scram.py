"""The arithmetic and the messages of SCRAM (RFC 5802, RFC 7677), and how passwords are prepared (RFC 4013).

Pure: no exchange, no chance, no files. The slow part, salting a password, can be kept by a client
(`SaltedKeys`), so that thousands of sessions of one account cost it once. Passwords and keys must never be
seen in a log: nothing here shows them in its `repr`. Called by `kestrel.xmpp.sasl` for both ends.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import stringprep
import unicodedata
from collections import OrderedDict
from dataclasses import dataclass, field

from kestrel.xmpp.jid import PROHIBITED

SALTED_KEYS_MAX = 256
"""Keys that a process keeps of passwords that it logged in with: accounts, times salts."""
SALT_BYTES_MIN = 8
NONCE_CHARS_MAX = 1024

_HASHES = {"SCRAM-SHA-256": "sha256", "SCRAM-SHA-1": "sha1"}
_SIZES = {name: hashlib.new(name).digest_size for name in _HASHES.values()}


class ScramError(ValueError):
    """A message, a name or a password that SCRAM does not allow."""


# --------------------------------------------------------------------------------------------------
# Keys


@dataclass(frozen=True, slots=True)
class ScramKeys:
    """What a server keeps of a password, for one hash (RFC 5802 section 3)."""

    salt: bytes
    iterations: int
    stored_key: bytes = field(repr=False)
    server_key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class PasswordKeys:
    """What a client makes of a password, a salt and a number of iterations."""

    client_key: bytes = field(repr=False)
    server_key: bytes = field(repr=False)


def salt_password(mechanism: str, password: str, salt: bytes, iterations: int) -> PasswordKeys:
    """Some milliseconds of computing that releases the interpreter. `password` is prepared already."""
    name = _HASHES[mechanism]
    salted = hashlib.pbkdf2_hmac(name, password.encode("utf-8"), salt, iterations)
    return PasswordKeys(hmac.digest(salted, b"Client Key", name), hmac.digest(salted, b"Server Key", name))


def keys_of(mechanism: str, password: str, salt: bytes, iterations: int) -> ScramKeys:
    """What the server keeps of a prepared password."""
    keys = salt_password(mechanism, password, salt, iterations)
    return ScramKeys(salt, iterations, _hash(mechanism, keys.client_key), keys.server_key)


class SaltedKeys:
    """Keys of passwords that were salted before; the ones longest unused are forgotten.

    They are found by a hash of everything that went into them, so no password is kept here.
    """

    def __init__(self, kept_max: int = SALTED_KEYS_MAX) -> None:
        self._kept: OrderedDict[bytes, PasswordKeys] = OrderedDict()
        self._kept_max = kept_max

    def of(self, mechanism: str, password: str, salt: bytes, iterations: int) -> PasswordKeys:
        """As `salt_password`, at once if it was asked for lately."""
        parts = (mechanism.encode(), password.encode("utf-8"), salt, str(iterations).encode())
        label = hashlib.sha256(b"".join(b"%d:%b" % (len(part), part) for part in parts)).digest()
        keys = self._kept.get(label)
        if keys is None:
            keys = self._kept[label] = salt_password(mechanism, password, salt, iterations)
            if len(self._kept) > self._kept_max:
                self._kept.popitem(last=False)
        else:
            self._kept.move_to_end(label)
        return keys

    def __len__(self) -> int:
        return len(self._kept)

    def __repr__(self) -> str:
        return f"<SaltedKeys: {len(self._kept)}>"


def fake_keys(mechanism: str, user: str, secret: bytes, iterations: int) -> ScramKeys:
    """Keys for a user that does not exist: always the same for one name, and no password fits."""
    name = _HASHES[mechanism]

    def derived(purpose: bytes) -> bytes:
        return hmac.digest(secret, b"\0".join((purpose, mechanism.encode(), user.encode())), name)

    return ScramKeys(derived(b"salt")[:16], iterations, derived(b"stored"), derived(b"server"))


# --------------------------------------------------------------------------------------------------
# Proofs


def client_proof(mechanism: str, client_key: bytes, message: bytes) -> bytes:
    """What the client shows: it has the key, and says this (the auth message)."""
    signature = hmac.digest(_hash(mechanism, client_key), message, _HASHES[mechanism])
    return _xor(client_key, signature)


def is_proof(mechanism: str, keys: ScramKeys, message: bytes, proof: bytes) -> bool:
    """Whether the proof was made with the password of these keys, for this message."""
    name = _HASHES[mechanism]
    if len(proof) != _SIZES[name]:
        return False
    client_key = _xor(proof, hmac.digest(keys.stored_key, message, name))
    return hmac.compare_digest(_hash(mechanism, client_key), keys.stored_key)


def server_signature(mechanism: str, server_key: bytes, message: bytes) -> bytes:
    """What the server shows: it knew the keys, and heard this."""
    return hmac.digest(server_key, message, _HASHES[mechanism])


def _hash(mechanism: str, data: bytes) -> bytes:
    return hashlib.new(_HASHES[mechanism], data).digest()


def _xor(one: bytes, other: bytes) -> bytes:
    return (int.from_bytes(one) ^ int.from_bytes(other)).to_bytes(len(one))


# --------------------------------------------------------------------------------------------------
# Messages (RFC 5802 section 7)


def fields_of(message: str, names: str) -> list[str]:
    """The values of the attributes with these one-letter names, which come first and in this order.

    What follows them is an extension and has no meaning here. Raises `ScramError`.
    """
    parts = message.split(",")
    if len(parts) < len(names) or any(
        part[:2] != f"{name}=" for part, name in zip(parts, names, strict=False)
    ):
        raise ScramError(f"it does not begin with {','.join(f'{name}=' for name in names)}")
    return [part[2:] for part in parts[: len(names)]]


def nonce_of(text: str) -> str:
    """A nonce that may be used: printable, without commas, not empty. Raises `ScramError`."""
    if not 0 < len(text) <= NONCE_CHARS_MAX or not text.isascii() or not text.isprintable() or " " in text:
        raise ScramError("its nonce is empty or not printable")
    return text


def bytes_of(text: str) -> bytes:
    """The reverse of `text_of`. Raises `ScramError`."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ScramError("a part of it is not base64") from None


def text_of(data: bytes) -> str:
    """Bytes as they stand in a message."""
    return base64.b64encode(data).decode("ascii")


def user_of(text: str) -> str:
    """A name as it stands in a message → the name. Raises `ScramError`."""
    if "=" in text:
        text = text.replace("=2C", ",").replace("=3D", "\0")
        if "=" in text:
            raise ScramError("its name contains '='")
        text = text.replace("\0", "=")
    if not text:
        raise ScramError("its name is empty")
    return text


def user_text(user: str) -> str:
    """A name → as it stands in a message."""
    return user.replace("=", "=3D").replace(",", "=2C")


def prepare(text: str) -> str:
    """A name or a password as it is compared (SASLprep, RFC 4013). Raises `ScramError`."""
    if text.isascii() and text.isprintable():
        return text
    mapped = "".join(
        " " if stringprep.in_table_c12(char) else char for char in text if not stringprep.in_table_b1(char)
    )
    # Stringprep is defined on Unicode 3.2 (RFC 3454 section 7).
    prepared = unicodedata.ucd_3_2_0.normalize("NFKC", mapped)
    for char in prepared:
        if stringprep.in_table_a1(char) or any(table(char) for table in PROHIBITED):
            raise ScramError(f"it contains the forbidden character U+{ord(char):04X}")
    rtl = [stringprep.in_table_d1(char) for char in prepared]
    if any(rtl) and (any(map(stringprep.in_table_d2, prepared)) or not (rtl[0] and rtl[-1])):
        raise ScramError("it mixes writing directions")
    return prepared
