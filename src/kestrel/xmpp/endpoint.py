"""Which server is meant, by which way in, and whether that may go unencrypted.

The rules: passwords and tokens go over encrypted connections only, except on loopback; a way in that is
encrypted never falls back to one that is not. Pure. Called by whoever dials.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from enum import Enum

from kestrel.config import WEBSOCKET_PATH, Via
from kestrel.errors import UsageError

PORTS: dict[Via, int] = {"": 5222, "tls": 5223, "wss": 443, "ws": 80}
"""The usual ones."""
_PATH = re.compile(r"/[\x21-\x7e]{0,1000}")


class TlsMode(Enum):
    """When a connection is encrypted."""

    REQUIRED = "required"
    IF_OFFERED = "if-offered"
    """Loopback only."""
    NEVER = "never"
    """Loopback only."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server and how to reach it."""

    domain: str
    host: str = ""
    """Empty: SRV lookup of the domain, then the domain itself."""
    port: int = 0
    """0: the usual one."""
    tls: TlsMode | None = None
    """None: required, except on loopback, where it is used if offered."""
    fingerprint: str = ""
    """SHA-256 of the server's certificate (DER) in hex: exactly this one is accepted."""
    via: Via = ""
    path: str = ""
    """Of the WebSocket; empty: `WEBSOCKET_PATH`."""

    @property
    def tls_mode(self) -> TlsMode:
        """The mode in force. Raises `UsageError` if it would send secrets over a network in the clear."""
        where = self.host or self.domain
        for name in (self.host, self.domain):
            try:
                name.encode("idna")
            except UnicodeError:
                raise UsageError(
                    f"This is no name of a host: {name[:60]!r}.", hint="Check the address."
                ) from None
        loopback = is_loopback(where)
        if self.path and not _PATH.fullmatch(self.path):
            raise UsageError(f"This is no path of a WebSocket: {self.path[:60]!r}.", hint=WEBSOCKET_PATH)
        if self.via == "ws":
            return self._tls_mode_of_ws(where, loopback)
        if self.via and self.tls not in (None, TlsMode.REQUIRED):
            raise UsageError(f"{self.via!r} is TLS; it cannot go with TLS mode {self.tls!r}.")
        if self.via or (self.fingerprint and self.tls is not TlsMode.NEVER):
            return TlsMode.REQUIRED
        mode = self.tls or (TlsMode.IF_OFFERED if loopback else TlsMode.REQUIRED)
        if mode is not TlsMode.REQUIRED and not loopback:
            raise UsageError(
                f"TLS mode {mode.value!r} is for loopback only, not for {where!r}.",
                hint="Use TLS; a self-signed certificate can be pinned by its fingerprint.",
            )
        return mode

    def _tls_mode_of_ws(self, where: str, loopback: bool) -> TlsMode:
        if not loopback:
            raise UsageError(
                f"A WebSocket in the clear is for loopback only, not for {where!r}.",
                hint=f"Use wss://{where}.",
            )
        if self.fingerprint or self.tls is TlsMode.REQUIRED:
            raise UsageError("A WebSocket in the clear has no certificate.", hint=f"Use wss://{where}.")
        return TlsMode.NEVER

    @property
    def websocket_path(self) -> str:
        return self.path or WEBSOCKET_PATH


def is_loopback(host: str) -> bool:
    """Whether the name or address can only mean this machine (RFC 6761 section 6.3)."""
    name = host.rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
