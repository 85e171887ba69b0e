"""An ephemeral pool: server and manager here, a local worker process, one connected client.

Lives in a scratch directory that is removed at the end. Called by `kestrel run` and by programs.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType

from kestrel.client import Client
from kestrel.client.connect import connected
from kestrel.local.host import HostSettings, PoolHost
from kestrel.local.worker_process import WorkerProcess
from kestrel.manager.settings import ManagerSettings


class LocalPool:
    """`async with LocalPool(slots=4) as pool: pool.client …`

    `slots` tasks run at once (default: the cores that this process may use). A worker that was started
    before may be handed over; it belongs to the pool then.
    """

    def __init__(
        self,
        slots: int | None = None,
        *,
        settings: ManagerSettings | None = None,
        worker: WorkerProcess | None = None,
    ) -> None:
        self.slots = slots or _cores()
        self._settings = settings or ManagerSettings(pool="local")
        self._first = worker
        self._stack = contextlib.AsyncExitStack()
        self.workers: list[WorkerProcess] = []
        self.client: Client
        self.host: PoolHost

    async def __aenter__(self) -> LocalPool:
        async with contextlib.AsyncExitStack() as stack:
            first = self._first or WorkerProcess(self.slots)
            stack.push_async_callback(self._stop_workers)
            self.workers.append(first)
            directory = Path(tempfile.mkdtemp(prefix="kestrel-"))
            stack.callback(shutil.rmtree, directory, ignore_errors=True)
            self.host = PoolHost(HostSettings(directory, lasting=False, manager=self._settings))
            await self.host.start()
            stack.push_async_callback(self.host.stop)
            first.join(self.host.account("local1", "worker", resource="worker"), scratch=[directory])
            self.client = Client(self.host.manager_jid)
            await stack.enter_async_context(connected(self.client, self.host.account("user", "user")))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stack.__aexit__(kind, value, traceback)

    def start_worker(self, slots: int, name: str = "") -> WorkerProcess:
        """One more worker process with so many slots; it joins by itself."""
        worker = WorkerProcess(slots)
        self.workers.append(worker)
        access = self.host.account(name or f"local{len(self.workers)}", "worker", resource="worker")
        worker.join(access)
        return worker

    async def _stop_workers(self) -> None:
        for worker in self.workers:
            await worker.stop()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
