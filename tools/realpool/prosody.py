"""A real Prosody with the configuration that `kestrel server config prosody` prints, stopped by pid.

It runs as `nobody` when we are root, which it refuses to serve. Called by benchmarks, and by tests through
`parts.prosody`.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from pathlib import Path
from typing import Any

from kestrel.local.foreign import prosody_cfg
from kestrel.xmpp.sasl import SCRAM_SHA_256, make_keys
from realpool.live import ForeignServer, answers, make_certificate

__all__ = ["Prosody", "answers", "make_certificate", "prosody_program"]

ITERATIONS = 10_000
"""Of the salted keys, as Prosody makes them."""


class Prosody(ForeignServer):
    """`with Prosody(accounts={"alice": "secret"}) as server: server.port …`"""

    kind = "prosody"
    user, group = "nobody", "nogroup"

    def __init__(self, *, program: str = "", **wanted: Any) -> None:
        """`program`: path of it, if the caller has looked already; `wanted`: see `ForeignServer`."""
        self._program = program or prosody_program()
        super().__init__(**wanted)

    @property
    def config(self) -> Path:
        return self.directory / "prosody.cfg.lua"

    def _write(self) -> None:
        text = prosody_cfg(self.plan)
        self.config.write_text(text if self.tls else text.replace('"tls", ', ""))

    def _put_account(self, name: str, role: str) -> None:
        """As Prosody itself writes it down; it looks there at each login."""
        kept = Path(self.plan.data) / _encoded(self.domain) / "accounts"
        kept.mkdir(parents=True, exist_ok=True)
        salt = secrets.token_hex(16)
        keys = make_keys(SCRAM_SHA_256, self.passwords[name], salt.encode(), ITERATIONS)
        draft = kept / f".{name}"
        draft.write_text(
            f'return {{ ["stored_key"] = "{keys.stored_key.hex()}"; ["server_key"] = '
            f'"{keys.server_key.hex()}"; ["salt"] = "{salt}"; ["iteration_count"] = {ITERATIONS}; }};\n'
        )
        if os.geteuid() == 0:
            shutil.chown(draft, self.user, self.group)
        draft.rename(kept / f"{_encoded(name)}.dat")

    def command(self) -> list[str]:
        return [self._program, "-F", "--config", str(self.config)]

    @property
    def log(self) -> str:
        return self.said("prosody.log")


def _encoded(name: str) -> str:
    """As Prosody names files and directories."""
    return re.sub("[^A-Za-z0-9]", lambda found: f"%{ord(found[0]):02x}", name)


def prosody_program() -> str:
    """Path of the program; empty: it is not installed."""
    return shutil.which("prosody") or shutil.which("prosody", path="/usr/sbin:/sbin") or ""
