"""The launcher: a small process of its own that starts, watches and kills the tasks of one worker.

Run by `kestrel.worker.launcher` alone; never decides what runs. It and the two modules that it
imports need only a little of the standard library (its memory is a floor under the peak memory that
the kernel reports of a child), it has one thread, and speaks over one socket (`launcher_wire`):

agent → launcher: `("start", [start, …])` · `("stop", [attempt, …])` · `("quit",)`
launcher → agent: `("ended", [end, …])` · `("pids", [(attempt, pid), …])`; the tuples are `Start` and
the arguments of `ports.ProcessEnded` in their order.

Every task gets a session and process group of its own. When its first process ends, the rest of the
group is killed before the end is told. When the agent goes, for whatever reason, every group is
killed, and whatever else still carries this launcher's mark in its environment; then the launcher ends.

It may have to become another user before it starts anything: then all output files lie in one directory,
which it has opened before and reaches by that descriptor alone.
"""

from __future__ import annotations

import contextlib
import gc
import heapq
import os
import resource  # noqa: F401 (os.wait4 imports it, which another user may not be able to)
import select
import signal
import socket
import sys
import time
from collections import deque
from typing import Any

from kestrel.worker.launcher_spawn import CannotStartError, Outputs, Programs
from kestrel.worker.launcher_wire import MARK, Start, frame, kill_group, kill_marked, take_frames

GRACE_S = 5.0
"""From SIGTERM to SIGKILL."""
CLEANUP_S_MAX = 60.0
ENDS_WAIT_S = 0.01
"""How long an end may wait for others while there is more to start."""
ENDS_MAX = 64
PIDS_WAIT_S = 0.05
"""Processes that live longer are told to the agent, which kills them should the launcher die."""
UNSTARTED_S = 0.5
"""A start that found no free slot for so long is given back."""
_READ_BYTES = 256 * 1024


class Running:
    """One attempt whose process, or cleanup process, runs."""

    __slots__ = ("began", "end", "err", "out", "pid", "start", "started", "stopped", "timed_out")

    def __init__(self, start: Start, out: int, err: int) -> None:
        self.start = start
        self.out = out
        self.err = err
        self.pid = 0
        self.started = 0.0
        self.began = 0.0
        self.timed_out = False
        self.stopped = False
        self.end: list[Any] | None = None
        """What will be told once the cleanup has ended; None while the task itself runs."""


class LauncherProcess:
    """The whole of it; `run` returns when the agent has gone and everything is killed."""

    def __init__(self, agent: socket.socket, slots: int, mark: str, outputs: Outputs) -> None:
        self._outputs = outputs
        self._agent = agent
        agent.setblocking(False)
        self._slots = slots
        self._mark = mark
        self._busy = 0
        self._env = {**os.environ, MARK: mark}
        self._waiting: deque[tuple[float, Start]] = deque()
        self._running: dict[int, Running] = {}
        self._by_pid: dict[int, Running] = {}
        self._timers: list[tuple[float, int, int, int]] = []
        """(when, pid, attempt, signal to send)"""
        self._ended: list[list[Any]] = []
        self._ended_since = 0.0
        self._untold: dict[int, tuple[float, int]] = {}
        self._incoming = bytearray()
        self._outgoing = bytearray()
        self._programs = Programs()
        self._null = os.open(os.devnull, os.O_RDWR)
        self._memory_unit = 1024 if sys.platform == "darwin" else 1
        self._quit = False

    # --- the loop ---------------------------------------------------------------------------------

    def run(self) -> None:
        wake_reader, wake_writer = os.pipe()
        os.set_blocking(wake_reader, False)
        os.set_blocking(wake_writer, False)
        signal.set_wakeup_fd(wake_writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        poll = select.poll()
        agent = self._agent.fileno()
        poll.register(wake_reader, select.POLLIN)
        poll.register(agent, select.POLLIN)
        try:
            while not self._quit:
                poll.modify(agent, select.POLLIN | select.POLLOUT if self._outgoing else select.POLLIN)
                for fd, what in poll.poll(self._patience_ms()):
                    if fd == wake_reader:
                        with contextlib.suppress(BlockingIOError):
                            os.read(wake_reader, 4096)
                    elif what & ~select.POLLOUT:
                        self._read_agent()
                self._reap()
                now = time.monotonic()
                self._signal_late(now)
                self._start_waiting(now)
                self._tell(now)
        finally:
            self._kill_everything()

    def _on_signal(self, number: int, _: object) -> None:
        self._quit = True

    def _patience_ms(self) -> float | None:
        """How long nothing can be due."""
        times = []
        if self._timers:
            times.append(self._timers[0][0])
        if self._ended:
            times.append(self._ended_since + ENDS_WAIT_S)
        if self._untold:
            times.append(next(iter(self._untold.values()))[0] + PIDS_WAIT_S)
        if self._waiting:
            times.append(self._waiting[0][0] + UNSTARTED_S)
        return max(0.0, (min(times) - time.monotonic()) * 1000.0) if times else None

    def _read_agent(self) -> None:
        try:
            data = self._agent.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._quit = True
            return
        self._incoming += data
        now = time.monotonic()
        for message in take_frames(self._incoming):
            if message[0] == "start":
                self._waiting.extend((now, Start(*fields)) for fields in message[1])
            elif message[0] == "stop":
                self._stop(set(message[1]), now)
            else:
                self._quit = True

    def _tell(self, now: float) -> None:
        """Send what is due. Ends wait for company only while there is more to start meanwhile."""
        ended = self._ended
        if ended and (not self._waiting or len(ended) >= ENDS_MAX or now >= self._ended_since + ENDS_WAIT_S):
            self._outgoing += frame(("ended", ended))
            self._ended = []
        if self._untold and now >= next(iter(self._untold.values()))[0] + PIDS_WAIT_S:
            self._outgoing += frame(("pids", [(attempt, pid) for attempt, (_, pid) in self._untold.items()]))
            self._untold.clear()
        if self._outgoing:
            try:
                sent = self._agent.send(self._outgoing)
                del self._outgoing[:sent]
            except BlockingIOError:
                pass
            except OSError:
                self._quit = True

    # --- starting ---------------------------------------------------------------------------------

    def _start_waiting(self, now: float) -> None:
        waiting = self._waiting
        while waiting and (self._busy + waiting[0][1].slots <= self._slots or not self._running):
            self._start(waiting.popleft()[1])
        if waiting and now >= waiting[0][0] + UNSTARTED_S:
            for _, start in waiting:
                self._add_end(_unstarted(start.attempt))
            waiting.clear()

    def _start(self, start: Start) -> None:
        running = None
        try:
            out = self._outputs.create(start.stdout)
            try:
                err = self._outputs.create(start.stderr)
            except CannotStartError:
                os.close(out)
                raise
            running = Running(start, out, err)
            running.started = time.time()
            running.began = time.monotonic()
            self._busy += start.slots
            self._running[start.attempt] = running
            self._spawn(running, start.argv, out, err)
        except CannotStartError as problem:
            if running is None:  # no place for its output: not even a cleanup is tried
                end = [
                    start.attempt,
                    problem.exit_code,
                    0,
                    0.0,
                    0.0,
                    0.0,
                    0,
                    "",
                    "",
                    0,
                    0,
                    False,
                    problem.reason,
                ]
                self._add_end([*end, False])
                return
            end = [start.attempt, problem.exit_code, 0, 0.0, 0.0, 0.0, 0]
            self._main_ended(running, end, problem.reason)
            return
        if start.time_limit_s > 0:
            at = running.began + start.time_limit_s
            heapq.heappush(self._timers, (at, running.pid, start.attempt, signal.SIGTERM))

    def _spawn(self, running: Running, argv: list[str], out: int, err: int) -> None:
        """Start the process, in its directory; raises `CannotStartError`."""
        start = running.start
        try:
            os.chdir(start.workdir)
        except (OSError, ValueError) as problem:
            why = problem.strerror if isinstance(problem, OSError) else "a name cannot contain NUL"
            raise CannotStartError(None, f"cannot work in {start.workdir}: {why}") from None
        env = {**self._env, **start.env} if start.env else self._env
        running.pid = self._programs.spawn(argv, env, self._null, out, err)
        self._by_pid[running.pid] = running
        self._untold[start.attempt] = (running.began, running.pid)

    # --- stopping ---------------------------------------------------------------------------------

    def _stop(self, attempts: set[int], now: float) -> None:
        if any(start.attempt in attempts for _, start in self._waiting):
            for _, start in self._waiting:
                if start.attempt in attempts:
                    self._add_end(_unstarted(start.attempt))
            self._waiting = deque(w for w in self._waiting if w[1].attempt not in attempts)
        for attempt in attempts:
            running = self._running.get(attempt)
            if running is not None and running.end is None and not running.stopped:
                running.stopped = True
                self._terminate(running, now)

    def _terminate(self, running: Running, now: float) -> None:
        kill_group(running.pid, signal.SIGTERM)
        kill_group(running.pid, signal.SIGCONT)
        entry = (now + GRACE_S, running.pid, running.start.attempt, int(signal.SIGKILL))
        heapq.heappush(self._timers, entry)

    def _signal_late(self, now: float) -> None:
        while self._timers and self._timers[0][0] <= now:
            _, pid, attempt, number = heapq.heappop(self._timers)
            running = self._running.get(attempt)
            if running is None or running.pid != pid:
                continue
            if number == signal.SIGKILL:
                kill_group(pid, signal.SIGKILL)
            elif not running.stopped:
                running.timed_out = running.stopped = True
                self._terminate(running, now)

    # --- ends -------------------------------------------------------------------------------------

    def _reap(self) -> None:
        """Collect what has ended. The group is killed while its dead leader still holds its number."""
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            pid = ended.si_pid
            running = self._by_pid.pop(pid, None)
            if running is not None:
                kill_group(pid, signal.SIGKILL)
            _, status, usage = os.wait4(pid, 0)
            if running is None:
                continue
            attempt = running.start.attempt
            self._untold.pop(attempt, None)
            if running.end is not None:
                self._done(running)
                continue
            code = os.waitstatus_to_exitcode(status)
            wall = time.monotonic() - running.began
            cpu = usage.ru_utime + usage.ru_stime
            memory = usage.ru_maxrss // self._memory_unit
            end = [attempt, code if code >= 0 else None, max(0, -code), running.started, wall, cpu, memory]
            self._main_ended(running, end, "")

    def _main_ended(self, running: Running, end: list[Any], reason: str) -> None:
        """The task itself is over: read its output, then run its cleanup, then tell."""
        start = running.start
        out, out_bytes = self._outputs.collect(running.out, start.stdout, start.tail_bytes)
        err, err_bytes = self._outputs.collect(running.err, start.stderr, start.tail_bytes)
        running.end = [*end, out, err, out_bytes, err_bytes, running.timed_out, reason, False]
        if start.cleanup is None:
            self._done(running)
            return
        running.began = time.monotonic()
        try:
            self._spawn(running, start.cleanup, self._null, self._null)
        except CannotStartError:
            self._done(running)  # the outcome of a cleanup does not count
            return
        entry = (running.began + CLEANUP_S_MAX, running.pid, start.attempt, int(signal.SIGKILL))
        heapq.heappush(self._timers, entry)

    def _done(self, running: Running) -> None:
        assert running.end is not None
        del self._running[running.start.attempt]
        self._busy -= running.start.slots
        self._add_end(running.end)

    def _add_end(self, end: list[Any]) -> None:
        if not self._ended:
            self._ended_since = time.monotonic()
        self._ended.append(end)

    def _kill_everything(self) -> None:
        for pid in self._by_pid:
            kill_group(pid, signal.SIGKILL)
        kill_marked(self._mark)


def _unstarted(attempt: int) -> list[Any]:
    return [attempt, None, 0, 0.0, 0.0, 0.0, 0, "", "", 0, 0, False, "", True]


def main(arguments: list[str]) -> int:
    """Arguments: file descriptor of the socket, slots, mark, niceness; to become another user also the output
    directory, and the numbers of user, group and groups."""
    fd, slots, mark, niceness = int(arguments[0]), int(arguments[1]), arguments[2], int(arguments[3])
    os.set_inheritable(fd, False)
    gc.disable()  # nothing here makes cycles
    if niceness:
        os.nice(niceness)
    outputs = Outputs()
    if len(arguments) > 4:
        outputs = Outputs(arguments[4])
        _become(int(arguments[5]), int(arguments[6]), [int(group) for group in arguments[7].split(",")])
    LauncherProcess(socket.socket(fileno=fd), slots, mark, outputs).run()
    return 0


def _become(uid: int, gid: int, groups: list[int]) -> None:
    """For good: real, effective and saved numbers, and no group of the user before."""
    os.setgroups(groups)
    os.setgid(gid)
    os.setuid(uid)
    os.umask(0o022)
