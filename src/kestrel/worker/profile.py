"""What a worker can find out about its machine, as a `profile`. Called once, by the worker's service.

Never fails: what a system does not tell is left unknown.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence

from kestrel.protocol.messages import Profile


def detect(
    *, slots: int | None = None, provides: Sequence[str] = (), labels: dict[str, str] | None = None
) -> Profile:
    """The profile of this machine; `slots` tasks at once (None: one per core)."""
    return Profile(
        os=platform.system(),
        arch=platform.machine(),
        hostname=platform.node(),
        ram=memory_mib(),
        cores=usable_cores(),
        slots=slots,
        provides=list(provides),
        labels=dict(labels or {}),
        python=platform.python_version(),
        version=_version(),
    )


def usable_cores() -> int:
    """Cores that this process may use (not: that the machine has)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1


def memory_mib() -> int:
    """Physical memory in MiB, 0 if unknown."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    except (ValueError, OSError, AttributeError):
        return 0


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("kestrel-mtc")
    except metadata.PackageNotFoundError:  # run from a source tree
        return ""
