"""The agent's end of the launcher: `ports.Launcher` over a launcher process.

Starts `kestrel.worker.launcher_process`, hands it work and tells the agent what ended. When the
launcher dies, whatever it had started is killed, the agent is told, and a new one is started with
growing delay. Called by `kestrel.worker.service`. Runs on the asyncio loop; never starts tasks itself.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kestrel.errors import EnvironmentProblem
from kestrel.ports import LauncherEvents, ProcessEnded, StartProcess
from kestrel.worker.launcher_wire import Start, frame, kill_group, kill_marked, take_frames
from kestrel.worker.unix_user import UnixUser, task_environment

log = logging.getLogger(__name__)

_BOOT = (
    "import sys; sys.path.append(sys.argv.pop(1)); "
    "from kestrel.worker.launcher_process import main; sys.exit(main(sys.argv[1:]))"
)
_ROOT = str(Path(__file__).resolve().parents[2])


@dataclass(frozen=True, slots=True)
class LauncherSettings:
    """Bounds of the agent's end; those of the process are in `launcher_process`."""

    slots: int = 1
    """How many slots' worth of attempts run at once; more that is handed over waits there."""
    restart_s: float = 0.1
    """Delay before a new launcher is started; doubled with each that dies soon, up to …"""
    restart_s_max: float = 10.0
    stop_s_max: float = 5.0
    """How long `close` waits for the launcher to kill everything."""
    niceness: int = 0
    """By so much tasks are nicer to other programs than we are."""
    user: UnixUser | None = None
    """As whom tasks run; None: as ourselves."""
    output_directory: str = ""
    """With `user`: where the output files of all attempts are, which the launcher then holds open."""


class ProcessLauncher(asyncio.Protocol):
    """`ports.Launcher`. Call `open` on the running loop before use, and `close` in the end."""

    def __init__(self, settings: LauncherSettings) -> None:
        self._settings = settings
        self._events: LauncherEvents | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._transport: asyncio.WriteTransport | None = None
        self._mark = ""
        self._incoming = bytearray()
        self._held: dict[int, int] = {}
        """Attempts in the launcher's hands, and their process groups as far as known (else 0)."""
        self._unsent: list[Start] = []
        self._delay_s = settings.restart_s
        self._started_at = 0.0
        self._restart: asyncio.TimerHandle | None = None
        self._opening: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def pid(self) -> int:
        """Process id of the launcher, 0 if there is none now."""
        return self._process.pid if self._process is not None else 0

    # --- life -------------------------------------------------------------------------------------

    async def open(self, events: LauncherEvents) -> None:
        """Start the launcher. Raises `EnvironmentProblem` where that is impossible."""
        if not hasattr(os, "waitid"):
            raise EnvironmentProblem(
                "this system has no process groups as POSIX knows them, so tasks cannot be run here",
                hint="run the worker on Linux or macOS (on Windows: inside of WSL)",
            )
        self._events = events
        await self._start_launcher()

    async def close(self) -> None:
        """Kill everything that runs, and the launcher. Its ends are not told any more."""
        self._closed = True
        for waiting in (self._restart, self._opening):
            if waiting is not None:
                waiting.cancel()
        if self._transport is not None:
            self._transport.write(frame(("quit",)))
            self._transport.close()
        process = self._process
        if process is None:
            return
        try:
            await asyncio.get_running_loop().run_in_executor(None, process.wait, self._settings.stop_s_max)
        except subprocess.TimeoutExpired:
            log.warning("launcher_killed", extra={"pid": process.pid})
            process.kill()
            process.wait()
            self._kill_what_is_left()
        self._process = None

    async def _start_launcher(self) -> None:
        loop = asyncio.get_running_loop()
        ours = self._spawn()
        self._started_at = loop.time()
        await loop.create_connection(lambda: self, sock=ours)

    def _spawn(self) -> socket.socket:
        """A new launcher process, and our end of the connection to it."""
        ours, theirs = socket.socketpair()
        self._mark = f"{os.getpid()}-{secrets.token_hex(8)}"
        settings, user = self._settings, self._settings.user
        arguments = [_ROOT, str(theirs.fileno()), str(settings.slots), self._mark, str(settings.niceness)]
        if user is not None:
            groups = ",".join(map(str, user.groups))
            arguments += [settings.output_directory, str(user.uid), str(user.gid), groups]
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _BOOT, *arguments],
                stdin=subprocess.DEVNULL,
                env=task_environment(os.environ, user),
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        except OSError as problem:
            ours.close()
            raise EnvironmentProblem(
                f"cannot start the launcher process: {problem.strerror}", retry=True
            ) from problem
        finally:
            theirs.close()
        return ours

    def _start_again(self) -> None:
        self._opening = asyncio.get_running_loop().create_task(self._try_again())

    async def _try_again(self) -> None:
        try:
            await self._start_launcher()
        except EnvironmentProblem as problem:
            log.error("launcher_failed", extra={"text": problem.text})
            self._schedule_restart()

    def _schedule_restart(self) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() - self._started_at > self._settings.restart_s_max:
            self._delay_s = self._settings.restart_s
        self._restart = loop.call_later(self._delay_s, self._start_again)
        self._delay_s = min(2 * self._delay_s, self._settings.restart_s_max)

    # --- ports.Launcher ---------------------------------------------------------------------------

    def start(self, processes: Sequence[StartProcess]) -> None:
        """Hand these over, in this order."""
        starts = [
            Start(
                p.attempt,
                list(p.argv),
                p.env,
                p.workdir,
                p.stdout,
                p.stderr,
                p.time_limit_s,
                None if p.cleanup is None else list(p.cleanup),
                p.tail_bytes,
                p.slots,
            )
            for p in processes
        ]
        if self._transport is None:
            self._unsent += starts
            return
        self._held.update((s.attempt, 0) for s in starts)
        self._transport.write(frame(("start", [tuple(s) for s in starts])))

    def stop(self, attempts: Sequence[int]) -> None:
        """SIGTERM to the groups, SIGKILL after the grace; what has not started is dropped. Ends are told."""
        if self._transport is not None:
            self._transport.write(frame(("stop", list(attempts))))
            return
        unstarted = [s.attempt for s in self._unsent if s.attempt in set(attempts)]
        self._unsent = [s for s in self._unsent if s.attempt not in set(attempts)]
        ends = [ProcessEnded(attempt, None, unstarted=True) for attempt in unstarted]
        if ends:
            asyncio.get_running_loop().call_soon(self._tell_ended, ends)

    # --- asyncio.Protocol -------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport
        self._incoming.clear()
        unsent, self._unsent = self._unsent, []
        if unsent:
            self._held.update((s.attempt, 0) for s in unsent)
            transport.write(frame(("start", [tuple(s) for s in unsent])))

    def data_received(self, data: bytes) -> None:
        self._incoming += data
        for message in take_frames(self._incoming):
            self._on_launcher_message(message)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._closed:
            return
        process = self._process
        assert process is not None
        process.kill()  # it may have closed its end only
        code = process.wait()
        self._process = None
        log.error("launcher_lost", extra={"pid": process.pid, "exit_code": code, "running": len(self._held)})
        self._kill_what_is_left()
        lost = list(self._held)
        self._held.clear()
        self._schedule_restart()
        assert self._events is not None
        self._events.on_launcher_lost(lost)

    def _on_launcher_message(self, message: Any) -> None:
        kind, items = message
        if kind == "pids":
            for attempt, pid in items:
                if attempt in self._held:
                    self._held[attempt] = pid
            return
        for end in items:
            self._held.pop(end[0], None)
        self._tell_ended([ProcessEnded(*end) for end in items])

    def _tell_ended(self, ends: list[ProcessEnded]) -> None:
        assert self._events is not None
        self._events.on_ended(ends)

    def _kill_what_is_left(self) -> None:
        for pid in self._held.values():
            if pid:
                kill_group(pid, signal.SIGKILL)
        kill_marked(self._mark)
