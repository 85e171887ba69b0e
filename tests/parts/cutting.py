"""A TCP proxy that cuts a connection at a chosen instant, as a broken network does."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress


class CuttingProxy:
    """`with CuttingProxy(port) as proxy: …` forwards to `port` on loopback.

    `cut_at(words, answered)`: the next connection that sends these bytes is closed: `answered` false: before
    the server gets them; true: when the server has answered them, and before the answer gets through.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._words: bytes | None = None
        self._answered = False
        self.cut = threading.Event()

    def cut_at(self, words: bytes, *, answered: bool) -> None:
        with self._lock:
            self._words, self._answered = words, answered
            self.cut.clear()

    def __enter__(self) -> CuttingProxy:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        with self._lock:
            sockets = list(self._sockets)
        for one in sockets:
            _close(one)
        for thread in self._threads:
            thread.join()

    def _start(self, target: object, *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._target))
            with self._lock:
                self._sockets += [client, server]
            drop = threading.Event()
            self._start(self._upwards, client, server, drop)
            self._start(self._downwards, client, server, drop)

    def _upwards(self, client: socket.socket, server: socket.socket, drop: threading.Event) -> None:
        with suppress(OSError):
            while data := client.recv(65536):
                with self._lock:
                    now = self._words is not None and self._words in data
                    if now:
                        self._words = None
                if now and not self._answered:
                    break
                if now:
                    drop.set()
                server.sendall(data)
        _close(client, server)
        if not drop.is_set():
            self.cut.set()

    def _downwards(self, client: socket.socket, server: socket.socket, drop: threading.Event) -> None:
        with suppress(OSError):
            while data := server.recv(65536):
                if drop.is_set():
                    break
                client.sendall(data)
        _close(client, server)
        self.cut.set()


def _close(*sockets: socket.socket) -> None:
    for one in sockets:
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()
