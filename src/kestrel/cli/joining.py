"""From an invitation to an account: for `kestrel worker --join` and `kestrel join`.

The line is a secret: it need not be on a command line, where everybody on the machine can read it. An account
that was made once is kept and used again; the invitation is asked for nothing then.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import sys
from dataclasses import replace
from pathlib import Path

from kestrel.config import Invitation, PoolAccess
from kestrel.errors import AuthenticationError, UsageError

INVITATION_VARIABLE = "KESTREL_INVITATION"
INVITATION_BYTES_MAX = 16_384
NAME_CHARS_MAX = 60
FILE_HINT = "write @FILE for a file that contains the line, or - to read it from standard input"


def read_invitation(text: str) -> Invitation:
    """The line itself, `-` (standard input) or `@FILE`. Raises `UsageError`."""
    if text == "-":
        text = sys.stdin.readline(INVITATION_BYTES_MAX)
    elif text.startswith("@"):
        path = Path(text[1:]).expanduser()
        try:
            with path.open(encoding="utf-8") as file:
                text = file.read(INVITATION_BYTES_MAX)
        except (OSError, UnicodeDecodeError) as problem:
            reason = getattr(problem, "strerror", "") or str(problem)
            raise UsageError(f"cannot read the invitation from {path}: {reason}", hint=FILE_HINT) from None
    return Invitation.parse(text)


def wanted_invitation(text: str | None) -> str | None:
    """The one that was given, or else the one in the environment, which no other user can read."""
    return text or os.environ.get(INVITATION_VARIABLE) or None


def plain_name(name: str) -> str:
    """A name that is good for a directory and for an address."""
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-.")[:NAME_CHARS_MAX]


async def account_of(
    invited: Invitation, path: Path, name: str, *, purpose: str, resource: str = ""
) -> PoolAccess:
    """The account that `path` has with this pool, made with the invitation if there is none, and kept there.

    `purpose` is `worker` or `user`; `resource` what its sessions are called, unless many share the account.
    Raises `AuthenticationError` for the invitation, `UsageError`, `EnvironmentProblem`.
    """
    kept = PoolAccess.load(path) if path.exists() else None
    if kept is not None and belongs(kept, invited):
        access = replace(kept, host=_host(invited), port=invited.port, via=invited.via, path=invited.path)
        if invited.user:
            access = replace(access, jid=f"{invited.user}@{invited.domain}", password=invited.token)
    elif invited.user:
        access = _access(invited, f"{invited.user}@{invited.domain}", invited.token)
        # Many may have been given this account: each needs a name of its own.
        access = replace(access, resource=f"{name}-{secrets.token_hex(3)}" if resource else "")
    else:
        jid, password = await _made(invited, name, purpose)
        access = replace(_access(invited, jid, password), resource=resource)
    if access != kept:
        access.save(path)
    return access


def belongs(access: PoolAccess, invited: Invitation) -> bool:
    """Whether this is an account of the pool that the invitation is for."""
    same_pool = access.manager == invited.manager and access.fingerprint == invited.fingerprint
    return same_pool and access.jid.partition("@")[2] == invited.domain


def _host(invited: Invitation) -> str:
    """Empty where the DNS knows: the line has nothing but the domain."""
    dns = invited.host == invited.domain and not (invited.port or invited.via or invited.path)
    return "" if dns else invited.host


def _access(invited: Invitation, jid: str, password: str) -> PoolAccess:
    return PoolAccess(
        manager=invited.manager,
        jid=jid,
        password=password,
        host=_host(invited),
        port=invited.port,
        fingerprint=invited.fingerprint,
        via=invited.via,
        path=invited.path,
    )


async def _made(invited: Invitation, name: str, purpose: str) -> tuple[str, str]:
    plain = plain_name(name)
    try:
        try:
            return await _register(invited, plain, purpose)
        except UsageError:  # somebody has this name: be one of several
            return await _register(invited, f"{plain}-{secrets.token_hex(3)}", purpose)
    except AuthenticationError as problem:
        if problem.code != "bad_invitation":
            raise
        raise AuthenticationError(
            f"the pool did not accept this invitation: {problem.text}",
            hint="ask for a new one: `kestrel invite` on the pool's machine prints one",
            code=problem.code,
        ) from None


async def _register(invited: Invitation, name: str, purpose: str) -> tuple[str, str]:
    from kestrel.xmpp.register import register

    return await register(
        _host(invited),
        invited.port,
        invited.domain,
        invited.token,
        username=name,
        fingerprint=invited.fingerprint or None,
        via=invited.via,
        path=invited.path,
        purpose=purpose,
    )


def join(invited: Invitation, path: Path, name: str, *, purpose: str, resource: str = "") -> PoolAccess:
    """`account_of`, for a command that has no loop of its own yet."""
    return asyncio.run(account_of(invited, path, name, purpose=purpose, resource=resource))
