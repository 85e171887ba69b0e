"""Finds out where a domain's XMPP server is: what was given, the DNS, and then the usual places.

Both kinds of SRV records count, for STARTTLS (RFC 6120 section 3.2) and for direct TLS (XEP-0368), in one
order. A domain without records is tried at ports 5222 and 5223. The last try of every domain that was not
given an address is `wss://DOMAIN/xmpp-websocket`: in networks that let nothing out but web traffic it is
what may still work. It is a guess: whatever goes wrong there only says that it was a wrong one.

Called by `dial`.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from kestrel.config import Via
from kestrel.errors import EnvironmentProblem
from kestrel.xmpp.endpoint import PORTS, Endpoint, is_loopback

log = logging.getLogger("kestrel.xmpp")

LOOKUP_S_MAX = 5.0
TARGETS_MAX = 16
"""SRV records that are tried."""
_KINDS: tuple[tuple[str, Via], ...] = (("_xmpp-client._tcp", ""), ("_xmpps-client._tcp", "tls"))


@dataclass(frozen=True, slots=True)
class SrvRecord:
    """One SRV record (RFC 2782)."""

    priority: int
    weight: int
    port: int
    target: str
    via: Via = ""
    """What kind of service it belongs to."""


@dataclass(frozen=True, slots=True)
class Target:
    """One place to try."""

    host: str
    port: int
    via: Via = ""
    path: str = ""
    guessed: bool = False
    """Nobody said that there is a server."""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        match self.via:
            case "":
                return f"{host}:{self.port}"
            case "tls":
                return f"xmpps://{host}:{self.port}"
            case _:
                return f"{self.via}://{self.authority}{self.path}"

    @property
    def authority(self) -> str:
        """Host, and port unless it is the usual one, as in a URL."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.via] else f"{host}:{self.port}"


Lookup = Callable[[str], Awaitable[Sequence[SrvRecord]]]


async def lookup_srv(name: str) -> Sequence[SrvRecord]:
    """SRV records of a name; empty if there are none or nobody can tell."""
    import dns.asyncresolver  # a quarter of the start-up time, and not needed when a host is given
    import dns.exception

    try:
        answer = await dns.asyncresolver.resolve(name, "SRV", lifetime=LOOKUP_S_MAX)
    except (dns.exception.DNSException, OSError) as problem:
        log.debug("xmpp.no_srv", extra={"record": name, "reason": str(problem)})
        return []
    return [SrvRecord(r.priority, r.weight, r.port, str(r.target)) for r in answer]


def srv_order(records: Sequence[SrvRecord], draw: Callable[[int], int]) -> list[SrvRecord]:
    """The order to try: by priority, among equals by weighted chance (RFC 2782, page 4).

    `draw(n)` returns a number from 0 to n inclusive.
    """
    ordered: list[SrvRecord] = []
    for priority in sorted({record.priority for record in records}):
        # Those of weight 0 come first, so that they are drawn rarely but not never.
        left = sorted((r for r in records if r.priority == priority), key=lambda r: r.weight)
        while left:
            mark = draw(sum(r.weight for r in left))
            at = 0
            while mark > left[at].weight:
                mark -= left[at].weight
                at += 1
            ordered.append(left.pop(at))
    return ordered


async def targets_of(endpoint: Endpoint, lookup: Lookup = lookup_srv) -> list[Target]:
    """Where to try, in order. Raises `EnvironmentProblem` if the domain says that it offers no XMPP."""
    via = endpoint.via
    path = endpoint.websocket_path if via in ("ws", "wss") else ""
    domain = endpoint.domain.strip("[]")
    host = endpoint.host.strip("[]") or domain
    plain = Target(host, endpoint.port or PORTS[via], via, path)
    if endpoint.host or endpoint.port or is_loopback(endpoint.domain) or path:
        return [plain]
    kinds = [(name, kind) for name, kind in _KINDS if not via or kind == via]
    answers = await asyncio.gather(*(lookup(f"{name}.{endpoint.domain}") for name, _ in kinds))
    found: list[SrvRecord] = []
    refused: set[Via] = set()
    for (_, kind), records in zip(kinds, answers, strict=True):
        if len(records) == 1 and records[0].target == ".":
            refused.add(kind)
        found += [replace(record, via=kind) for record in records if record.target != "."]
    usual = [Target(domain, PORTS[kind], kind) for _, kind in kinds if kind not in refused]
    if not found and ("" in refused or not usual):
        raise EnvironmentProblem(
            f"The domain {endpoint.domain} says that it has no XMPP server.", hint="Check the address."
        )
    ordered = srv_order(found, lambda most: random.randint(0, most))[:TARGETS_MAX]
    targets = [Target(record.target.rstrip("."), record.port, record.via) for record in ordered] or usual
    if via:
        return targets
    return [*targets, Target(domain, PORTS["wss"], "wss", endpoint.websocket_path, guessed=True)]
