"""The manager: keeps jobs, sees workers come and go, gives them tasks, answers users.

`manager` is a plain reactor over `kestrel.ports`; `service` runs it with XMPP, SQLite and asyncio.
"""
