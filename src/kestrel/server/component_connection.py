"""A component's connection: the handshake of XEP-0114, then stanzas from a whole domain.

There is no encryption in XEP-0114, so the port belongs on loopback. A second connection for a domain waits
while the first is asked for a sign of life: if it gives one, the second is refused; if it does not (its
process stands still, its machine is gone), it is dropped, and the second is let in at once. Made by the
service.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging

from kestrel.errors import EnvironmentProblem
from kestrel.server.connection import BUSY, Connection
from kestrel.server.hub import Hub
from kestrel.server.sessions import Session
from kestrel.xmpp import stanza as x
from kestrel.xmpp.jid import JID, JidError
from kestrel.xmpp.stream import Event, Stanza, StreamError, StreamHeader, StreamReader

log = logging.getLogger("kestrel.server")


class ComponentConnection(Connection):
    """One component, from the first byte to the last."""

    __slots__ = ("_domain", "_doubt", "_rival", "_stream_id")

    namespace = x.NS_COMPONENT
    kind = "component"

    def __init__(self, hub: Hub) -> None:
        super().__init__(hub)
        self._domain = ""
        self._stream_id = ""
        self._rival: ComponentConnection | None = None
        """The connection that waits to be let in instead."""
        self._doubt: asyncio.TimerHandle | None = None

    def _make_reader(self) -> StreamReader:
        limits = self.hub.limits
        return StreamReader(
            namespaces=frozenset((x.NS_COMPONENT,)),
            stanza_bytes_max=limits.login_stanza_bytes_max,
            depth_max=limits.depth_max,
            attributes_max=limits.attributes_max,
        )

    @property
    def outgoing_bytes_max(self) -> int:
        return self.hub.limits.component_outgoing_bytes_max

    def _on_header(self, header: StreamHeader) -> None:
        if self.opened:
            raise StreamError("bad-format", "a second stream header")
        try:
            domain = JID.parse(header.attrs.get("to", "")).domain
        except JidError:
            domain = ""
        self._stream_id = self.open_stream(domain)
        if domain not in self.hub.settings.components:
            raise StreamError("host-unknown", "no such component is configured")
        self._domain = domain

    def _on_negotiation(self, element: Stanza) -> None:
        hub = self.hub
        if (element.ns, element.name) != (x.NS_COMPONENT, "handshake"):
            raise StreamError("not-authorized", "the handshake comes first")
        secret = hub.settings.components[self._domain]
        proof = hashlib.sha1((self._stream_id + secret).encode("utf-8")).hexdigest()
        given = "".join(element.tree().itertext()).strip().lower()
        if not hmac.compare_digest(proof.encode(), given.encode("utf-8")):
            log.warning("server.component_refused", extra={**self._fields(), "component": self._domain})
            raise StreamError("not-authorized", "the secret is wrong")
        older = hub.router.tables.components.get(self._domain)
        if older is None:
            self._let_in()
        else:
            assert isinstance(older.link, ComponentConnection)
            older.link._prove_life(self)

    def _let_in(self) -> None:
        hub = self.hub
        assert self.transport is not None
        high = hub.limits.congestion_bytes
        self.transport.set_write_buffer_limits(high=high, low=high // 4)
        self.reader.stanza_bytes_max = hub.limits.component_stanza_bytes_max
        self.session = hub.router.open_component(self, self._domain)
        hub.logged_in(self)
        self.write(b"<handshake/>")
        log.info("server.component_connected", extra=self._fields())

    # ----------------------------------------------------------------------------------------------
    # two for one domain

    def _prove_life(self, rival: ComponentConnection) -> None:
        """Another connection has proved to be this component, too: is this one alive?"""
        assert self.session is not None
        if self._rival is not None and not self._rival.closed_at:
            raise StreamError("conflict", "another connection waits for this component already")
        self._forget_doubt()
        rival.pause(BUSY)
        self._rival = rival
        self._doubt = self.hub.loop.call_later(self.hub.limits.component_pong_s_max, self._take_for_dead)
        self.ping(self.session)
        self.hub.flush_soon()

    def data_received(self, data: bytes) -> None:
        if self._rival is not None:
            rival, self._rival = self._rival, None
            self._forget_doubt()
            rival.fail("conflict", "this component is connected already")
        super().data_received(data)

    def _take_for_dead(self) -> None:
        self._doubt = None
        if self._rival is not None and not self._rival.closed_at:
            log.warning("server.component_replaced", extra=self._fields())
            self.drop("silent")

    def end(self, reason: str, *, error: Exception | None = None) -> None:
        """Also lets in who waits for this one to go."""
        super().end(reason, error=error)
        self._forget_doubt()
        rival, self._rival = self._rival, None
        if rival is None or rival.closed_at or self.hub.stopping:
            return
        rival._let_in()
        rival.resume(BUSY)

    def _forget_doubt(self) -> None:
        if self._doubt is not None:
            self._doubt.cancel()
            self._doubt = None

    def _route(self, session: Session, events: list[Event]) -> int:
        on_component = self.hub.router.on_component
        for event in events:
            if self.closed_at:
                break
            if event.__class__ is not Stanza:
                self._negotiate(event)
                continue
            try:
                on_component(session, event)
            except EnvironmentProblem as problem:
                log.error("server.roster_not_kept", extra={**self._fields(), "reason": problem.text})
        return len(events)

    def tick(self, now: float) -> None:
        """Also drops a component that has taken nothing for too long while its senders wait."""
        super().tick(now)
        if (
            self.choked
            and not self.closed_at
            and now - self.choked_at > self.hub.limits.component_stall_s_max
        ):
            log.warning("server.component_stalled", extra=self._fields())
            self.drop("stalled")
