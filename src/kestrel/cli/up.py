"""`kestrel up`: a pool on this machine, and an invitation for others."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import click

from kestrel.cli.logs import set_up_logs
from kestrel.cli.options import duration
from kestrel.cli.output import Output
from kestrel.cli.signals import on_stop_signals
from kestrel.config import DEFAULT_C2S_PORT, DEFAULT_DOMAIN, data_home, pool_access_path
from kestrel.local.host import HostSettings, PoolHost
from kestrel.manager.service import ManagerService, run_until
from kestrel.manager.settings import ManagerSettings

log = logging.getLogger("kestrel.up")


@click.command()
@click.option("--pool", default="default", show_default=True, help="Name of the pool.")
@click.option(
    "--listen",
    "host",
    default="127.0.0.1",
    show_default=True,
    metavar="ADDRESS",
    help=("Address to listen on; 0.0.0.0 lets other machines in (then TLS is required)."),
)
@click.option(
    "--port",
    default=DEFAULT_C2S_PORT,
    show_default=True,
    type=click.IntRange(0, 65535),
    help=("Port to listen on; 0 picks a free one."),
)
@click.option("--public-host", default="", metavar="NAME", help="Name or address that invitations carry.")
@click.option("--domain", default=DEFAULT_DOMAIN, show_default=True, help="XMPP domain of the server.")
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    help=("Where jobs, accounts and the certificate are kept.  [default: ~/.local/share/kestrel/POOL]"),
)
@click.option(
    "--uses",
    default=1000,
    show_default=True,
    type=click.IntRange(1),
    help=("How many workers may join with the printed invitation."),
)
@click.option(
    "--expires",
    default="7d",
    show_default=True,
    metavar="TIME",
    callback=duration,
    help=("How long the invitation is good."),
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object when the pool is up.")
@click.option("-v", "--verbose", is_flag=True, help="Log what happens on standard error.")
def up(
    pool: str,
    host: str,
    port: int,
    public_host: str,
    domain: str,
    directory: Path | None,
    uses: int,
    expires: float,
    as_json: bool,
    verbose: bool,
) -> None:
    """Start a pool here: an XMPP server and a manager in one process.

    Prints an invitation; on every machine that shall work, run what it says. Jobs survive a restart.
    Ctrl-C ends the pool in order.

    \b
    kestrel up                       # for workers on this machine
    kestrel up --listen 0.0.0.0      # for workers anywhere that reach this machine
    """
    set_up_logs(verbose)
    access_path = pool_access_path(pool)
    settings = HostSettings(
        directory=directory or data_home() / pool,
        domain=domain,
        host=host,
        public_host=public_host,
        port=port,
        manager=ManagerSettings(pool=pool, admins=frozenset({f"admin@{domain.lower()}"})),
    )
    out = Output("json" if as_json else "table")

    async def serve() -> None:
        pool_host = PoolHost(settings)
        await pool_host.start()
        try:
            pool_host.account("admin", "admin").save(access_path)
            invitation = pool_host.invite("worker", uses=uses, expires_s=expires)
            _greet(out, pool, pool_host.address(), str(invitation), as_json)
            await _until_stopped(pool_host.service)
        finally:
            await pool_host.stop()

    asyncio.run(serve())


def _greet(out: Output, pool: str, address: tuple[str, int], invitation: str, as_json: bool) -> None:
    host, port = address
    if as_json:
        out.event({"pool": pool, "host": host, "port": port, "invitation": invitation})
        return
    out.line(f"Pool {pool!r} is up at {host}:{port}. On each machine that shall work, run:")
    out.line("")
    out.line(f"  kestrel worker --join {invitation}")
    out.line("")
    here = "" if pool == "default" else f" --pool {pool}"
    out.line(
        f"Then, here:  kestrel submit{here} -- ./my_task.sh  ·  kestrel status{here}  ·  Ctrl-C ends the pool"
    )


async def _until_stopped(service: ManagerService) -> None:
    stopped = asyncio.Event()
    on_stop_signals(stopped.set)
    await run_until(service, stopped.wait)
    log.info("pool_down")
