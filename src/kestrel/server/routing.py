"""Where each stanza goes (RFC 6120 section 10, RFC 6121 section 8), in terms of sessions and outboxes.

Pure but for the file of the rosters: no sockets, no time. It stamps `from`, copies the inside of
stanzas as it came, keeps nothing for later, and never answers an error. Called by the connections;
whoever calls empties the outboxes of `tables.dirty` afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kestrel.errors import EnvironmentProblem
from kestrel.server.accounts import Account, Accounts
from kestrel.server.presence import Presence
from kestrel.server.queries import Queries
from kestrel.server.roles import Roles
from kestrel.server.roster import Rosters
from kestrel.server.sessions import Link, Session, Tables
from kestrel.server.settings import ServerLimits
from kestrel.server.subscriptions import KINDS, Subscriptions
from kestrel.xmpp import stanza as x
from kestrel.xmpp.jid import JID, JidError
from kestrel.xmpp.stream import Stanza, StreamError

_NAMES = {
    f"{ns} {name}": name for ns in (x.NS_CLIENT, x.NS_COMPONENT) for name in ("message", "presence", "iq")
}
_MESSAGES = frozenset((f"{x.NS_CLIENT} message", f"{x.NS_COMPONENT} message"))
_CLIENT_MESSAGE = f"{x.NS_CLIENT} message"
_IQ_TYPES = frozenset(("get", "set", "result", "error"))
_SOURCES_MAX = 65_536
"""Addresses of a component that are remembered as its own."""

ChangePassword = Callable[[Session, Stanza, str], None]
"""(session, request, new password): change it and answer."""


class Router:
    """All sessions of one server and the rules between them."""

    def __init__(
        self,
        domain: str,
        components: frozenset[str],
        accounts: Accounts,
        limits: ServerLimits,
        change_password: ChangePassword,
    ) -> None:
        self.tables = tables = Tables(domain, components, limits.route_cache_max)
        self.rosters = Rosters(accounts, tables.accounts.__contains__, limits.roster_items_max)
        self.presence = Presence(tables, self.rosters, limits, self.bounce)
        self.subscriptions = Subscriptions(tables, self.rosters, self.presence, self.bounce)
        self.queries = Queries(tables, self.rosters, self.subscriptions, limits, self.bounce, change_password)
        self.roles = Roles(tables)
        self._limits = limits
        self._quick = tables.quick

    # ----------------------------------------------------------------------------------------------
    # sessions

    def open_client(self, link: Link, account: Account, resource: str) -> Session:
        """A client is bound. An older session of the same address is closed with `conflict`.

        RFC 6120 section 7.7.2.2 leaves the choice; so a worker that comes back after a silent break is
        not locked out by its own ghost. The older one's `unavailable` is sent first.
        """
        tables, local = self.tables, account.local
        older = tables.full(local, resource)
        if older is not None:
            self.close(older)
            older.link.fail("conflict", "another connection took this resource")
        session = Session(tables, link, local, resource, domain=tables.domain)
        tables.add(session)
        self.roles.on_client(session, account)
        return session

    def open_component(self, link: Link, domain: str) -> Session:
        """A component is let in; the caller has checked that its domain is free."""
        session = Session(self.tables, link, "", "", domain=domain, is_component=True)
        self.tables.add(session)
        self.roles.on_component(session)
        return session

    def close(self, session: Session) -> None:
        """The session ends, for whatever reason; the first call counts."""
        if not self.tables.discard(session):
            return
        self.presence.leave(session)
        if not session.is_component and session.local not in self.tables.accounts:
            self.rosters.forget(session.local)
            self.roles.forget(session.local)

    def accounts_changed(self, accounts: Mapping[str, Account]) -> None:
        """These are the accounts now: whose account is gone is gone, and components learn new roles."""
        for local in self.roles.on_changes(accounts):
            for session in list(self.tables.accounts.get(local, {}).values()):
                session.link.fail("not-authorized", "the account was removed")
                # The connection has closed it already; a link that has no socket has not.
                self.close(session)

    # ----------------------------------------------------------------------------------------------
    # stanzas

    def on_client(self, session: Session, stanza: Stanza) -> None:
        """A stanza of a bound client. Raises `StreamError` for what costs the stream."""
        attrs = stanza.attrs
        if "from" in attrs:
            self._check_from(session, attrs["from"])
        if stanza.tag == _CLIENT_MESSAGE:
            target = self._quick.get(attrs.get("to", ""))
            if target is not None:
                if target.is_component:
                    session.toward = target
                target.send(stanza.with_addresses(session.address, ns=target.ns))
                return
        name = _NAMES.get(stanza.tag)
        if name is None or stanza.ns != x.NS_CLIENT:
            raise StreamError("unsupported-stanza-type", f"{stanza.name!r} is no stanza")
        to_text = attrs.get("to", "")
        try:
            to = JID.parse(to_text) if to_text else None
        except JidError:
            self.bounce(session, session.address, stanza, "jid-malformed")
            return
        self._dispatch(name, session, session.address, stanza, to)

    def on_component(self, session: Session, stanza: Stanza) -> None:
        """A stanza of a component. Raises `StreamError` if `from` is not in its domain."""
        attrs = stanza.attrs
        source = attrs.get("from", session.address)
        if source not in session.sources:
            source = self._check_source(session, source)
        if stanza.tag in _MESSAGES:
            target = self._quick.get(attrs.get("to", ""))
            if target is not None:
                target.send(stanza.with_addresses(source, ns=target.ns))
                return
        name = _NAMES.get(stanza.tag)
        if name is None or stanza.ns != x.NS_COMPONENT:
            raise StreamError("unsupported-stanza-type", f"{stanza.name!r} is no stanza")
        to_text = attrs.get("to", "")
        try:
            to = JID.parse(to_text) if to_text else None
        except JidError:
            to = None
        if to is None:
            # A component has no account of its own that it could mean.
            self.bounce(session, source, stanza, "jid-malformed")
            return
        self._dispatch(name, session, source, stanza, to)

    def _check_from(self, session: Session, text: str) -> None:
        """A client may name itself only, bare or full (RFC 6120 section 8.1.2.1)."""
        if text in (session.address, session.bare):
            return
        try:
            prepared = str(JID.parse(text))
        except JidError:
            prepared = ""
        if prepared not in (session.address, session.bare):
            raise StreamError("invalid-from", "'from' is not the address of this session")

    def _check_source(self, session: Session, text: str) -> str:
        try:
            source = JID.parse(text)
        except JidError as problem:
            raise StreamError("invalid-from", problem.text) from problem
        if source.domain != session.address:
            raise StreamError("invalid-from", f"'from' is not in the domain {session.address}")
        if len(session.sources) >= _SOURCES_MAX:
            session.sources.clear()
        if str(source) == text:
            session.sources.add(text)
        return str(source)

    def _dispatch(self, name: str, sender: Session, source: str, stanza: Stanza, to: JID | None) -> None:
        try:
            if name == "message":
                self._message(sender, source, stanza, to)
            elif name == "iq":
                self._iq(sender, source, stanza, to)
            else:
                self._presence(sender, source, stanza, to)
        except EnvironmentProblem:
            # The rosters' file cannot be written: the sender learns it, everybody else goes on.
            self.bounce(sender, source, stanza, "resource-constraint")
            raise

    def _message(self, sender: Session, source: str, stanza: Stanza, to: JID | None) -> None:
        if to is None:
            to = JID(sender.local, self.tables.domain, "")
        if to.domain != self.tables.domain:
            self._to_component(sender, source, stanza, to)
            return
        kind = stanza.attrs.get("type", "normal")
        if to.resource:
            session = self.tables.full(to.local, to.resource)
            if session is not None:
                self.deliver(stanza, source, to, session)
                return
            if kind != "chat":
                self._unheard(sender, source, stanza, kind)
                return
        if not to.local or kind in ("groupchat", "error"):
            self._unheard(sender, source, stanza, kind)
            return
        targets = [s for s in self.tables.available(to.local) if s.priority >= 0]
        if kind != "headline" and targets:
            highest = max(session.priority for session in targets)
            targets = [session for session in targets if session.priority == highest]
        for session in targets:
            self.deliver(stanza, source, to, session)
        if not targets:
            self._unheard(sender, source, stanza, kind)

    def _unheard(self, sender: Session, source: str, stanza: Stanza, kind: str) -> None:
        """Nobody is there to get a message, and nothing is kept (RFC 6121 sections 8.5.2.2, 8.5.3.2)."""
        if kind not in ("headline", "error"):
            self.bounce(sender, source, stanza, "service-unavailable")

    def _iq(self, sender: Session, source: str, stanza: Stanza, to: JID | None) -> None:
        attrs = stanza.attrs
        kind = attrs.get("type", "")
        if kind not in _IQ_TYPES or not attrs.get("id"):
            self.bounce(sender, source, stanza, "bad-request")
            return
        asks = kind in ("get", "set")
        if asks and len(stanza.children) != 1:
            self.bounce(sender, source, stanza, "bad-request")
        elif to is not None and to.domain != self.tables.domain:
            self._to_component(sender, source, stanza, to)
        elif to is not None and to.resource:
            session = self.tables.full(to.local, to.resource)
            if session is not None:
                self.deliver(stanza, source, to, session)
            elif asks:
                self.bounce(sender, source, stanza, "service-unavailable")
        elif asks:
            self.queries.answer(sender, source, stanza, to)

    def _presence(self, sender: Session, source: str, stanza: Stanza, to: JID | None) -> None:
        kind = stanza.attrs.get("type")
        if to is None:
            self.presence.broadcast(sender, stanza)
        elif kind is None or kind == "unavailable":
            self.presence.direct(sender, source, stanza, to)
        elif kind in KINDS:
            self._subscription(sender, source, kind, stanza, to)
        elif kind == "error":
            for session in self.presence.reach(to):
                self.deliver(stanza, source, to, session)
        elif kind != "probe":
            self.bounce(sender, source, stanza, "bad-request")
        elif to.domain != self.tables.domain:
            self._to_component(sender, source, stanza, to)
        elif to.local:
            self.presence.probe(sender, source, to.local)

    def _subscription(self, sender: Session, source: str, kind: str, stanza: Stanza, to: JID) -> None:
        if not sender.is_component:
            self.subscriptions.send(sender, stanza, to)
        elif to.domain == self.tables.domain:
            self.subscriptions.receive(str(JID.parse(source).bare), to.local, kind, stanza)
        else:
            self._to_component(sender, source, stanza, to)

    def _to_component(self, sender: Session, source: str, stanza: Stanza, to: JID) -> None:
        component = self.tables.components.get(to.domain)
        if component is not None:
            text = str(to)
            if text == stanza.attrs.get("to"):
                self.tables.remember(text, component)
            if not sender.is_component:
                sender.toward = component
            self.deliver(stanza, source, to, component)
        elif to.domain in self.tables.component_domains:
            self.bounce(sender, source, stanza, "service-unavailable")
        else:
            self.bounce(sender, source, stanza, "remote-server-not-found")

    @staticmethod
    def deliver(stanza: Stanza, source: str, to: JID, target: Session) -> None:
        """Into the outbox of `target`, stamped."""
        target.send(stanza.with_addresses(source, str(to), ns=target.ns))

    def bounce(self, sender: Session, source: str, stanza: Stanza, condition: str) -> None:
        """Answer with an error; what is itself an answer gets none (RFC 6120 section 8.3.1)."""
        name = stanza.name
        kind = stanza.attrs.get("type")
        if kind == "error" or (name == "iq" and kind == "result"):
            return
        request = {"id": stanza.attrs.get("id", ""), "from": source}
        to = stanza.attrs.get("to", "")
        if condition == "jid-malformed":
            to = self.tables.domain
        request["to"] = to or (self.tables.domain if sender.is_component else "")
        sender.send(x.error_reply(name, request, condition))
