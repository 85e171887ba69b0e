"""`kestrel server run`: the embedded XMPP server as a process of its own, for managers that come and go."""

from __future__ import annotations

import asyncio
import logging
import shlex
from pathlib import Path

import click

from kestrel.cli.hosting import hosting_options, pool_words
from kestrel.cli.logs import set_up_logs
from kestrel.cli.output import Output
from kestrel.cli.server_config import config
from kestrel.cli.signals import on_stop_signals
from kestrel.config import Via, data_home, pool_access_path
from kestrel.local.hosted import HostedServer, HostedServerSettings
from kestrel.server.service import is_loopback
from kestrel.xmpp.component import COMPONENT_PORT

log = logging.getLogger("kestrel.server")


@click.group()
def server() -> None:
    """Run the XMPP server of a pool as a process of its own.

    `kestrel up` brings server and manager in one process. Apart, each can be restarted without the other,
    and several managers can stand by for one pool. Prosody and ejabberd serve pools as well: `config` prints
    what they need.
    """


server.add_command(config)


@server.command()
@hosting_options
@click.option(
    "--component-port",
    default=COMPONENT_PORT,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Port for managers; 0 picks a free one.",
)
@click.option(
    "--component-listen",
    "component_host",
    default="127.0.0.1",
    show_default=True,
    metavar="ADDRESS",
    help="Address to listen on for managers. Their port has no encryption: keep it on this machine, or in a "
    "network that you trust.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object when the server is up.")
@click.option("-v", "--verbose", is_flag=True, help="Log what happens on standard error.")
def run(
    pool: str,
    host: str,
    port: int,
    public_host: str,
    via: Via,
    domain: str,
    directory: Path | None,
    uses: int,
    expires: float,
    component_port: int,
    component_host: str,
    as_json: bool,
    verbose: bool,
) -> None:
    """Run the XMPP server of a pool, without a manager, until Ctrl-C.

    Prints how to start a manager for it, and an invitation for workers. Accounts, certificate and the
    manager's secret are kept: after a restart with the same ports, managers, workers and users reconnect
    by themselves.

    \b
    kestrel server run
    kestrel server run --listen 0.0.0.0 --public-host pool.example.org
    """
    set_up_logs(verbose)
    access_path = pool_access_path(pool)
    settings = HostedServerSettings(
        directory=directory or data_home() / pool,
        domain=domain,
        host=host,
        public_host=public_host,
        via=via,
        port=port,
        component_host=component_host,
        component_port=component_port,
    )
    out = Output("json" if as_json else "table")

    async def serve() -> None:
        stopped = asyncio.Event()
        hosted = HostedServer(settings)
        await hosted.start()
        try:
            on_stop_signals(stopped.set)
            if not is_loopback(component_host):
                out.warn(
                    f"managers reach {component_host}:{hosted.server.component_port} without encryption: "
                    "whoever can read that network can read jobs and results"
                )
            admin = hosted.save_admin(access_path)
            invitation = hosted.invite("worker", uses=uses, expires_s=expires, name="kestrel server run")
            _greet(out, pool, hosted, str(invitation), admin.jid)
            await stopped.wait()
        finally:
            await hosted.stop()
        log.info("server_down")

    asyncio.run(serve())


def _greet(out: Output, pool: str, hosted: HostedServer, invitation: str, admin: str) -> None:
    host, port = hosted.address()
    component_port = hosted.server.component_port
    if out.mode == "json":
        out.event(
            {
                "pool": pool,
                "host": host,
                "port": port,
                "invitation": invitation,
                "component": hosted.manager_jid,
                "component_port": component_port,
                "secret_file": hosted.secret_file,
                "admin": admin,
            }
        )
        return
    out.line(f"The server of pool {pool!r} is up at {host}:{port}. Start a manager for it, here:")
    out.line("")
    out.line(f"  {manager_command(pool, hosted)}")
    out.line("")
    out.line("On each machine that shall work, run:")
    out.line("")
    out.line(f"  kestrel worker --join {invitation}")
    out.line("")
    named = pool_words(pool)
    out.line(f"Then, here:  kestrel submit{named} -- ./my_task.sh  ·  kestrel status{named}")
    out.line("Ctrl-C ends the server; jobs are the manager's, and workers go on with what they run.")


def manager_command(pool: str, hosted: HostedServer) -> str:
    """The command that starts a manager for this server on this machine."""
    words = ["kestrel", "manager", "--component", hosted.manager_jid]
    words += ["--secret-file", str(hosted.secret_file)]
    if hosted.server.component_port != COMPONENT_PORT:
        words += ["--port", str(hosted.server.component_port)]
    if hosted.where.component_host not in ("127.0.0.1", "0.0.0.0", "::"):
        words += ["--host", hosted.where.component_host]
    if pool != "default":
        words += ["--pool", pool]
    if hosted.where.directory != data_home() / pool:
        words += ["--dir", str(hosted.where.directory.absolute())]
    return shlex.join(words)
