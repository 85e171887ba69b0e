"""Who is connected under which address: the routing tables of the embedded server.

Pure: a session is an address with an outbox; the shell that owns the socket empties the outboxes of
all sessions in `Tables.dirty`. A session that left must not stay in any table. Called by the routing
rules and by the connections.
"""

from __future__ import annotations

from typing import Protocol

from kestrel.xmpp.stanza import NS_CLIENT, NS_COMPONENT
from kestrel.xmpp.stream import Stanza


class Link(Protocol):
    """The connection below a session."""

    def fail(self, condition: str, text: str = "") -> None:
        """Close the stream with an error (RFC 6120 section 4.9.3)."""
        ...


_NO_ADDRESSES: set[str] = set()
"""Of all clients, which have no such sets: two empty ones each would cost them half a KiB."""


class Session:
    """One bound resource, or one component."""

    __slots__ = (
        "address",
        "available",
        "bare",
        "directed",
        "directed_count",
        "dirty",
        "interested",
        "is_component",
        "link",
        "local",
        "ns",
        "outbox",
        "presence",
        "priority",
        "resource",
        "routes",
        "sources",
        "toward",
        "watchers",
    )

    def __init__(
        self,
        tables: Tables,
        link: Link,
        local: str,
        resource: str,
        *,
        domain: str,
        is_component: bool = False,
    ) -> None:
        self.link = link
        self.local = local
        self.resource = resource
        self.bare = f"{local}@{domain}" if local else domain
        self.address = f"{self.bare}/{resource}" if resource else self.bare
        """What `from` is stamped with; of a component, its domain."""
        self.is_component = is_component
        self.ns = NS_COMPONENT if is_component else NS_CLIENT
        self.outbox: list[bytes] = []
        self.dirty = tables.dirty
        self.available = False
        """Whether it has broadcast presence."""
        self.priority = 0
        self.presence: Stanza | None = None
        """Its last broadcast presence while available."""
        self.interested = False
        """Whether it asked for the roster and gets its changes (RFC 6121 section 2.1.6)."""
        self.directed: dict[str, dict[str, None]] = {}
        """Its own address (a component has many) → whom it sent directed presence to, in order."""
        self.directed_count = 0
        self.watchers: dict[tuple[Session, str], None] = {}
        """Who has sent directed presence to exactly this session, and from which address."""
        self.toward: Session | None = None
        """The component it sent to last: if that is congested, this one waits."""
        self.routes: set[str] = set() if is_component else _NO_ADDRESSES
        """Addresses of a component that `Tables.quick` knows."""
        self.sources: set[str] = set() if is_component else _NO_ADDRESSES
        """Addresses of a component that it may use as `from`, as looked up before."""

    def send(self, data: bytes) -> None:
        """Put one stanza into the outbox."""
        if not self.outbox:
            self.dirty.append(self)
        self.outbox.append(data)


class Tables:
    """All sessions, by every address under which a stanza can reach them."""

    def __init__(self, domain: str, components: frozenset[str], route_cache_max: int) -> None:
        self.domain = domain
        self.component_domains = components
        """Domains of components that may connect."""
        self.quick: dict[str, Session] = {}
        """Prepared address → the only session that it can mean: full JIDs, and components' addresses."""
        self.accounts: dict[str, dict[str, Session]] = {}
        """Local part → resource → session."""
        self.components: dict[str, Session] = {}
        self.dirty: list[Session] = []
        """Sessions with something in their outbox."""
        self._route_cache_max = route_cache_max
        self._cached = 0

    def add(self, session: Session) -> None:
        """A session begins; its address must be free."""
        assert session.address not in self.quick
        self.quick[session.address] = session
        if session.is_component:
            self.components[session.address] = session
        else:
            self.accounts.setdefault(session.local, {})[session.resource] = session

    def discard(self, session: Session) -> bool:
        """A session ends; False if it had ended before."""
        if self.quick.get(session.address) is not session:
            return False
        del self.quick[session.address]
        for address in session.routes:
            del self.quick[address]
        self._cached -= len(session.routes)
        session.routes = _NO_ADDRESSES
        if session.is_component:
            del self.components[session.address]
        else:
            resources = self.accounts[session.local]
            del resources[session.resource]
            if not resources:
                del self.accounts[session.local]
        return True

    def remember(self, address: str, component: Session) -> None:
        """Find this address of a component at once the next time; bounded, the oldest are forgotten."""
        if self._cached >= self._route_cache_max:
            for other in self.components.values():
                for known in other.routes:
                    del self.quick[known]
                other.routes = set()
            self._cached = 0
        if address not in self.quick:
            self.quick[address] = component
            component.routes.add(address)
            self._cached += 1

    def full(self, local: str, resource: str) -> Session | None:
        """The session of a full JID in our own domain."""
        resources = self.accounts.get(local)
        return resources.get(resource) if resources else None

    def available(self, local: str) -> list[Session]:
        """Sessions of an account that have broadcast presence."""
        resources = self.accounts.get(local)
        return [session for session in resources.values() if session.available] if resources else []

    @property
    def empty(self) -> bool:
        """True if nobody is connected and nothing is left over."""
        return not (self.quick or self.accounts or self.components or self.dirty or self._cached)
