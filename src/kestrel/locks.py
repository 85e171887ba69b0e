"""Files that one process at a time has, until it closes them or dies (`kill -9` included).

The lock is that of the operating system (flock; on Windows a locked byte): nothing stays locked by a file
that was left behind. Lock files are never removed: who holds one that was removed would hold nothing.
Called by the worker's spool and by the SQLite store.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

from kestrel.errors import KestrelError


def lock_file(path: Path, in_use: Callable[[str], KestrelError]) -> IO[str]:
    """The lock file, open and locked; closing it gives the lock back.

    Raises `in_use(process id of the holder, or empty)` if somebody else has it, and `OSError` if there can be
    no such file. Never waits.
    """
    file = open(path, "a+", encoding="ascii", errors="replace")  # noqa: SIM115 (held by the caller)
    try:
        if not _lock(file):
            raise in_use(_holder(path))
        file.seek(0)
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
    except BaseException:
        file.close()
        raise
    return file


def _lock(file: IO[str]) -> bool:
    if sys.platform == "win32":
        import msvcrt

        file.seek(0)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
    else:
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _holder(path: Path) -> str:
    if sys.platform == "win32":
        return ""  # what is locked there cannot be read
    return path.read_text(encoding="ascii", errors="replace").strip()
