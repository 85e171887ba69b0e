"""`kestrel join`: from an invitation to a user's access to a pool."""

from __future__ import annotations

import asyncio
import getpass

import click

from kestrel.cli.connect import DEFAULT_POOL, connected_client, pool_name
from kestrel.cli.hosting import pool_words
from kestrel.cli.joining import INVITATION_VARIABLE, account_of, belongs, read_invitation, wanted_invitation
from kestrel.cli.options import json_option
from kestrel.cli.output import Output
from kestrel.config import Invitation, PoolAccess, pool_access_path
from kestrel.errors import AuthenticationError, KestrelError, UsageError
from kestrel.protocol import messages as m

NOT_ALLOWED = "not_allowed"


@click.command()
@click.argument("invitation", metavar="LINE", required=False)
@click.option("--pool", metavar="NAME", help=f"What to call the pool here.  [default: {DEFAULT_POOL}]")
@click.option("--name", default="", help="Name of the account to make.  [default: yours on this machine]")
@json_option
def join(invitation: str | None, pool: str | None, name: str, as_json: bool) -> None:
    """Join a pool as a user, with the LINE that `kestrel invite --role user` printed.

    \b
    kestrel join 'kestrel://…'
    kestrel join - < line.txt          # others on this machine can read command lines
    kestrel join @line.txt --pool lab

    The line may also be in $KESTREL_INVITATION. It is used once: then your access is kept in
    ~/.config/kestrel/pools, for you alone, and all commands find it there.
    """
    text = wanted_invitation(invitation)
    if text is None:
        raise UsageError(
            f"there is no invitation: name a LINE, -, @FILE, or set {INVITATION_VARIABLE}",
            hint="`kestrel invite --role user` prints one, on the pool's machine",
        )
    invited = read_invitation(text)
    called = pool_name(pool)
    path = pool_access_path(called)
    if path.exists():
        _check_same(PoolAccess.load(path), invited, called)
    access, seen, is_new = asyncio.run(_join(invited, called, name or _own_name()))
    _greet(Output("json" if as_json else "table"), called, access, seen, is_new)


async def _join(invited: Invitation, called: str, name: str) -> tuple[PoolAccess, m.PoolStatus, bool]:
    """The access, what the manager says, and whether the invitation was used."""
    path = pool_access_path(called)
    known = path.exists()
    access = await account_of(invited, path, name, purpose="user")
    try:
        return access, await _look(called), not known or bool(invited.user)
    except AuthenticationError as problem:
        if invited.user and not known:
            path.unlink()  # the line itself is wrong: nothing was made with it
        if not known or invited.user or problem.code == "certificate":
            raise
    # The account that was kept here is gone: the invitation makes another one.
    path.unlink()
    access = await account_of(invited, path, name, purpose="user")
    return access, await _look(called), True


async def _look(called: str) -> m.PoolStatus:
    """Ask the manager something small."""
    try:
        async with connected_client(called) as client:
            return await client.request(m.Pool(limit=1), m.PoolStatus)
    except KestrelError as problem:
        if problem.code != NOT_ALLOWED:
            raise
        raise AuthenticationError(
            f"this account may not use the pool: {problem.text}",
            hint="workers join with `kestrel worker --join`; `kestrel invite --role user` invites users",
            code=NOT_ALLOWED,
        ) from None


def _check_same(access: PoolAccess, invited: Invitation, called: str) -> None:
    if belongs(access, invited):
        return
    other = f"the name {called!r} stands for another pool here (manager {access.manager})"
    if access.manager == invited.manager:
        other = f"the pool {called!r} is known here with another domain or certificate than this line names"
    raise UsageError(
        other, hint=f"choose another name: kestrel join --pool NAME; or remove {pool_access_path(called)}"
    )


def _own_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no such user here, as in some containers
        return "user"


def _greet(out: Output, called: str, access: PoolAccess, seen: m.PoolStatus, is_new: bool) -> None:
    if out.mode == "json":
        record = {"pool": called, "jid": access.jid, "manager": access.manager, "workers": seen.count}
        out.document({**record, "joined": is_new})
        return
    here = pool_words(called)
    workers = "1 worker is" if seen.count == 1 else f"{seen.count} workers are"
    how = "Joined" if is_new else "You had joined before, and the invitation was not used"
    out.line(f"{how}: you are {access.jid} in pool {called!r}, where {workers} now. Try:")
    out.line("")
    out.line(f"  kestrel submit{here} --wait -- hostname")
    out.line(f"  kestrel pool{here}")
    out.line(f"  kestrel status{here}")
