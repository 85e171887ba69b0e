"""Makes an account on a server with an invitation: in-band registration (XEP-0077) with a token.

Where the server announces pre-authenticated registration (XEP-0445, Prosody's mod_invites_register), the
token is shown first, and then an ordinary registration follows. Elsewhere it travels in the registration
itself, which is how Kestrel's own server wants it. Either way under the same TLS rules as a password.
Called by whoever joins a pool.
"""

from __future__ import annotations

import asyncio
import secrets

from kestrel.config import Via
from kestrel.errors import AuthenticationError, EnvironmentProblem, PeerError, UsageError
from kestrel.xmpp import stanza as x
from kestrel.xmpp.dial import Endpoint, TlsMode, dial
from kestrel.xmpp.jid import JID
from kestrel.xmpp.link import error_condition
from kestrel.xmpp.stream import Stanza
from kestrel.xmpp.wire import Wire

REGISTER_S_MAX = 20.0
NS_PREAUTH = "urn:xmpp:pars:0"
NS_PREAUTHENTICATED = ("urn:xmpp:ibr-token:0", "urn:xmpp:invite")
"""By which a server announces XEP-0445; the second is what it was before it had a number."""
NAMES_TRIED_MAX = 5
"""How many random names are tried when each is taken."""


async def register(
    host: str | None,
    port: int | None,
    domain: str,
    token: str,
    *,
    username: str = "",
    password: str = "",
    tls: TlsMode | None = None,
    fingerprint: str | None = None,
    via: Via = "",
    path: str = "",
    purpose: str = "",
) -> tuple[str, str]:
    """Make an account; returns its bare JID and password.

    `purpose`: what it is for, `worker` or `user`; our own server does not use the invitation up for what it
    does not allow.
    Without `username` a random one is taken, without `password` a strong one is made.
    Raises `AuthenticationError` (the token or the certificate is not accepted), `UsageError` (the name
    is taken), `EnvironmentProblem`, `PeerError`.
    """
    endpoint = Endpoint(JID.parse(domain).domain, host or "", port or 0, tls, fingerprint or "", via, path)
    password = password or secrets.token_urlsafe(24)
    try:
        async with asyncio.timeout(REGISTER_S_MAX):
            dialled = await dial(endpoint)
            try:
                if any(dialled.features.has_child(ns, "register") for ns in NS_PREAUTHENTICATED):
                    await _show(dialled.wire, endpoint.domain, token)
                names = (
                    [username] if username else [f"w-{secrets.token_hex(5)}" for _ in range(NAMES_TRIED_MAX)]
                )
                for name in names:
                    answer = await _ask(dialled.wire, name, password, token, purpose)
                    if answer.attrs.get("type") == "result":
                        return str(JID(JID.parse(f"{name}@{domain}").local, endpoint.domain, "")), password
                    condition = error_condition(answer)
                    if condition != "conflict":
                        raise _refusal(condition, answer, endpoint.domain)
                raise UsageError(
                    f"The name {names[-1]!r} is taken on {endpoint.domain}.", hint="Choose another name."
                )
            finally:
                await dialled.wire.close()
    except TimeoutError as problem:
        raise EnvironmentProblem(
            f"The server of {endpoint.domain} did not answer within {REGISTER_S_MAX:g} s.",
            hint="Are address and port those of an XMPP server? A firewall may swallow what is sent.",
            retry=True,
        ) from problem


async def _show(wire: Wire, domain: str, token: str) -> None:
    """Show the token before the registration (XEP-0445 section 4.2)."""
    payload = f"<preauth xmlns='{NS_PREAUTH}' token='{x.escape_attribute(token)}'/>"
    answer = await _answer(wire, payload, to=domain)
    if answer.attrs.get("type") != "result":
        raise _refusal(error_condition(answer), answer, domain)


async def _ask(wire: Wire, name: str, password: str, token: str, purpose: str) -> Stanza:
    query = (
        f"<query xmlns='{x.NS_REGISTER}'><username>{x.escape_text(name)}</username>"
        f"<password>{x.escape_text(password)}</password>"
        f"<token xmlns='{x.NS_INVITATION}'{x.attributes(purpose=purpose)}>{x.escape_text(token)}</token>"
        "</query>"
    )
    return await _answer(wire, query)


async def _answer(wire: Wire, payload: str, *, to: str = "") -> Stanza:
    number = secrets.token_hex(4)
    wire.write(x.iq("set", number, to=to, payload=payload))
    while True:
        answer = await wire.element()
        if answer.name == "iq" and answer.attrs.get("id") == number:
            return answer
        if answer.ns != x.NS_CLIENT:
            raise PeerError(f"The server sent {answer.name!r} instead of an answer.")


def _refusal(condition: str, answer: Stanza, domain: str) -> AuthenticationError | PeerError:
    error = answer.tree().find(f"{{{x.NS_CLIENT}}}error")
    words = error.findtext(f"{{{x.NS_STANZA_ERRORS}}}text", "")[:200] if error is not None else ""
    if condition in ("not-authorized", "forbidden", "not-allowed"):
        return AuthenticationError(
            f"The server of {domain} does not accept the invitation ({words or condition}).",
            hint="It may be used up, expired or revoked: ask for a new one.",
            code="bad_invitation",
        )
    shown = f"{condition}: {words}" if words else condition
    return PeerError(
        f"The server of {domain} made no account ({shown}).",
        hint="Does it take registrations by invitation?",
    )
