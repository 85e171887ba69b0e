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
from urllib.parse import quote, unquote

import msgspec

from kestrel.errors import EnvironmentProblem, UsageError

DEFAULT_C2S_PORT = 5222
DEFAULT_DOMAIN = "kestrel.localhost"
_INVITATION = re.compile(
    r"kestrel://(?P<token>[^@/]+)@(?P<host>\[[^\]/@\s]+\]|[^:/@\[\]\s]+):(?P<port>[0-9]{1,5})"
    r"/(?P<domain>[^/]+)/(?P<manager>[^/]+)(?:/(?P<fingerprint>[0-9a-fA-F]{64}))?"
)


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
    """What a new machine needs to join: address, pinned certificate, token. One line of text."""

    token: str = field(repr=False)
    host: str
    port: int
    domain: str
    manager: str
    """JID of the manager."""
    fingerprint: str = ""
    """SHA-256 of the server's certificate (DER) in hex; empty: no TLS (loopback) or a public one."""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        token, domain, manager = (quote(part, safe="") for part in (self.token, self.domain, self.manager))
        line = f"kestrel://{token}@{host}:{self.port}/{domain}/{manager}"
        return f"{line}/{self.fingerprint}" if self.fingerprint else line

    @classmethod
    def parse(cls, line: str) -> Invitation:
        """Read the line that `kestrel up` printed, with or without words before it; raises `UsageError`."""
        line = line.strip()
        line = line[max(0, line.find("kestrel://")) :]
        match = _INVITATION.fullmatch(line)
        if match is None or not 0 < int(match["port"]) < 65536:
            raise UsageError(
                f"this is no invitation: {_without_token(line)!r}",
                hint="paste the whole line that `kestrel up` printed; it begins with kestrel://",
            )
        return cls(
            token=unquote(match["token"]),
            host=match["host"].strip("[]"),
            port=int(match["port"]),
            domain=unquote(match["domain"]),
            manager=unquote(match["manager"]),
            fingerprint=(match["fingerprint"] or "").lower(),
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
                hint="start one with `kestrel up`, or use `kestrel run`, which brings its own",
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
