"""From a chat client: Debian's sendxmpp logs in to `kestrel up`, submits, and asks in plain words."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path

import pytest

from parts.need import need
from parts.pool import Pool

slixmpp = pytest.importorskip("slixmpp")


class Phone(slixmpp.ClientXMPP):
    """The same person's other device. It hears what the manager says; sendxmpp does not listen."""

    def __init__(self, jid: str, password: str) -> None:
        super().__init__(jid, password)
        self.bodies: asyncio.Queue[str] = asyncio.Queue()
        self.ready = asyncio.get_running_loop().create_future()
        self.add_event_handler("session_start", self._begin)
        self.add_event_handler("message", self._hear)

    async def _begin(self, _event: object) -> None:
        self.send_presence()
        self.ready.set_result(None)

    def _hear(self, message: slixmpp.Message) -> None:
        if message["body"]:
            self.bodies.put_nowait(message["body"])


async def heard(phone: Phone, wanted: str) -> str:
    """The next body that contains these words."""
    async with asyncio.timeout(30):
        while True:
            body = await phone.bodies.get()
            if wanted in body:
                return body


def access(tmp_path: Path) -> dict[str, str]:
    return json.loads((tmp_path / "config/kestrel/pools/default.json").read_text())


def test_a_job_and_a_question_from_sendxmpp(tmp_path: Path):
    program = need("sendxmpp")
    with Pool(tmp_path) as pool:
        pool.worker("one")
        asyncio.run(converse(program, pool, access(tmp_path)))
        assert pool.run("wait", "1").returncode == 0
        assert sorted(pool.run("cat", f"1_{i}").stdout for i in range(3)) == [
            "hello 0\n",
            "hello 1\n",
            "hello 2\n",
        ]


def certificate(pool: Pool) -> Path:
    """Both programs check it, and find the domain in it."""
    return pool.scratch / "data/kestrel/default/server.pem"


async def converse(program: str, pool: Pool, account: dict[str, str]) -> None:
    host, port = pool.address
    phone = Phone(account["jid"] + "/phone", account["password"])
    phone.enable_direct_tls = False
    phone.ca_certs = str(certificate(pool))
    phone.connect(host, port)
    try:
        async with asyncio.timeout(20):
            await phone.ready
        await send(program, pool, account, '{"type":"job","command":"echo hello","queue":3}')
        await send(program, pool, account, "status")
        answer = await heard(phone, "Pool:")
        assert "Job 1 (echo hello)" in answer
        assert "1 workers" in answer or "1 worker" in answer
        await send(program, pool, account, "staus")
        assert "status" in await heard(phone, "Sorry")
    finally:
        phone.abort()


async def send(program: str, pool: Pool, account: dict[str, str], text: str) -> None:
    """Run sendxmpp as a person would, with its own configuration file."""
    host, port = pool.address
    user, _, domain = account["jid"].partition("@")
    rc = pool.scratch / "sendxmpprc"
    lines = (f"username: {user}", f"jserver: {host}:{port}", f"component: {domain}")
    rc.write_text("\n".join((*lines, f"password: {account['password']}")) + "\n")
    rc.chmod(0o600)
    words = [program, "-f", str(rc), "-t", "-a", str(certificate(pool))]
    words.append(f"pool@{account['manager']}")  # sendxmpp puts its own domain behind a bare one
    done = await asyncio.to_thread(
        subprocess.run, words, input=text, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
