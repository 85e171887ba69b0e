"""A real Prosody: own directory, free ports, accounts and components as asked, stopped by pid.

It runs as `nobody` when we are root, which it refuses to serve. Called by benchmarks, and by tests through
`parts.prosody`.
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from realpool.postgres import free_port

READY_S_MAX = 20.0
STOP_S_MAX = 10.0

CONFIG = """
daemonize = false
data_path = "{data}"
pidfile = "{data}/prosody.pid"
interfaces = {{ "127.0.0.1" }}
c2s_ports = {{ {port} }}
c2s_direct_tls_ports = {{}}
component_ports = {{ {component_port} }}
component_interfaces = {{ "127.0.0.1" }}
http_ports = {{}}
https_ports = {{}}
s2s_ports = {{}}
modules_enabled = {{ "roster", "saslauth", "disco", "ping", "smacks", "posix", {extra} }}
modules_disabled = {{ "offline", "s2s" }}
c2s_require_encryption = {require_tls}
allow_unencrypted_plain_auth = false
authentication = "internal_plain"
network_backend = "epoll"
network_settings = {{
  read_size = 65536; min_wait = 0.00001; tcp_backlog = 1024; read_timeout = 10; nagle = false;
}}
gc = {{ mode = "incremental"; threshold = 200; speed = 200 }}
c2s_stanza_size_limit = 10485760
component_stanza_size_limit = 10485760
log = {{ {{ levels = {{ min = "debug" }}, to = "file", filename = "{data}/prosody.log" }} }}
{tls}
VirtualHost "{domain}"
{components}
"""


class Prosody:
    """`with Prosody(accounts={"alice": "secret"}) as server: server.port …`"""

    def __init__(
        self,
        *,
        accounts: dict[str, str] | None = None,
        components: dict[str, str] | None = None,
        domain: str = "localhost",
        tls: bool = False,
        modules: tuple[str, ...] = (),
        program: str = "",
    ) -> None:
        """`program`: path of it, if the caller has looked already."""
        self.domain = domain
        self.port = free_port()
        self.component_port = free_port()
        self.fingerprint = ""
        self._program = program or prosody_program()
        self._components = bool(components)
        self._process: subprocess.Popen[bytes] | None = None
        self.directory = Path(tempfile.mkdtemp(prefix="kestrel-prosody-"))
        self._write(accounts or {}, components or {}, tls, modules)
        if os.geteuid() == 0:
            for path in (self.directory, *self.directory.rglob("*")):
                shutil.chown(path, "nobody", "nogroup")

    def _write(
        self, accounts: dict[str, str], components: dict[str, str], tls: bool, modules: tuple[str, ...]
    ) -> None:
        kept = self.directory / self.domain.replace(".", "%2e") / "accounts"
        kept.mkdir(parents=True)
        for name, password in accounts.items():
            (kept / f"{name}.dat").write_text(f'return {{ ["password"] = "{password}"; }};\n')
        tls_lines = ""
        if tls:
            modules = (*modules, "tls")
            self.fingerprint = make_certificate(self.directory, self.domain)
            tls_lines = (
                f'ssl = {{ key = "{self.directory}/key.pem", certificate = "{self.directory}/cert.pem" }}'
            )
        (self.directory / "prosody.cfg.lua").write_text(
            CONFIG.format(
                data=self.directory,
                port=self.port,
                component_port=self.component_port,
                extra=", ".join(f'"{name}"' for name in modules),
                require_tls=str(tls).lower(),
                tls=tls_lines,
                domain=self.domain,
                components="\n".join(
                    f'Component "{name}"\n  component_secret = "{secret}"'
                    for name, secret in components.items()
                ),
            )
        )

    @property
    def log(self) -> str:
        """What it has logged so far."""
        path = self.directory / "prosody.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self) -> None:
        """Start it and wait until both ports answer."""
        who: dict[str, Any] = {}
        if os.geteuid() == 0:
            who = {"user": "nobody", "group": "nogroup", "extra_groups": []}
        self._process = subprocess.Popen(
            [self._program, "-F", "--config", str(self.directory / "prosody.cfg.lua")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self.directory,
            **who,
        )
        deadline = time.monotonic() + READY_S_MAX
        for port in (self.port, self.component_port) if self._components else (self.port,):
            while not answers(port):
                assert self._process.poll() is None, f"Prosody ended:\n{self.log[-3000:]}"
                assert time.monotonic() < deadline, f"Prosody does not answer:\n{self.log[-3000:]}"
                time.sleep(0.02)

    def stop(self, *, kill: bool = False) -> None:
        """End it; `kill`: without a goodbye."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S_MAX)
            return
        process.kill()
        process.wait()

    def __enter__(self) -> Prosody:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)


def prosody_program() -> str:
    """Path of the program; empty: it is not installed."""
    return shutil.which("prosody") or shutil.which("prosody", path="/usr/sbin:/sbin") or ""


def answers(port: int) -> bool:
    """Whether something listens there."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def make_certificate(directory: Path, domain: str) -> str:
    """Write cert.pem and key.pem, self-signed; returns the SHA-256 fingerprint in hex."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, domain)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.DNSName(domain), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            ),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    (directory / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (directory / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest()
