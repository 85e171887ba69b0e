"""XMPP servers that tests and benchmarks start: one interface for the embedded one, Prosody and ejabberd.

A server has a directory of its own, free ports on loopback (or any address, in any network namespace), and
is started, read, struck and ended by pid. None is left behind: the end of the program ends it, too, also
by a signal that cannot be caught. Nobody
is asked for a connection to learn whether a port is open: the kernel's table of the server's own network is
read. Called by `realpool.prosody`, `realpool.ejabberd`, `realpool.embedded`.
"""

from __future__ import annotations

import atexit
import datetime
import hashlib
import ipaddress
import os
import resource
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from kestrel.config import WEBSOCKET_PATH, PoolAccess
from kestrel.local.foreign import Federation, ServerPlan
from realpool.postgres import free_port
from realpool.processes import Hung, send, tree, until

READY_S_MAX = 30.0
STOP_S_MAX = 15.0
LOG_BYTES_SHOWN = 3000
FILES_MAX = 65536
"""Open files of a server; each session is one."""
OUTPUT = "output.log"
_LISTENS = "0A"
_spawner = ThreadPoolExecutor(1, "servers")
"""The thread that starts them: the kernel ends a server when the thread that started it has ended, and this
one lasts as long as the program, however that ends."""
WayIn = Literal["", "tls", "wss"]
"""How a server is reached: STARTTLS, TLS from the first byte, WebSocket within TLS."""


class LiveServer:
    """`with Prosody(accounts={"ann": "secret"}) as server: server.port …`"""

    kind = ""
    """`embedded`, `prosody` or `ejabberd`."""

    def __init__(
        self, domain: str, component: str, secret: str, host: str, within: Sequence[str] = ()
    ) -> None:
        """`within`: words before the command, such as `ip netns exec NAME`."""
        self.domain = domain
        self.component = component
        self.secret = secret
        self.host = host
        self.port = self.tls_port = self.https_port = self.component_port = 0
        self.fingerprint = ""
        self.passwords: dict[str, str] = {}
        self.directory = Path(tempfile.mkdtemp(prefix=f"kestrel-{self.kind}-"))
        self._within = list(within)
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.__exit__)

    # --- how it is reached ----------------------------------------------------------------------------

    @property
    def websocket(self) -> str:
        return f"wss://{self.host}:{self.https_port}{WEBSOCKET_PATH}"

    def port_of(self, via: WayIn) -> int:
        """That of this way in."""
        return {"": self.port, "tls": self.tls_port, "wss": self.https_port}[via]

    def access(self, name: str, *, via: WayIn = "", resource: str = "", manager: str = "") -> PoolAccess:
        """How the account `name` reaches the manager, which is the component unless it is named."""
        return PoolAccess(
            manager=manager or self.component,
            jid=f"{name}@{self.domain}",
            password=self.passwords[name],
            host=self.host,
            port=self.port_of(via),
            fingerprint=self.fingerprint,
            resource=resource,
            via=via,
        )

    def add_account(self, name: str, password: str = "", role: str = "user") -> PoolAccess:
        """An account, before or after the start; `role` matters on the embedded server only."""
        self.passwords[name] = password or f"secret-{name}"
        self._put_account(name, role)
        return self.access(name)

    def _put_account(self, name: str, role: str) -> None:
        raise NotImplementedError

    # --- its life -------------------------------------------------------------------------------------

    def command(self) -> list[str]:
        """What is run."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return dict(os.environ)

    @property
    def log(self) -> str:
        """What it has logged so far."""
        raise NotImplementedError

    @property
    def ports(self) -> list[int]:
        """Those that are open when it is ready."""
        return [port for port in (self.port, self.tls_port, self.https_port, self.component_port) if port]

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.kind} does not run"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it and wait until it listens on all its ports."""
        assert not self.running, f"{self.kind} runs already"
        self._process = _spawner.submit(self._spawn).result()

        def ready() -> bool:
            if not self.running:
                raise Hung(f"{self.kind} ended:\n{self.log[-LOG_BYTES_SHOWN:]}")
            return set(self.ports) <= listening(self.pid)

        until(ready, f"{self.kind} listens", READY_S_MAX, seen=lambda: self.log[-LOG_BYTES_SHOWN:])

    def _spawn(self) -> subprocess.Popen[bytes]:
        with (self.directory / OUTPUT).open("ab") as output:
            return subprocess.Popen(
                self._words(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.directory,
                env=self.environment(),
                start_new_session=True,  # Ctrl-C is for the tests, which end it in order
            )

    def said(self, *names: str) -> str:
        """What is in these files of its directory, and what it printed."""
        paths = [self.directory / name for name in (*names, OUTPUT)]
        return "\n".join(path.read_text(errors="replace") for path in paths if path.exists())

    def _words(self) -> list[str]:
        files = min(FILES_MAX, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        before = [*self._within, "prlimit", f"--nofile={files}:", "setpriv", "--pdeathsig=KILL"]
        return [*before, *self._identity(), *self.command()]

    def _identity(self) -> list[str]:
        """Words for `setpriv`."""
        return []

    def stop(self, *, kill: bool = False) -> None:
        """End it; `kill`: without a goodbye."""
        process, self._process = self._process, None
        if process is None:
            return
        family = tree(process.pid)
        process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
        try:
            process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pid in family[1:]:
            send(pid, signal.SIGKILL)  # what it started and did not end itself
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()

    def restart(self, *, kill: bool = False) -> None:
        self.stop(kill=kill)
        self.start()

    def __enter__(self) -> LiveServer:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        atexit.unregister(self.__exit__)
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)


class ForeignServer(LiveServer):
    """One with a configuration of `kestrel.local.foreign`; as root it runs as somebody else."""

    user = group = ""
    """Who it is, if we are root."""

    def __init__(
        self,
        *,
        accounts: dict[str, str] | None = None,
        components: dict[str, str] | None = None,
        domain: str = "localhost",
        tls: bool = True,
        require_tls: bool = False,
        invites: bool = False,
        host: str = "127.0.0.1",
        federation: Federation | None = None,
        certificate: tuple[str, str] | None = None,
        ports: Sequence[int] = (),
        within: Sequence[str] = (),
        log_level: str = "info",
    ) -> None:
        """`components`: address and secret of the manager, one at most.

        `tls`: False drops it from the configuration. `certificate`: PEM files of certificate and key,
        instead of a self-signed one. `ports`: for clients, TLS, HTTPS, components.
        """
        component, secret = next(iter((components or {f"kestrel.{domain}": "secret-component"}).items()))
        super().__init__(domain, component, secret, host, within)
        numbers = list(ports) or [free_port() for _ in range(4)]
        self.port, self.tls_port, self.https_port, self.component_port = numbers
        files = certificate or (f"{self.directory}/cert.pem", f"{self.directory}/key.pem")
        if certificate is None:
            self.fingerprint = make_certificate(self.directory, domain, component, address=host)
        else:
            self.fingerprint = fingerprint_of(Path(certificate[0]))
        if not tls:
            self.tls_port = self.https_port = 0
            self.fingerprint = ""
        self.plan = ServerPlan(
            domain=domain,
            component=component,
            secret=secret,
            data=f"{self.directory}/data",
            logs=str(self.directory),
            certificate=files[0],
            key=files[1],
            listen=host,
            require_tls=require_tls,
            port=self.port,
            tls_port=self.tls_port,
            https_port=self.https_port,
            component_listen=host,
            component_port=self.component_port,
            invites=invites,
            federation=federation,
            log_level=log_level,
        )
        self.tls = tls
        (self.directory / "data").mkdir()
        self._write()
        for name, password in (accounts or {}).items():
            self.add_account(name, password)
        self._give_away()

    def _write(self) -> None:
        """Its configuration."""
        raise NotImplementedError

    def _give_away(self) -> None:
        """Files are those of who runs the server."""
        if os.geteuid() == 0:
            for path in (self.directory, *self.directory.rglob("*")):
                shutil.chown(path, self.user, self.group)

    @property
    def ports(self) -> list[int]:
        federated = [self.plan.federation.port] if self.plan.federation else []
        return super().ports + federated

    def _identity(self) -> list[str]:
        if os.geteuid() != 0:
            return []
        return [f"--reuid={self.user}", f"--regid={self.group}", "--clear-groups"]


def listening(pid: int) -> set[int]:
    """TCP ports that are open in the network of this process."""
    found = set()
    for name in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENS:
                    found.add(int(fields[1].rpartition(":")[2], 16))
    return found


def answers(port: int) -> bool:
    """Whether something listens there, on loopback."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def fingerprint_of(path: Path) -> str:
    """SHA-256 of a certificate, in hex."""
    return x509.load_pem_x509_certificate(path.read_bytes()).fingerprint(hashes.SHA256()).hex()


def make_certificate(directory: Path, *names: str, address: str = "127.0.0.1") -> str:
    """Write cert.pem and key.pem, self-signed; returns the SHA-256 fingerprint in hex."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
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
                [*map(x509.DNSName, names), x509.IPAddress(ipaddress.ip_address(address))]
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
