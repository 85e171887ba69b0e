"""The same pool on a real Prosody: its managers are a component, or an ordinary account.

Called by benchmarks/takeover.py and by tests.
"""

from __future__ import annotations

from pathlib import Path

from kestrel.config import PoolAccess
from realpool.pool import PoolPlan, RealPool
from realpool.postgres import PrivatePostgres
from realpool.processes import Process
from realpool.prosody import Prosody

COMPONENT = "kestrel.localhost"
MANAGER = "manager@localhost"
USER = "ann@localhost"


class ProsodyPool(RealPool):
    """`account`: the managers share an ordinary account, instead of being a component."""

    def __init__(
        self,
        scratch: Path,
        plan: PoolPlan,
        *,
        account: bool,
        postgres: PrivatePostgres | None = None,
        program: str = "",
    ) -> None:
        super().__init__(scratch, plan, postgres=postgres)
        self._account = account
        names = ["manager", "ann", *(f"w{number}" for number in range(1, plan.workers + 1))]
        self.prosody = Prosody(
            accounts={name: f"secret-{name}" for name in names},
            components={COMPONENT: "secret-component"},
            require_tls=True,
            program=program,
        )
        self.port, self.component_port = self.prosody.port, self.prosody.component_port
        self.manager_jid = MANAGER if account else COMPONENT

    def start_server(self) -> None:
        self.prosody.start()
        PoolAccess(
            manager=self.manager_jid,
            jid=USER,
            password="secret-ann",
            host="127.0.0.1",
            port=self.port,
            fingerprint=self.prosody.fingerprint,
        ).save(Path(self.pool_word))

    def _where(self) -> list[str]:
        return ["--host", "127.0.0.1", "--port", str(self.port), "--fingerprint", self.prosody.fingerprint]

    def _secret_file(self, name: str) -> str:
        path = self.scratch / f"secret-{name}"
        path.write_text(f"secret-{name}\n")
        path.chmod(0o600)
        return str(path)

    def identity_words(self) -> list[str]:
        if self._account:
            words = ["--jid", MANAGER, "--secret-file", self._secret_file("manager"), *self._where()]
        else:
            words = ["--component", COMPONENT, "--secret-file", self._secret_file("component")]
            words += ["--port", str(self.component_port)]
        return [*words, "--admin", USER]

    def joining_words(self, name: str) -> list[str]:
        words = ["--jid", f"{name}@localhost/worker", "--password-file", self._secret_file(name)]
        return [*words, "--manager", self.manager_jid, *self._where()]

    @property
    def processes(self) -> list[Process]:
        return [*self.managers.values(), *self.workers.values()]

    def end(self) -> None:
        self.end_workers_and_managers()
        self.prosody.__exit__()
        self.end_store()
