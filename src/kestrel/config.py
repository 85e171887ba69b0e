"""Where Kestrel keeps things, how to reach a pool, and what an invitation says.

Files follow the XDG base directory rules; what is secret has mode 0600. Everything here is
independent of XMPP and asyncio; called by the command line and by the services.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, cast
from urllib.parse import parse_qsl, quote, unquote, urlencode

import msgspec

from kestrel.errors import EnvironmentProblem, UsageError

DEFAULT_C2S_PORT = 5222
DEFAULT_DOMAIN = "kestrel.localhost"
WEBSOCKET_PATH = "/xmpp-websocket"
"""Where servers take WebSockets unless they say otherwise (the example of RFC 7395)."""
_HOST = r"(?P<host>\[[^\]/@\s]+\]|[^:/@\[\]\s?]+)(?::(?P<port>[0-9]{1,5}))?"
_INVITATION = re.compile(
    r"kestrel://(?:(?P<user>[^@/:]+):)?(?P<token>[^@/:]+)@"
    + _HOST
    + r"/(?P<domain>[^/?]+)/(?P<manager>[^/?]+)"
    r"(?:/(?P<fingerprint>[0-9a-fA-F]{64}))?(?:\?(?P<query>\S+))?"
)
_PLACE = re.compile(r"(?:(?P<scheme>[a-z]+)://)?" + _HOST + r"(?P<path>/\S*)?", re.IGNORECASE)

Via = Literal["", "tls", "wss", "ws"]
"""How a server is reached: plain TCP with STARTTLS (RFC 6120), TLS from the first byte (XEP-0368), WebSocket
within TLS (RFC 7395), WebSocket in the clear (loopback only)."""
_SCHEMES: dict[str, Via] = {"xmpp": "", "xmpps": "tls", "wss": "wss", "ws": "ws"}


@dataclass(frozen=True, slots=True)
class ServerPlace:
    """Where a server is, and how it is reached."""

    host: str
    """Empty: look it up in the DNS."""
    port: int = 0
    """0: the usual one (5222; `tls` 5223; `wss` 443; `ws` 80)."""
    via: Via = ""
    path: str = ""
    """Of the WebSocket; empty: `WEBSOCKET_PATH`."""

    @classmethod
    def parse(cls, text: str, port: int = 0) -> ServerPlace:
        """Read `HOST`, `HOST:PORT`, `xmpps://HOST:PORT` or `wss://HOST/PATH`; raises `UsageError`.

        `port` is used if the text names none; an empty text means the DNS.
        """
        if not text:
            return cls("", port)
        if text.count(":") > 1 and "[" not in text and "//" not in text:
            return cls(text, port)  # an IPv6 address
        match = _PLACE.fullmatch(text)
        scheme = (match["scheme"] or "xmpp").lower() if match else ""
        if match is None or scheme not in _SCHEMES or not 0 <= int(match["port"] or 0) < 65536:
            raise UsageError(
                f"this is no address of a server: {text!r}",
                hint="e.g. pool.example.org, xmpps://pool.example.org:443 or "
                f"wss://pool.example.org{WEBSOCKET_PATH}",
            )
        via, path = _SCHEMES[scheme], match["path"] or ""
        if path.strip("/") and via not in ("wss", "ws"):
            raise UsageError(
                f"only WebSockets have a path: {text!r}", hint=f"write wss://{match['host']}{path}"
            )
        path = path if path.strip("/") and path != WEBSOCKET_PATH else ""
        return cls(match["host"].strip("[]"), int(match["port"] or 0) or port, via, path)


def data_home() -> Path:
    """Directory for what must last: stores, accounts, certificates."""
    return _xdg("XDG_DATA_HOME", ".local/share", "LOCALAPPDATA")


def config_home() -> Path:
    """Directory for how to reach pools."""
    return _xdg("XDG_CONFIG_HOME", ".config", "APPDATA")


def _xdg(variable: str, default: str, windows: str) -> Path:
    value = os.environ.get(variable, "")
    if value and Path(value).is_absolute():
        return Path(value) / "kestrel"
    if sys.platform == "win32" and os.environ.get(windows):
        return Path(os.environ[windows]) / "kestrel"
    return Path.home() / default / "kestrel"


def private_directory(path: Path) -> Path:
    """Make the directory (mode 0700) if it is missing; raises `EnvironmentProblem` that names it."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as problem:
        raise EnvironmentProblem(
            f"cannot make the directory {path}: {problem.strerror or problem}",
            hint="choose another one with --dir, or set XDG_DATA_HOME / XDG_CONFIG_HOME",
        ) from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise EnvironmentProblem(
            f"the directory {path} is not writable", hint="choose another one, or mend its permissions"
        )
    return path


def write_private(path: Path, text: str) -> None:
    """Write a secret file: mode 0600, whole or not at all. Raises `EnvironmentProblem`."""
    private_directory(path.parent)
    name = ""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except OSError as problem:
        if name:
            Path(name).unlink(missing_ok=True)
        raise EnvironmentProblem(
            f"cannot write {path}: {problem.strerror or problem}",
            hint="make room on the disk, or mend the permissions of its directory",
        ) from None


@dataclass(frozen=True, slots=True)
class Invitation:
    """What a new machine needs to join: address, pinned certificate, secret. One line of text."""

    token: str = field(repr=False)
    """With which the server makes an account, or with `user` the password of an account that is there."""
    host: str
    port: int
    """0: the usual one; with the domain as host: look it up in the DNS."""
    domain: str
    manager: str
    """JID of the manager."""
    fingerprint: str = ""
    """SHA-256 of the server's certificate (DER) in hex; empty: no TLS (loopback) or a public one."""
    user: str = ""
    """Local part of an account that exists already; empty: the token makes one."""
    via: Via = ""
    path: str = ""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        user, token, domain, manager = (
            quote(part, safe="") for part in (self.user, self.token, self.domain, self.manager)
        )
        line = f"kestrel://{user}:{token}" if user else f"kestrel://{token}"
        line += f"@{host}:{self.port}" if self.port else f"@{host}"
        line += f"/{domain}/{manager}"
        if self.fingerprint:
            line += f"/{self.fingerprint}"
        how = {key: value for key, value in (("via", self.via), ("path", self.path)) if value}
        return f"{line}?{urlencode(how)}" if how else line

    @classmethod
    def parse(cls, line: str) -> Invitation:
        """Read the line that `kestrel up` printed, with or without words before it; raises `UsageError`."""
        line = line.strip()
        line = line[max(0, line.find("kestrel://")) :]
        match = _INVITATION.fullmatch(line)
        how = dict(parse_qsl(match["query"] or "")) if match else {}
        via = how.get("via", "")
        if match is None or int(match["port"] or 1) not in range(1, 65536) or via not in _SCHEMES.values():
            raise UsageError(
                f"this is no invitation: {_without_token(line)!r}",
                hint="paste the whole line, which begins with kestrel://; this one may be cut off",
            )
        return cls(
            token=unquote(match["token"]),
            host=match["host"].strip("[]"),
            port=int(match["port"] or 0),
            domain=unquote(match["domain"]),
            manager=unquote(match["manager"]),
            fingerprint=(match["fingerprint"] or "").lower(),
            user=unquote(match["user"] or ""),
            via=cast(Via, via),
            path=how.get("path", ""),
        )


@dataclass(frozen=True, slots=True)
class PoolAccess:
    """How one account reaches one pool. Kept in a file with mode 0600."""

    manager: str
    jid: str
    password: str = field(repr=False)
    host: str = ""
    """Empty: look it up in the DNS (SRV)."""
    port: int = 0
    fingerprint: str = ""
    resource: str = ""
    public_host: str = ""
    """Address that invitations name, where this is the pool's own machine; empty: `host`."""
    accounts: str = ""
    """Path of the pool's accounts, where this is the pool's own machine."""
    via: Via = ""
    path: str = ""
    """Of the WebSocket; empty: `WEBSOCKET_PATH`."""

    def save(self, path: Path) -> None:
        write_private(path, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> PoolAccess:
        """Raises `UsageError` if there is no such file or it is damaged."""
        try:
            return msgspec.json.decode(path.read_bytes(), type=cls)
        except FileNotFoundError:
            raise UsageError(
                f"no pool is known here ({path} does not exist)",
                hint="start one with `kestrel up`, join one with `kestrel join`, or use `kestrel run`, which "
                "brings its own",
                code="no_pool",
            ) from None
        except (OSError, ValueError, msgspec.MsgspecError, RecursionError) as problem:
            raise EnvironmentProblem(
                f"cannot read {path}: {problem}", hint="remove the file and start `kestrel up` again"
            ) from None


def _without_token(line: str) -> str:
    """The beginning of a line that may be a damaged invitation, without its secret."""
    head, at, tail = line.strip().partition("@")
    return (f"{head[:10]}…@{tail}" if at else head[:10])[:60]


def pool_access_path(pool: str) -> Path:
    """Where the access of this Unix user to a pool is kept."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", pool):
        raise UsageError(
            f"{pool!r} is no name for a pool", hint="use letters, digits, dots, dashes and underscores"
        )
    return config_home() / "pools" / f"{pool}.json"
