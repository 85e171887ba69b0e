"""The options of the commands that host a pool's server: `kestrel up` and `kestrel server run`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from kestrel.cli.options import duration
from kestrel.config import DEFAULT_C2S_PORT, DEFAULT_DOMAIN

_F = TypeVar("_F", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--pool", default="default", show_default=True, help="Name of the pool."),
    click.option(
        "--listen",
        "host",
        default="127.0.0.1",
        show_default=True,
        metavar="ADDRESS",
        help="Address to listen on; 0.0.0.0 lets other machines in (then TLS is required).",
    ),
    click.option(
        "--port",
        default=DEFAULT_C2S_PORT,
        show_default=True,
        type=click.IntRange(0, 65535),
        help="Port to listen on; 0 picks a free one.",
    ),
    click.option("--public-host", default="", metavar="NAME", help="Name or address that invitations carry."),
    click.option("--domain", default=DEFAULT_DOMAIN, show_default=True, help="XMPP domain of the server."),
    click.option(
        "--dir",
        "directory",
        type=click.Path(path_type=Path, file_okay=False),
        help="Where jobs, accounts and the certificate are kept.  [default: ~/.local/share/kestrel/POOL]",
    ),
    click.option(
        "--uses",
        default=1000,
        show_default=True,
        type=click.IntRange(1),
        help="How many workers may join with the printed invitation.",
    ),
    click.option(
        "--expires",
        default="7d",
        show_default=True,
        metavar="TIME",
        callback=duration,
        help="How long the invitation is good.",
    ),
)


def hosting_options(command: _F) -> _F:
    """Pool, addresses, directory, and how the printed invitation is bounded."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def pool_words(pool: str) -> str:
    """` --pool NAME` for a command that is printed for people; empty for the default pool."""
    return "" if pool == "default" else f" --pool {pool}"
