"""A wire whose stream travels in a WebSocket: the same for whoever uses it, but for `upgrade`.

Imported on the first WebSocket only. Called by `dial`.
"""

from __future__ import annotations

import asyncio

from kestrel.errors import EnvironmentProblem, KestrelError
from kestrel.xmpp.stream import StreamReader
from kestrel.xmpp.websocket import ClientHandshake, Framing
from kestrel.xmpp.wire import OUTGOING_BYTES_MAX, Wire


class WebSocketWire(Wire):
    """One connection. Nothing can be written before `upgrade` has returned."""

    def __init__(self, reader: StreamReader, *, outgoing_bytes_max: int = OUTGOING_BYTES_MAX) -> None:
        super().__init__(reader, outgoing_bytes_max=outgoing_bytes_max)
        self._stream = reader
        self._framing: Framing | None = None
        self._handshake: ClientHandshake | None = None
        self._upgraded: asyncio.Future[None] | None = None

    async def upgrade(self, host: str, path: str, s_max: float) -> None:
        """Ask for the WebSocket, once any TLS is in place. `host` as in the URL.

        Raises `PeerError` or `EnvironmentProblem` if there is none.
        """
        self._handshake = ClientHandshake(host, path)
        self._upgraded = self._loop.create_future()
        super().write(self._handshake.request)
        try:
            async with asyncio.timeout(s_max):
                await asyncio.wait({self._upgraded, self.closed}, return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            raise EnvironmentProblem(
                f"{host}{path} did not answer within {s_max:g} s.", code="unreachable", retry=True
            ) from None
        if not self._upgraded.done():
            raise self.problem or EnvironmentProblem("The server closed the connection.", retry=True)
        self._upgraded.result()

    def data_received(self, data: bytes) -> None:
        if self._framing is not None:
            super().data_received(data)
        elif self._handshake is not None and self._upgraded is not None and not self._upgraded.done():
            self._shake_hands(self._handshake, self._upgraded, data)
        # Anything else came before it was asked for, or after it was refused.

    def _shake_hands(self, handshake: ClientHandshake, upgraded: asyncio.Future[None], data: bytes) -> None:
        try:
            connection = handshake.feed(data)
        except KestrelError as problem:
            upgraded.set_exception(problem)
            return
        if connection is not None:
            self._framing = Framing(self._stream, connection, super().write)
            self._reader = self._framing
            self._handshake = None
            upgraded.set_result(None)
            super().data_received(b"")  # what came behind the answer

    def write(self, data: bytes) -> None:
        if self._framing is not None:
            super().write(self._framing.frame(data))
