"""`kestrel invite`: a line with which another machine or person joins a pool, and what became of it."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import click

from kestrel.cli.account import ROLES, accounts_here, made_with
from kestrel.cli.options import duration, json_option, pool_option
from kestrel.cli.output import Output, duration_text, iso_time
from kestrel.config import Invitation, ServerPlace
from kestrel.errors import UsageError

COLUMNS = ("ID", "ROLE", "USES_LEFT", "EXPIRES", "NAME")
_XMPP_URI = re.compile(
    r"xmpp:(?:(?P<user>[^@?]+)@)?(?P<domain>[^@?;]+)\?register(?P<rest>(?:;[^;=]+(?:=[^;]*)?)*)"
)


@dataclass(frozen=True, slots=True)
class _Foreign:
    """An account, or an invitation, of a server that is not ours."""

    jid: str | None
    password_file: Path | None
    uri: str | None
    manager: str | None
    place: ServerPlace
    fingerprint: str


@click.group(invoke_without_command=True)
@click.option("--role", type=click.Choice(ROLES), default="worker", show_default=True, help="What it is for.")
@click.option(
    "--uses", type=click.IntRange(1), default=1, show_default=True, help="How many may join with it."
)
@click.option(
    "--expires",
    default="7d",
    show_default=True,
    metavar="TIME",
    callback=duration,
    help="How long it is good.",
)
@click.option("--name", default="", metavar="TEXT", help="What `kestrel invite list` calls it.")
@click.option(
    "--jid", metavar="JID", help="Another server (Prosody, ejabberd …): an account that exists there …"
)
@click.option("--password-file", type=click.Path(path_type=Path, dir_okay=False), help="… with its password.")
@click.option(
    "--from",
    "uri",
    metavar="URI",
    help="Or: an invitation of that server, 'xmpp:DOMAIN?register;preauth=TOKEN'.",
)
@click.option("--manager", metavar="JID", help="The manager, with --jid and --from.")
@click.option(
    "--host",
    default="",
    help="Address that the line names, e.g. xmpps://pool.example.org:443; without: the DNS.",
)
@click.option("--fingerprint", default="", metavar="HEX", help="SHA-256 of that server's certificate.")
@pool_option
@json_option
@click.pass_context
def invite(
    ctx: click.Context,
    role: str,
    uses: int,
    expires: float,
    name: str,
    jid: str | None,
    password_file: Path | None,
    uri: str | None,
    manager: str | None,
    host: str,
    fingerprint: str,
    pool: str | None,
    as_json: bool,
) -> None:
    """Print a line with which others join the pool that `kestrel up` runs on this machine.

    \b
    kestrel invite                              # one worker, within a week
    kestrel invite --uses 100 --expires 12h     # a hundred
    kestrel invite --role user --name ann       # somebody who submits jobs: `kestrel join LINE`
    kestrel invite list
    kestrel invite revoke ID
    kestrel invite --jid node7@example.org --password-file pw --manager kestrel.example.org

    Whoever has the line can use it: hand it over as you would a password.
    """
    if ctx.invoked_subcommand is not None:
        return
    place = ServerPlace.parse(host) if host else None
    if jid is not None or uri is not None:
        foreign = _Foreign(jid, password_file, uri, manager, place or ServerPlace(""), fingerprint)
        _show(str(_of_foreign(foreign)), {}, as_json)
        return
    if manager is not None or password_file is not None or fingerprint:
        raise UsageError(
            "--manager, --password-file and --fingerprint are for accounts of other servers",
            hint="add --jid or --from; the embedded server knows them itself",
        )
    with accounts_here(pool) as (accounts, access):
        token = accounts.invite(role, uses=uses, expires_s=expires, name=name)
        identifier = accounts.id_of(token)
    where = place or ServerPlace(access.public_host or access.host, access.port, access.via, access.path)
    line = Invitation(
        token,
        where.host,
        where.port,
        access.jid.partition("@")[2],
        access.manager,
        access.fingerprint,
        via=where.via,
        path=where.path,
    )
    record = {"id": identifier, "role": role, "uses": uses, "expires": iso_time(int(time.time() + expires))}
    _show(str(line), record, as_json)


def _show(line: str, record: dict[str, object], as_json: bool) -> None:
    if as_json:
        Output("json").document({"invitation": line, **record})
    else:
        Output("table").line(line)


def _of_foreign(given: _Foreign) -> Invitation:
    from kestrel.xmpp.jid import JID

    if given.jid is not None and given.uri is not None:
        raise UsageError("name either --jid or --from", hint="see kestrel invite --help")
    if given.manager is None:
        raise UsageError("--jid and --from need --manager", hint="the address that `kestrel manager` shows")
    if given.jid is not None:
        account = JID.parse(given.jid)
        if not account.local:
            raise UsageError(f"{given.jid!r} is no account", hint="an account is written user@domain")
        domain, user, secret = account.domain, account.local, _password(given.password_file)
    else:
        domain, secret = _read_uri(given.uri or "")
        user = ""
    return Invitation(
        secret,
        given.place.host or domain,
        given.place.port,
        domain,
        str(JID.parse(given.manager)),
        given.fingerprint.replace(":", "").lower(),
        user,
        given.place.via,
        given.place.path,
    )


def _password(path: Path | None) -> str:
    if path is None:
        raise UsageError("--jid needs --password-file", hint="passwords do not belong on command lines")
    try:
        password = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as problem:
        reason = getattr(problem, "strerror", "") or str(problem)
        raise UsageError(f"cannot read the password from {path}: {reason}", hint="check the path") from None
    if not password:
        raise UsageError(f"the file {path} is empty", hint="put the account's password into it")
    return password


def _read_uri(text: str) -> tuple[str, str]:
    """Domain and token of `xmpp:DOMAIN?register;preauth=TOKEN` (XEP-0445 section 4.1)."""
    match = _XMPP_URI.fullmatch(text.strip())
    pairs = dict(part.partition("=")[::2] for part in (match["rest"] if match else "").split(";"))
    token = unquote(pairs.get("preauth", ""))
    if match is None or not token:
        raise UsageError(
            "this is no invitation that makes an account",
            hint="e.g. --from 'xmpp:example.org?register;preauth=TOKEN'; on Prosody "
            "`prosodyctl mod_invites generate example.org` prints one",
        )
    if match["user"]:
        raise UsageError(
            f"this invitation makes the account {unquote(match['user'])!r} only; who joins chooses a name",
            hint="make one without a name: `prosodyctl mod_invites generate DOMAIN`",
        )
    return unquote(match["domain"]), token


@invite.command("list")
@pool_option
@json_option
def list_invitations(pool: str | None, as_json: bool) -> None:
    """Show the invitations that can still be used."""
    with accounts_here(pool) as (accounts, _):
        states = accounts.invitations()
    out = Output("json" if as_json else "table")
    if as_json:
        out.document(
            [
                {
                    "id": each.id,
                    "role": each.role,
                    "uses_left": each.uses_left,
                    "expires": iso_time(int(each.expires)),
                    "name": each.name,
                }
                for each in states
            ]
        )
        return
    now = time.time()
    rows = [
        (each.id, each.role, each.uses_left, f"in {duration_text(each.expires - now)}", each.name)
        for each in states
    ]
    out.table(COLUMNS, rows)


@invite.command()
@click.argument("invitation", metavar="ID|LINE")
@pool_option
@json_option
def revoke(invitation: str, pool: str | None, as_json: bool) -> None:
    """Make an invitation worthless: its ID as `kestrel invite list` shows it, or the line itself.

    Who has joined with it already stays; `kestrel account remove NAME` ends an account.
    """
    wanted = Invitation.parse(invitation).token if "kestrel://" in invitation else invitation
    with accounts_here(pool) as (accounts, _):
        identifier = accounts.revoke(wanted)
        names = [each.local for each in made_with(accounts, identifier)]
    if as_json:
        Output("json").document({"id": identifier, "revoked": True, "accounts": names})
        return
    out = Output("table")
    out.line(f"The invitation {identifier} is worth nothing any more.")
    if names:
        shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
        out.line(f"Who joined with it stays: {shown}. `kestrel account remove NAME` ends an account.")
