"""Whether a server's certificate is the right one: authorities and a name, or a pinned fingerprint.

It decides nothing but that; nobody may talk on after it said no. Called by `dial` and `proxy`.
"""

from __future__ import annotations

import hashlib
import ssl
from functools import lru_cache

from kestrel.errors import AuthenticationError


@lru_cache(maxsize=8)
def tls_context(*, pinned: bool, alpn: str = "") -> ssl.SSLContext:
    """One context for all connections: with one each, memory would go into copies of the authorities.

    `pinned`: the caller looks at the certificate. `alpn`: what we want to speak (RFC 7301).
    """
    context = ssl.create_default_context()
    if alpn:
        context.set_alpn_protocols([alpn])
    if pinned:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def fingerprint_of(certificate: bytes | None) -> str:
    """SHA-256 of a certificate in DER form, in hex; empty without one."""
    return hashlib.sha256(certificate).hexdigest() if certificate else ""


def normal_fingerprint(text: str) -> str:
    """Without colons and spaces, in lower case."""
    return text.replace(":", "").replace(" ", "").lower()


def not_trusted(name: str, why: str, seen: str) -> AuthenticationError:
    """What to tell of a certificate for `name` that was refused; `seen` is its fingerprint, if known."""
    return AuthenticationError(
        f"The certificate of {name} is not trusted: {why.rstrip('.')}. "
        f"Its fingerprint (SHA-256) is {seen or 'unknown'}.",
        hint="If that is your server, pin this fingerprint or use its new invitation; if not, somebody "
        "is in between.",
        code="certificate",
    )
