"""The three XMPP servers for one suite: the embedded one, Prosody, ejabberd; a missing one skips loudly.

`server_fixture` makes a fixture for a module: each of its tests runs on each server. A test that stops the
server need not start it again: who comes next finds it running.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from parts.need import need
from realpool.ejabberd import Ejabberd, ejabberd_program
from realpool.embedded import EmbeddedProcess
from realpool.live import LiveServer, WayIn
from realpool.prosody import Prosody

__all__ = ["KINDS", "WAYS", "LiveServer", "WayIn", "make_server", "server_fixture"]

KINDS = ("embedded", "prosody", "ejabberd")
WAYS: tuple[WayIn, ...] = ("", "tls", "wss")


def make_server(kind: str, **wanted: Any) -> LiveServer:
    """One that is not started yet; or no test."""
    match kind:
        case "embedded":
            return EmbeddedProcess(**wanted)
        case "prosody":
            return Prosody(program=need("prosody"), **wanted)
        case "ejabberd":
            if not ejabberd_program():
                need("ejabberdctl")
                need("erl")
            return Ejabberd(**wanted)
        case _:
            raise AssertionError(kind)


def server_fixture(accounts: dict[str, str] | None = None) -> Callable[..., Any]:
    """`server = running = …`: a fixture with a running server, one for the module."""

    @pytest.fixture(scope="module", params=KINDS)
    def running(request: pytest.FixtureRequest) -> Iterator[LiveServer]:
        with make_server(request.param, accounts=accounts) as server:
            yield server

    return running
