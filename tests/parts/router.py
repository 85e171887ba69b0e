"""A router without sockets: sessions whose outboxes a test reads, all of them after each step."""

from kestrel.server.accounts import Account, Accounts
from kestrel.server.routing import Router
from kestrel.server.settings import ServerLimits
from kestrel.xmpp.stream import StreamReader

DOMAIN = "x.localhost"
MANAGER = "manager.x.localhost"
_open: list[Accounts] = []
"""Those of the world before, to be closed on the thread that made them when the next one is made."""


class Link:
    """Remembers with what it was closed."""

    def __init__(self):
        self.failed = []

    def fail(self, condition, text=""):
        self.failed.append(condition)


class World:
    """Accounts alice, bob and carol, one configured component; `said` empties and checks all outboxes."""

    def __init__(self, **limits):
        self.accounts = Accounts(":memory:")
        while _open:
            _open.pop().close()
        _open.append(self.accounts)
        for name in ("alice", "bob", "carol"):
            self.accounts.connection.execute("INSERT INTO accounts VALUES (?, 'user', 0, '')", (name,))
        self.passwords = []
        self.told = []
        """(address, message) of the roles that were told, in order."""
        self.router = Router(
            DOMAIN,
            frozenset((MANAGER, "other.x.localhost")),
            self.accounts,
            ServerLimits(**limits),
            lambda session, stanza, password: self.passwords.append((session.local, password)),
        )
        self._readers = {}

    def client(self, name, resource="r", presence=None):
        """A bound client, which has broadcast `presence` if given; what that led to is dropped."""
        account = self.accounts.account(name) or Account(name, "user", 0.0)
        session = self.router.open_client(Link(), account, resource)
        self._open(session, "jabber:client")
        if presence is not None:
            self.send(session, presence)
            self.said()
        return session

    def component(self, domain=MANAGER):
        session = self.router.open_component(Link(), domain)
        self._open(session, "jabber:component:accept")
        return session

    def _open(self, session, ns):
        reader = StreamReader(namespaces=frozenset((ns,)))
        reader.feed(f"<stream:stream xmlns='{ns}' xmlns:stream='http://etherx.jabber.org/streams'>".encode())
        self._readers[session] = reader

    def send(self, session, *stanzas):
        for text in stanzas:
            for stanza in self._readers[session].feed(text.encode()):
                if session.is_component:
                    self.router.on_component(session, stanza)
                else:
                    self.router.on_client(session, stanza)

    def said(self):
        """address → what is in its outbox; empty ones are left out, and roles are put into `told`."""
        found = {}
        for session in self.router.tables.dirty:
            for text in (data.decode() for data in session.outbox):
                if "<role xmlns='urn:kestrel:role:0'" in text:
                    self.told.append((session.address, text))
                else:
                    found.setdefault(session.address, []).append(text)
            session.outbox.clear()
        self.router.tables.dirty.clear()
        return found

    def close(self, *sessions):
        for session in sessions:
            self.router.close(session)
