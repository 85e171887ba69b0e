"""`kestrel worker`: lend this machine to a pool."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import click
import msgspec

from kestrel.cli.joining import INVITATION_VARIABLE, join, plain_name, read_invitation, wanted_invitation
from kestrel.cli.logs import set_up_logs
from kestrel.cli.output import Output
from kestrel.cli.owner import owner_options, owner_rules, resource_of
from kestrel.config import Invitation, PoolAccess, ServerPlace, data_home, private_directory
from kestrel.errors import AuthenticationError, EnvironmentProblem, UsageError
from kestrel.worker.profile import detect
from kestrel.worker.service import ServiceSettings, run_with_access
from kestrel.worker.unix_user import check_enters, find_user
from kestrel.xmpp.jid import JID

WORKERS_PER_MACHINE_MAX = 1000
ACCESS_NAME = "access.json"


@click.command()
@click.option(
    "--join",
    "invitation",
    metavar="INVITATION",
    help="The line that `kestrel up` or `kestrel invite` printed. Others on this machine can read command "
    f"lines: - reads it from standard input, @FILE from a file; or put it into ${INVITATION_VARIABLE}.",
)
@click.option("--jid", metavar="JID", help="Or: an account on any XMPP server …")
@click.option("--password-file", type=click.Path(path_type=Path, dir_okay=False), help="… its password …")
@click.option("--manager", "manager_jid", metavar="JID", help="… and the manager to work for.")
@click.option(
    "--host",
    default="",
    help="Address of that server, if the DNS does not tell, e.g. wss://pool.example.org/xmpp-websocket.",
)
@click.option("--port", default=0, type=click.IntRange(0, 65535), help="Port of that server.")
@click.option("--fingerprint", default="", metavar="HEX", help="SHA-256 of the certificate to trust.")
@click.option("--name", default="", help="Name of this worker.  [default: the machine's, numbered]")
@click.option("-j", "--slots", type=click.IntRange(1), help="Tasks at once.  [default: the cores]")
@click.option("--provides", multiple=True, metavar="TAGS", help="What this machine has, e.g. 'PYTHON FOO'.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="Anything else to tell.")
@owner_options
@click.option(
    "--workdir",
    type=click.Path(path_type=Path, file_okay=False),
    help=("Where tasks run whose job names no directory.  [default: here]"),
)
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    help=("Where account, results and output are kept.  [default: ~/.local/share/kestrel/workers/NAME]"),
)
@click.option("-v", "--verbose", is_flag=True, help="Log what happens on standard error.")
def worker(
    invitation: str | None,
    jid: str | None,
    password_file: Path | None,
    manager_jid: str | None,
    host: str,
    port: int,
    fingerprint: str,
    name: str,
    slots: int | None,
    provides: tuple[str, ...],
    labels: tuple[str, ...],
    users: tuple[str, ...],
    hours: str | None,
    at_close: Literal["finish", "stop"],
    run_as: str,
    niceness: int,
    each_core: bool,
    workdir: Path | None,
    directory: Path | None,
    verbose: bool,
) -> None:
    """Lend this machine to a pool, until Ctrl-C (once: finish what runs; twice: stop it).

    \b
    kestrel worker --join kestrel://…
    kestrel worker --jid worker@pool.example.org/42 --password-file pw --manager kestrel.example.org
    kestrel worker --join … --users '*.example.org' --hours 'Mon-Fri 20:00-07:00, Sat, Sun' --run-as nobody

    The invitation is used once; started again with it, the worker keeps its account.
    """
    set_up_logs(verbose)
    owner = owner_rules(users, hours, at_close)
    words = [word for text in provides for word in text.split()]
    profile = detect(slots=slots, provides=words, labels=_labels(labels))
    profile = msgspec.structs.replace(profile, users=[str(pattern) for pattern in owner.users])
    if each_core and jid is not None and jid.partition("/")[2]:
        raise UsageError(
            "with --each-core the resources are core0, core1 …", hint=f"write --jid {jid.partition('/')[0]}"
        )
    if run_as:  # before the invitation is used
        check_enters(find_user(run_as), workdir or Path.cwd())
    invitation = invitation if jid is not None else wanted_invitation(invitation)
    if (invitation is None) == (jid is None):
        raise UsageError("name either --join or --jid", hint="see kestrel worker --help")
    invited = None if invitation is None else read_invitation(invitation)
    account = None
    if jid is not None:
        account = _account(jid, password_file, manager_jid, host, port, fingerprint)
    domain = invited.domain if invited else (jid or "").partition("@")[2].partition("/")[0]
    for place in [directory] if directory else _places(domain, name):
        private_directory(place)
        access = account or _join(invited, place, name or place.name)  # type: ignore[arg-type]
        if jid is not None and not each_core:
            access = replace(access, resource=resource_of(jid, place))
        settings = ServiceSettings(
            access.manager,
            profile,
            place,
            workdir or Path.cwd(),
            owner=owner,
            run_as=run_as,
            niceness=niceness,
        )
        try:
            asyncio.run(_work(access, settings, (profile.slots or profile.cores) if each_core else 0))
            return
        except EnvironmentProblem as problem:
            if problem.code != "in_use" or directory or name:
                raise
        except AuthenticationError as problem:
            if not invited or problem.code == "certificate":
                raise
            raise AuthenticationError(
                problem.text,
                hint=f"was the account removed? To join again, remove {place / ACCESS_NAME} and use a new "
                "invitation",
                code=problem.code,
            ) from None
    raise EnvironmentProblem(
        f"{WORKERS_PER_MACHINE_MAX} workers run on this machine",
        hint="one worker with --slots serves it better",
    )


async def _work(access: PoolAccess, settings: ServiceSettings, each_core: int) -> None:
    slots = settings.profile.slots or settings.profile.cores
    address = f"{access.jid}/core0 … core{each_core - 1}" if each_core else f"{access.jid}/{access.resource}"
    Output("table").line(
        f"Working as {address} for {access.manager} with {slots} slots. Ctrl-C leaves in order."
    )
    await run_with_access(access, settings, each_core=each_core)


def _join(invited: Invitation, place: Path, name: str) -> PoolAccess:
    """The account that this directory has with the pool, made with the invitation if it has none."""
    return join(invited, place / ACCESS_NAME, name, purpose="worker", resource="worker")


def _account(
    jid: str,
    password_file: Path | None,
    manager: str | None,
    host: str,
    port: int,
    fingerprint: str,
) -> PoolAccess:
    if password_file is None or manager is None:
        raise UsageError("--jid needs --password-file and --manager", hint="see kestrel worker --help")
    try:
        password = password_file.read_text(encoding="utf-8").strip()
    except OSError as problem:
        raise UsageError(f"cannot read the password from {password_file}: {problem.strerror}") from None
    account = jid.partition("/")[0]
    if "@" not in account:
        raise UsageError(f"{jid!r} is no account", hint="e.g. worker@pool.example.org/42")
    server = ServerPlace.parse(host, port)
    return PoolAccess(
        manager=str(JID.parse(manager)),
        jid=account,
        password=password,
        host=server.host,
        port=server.port,
        via=server.via,
        path=server.path,
        fingerprint=fingerprint.replace(":", "").lower(),
    )


def _places(domain: str, name: str) -> Iterator[Path]:
    """The directory of this name; without a name those of this machine, until one is not in use."""
    home = data_home() / "workers" / plain_name(domain)
    if name:
        yield home / plain_name(name)
        return
    machine = plain_name(platform.node().partition(".")[0]) or "worker"
    for number in range(1, WORKERS_PER_MACHINE_MAX + 1):
        yield home / (machine if number == 1 else f"{machine}-{number}")


def _labels(texts: tuple[str, ...]) -> dict[str, str]:
    labels = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(f"cannot read the label {text!r}", hint="write --label KEY=VALUE")
        labels[key] = value
    return labels
