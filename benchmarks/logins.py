"""How many clients the embedded server logs in per second, beside Prosody in the same run.

Run: python benchmarks/logins.py [--rounds N] [--logins N] [--at-once N] [--no-prosody]

A login is all of it: TCP connection, stream, SCRAM-SHA-256, stream, binding; with TLS also STARTTLS. Each
has a resource of its own and stays until its round is over, as after a restart of the server. The clients
are a few hundred lines of sockets in a process of their own that say what ours says, one step after the
other; they keep the salted keys of the password, as ours does. Rounds alternate between the servers.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import hashlib
import hmac
import os
import re
import secrets
import ssl
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

from realpool.embedded import EmbeddedProcess
from realpool.prosody import Prosody, prosody_program

if TYPE_CHECKING:
    from realpool.live import LiveServer

USER, PASSWORD = "alice", "secret-alice"
SASL = "urn:ietf:params:xml:ns:xmpp-sasl"
STUCK_S_MAX = 60.0
HASH = "sha256"


class Keys:
    """The salted keys of the password, made once for each salt."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], bytes] = {}

    def client_key(self, salt: str, iterations: str) -> bytes:
        key = self._known.get((salt, iterations))
        if key is None:
            salted = hashlib.pbkdf2_hmac(HASH, PASSWORD.encode(), base64.b64decode(salt), int(iterations))
            key = self._known[salt, iterations] = hmac.digest(salted, b"Client Key", HASH)
        return key


class Load:
    """Opens `count` sessions, `at_once` of them at a time, and keeps them."""

    def __init__(self, server: LiveServer, *, encrypted: bool, at_once: int, keys: Keys) -> None:
        self.server = server
        self.at_once = at_once
        self.keys = keys
        self.context: ssl.SSLContext | None = None
        if encrypted:
            # The certificate is pinned by our own clients; what checking it costs is the client's.
            self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            self.context.check_hostname = False
            self.context.verify_mode = ssl.CERT_NONE
        self.header = (
            f"<?xml version='1.0'?><stream:stream xmlns='jabber:client' to='{server.domain}' version='1.0' "
            "xmlns:stream='http://etherx.jabber.org/streams'>"
        ).encode()
        self.open: list[Client] = []

    async def run(self, count: int) -> float:
        """Seconds until all were logged in."""
        loop = asyncio.get_running_loop()
        numbers = iter(range(count))

        async def one_after_the_other() -> None:
            for number in numbers:
                client = Client(self, number)
                self.open.append(client)
                await loop.create_connection(lambda client=client: client, self.server.host, self.server.port)  # type: ignore[misc]
                await client.done

        began = time.perf_counter()
        async with asyncio.timeout(STUCK_S_MAX), asyncio.TaskGroup() as group:
            for _ in range(self.at_once):
                group.create_task(one_after_the_other())
        return time.perf_counter() - began

    async def leave(self) -> None:
        for client in self.open:
            client.gone = client.done.get_loop().create_future()
            client.transport.abort()
        await asyncio.gather(*(client.gone for client in self.open))
        self.open.clear()


class Client(asyncio.Protocol):
    """One login, step by step."""

    transport: asyncio.Transport

    def __init__(self, load: Load, number: int) -> None:
        self.load = load
        self.resource = f"r{number}"
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.gone: asyncio.Future[None] = self.done
        self.seen = b""
        self.step = self._on_first_features
        self.bare = f"n={USER},r={secrets.token_hex(12)}"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.transport.write(self.load.header)

    def data_received(self, data: bytes) -> None:
        self.seen += data
        self.step()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(exc or ConnectionError(f"the server hung up after {self.seen[-300:]!r}"))
        if not self.gone.done():
            self.gone.set_result(None)

    def _on_first_features(self) -> None:
        if b"</stream:features>" not in self.seen:
            return
        if self.load.context is not None and b"<starttls" in self.seen:
            self._next(b"<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>", self._on_proceed)
            return
        first = base64.b64encode(f"n,,{self.bare}".encode())
        self._next(
            b"<auth xmlns='%b' mechanism='SCRAM-SHA-256'>%b</auth>" % (SASL.encode(), first),
            self._on_challenge,
        )

    def _on_proceed(self) -> None:
        if b"<proceed" in self.seen:
            self.seen = b""
            self.step = self._on_first_features
            asyncio.get_running_loop().create_task(self._secure())

    async def _secure(self) -> None:
        assert self.load.context is not None
        try:
            transport = await asyncio.get_running_loop().start_tls(self.transport, self, self.load.context)
        except (OSError, EOFError) as problem:
            self.done.set_exception(problem)
            return
        assert transport is not None
        self.transport = transport
        transport.write(self.load.header)

    def _on_challenge(self) -> None:
        if b"</failure>" in self.seen:
            raise ConnectionError(f"the login was refused: {self.seen!r}")
        found = re.search(rb">([^<]+)</challenge>", self.seen)
        if found is None:
            return
        challenge = base64.b64decode(found[1]).decode()
        fields = dict(part.split("=", 1) for part in challenge.split(","))
        key = self.load.keys.client_key(fields["s"], fields["i"])
        without_proof = f"c=biws,r={fields['r']}"
        message = ",".join((self.bare, challenge, without_proof)).encode()
        signature = hmac.digest(hashlib.sha256(key).digest(), message, HASH)
        proof = int.from_bytes(key, "big") ^ int.from_bytes(signature, "big")
        shown = base64.b64encode(proof.to_bytes(len(key), "big")).decode()
        final = base64.b64encode(f"{without_proof},p={shown}".encode())
        self._next(b"<response xmlns='%b'>%b</response>" % (SASL.encode(), final), self._on_success)

    def _on_success(self) -> None:
        if b"<success" in self.seen:
            self._next(self.load.header, self._on_last_features)

    def _on_last_features(self) -> None:
        if b"</stream:features>" in self.seen:
            bind = (
                f"<bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><resource>{self.resource}</resource></bind>"
            )
            self._next(f"<iq type='set' id='b'>{bind}</iq>".encode(), self._on_bound)

    def _on_bound(self) -> None:
        if b"</iq>" in self.seen:
            self.done.set_result(None)
            self.step = self._nothing

    def _nothing(self) -> None:
        self.seen = b""

    def _next(self, words: bytes, step: object) -> None:
        self.seen = b""
        self.step = step  # type: ignore[assignment]
        self.transport.write(words)


def cpu_s(pid: int) -> float:
    """Seconds of processor time that a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(load: Load, count: int) -> tuple[float, float]:
    """Logins per second, and per second of the server's processor time."""
    before = cpu_s(load.server.pid)
    seconds = await load.run(count)
    used = cpu_s(load.server.pid) - before
    await load.leave()
    return count / seconds, count / used if used else 0.0


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--logins", type=int, default=1_000, help="sessions of each round")
    parser.add_argument("--at-once", type=int, default=16, help="logins that are under way at a time")
    parser.add_argument("--no-prosody", action="store_true")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        servers: list[tuple[str, LiveServer]] = [
            ("embedded", stack.enter_context(EmbeddedProcess(accounts={USER: PASSWORD})))
        ]
        if not options.no_prosody and prosody_program():
            servers.append(("Prosody", stack.enter_context(Prosody(accounts={USER: PASSWORD}))))
        elif not options.no_prosody:
            print("Prosody is not installed: measured alone")
        loads = {
            f"{name}, {'TLS' if encrypted else 'clear'}": Load(
                server, encrypted=encrypted, at_once=options.at_once, keys=Keys()
            )
            for encrypted in (False, True)
            for name, server in servers
        }
        rates: dict[str, list[tuple[float, float]]] = {name: [] for name in loads}
        for load in loads.values():
            await measure(load, 50)
        for number in range(options.rounds):
            for name, load in loads.items():
                rates[name].append(await measure(load, options.logins))
                print(f"round {number + 1}  {name:<16} {rates[name][-1][0]:>7,.0f} logins/s", flush=True)
    print()
    print(f"{'':<16} {'logins/s':>9} {'(range)':>15} {'per CPU second':>15} {'ratio':>6}")
    for name, seen in rates.items():
        median = statistics.median(rate for rate, _ in seen)
        per_cpu = statistics.median(rate for _, rate in seen)
        other = rates.get(name.replace("embedded", "Prosody"))
        ratio = median / statistics.median(rate for rate, _ in other) if other else 1.0
        low, high = min(rate for rate, _ in seen), max(rate for rate, _ in seen)
        print(f"{name:<16} {median:>9,.0f} {f'{low:,.0f}-{high:,.0f}':>15} {per_cpu:>15,.0f} {ratio:>6.1f}")


if __name__ == "__main__":
    asyncio.run(main())
