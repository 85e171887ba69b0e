"""Opens a stream to a server: find it, connect by the way in that was asked for, check the certificate.

The ways in: TCP with STARTTLS (RFC 6120), TLS from the first byte (XEP-0368), a WebSocket within TLS
(RFC 7395), and on loopback a WebSocket in the clear. The rules: passwords and tokens go over encrypted
connections only, except on loopback; what is encrypted never falls back to what is not. A pinned
certificate replaces the authorities.

Proxies (`proxy`): a WebSocket goes as a browser would, by the proxy if the environment names one. Plain
XMPP and direct TLS are tried directly first and then by the proxy: the server may well be in the same
house, and who sits behind a closed firewall has lost a few seconds. The certificate is checked the same
way in either case, so a proxy can only refuse.

Called by the client, the component and by registration.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from kestrel.errors import AuthenticationError, EnvironmentProblem, KestrelError, PeerError
from kestrel.xmpp import stanza as x
from kestrel.xmpp.certificates import fingerprint_of, normal_fingerprint, not_trusted, tls_context
from kestrel.xmpp.endpoint import Endpoint, TlsMode, is_loopback
from kestrel.xmpp.lookup import Lookup, Target, lookup_srv, targets_of
from kestrel.xmpp.proxy import Proxy, ProxyProblem, open_tunnel, proxy_for
from kestrel.xmpp.stream import Stanza, StreamReader
from kestrel.xmpp.wire import OUTGOING_BYTES_MAX, Wire

__all__ = [
    "Dialled",
    "Endpoint",
    "Lookup",
    "TlsMode",
    "connect",
    "dial",
    "is_loopback",
    "lookup_srv",
    "open_stream",
]

log = logging.getLogger("kestrel.xmpp")

CONNECT_S_MAX = 4.0
"""TCP connection to one network address."""
CONNECT_S_MIN = 1.0
"""So long it is tried in any case, however many others wait for their turn."""
REACH_S_MAX = 12.0
"""For all TCP connections together, shared fairly between the places to try."""
ADDRESSES_MAX = 4
"""Network addresses of one host that are tried."""
ENTER_S_MAX = 8.0
"""From the connection until a server is ready for the login, while there are other places to try: some
firewalls take every connection and then say nothing."""
HANDSHAKE_S_MAX = 10.0
"""TLS, and then the HTTP of a WebSocket."""
FAULTS_TOLD_MAX = 8
STANZA_BYTES_MAX = 10 * 1024 * 1024
"""What the server may send. It has bounded the sender already, and then written a longer `from` into the
stanza: with the same bound on both ends, a stanza just below it would cost its recipient the stream."""

T = TypeVar("T")
_ALPN = {"tls": "xmpp-client", "wss": "http/1.1"}


@dataclass(frozen=True, slots=True)
class Dialled:
    """An open stream, ready to log in."""

    wire: Wire
    features: Stanza
    encrypted: bool
    target: Target
    """Where it was found."""


async def dial(
    endpoint: Endpoint,
    *,
    lookup: Lookup = lookup_srv,
    outgoing_bytes_max: int = OUTGOING_BYTES_MAX,
    user: str = "",
    first: Target | None = None,
) -> Dialled:
    """Connect, start TLS, open the stream. `user` is the bare JID to name once encrypted.

    `first` is tried before the others if it is still among them: where the server was last time.
    Raises `EnvironmentProblem`, `PeerError`, `UsageError` for what is not safe, and `AuthenticationError`
    for a certificate that is not acceptable.
    """
    stays_here = endpoint.tls_mode is not TlsMode.REQUIRED
    targets = await targets_of(endpoint, lookup)
    targets.sort(key=lambda target: target != first)

    def make_wire(target: Target) -> Wire:
        reader = StreamReader(stanza_bytes_max=STANZA_BYTES_MAX)
        return _wire_class(target)(reader, outgoing_bytes_max=outgoing_bytes_max)

    async def enter(wire: Wire, target: Target) -> Dialled:
        return await _negotiated(wire, endpoint, target, user)

    return await _reach(targets, make_wire, enter, stays_here=stays_here)


async def connect(
    host: str,
    port: int,
    make_reader: Callable[[], StreamReader],
    *,
    outgoing_bytes_max: int = OUTGOING_BYTES_MAX,
) -> Wire:
    """A plain connection, never by a proxy. Raises `EnvironmentProblem` that names the fault."""

    def make_wire(_: Target) -> Wire:
        return Wire(make_reader(), outgoing_bytes_max=outgoing_bytes_max)

    async def enter(wire: Wire, _: Target) -> Wire:
        return wire

    return await _reach([Target(host, port)], make_wire, enter, proxies=False)


async def open_stream(wire: Wire, domain: str, *, user: str = "") -> Stanza:
    """Exchange headers; returns the features. Raises `PeerError`, `EnvironmentProblem`."""
    wire.write(x.stream_header(to=domain, from_=user))
    await wire.header()
    features = await wire.element()
    if (features.ns, features.name) != (x.NS_STREAM, "features"):
        raise PeerError(f"The server sent {features.name!r} instead of its features.")
    return features


# --------------------------------------------------------------------------------------------------
# Connecting


async def _reach(
    targets: Sequence[Target],
    make_wire: Callable[[Target], Wire],
    enter: Callable[[Wire, Target], Awaitable[T]],
    *,
    proxies: bool = True,
    stays_here: bool = False,
) -> T:
    """What `enter` makes of the first target that answers, and that it can do something with.

    `stays_here`: it may go unencrypted, so no other machine is tried, whatever a name leads to.

    Raises `AuthenticationError` for a certificate, at once; else, when all have failed, the fault itself if
    it is the only one, or `EnvironmentProblem` naming them all.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + REACH_S_MAX
    known: dict[str, list[str] | str] = {}
    faults: list[_Fault] = []
    for at, target in enumerate(targets):
        until = loop.time() + max(0.0, deadline - loop.time()) / (len(targets) - at)
        routes, unknown = await _routes(target, known, proxies=proxies)
        if stays_here and not unknown:
            routes, unknown = _here(routes)
        if unknown:
            faults.append(_Fault(f"{target}: {unknown}"))
        for number, route in enumerate(routes):
            left_s = (until - loop.time()) / (len(routes) - number)
            s_max = min(CONNECT_S_MAX, max(CONNECT_S_MIN, left_s))
            is_last = at + 1 == len(targets) and number + 1 == len(routes)
            where = f"{target} by the proxy {route}" if isinstance(route, Proxy) else str(target)
            try:
                wire = await _open(route, target, s_max, make_wire)
                with _given_up_on_error(wire):
                    async with asyncio.timeout(None if is_last else ENTER_S_MAX):
                        return await enter(wire, target)
            except KestrelError as problem:
                if isinstance(problem, AuthenticationError) and not target.guessed:
                    raise
                faults.append(_Fault(f"{where}: {problem.text.rstrip('.')}", problem, target.guessed))
            except TimeoutError:
                faults.append(_Fault(f"{where}: it does not let us in within {ENTER_S_MAX:g} s"))
    raise _all_failed(faults, one_place=len(targets) == 1)


@dataclass(frozen=True, slots=True)
class _Fault:
    """What was wrong at one place."""

    text: str
    problem: KestrelError | None = None
    guessed: bool = False


def _all_failed(faults: Sequence[_Fault], *, one_place: bool) -> KestrelError:
    answered = [f.problem for f in faults if f.problem is not None and not isinstance(f.problem, _UNREACHED)]
    if one_place and len(answered) == 1:
        return answered[0]
    hints = [f.problem.hint for f in faults if f.problem is not None and f.problem.hint and not f.guessed]
    texts = [f.text for f in faults]
    if len(texts) > FAULTS_TOLD_MAX:
        texts[FAULTS_TOLD_MAX:] = [f"and {len(texts) - FAULTS_TOLD_MAX} more"]
    return EnvironmentProblem(
        f"No XMPP server can be reached ({'; '.join(texts)}).",
        hint=hints[-1] if hints else "Is the server running? Are address and port right?",
        code="unreachable",
        retry=True,
    )


class _NotConnected(EnvironmentProblem):
    """A network address does not answer."""


_UNREACHED = (_NotConnected, ProxyProblem)


async def _routes(
    target: Target, known: dict[str, list[str] | str], *, proxies: bool
) -> tuple[list[str | Proxy], str]:
    """Network addresses and the proxy by which to try a target, in order; and why there are none."""
    proxy = proxy_for(target.host, target.port) if proxies else None
    if proxy is not None and target.via == "wss":
        return [proxy], ""
    found = known.get(target.host)
    if found is None:
        try:
            async with asyncio.timeout(CONNECT_S_MAX):
                found = await _addresses(target.host, target.port)
        except TimeoutError:
            found = "nobody tells its address"
        except (OSError, UnicodeError) as problem:
            found = getattr(problem, "strerror", "") or str(problem)
        known[target.host] = found
    if isinstance(found, str):
        return [proxy] if proxy is not None else [], found
    if proxy is None or all(is_loopback(address) for address in found):
        return [*found], ""
    return [*found, proxy], ""


def _here(routes: list[str | Proxy]) -> tuple[list[str | Proxy], str]:
    """Those that do not leave this machine; and why there are none. That `pool.localhost` means this machine
    (RFC 6761 section 6.3) is not known to every resolver: some ask the DNS, where anybody may answer."""
    here: list[str | Proxy] = [route for route in routes if isinstance(route, str) and is_loopback(route)]
    if here or not routes:
        return here, ""
    return [], f"it leads to {routes[0]}, not to this machine, and encryption was not demanded"


async def _addresses(host: str, port: int) -> list[str]:
    """Network addresses of a host, each once, the system's favourite first."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(info[4][0]) for info in found))[:ADDRESSES_MAX]


async def _open(
    route: str | Proxy, target: Target, s_max: float, make_wire: Callable[[Target], Wire]
) -> Wire:
    """A TCP connection to the target, with a wire on it. Raises `_NotConnected`, `ProxyProblem`."""
    if isinstance(route, Proxy):
        transport = await open_tunnel(route, target.host, target.port)
        wire = make_wire(target)
        transport.set_protocol(wire)
        wire.connection_made(transport)
        return wire
    # One by one, not by asyncio's "happy eyeballs": that loses a socket when it is cancelled in the turn
    # in which the connection is made.
    try:
        async with asyncio.timeout(s_max):
            _, wire = await asyncio.get_running_loop().create_connection(
                lambda: make_wire(target), route, target.port
            )
            return wire
    except TimeoutError:
        raise _NotConnected(f"no answer in {s_max:.2g} s", retry=True) from None
    except OSError as problem:
        raise _NotConnected(_cause(problem), retry=True) from None


def _wire_class(target: Target) -> type[Wire]:
    if target.via not in ("ws", "wss"):
        return Wire
    from kestrel.xmpp.websocket_wire import WebSocketWire  # wsproto and h11, 50 ms that few need

    return WebSocketWire


async def _negotiated(wire: Wire, endpoint: Endpoint, target: Target, user: str) -> Dialled:
    """All that comes before the login."""
    await _prepare(wire, endpoint, target)
    encrypted = target.via in _ALPN
    features = await open_stream(wire, endpoint.domain, user=user if encrypted else "")
    if target.via:
        return Dialled(wire, features, encrypted, target)
    mode = endpoint.tls_mode
    offered = features.has_child(x.NS_TLS, "starttls")
    if mode is TlsMode.NEVER or not (offered or mode is TlsMode.REQUIRED):
        return Dialled(wire, features, False, target)
    if not offered:
        raise EnvironmentProblem(
            f"The server of {endpoint.domain} offers no encryption (STARTTLS).",
            hint="Give the server a certificate, or use a server that has one.",
            code="no_tls",
        )
    await _start_tls(wire, endpoint, target)
    return Dialled(wire, await open_stream(wire, endpoint.domain, user=user), True, target)


async def _prepare(wire: Wire, endpoint: Endpoint, target: Target) -> None:
    """What comes before the stream header: TLS, and the handshake of a WebSocket."""
    if target.via in _ALPN:
        # The certificate of a WebSocket is that of the URL's host (RFC 7395 section 3.10), of all else
        # that of the domain (RFC 6120 section 13.7.2).
        name = target.host if target.via == "wss" else endpoint.domain.strip("[]")
        await _secure(wire, endpoint, target, name)
    if target.via in ("ws", "wss"):
        from kestrel.xmpp.websocket_wire import WebSocketWire

        assert isinstance(wire, WebSocketWire)
        await wire.upgrade(target.authority, target.path, HANDSHAKE_S_MAX)


def _cause(problem: OSError) -> str:
    """asyncio's own words name the address once more, and not the cause."""
    number = problem.errno
    return os.strerror(number) if number is not None and number > 0 else problem.strerror or str(problem)


@contextmanager
def _given_up_on_error(wire: Wire) -> Iterator[None]:
    try:
        yield
    except BaseException:
        wire.drop(EnvironmentProblem("The connection was given up.", retry=True))
        raise


# --------------------------------------------------------------------------------------------------
# TLS


async def _start_tls(wire: Wire, endpoint: Endpoint, target: Target, *, check: bool = True) -> None:
    wire.write(b"<starttls xmlns='%b'/>" % x.NS_TLS.encode())
    answer = await wire.element()
    if (answer.ns, answer.name) != (x.NS_TLS, "proceed"):
        raise PeerError(f"The server of {endpoint.domain} refuses to start TLS.")
    if not wire.pulled:
        raise PeerError("The server sent data in the clear after it agreed to TLS.")
    await _secure(wire, endpoint, target, endpoint.domain.strip("[]"), check=check)


async def _secure(wire: Wire, endpoint: Endpoint, target: Target, name: str, *, check: bool = True) -> None:
    """Go on encrypted, with whom we meant. Raises `AuthenticationError` if the certificate is another's."""
    context = tls_context(pinned=bool(endpoint.fingerprint) or not check, alpn=_ALPN.get(target.via, ""))
    try:
        await wire.start_tls(context, name, HANDSHAKE_S_MAX)
    except ssl.SSLCertVerificationError as problem:
        wire.drop(EnvironmentProblem("The certificate is not acceptable."))
        seen = "" if target.guessed else await _fingerprint_seen(endpoint, target, name)
        raise not_trusted(name, problem.verify_message or str(problem), seen) from None
    except OSError as problem:
        raise EnvironmentProblem(
            f"TLS with the server of {endpoint.domain} failed: {problem}.",
            hint="Are address and port right, and is TLS what is spoken there from the first byte "
            "(xmpps://, wss://), or after STARTTLS (neither)?",
            retry=True,
        ) from problem
    if check and endpoint.fingerprint:
        seen = fingerprint_of(wire.certificate)
        if seen != normal_fingerprint(endpoint.fingerprint):
            raise not_trusted(name, "it is not the pinned one", seen)


async def _fingerprint_seen(endpoint: Endpoint, target: Target, name: str) -> str:
    """Look at the certificate that failed, only to name it: nothing secret is sent."""

    async def look(wire: Wire, _: Target) -> str:
        if not target.via:
            await open_stream(wire, endpoint.domain)
            await _start_tls(wire, endpoint, target, check=False)
        else:
            await _secure(wire, endpoint, target, name, check=False)
        seen = fingerprint_of(wire.certificate)
        wire.drop(EnvironmentProblem("Only the certificate was wanted."))
        return seen

    try:
        return await _reach([target], lambda _: Wire(StreamReader()), look)
    except KestrelError as problem:
        log.debug("xmpp.no_certificate_seen", extra={"reason": str(problem)})
        return ""
