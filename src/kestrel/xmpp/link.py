"""The production maker of `ports.Transport`: stanzas in, the manager's and worker's events out.

It sits on a client or a component, whichever is attached, and answers what every XMPP entity must
answer by itself: pings, service discovery, versions, subscription requests. It never answers an error
with anything (that is how loops start) and keeps nothing but its address.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from kestrel import __version__
from kestrel.core.addresses import parts_of
from kestrel.ports import RoleEvents, Show, TransportEvents
from kestrel.xmpp import stanza as x
from kestrel.xmpp.jid import bare
from kestrel.xmpp.stream import Stanza

log = logging.getLogger("kestrel.xmpp")

UNREACHABLE = frozenset(
    (
        "gone",
        "item-not-found",
        "recipient-unavailable",
        "remote-server-not-found",
        "remote-server-timeout",
        "service-unavailable",
    )
)
"""Stanza errors that say that nobody is there (RFC 6120 section 8.3.3)."""

FEATURES = tuple(sorted((x.NS_DISCO_INFO, x.NS_DISCO_ITEMS, x.NS_JSON, x.NS_PING, x.NS_VERSION)))
SOFTWARE = "Kestrel"
CONVERSATIONS_MAX = 10_000
"""People of whom it is remembered to which of our addresses they wrote."""

ROLES = frozenset(("worker", "user", "admin", "none"))
ROLE_BYTES_MAX = 8_192
"""A telling of a role is no longer: an address takes 3 kB at most."""

_SHOWS = {show.value: show for show in Show}


class XmppStream(Protocol):
    """What a link needs below it: `XmppClient` and `XmppComponent` are such."""

    last_problem: str

    async def run(self) -> None: ...

    async def wait_connected(self) -> None: ...

    async def close(self) -> None: ...

    def send(self, stanza: bytes) -> None: ...


class XmppLink:
    """`ports.Transport` over XMPP. `deliver_to` and `attach` come first; then the stream is run."""

    def __init__(self) -> None:
        self._events: TransportEvents | None = None
        self._stream: XmppStream | None = None
        self._from = ""
        self._pings = 0
        self._addressed: dict[str, str] = {}
        self.address = ""
        """Our full address while connected; empty otherwise."""
        self.mute: Callable[[], bool] = lambda: False
        """Whether pings stay unanswered now: we must not pass for alive, another may act in our place."""
        self.admits: Callable[[str], bool] = lambda _peer: True
        """Whether this one may see our presence when it asks for it; whom it is refused hears nothing."""
        self._roles: RoleEvents | None = None
        self._handlers: dict[str, Callable[[Stanza], None]] = {}
        for ns in (x.NS_CLIENT, x.NS_COMPONENT):
            self._handlers[f"{ns} message"] = self._on_message
            self._handlers[f"{ns} presence"] = self._on_presence
            self._handlers[f"{ns} iq"] = self._on_iq

    def deliver_to(self, events: TransportEvents) -> None:
        """Who is told what happens."""
        self._events = events

    def tell_roles(self, events: RoleEvents) -> None:
        """Who is told which roles a server gives its accounts; without it such tellings are ignored."""
        self._roles = events

    def attach(self, stream: XmppStream) -> None:
        """What carries it; made with this link as its handler."""
        self._stream = stream

    # ----------------------------------------------------------------------------------------------
    # ports.Transport

    def send(self, to: str, payload: bytes, *, chat: bool = False) -> None:
        """A JSON text: in a container, or (`chat`) in a body for a person."""
        if chat:
            self.say(to, payload.decode("utf-8", "replace"))
        else:
            self._send(x.message_json(to, payload, from_=self._from))

    def say(self, to: str, text: str) -> None:
        """Plain words for a person, from the address that this person wrote to."""
        from_ = self._addressed.get(bare(to), self._from)
        self._send(x.message_body(to, text, from_=from_))

    def announce(self, to: str, show: Show, status: str) -> None:
        """Directed presence (RFC 6121 section 4.6)."""
        self._send(x.presence(to, show=show.value, status=status, from_=self._from))

    def withdraw(self, to: str) -> None:
        """Directed unavailable presence."""
        self._send(x.presence(to, type="unavailable", from_=self._from))

    def ping(self, to: str) -> None:
        """XEP-0199."""
        self._pings += 1
        payload = f"<ping xmlns='{x.NS_PING}'/>"
        self._send(x.iq("get", f"ping-{self._pings}", to=to, from_=self._from, payload=payload))

    def _send(self, stanza: bytes) -> None:
        if self._stream is not None:
            self._stream.send(stanza)

    # ----------------------------------------------------------------------------------------------
    # session.Handler

    def on_connected(self, address: str) -> None:
        self.address = address
        # A component has no server that stamps its stanzas; an account must not stamp them itself.
        self._from = "" if "@" in address else address
        if self._events is not None:
            self._events.on_up(address)

    def on_disconnected(self, reason: str) -> None:
        self.address = ""
        if self._events is not None:
            self._events.on_down(reason)

    def on_stanza(self, stanza: Stanza) -> None:
        handler = self._handlers.get(stanza.tag)
        if handler is not None:
            handler(stanza)

    # ----------------------------------------------------------------------------------------------
    # stanzas

    def _sender(self, stanza: Stanza) -> str:
        # Without `from` it is our own account that speaks (RFC 6120 section 8.1.2.1).
        return stanza.attrs.get("from") or bare(self.address)

    def _on_message(self, stanza: Stanza) -> None:
        events = self._events
        kind = stanza.attrs.get("type")
        if events is None or kind == "groupchat":
            return
        sender = self._sender(stanza)
        if kind == "error":
            self._on_bounce(sender, stanza)
            return
        payload = stanza.json()
        if payload is not None:
            events.on_message(sender, payload, False)
            return
        body = stanza.body()
        if body:
            self._note_addressed(sender, stanza.attrs.get("to", ""))
            events.on_message(sender, body.encode("utf-8"), True)
        elif kind == "headline" and stanza.has_child(x.NS_ROLE, "role"):
            self._on_role(sender, stanza)

    def _on_role(self, sender: str, stanza: Stanza) -> None:
        """A server tells the role of one of its accounts: `<role xmlns='…' jid='ann@pool.org'>user</role>`.

        Only the server that is believed may, as itself: an account that sends the same has an `@` in its
        address, which the server stamps.
        """
        roles = self._roles
        authority = "" if roles is None else roles.role_authority
        if roles is None or not authority or sender != authority or len(stanza.raw) > ROLE_BYTES_MAX:
            log.debug("xmpp.role_ignored", extra={"sender": sender, "believed": authority})
            return
        element = stanza.tree().find(f"{{{x.NS_ROLE}}}role")
        jid = "" if element is None else element.get("jid", "")
        role = "" if element is None else (element.text or "").strip()
        user, domain, resource = parts_of(jid)
        if not user or domain != authority or resource or role not in ROLES:
            log.warning("xmpp.role_ignored", extra={"sender": sender, "jid": jid[:200], "role": role[:20]})
            return
        roles.on_role(jid, role)

    def _note_addressed(self, sender: str, to: str) -> None:
        """A component has many addresses (pool@, jobs@ …): a conversation keeps the one it began with."""
        if not self._from or to == self._from:
            return
        self._addressed.pop(bare(sender), None)
        self._addressed[bare(sender)] = to
        if len(self._addressed) > CONVERSATIONS_MAX:
            del self._addressed[next(iter(self._addressed))]

    def _on_bounce(self, sender: str, stanza: Stanza) -> None:
        condition = error_condition(stanza)
        if _nobody_there(condition, sender) and self._events is not None:
            self._events.on_unavailable(sender, condition)
        else:
            log.debug("xmpp.error_received", extra={"sender": sender, "condition": condition})

    def _on_presence(self, stanza: Stanza) -> None:
        events = self._events
        if events is None:
            return
        sender = self._sender(stanza)
        if sender == self.address:
            return
        match stanza.attrs.get("type"):
            case None:
                show = stanza.child_text(stanza.ns, "show") or ""
                status = stanza.child_text(stanza.ns, "status") or ""
                events.on_available(sender, _SHOWS.get(show.strip(), Show.ONLINE), status)
            case "unavailable":
                events.on_unavailable(sender, stanza.child_text(stanza.ns, "status") or "unavailable")
            case "error":
                self._on_bounce(sender, stanza)
            case "subscribe" | "probe" if not self.admits(sender):
                return
            case "subscribe":
                mine = self._mine(stanza)
                self._send(x.presence(bare(sender), type="subscribed", from_=mine))
                self._send(x.presence(bare(sender), from_=mine))
            case "probe":
                self._send(x.presence(sender, from_=self._mine(stanza)))
            case _:
                return

    def _mine(self, stanza: Stanza) -> str:
        """Which of a component's addresses was spoken to; an account's answers are stamped."""
        return (stanza.attrs.get("to") or self._from) if self._from else ""

    def _on_iq(self, stanza: Stanza) -> None:
        match stanza.attrs.get("type"):
            case "result":
                if self._events is not None:
                    self._events.on_heard(self._sender(stanza))
            case "error":
                self._on_iq_error(stanza)
            case "get":
                self._answer(stanza)
            case _:
                self._refuse(stanza, "service-unavailable")

    def _on_iq_error(self, stanza: Stanza) -> None:
        sender = self._sender(stanza)
        condition = error_condition(stanza)
        if self._events is None:
            return
        if _nobody_there(condition, sender):
            self._events.on_unavailable(sender, condition)
        elif "/" in sender:
            # It does not know pings, but it is there to say so.
            self._events.on_heard(sender)

    def _answer(self, request: Stanza) -> None:
        children = request.children
        ns, name = children[0][:2] if children else ("", "")
        match (ns, name):
            case (x.NS_PING, "ping") if self.mute():
                return
            case (x.NS_PING, "ping"):
                payload = ""
            case (x.NS_DISCO_INFO, "query"):
                payload = self._disco_info()
            case (x.NS_DISCO_ITEMS, "query"):
                payload = f"<query xmlns='{x.NS_DISCO_ITEMS}'/>"
            case (x.NS_VERSION, "query"):
                payload = (
                    f"<query xmlns='{x.NS_VERSION}'><name>{SOFTWARE}</name>"
                    f"<version>{x.escape_text(__version__)}</version></query>"
                )
            case _:
                self._refuse(request, "service-unavailable")
                return
        self._send(x.iq_result(self._reply_attrs(request), payload=payload))
        if name == "ping" and self._events is not None:
            self._events.on_heard(self._sender(request))

    def _disco_info(self) -> str:
        category, kind = ("component", "generic") if self._from else ("client", "bot")
        features = "".join(f"<feature var='{feature}'/>" for feature in FEATURES)
        identity = f"<identity category='{category}' type='{kind}' name='{SOFTWARE}'/>"
        return f"<query xmlns='{x.NS_DISCO_INFO}'>{identity}{features}</query>"

    def _refuse(self, request: Stanza, condition: str) -> None:
        self._send(x.error_reply("iq", self._reply_attrs(request), condition))

    def _reply_attrs(self, request: Stanza) -> dict[str, str]:
        attrs = dict(request.attrs)
        if not self._from:
            attrs.pop("to", None)
        return attrs


def error_condition(stanza: Stanza) -> str:
    """Name of the condition in an error stanza, or `undefined-condition`."""
    error = stanza.tree().find(f"{{{stanza.ns}}}error")
    for child in error if error is not None else ():
        ns, name = x.split_name(child.tag)
        if ns == x.NS_STANZA_ERRORS and name != "text":
            return name
    return "undefined-condition"


def _nobody_there(condition: str, sender: str) -> bool:
    """ejabberd says `forbidden` for a component that is not connected; no component of ours does."""
    return condition in UNREACHABLE or (condition == "forbidden" and not parts_of(sender)[0])
