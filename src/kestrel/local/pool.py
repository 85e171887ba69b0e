"""An ephemeral pool: server and manager here, one local worker process, one connected client.

Lives in a scratch directory that is removed at the end. Called by `kestrel run` and by programs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from types import TracebackType

from kestrel.client import Client
from kestrel.config import PoolAccess
from kestrel.errors import EnvironmentProblem
from kestrel.local.host import HostSettings, PoolHost
from kestrel.manager.settings import ManagerSettings
from kestrel.client.connect import connected

WORKER_STOP_S_MAX = 5.0


class LocalPool:
    """`async with LocalPool(slots=4) as pool: pool.client …`

    `slots` tasks run at once (default: the cores that this process may use).
    """

    def __init__(self, slots: int | None = None, *, settings: ManagerSettings | None = None) -> None:
        self.slots = slots or _cores()
        self._settings = settings or ManagerSettings(pool="local")
        self._stack = contextlib.AsyncExitStack()
        self.workers: list[asyncio.subprocess.Process] = []
        self.client: Client
        self.host: PoolHost

    async def __aenter__(self) -> LocalPool:
        async with contextlib.AsyncExitStack() as stack:
            directory = Path(tempfile.mkdtemp(prefix="kestrel-"))
            stack.callback(shutil.rmtree, directory, ignore_errors=True)
            self._directory = directory
            self.host = PoolHost(HostSettings(directory, lasting=False, manager=self._settings))
            await self.host.start()
            stack.push_async_callback(self.host.stop)
            await self.start_worker(self.slots)
            stack.push_async_callback(self._stop_workers)
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

    async def start_worker(self, slots: int, name: str = "") -> asyncio.subprocess.Process:
        """One more worker process with so many slots."""
        name = name or f"local{len(self.workers) + 1}"
        access = self.host.account(name, "worker", resource="worker")
        path = self._directory / f"{name}.json"
        access.save(path)
        process = await self._spawn(access, path, slots)
        self.workers.append(process)
        return process

    async def _spawn(self, access: PoolAccess, path: Path, slots: int) -> asyncio.subprocess.Process:
        words = [sys.executable, "-m", "kestrel.worker", "--access", str(path), "--slots", str(slots)]
        words += ["--dir", str(path.with_suffix("")), "--quiet", "--workdir", os.getcwd()]
        try:
            # A group of its own: Ctrl-C is for the command line, which stops the worker in order.
            return await asyncio.create_subprocess_exec(
                *words, stdin=asyncio.subprocess.DEVNULL, start_new_session=True
            )
        except OSError as problem:
            raise EnvironmentProblem(f"cannot start the local worker: {problem}") from None

    async def _stop_workers(self) -> None:
        for process in self.workers:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGTERM)
        for process in self.workers:
            try:
                async with asyncio.timeout(WORKER_STOP_S_MAX):
                    await process.wait()
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
