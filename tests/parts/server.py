"""The embedded server for a test, and a client and component that say exactly what a test wants said."""

import asyncio
import hashlib
import re
from contextlib import asynccontextmanager, suppress

from kestrel.server.accounts import Accounts
from kestrel.server.service import EmbeddedServer, ServerLimits, ServerSettings
from kestrel.xmpp.sasl import SaslClient

DOMAIN = "x.localhost"
MANAGER = "manager.x.localhost"
SECRET = "component-secret"
PATIENCE_S = 30
PASSWORDS = {"alice": "pw-alice", "bob": "pw-bob", "mallory": "pw-mallory"}
QUICK = {"login_failure_delay_s": 0.0, "tick_s": 0.02}


@asynccontextmanager
async def serving(*, check_empty=True, limits=None, accounts=None, **settings):
    """A running server; at the end nobody may be left in its tables, and no task may have failed."""
    problems = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: problems.append(context))
    accounts = accounts or Accounts(":memory:")
    for name, password in PASSWORDS.items():
        accounts.put(name, password, "user")
    bounds = ServerLimits(**(QUICK | (limits or {})))
    server = EmbeddedServer(
        ServerSettings(DOMAIN, components={MANAGER: SECRET}, limits=bounds, **settings), accounts
    )
    await server.start()
    hub = server.hub
    try:
        yield server
        if check_empty:
            async with asyncio.timeout(PATIENCE_S):
                await hub.vacant.wait()
                hub.flush()
            assert hub.empty
    finally:
        while _open:
            _open.pop().writer.transport.abort()
        await server.stop()
        accounts.close()
    assert hub.empty
    assert not hub.tasks
    assert problems == []


_open = []
"""Sockets of the scene that is being played; what it leaves open is reset at its end."""


def forget_sockets():
    """The loop of the scene has ended, and all its sockets with it."""
    _open.clear()


class Raw:
    """A socket and what has come out of it."""

    def __init__(self, reader, writer):
        self.reader = reader
        self.writer = writer
        self.seen = ""
        self.address = ""

    @classmethod
    async def connect(cls, port, *, context=None):
        """A socket; with a context for TLS, that comes first."""
        name = DOMAIN if context else None
        raw = cls(
            *await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name, limit=2**22)
        )
        _open.append(raw)
        return raw

    @classmethod
    async def open(cls, port, to=DOMAIN, **more):
        """With the stream open and its features seen."""
        raw = await cls.connect(port, **more)
        raw.send(header(to))
        await raw.until("</stream:features>")
        return raw

    @classmethod
    async def login(cls, port, name, resource="r", password=None, **more):
        """A bound client."""
        raw = await cls.open(port, **more)
        await raw.authenticate(name, password or PASSWORDS[name])
        raw.send(
            "<iq type='set' id='bind'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'>"
            f"<resource>{resource}</resource></bind></iq>"
        )
        raw.address = re.search("<jid>(.*)</jid>", await raw.until("</iq>"))[1]
        return raw

    @classmethod
    async def component(cls, port, domain=MANAGER, secret=SECRET):
        raw = await cls.connect(port)
        raw.send(header(domain, "jabber:component:accept"))
        number = re.search(" id='([^']+)'", await raw.until("<stream:stream[^>]*>"))[1]
        proof = hashlib.sha1((number + secret).encode()).hexdigest()
        raw.send(f"<handshake>{proof}</handshake>")
        await raw.until("<handshake/>")
        raw.address = domain
        return raw

    async def authenticate(self, name, password, mechanism="SCRAM-SHA-256"):
        exchange = SaslClient([mechanism], name, password, encrypted=True)
        ns = "xmlns='urn:ietf:params:xml:ns:xmpp-sasl'"
        self.send(f"<auth {ns} mechanism='{mechanism}'>{exchange.first}</auth>")
        while True:
            answer = await self.until("</challenge>|</success>|</failure>")
            assert "<failure" not in answer, answer
            text = re.search(">([^<]*)</", answer)[1]
            if "<success" in answer:
                exchange.on_success(text)
                break
            self.send(f"<response {ns}>{exchange.on_challenge(text)}</response>")
        self.send(header(DOMAIN))
        await self.until("</stream:features>")

    def send(self, data):
        self.writer.write(data if isinstance(data, bytes) else data.encode())

    async def until(self, pattern):
        """Everything up to and with the next match; the rest stays for the next call."""
        async with asyncio.timeout(PATIENCE_S):
            while not (found := re.search(pattern, self.seen, re.DOTALL)):
                data = await self.reader.read(65536)
                if not data:
                    self.writer.close()
                assert data, f"closed while waiting for {pattern!r}; there was {self.seen[-500:]!r}"
                self.seen += data.decode()
        part, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return part

    async def to_the_end(self):
        """Everything until the server closes the connection."""
        async with asyncio.timeout(PATIENCE_S):
            with suppress(ConnectionError):
                while data := await self.reader.read(65536):
                    self.seen += data.decode("utf-8", "replace")
        seen, self.seen = self.seen, ""
        self.writer.close()
        return seen

    async def sync(self):
        """A round trip: all that was sent before has been routed, all that was meant for us has come."""
        self.send("<iq type='get' id='sync'><ping xmlns='urn:xmpp:ping'/></iq>")
        return await self.until("<iq[^>]* id='sync'[^>]*>.*?</iq>")

    async def component_sync(self):
        self.send(
            f"<iq type='get' id='sync' to='{DOMAIN}' from='{self.address}'><ping xmlns='urn:xmpp:ping'/></iq>"
        )
        return await self.until("<iq[^>]* id='sync'[^>]*>.*?</iq>")

    async def close(self):
        """End the stream in order."""
        self.send("</stream:stream>")
        await self.until("</stream:stream>")
        self.writer.close()
        with suppress(ConnectionError):
            await self.writer.wait_closed()

    def abort(self):
        """Reset the connection."""
        self.writer.transport.abort()


def header(to=DOMAIN, ns="jabber:client"):
    return (
        f"<?xml version='1.0'?><stream:stream xmlns='{ns}' to='{to}' version='1.0' "
        "xmlns:stream='http://etherx.jabber.org/streams'>"
    )
