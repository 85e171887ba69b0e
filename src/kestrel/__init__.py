"""Kestrel: many-task computing over XMPP."""

__version__ = "0.1.0"
