"""`kestrel manager`: a manager on an XMPP server that somebody runs already."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import click

from kestrel.cli.logs import set_up_logs
from kestrel.cli.output import Output
from kestrel.cli.signals import on_stop_signals
from kestrel.config import PoolAccess, data_home, pool_access_path, private_directory
from kestrel.errors import KestrelError, UsageError
from kestrel.manager.service import ManagerService, run_until
from kestrel.manager.settings import ManagerSettings
from kestrel.store.sqlite import SqliteStore
from kestrel.xmpp.access import client_settings
from kestrel.xmpp.client import XmppClient
from kestrel.xmpp.component import ComponentSettings, XmppComponent
from kestrel.xmpp.jid import JID
from kestrel.xmpp.link import XmppLink, XmppStream


@click.command()
@click.option("--component", "domain", metavar="DOMAIN", help="Be this component (XEP-0114).")
@click.option("--jid", metavar="JID", help="Or use this ordinary account.")
@click.option(
    "--secret-file",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help=("File with the component's secret or the account's password, readable by you only."),
)
@click.option("--host", default="", help="Address of the server.  [default: 127.0.0.1, or the DNS]")
@click.option(
    "--port",
    default=0,
    type=click.IntRange(0, 65535),
    help=("Port of the server.  [default: 5347 for a component, 5222 for an account]"),
)
@click.option(
    "--fingerprint",
    default="",
    metavar="HEX",
    help=("Trust the server's certificate with this SHA-256 fingerprint."),
)
@click.option("--pool", default="default", show_default=True, help="Name of the pool.")
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    help=("Where jobs are kept.  [default: ~/.local/share/kestrel/POOL]"),
)
@click.option(
    "--admin",
    "admins",
    multiple=True,
    metavar="JID",
    help="May touch everybody's jobs.  [default: the account with which commands here reach the pool]",
)
@click.option("-v", "--verbose", is_flag=True, help="Log what happens on standard error.")
def manager(
    domain: str | None,
    jid: str | None,
    secret_file: Path,
    host: str,
    port: int,
    fingerprint: str,
    pool: str,
    directory: Path | None,
    admins: tuple[str, ...],
    verbose: bool,
) -> None:
    """Start a manager on Prosody, ejabberd or any other XMPP server.

    \b
    kestrel manager --component kestrel.example.org --secret-file secret
    kestrel manager --jid manager@example.org --secret-file password
    """
    if (domain is None) == (jid is None):
        raise UsageError("name either --component or --jid", hint="see kestrel manager --help")
    secret = _secret(secret_file)
    set_up_logs(verbose)
    pool_access_path(pool)  # refuses what is no name, and no directory either
    names = admins or _admins_here(pool, str(JID.parse(domain or jid or "").bare))
    settings = ManagerSettings(pool=pool, admins=frozenset(str(JID.parse(name).bare) for name in names))
    path = private_directory(directory or data_home() / pool) / "store.db"

    def make_stream(link: XmppLink) -> XmppStream:
        if domain is not None:
            component = ComponentSettings(
                domain=domain, secret=secret, host=host or "127.0.0.1", port=port or 5347
            )
            return XmppComponent(component, link)
        assert jid is not None
        access = PoolAccess(
            manager=jid,
            jid=jid,
            password=secret,
            host=host,
            port=port,
            fingerprint=fingerprint.replace(":", "").lower(),
            resource="manager",
        )
        # Available to its bare address, too: people and workers write to manager@…, not to a resource.
        return XmppClient(replace(client_settings(access), priority=0), link)

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        service = ManagerService(make_stream, SqliteStore(path, loop.call_soon_threadsafe), settings)
        started = await service.start()
        try:
            Output("table").line(f"The manager of pool {pool!r} is up as {started.address}.")
            stopped = asyncio.Event()
            on_stop_signals(stopped.set)
            await run_until(service, stopped.wait)
        finally:
            await service.stop()

    asyncio.run(serve())


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
