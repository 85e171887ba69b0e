"""`kestrel manager`: a manager on an XMPP server that somebody runs already, alone or standing by."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import click

from kestrel.cli.candidacy import Candidate, serve_until_stopped
from kestrel.cli.hosting import store_option, warn_of_password
from kestrel.cli.logs import set_up_logs
from kestrel.cli.options import duration
from kestrel.cli.output import Output
from kestrel.cli.policy import Policy, policy_options
from kestrel.config import PoolAccess, ServerPlace, data_home, pool_access_path, private_directory
from kestrel.errors import KestrelError, UsageError
from kestrel.manager.leadership import LeaseSettings
from kestrel.store.places import is_database
from kestrel.xmpp.access import client_settings
from kestrel.xmpp.client import XmppClient
from kestrel.xmpp.component import COMPONENT_PORT, ComponentSettings, XmppComponent
from kestrel.xmpp.jid import JID
from kestrel.xmpp.link import XmppLink, XmppStream
from kestrel.xmpp.session import SessionSettings

LEASE_S_MIN = 0.5
"""A shorter one would be lost by a busy machine every now and then."""
RETRY_S_MAX = 2.0
"""A manager that lost its server tries again this often at least: it is one, and all wait for it."""


@click.command()
@click.option("--component", "domain", metavar="DOMAIN", help="Be this component (XEP-0114).")
@click.option("--jid", metavar="JID", help="Or use this ordinary account.")
@click.option(
    "--secret-file",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="File with the component's secret or the account's password, readable by you only.",
)
@click.option(
    "--host",
    default="",
    help="Address of the server, e.g. xmpps://pool.example.org:443.  [default: 127.0.0.1, or the DNS]",
)
@click.option(
    "--port",
    default=0,
    type=click.IntRange(0, 65535),
    help="Port of the server.  [default: 5347 for a component, 5222 for an account]",
)
@click.option(
    "--fingerprint",
    default="",
    metavar="HEX",
    help="Trust the server's certificate with this SHA-256 fingerprint.",
)
@click.option("--pool", default="default", show_default=True, help="Name of the pool.")
@store_option
@click.option(
    "--standby/--no-standby",
    default=None,
    help="While another manager has the store, wait to take over, or give up.  [default: wait, if it is a "
    "database]",
)
@click.option(
    "--lease",
    default="5s",
    show_default=True,
    metavar="TIME",
    callback=duration,
    help="How long a manager that has fallen silent keeps its place; the same for all managers of a pool.",
)
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where jobs are kept without --store.  [default: ~/.local/share/kestrel/POOL]",
)
@policy_options
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON per change of state.")
@click.option("-v", "--verbose", is_flag=True, help="Log what happens on standard error.")
def manager(
    domain: str | None,
    jid: str | None,
    secret_file: Path,
    host: str,
    port: int,
    fingerprint: str,
    pool: str,
    place: str | None,
    standby: bool | None,
    lease: float,
    directory: Path | None,
    policy: Policy,
    as_json: bool,
    verbose: bool,
) -> None:
    """Start a manager on Prosody, ejabberd, `kestrel server run`, or any other XMPP server.

    \b
    kestrel manager --component kestrel.example.org --secret-file secret
    kestrel manager --jid manager@example.org --secret-file password
    kestrel manager --component kestrel.example.org --secret-file secret --store postgresql://db/kestrel

    Of several managers on one database one is active; the others stand by and take over by themselves.
    """
    if (domain is None) == (jid is None):
        raise UsageError("name either --component or --jid", hint="see kestrel manager --help")
    if lease < LEASE_S_MIN:
        raise UsageError(
            f"a lease of {lease:g} s is too short", hint=f"--lease takes {LEASE_S_MIN:g}s at least"
        )
    secret = _secret(secret_file)
    set_up_logs(verbose)
    pool_access_path(pool)  # refuses what is no name, and no directory either
    out = Output("json" if as_json else "table")
    warn_of_password(out, place)
    place = place or str(private_directory(directory or data_home() / pool) / "store.db")
    address = str(JID.parse(domain or jid or "").bare)
    settings = policy.settings(pool, owners=() if policy.rules.admins else _admins_here(pool, address))
    session = SessionSettings(retry_s_max=RETRY_S_MAX)
    server = ServerPlace.parse(host, port)
    if domain is not None and server.via:
        raise UsageError(
            "components connect without TLS and WebSocket", hint="name HOST or HOST:PORT, or use --jid"
        )

    def make_stream(link: XmppLink) -> XmppStream:
        if domain is not None:
            component = ComponentSettings(
                domain=domain,
                secret=secret,
                host=server.host or "127.0.0.1",
                port=server.port or COMPONENT_PORT,
                session=session,
            )
            return XmppComponent(component, link)
        assert jid is not None
        access = PoolAccess(
            manager=jid,
            jid=jid,
            password=secret,
            host=server.host,
            port=server.port,
            via=server.via,
            path=server.path,
            fingerprint=fingerprint.replace(":", "").lower(),
            resource="manager",
        )
        # Available to its bare address, too: people and workers write to manager@…, not to a resource.
        return XmppClient(replace(client_settings(access), priority=0, session=session), link)

    candidate = Candidate(
        place=place,
        address=address,
        settings=settings,
        make_stream=make_stream,
        lease=LeaseSettings.of(lease),
        standby=is_database(place) if standby is None else standby,
    )
    asyncio.run(serve_until_stopped(candidate, out))


def _admins_here(pool: str, address: str) -> tuple[str, ...]:
    """The account of this machine's commands, if it is this manager that they speak to."""
    try:
        access = PoolAccess.load(pool_access_path(pool))
    except KestrelError:
        return ()
    return (access.jid,) if access.manager == address else ()


def _secret(path: Path) -> str:
    try:
        secret = path.read_text(encoding="utf-8").strip()
    except OSError as problem:
        raise UsageError(f"cannot read the secret from {path}: {problem.strerror or problem}") from None
    if not secret:
        raise UsageError(
            f"the file {path} is empty", hint="write the component's secret or the password into it"
        )
    return secret
