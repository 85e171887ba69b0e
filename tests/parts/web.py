"""A WebSocket client that is not ours (`websockets`), saying by hand what RFC 7395 wants said."""

import asyncio
import re
from contextlib import suppress
from xml.etree import ElementTree

import websockets
from websockets.asyncio.client import connect

from kestrel.config import WEBSOCKET_PATH
from kestrel.xmpp.sasl import SaslClient
from parts.server import DOMAIN, PASSWORDS, PATIENCE_S

NS_FRAMING = "urn:ietf:params:xml:ns:xmpp-framing"
OPEN = f"<open xmlns='{NS_FRAMING}' to='{DOMAIN}' version='1.0'/>"
CLOSE = f"<close xmlns='{NS_FRAMING}'/>"
SASL = "urn:ietf:params:xml:ns:xmpp-sasl"


class Web:
    """An open WebSocket. Each message must mean something by itself, or it is not taken."""

    def __init__(self, socket):
        self.socket = socket
        self.address = ""

    @classmethod
    async def connect(cls, port, *, context=None, path=WEBSOCKET_PATH, protocols=("xmpp",), **more):
        scheme = "wss" if context else "ws"
        more |= {"ssl": context, "server_hostname": DOMAIN} if context else {}
        return cls(
            await connect(
                f"{scheme}://127.0.0.1:{port}{path}",
                subprotocols=list(protocols),
                proxy=None,
                open_timeout=PATIENCE_S,
                **more,
            )
        )

    @classmethod
    async def open(cls, port, **more):
        web = await cls.connect(port, **more)
        await web.open_stream()
        return web

    @classmethod
    async def login(cls, port, name, resource="r", **more):
        """A bound client."""
        web = await cls.open(port, **more)
        await web.authenticate(name)
        await web.send(
            "<iq xmlns='jabber:client' type='set' id='bind'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'>"
            f"<resource>{resource}</resource></bind></iq>"
        )
        web.address = re.search("<jid>(.*)</jid>", await web.next("iq"))[1]
        return web

    async def open_stream(self):
        """`<open/>` there and back, and the features, which are the answer."""
        await self.send(OPEN)
        answer = ElementTree.fromstring(await self.next("open", NS_FRAMING))
        assert answer.get("from") == DOMAIN
        assert answer.get("id")
        return await self.next("features", "http://etherx.jabber.org/streams")

    async def authenticate(self, name):
        exchange = SaslClient(["SCRAM-SHA-256"], name, PASSWORDS[name], encrypted=True)
        await self.send(f"<auth xmlns='{SASL}' mechanism='SCRAM-SHA-256'>{exchange.first}</auth>")
        challenge = ElementTree.fromstring(await self.next("challenge", SASL)).text
        await self.send(f"<response xmlns='{SASL}'>{exchange.on_challenge(challenge)}</response>")
        exchange.on_success(ElementTree.fromstring(await self.next("success", SASL)).text)
        return await self.open_stream()

    async def send(self, text):
        await self.socket.send(text)

    async def next(self, name, ns="jabber:client"):
        """The next message, which must be this element, with all its namespaces declared."""
        async with asyncio.timeout(PATIENCE_S):
            message = await self.socket.recv(decode=True)
        assert ElementTree.fromstring(message).tag == f"{{{ns}}}{name}", message
        return message

    async def sync(self):
        """A round trip."""
        await self.send("<iq xmlns='jabber:client' type='get' id='sync'><ping xmlns='urn:xmpp:ping'/></iq>")
        assert "id='sync'" in await self.next("iq")

    async def to_the_end(self):
        """All messages until the server closes the WebSocket, and its code for that."""
        messages = []
        async with asyncio.timeout(PATIENCE_S):
            with suppress(websockets.ConnectionClosed):
                while True:
                    messages.append(await self.socket.recv())
        for message in messages:
            ElementTree.fromstring(message)
        await self.socket.wait_closed()
        return "".join(messages), self.socket.close_code

    async def close(self):
        """End the stream in order."""
        await self.send(CLOSE)
        said, code = await self.to_the_end()
        assert said == CLOSE.replace('"', "'")
        assert code == 1000

    def abort(self):
        self.socket.transport.abort()
