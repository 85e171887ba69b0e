"""A whole pool on this machine: the embedded server and a manager in this process, workers as children.

`host` is what `kestrel up` runs; `pool` adds local workers and a client, for `kestrel run`.
"""

from kestrel.local.host import HostSettings, PoolHost
from kestrel.local.pool import LocalPool

__all__ = ["HostSettings", "LocalPool", "PoolHost"]
