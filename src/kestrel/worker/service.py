"""Runs a worker on asyncio: XMPP link above it, launcher and spool below, signals, and the way out.

Called by `kestrel worker`, by `python -m kestrel.worker` (local pools) and by tests.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import msgspec

from kestrel.clock import AsyncioClock
from kestrel.config import PoolAccess
from kestrel.errors import EnvironmentProblem, UsageError
from kestrel.protocol import codec
from kestrel.protocol.messages import Profile
from kestrel.worker.agent import WorkerAgent
from kestrel.worker.launcher import LauncherSettings, ProcessLauncher
from kestrel.worker.settings import OwnerRules, WorkerSettings
from kestrel.worker.spool import FileSpool
from kestrel.worker.unix_user import UnixUser, check_enters, find_user, sealed_directory
from kestrel.xmpp.link import XmppLink, XmppStream

log = logging.getLogger(__name__)

PROFILE_BYTES_MAX = 64 * 1024


class WorkerStream(XmppStream, Protocol):
    """A stream that can be told how soon it should doubt a silent connection."""

    def expect_sign_of_life(self, within_s: float | None) -> None: ...


class StreamMaker(Protocol):
    """Makes the worker's XMPP connection for a link."""

    def __call__(self, link: XmppLink) -> WorkerStream: ...


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """Where a worker lives on its machine."""

    manager: str
    """JID of the manager."""
    profile: Profile
    directory: Path
    """Spool and output files; one worker at a time."""
    workdir: Path
    """Where tasks run whose job names no directory."""
    fsync: bool = False
    """Have each finished attempt survive a power cut, too."""
    kill_on_leave: bool = False
    """On the first SIGTERM, stop what runs instead of letting it end."""
    owner: OwnerRules = field(default_factory=OwnerRules)
    """Whose jobs the owner of the machine lets run, and when."""
    run_as: str = ""
    """Name of the Unix account that tasks run as; empty: ours."""
    niceness: int = 0
    """By so much tasks are nicer to other programs than we are."""


class WorkerService:
    """One worker from `start` to `stop`."""

    def __init__(self, make_stream: StreamMaker, settings: ServiceSettings) -> None:
        self._make_stream = make_stream
        self._settings = settings
        self._spool: FileSpool | None = None
        self._stream: WorkerStream | None = None
        self._running: asyncio.Task[None] | None = None
        self._ended: asyncio.Future[None] | None = None
        self.agent: WorkerAgent
        self.launcher: ProcessLauncher

    async def start(self) -> None:
        """Open the spool, start the launcher, begin to connect.

        Raises `EnvironmentProblem` or `UsageError`; nothing is left running then.
        """
        settings = self._settings
        user = find_user(settings.run_as) if settings.run_as else None
        _check(settings, user)
        loop = asyncio.get_running_loop()
        self._ended = loop.create_future()
        directory = settings.directory.resolve()
        self._spool = FileSpool(directory, fsync=settings.fsync)
        profile = settings.profile
        output_directory = str(sealed_directory(directory, user) if user else directory / "out")
        self.launcher = ProcessLauncher(
            LauncherSettings(
                slots=profile.slots or profile.cores,
                niceness=settings.niceness,
                user=user,
                output_directory=output_directory,
            )
        )
        link = XmppLink()
        self.agent = agent = WorkerAgent(
            AsyncioClock(loop),
            link,
            self.launcher,
            self._spool,
            WorkerSettings(
                manager=settings.manager,
                profile=profile,
                workdir=str(settings.workdir.resolve()),
                output_directory=output_directory,
                home=user.home if user else "",
                owner=settings.owner,
                windows=os.name == "nt",
            ),
        )
        agent.on_left = self._on_left
        agent.on_failed = self._on_failed
        agent.on_lease = self._on_lease
        link.deliver_to(agent)
        try:
            agent.outputs.load()
            await self.launcher.open(agent)
        except BaseException:
            await self.stop()
            raise
        self._stream = self._make_stream(link)
        link.attach(self._stream)
        self._running = asyncio.create_task(self._stream.run(), name="worker stream")

    def leave(self) -> None:
        """Asked once: drain and leave in order. Asked again: leave at once, killing what runs."""
        assert self._ended is not None
        if self.agent.execution.draining:
            self._on_left()
            return
        log.info("worker_leaving", extra={"kill": self._settings.kill_on_leave})
        self.agent.shutdown(kill=self._settings.kill_on_leave)

    def end(self) -> None:
        """Leave at once, killing what runs: nobody is left to work for."""
        self._on_left()

    async def wait(self) -> None:
        """Until the worker has left, or cannot go on (raises why)."""
        assert self._ended is not None
        assert self._running is not None
        await asyncio.wait({self._ended, self._running}, return_when=asyncio.FIRST_COMPLETED)
        for future in (self._ended, self._running):
            if future.done():
                future.result()

    async def stop(self) -> None:
        """Stop at once: nothing that was started keeps running; what is not acknowledged stays on disk."""
        self.agent.close()
        await self.launcher.close()
        if self._stream is not None:
            await self._stream.close()
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        if self._ended is not None:
            self._ended.cancel()
        if self._spool is not None:
            self._spool.close()

    def _on_lease(self, lease_s: float) -> None:
        """Who is taken as lost after so long must know by then that its connection is dead."""
        if self._stream is not None:
            self._stream.expect_sign_of_life(lease_s or None)

    def _on_left(self) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    def _on_failed(self, problem: Exception) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_exception(problem)


async def run_workers(
    workers: Sequence[tuple[StreamMaker, ServiceSettings]], *, lifeline: int | None = None
) -> None:
    """Run workers until all have left: SIGTERM or SIGINT once drains them, twice ends them at once.

    When one cannot go on, all end and its problem is raised. `lifeline` is a descriptor to read from: when
    its other end is closed, the workers end at once.
    """
    services: list[WorkerService] = []
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)
    try:
        for make_stream, settings in workers:
            service = WorkerService(make_stream, settings)
            await service.start()
            services.append(service)
        with contextlib.suppress(NotImplementedError):  # a loop without signals: Ctrl-C ends it as usual
            for number in numbers:
                loop.add_signal_handler(number, _leave, services)
        if lifeline is not None:
            loop.add_reader(lifeline, _on_lifeline, lifeline, services)
        await _wait(services)
    finally:
        if lifeline is not None:
            loop.remove_reader(lifeline)
        with contextlib.suppress(NotImplementedError):
            for number in numbers:
                loop.remove_signal_handler(number)
        await asyncio.gather(*(service.stop() for service in services))


async def _wait(services: Sequence[WorkerService]) -> None:
    """Until all have left, or one cannot go on (raises why)."""
    waiting = [asyncio.create_task(service.wait()) for service in services]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_EXCEPTION)
        for task in waiting:
            if task.done():
                task.result()
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


def _leave(services: Sequence[WorkerService]) -> None:
    for service in services:
        service.leave()


def _on_lifeline(descriptor: int, services: Sequence[WorkerService]) -> None:
    if not os.read(descriptor, 4096):
        for service in services:
            service.end()


async def run_with_access(
    access: PoolAccess, settings: ServiceSettings, *, each_core: int = 0, lifeline: int | None = None
) -> None:
    """Run a worker with an account of a pool; `lifeline` as in `run_workers`.

    `each_core`: instead, so many workers of one slot each, with a connection, a resource (`core0`, `core1` …)
    and a directory of its own each.
    """
    from kestrel.xmpp.access import client_settings
    from kestrel.xmpp.client import XmppClient

    def maker(account: PoolAccess) -> StreamMaker:
        return lambda link: XmppClient(client_settings(account), link)

    if each_core:
        parts = [_core(access, settings, number, each_core) for number in range(each_core)]
    else:
        parts = [(access, settings)]
    await run_workers([(maker(account), part) for account, part in parts], lifeline=lifeline)


def _core(
    access: PoolAccess, settings: ServiceSettings, number: int, count: int
) -> tuple[PoolAccess, ServiceSettings]:
    """One core's worker: its part of the machine, under its own resource and directory."""
    name = f"core{number}"
    profile = msgspec.structs.replace(settings.profile, cores=1, slots=1, ram=settings.profile.ram // count)
    part = replace(settings, profile=profile, directory=settings.directory / name)
    return replace(access, resource=name), part


def _check(settings: ServiceSettings, user: UnixUser | None) -> None:
    if not settings.workdir.is_dir():
        raise EnvironmentProblem(
            f"the working directory {settings.workdir} does not exist",
            hint="make it, or name another: --workdir",
        )
    if user is not None:
        check_enters(user, settings.workdir.resolve())
    elif not os.access(settings.workdir, os.X_OK | os.R_OK):
        raise EnvironmentProblem(
            f"the working directory {settings.workdir} cannot be entered", hint="mend its permissions"
        )
    size = len(codec.encode(settings.profile))
    if size > PROFILE_BYTES_MAX:
        raise UsageError(
            f"the worker's profile takes {size} bytes; at most {PROFILE_BYTES_MAX} can be sent",
            hint="use fewer or shorter tags and labels",
        )
