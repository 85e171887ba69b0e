"""The embedded server as a process of its own (`kestrel server run`), with the interface of the others.

Called by benchmarks, and by tests through `parts.servers`.
"""

from __future__ import annotations

import os
import sys

from kestrel.server.accounts import Accounts
from kestrel.server.certificate import ensure_certificate, fingerprint_of
from realpool.live import LiveServer
from realpool.postgres import free_port

SECRET_NAME = "component.secret"


class EmbeddedProcess(LiveServer):
    """`with EmbeddedProcess(accounts={"ann": "secret"}) as server: server.port …`"""

    kind = "embedded"

    def __init__(
        self,
        *,
        accounts: dict[str, str] | None = None,
        domain: str = "kestrel.localhost",
        host: str = "127.0.0.1",
        within: tuple[str, ...] = (),
    ) -> None:
        super().__init__(domain, f"manager.{domain}", "secret-component", host, within)
        # One port for every way in.
        self.port = self.tls_port = self.https_port = free_port()
        self.component_port = free_port()
        self._kept = self.directory / "kept"
        self._kept.mkdir(mode=0o700)
        (self._kept / SECRET_NAME).write_text(self.secret)
        self.fingerprint = fingerprint_of(ensure_certificate(self._kept, domain))
        for name, password in (accounts or {}).items():
            self.add_account(name, password)

    def _put_account(self, name: str, role: str) -> None:
        """Several processes may have the accounts open; the server looks there at each login."""
        accounts = Accounts(self._kept / "accounts.db")
        try:
            accounts.put(name, self.passwords[name], role)
        finally:
            accounts.close()

    def command(self) -> list[str]:
        words = [sys.executable, "-m", "kestrel", "server", "run", "--domain", self.domain, "--json", "-v"]
        words += ["--dir", str(self._kept), "--listen", self.host, "--port", str(self.port)]
        return [*words, "--component-listen", self.host, "--component-port", str(self.component_port)]

    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("KESTREL_", "XDG_"))}
        home = {"HOME": str(self.directory), "XDG_CONFIG_HOME": f"{self.directory}/config"}
        return kept | home

    @property
    def log(self) -> str:
        return self.said()
