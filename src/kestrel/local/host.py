"""The embedded server and a manager, in one process, on one event loop.

With a directory everything lasts (accounts, jobs, certificate); without one the pool is ephemeral.
Called by `kestrel up` and by `LocalPool`.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from kestrel.config import DEFAULT_DOMAIN, Invitation, PoolAccess, private_directory
from kestrel.errors import UsageError
from kestrel.manager.service import ManagerService
from kestrel.manager.settings import ManagerSettings
from kestrel.server.accounts import Accounts
from kestrel.server.service import EmbeddedServer, ServerSettings
from kestrel.store.sqlite import SqliteStore
from kestrel.xmpp.component import ComponentSettings, XmppComponent
from kestrel.xmpp.jid import JidError, prepare_domain
from kestrel.xmpp.link import XmppLink, XmppStream


@dataclass(frozen=True, slots=True)
class HostSettings:
    """How a pool is hosted. Port 0: the operating system chooses."""

    directory: Path
    """Everything that lasts is kept here."""
    lasting: bool = True
    """False: the directory is scratch, nothing needs to survive a power cut."""
    domain: str = DEFAULT_DOMAIN
    host: str = "127.0.0.1"
    """Address to listen on."""
    public_host: str = ""
    """Address that invitations name; empty: `host`, or this machine's name."""
    port: int = 0
    manager: ManagerSettings = field(default_factory=ManagerSettings)


class PoolHost:
    """One hosted pool, from `start` to `stop`."""

    def __init__(self, settings: HostSettings) -> None:
        self.settings = settings
        self.domain = _domain(settings.domain)
        self.manager_jid = f"manager.{self.domain}"
        self.fingerprint = ""
        """Of the certificate that others must see; empty in an ephemeral pool, which stays on loopback."""
        self.accounts: Accounts
        self.server: EmbeddedServer
        self.service: ManagerService

    async def start(self) -> None:
        """Open files, listen, connect the manager. Raises what is wrong; then nothing is left running."""
        settings = self.settings
        directory = private_directory(settings.directory)
        self.accounts = Accounts(directory / "accounts.db" if settings.lasting else ":memory:")
        secret = secrets.token_hex(16)
        try:
            certificate = self._certificate(directory) if settings.lasting else None
            server_settings = ServerSettings(
                domain=self.domain,
                host=settings.host,
                c2s_port=settings.port,
                components={self.manager_jid: secret},
                tls_certificate=certificate,
            )
            self.server = EmbeddedServer(server_settings, self.accounts)
            await self.server.start()
        except BaseException:
            self.accounts.close()
            raise
        try:
            loop = asyncio.get_running_loop()
            store = SqliteStore(directory / "store.db", loop.call_soon_threadsafe, durable=settings.lasting)
            component = ComponentSettings(
                domain=self.manager_jid, secret=secret, host="127.0.0.1", port=self.server.component_port
            )

            def make_stream(link: XmppLink) -> XmppStream:
                return XmppComponent(component, link)

            self.service = ManagerService(make_stream, store, settings.manager)
            await self.service.start()
        except BaseException:
            await self.server.stop()
            self.accounts.close()
            raise

    def _certificate(self, directory: Path) -> Path:
        from kestrel.server.certificate import ensure_certificate, fingerprint_of

        path = ensure_certificate(directory, self.domain)
        self.fingerprint = fingerprint_of(path)
        return path

    async def stop(self) -> None:
        """Leave in order: manager first, so that workers are told, then the server."""
        await self.service.stop()
        await self.server.stop()
        self.accounts.close()

    def address(self) -> tuple[str, int]:
        """Host and port that others should dial."""
        host = self.settings.public_host or self.settings.host
        if host in ("0.0.0.0", "::"):
            import socket

            host = socket.getfqdn()
        return host, self.server.c2s_port

    def invite(self, role: str, *, uses: int, expires_s: float) -> Invitation:
        """A new invitation for `uses` accounts with this role."""
        host, port = self.address()
        token = self.accounts.invite(role, uses=uses, expires_s=expires_s)
        return Invitation(token, host, port, self.domain, self.manager_jid, self.fingerprint)

    def account(self, name: str, role: str, *, resource: str = "") -> PoolAccess:
        """A new password for the account `name`, made if it is missing, to be used on this machine."""
        password = secrets.token_urlsafe(24)
        self.accounts.put(name, password, role)
        accounts = str((self.settings.directory / "accounts.db").absolute()) if self.settings.lasting else ""
        host = "127.0.0.1" if self.settings.host == "0.0.0.0" else self.settings.host
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
        )


def _domain(text: str) -> str:
    """As addresses are compared: in small letters. Raises `UsageError`."""
    try:
        return prepare_domain(text)
    except JidError as problem:
        raise UsageError(
            f"{text!r} is no domain: {problem.text}", hint="e.g. --domain kestrel.localhost"
        ) from None
