"""The embedded server with all that belongs to it in one directory, without a manager.

Accounts, certificate and the component's secret are made once and kept, so that after a restart everybody
finds what they know; a lock keeps a second server out of the directory. It must never start half: what
goes wrong leaves nothing running. Called by `kestrel server run`, and by `PoolHost`, which adds the
manager. An ephemeral server keeps nothing.
"""

from __future__ import annotations

import os
import secrets
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from kestrel.config import (
    DEFAULT_DOMAIN,
    Invitation,
    PoolAccess,
    Via,
    private_directory,
    write_private,
)
from kestrel.errors import EnvironmentProblem, KestrelError, UsageError
from kestrel.locks import lock_file
from kestrel.server.accounts import Accounts
from kestrel.server.service import EmbeddedServer, ServerSettings
from kestrel.xmpp.jid import JidError, prepare_domain

SECRET_NAME = "component.secret"
LOCK_NAME = "server.lock"


@dataclass(frozen=True, slots=True)
class HostedServerSettings:
    """How a server is hosted. Port 0: the operating system chooses."""

    directory: Path
    """Everything that lasts is kept here."""
    lasting: bool = True
    """False: the directory is scratch, nothing needs to survive a power cut."""
    domain: str = DEFAULT_DOMAIN
    host: str = "127.0.0.1"
    """Address to listen on."""
    public_host: str = ""
    """Address that invitations name; empty: `host`, or this machine's name."""
    via: Via = ""
    """How invitations say that one comes in; the port takes them all."""
    port: int = 0
    component_host: str = "127.0.0.1"
    """Address to listen on for managers; their port has no encryption."""
    component_port: int = 0


class HostedServer:
    """One hosted server, from `start` to `stop`."""

    def __init__(self, settings: HostedServerSettings) -> None:
        """Raises `UsageError` if the domain is none."""
        self.where = settings
        self.domain = _domain(settings.domain)
        self.manager_jid = f"manager.{self.domain}"
        self.fingerprint = ""
        """Of the certificate that others must see; empty in an ephemeral pool, which stays on loopback."""
        self.secret = ""
        """With which a manager proves that it is one."""
        self.accounts: Accounts
        self.server: EmbeddedServer
        self._held = ExitStack()

    @property
    def secret_file(self) -> Path:
        """Where the component's secret is kept, if it is."""
        return self.where.directory.absolute() / SECRET_NAME

    async def start(self) -> None:
        """Open files and listen. Raises what is wrong; then nothing is left running."""
        where = self.where
        with ExitStack() as held:
            directory = private_directory(where.directory)
            if where.lasting:
                held.enter_context(_claimed(directory))
            self.accounts = Accounts(directory / "accounts.db" if where.lasting else ":memory:")
            held.callback(self.accounts.close)
            self.secret = _kept_secret(self.secret_file) if where.lasting else secrets.token_hex(16)
            settings = ServerSettings(
                domain=self.domain,
                host=where.host,
                c2s_port=where.port,
                component_host=where.component_host,
                component_port=where.component_port,
                components={self.manager_jid: self.secret},
                tls_certificate=self._certificate(directory) if where.lasting else None,
            )
            self.server = EmbeddedServer(settings, self.accounts)
            await self.server.start()
            self._held = held.pop_all()

    def _certificate(self, directory: Path) -> Path:
        from kestrel.server.certificate import ensure_certificate, fingerprint_of

        path = ensure_certificate(directory, self.domain)
        self.fingerprint = fingerprint_of(path)
        return path

    async def stop(self) -> None:
        """Close all streams in order, then the files. May be called twice."""
        held, self._held = self._held, ExitStack()
        with held:
            await self.server.stop()

    def address(self) -> tuple[str, int]:
        """Host and port that others should dial."""
        host = self.where.public_host or self.where.host
        if host in ("0.0.0.0", "::"):
            import socket

            host = socket.getfqdn()
        return host, self.server.c2s_port

    def invite(self, role: str, *, uses: int, expires_s: float, name: str = "") -> Invitation:
        """A new invitation for `uses` accounts with this role; `name` is how lists call it."""
        host, port = self.address()
        token = self.accounts.invite(role, uses=uses, expires_s=expires_s, name=name)
        return Invitation(
            token, host, port, self.domain, self.manager_jid, self.fingerprint, via=self.where.via
        )

    def account(self, name: str, role: str, *, resource: str = "", password: str = "") -> PoolAccess:
        """The account `name` with this password or a new one, made if it is missing, for this machine."""
        password = password or secrets.token_urlsafe(24)
        self.accounts.put(name, password, role)
        where = self.where
        accounts = str((where.directory / "accounts.db").absolute()) if where.lasting else ""
        host = "127.0.0.1" if where.host == "0.0.0.0" else where.host
        return PoolAccess(
            manager=self.manager_jid,
            jid=f"{name}@{self.domain}",
            password=password,
            host="::1" if host == "::" else host,
            port=self.server.c2s_port,
            fingerprint=self.fingerprint,
            resource=resource,
            public_host=self.address()[0],
            accounts=accounts,
            via=where.via,
        )

    def save_admin(self, path: Path) -> PoolAccess:
        """The access of this machine's commands, kept in `path`.

        A password that is kept there already stays: commands that are running reconnect with it.
        """
        try:
            kept = PoolAccess.load(path)
        except KestrelError:  # missing, or damaged: then it is made anew
            kept = None
        password = ""
        if kept and kept.jid == f"admin@{self.domain}" and self.accounts.proves("admin", kept.password):
            password = kept.password
        access = self.account("admin", "admin", password=password)
        access.save(path)
        return access


def _domain(text: str) -> str:
    """As addresses are compared: in small letters. Raises `UsageError`."""
    try:
        return prepare_domain(text)
    except JidError as problem:
        raise UsageError(
            f"{text!r} is no domain: {problem.text}", hint="e.g. --domain kestrel.localhost"
        ) from None


def _claimed(directory: Path) -> IO[str]:
    """The directory is ours alone, until this is closed. Raises `EnvironmentProblem`."""

    def in_use(holder: str) -> EnvironmentProblem:
        process = f" (process {holder})" if holder else ""
        return EnvironmentProblem(
            f"the server of this pool runs already, in {directory}{process}",
            hint="stop that one first, or name another --pool or --dir",
            code="in_use",
        )

    path = directory / LOCK_NAME
    try:
        return lock_file(path, in_use)
    except OSError as problem:
        raise EnvironmentProblem(
            f"cannot write {path}: {problem.strerror or problem}",
            hint="mend its permissions, or name a --dir",
        ) from None


def _kept_secret(path: Path) -> str:
    """The secret in the file, for its owner only; made if there is none. Raises `EnvironmentProblem`."""
    try:
        if os.name == "posix" and path.stat().st_mode & 0o077:
            path.chmod(0o600)
        secret = path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        secret = secrets.token_hex(16)
        write_private(path, secret + "\n")
    except (OSError, UnicodeDecodeError) as problem:
        raise EnvironmentProblem(
            f"cannot read the component's secret from {path}: {getattr(problem, 'strerror', '') or problem}",
            hint="mend its permissions, or remove the file: a new one is made, and managers need it then",
        ) from None
    if not secret:
        raise EnvironmentProblem(
            f"the file {path} is empty", hint="remove it: a new secret is made, and managers need it then"
        )
    return secret
