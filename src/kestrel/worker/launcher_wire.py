"""What the agent's end and the launcher process share: frames, the start of an attempt, killing.

A frame is four bytes of length (little endian) and a `marshal` value; both ends are the same
interpreter on the same machine. Imports only a little of the standard library.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import signal
from typing import Any, NamedTuple

MARK = "KESTREL_LAUNCHER"
"""Environment variable that every task of a launcher carries; its value names the launcher."""

FRAME_BYTES_MAX = 64 * 1024 * 1024


class Start(NamedTuple):
    """One attempt to start: the fields of `ports.StartProcess`, in this order."""

    attempt: int
    argv: list[str]
    env: dict[str, str]
    workdir: str
    stdout: str
    stderr: str
    time_limit_s: float
    cleanup: list[str] | None
    tail_bytes: int
    slots: int


def frame(message: tuple[Any, ...]) -> bytes:
    """A message as it travels."""
    body = marshal.dumps(message)
    return len(body).to_bytes(4, "little") + body


def take_frames(buffer: bytearray) -> list[Any]:
    """Remove and return all whole messages at the start of the buffer. Raises ValueError if it is broken."""
    messages: list[Any] = []
    at = 0
    while len(buffer) - at >= 4:
        size = int.from_bytes(buffer[at : at + 4], "little")
        if size > FRAME_BYTES_MAX:
            raise ValueError(f"frame of {size} bytes")
        if len(buffer) - at - 4 < size:
            break
        messages.append(marshal.loads(buffer[at + 4 : at + 4 + size]))
        at += 4 + size
    del buffer[:at]
    return messages


def kill_group(pid: int, number: int) -> None:
    """Signal a process group; one that is gone, or not ours to kill, is left alone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def kill_marked(mark: str) -> int:
    """SIGKILL every process whose environment names this launcher (where there is a /proc); how many."""
    wanted = f"{MARK}={mark}".encode()
    killed = 0
    try:
        names = os.listdir("/proc")
    except OSError:
        return 0
    for name in names:
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/environ", "rb") as environ:
                marked = wanted in environ.read().split(b"\0")
            if marked and int(name) != os.getpid():
                os.kill(int(name), signal.SIGKILL)
                killed += 1
        except OSError:
            continue  # gone meanwhile, or somebody else's
    return killed
