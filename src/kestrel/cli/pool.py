"""The commands that concern the workers of a pool: pool, drain, invite."""

from __future__ import annotations

from pathlib import Path

import click

from kestrel.cli.connect import access_of, connected_client, pool_name
from kestrel.cli.options import duration, json_option, pool_option
from kestrel.cli.output import Output, iso_time
from kestrel.config import Invitation, data_home
from kestrel.errors import UsageError
from kestrel.protocol import messages as m

WORKER_COLUMNS = ("WORKER", "STATE", "SLOTS", "TASKS", "DONE", "FAILED", "OS", "RAM_MIB", "PROVIDES")


def show_pool(out: Output, answer: m.PoolStatus) -> None:
    """Print who is there and who left."""
    if out.mode == "json":
        out.document(answer)
        return
    out.records(answer.workers, columns=WORKER_COLUMNS, row=_worker_row)
    if answer.count > len(answer.workers):
        out.line(f"… and {answer.count - len(answer.workers)} more")
    if not answer.count:
        out.line("No workers. On each machine that shall work, run what `kestrel up` printed.")
    for gone in answer.lost[-10:]:
        requeued = f", {gone.requeued} tasks re-queued" if gone.requeued else ""
        out.line(f"gone: {gone.worker} at {iso_time(gone.lost)} ({gone.reason}{requeued})")


def _worker_row(w: m.WorkerInfo) -> tuple[object, ...]:
    system = " ".join(x for x in (w.os, w.arch) if x)
    provides = " ".join(w.provides)
    return (w.worker, w.state, w.slots, w.running, w.completed, w.failed, system, w.ram or "", provides)


@click.command()
@pool_option
@json_option
def pool(pool: str | None, as_json: bool) -> None:
    """Show the workers that the manager sees, and those that left lately."""
    import asyncio

    async def talk() -> m.PoolStatus:
        async with connected_client(pool) as client:
            return await client.request(m.Pool(), m.PoolStatus)

    show_pool(Output("json" if as_json else "table"), asyncio.run(talk()))


@click.command()
@click.argument("worker")
@click.option("--undo", is_flag=True, help="Give it tasks again.")
@pool_option
def drain(worker: str, undo: bool, pool: str | None) -> None:
    """Give WORKER (its address, as `kestrel pool` shows it) no more tasks; what it has, it ends."""
    import asyncio

    async def talk() -> m.Accepted:
        async with connected_client(pool) as client:
            return await client.request(m.Drain(worker=worker, undo=undo), m.Accepted)

    answer = asyncio.run(talk())
    Output("table").line(f"{answer.changed} worker(s) {'back in use' if undo else 'draining'}.")


@click.command()
@click.option("--role", type=click.Choice(["worker", "user", "admin"]), default="worker", show_default=True)
@click.option("--uses", type=click.IntRange(1), default=1, show_default=True)
@click.option("--expires", default="7d", show_default=True, metavar="TIME", callback=duration)
@pool_option
@json_option
def invite(role: str, uses: int, expires: float, pool: str | None, as_json: bool) -> None:
    """Print an invitation to the pool that `kestrel up` runs on this machine."""
    from kestrel.server.accounts import Accounts

    access = access_of(pool)
    path = Path(access.accounts) if access.accounts else data_home() / pool_name(pool) / "accounts.db"
    if not path.exists():
        raise UsageError(
            f"the accounts of this pool are not kept here ({path} does not exist)",
            hint="invite on the machine where `kestrel up` runs",
        )
    accounts = Accounts(path)
    try:
        token = accounts.invite(role, uses=uses, expires_s=expires)
    finally:
        accounts.close()
    domain = access.jid.partition("@")[2]
    line = str(
        Invitation(
            token, access.public_host or access.host, access.port, domain, access.manager, access.fingerprint
        )
    )
    out = Output("json" if as_json else "table")
    if as_json:
        out.document({"invitation": line, "role": role, "uses": uses})
    else:
        out.line(line)
