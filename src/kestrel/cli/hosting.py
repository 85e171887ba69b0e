"""The options that `kestrel up`, `kestrel server run` and `kestrel manager` share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import click
from click.core import ParameterSource

from kestrel.cli.options import duration
from kestrel.cli.output import Output
from kestrel.config import DEFAULT_C2S_PORT, DEFAULT_DOMAIN, Via
from kestrel.store.places import without_password

STORE_VARIABLE = "KESTREL_STORE"

_F = TypeVar("_F", bound=Callable[..., Any])


def _via(_: click.Context, __: click.Parameter, value: str) -> Via:
    return cast(Via, value.replace("starttls", ""))


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
    click.option(
        "--invite-via",
        "via",
        type=click.Choice(("starttls", "tls", "wss")),
        default="starttls",
        show_default=True,
        callback=_via,
        help="How the invited come in. The port takes all three: wss, a WebSocket in TLS, is what firewalls "
        "let out that know only the web (then --port 443); tls is TLS from the first byte.",
    ),
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


def store_option(command: _F) -> _F:
    """`--store PLACE`, or the variable of the environment."""
    return click.option(
        "--store",
        "place",
        envvar=STORE_VARIABLE,
        metavar="PLACE",
        help="Where jobs are kept: a file, or postgresql://USER@HOST/DATABASE, which several managers can "
        f"share.  [default: ${STORE_VARIABLE}, or store.db in --dir]",
    )(command)


def warn_of_password(out: Output, place: str | None) -> None:
    """Whoever may list this machine's processes can read a command line."""
    given = click.get_current_context().get_parameter_source("place")
    if place and given is ParameterSource.COMMANDLINE and without_password(place) != place:
        out.warn(
            "whoever lists the processes of this machine can read the password in --store; "
            f"put the place into {STORE_VARIABLE}, or the password into ~/.pgpass"
        )


def pool_words(pool: str) -> str:
    """` --pool NAME` for a command that is printed for people; empty for the default pool."""
    return "" if pool == "default" else f" --pool {pool}"
