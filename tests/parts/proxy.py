"""A real HTTP proxy (tinyproxy) for a test, on loopback, that knows names which nobody else knows.

It sees a hosts file of its own, in a mount namespace of its own: so a test can name a server that is out
of its reach and within that of the proxy, as behind a firewall. Stopped by pid.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

from parts.need import need
from realpool.live import listening
from realpool.postgres import free_port
from realpool.processes import until

NAME = "pool.invalid"
"""Means 127.0.0.1 to the proxy, and nothing to anybody else (RFC 6761 section 6.4)."""
CONFIG = """
Port {port}
Listen 127.0.0.1
Timeout 60
MaxClients 20
LogFile "{directory}/log"
LogLevel Connect
{more}
"""
START = 'mount --bind "$1" /etc/hosts && shift && exec "$@"'


class Tinyproxy:
    """`with Tinyproxy(ports=[443]) as proxy: proxy.url …`"""

    def __init__(self, *, ports: list[int], login: str = "") -> None:
        """`ports` that it lets through to; `login`: `user:password` that it wants."""
        program = need("tinyproxy")
        self._unshare = need("unshare")
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.directory = Path(tempfile.mkdtemp(prefix="kestrel-proxy-"))
        more = [f"ConnectPort {port}" for port in ports]
        more += [f"BasicAuth {login.replace(':', ' ')}"] if login else []
        (self.directory / "hosts").write_text(f"127.0.0.1 localhost {NAME}\n")
        config = self.directory / "tinyproxy.conf"
        config.write_text(CONFIG.format(port=self.port, directory=self.directory, more="\n".join(more)))
        self._command = [program, "-d", "-c", str(config)]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def asked(self) -> list[str]:
        """`host:port` of each CONNECT that it has seen."""
        log = self.directory / "log"
        text = log.read_text(errors="replace") if log.exists() else ""
        return re.findall(r": CONNECT (\S+) HTTP", text)

    def __enter__(self) -> Tinyproxy:
        mine = [] if os.geteuid() == 0 else ["--map-root-user"]
        # stdout and stderr are what it says of its own requests, too; the file has them
        self._process = subprocess.Popen(
            [
                self._unshare,
                "--mount",
                *mine,
                "sh",
                "-c",
                START,
                "sh",
                str(self.directory / "hosts"),
                *self._command,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        process = self._process

        def ready() -> bool:
            assert process.poll() is None, process.stderr.read().decode() if process.stderr else ""
            return self.port in listening(process.pid)

        try:
            until(ready, "tinyproxy listens", 20)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)
            process.kill()
            process.wait()
            if process.stderr is not None:
                process.stderr.close()
        shutil.rmtree(self.directory, ignore_errors=True)
