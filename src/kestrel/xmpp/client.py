"""An XMPP session with an account: SASL, resource binding, acknowledgements (RFC 6120, XEP-0198).

Thin: `dial` opens the stream, `sasl` proves who we are, `session` keeps it alive. Passwords go over
encrypted or loopback connections only. Called by the worker, the user's client, and a manager without
a component of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from kestrel.config import Via
from kestrel.errors import AuthenticationError, EnvironmentProblem, PeerError
from kestrel.xmpp import stanza as x
from kestrel.xmpp.acks import ENABLE, AckCounter
from kestrel.xmpp.dial import Dialled, Endpoint, Lookup, TlsMode, dial, lookup_srv, open_stream
from kestrel.xmpp.jid import JID
from kestrel.xmpp.lookup import Target
from kestrel.xmpp.sasl import SaslClient
from kestrel.xmpp.session import Handler, Session, SessionSettings
from kestrel.xmpp.stream import Stanza
from kestrel.xmpp.wire import Wire

__all__ = ["ClientSettings", "TlsMode", "XmppClient"]

_TRY_AGAIN = frozenset(("temporary-auth-failure", "aborted"))


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """An account and how to reach its server."""

    jid: str
    """`user@domain`; a resource in it is used if `resource` is empty."""
    password: str = field(repr=False)
    host: str | None = None
    """None or empty: SRV lookup, then the domain."""
    port: int | None = None
    resource: str = ""
    """Empty: the server chooses."""
    tls: TlsMode | None = None
    """None: required, except on loopback, where it is used if offered."""
    fingerprint: str | None = None
    """SHA-256 of the only certificate (DER) to accept, in hex."""
    via: Via = ""
    """Direct TLS, or a WebSocket; empty: TCP with STARTTLS."""
    path: str = ""
    """Of the WebSocket; empty: the usual one."""
    priority: int | None = None
    """Send initial presence with this priority, to be reachable by the bare address; None: none."""
    session: SessionSettings = field(default_factory=SessionSettings)


class XmppClient(Session):
    """A session with an account. `run` it; it tells `handler`."""

    def __init__(self, settings: ClientSettings, handler: Handler, *, lookup: Lookup = lookup_srv) -> None:
        """Raises `JidError` if the address is none, `UsageError` for TLS settings that are not safe."""
        jid = JID.parse(settings.jid)
        if not jid.local:
            raise AuthenticationError(
                f"{settings.jid!r} is no account.", hint="An account is written user@domain."
            )
        super().__init__(settings.session, handler, jid.domain)
        self._settings = settings
        self._jid = jid
        self._lookup = lookup
        self._resource = jid.with_resource(settings.resource).resource if settings.resource else jid.resource
        self._endpoint = Endpoint(
            jid.domain,
            settings.host or "",
            settings.port or 0,
            settings.tls,
            settings.fingerprint or "",
            settings.via,
            settings.path,
        )
        _ = self._endpoint.tls_mode
        self._found_at: Target | None = None
        """Where we were let in last time: behind a firewall the other places cost seconds each."""

    @property
    def _ping_from(self) -> str:
        return ""

    async def _log_in(self) -> tuple[Wire, str, AckCounter | None]:
        dialled = await dial(
            self._endpoint,
            lookup=self._lookup,
            outgoing_bytes_max=self._bounds.outgoing_bytes_max,
            user=str(self._jid.bare),
            first=self._found_at,
        )
        self._found_at = None
        wire = dialled.wire
        try:
            await self._authenticate(dialled)
            features = await open_stream(wire, self._jid.domain, user=str(self._jid.bare))
            address = await self._bind(wire)
            acks = await self._enable_acks(wire, features)
            if self._settings.priority is not None:
                wire.write(x.presence(priority=self._settings.priority))
                if acks is not None:
                    acks.count_sent()
            self._found_at = dialled.target
            return wire, address, acks
        except BaseException:
            wire.drop(EnvironmentProblem("The login failed.", retry=True))
            raise

    async def _authenticate(self, dialled: Dialled) -> None:
        """SASL (RFC 6120 section 6). Raises `AuthenticationError` when the server says no for good."""
        wire = dialled.wire
        exchange = SaslClient(
            _mechanisms(dialled.features),
            self._jid.local,
            self._settings.password,
            encrypted=dialled.encrypted,
        )
        wire.write(
            f"<auth xmlns='{x.NS_SASL}' mechanism='{exchange.mechanism}'>{exchange.first}</auth>".encode()
        )
        while True:
            answer = await wire.element()
            if answer.ns != x.NS_SASL:
                raise PeerError(f"The server sent {answer.name!r} during the login.")
            text = "".join(answer.tree().itertext())
            match answer.name:
                case "challenge":
                    response = exchange.on_challenge(text)
                    wire.write(f"<response xmlns='{x.NS_SASL}'>{response}</response>".encode())
                case "success":
                    exchange.on_success(text)
                    wire.restart()
                    return
                case "failure":
                    raise self._refused(answer)
                case other:
                    raise PeerError(f"The server sent {other!r} during the login.")

    def _refused(self, failure: Stanza) -> AuthenticationError | EnvironmentProblem:
        names = [name for ns, name, _, _ in failure.children if ns == x.NS_SASL and name != "text"]
        condition = names[0] if names else "not-authorized"
        words = failure.child_text(x.NS_SASL, "text")
        text = f"The server did not accept the login of {self._jid.bare}: {condition}"
        text += f" ({words[:200]})." if words else "."
        if condition in _TRY_AGAIN:
            return EnvironmentProblem(text, retry=True)
        return AuthenticationError(text, hint="Check name and password; was the account removed?")

    async def _bind(self, wire: Wire) -> str:
        """Bind the resource (RFC 6120 section 7); returns the full address."""
        wanted = f"<resource>{x.escape_text(self._resource)}</resource>" if self._resource else ""
        answer = await self._ask(wire, "bind", f"<bind xmlns='{x.NS_BIND}'>{wanted}</bind>")
        if answer.attrs.get("type") != "result":
            if answer.has_child(x.NS_CLIENT, "error") and b"<conflict" in answer.raw:
                raise EnvironmentProblem(
                    f"Resource {self._resource!r} of {self._jid.bare} is connected already.",
                    hint="Give each process a resource of its own, or wait until the old session is gone.",
                    code="conflict",
                    retry=True,
                )
            raise EnvironmentProblem(
                f"The server did not bind resource {self._resource!r} of {self._jid.bare}.", retry=True
            )
        bound = answer.tree().findtext(f"{{{x.NS_BIND}}}bind/{{{x.NS_BIND}}}jid")
        if not bound:
            raise PeerError("The server bound a resource without saying which.")
        return str(JID.parse(bound))

    async def _enable_acks(self, wire: Wire, features: Stanza) -> AckCounter | None:
        """XEP-0198 without resumption, if offered: a lost session must be seen as lost at once."""
        if not features.has_child(x.NS_ACKS, "sm"):
            return None
        wire.write(ENABLE)
        acks = AckCounter()
        while True:
            answer = await wire.element()
            if answer.ns == x.NS_ACKS:
                return acks if answer.name == "enabled" else None
            # Stanzas that overtake the answer have no reader yet (RFC 6120 section 10.1: none is due).
            if answer.ns != x.NS_CLIENT:
                raise PeerError(f"The server sent {answer.name!r} instead of enabling acknowledgements.")

    async def _ask(self, wire: Wire, number: str, payload: str) -> Stanza:
        """Send an iq of type set and return its answer."""
        wire.write(x.iq("set", number, payload=payload))
        while True:
            answer = await wire.element()
            if answer.name == "iq" and answer.attrs.get("id") == number:
                return answer
            if answer.ns != x.NS_CLIENT:
                raise PeerError(f"The server sent {answer.name!r} instead of an answer.")


def _mechanisms(features: Stanza) -> list[str]:
    path = f"{{{x.NS_SASL}}}mechanisms/{{{x.NS_SASL}}}mechanism"
    return [element.text or "" for element in features.tree().findall(path)]
