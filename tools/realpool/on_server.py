"""The same pool on any server: its managers are a component, or an ordinary account.

Called by benchmarks/takeover.py and by tests.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from kestrel.client import Client
from kestrel.client.connect import connected
from kestrel.errors import KestrelError
from kestrel.protocol import messages as m
from realpool.live import LiveServer, WayIn
from realpool.pool import PoolPlan, RealPool
from realpool.postgres import PrivatePostgres
from realpool.processes import Process

MANAGER, USER, WORKERS = "manager", "ann", "worker"
"""Accounts. All workers share one, and differ in their resource."""
ANSWER_S_MAX = 2.0
_T = TypeVar("_T")


class ServerPool(RealPool):
    """`account`: the managers share an ordinary account, instead of being a component.

    A server that runs already is used and stays; another one is started, and ended with the pool.
    """

    def __init__(
        self,
        scratch: Path,
        plan: PoolPlan,
        server: LiveServer,
        *,
        account: bool = False,
        via: WayIn = "",
        postgres: PrivatePostgres | None = None,
        manager_options: tuple[str, ...] = (),
    ) -> None:
        """`via`: how workers and users (and managers with an account) connect."""
        super().__init__(scratch, plan, postgres=postgres)
        self.live = server
        self._owns = not server.running
        self._account = account
        self._via = via
        self._options = manager_options
        for name, role in ((MANAGER, "admin"), (USER, "user"), (WORKERS, "worker")):
            if name not in server.passwords:
                server.add_account(name, role=role)
        self.port, self.component_port = server.port, server.component_port
        self.manager_jid = f"{MANAGER}@{server.domain}" if account else server.component

    def start_server(self) -> None:
        if self._owns:
            self.live.start()
        self.live.access(USER, via=self._via, manager=self.manager_jid).save(Path(self.pool_word))

    def _where(self) -> list[str]:
        server = self.live
        scheme = {"": "", "tls": "xmpps://", "wss": "wss://"}[self._via]
        words = ["--host", f"{scheme}{server.host}", "--port", str(server.port_of(self._via))]
        return [*words, "--fingerprint", server.fingerprint]

    def secret_file(self, name: str, secret: str) -> str:
        path = self.scratch / f"secret-{name}"
        path.write_text(f"{secret}\n")
        path.chmod(0o600)
        return str(path)

    def identity_words(self) -> list[str]:
        server = self.live
        if self._account:
            words = ["--jid", self.manager_jid, *self._where()]
            words += ["--secret-file", self.secret_file(MANAGER, server.passwords[MANAGER])]
        else:
            words = ["--component", server.component, "--host", server.host]
            words += ["--port", str(server.component_port)]
            words += ["--secret-file", self.secret_file("component", server.secret)]
        return [*words, "--admin", f"{USER}@{server.domain}", *self._options]

    def joining_words(self, name: str) -> list[str]:
        words = ["--jid", f"{WORKERS}@{self.live.domain}/{name}", "--manager", self.manager_jid]
        words += ["--password-file", self.secret_file(WORKERS, self.live.passwords[WORKERS])]
        return [*words, *self._where()]

    # --- asked without a process ----------------------------------------------------------------------

    def talk(self, ask: Callable[[Client], Awaitable[_T]]) -> _T:
        """A session of the user, for what would take a command half a second."""

        async def session() -> _T:
            client = Client(self.manager_jid)
            async with connected(client, self.access):
                return await ask(client)

        return asyncio.run(session())

    def pool_status(self) -> m.PoolStatus | None:
        """Who is there; None: the manager gives no answer at once."""

        async def ask(client: Client) -> m.PoolStatus:
            return await client.request(m.Pool(), m.PoolStatus)

        async def soon(client: Client) -> m.PoolStatus | None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ANSWER_S_MAX):
                    return await ask(client)
            return None

        try:
            return self.talk(soon)
        except KestrelError:
            return None

    def seen_workers(self) -> int:
        status = self.pool_status()
        return -1 if status is None else status.count

    @property
    def processes(self) -> list[Process]:
        return [*self.managers.values(), *self.workers.values()]

    def describe(self) -> str:
        return f"{super().describe()}\n--- log of {self.live.kind}\n{self.live.log[-3000:]}"

    def end(self) -> None:
        self.end_workers_and_managers()
        if self._owns:
            self.live.__exit__()
        self.end_store()
