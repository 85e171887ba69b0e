"""`kestrel server config`: a complete configuration of Prosody or ejabberd for a pool.

It prints, or writes what is secret for its owner only; it never touches a server. The texts are
`kestrel.local.foreign`'s.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import click

from kestrel.cli.output import Output
from kestrel.config import private_directory, write_private
from kestrel.errors import EnvironmentProblem, UsageError
from kestrel.local.foreign import Federation, ServerPlan, ejabberd_yml, ejabberdctl_cfg, prosody_cfg
from kestrel.xmpp.component import COMPONENT_PORT

SECRET_NAME = "component.secret"
SECRET_BYTES = 16
DISTRIBUTION_PORT = 5210
_F = TypeVar("_F", bound=Callable[..., object])


@dataclass(frozen=True, slots=True)
class _Places:
    """Where Debian's package keeps what belongs to a server."""

    data: str
    logs: str
    certificates: str


_DEBIAN = {
    "prosody": _Places("/var/lib/prosody", "/var/log/prosody", "/etc/prosody/certs"),
    "ejabberd": _Places("/var/lib/ejabberd", "/var/log/ejabberd", "/etc/ejabberd"),
}


def _port(name: str, default: int, text: str) -> Callable[[_F], _F]:
    kind = click.IntRange(0, 65535)
    return click.option(name, default=default, show_default=True, type=kind, help=text)


@click.command()
@click.argument("kind", type=click.Choice(["prosody", "ejabberd"]))
@click.option("--domain", default="localhost", show_default=True, help="Accounts are somebody@DOMAIN.")
@click.option("--component", default="", help="Address of the manager.  [default: kestrel.DOMAIN]")
@click.option(
    "--secret-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File with the component's secret; made if it is missing.  [default: a new secret]",
)
@click.option(
    "--listen",
    default="127.0.0.1",
    show_default=True,
    metavar="ADDRESS",
    help="Address to listen on for workers and users. Any other than loopback makes TLS compulsory.",
)
@_port("--port", 5222, "Port for XMPP with STARTTLS.")
@_port("--tls-port", 5223, "Port for TLS from the first byte; 0: none.")
@_port("--https-port", 5443, "Port for WebSockets within TLS; 0: none.")
@click.option(
    "--component-listen",
    default="127.0.0.1",
    show_default=True,
    metavar="ADDRESS",
    help="Address to listen on for managers. Their port has no encryption.",
)
@_port("--component-port", COMPONENT_PORT, "Port for managers.")
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write all that a server of one's own needs into this directory: configuration, certificate, "
    "secret.  [default: print a configuration for Debian's system service]",
)
@click.option("--certificate", default="", metavar="FILE", help="PEM file of the certificate.")
@click.option("--key", default="", metavar="FILE", help="PEM file of its key.")
@click.option("--require-tls", is_flag=True, help="No login without TLS, on loopback neither.")
@click.option(
    "--invites", is_flag=True, help="Prosody: accounts can be made with its invitations (XEP-0445)."
)
@click.option(
    "--federate", is_flag=True, help="Link it with other servers (s2s), by TLS with good certificates only."
)
@click.option(
    "--federate-listen",
    default="",
    metavar="ADDRESS",
    help="Address to listen on for other servers, port 5269.  [default: as for workers and users]",
)
@click.option(
    "--federate-ca",
    default="",
    metavar="FILE",
    help="PEM file of the authorities whose certificates are good.  [default: those of the system]",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the configuration into this file, readable by you only.",
)
@click.option("--force", is_flag=True, help="Overwrite a configuration that is another one.")
def config(
    kind: str,
    secret_file: Path | None,
    directory: Path | None,
    certificate: str,
    key: str,
    output: Path | None,
    force: bool,
    **given: Any,
) -> None:
    """Print a configuration of Prosody 0.12 or ejabberd 23.01 for a pool, each line with its reason.

    \b
    kestrel server config prosody --domain example.org --listen 0.0.0.0
    kestrel server config ejabberd --dir ~/ejabberd

    See docs/servers for the way from there to a pool.
    """
    if given["invites"] and kind != "prosody":
        raise UsageError(
            "ejabberd 23.01 knows no invitations", hint="make accounts with ejabberdctl register"
        )
    if bool(certificate) != bool(key):
        raise UsageError("--certificate and --key go together", hint="name both; they may be the same file")
    own = None if directory is None else directory.absolute()
    federation = _federation(given.pop("federate"), given.pop("federate_listen"), given.pop("federate_ca"))
    plan = _plan(kind, own, given | {"federation": federation})
    if certificate:
        plan = replace(plan, certificate=certificate, key=key)
    if own is not None:
        private_directory(own)
        private_directory(own / "data")
        secret_file = secret_file or own / SECRET_NAME
        if not certificate:
            made = _own_certificate(own, plan.domain)
            plan = replace(plan, certificate=made, key=made)
    plan = replace(plan, secret=_secret(secret_file))
    text = prosody_cfg(plan) if kind == "prosody" else ejabberd_yml(plan)
    main = output or (own / _file_name(kind) if own else None)
    if main is None:
        sys.stdout.write(text)
        return
    files = {main: text}
    if own is not None and kind == "ejabberd":
        port = _distribution_port(plan)
        words = ejabberdctl_cfg(
            config=str(main.absolute()), data=plan.data, logs=plan.logs, distribution_port=port
        )
        files[own / "ejabberdctl.cfg"] = words
    _write(files, force=force)
    _say(plan, list(files), secret_file)


def _plan(kind: str, own: Path | None, given: dict[str, Any]) -> ServerPlan:
    """Of the system's server, or of one's own in this directory; without the secret."""
    places = _DEBIAN[kind] if own is None else _Places(f"{own}/data", str(own), str(own))
    domain = given["domain"]
    return ServerPlan(
        **(given | {"component": given["component"] or f"kestrel.{domain}"}),
        secret="",
        data=places.data,
        logs=places.logs,
        certificate=f"{places.certificates}/{domain}.crt",
        key=f"{places.certificates}/{domain}.key",
        pidfile=_pidfile(kind, own),
        as_root=own is not None and hasattr(os, "geteuid") and os.geteuid() == 0,
    )


def _federation(wanted: bool, listen: str, ca: str) -> Federation | None:
    if not wanted and (listen or ca):
        raise UsageError("--federate-listen and --federate-ca say how to --federate", hint="add --federate")
    return Federation(ip=listen, cafile=ca) if wanted else None


def _file_name(kind: str) -> str:
    return "prosody.cfg.lua" if kind == "prosody" else "ejabberd.yml"


def _pidfile(kind: str, own: Path | None) -> str:
    if kind != "prosody":
        return ""
    return "/run/prosody/prosody.pid" if own is None else f"{own}/prosody.pid"


def _distribution_port(plan: ServerPlan) -> int:
    """A port for `ejabberdctl` on loopback; another one for each server of a machine."""
    taken = {plan.port, plan.tls_port, plan.https_port, plan.component_port}
    wanted = DISTRIBUTION_PORT if plan.port == 5222 else (plan.port + 1) % 65536
    while wanted in taken or wanted < 1024:
        wanted = (wanted + 1) % 65536
    return wanted


def _own_certificate(directory: Path, domain: str) -> str:
    from kestrel.server.certificate import ensure_certificate

    return str(ensure_certificate(directory, domain))


def _secret(path: Path | None) -> str:
    """That in the file, which is made if it is missing; without a file a new one."""
    if path is None:
        return secrets.token_hex(SECRET_BYTES)
    try:
        secret = path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        secret = secrets.token_hex(SECRET_BYTES)
        write_private(path, secret + "\n")
    except (OSError, UnicodeDecodeError) as problem:
        raise EnvironmentProblem(
            f"cannot read the secret from {path}: {getattr(problem, 'strerror', '') or problem}",
            hint="mend its permissions, or name another --secret-file",
        ) from None
    if not secret:
        raise UsageError(f"the file {path} is empty", hint="remove it, and a new secret is made")
    return secret


def _write(files: dict[Path, str], *, force: bool) -> None:
    """All of them, or none if one is there with another text."""
    for path, text in files.items():
        if path.exists() and not force and path.read_text(encoding="utf-8", errors="replace") != text:
            raise UsageError(
                f"{path} exists and is another one", hint="move it away, or overwrite it with --force"
            )
    for path, text in files.items():
        write_private(path, text)


def _say(plan: ServerPlan, files: list[Path], secret_file: Path | None) -> None:
    """What was written, and what others need to know of it."""
    out = Output("table")
    for path in files:
        out.line(f"Wrote {path}")
    if secret_file is not None:
        out.line(f"Secret of the manager: {secret_file}")
    try:
        from kestrel.server.certificate import fingerprint_of

        out.line(f"Fingerprint of the certificate: {fingerprint_of(Path(plan.certificate))}")
    except EnvironmentProblem:
        out.line(f"The certificate has to be at {plan.certificate}, its key at {plan.key}")
