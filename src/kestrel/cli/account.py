"""`kestrel account`: who has an account on the embedded server of a pool, on the pool's machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kestrel.cli.connect import access_of, pool_name
from kestrel.cli.options import json_option, pool_option
from kestrel.cli.output import Output, iso_time
from kestrel.config import PoolAccess, data_home
from kestrel.errors import UsageError

if TYPE_CHECKING:
    from kestrel.server.accounts import Account, Accounts

ROLES = ("worker", "user", "admin")
COLUMNS = ("ACCOUNT", "ROLE", "CREATED", "INVITATION")


@contextmanager
def accounts_here(pool: str | None) -> Iterator[tuple[Accounts, PoolAccess]]:
    """The accounts of the pool, and how this machine reaches it. Raises `UsageError` on other machines."""
    from kestrel.server.accounts import Accounts

    access = access_of(pool)
    path = Path(access.accounts) if access.accounts else data_home() / pool_name(pool) / "accounts.db"
    if not path.exists():
        raise UsageError(
            f"the accounts of this pool are not kept here ({path} does not exist)",
            hint="run this on the machine where `kestrel up` runs, as the same user; on Prosody and ejabberd "
            "use prosodyctl and ejabberdctl, and `kestrel invite --jid` for lines",
            code="not_here",
        )
    accounts = Accounts(path)
    try:
        yield accounts, access
    finally:
        accounts.close()


@click.group()
def account() -> None:
    """List, end and change the accounts of the pool that `kestrel up` runs on this machine.

    \b
    kestrel account list
    kestrel account role ann admin
    kestrel account remove node7
    """


@account.command("list")
@pool_option
@json_option
def list_accounts(pool: str | None, as_json: bool) -> None:
    """Show all accounts with their roles."""
    with accounts_here(pool) as (accounts, _):
        everyone = accounts.everyone()
    out = Output("json" if as_json else "table")
    if as_json:
        out.document([_plain(each) for each in everyone])
        return
    rows = [(each.local, each.role, iso_time(int(each.created)), each.invitation) for each in everyone]
    out.table(COLUMNS, rows)


@account.command()
@click.argument("name")
@pool_option
@json_option
def remove(name: str, pool: str | None, as_json: bool) -> None:
    """End the account NAME: its connections close within a second, what its workers ran goes to others."""
    with accounts_here(pool) as (accounts, access):
        local = _own_name(name, access)
        if local == access.jid.partition("@")[0]:
            raise UsageError(
                f"{access.jid} is the account of the commands on this machine",
                hint="name another one, or with --pool the pool that you mean",
            )
        accounts.remove(local)
    _say(
        as_json,
        {"account": local, "removed": True},
        f"The account {local!r} is gone. Its name is free: who takes it next has the jobs under it.",
    )


@account.command()
@click.argument("name")
@click.argument("role", type=click.Choice(ROLES))
@pool_option
@json_option
def role(name: str, role: str, pool: str | None, as_json: bool) -> None:
    """Give the account NAME another ROLE; it holds within a second, for connections that are open, too.

    A worker that gets its role back introduces itself again within half a minute.
    """
    with accounts_here(pool) as (accounts, access):
        local = _own_name(name, access)
        accounts.set_role(local, role)
    _say(as_json, {"account": local, "role": role}, f"{local!r} has the role {role} now.")


def _own_name(text: str, access: PoolAccess) -> str:
    """`ann`, or `ann@domain` of this pool, as it is kept."""
    from kestrel.xmpp.jid import JidError, prepare_local

    local, at, domain = text.partition("@")
    own = access.jid.partition("@")[2]
    try:
        if at and domain != own:
            raise UsageError(f"{text!r} is no account of {own}", hint="on this server one is written ann")
        return prepare_local(local)
    except JidError as problem:
        raise UsageError(problem.text, hint="`kestrel account list` shows the names") from None


def _plain(each: Account) -> dict[str, object]:
    return {
        "account": each.local,
        "role": each.role,
        "created": iso_time(int(each.created)),
        "invitation": each.invitation,
    }


def _say(as_json: bool, record: dict[str, object], words: str) -> None:
    if as_json:
        Output("json").document(record)
    else:
        Output("table").line(words)


def made_with(accounts: Accounts, invitation: str) -> list[Account]:
    """The accounts that were made with this invitation."""
    return [each for each in accounts.everyone() if each.invitation == invitation]
