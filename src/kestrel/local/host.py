"""The embedded server and a manager, in one process, on one event loop.

With a directory everything lasts (accounts, jobs, certificate); without one the pool is ephemeral.
Called by `kestrel up` and by `LocalPool`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from kestrel.local.hosted import HostedServer, HostedServerSettings
from kestrel.manager.service import ManagerService
from kestrel.manager.settings import ManagerSettings
from kestrel.store.places import make_store
from kestrel.xmpp.component import ComponentSettings, XmppComponent
from kestrel.xmpp.link import XmppLink, XmppStream


@dataclass(frozen=True, slots=True)
class HostSettings(HostedServerSettings):
    """How a pool is hosted."""

    manager: ManagerSettings = field(default_factory=ManagerSettings)
    store: str = ""
    """File or database where jobs are kept; empty: a file in the directory."""


class PoolHost(HostedServer):
    """One hosted pool, from `start` to `stop`."""

    def __init__(self, settings: HostSettings) -> None:
        """Raises `UsageError` if the domain is none."""
        super().__init__(settings)
        self.settings = settings
        self.service: ManagerService

    async def start(self) -> None:
        """Open files, listen, connect the manager. Raises what is wrong; then nothing is left running."""
        await super().start()
        try:
            settings = self.settings
            loop = asyncio.get_running_loop()
            store = make_store(
                settings.store or settings.directory / "store.db",
                loop.call_soon_threadsafe,
                pool=settings.manager.pool,
                durable=settings.lasting,
            )
            component = ComponentSettings(
                domain=self.manager_jid,
                secret=self.secret,
                host=settings.component_host,
                port=self.server.component_port,
            )

            def make_stream(link: XmppLink) -> XmppStream:
                return XmppComponent(component, link)

            self.service = ManagerService(make_stream, store, settings.manager)
            await self.service.start()
        except BaseException:
            await super().stop()
            raise

    async def stop(self) -> None:
        """Leave in order: manager first, so that workers are told, then the server."""
        await self.service.stop()
        await super().stop()
