"""How fast the embedded server relays, and what an idle client costs, beside Prosody in the same run.

Run: python benchmarks/relay.py [--rounds N] [--messages N] [--idle N] [--ways] [--uvloop] [--no-prosody]

One client sends messages with bodies of 300 bytes to one component, over plain loopback; with `--ways`
also through a WebSocket, and idle clients also in TLS and in a WebSocket in TLS. Both ends are
the same for all servers: they send ready bytes and count `</message>` in what arrives, in a process of
their own, so that the server is what is measured. Each server is a process of its own; rounds alternate.
Memory is the growth of the server's resident set with N clients that have logged in and are silent.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import hmac
import os
import re
import secrets
import shutil
import signal
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from base64 import b64decode, b64encode
from collections.abc import Iterator
from pathlib import Path

DOMAIN = "localhost"
COMPONENT = "mgr.localhost"
SECRET = "secret"
PASSWORD = "secret-alice"
BODY = "x" * 300
IN_FLIGHT_BYTES = 4 * 1024 * 1024
READY_S_MAX = 30.0
SETTLE_S = 8.0
"""Idle clients are left alone for so long before memory is read: quiet parsers are freed meanwhile."""

PROSODY = """
daemonize = false
data_path = "{data}"
pidfile = "{data}/prosody.pid"
interfaces = {{ "127.0.0.1" }}
component_interfaces = {{ "127.0.0.1" }}
c2s_ports = {{ {port} }}
c2s_direct_tls_ports = {{}}
component_ports = {{ {component_port} }}
http_ports = {{}}
https_ports = {{}}
s2s_ports = {{}}
modules_enabled = {{ "roster", "saslauth", "disco", "ping", "posix" }}
modules_disabled = {{ "offline", "s2s", "tls" }}
c2s_require_encryption = false
authentication = "internal_plain"
network_backend = "epoll"
network_settings = {{
  read_size = 65536; min_wait = 0.00001; tcp_backlog = 1024; read_timeout = 10; nagle = false;
}}
gc = {{ mode = "incremental"; threshold = 200; speed = 200 }}
log = {{ {{ levels = {{ min = "error" }}, to = "file", filename = "{data}/prosody.log" }} }}
VirtualHost "localhost"
Component "mgr.localhost"
  component_secret = "secret"
"""


# --------------------------------------------------------------------------------------------------
# Servers


class Server:
    """A running server: name, ports, process id."""

    def __init__(self, name: str, port: int, component_port: int, pid: int) -> None:
        self.name = name
        self.port = port
        self.component_port = component_port
        self.pid = pid

    def cpu_s(self) -> float:
        """Seconds of processor time that it has used so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_kib(self) -> int:
        text = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", text)[1])  # type: ignore[index]


def serve(*, with_uvloop: bool) -> None:
    """The embedded server, until standard input closes; prints its ports."""
    from kestrel.server.accounts import Accounts
    from kestrel.server.certificate import ensure_certificate
    from kestrel.server.service import EmbeddedServer, ServerSettings

    async def main() -> None:
        accounts = Accounts(":memory:")
        accounts.add("alice", PASSWORD, "user")
        with tempfile.TemporaryDirectory(prefix="kestrel-relay-") as directory:
            certificate = ensure_certificate(Path(directory), DOMAIN)
            settings = ServerSettings(
                DOMAIN, components={COMPONENT: SECRET}, tls_certificate=certificate, tls_required=False
            )
            server = EmbeddedServer(settings, accounts)
            await server.start()
        print(server.c2s_port, server.component_port, flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        await server.stop()

    if with_uvloop:
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())
    else:
        asyncio.run(main())


@contextlib.contextmanager
def embedded(name: str, *options: str) -> Iterator[Server]:
    words = [sys.executable, __file__, "--serve", *options]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        port, component_port = map(int, process.stdout.readline().split())
        yield Server(name, port, component_port, process.pid)
    finally:
        process.stdin.close()
        process.wait(READY_S_MAX)


@contextlib.contextmanager
def prosody() -> Iterator[Server]:
    directory = Path(tempfile.mkdtemp(prefix="kestrel-relay-"))
    port, component_port = free_port(), free_port()
    accounts = directory / DOMAIN / "accounts"
    accounts.mkdir(parents=True)
    (accounts / "alice.dat").write_text(f'return {{ ["password"] = "{PASSWORD}"; }};\n')
    config = directory / "prosody.cfg.lua"
    config.write_text(PROSODY.format(data=directory, port=port, component_port=component_port))
    user, group = (None, None)
    if os.geteuid() == 0:
        user, group = "nobody", "nogroup"
        for path in (directory, *directory.rglob("*")):
            shutil.chown(path, user, group)
    words = ["prosody", "-F", "--config", str(config)]
    process = subprocess.Popen(
        words, user=user, group=group, cwd=directory, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    try:
        for each in (port, component_port):
            wait_for(each)
        yield Server("Prosody", port, component_port, process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(READY_S_MAX)
        shutil.rmtree(directory, ignore_errors=True)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def wait_for(port: int) -> None:
    deadline = time.monotonic() + READY_S_MAX
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


# --------------------------------------------------------------------------------------------------
# The two ends


def read_until(sock: socket.socket, *marks: bytes) -> bytes:
    data = b""
    while not any(mark in data for mark in marks):
        chunk = sock.recv(65536)
        if not chunk:
            raise ConnectionError(f"the server closed the connection after {data[-300:]!r}")
        data += chunk
    return data


def header(ns: str, to: str) -> bytes:
    return (
        f"<?xml version='1.0'?><stream:stream xmlns='{ns}' to='{to}' version='1.0' "
        "xmlns:stream='http://etherx.jabber.org/streams'>"
    ).encode()


def framed(message: bytes) -> bytes:
    """A text message of a WebSocket client (RFC 6455), whose mask changes nothing."""
    size = len(message)
    length = bytes((0x80 | size,)) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
    return b"\x81" + length + bytes(4) + message


def plain(message: bytes) -> bytes:
    return message


def dial(port: int, way: str) -> socket.socket:
    """A connection, in TLS and with an open WebSocket if the way says so."""
    sock = socket.create_connection(("127.0.0.1", port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if way in ("tls", "wss"):
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        sock = context.wrap_socket(sock)
    if way in ("ws", "wss"):
        sock.sendall(
            f"GET /xmpp-websocket HTTP/1.1\r\nHost: {DOMAIN}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Protocol: xmpp\r\n\r\n".encode()
        )
        read_until(sock, b"\r\n\r\n")
    return sock


def log_in(port: int, resource: str, way: str = "tcp") -> socket.socket:
    """A bound client, by SCRAM-SHA-1 (Prosody offers no SHA-256 with plain passwords in its store)."""
    sock = dial(port, way)
    frame, opening = plain, header("jabber:client", DOMAIN)
    if way in ("ws", "wss"):
        frame = framed
        opening = f"<open xmlns='urn:ietf:params:xml:ns:xmpp-framing' to='{DOMAIN}' version='1.0'/>".encode()
    sock.sendall(frame(opening))
    read_until(sock, b"</stream:features>")
    bare = f"n=alice,r={secrets.token_hex(8)}"
    sasl = "urn:ietf:params:xml:ns:xmpp-sasl"
    first = b64encode(b"n,," + bare.encode()).decode()
    sock.sendall(frame(f"<auth xmlns='{sasl}' mechanism='SCRAM-SHA-1'>{first}</auth>".encode()))
    answer = read_until(sock, b"</challenge>", b"</failure>")
    challenge = b64decode(re.search(rb">([^<]+)</challenge>", answer)[1]).decode()  # type: ignore[index]
    fields = dict(part.split("=", 1) for part in challenge.split(","))
    salt, iterations = b64decode(fields["s"]), int(fields["i"])
    salted = hashlib.pbkdf2_hmac("sha1", PASSWORD.encode(), salt, iterations)
    key = hmac.digest(salted, b"Client Key", "sha1")
    without_proof = f"c=biws,r={fields['r']}"
    message = ",".join((bare, challenge, without_proof)).encode()
    signature = hmac.digest(hashlib.sha1(key).digest(), message, "sha1")
    proof = b64encode(bytes(a ^ b for a, b in zip(key, signature, strict=True))).decode()
    final = b64encode(f"{without_proof},p={proof}".encode()).decode()
    sock.sendall(frame(f"<response xmlns='{sasl}'>{final}</response>".encode()))
    read_until(sock, b"<success")
    sock.sendall(frame(opening))
    read_until(sock, b"</stream:features>")
    bind = (
        "<iq xmlns='jabber:client' type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'>"
        f"<resource>{resource}</resource></bind></iq>"
    )
    sock.sendall(frame(bind.encode()))
    read_until(sock, b"</iq>")
    return sock


def join_component(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024 * 1024)
    sock.sendall(header("jabber:component:accept", COMPONENT))
    found = re.search(rb"""\sid=['"]([^'"]+)""", read_until(sock, b"<stream:stream"))
    proof = hashlib.sha1(found[1] + SECRET.encode()).hexdigest()  # type: ignore[index]
    sock.sendall(f"<handshake>{proof}</handshake>".encode())
    read_until(sock, b"<handshake")
    return sock


def relay_rate(server: Server, messages: int, way: str) -> float:
    """Messages per second from one client to the component, at most `IN_FLIGHT_BYTES` under way."""
    component = join_component(server.component_port)
    client = log_in(server.port, "bench", way)
    one = f"<message to='{COMPONENT}' type='chat' id='1'><body>{BODY}</body></message>".encode()
    if way == "ws":
        one = framed(one.replace(b"<message", b"<message xmlns='jabber:client'"))
    batch = 100
    block = one * batch
    ahead_max = max(batch, IN_FLIGHT_BYTES // len(one))
    client.setblocking(False)
    component.setblocking(False)
    try:
        return messages / asyncio.run(_pump(client, component, block, batch, messages, ahead_max))
    finally:
        client.close()
        component.close()


async def _pump(
    client: socket.socket, component: socket.socket, block: bytes, batch: int, messages: int, ahead_max: int
) -> float:
    loop = asyncio.get_running_loop()
    received = 0
    progress = asyncio.Event()

    async def send() -> None:
        sent = 0
        while sent < messages:
            while sent - received >= ahead_max:
                progress.clear()
                await progress.wait()
            await loop.sock_sendall(client, block)
            sent += batch

    began = time.perf_counter()
    sender = asyncio.create_task(send())
    tail = b""
    while received < messages:
        data = await loop.sock_recv(component, 1024 * 1024)
        if not data:
            raise ConnectionError("the server closed the component's connection")
        received += (tail[-9:] + data).count(b"</message>")
        tail = data if len(data) >= 9 else (tail + data)[-9:]
        progress.set()
    seconds = time.perf_counter() - began
    await sender
    return seconds


def idle_kib(server: Server, clients: int, way: str) -> float:
    """Resident KiB that one more logged-in, silent client costs."""
    first = [log_in(server.port, f"warm{n}", way) for n in range(20)]
    before = server.resident_kib()
    sockets = [log_in(server.port, f"idle{n}", way) for n in range(clients)]
    time.sleep(SETTLE_S)
    after = server.resident_kib()
    for sock in (*first, *sockets):
        sock.close()
    return (after - before) / clients


# --------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--messages", type=int, default=200_000, help="per round; Prosody gets a quarter")
    parser.add_argument("--idle", type=int, default=2_000)
    parser.add_argument("--ways", action="store_true", help="also measure WebSocket, TLS, and both together")
    parser.add_argument("--uvloop", action="store_true", help="also measure the embedded server on uvloop")
    parser.add_argument("--no-prosody", action="store_true")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--on-uvloop", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(with_uvloop=options.on_uvloop)
        return
    with contextlib.ExitStack() as stack:
        servers = [(stack.enter_context(embedded("embedded, asyncio")), options.messages)]
        if options.uvloop:
            servers.append(
                (stack.enter_context(embedded("embedded, uvloop", "--on-uvloop")), options.messages)
            )
        if not options.no_prosody:
            servers.append((stack.enter_context(prosody()), options.messages // 4))
        runs = [(server.name, "tcp", server, messages) for server, messages in servers]
        if options.ways:
            runs.append(("embedded, WebSocket", "ws", servers[0][0], options.messages // 4))
        rates: dict[str, list[float]] = {name: [] for name, *_ in runs}
        per_cpu_s: dict[str, list[float]] = {name: [] for name, *_ in runs}
        for number in range(options.rounds):
            for name, way, server, messages in runs:
                used = server.cpu_s()
                rate = relay_rate(server, messages, way)
                rates[name].append(rate)
                per_cpu_s[name].append(messages / (server.cpu_s() - used))
                print(f"round {number + 1}: {name}: {rate:,.0f} messages/s", flush=True)
        medians = {name: statistics.median(values) for name, values in rates.items()}
        for name, median in medians.items():
            work = statistics.median(per_cpu_s[name])
            print(f"{name}: median {median:,.0f} messages/s, {work:,.0f} per second of processor time")
        if "Prosody" in medians:
            for name, median in medians.items():
                if name != "Prosody":
                    print(f"{name} / Prosody: {median / medians['Prosody']:.2f}")
        if options.idle:
            raise_file_limit(options.idle + 100)
            kinds: list[tuple[str, tuple[str, ...]]] = [("embedded, asyncio", ())]
            if options.uvloop:
                kinds.append(("embedded, uvloop", ("--on-uvloop",)))
            for name, words in kinds:
                for way in ("tcp", "ws", "tls", "wss") if options.ways else ("tcp",):
                    fresh = stack.enter_context(embedded(name, *words))
                    print(f"{name}, {way}: {idle_kib(fresh, options.idle, way):.1f} KiB per idle client")


def raise_file_limit(needed: int) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(needed, hard), hard))


if __name__ == "__main__":
    main()
