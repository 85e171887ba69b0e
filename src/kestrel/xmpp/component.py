"""An XMPP session as an external component (XEP-0114): a whole domain is ours.

There is no encryption in XEP-0114: the secret is never sent, but stanzas are in the clear, so the
server should be on this machine or on a trusted network. Called by the manager.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from kestrel.errors import AuthenticationError, EnvironmentProblem, PeerError
from kestrel.xmpp import stanza as x
from kestrel.xmpp.acks import AckCounter
from kestrel.xmpp.dial import connect
from kestrel.xmpp.jid import JID
from kestrel.xmpp.session import Handler, Session, SessionSettings
from kestrel.xmpp.stream import StreamReader
from kestrel.xmpp.wire import StreamRefusedError, Wire

COMPONENT_PORT = 5347
STANZA_BYTES_MAX = 10 * 1024 * 1024
"""What the server may send to a component; it has bounded its clients already."""


@dataclass(frozen=True, slots=True)
class ComponentSettings:
    """A component's domain and how to reach its server."""

    domain: str
    secret: str = field(repr=False)
    host: str = "127.0.0.1"
    port: int = COMPONENT_PORT
    session: SessionSettings = field(default_factory=lambda: SessionSettings(retry_s_max=5.0))
    """Tries to connect more often than the default: there is one component, and all wait for it."""


class XmppComponent(Session):
    """A session as a component. `run` it; it tells `handler`."""

    def __init__(self, settings: ComponentSettings, handler: Handler) -> None:
        """Raises `JidError` if the domain is none."""
        self._domain = JID.parse(settings.domain).domain
        super().__init__(settings.session, handler, self._domain.partition(".")[2] or self._domain)
        self._settings = settings

    @property
    def _ping_from(self) -> str:
        return self._domain

    async def _log_in(self) -> tuple[Wire, str, AckCounter | None]:
        settings = self._settings
        wire = await connect(
            settings.host,
            settings.port,
            lambda: StreamReader(namespaces=frozenset((x.NS_COMPONENT,)), stanza_bytes_max=STANZA_BYTES_MAX),
            outgoing_bytes_max=self._bounds.outgoing_bytes_max,
        )
        try:
            wire.write(x.stream_header(x.NS_COMPONENT, to=self._domain, version=""))
            header = await wire.header()
            proof = hashlib.sha1((header.attrs.get("id", "") + settings.secret).encode()).hexdigest()
            wire.write(f"<handshake>{proof}</handshake>".encode())
            answer = await wire.element()
            if answer.name != "handshake":
                raise PeerError(f"The server sent {answer.name!r} instead of the handshake.")
        except StreamRefusedError as refused:
            wire.drop(refused)
            raise self._refusal(refused) from refused
        except BaseException:
            wire.drop(EnvironmentProblem("The login failed.", retry=True))
            raise
        return wire, self._domain, None

    def _refusal(self, refused: StreamRefusedError) -> AuthenticationError | EnvironmentProblem:
        match refused.condition:
            case "not-authorized":
                return AuthenticationError(
                    f"The server did not accept the secret of component {self._domain}.",
                    hint="Use the secret that the server's configuration has for this component.",
                )
            case "host-unknown" | "invalid-from" | "improper-addressing":
                return EnvironmentProblem(
                    f"The server does not know the component {self._domain} ({refused.condition}).",
                    hint="Add the component to the server's configuration.",
                    code="host_unknown",
                    retry=True,
                )
            case "conflict":
                return EnvironmentProblem(
                    f"The component {self._domain} is connected already.",
                    hint="Is another manager running?",
                    code="conflict",
                    retry=True,
                )
            case _:
                return EnvironmentProblem(refused.text, retry=True)
