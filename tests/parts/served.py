"""The embedded server in a process of its own, whose memory and descriptors can be looked at from outside.

`python -m parts.served '{"limits": {…}, …}'` serves until its standard input closes, and prints its ports.
"""

import asyncio
import json
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

from kestrel.server.accounts import Accounts
from kestrel.server.service import EmbeddedServer, ServerLimits, ServerSettings
from parts.server import DOMAIN, MANAGER, PASSWORDS, PATIENCE_S, QUICK, SECRET, forget_sockets


class Served:
    """A running server: ports and process."""

    def __init__(self, process, c2s_port, component_port):
        self.process = process
        self.c2s_port = c2s_port
        self.component_port = component_port

    @property
    def resident_bytes(self):
        return self._memory("VmRSS")

    @property
    def peak_bytes(self):
        return self._memory("VmHWM")

    def _memory(self, line):
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"{line}:\s+(\d+)", text)[1]) * 1024


@contextmanager
def served(*, certificate=None, limits=None):
    """A server process, from its ports to its end; it must end by itself, and in peace."""
    settings = {"certificate": str(certificate or ""), "limits": limits or {}}
    words = [sys.executable, "-m", "parts.served", json.dumps(settings)]
    process = subprocess.Popen(
        words,
        cwd=Path(__file__).resolve().parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Served(process, *map(int, process.stdout.readline().split()))
    finally:
        forget_sockets()
        process.stdin.close()
        try:
            assert process.wait(PATIENCE_S) == 0
        finally:
            process.kill()
            process.stdout.close()


def main():
    settings = json.loads(sys.argv[1])

    async def serve():
        accounts = Accounts(":memory:")
        for name, password in PASSWORDS.items():
            accounts.put(name, password, "user")
        server = EmbeddedServer(
            ServerSettings(
                DOMAIN,
                components={MANAGER: SECRET},
                limits=ServerLimits(**(QUICK | settings["limits"])),
                tls_certificate=Path(settings["certificate"]) if settings["certificate"] else None,
            ),
            accounts,
        )
        await server.start()
        sys.stdout.write(f"{server.c2s_port} {server.component_port}\n")
        sys.stdout.flush()
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        await server.stop()
        accounts.close()

    asyncio.run(serve())


if __name__ == "__main__":
    main()
