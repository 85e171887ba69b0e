"""A real Prosody for a test; one that is missing skips it loudly, or fails it where `CI` is set."""

from __future__ import annotations

from typing import Any

from parts.need import need
from realpool import prosody
from realpool.postgres import free_port
from realpool.prosody import answers, make_certificate

__all__ = ["Prosody", "answers", "free_port", "make_certificate"]


class Prosody(prosody.Prosody):
    """`with Prosody(accounts={"alice": "secret"}) as server: server.port …`"""

    def __init__(self, **wanted: Any) -> None:
        super().__init__(program=need("prosody"), **wanted)
