"""What a configuration of somebody else's server is made from. Pure; called by the templates."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field, fields

from kestrel.errors import UsageError

STANZA_BYTES_MAX = 2**20
"""The largest stanza that the servers take: five times the largest message of Kestrel."""
SESSIONS_PER_ACCOUNT_MAX = 100_000
"""All workers of a pool may share one account."""
RETRY_S_MAX = 5
"""Longest pause before another server is tried again; until then all that is sent there comes back."""
CONNECTING_S_MAX = 20
"""Another server that has not let us in by then is not there."""
_DOMAIN = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")
_PLAIN = re.compile(r"[^\"'\\\x00-\x1f\x7f]*")


class PlanError(UsageError):
    """A value that no configuration may have."""


@dataclass(frozen=True, slots=True)
class Federation:
    """Links to other servers (s2s): TLS with good certificates only (docs/servers/federation.md)."""

    port: int = 5269
    cafile: str = ""
    """Certificates of the authorities to trust; empty: those of the system."""
    dns: str = ""
    """Address of the name server to ask (Prosody; ejabberd has it in an `inetrc`); empty: the system's."""
    ip: str = ""
    """Address to listen on; empty: where clients are listened for."""


@dataclass(frozen=True, slots=True)
class ServerPlan:
    """One server of one pool."""

    domain: str
    component: str
    """Address of the manager, below `domain`."""
    secret: str = field(repr=False)
    data: str
    """Directory of accounts."""
    logs: str
    """Directory of the log."""
    certificate: str
    """PEM file."""
    key: str
    """PEM file; may be the same."""
    pidfile: str = ""
    """Empty: none is written."""
    listen: str = "127.0.0.1"
    """For clients; another one than loopback makes TLS a condition of every login."""
    require_tls: bool = False
    """On loopback, too."""
    port: int = 5222
    tls_port: int = 5223
    """TLS from the first byte (XEP-0368); 0: none."""
    https_port: int = 5443
    """WebSocket within TLS (RFC 7395), path `/xmpp-websocket`; 0: none."""
    component_listen: str = "127.0.0.1"
    component_port: int = 5347
    invites: bool = False
    """Prosody only: who has a token of an invitation may make an account (XEP-0445)."""
    federation: Federation | None = None
    log_level: str = "info"
    as_root: bool = False
    """Prosody only: it shall serve root, too, which it refuses otherwise."""

    def __post_init__(self) -> None:
        """Raises `PlanError`: a value goes into a text that a program obeys, and must not end a string."""
        for name in ("domain", "component"):
            if not _DOMAIN.fullmatch(getattr(self, name)):
                raise PlanError(
                    f"{getattr(self, name)!r} is no {name} name",
                    hint="use small letters, digits, dots, dashes",
                )
        inner = fields(self.federation) if self.federation else ()
        for owner, each in [(self, f) for f in fields(self)] + [(self.federation, f) for f in inner]:
            value = getattr(owner, each.name)
            if isinstance(value, str) and not _PLAIN.fullmatch(value):
                raise PlanError(
                    f"the {each.name} has quotes, backslashes or control characters",
                    hint="choose one without, as it is written into the configuration",
                )
        if not self.component.endswith(f".{self.domain}"):
            raise PlanError(
                f"the component {self.component} is not below the domain {self.domain}",
                hint=f"e.g. kestrel.{self.domain}",
            )
        federated = [self.federation.ip] if self.federation and self.federation.ip else []
        for address in (self.listen, self.component_listen, *federated):
            try:
                ipaddress.ip_address(address)
            except ValueError:
                raise PlanError(
                    f"{address!r} is no address to listen on", hint="e.g. 127.0.0.1, 0.0.0.0 or ::"
                ) from None

    @property
    def tls_required(self) -> bool:
        """On loopback alone may streams be in the clear."""
        return self.require_tls or not ipaddress.ip_address(self.listen).is_loopback
