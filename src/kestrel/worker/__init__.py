"""The worker: an agent that speaks XMPP, and a launcher process that starts what the agent decides.

The decisions are `kestrel.core.execution`; here is what acts on them. Never decides what runs where.
"""
