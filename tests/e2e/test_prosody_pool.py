"""The same pool on somebody else's server: manager, worker and user on a real Prosody."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from kestrel.config import PoolAccess
from parts.pool import Pool, eventually
from parts.prosody import Prosody

ACCOUNTS = {"manager": "m-secret", "worker42": "w-secret", "ann": "a-secret"}


def secret_file(directory: Path, secret: str) -> str:
    path = directory / f"secret-{secret}"
    path.write_text(secret + "\n")
    path.chmod(0o600)
    return str(path)


@pytest.mark.parametrize("kind", ["component", "account"])
def test_a_pool_on_prosody_with_tls(tmp_path: Path, kind: str):
    component = "kestrel.localhost"
    manager_jid = component if kind == "component" else "manager@localhost"
    with Prosody(accounts=ACCOUNTS, components={component: "c-secret"}, require_tls=True) as server:
        pool = Pool(tmp_path)
        where = ("--host", "127.0.0.1", "--port", str(server.port), "--fingerprint", server.fingerprint)
        if kind == "component":
            options = ("--component", component, "--secret-file", secret_file(tmp_path, "c-secret"))
            options += ("--port", str(server.component_port))
        else:
            options = ("--jid", manager_jid, "--secret-file", secret_file(tmp_path, "m-secret"), *where)
        access = PoolAccess(
            manager=manager_jid,
            jid="ann@localhost",
            password="a-secret",
            host="127.0.0.1",
            port=server.port,
            fingerprint=server.fingerprint,
        )
        access.save(tmp_path / "access.json")
        to = ("--pool", str(tmp_path / "access.json"))
        try:
            manager = pool.spawn("manager", *options, "-v")
            assert manager.stdout is not None
            assert "is up" in manager.stdout.readline(), pool.log_of(manager)
            joined = ("--jid", "worker42@localhost/core2", "--manager", access.manager, *where)
            worker = pool.spawn(
                "worker", *joined, "--password-file", secret_file(tmp_path, "w-secret"), "-j", "2", "-v"
            )
            eventually(lambda: "worker42@localhost/core2" in pool.run("pool", *to).stdout, "the worker joins")
            done = pool.run("submit", *to, "-n", "20", "--wait", "--", "echo hello")
            assert done.returncode == 0, done.stderr
            assert pool.run("cat", *to, "1_19").stdout == "hello 19\n"
            worker.send_signal(signal.SIGKILL)
            worker.wait()
            eventually(lambda: "gone: worker42" in pool.run("pool", *to).stdout, "its loss is seen", 5)
        finally:
            pool.__exit__()
