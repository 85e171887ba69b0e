"""The role `kestrel.ports.Store` and its makers: memory for tests and the simulator, SQLite as the default.

Called by the manager's shell, which sees only the role; the command line chooses the maker.
"""

from kestrel.store.memory import MemoryStore
from kestrel.store.sqlite import SqliteSettings, SqliteStore

__all__ = ["MemoryStore", "SqliteSettings", "SqliteStore"]
