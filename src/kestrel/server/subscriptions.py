"""Presence subscriptions between accounts, and between accounts and components (RFC 6121 section 3).

Pure but for the file of the rosters. Each side's state is decided by the tables in `roster`; here is
what is pushed, routed and shown in consequence. Called by the router and by roster queries.
"""

from __future__ import annotations

from kestrel.server.presence import Bounce, Presence
from kestrel.server.roster import RosterItem, Rosters, Verdict, inbound, outbound
from kestrel.server.sessions import Session, Tables
from kestrel.xmpp import stanza as x
from kestrel.xmpp.jid import JID
from kestrel.xmpp.stream import Stanza

KINDS = frozenset(("subscribe", "subscribed", "unsubscribe", "unsubscribed"))
NS_ROSTER = "jabber:iq:roster"


class Subscriptions:
    """The rules for the four stanzas that change who sees whose presence."""

    def __init__(self, tables: Tables, rosters: Rosters, presence: Presence, bounce: Bounce) -> None:
        self._tables = tables
        self._rosters = rosters
        self._presence = presence
        self._bounce = bounce
        self._pushes = 0

    # ----------------------------------------------------------------------------------------------
    # the account's side

    def send(self, session: Session, stanza: Stanza, to: JID) -> None:
        """A client sends one of the four to `to`, which counts as its bare form."""
        contact = to.bare
        kind = stanza.attrs["type"]
        if str(contact) == session.bare:
            self._bounce(session, session.address, stanza, "bad-request")
            return
        old = self._rosters.item(session.local, str(contact))
        new, verdict = outbound(old, kind)
        if not new.is_void and not self._rosters.has_room(session.local, str(contact)):
            self._bounce(session, session.address, stanza, "resource-constraint")
            return
        self._change(session.local, old, new)
        if verdict is Verdict.PASS:
            if not self._route(session.bare, contact, kind, stanza):
                known = contact.domain in self._tables.component_domains
                condition = "service-unavailable" if known else "remote-server-not-found"
                self._bounce(session, session.address, stanza, condition)
            self._show_or_hide(session.local, contact, old, new)

    def cut(self, local: str, contact: JID) -> None:
        """End what there is between the account and the contact: the contact left the roster."""
        old = self._rosters.item(local, str(contact))
        source = f"{local}@{self._tables.domain}"
        self._rosters.save(local, RosterItem(str(contact), listed=False))
        self.push(local, f"<item{x.attributes(jid=str(contact), subscription='remove')}/>")
        if old.receives or old.asked:
            self._route(source, contact, "unsubscribe", None)
        if old.sends or old.pending:
            self._route(source, contact, "unsubscribed", None)
        if old.sends:
            self._presence.hide_from(local, contact)

    def _show_or_hide(self, local: str, contact: JID, old: RosterItem, new: RosterItem) -> None:
        if new.sends and not old.sends:
            for target in self._presence.reach(contact):
                self._presence.show_to(local, target, str(contact))
        elif old.sends and not new.sends:
            self._presence.hide_from(local, contact)

    def _change(self, local: str, old: RosterItem, new: RosterItem) -> None:
        if new == old:
            return
        self._rosters.save(local, new)
        if new.listed:
            self.push(local, new.xml())

    def push(self, local: str, item: str) -> None:
        """Tell the account's interested sessions of a change (section 2.1.6)."""
        resources = self._tables.accounts.get(local) or {}
        for session in resources.values():
            if session.interested:
                self._pushes += 1
                payload = f"<query xmlns='{NS_ROSTER}'>{item}</query>"
                session.send(x.iq("set", f"push-{self._pushes}", to=session.address, payload=payload))

    # ----------------------------------------------------------------------------------------------
    # the contact's side

    def _route(self, source: str, to: JID, kind: str, stanza: Stanza | None) -> bool:
        """Bring it to the other side; False if there is no way to it."""
        if to.domain == self._tables.domain:
            self.receive(source, to.local, kind, stanza)
            return True
        component = self._tables.components.get(to.domain)
        if component is None:
            return False
        component.send(_render(stanza, kind, source, str(to), component.ns))
        return True

    def receive(self, source: str, local: str, kind: str, stanza: Stanza | None) -> None:
        """One of the four arrives for an account from the bare JID `source`."""
        if local not in self._tables.accounts and not self._rosters.has_account(local):
            # Nobody is told whether an account exists (section 8.5.1).
            return
        old = self._rosters.item(local, source)
        new, verdict = inbound(old, kind)
        if not new.is_void and not self._rosters.has_room(local, source):
            return
        self._change(local, old, new)
        own = f"{local}@{self._tables.domain}"
        contact = JID.parse(source)
        if verdict is Verdict.ACCEPTED:
            self._route(own, contact, "subscribed", None)
            for target in self._presence.reach(contact):
                self._presence.show_to(local, target, source)
            return
        if verdict is Verdict.PASS:
            for session in (self._tables.accounts.get(local) or {}).values():
                if session.available or (session.interested and kind != "subscribe"):
                    session.send(_render(stanza, kind, source, own, session.ns))
            self._show_or_hide(local, contact, old, new)


def _render(stanza: Stanza | None, kind: str, source: str, to: str, ns: str) -> bytes:
    if stanza is None:
        return x.presence(to, type=kind, from_=source)
    return stanza.with_addresses(source, to, ns=ns)
