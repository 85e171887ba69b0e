"""Questions that the server itself answers: rosters, service discovery, ping, version, passwords.

Pure but for the file of the rosters. Every get and set gets exactly one answer. Called by the router
for what is addressed to the server's domain or to a bare account of it.
"""

from __future__ import annotations

from collections.abc import Callable
from xml.etree.ElementTree import Element

from kestrel import __version__
from kestrel.server.presence import Bounce
from kestrel.server.roster import RosterItem, Rosters
from kestrel.server.sessions import Session, Tables
from kestrel.server.settings import ServerLimits
from kestrel.server.subscriptions import NS_ROSTER, Subscriptions
from kestrel.xmpp import stanza as x
from kestrel.xmpp.jid import JID, JidError, bare
from kestrel.xmpp.stream import Stanza

SOFTWARE = "Kestrel"
FEATURES = (
    x.NS_DISCO_INFO,
    x.NS_DISCO_ITEMS,
    x.NS_PING,
    x.NS_REGISTER,
    x.NS_VERSION,
    NS_ROSTER,
)
_ROSTER_QUERY = f"{{{NS_ROSTER}}}query"
_ROSTER_ITEM = f"{{{NS_ROSTER}}}item"
_ROSTER_GROUP = f"{{{NS_ROSTER}}}group"


class Queries:
    """Answers for the server and for accounts."""

    def __init__(
        self,
        tables: Tables,
        rosters: Rosters,
        subscriptions: Subscriptions,
        limits: ServerLimits,
        bounce: Bounce,
        change_password: Callable[[Session, Stanza, str], None],
    ) -> None:
        self._tables = tables
        self._rosters = rosters
        self._subscriptions = subscriptions
        self._limits = limits
        self._bounce = bounce
        self._change_password = change_password

    def answer(self, sender: Session, source: str, stanza: Stanza, to: JID | None) -> None:
        """Answer a get or set with one child to the server (`to` is its domain), to the sender's own
        account (None, or its bare JID), or to another account."""
        ns, name = stanza.children[0][:2]
        own = not sender.is_component and (to is None or str(to) == sender.bare)
        kind = stanza.attrs["type"]
        if own and ns == NS_ROSTER:
            self._roster(sender, stanza)
        elif own and (ns, name, kind) == (x.NS_SESSION, "session", "set"):
            self._reply(sender, source, stanza)
        elif not sender.is_component and ns == x.NS_REGISTER and (own or (to is not None and not to.local)):
            self._register(sender, stanza)
        elif (ns, name, kind) == (x.NS_PING, "ping", "get") and (own or (to is not None and not to.local)):
            self._reply(sender, source, stanza)
        elif to is not None and not to.local:
            self._server(sender, source, stanza, ns, name, kind)
        else:
            self._account(sender, source, stanza, to)

    def _reply(self, sender: Session, source: str, stanza: Stanza, payload: str = "") -> None:
        request = {**stanza.attrs, "from": source}
        sender.send(x.iq_result(request, payload=payload))

    def _server(self, sender: Session, source: str, stanza: Stanza, ns: str, name: str, kind: str) -> None:
        match (ns, name, kind):
            case (x.NS_DISCO_INFO, "query", "get"):
                features = "".join(f"<feature var='{feature}'/>" for feature in FEATURES)
                self._disco(
                    sender,
                    source,
                    stanza,
                    f"<identity category='server' type='im' name='{SOFTWARE}'/>{features}",
                )
            case (x.NS_DISCO_ITEMS, "query", "get"):
                items = "".join(f"<item{x.attributes(jid=name)}/>" for name in self._tables.components)
                self._disco(sender, source, stanza, items)
            case (x.NS_VERSION, "query", "get"):
                payload = f"<name>{SOFTWARE}</name><version>{x.escape_text(__version__)}</version>"
                self._reply(sender, source, stanza, f"<query xmlns='{ns}'>{payload}</query>")
            case _:
                self._bounce(sender, source, stanza, "service-unavailable")

    def _account(self, sender: Session, source: str, stanza: Stanza, to: JID | None) -> None:
        """Discovery of an account, for its owner and for who may see its presence (XEP-0030 section 8)."""
        local = sender.local if to is None else to.local
        own = not sender.is_component and local == sender.local
        ns, name = stanza.children[0][:2]
        allowed = own or self._rosters.item(local, bare(source)).sends
        if not allowed or stanza.attrs["type"] != "get" or name != "query":
            self._bounce(sender, source, stanza, "service-unavailable")
        elif ns == x.NS_DISCO_INFO:
            features = "".join(f"<feature var='{feature}'/>" for feature in (ns, x.NS_DISCO_ITEMS))
            self._disco(sender, source, stanza, f"<identity category='account' type='registered'/>{features}")
        elif ns == x.NS_DISCO_ITEMS:
            sessions = self._tables.available(local)
            items = "".join(f"<item{x.attributes(jid=session.address)}/>" for session in sessions)
            self._disco(sender, source, stanza, items)
        else:
            self._bounce(sender, source, stanza, "service-unavailable")

    def _disco(self, sender: Session, source: str, stanza: Stanza, payload: str) -> None:
        query = stanza.tree()[0]
        if query.get("node"):
            self._bounce(sender, source, stanza, "item-not-found")
            return
        ns = x.split_name(query.tag)[0]
        self._reply(sender, source, stanza, f"<query xmlns='{ns}'>{payload}</query>")

    # ----------------------------------------------------------------------------------------------
    # the roster

    def _roster(self, session: Session, stanza: Stanza) -> None:
        source = session.address
        if stanza.attrs["type"] == "get":
            session.interested = True
            items = self._rosters.of(session.local).values()
            listed = "".join(item.xml() for item in items if item.listed)
            self._reply(session, source, stanza, f"<query xmlns='{NS_ROSTER}'>{listed}</query>")
            return
        query = stanza.tree()[0]
        try:
            if query.tag != _ROSTER_QUERY or [child.tag for child in query] != [_ROSTER_ITEM]:
                raise _RefusedError("bad-request")
            self._change_item(session, query[0])
        except _RefusedError as refusal:
            self._bounce(session, source, stanza, refusal.condition)
            return
        self._reply(session, source, stanza)

    def _change_item(self, session: Session, element: Element) -> None:
        try:
            contact = JID.parse(element.get("jid", "")).bare
        except JidError:
            raise _RefusedError("jid-malformed") from None
        old = self._rosters.item(session.local, str(contact))
        if element.get("subscription") == "remove":
            if not old.listed:
                raise _RefusedError("item-not-found")
            self._subscriptions.cut(session.local, contact)
            return
        name = element.get("name", "")
        groups = tuple(dict.fromkeys(group.text or "" for group in element.iterfind(_ROSTER_GROUP)))
        if sum(len(text.encode()) for text in (name, *groups)) > self._limits.roster_bytes_max:
            raise _RefusedError("not-acceptable")
        if "" in groups:
            raise _RefusedError("not-acceptable")
        if str(contact) == session.bare:
            raise _RefusedError("not-allowed")
        if not self._rosters.has_room(session.local, str(contact)):
            raise _RefusedError("resource-constraint")
        new = RosterItem(
            str(contact),
            name,
            groups,
            receives=old.receives,
            sends=old.sends,
            asked=old.asked,
            pending=old.pending,
        )
        self._rosters.save(session.local, new)
        self._subscriptions.push(session.local, new.xml())

    # ----------------------------------------------------------------------------------------------
    # passwords (XEP-0077 section 3.3)

    def _register(self, session: Session, stanza: Stanza) -> None:
        source = session.address
        if stanza.attrs["type"] == "get":
            payload = f"<registered/><username>{x.escape_text(session.local)}</username><password/>"
            self._reply(session, source, stanza, f"<query xmlns='{x.NS_REGISTER}'>{payload}</query>")
            return
        query = stanza.tree()[0]
        fields = {x.split_name(child.tag)[1]: child.text or "" for child in query}
        if "remove" in fields:
            # Accounts are ended by whoever runs the pool.
            self._bounce(session, source, stanza, "not-allowed")
        elif not fields.get("username") or not fields.get("password"):
            self._bounce(session, source, stanza, "bad-request")
        elif not _same_name(fields["username"], session.local):
            self._bounce(session, source, stanza, "not-allowed")
        else:
            self._change_password(session, stanza, fields["password"])


class _RefusedError(Exception):
    def __init__(self, condition: str) -> None:
        super().__init__(condition)
        self.condition = condition


def _same_name(text: str, local: str) -> bool:
    try:
        return JID.parse(f"{text}@x").local == local
    except JidError:
        return False
