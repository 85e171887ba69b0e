"""Tells components which role each account has: always before anything that a session of it sends.

The telling is a headline message from the server's own domain, which no client can send: what a client
sends is stamped with its own address. Clients are never told. Pure; it keeps the roles of those accounts
that are connected, and of no others. Called by the router, and when the accounts have changed.
"""

from __future__ import annotations

from collections.abc import Mapping

from kestrel.server.accounts import Account
from kestrel.server.sessions import Session, Tables
from kestrel.xmpp import stanza as x

REMOVED = "none"
"""What is told of an account that is gone."""


class Roles:
    """The roles of the connected accounts, as the components know them."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._known: dict[str, Account] = {}

    def on_client(self, session: Session, account: Account) -> None:
        """A session of this account begins."""
        self._known[session.local] = account
        for component in self._tables.components.values():
            self._tell(component, account.local, account.role)

    def on_component(self, component: Session) -> None:
        """A component is let in: it is told before it can get anything of those who are there."""
        for account in self._known.values():
            self._tell(component, account.local, account.role)

    def forget(self, local: str) -> None:
        """The last session of the account has ended."""
        self._known.pop(local, None)

    def on_changes(self, accounts: Mapping[str, Account]) -> list[str]:
        """The accounts are these now: tell what is different. Returns those whose sessions must end.

        An account that was removed and made anew is another one: the sessions of the old one end, too.
        """
        gone = []
        for local, old in list(self._known.items()):
            new = accounts.get(local)
            if new == old:
                continue
            if new is None or new.created != old.created:
                gone.append(local)
                self._tell_all(local, REMOVED)
            else:
                self._known[local] = new
                self._tell_all(local, new.role)
        return gone

    def _tell_all(self, local: str, role: str) -> None:
        for component in self._tables.components.values():
            self._tell(component, local, role)

    def _tell(self, component: Session, local: str, role: str) -> None:
        domain = self._tables.domain
        jid = x.attributes(jid=f"{local}@{domain}")
        head = x.attributes(from_=domain, to=component.address, type="headline")
        component.send(
            f"<message{head}><role xmlns='{x.NS_ROLE}'{jid}>{x.escape_text(role)}</role></message>".encode()
        )

    @property
    def empty(self) -> bool:
        """True if nobody is known."""
        return not self._known
