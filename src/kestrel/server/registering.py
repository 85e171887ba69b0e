"""Makes an account for who shows an invitation.

The token comes first: without one nobody learns which names are taken, and no password is hashed. Called by
the client connections.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from kestrel.errors import AuthenticationError, KestrelError, UsageError
from kestrel.server.accounts import NameTakenError, keys_of_password
from kestrel.server.hub import Hub
from kestrel.server.login import Registration

log = logging.getLogger("kestrel.server")


_MISFITS = {
    ("worker", "user"): "it is for a worker: `kestrel worker --join` takes it",
    ("user", "worker"): "it is for a user: `kestrel join` takes it",
}
"""(role of the invitation, what the account shall be used for) → what is wrong with that."""


@dataclass(frozen=True, slots=True)
class Registered:
    """What came of it."""

    text: str
    """The account's name, or why there is none."""
    condition: str = ""
    """Stanza error; empty: the account is there."""
    guessed: bool = False
    """The token was worth nothing."""


async def make_account(hub: Hub, wanted: Registration) -> Registered:
    """Use the invitation, if everything else is right, too."""
    accounts = hub.accounts
    try:
        role = accounts.check_token(wanted.token)
        misfit = _MISFITS.get((role, wanted.purpose))
        if misfit is not None:
            # It is not used up by a mistake.
            return Registered(misfit, "not-allowed")
        iterations = accounts.iterations
        keys = await hub.hashed(lambda: keys_of_password(wanted.password, iterations))
        accounts.redeem(wanted.token, wanted.username, keys)
    except AuthenticationError as problem:
        return Registered(problem.text, "not-authorized", guessed=True)
    except NameTakenError as problem:
        return Registered(problem.text, "conflict")
    except UsageError as problem:
        return Registered(problem.text, "not-acceptable")
    except KestrelError as problem:
        log.error("server.registration_impossible", extra={"reason": problem.text})
        return Registered("try again later", "resource-constraint")
    return Registered(wanted.username)
