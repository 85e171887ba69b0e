"""The commands that concern the workers of a pool: pool, drain."""

from __future__ import annotations

from typing import Any, Literal

import click

from kestrel.cli.connect import connected_client
from kestrel.cli.options import json_option, pool_option
from kestrel.cli.output import Output, iso_time
from kestrel.core.addresses import PARTS
from kestrel.protocol import messages as m

WORKER_COLUMNS = ("WORKER", "STATE", "SLOTS", "TASKS", "DONE", "FAILED", "OS", "RAM_MIB", "PROVIDES")
GROUP_COLUMNS = ("WORKERS", "IDLE", "SLOTS", "TASKS", "DONE", "FAILED")


def show_pool(out: Output, answer: m.PoolStatus, *, by: str = "", filtered: bool = False) -> None:
    """Print who is there, or the groups by a part of the address, and who left."""
    if out.mode == "json":
        out.document(answer)
        return
    if by:
        out.records(answer.groups, columns=(by.upper(), *GROUP_COLUMNS), row=_group_row)
        shown = sum(group.workers for group in answer.groups)
    else:
        owned = any(w.users for w in answer.workers)
        columns = (*WORKER_COLUMNS, "JOBS_OF") if owned else WORKER_COLUMNS
        out.records(answer.workers, columns=columns, row=lambda w: _worker_row(w, owned))
        shown = len(answer.workers)
    if answer.count > shown:
        out.line(f"… and {answer.count - shown} more")
    if not answer.count and not filtered:
        out.line("No workers. On each machine that shall work, run what `kestrel up` printed.")
    for gone in answer.lost[-10:]:
        requeued = f", {gone.requeued} tasks re-queued" if gone.requeued else ""
        out.line(f"gone: {gone.worker} at {iso_time(gone.lost)} ({gone.reason}{requeued})")


def _worker_row(w: m.WorkerInfo, owned: bool) -> tuple[object, ...]:
    system = " ".join(x for x in (w.os, w.arch) if x)
    row = (w.worker, w.state, w.slots, w.running, w.completed, w.failed, system, w.ram or "")
    return (*row, " ".join(w.provides), *([" ".join(w.users) or "all"] if owned else []))


def _group_row(g: m.WorkerGroup) -> tuple[object, ...]:
    return (g.name or "(none)", g.workers, g.idle, g.slots, g.running, g.completed, g.failed)


@click.command()
@click.argument("patterns", nargs=-1, metavar="[PATTERN…]")
@click.option("--by", type=click.Choice(PARTS), help="Show groups of workers with this part in common.")
@click.option("-q", "--quiet", is_flag=True, help="Print addresses (with --by: names of groups) only.")
@pool_option
@json_option
def pool(
    patterns: tuple[str, ...], by: Literal["user", "domain", "resource"] | None, quiet: bool, **rest: Any
) -> None:
    """Show the workers that the manager sees, and those that left lately.

    A PATTERN is an address or a part of one, with * and ?: only workers that one of them means are shown.

    \b
    kestrel pool                        everybody
    kestrel pool worker@pool/42         this one
    kestrel pool 'lab*@pool' '*/core2'  accounts that begin so, and anybody's core2
    kestrel pool example.org            everybody of this domain
    kestrel pool --by domain            how many of each domain, and how busy they are
    """
    import asyncio

    async def talk() -> m.PoolStatus:
        async with connected_client(rest["pool"]) as client:
            return await client.request(m.Pool(workers=list(patterns), by=by or ""), m.PoolStatus)

    out = Output("json" if rest["as_json"] else "quiet" if quiet else "table")
    show_pool(out, asyncio.run(talk()), by=by or "", filtered=bool(patterns))


@click.command()
@click.argument("pattern")
@click.option("--undo", is_flag=True, help="Give them tasks again.")
@pool_option
@json_option
def drain(pattern: str, undo: bool, pool: str | None, as_json: bool) -> None:
    """Give workers no more tasks: what they have, they end. That lasts until it is undone.

    PATTERN is a worker's address, as `kestrel pool` shows it, or means several: 'lab*@pool', '*/core2'.
    """
    import asyncio

    async def talk() -> m.Accepted:
        async with connected_client(pool) as client:
            return await client.request(m.Drain(worker=pattern, undo=undo), m.Accepted)

    answer = asyncio.run(talk())
    if as_json:
        Output("json").document({"workers": answer.changed, "drained": not undo})
        return
    count = "1 worker" if answer.changed == 1 else f"{answer.changed} workers"
    Output("table").line(f"{count} {'back in use' if undo else 'draining'}.")
