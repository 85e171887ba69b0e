"""From what is kept about a pool (`PoolAccess`) to the settings of a client. Called by worker and client."""

from __future__ import annotations

from kestrel.config import PoolAccess
from kestrel.xmpp.client import ClientSettings


def client_settings(access: PoolAccess) -> ClientSettings:
    """How to log in with this account: TLS by the rules of `dial`, pinned if a fingerprint is known."""
    return ClientSettings(
        jid=access.jid,
        password=access.password,
        host=access.host or None,
        port=access.port or None,
        resource=access.resource,
        fingerprint=access.fingerprint or None,
        via=access.via,
        path=access.path,
    )
