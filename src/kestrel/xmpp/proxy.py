"""Goes through an HTTP proxy: which one the environment names, and the CONNECT that asks it for a tunnel.

`HTTPS_PROXY` or `ALL_PROXY` names it, `NO_PROXY` who is reached without; small letters win, as in curl. All
that Kestrel sends through a proxy is TLS inside (or is encrypted by STARTTLS before any secret), so the
proxy sees names and sizes only. `HTTP_PROXY` means nothing here: what is not encrypted stays on loopback,
and loopback is never reached by a proxy. Called by `dial`, which decides when a proxy is used.

It must never show the password that stands in the variable.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import logging
import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from urllib.parse import unquote, urlsplit

from kestrel.errors import EnvironmentProblem
from kestrel.xmpp.certificates import tls_context
from kestrel.xmpp.endpoint import is_loopback

log = logging.getLogger("kestrel.xmpp")

TUNNEL_S_MAX = 8.0
"""From the first packet to the proxy until its answer to CONNECT."""
ANSWER_BYTES_MAX = 16384
"""Of the proxy's answer to CONNECT."""
_VARIABLES = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9])(?: ([^\r\n]*))?\r?\n")
_END = b"\r\n\r\n"
_HOST = re.compile(r"[A-Za-z0-9._:-]+")


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy."""

    host: str
    port: int
    tls: bool = False
    """Whether the way to the proxy is TLS."""
    login: str = field(default="", repr=False)
    """`user:password`; empty: none."""

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class ProxyProblem(EnvironmentProblem):
    """The proxy does not do it."""

    code = "proxy"

    def __init__(self, text: str, hint: str = "") -> None:
        super().__init__(text, hint=hint, retry=True)


def proxy_for(host: str, port: int, environ: Mapping[str, str] = os.environ) -> Proxy | None:
    """The proxy by which to reach a host, or None. One that we cannot use is told in the log, once."""
    if is_loopback(host) or _excepted(host, port, environ.get("no_proxy", environ.get("NO_PROXY", ""))):
        return None
    for variable in _VARIABLES:
        if text := environ.get(variable, "").strip():
            return _parsed(variable, text)
    return None


def _parsed(variable: str, text: str) -> Proxy | None:
    url = urlsplit("")
    try:
        url = urlsplit(text if "://" in text else f"http://{text}")
        host, port = url.hostname, url.port
    except ValueError:  # whose words may show a part of the password
        host = port = None
    if not host:
        _tell_ignored(variable, "it is no address of a proxy")
        return None
    if url.scheme not in ("http", "https"):
        _tell_ignored(variable, f"only http:// and https:// proxies can be used, not {url.scheme}://")
        return None
    tls = url.scheme == "https"
    login = f"{unquote(url.username)}:{unquote(url.password or '')}" if url.username else ""
    return Proxy(host, port or (443 if tls else 80), tls, login)


@lru_cache(maxsize=16)
def _tell_ignored(variable: str, reason: str) -> None:
    log.warning("xmpp.proxy_ignored", extra={"variable": variable, "reason": reason})


def _excepted(host: str, port: int, exceptions: str) -> bool:
    """Whether NO_PROXY names the host: `*`, a domain and what is below it, an address, a network."""
    name = host.rstrip(".").lower()
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        address = None
    for entry in re.split(r"[,\s]+", exceptions.lower()):
        wanted, _, wanted_port = entry.partition(":") if entry.count(":") == 1 else (entry, "", "")
        wanted = wanted.strip("[]").removeprefix("*.").strip(".")
        if not wanted or (wanted_port and wanted_port != str(port)):
            continue
        if wanted in ("*", name) or (address is None and name.endswith(f".{wanted}")):
            return True
        if address is not None and _within(address, wanted):
            return True
    return False


def _within(address: ipaddress.IPv4Address | ipaddress.IPv6Address, network: str) -> bool:
    try:
        return address in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False


# --------------------------------------------------------------------------------------------------
# The tunnel


async def open_tunnel(proxy: Proxy, host: str, port: int) -> asyncio.Transport:
    """A connection to the host through the proxy; the caller sets its protocol.

    Raises `ProxyProblem` in words, within `TUNNEL_S_MAX`.
    """
    loop = asyncio.get_running_loop()
    if not _HOST.fullmatch(host):
        raise ProxyProblem(f"{host!r} is no name that can be given to a proxy")
    transport: asyncio.Transport | None = None
    try:
        async with asyncio.timeout(TUNNEL_S_MAX):
            transport, tunnel = await loop.create_connection(
                _Tunnel, proxy.host, proxy.port, ssl=tls_context(pinned=False) if proxy.tls else None
            )
            transport.write(_request(proxy, host, port))
            _check(proxy, await tunnel.answer)
            return transport
    except BaseException as problem:
        if transport is not None:
            transport.abort()
        match problem:
            case ssl.SSLCertVerificationError():
                raise ProxyProblem(f"its certificate is not trusted: {problem.verify_message}") from None
            case TimeoutError():
                raise ProxyProblem(f"no answer in {TUNNEL_S_MAX:g} s") from None
            case OSError() | UnicodeError():
                number = getattr(problem, "errno", 0) or 0
                cause = os.strerror(number) if number > 0 else str(problem)
                raise ProxyProblem(
                    f"the proxy itself cannot be reached: {cause}", "Is HTTPS_PROXY (or ALL_PROXY) right?"
                ) from None
        raise


def _request(proxy: Proxy, host: str, port: int) -> bytes:
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    lines = [f"CONNECT {where} HTTP/1.1", f"Host: {where}"]
    if proxy.login:
        proof = base64.b64encode(proxy.login.encode()).decode()
        lines.append(f"Proxy-Authorization: Basic {proof}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _check(proxy: Proxy, answer: bytes) -> None:
    status = _STATUS.match(answer)
    if status is None:
        raise ProxyProblem(
            "it does not answer as an HTTP proxy does", "Is HTTPS_PROXY (or ALL_PROXY) an HTTP proxy?"
        )
    number = int(status[1])
    words = (status[2] or b"").decode("latin-1")[:80]
    if number == 407:
        which = "does not accept the login that stands in" if proxy.login else "wants a login, none is in"
        raise ProxyProblem(
            f"it {which} HTTPS_PROXY (407)", "Write HTTPS_PROXY=http://USER:PASSWORD@HOST:PORT."
        )
    if number in (403, 405):
        raise ProxyProblem(
            f"it does not let us through ({number} {words})",
            "Many proxies let through to port 443 only: reach the server by wss://.",
        )
    if number // 100 != 2:
        raise ProxyProblem(f"it made no tunnel ({number} {words})")
    if answer.find(_END) + len(_END) != len(answer):
        raise ProxyProblem("it sent more than its answer")


class _Tunnel(asyncio.Protocol):
    """Waits for the end of the proxy's answer. Nobody speaks before us on what the tunnel leads to."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._data = bytearray()

    def data_received(self, data: bytes) -> None:
        self._data += data
        if self.answer.done():
            return
        if _END in self._data:
            self.answer.set_result(bytes(self._data))
        elif len(self._data) > ANSWER_BYTES_MAX:
            self._fail(f"its answer is longer than {ANSWER_BYTES_MAX} bytes")

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail("it closed the connection without an answer")

    def _fail(self, words: str) -> None:
        if not self.answer.done():
            self.answer.set_exception(ProxyProblem(words))
