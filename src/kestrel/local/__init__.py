"""A whole pool on this machine: the embedded server and a manager in this process, workers as children.

`hosted` is the server alone; `host` adds the manager, and is what `kestrel up` runs; `pool` adds local
workers and a client, for `kestrel run`; `worker_process` is one such worker. Names are imported when they
are used, so that a worker can be started before the rest of the pool is even loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kestrel.local.host import HostSettings, PoolHost
    from kestrel.local.pool import LocalPool

__all__ = ["HostSettings", "LocalPool", "PoolHost"]


def __getattr__(name: str) -> Any:
    if name == "LocalPool":
        from kestrel.local.pool import LocalPool

        return LocalPool
    if name in ("HostSettings", "PoolHost"):
        from kestrel.local import host

        return getattr(host, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
