"""Opens a stream to a server: find it, connect, start TLS by the rules, check the certificate.

The rules: passwords and tokens go over encrypted connections only, except on loopback. A pinned
certificate replaces the authorities. Called by the client and by registration.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import logging
import os
import random
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

from kestrel.errors import AuthenticationError, EnvironmentProblem, KestrelError, PeerError, UsageError
from kestrel.xmpp import stanza as x
from kestrel.xmpp.stream import Stanza, StreamReader
from kestrel.xmpp.wire import OUTGOING_BYTES_MAX, Wire

log = logging.getLogger("kestrel.xmpp")

CLIENT_PORT = 5222
CONNECT_S_MAX = 4.0
"""TCP connection to one network address."""
ADDRESSES_MAX = 4
"""Network addresses of one host that are tried."""
HANDSHAKE_S_MAX = 10.0
LOOKUP_S_MAX = 5.0
STANZA_BYTES_MAX = 10 * 1024 * 1024
"""What the server may send. It has bounded the sender already, and then written a longer `from` into the
stanza: with the same bound on both ends, a stanza just below it would cost its recipient the stream."""
TARGETS_MAX = 16
"""SRV records that are tried."""


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
    """0: 5222."""
    tls: TlsMode | None = None
    """None: required, except on loopback, where it is used if offered."""
    fingerprint: str = ""
    """SHA-256 of the server's certificate (DER) in hex: exactly this one is accepted."""

    @property
    def tls_mode(self) -> TlsMode:
        """The mode in force. Raises `UsageError` if it would send secrets over a network in the clear."""
        loopback = is_loopback(self.host or self.domain)
        if self.fingerprint and self.tls is not TlsMode.NEVER:
            return TlsMode.REQUIRED
        mode = self.tls or (TlsMode.IF_OFFERED if loopback else TlsMode.REQUIRED)
        if mode is not TlsMode.REQUIRED and not loopback:
            raise UsageError(
                f"TLS mode {mode.value!r} is for loopback only, not for {self.host or self.domain!r}.",
                hint="Use TLS; a self-signed certificate can be pinned by its fingerprint.",
            )
        return mode


def is_loopback(host: str) -> bool:
    """Whether the name or address can only mean this machine (RFC 6761 section 6.3)."""
    name = host.rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


# --------------------------------------------------------------------------------------------------
# Finding the server


@dataclass(frozen=True, slots=True)
class SrvRecord:
    """One SRV record (RFC 2782)."""

    priority: int
    weight: int
    port: int
    target: str


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


async def targets_of(endpoint: Endpoint, lookup: Lookup = lookup_srv) -> list[tuple[str, int]]:
    """Hosts and ports to try, in order. Raises `EnvironmentProblem` if the domain offers no XMPP."""
    if endpoint.host:
        return [(endpoint.host, endpoint.port or CLIENT_PORT)]
    fallback = (endpoint.domain.strip("[]"), endpoint.port or CLIENT_PORT)
    if is_loopback(endpoint.domain) or endpoint.port:
        return [fallback]
    records = await lookup(f"_xmpp-client._tcp.{endpoint.domain}")
    if len(records) == 1 and records[0].target == ".":
        raise EnvironmentProblem(
            f"The domain {endpoint.domain} says that it has no XMPP server.", hint="Check the address."
        )
    ordered = srv_order(records, lambda most: random.randint(0, most))[:TARGETS_MAX]
    targets = [(record.target.rstrip("."), record.port) for record in ordered if record.target != "."]
    return targets if fallback in targets else [*targets, fallback]


# --------------------------------------------------------------------------------------------------
# Connecting


@dataclass(frozen=True, slots=True)
class Dialled:
    """An open stream, ready to log in."""

    wire: Wire
    features: Stanza
    encrypted: bool


async def connect(
    targets: Sequence[tuple[str, int]],
    make_reader: Callable[[], StreamReader],
    *,
    outgoing_bytes_max: int = OUTGOING_BYTES_MAX,
) -> Wire:
    """Connect to the first target that answers. Raises `EnvironmentProblem` naming each one's fault."""
    loop = asyncio.get_running_loop()
    faults = []
    for host, port in targets:
        try:
            addresses = await _addresses(host, port)
        except OSError as problem:
            faults.append(f"{host}:{port}: {problem.strerror or problem}")
            continue
        for address in addresses:
            # One by one, not by asyncio's "happy eyeballs": that loses a socket when it is cancelled
            # in the turn in which the connection is made.
            try:
                async with asyncio.timeout(CONNECT_S_MAX):
                    _, wire = await loop.create_connection(
                        lambda: Wire(make_reader(), outgoing_bytes_max=outgoing_bytes_max), address, port
                    )
                    return wire
            except TimeoutError:
                faults.append(f"{host}:{port}: no answer in {CONNECT_S_MAX:g} s")
            except OSError as problem:
                # asyncio's own words for it name the address once more, and not the cause
                cause = os.strerror(problem.errno) if problem.errno else problem.strerror or problem
                faults.append(f"{host}:{port}: {cause}")
    raise EnvironmentProblem(
        f"No XMPP server can be reached ({'; '.join(faults)}).",
        hint="Is the server running? Are address and port right?",
        code="unreachable",
        retry=True,
    )


async def _addresses(host: str, port: int) -> list[str]:
    """Network addresses of a host, each once, the system's favourite first."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(info[4][0]) for info in found))[:ADDRESSES_MAX]


async def dial(
    endpoint: Endpoint,
    *,
    lookup: Lookup = lookup_srv,
    outgoing_bytes_max: int = OUTGOING_BYTES_MAX,
    user: str = "",
) -> Dialled:
    """Connect, open the stream, start TLS. `user` is the bare JID to name once encrypted.

    Raises `EnvironmentProblem`, `PeerError`, and `AuthenticationError` for a certificate that is not
    acceptable.
    """
    mode = endpoint.tls_mode
    targets = await targets_of(endpoint, lookup)
    wire = await connect(
        targets,
        lambda: StreamReader(stanza_bytes_max=STANZA_BYTES_MAX),
        outgoing_bytes_max=outgoing_bytes_max,
    )
    try:
        features = await open_stream(wire, endpoint.domain)
        offered = features.has_child(x.NS_TLS, "starttls")
        if mode is TlsMode.NEVER or not (offered or mode is TlsMode.REQUIRED):
            return Dialled(wire, features, encrypted=False)
        if not offered:
            raise EnvironmentProblem(
                f"The server of {endpoint.domain} offers no encryption (STARTTLS).",
                hint="Give the server a certificate, or use a server that has one.",
                code="no_tls",
            )
        await _start_tls(wire, endpoint)
        return Dialled(wire, await open_stream(wire, endpoint.domain, user=user), encrypted=True)
    except ssl.SSLCertVerificationError as problem:
        wire.drop(EnvironmentProblem("The certificate is not acceptable."))
        seen = await _fingerprint_seen(endpoint, targets)
        raise _not_trusted(endpoint, problem.verify_message or str(problem), seen) from None
    except OSError as problem:
        wire.drop(EnvironmentProblem("TLS failed."))
        raise EnvironmentProblem(
            f"TLS with the server of {endpoint.domain} failed: {problem}.", retry=True
        ) from problem
    except BaseException:
        wire.drop(EnvironmentProblem("The connection was given up."))
        raise


async def open_stream(wire: Wire, domain: str, *, user: str = "") -> Stanza:
    """Exchange headers; returns the features. Raises `PeerError`, `EnvironmentProblem`."""
    wire.write(x.stream_header(to=domain, from_=user))
    await wire.header()
    features = await wire.element()
    if (features.ns, features.name) != (x.NS_STREAM, "features"):
        raise PeerError(f"The server sent {features.name!r} instead of its features.")
    return features


async def _start_tls(wire: Wire, endpoint: Endpoint, *, context: ssl.SSLContext | None = None) -> None:
    wire.write(b"<starttls xmlns='%b'/>" % x.NS_TLS.encode())
    answer = await wire.element()
    if (answer.ns, answer.name) != (x.NS_TLS, "proceed"):
        raise PeerError(f"The server of {endpoint.domain} refuses to start TLS.")
    if not wire.pulled:
        raise PeerError("The server sent data in the clear after it agreed to TLS.")
    chosen = context or tls_context(pinned=bool(endpoint.fingerprint))
    await wire.start_tls(chosen, endpoint.domain.strip("[]"), HANDSHAKE_S_MAX)
    if context is None and endpoint.fingerprint:
        seen = fingerprint_of(wire.certificate)
        if seen != normal_fingerprint(endpoint.fingerprint):
            raise _not_trusted(endpoint, "it is not the pinned one", seen)


@lru_cache(maxsize=2)
def tls_context(*, pinned: bool) -> ssl.SSLContext:
    """One context for all connections: with one each, memory would go into copies of the authorities."""
    context = ssl.create_default_context()
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


async def _fingerprint_seen(endpoint: Endpoint, targets: Sequence[tuple[str, int]]) -> str:
    """Look at the certificate that failed, only to name it: nothing secret is sent."""
    wire: Wire | None = None
    try:
        wire = await connect(targets, StreamReader)
        await open_stream(wire, endpoint.domain)
        await _start_tls(wire, endpoint, context=tls_context(pinned=True))
        return fingerprint_of(wire.certificate)
    except (KestrelError, OSError) as problem:
        log.debug("xmpp.no_certificate_seen", extra={"reason": str(problem)})
        return ""
    finally:
        if wire is not None:
            wire.drop(EnvironmentProblem("Only the certificate was wanted."))


def _not_trusted(endpoint: Endpoint, why: str, seen: str) -> AuthenticationError:
    shown = seen or "unknown"
    return AuthenticationError(
        f"The certificate of {endpoint.domain} is not trusted: {why}. Its fingerprint (SHA-256) is {shown}.",
        hint="If that is your server, pin this fingerprint or use its new invitation; if not, somebody "
        "is in between.",
        code="certificate",
    )
