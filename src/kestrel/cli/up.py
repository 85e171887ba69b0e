"""`kestrel up`: a pool on this machine, and an invitation for others."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import click

from kestrel.cli.hosting import hosting_options, pool_words, store_option, warn_of_password
from kestrel.cli.logs import set_up_logs
from kestrel.cli.output import Output
from kestrel.cli.policy import Policy, policy_options
from kestrel.cli.signals import on_stop_signals
from kestrel.config import Via, data_home, pool_access_path
from kestrel.local.host import HostSettings, PoolHost
from kestrel.manager.service import ManagerService, run_until

log = logging.getLogger("kestrel.up")


@click.command()
@hosting_options
@store_option
@policy_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object when the pool is up.")
@click.option("-v", "--verbose", is_flag=True, help="Log what happens on standard error.")
def up(
    pool: str,
    host: str,
    port: int,
    public_host: str,
    via: Via,
    domain: str,
    directory: Path | None,
    uses: int,
    expires: float,
    place: str | None,
    policy: Policy,
    as_json: bool,
    verbose: bool,
) -> None:
    """Start a pool here: an XMPP server and a manager in one process.

    Prints an invitation; on every machine that shall work, run what it says. Jobs survive a restart.
    Ctrl-C ends the pool in order.

    \b
    kestrel up                       # for workers on this machine
    kestrel up --listen 0.0.0.0      # for workers anywhere that reach this machine
    kestrel up --listen 0.0.0.0 --port 443 --invite-via wss   # for those who reach only web servers
    """
    set_up_logs(verbose)
    access_path = pool_access_path(pool)
    out = Output("json" if as_json else "table")
    warn_of_password(out, place)
    settings = HostSettings(
        directory=directory or data_home() / pool,
        domain=domain,
        host=host,
        public_host=public_host,
        via=via,
        port=port,
        store=place or "",
        manager=policy.settings(pool, owners=(f"admin@{domain.lower()}",)),
    )

    async def serve() -> None:
        pool_host = PoolHost(settings)
        await pool_host.start()
        try:
            pool_host.save_admin(access_path)
            invitation = pool_host.invite("worker", uses=uses, expires_s=expires, name="kestrel up")
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
    here = pool_words(pool)
    out.line(
        f"Then, here:  kestrel submit{here} -- ./my_task.sh  ·  kestrel status{here}  ·  Ctrl-C ends the pool"
    )
    out.line(f"More invitations, also for users:  kestrel invite{here} --role user")


async def _until_stopped(service: ManagerService) -> None:
    stopped = asyncio.Event()
    on_stop_signals(stopped.set)
    await run_until(service, stopped.wait)
    log.info("pool_down")
