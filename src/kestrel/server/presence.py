"""Presence: broadcast, directed, probes, and `unavailable` for whoever leaves (RFC 6121 section 4).

Pure. The law of this module: whoever was told that an address is available is told exactly once that
it is not any more, however its session ends. Called by the router; subscriptions are next door.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from kestrel.server.roster import Rosters
from kestrel.server.sessions import Session, Tables
from kestrel.server.settings import ServerLimits
from kestrel.xmpp import stanza as x
from kestrel.xmpp.jid import JID, bare
from kestrel.xmpp.stream import Stanza

Bounce = Callable[[Session, str, Stanza, str], None]
"""(sender, its address, stanza, condition): answer with a stanza error."""


class Presence:
    """The rules for presence that is not about subscriptions."""

    def __init__(self, tables: Tables, rosters: Rosters, limits: ServerLimits, bounce: Bounce) -> None:
        self._tables = tables
        self._rosters = rosters
        self._limits = limits
        self._bounce = bounce

    # ----------------------------------------------------------------------------------------------
    # broadcast (without `to`)

    def broadcast(self, session: Session, stanza: Stanza) -> None:
        """A client says that it is available or not (sections 4.2, 4.4, 4.5)."""
        kind = stanza.attrs.get("type")
        if kind == "unavailable":
            self._withdraw(session, stanza)
        elif kind is None:
            self._announce(session, stanza)
        elif kind not in ("error", "probe"):
            self._bounce(session, session.address, stanza, "bad-request")

    def _announce(self, session: Session, stanza: Stanza) -> None:
        priority = _priority(stanza)
        if priority is None:
            self._bounce(session, session.address, stanza, "bad-request")
            return
        first = not session.available
        session.available = True
        session.priority = priority
        session.presence = stanza
        for target, to in self._audience(session):
            target.send(stanza.with_addresses(session.address, to, ns=target.ns))
        if first:
            self._welcome(session)

    def _welcome(self, session: Session) -> None:
        """Tell a fresh session who is there, and what waits for an answer (sections 4.2.2, 3.1.3)."""
        for other in self._tables.available(session.local):
            if other is not session and other.presence is not None:
                session.send(other.presence.with_addresses(other.address, session.bare))
        for item in self._rosters.of(session.local).values():
            contact = JID.parse(item.contact)
            component = self._tables.components.get(contact.domain)
            if item.receives:
                if component is not None:
                    component.send(x.presence(item.contact, type="probe", from_=session.address))
                else:
                    self.show_to(contact.local, session, session.address)
            elif item.asked and component is not None:
                # The component may have been away when it was asked.
                component.send(x.presence(item.contact, type="subscribe", from_=session.bare))
            if item.pending:
                session.send(x.presence(session.bare, type="subscribe", from_=item.contact))

    def _withdraw(self, session: Session, stanza: Stanza) -> None:
        for target, to in self._audience(session, directed=True):
            target.send(stanza.with_addresses(session.address, to, ns=target.ns))
        session.available = False
        session.priority = 0
        session.presence = None
        self._forget_directed(session)

    def _audience(self, session: Session, *, directed: bool = False) -> Iterator[tuple[Session, str]]:
        """Each session once, with the `to` it shall see: own resources, subscribers, then directed."""
        clients: dict[Session, str] = {}
        components: dict[str, Session] = {}
        if session.available:
            for other in self._tables.available(session.local):
                clients[other] = session.bare
            for item in self._rosters.of(session.local).values():
                if item.sends:
                    self._collect(item.contact, clients, components)
        if directed:
            for to in session.directed.get(session.address, ()):
                if bare(to) not in components:
                    self._collect(to, clients, components)
        yield from clients.items()
        for to, component in components.items():
            yield component, to

    def _collect(self, to: str, clients: dict[Session, str], components: dict[str, Session]) -> None:
        for target in self.reach(JID.parse(to)):
            if target.is_component:
                components.setdefault(to, target)
            else:
                clients.setdefault(target, to)

    # ----------------------------------------------------------------------------------------------
    # directed

    def direct(self, sender: Session, source: str, stanza: Stanza, to: JID) -> None:
        """Presence for one address; who gets it is told when `source` goes (section 4.6)."""
        targets = self.reach(to)
        arrives = stanza.attrs.get("type") is None
        if not targets:
            if arrives and to.domain != self._tables.domain:
                known = to.domain in self._tables.component_domains
                condition = "service-unavailable" if known else "remote-server-not-found"
                self._bounce(sender, source, stanza, condition)
            elif not arrives:
                self._untrack(sender, source, str(to))
            return
        if not arrives:
            self._untrack(sender, source, str(to))
        elif not self._track(sender, source, str(to), targets):
            self._bounce(sender, source, stanza, "resource-constraint")
            return
        for target in targets:
            target.send(stanza.with_addresses(source, str(to), ns=target.ns))

    def _track(self, sender: Session, source: str, to: str, targets: list[Session]) -> bool:
        """Remember that `to` knows of `source`; False if the sender knows too many."""
        known = sender.directed.get(source)
        if known is None or to not in known:
            limits = self._limits
            if sender.directed_count >= (
                limits.component_directed_max if sender.is_component else limits.directed_max
            ):
                return False
            sender.directed.setdefault(source, {})[to] = None
            sender.directed_count += 1
        if targets[0].address == to and not targets[0].is_component:
            targets[0].watchers[sender, source] = None
        return True

    def _untrack(self, sender: Session, source: str, to: str) -> None:
        known = sender.directed.get(source)
        if known is None or to not in known:
            return
        del known[to]
        sender.directed_count -= 1
        if not known:
            del sender.directed[source]
        target = self._tables.quick.get(to)
        if target is not None:
            target.watchers.pop((sender, source), None)

    def _forget_directed(self, session: Session) -> None:
        for source, known in session.directed.items():
            for to in known:
                target = self._tables.quick.get(to)
                if target is not None:
                    target.watchers.pop((session, source), None)
        session.directed = {}
        session.directed_count = 0

    def reach(self, to: JID) -> list[Session]:
        """Sessions that presence for this address is delivered to (sections 8.5.2.1.2, 8.5.3.1)."""
        tables = self._tables
        if to.domain != tables.domain:
            component = tables.components.get(to.domain)
            return [component] if component is not None else []
        if not to.resource:
            return tables.available(to.local)
        session = tables.full(to.local, to.resource)
        return [session] if session is not None else []

    # ----------------------------------------------------------------------------------------------
    # leaving

    def leave(self, session: Session) -> None:
        """The session is out of the tables: tell everybody who thinks that it is there."""
        if session.is_component:
            self._leave_component(session)
        else:
            for target, to in self._audience(session, directed=True):
                target.send(x.presence(to, type="unavailable", from_=session.address))
        self._forget_directed(session)
        session.available = False
        session.presence = None
        for watcher, source in list(session.watchers):
            self._untrack(watcher, source, session.address)
        session.watchers = {}

    def _leave_component(self, component: Session) -> None:
        for source, known in component.directed.items():
            told: set[Session] = set()
            for to in known:
                for target in self.reach(JID.parse(to)):
                    if target.is_component or target not in told:
                        told.add(target)
                        target.send(x.presence(to, type="unavailable", from_=source))
        self._tell_hopeful(component)

    def _tell_hopeful(self, component: Session) -> None:
        """Those that showed themselves to the component and had no presence of it yet wait for an answer."""
        for resources in self._tables.accounts.values():
            for session in resources.values():
                for to in session.directed.get(session.address, ()):
                    known = component.directed.get(to, {})
                    if (
                        bare(to).rpartition("@")[2] == component.address
                        and session.address not in known
                        and session.bare not in known
                    ):
                        session.send(x.presence(session.address, type="unavailable", from_=to))

    # ----------------------------------------------------------------------------------------------
    # probes

    def probe(self, sender: Session, source: str, local: str) -> None:
        """Somebody asks for the presence of an account (section 4.3.2)."""
        asker = bare(source)
        own = sender.local == local and not sender.is_component
        if not own and not self._rosters.item(local, asker).sends:
            sender.send(x.presence(source, type="unsubscribed", from_=f"{local}@{self._tables.domain}"))
            return
        if not self.show_to(local, sender, source):
            sender.send(x.presence(source, type="unavailable", from_=f"{local}@{self._tables.domain}"))

    def show_to(self, local: str, target: Session, to: str) -> bool:
        """Send the present state of the account's sessions; False if there are none."""
        found = False
        for session in self._tables.available(local):
            if session.presence is not None:
                target.send(session.presence.with_addresses(session.address, to, ns=target.ns))
                found = True
        return found

    def hide_from(self, local: str, contact: JID) -> None:
        """The contact is no subscriber any more: it sees the account's sessions go."""
        for session in self._tables.available(local):
            for target in self.reach(contact):
                target.send(x.presence(str(contact), type="unavailable", from_=session.address))


def _priority(stanza: Stanza) -> int | None:
    """-128 to 127, 0 if absent (section 4.7.2.3); None if it is no such number."""
    text = stanza.child_text(x.NS_CLIENT, "priority")
    if text is None or not text.strip():
        return 0
    digits = text.strip().removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 3):
        return None
    value = int(text)
    return value if -128 <= value <= 127 else None
