"""A client's connection: STARTTLS, login, registration, binding, acknowledgements (RFC 6120, XEP-0198).

Secrets are taken only encrypted or from this machine. What a bound client sends goes to the router
without a detour. Made by the service for each connection to the client port.
"""

from __future__ import annotations

import asyncio
import logging
import secrets

from kestrel.errors import EnvironmentProblem
from kestrel.server.connection import BUSY, SECURING, Connection
from kestrel.server.guard import TOKENS
from kestrel.server.hub import Hub
from kestrel.server.login import REGISTRATION_FORM, Challenge, Hash, Login, Registration, Step, Success
from kestrel.server.registering import make_account
from kestrel.server.sessions import Session
from kestrel.xmpp import stanza as x
from kestrel.xmpp.acks import ENABLED, AckCounter, AckError
from kestrel.xmpp.jid import JID, JidError, prepare_resource
from kestrel.xmpp.sasl import SaslError
from kestrel.xmpp.stream import Event, Stanza, StreamError, StreamHeader, StreamReader

log = logging.getLogger("kestrel.server")

_MESSAGE = f"{x.NS_CLIENT} message"
_STANZAS = frozenset((_MESSAGE, f"{x.NS_CLIENT} presence", f"{x.NS_CLIENT} iq"))
_ALL_BOUND = (
    f"<bind xmlns='{x.NS_BIND}'/><session xmlns='{x.NS_SESSION}'><optional/></session>"
    f"<sm xmlns='{x.NS_ACKS}'/>"
)


class ClientConnection(Connection):
    """One client, from the first byte to the last."""

    __slots__ = ("_login", "_user", "encrypted")

    way = "stream"
    takes_starttls = True

    def __init__(self, hub: Hub) -> None:
        super().__init__(hub)
        self.encrypted = False
        self._login: Login | None = Login(hub.accounts)
        """None once it has succeeded."""
        self._user = ""

    def _make_reader(self) -> StreamReader:
        limits = self.hub.limits
        return StreamReader(
            stanza_bytes_max=limits.login_stanza_bytes_max,
            depth_max=limits.depth_max,
            attributes_max=limits.attributes_max,
        )

    @property
    def outgoing_bytes_max(self) -> int:
        return self.hub.limits.outgoing_bytes_max

    @property
    def _tls_required(self) -> bool:
        return self.hub.requires_tls(self.address)

    @property
    def _may_secure(self) -> bool:
        return self.takes_starttls and self.hub.context is not None and not self.encrypted

    @property
    def _takes_secrets(self) -> bool:
        return self.encrypted or not self._tls_required

    # ----------------------------------------------------------------------------------------------
    # a bound client

    def _route(self, session: Session, events: list[Event]) -> int:
        on_client = self.hub.router.on_client
        acks = self.acks
        left = iter(events)
        turn_ends = 0.0
        for event in left:
            if event.__class__ is Stanza and event.tag in _STANZAS:
                if acks is not None:
                    acks.count_received()
                try:
                    on_client(session, event)
                except EnvironmentProblem as problem:
                    log.error("server.roster_not_kept", extra={**self._fields(), "reason": problem.text})
                if event.tag != _MESSAGE:
                    now = self.hub.loop.time()
                    turn_ends = turn_ends or now + self.hub.limits.turn_s_max
                    if now > turn_ends and not self.closed_at:
                        self._rest = list(left)
                        self._let_others()
                        break
                continue
            if self.closed_at:
                break
            self._on_other(event)
            acks = self.acks
            if self.closed_at:
                break
        return len(events)

    def _let_others(self) -> None:
        """One read may hold thousands of queries with long answers, or that write to the disk each: it is the
        others' turn, and what there is to say until now is said."""
        self.pause(BUSY)
        self.hub.loop.call_later(self.hub.limits.turn_s_max, self.resume, BUSY)

    def _on_other(self, event: Event) -> None:
        if not isinstance(event, Stanza):
            self._negotiate(event)
            return
        match (event.ns, event.name):
            case (x.NS_ACKS, "r"):
                if self.acks is not None:
                    self.write(self.acks.answer())
            case (x.NS_ACKS, "a"):
                self._on_ack(event)
            case (x.NS_ACKS, "enable"):
                self._enable_acks()
            case (x.NS_ACKS, "resume"):
                condition = f"<item-not-found xmlns='{x.NS_STANZA_ERRORS}'/>"
                self.write(f"<failed xmlns='{x.NS_ACKS}'>{condition}</failed>".encode())
            case (x.NS_CLIENT, _):
                raise StreamError("unsupported-stanza-type", f"{event.name!r} is no stanza")
            case _:
                raise StreamError("unsupported-stanza-type", f"{event.name!r} is not known here")

    def _on_ack(self, event: Stanza) -> None:
        if self.acks is None:
            return
        try:
            self.acks.on_ack(event.attrs.get("h"))
        except AckError as problem:
            raise StreamError("undefined-condition", problem.text) from problem

    def _enable_acks(self) -> None:
        if self.acks is not None or self.session is None:
            condition = f"<unexpected-request xmlns='{x.NS_STANZA_ERRORS}'/>"
            self.write(f"<failed xmlns='{x.NS_ACKS}'>{condition}</failed>".encode())
            return
        if self.session.outbox:
            # What waits was sent before acknowledgements began.
            self.write_outbox(self.session)
        self.acks = AckCounter()
        self.write(ENABLED)

    # ----------------------------------------------------------------------------------------------
    # before that

    def _on_header(self, header: StreamHeader) -> None:
        if self.session is not None or self.opened:
            raise StreamError("bad-format", "a second stream header")
        try:
            domain = JID.parse(header.attrs.get("to", "")).domain
        except JidError:
            domain = ""
        if not header.attrs.get("version", "").startswith("1."):
            raise StreamError("unsupported-version", "XMPP 1.0 is needed")
        if domain != self.hub.settings.domain:
            raise StreamError("host-unknown", f"this is {self.hub.settings.domain}")
        self.open_stream(features=f"<stream:features>{self._features()}</stream:features>".encode())

    def _features(self) -> str:
        if self._user:
            return _ALL_BOUND
        parts = []
        if self._may_secure:
            required = "<required/>" if self._tls_required else ""
            parts.append(f"<starttls xmlns='{x.NS_TLS}'>{required}</starttls>")
        if self._takes_secrets:
            names = Login.mechanisms(encrypted=self.encrypted)
            mechanisms = "".join(f"<mechanism>{name}</mechanism>" for name in names)
            parts.append(f"<mechanisms xmlns='{x.NS_SASL}'>{mechanisms}</mechanisms>")
            parts.append(f"<register xmlns='{x.NS_REGISTER_FEATURE}'/>")
        return "".join(parts)

    def _on_negotiation(self, element: Stanza) -> None:
        login = self._login
        match (element.ns, element.name):
            case (x.NS_TLS, "starttls") if login is not None:
                self._start_tls()
            case (x.NS_SASL, "auth" | "response" | "abort") if login is not None:
                self._on_sasl(login, element)
            case (x.NS_CLIENT, "iq") if login is not None:
                self._on_register(login, element)
            case (x.NS_CLIENT, "iq"):
                self._on_bind(element)
            case _:
                raise StreamError("not-authorized", f"{element.name!r} before the login is complete")

    # ----------------------------------------------------------------------------------------------
    # TLS

    def _start_tls(self) -> None:
        if not self._may_secure:
            self.write(f"<failure xmlns='{x.NS_TLS}'/>".encode())
            self.finish()
            return
        if not self.reader.at_boundary:
            raise StreamError("policy-violation", "data in the clear after starttls")
        assert self.transport is not None
        # The handshake may be answered before the task below runs; it must wait for TLS in the socket.
        self.transport.pause_reading()
        self.write(f"<proceed xmlns='{x.NS_TLS}'/>".encode())
        self.securing = True
        # The other end may speak (encrypted) before `_secure` goes on after the handshake: hold that.
        self._pauses |= SECURING
        # Nothing more is read in the clear: the reader forgets what came with it.
        self.reader.close()
        self.hub.spawn(self._secure())

    async def _secure(self) -> None:
        hub = self.hub
        assert self.transport is not None
        self._held = None
        try:
            transport = await hub.secure(self.transport, self)
        except (OSError, EOFError) as problem:
            log.info("server.tls_failed", extra={**self._fields(), "reason": str(problem)})
            self._lost(problem)
            return
        except asyncio.CancelledError:
            self._lost(None)
            raise
        if transport is None:
            self._lost(None)
            return
        self.securing = False
        self.transport = transport
        self.encrypted = True
        self.opened = False
        if self.closed_at:
            transport.abort()
            return
        self.reader = self._make_reader()
        self.resume(SECURING)

    def _lost(self, problem: Exception | None) -> None:
        """asyncio does not tell the protocol when a TLS handshake fails."""
        self.drop("tls")
        self.connection_lost(problem)

    # ----------------------------------------------------------------------------------------------
    # SASL (RFC 6120 section 6)

    def _on_sasl(self, login: Login, element: Stanza) -> None:
        if not self._takes_secrets:
            self._refuse(login, "encryption-required")
            return
        text = "".join(element.tree().itertext()).strip()
        try:
            match element.name:
                case "auth":
                    mechanism = element.attrs.get("mechanism", "")
                    step: Step = login.on_auth(mechanism, text, encrypted=self.encrypted)
                case "response":
                    step = login.on_response(text)
                case _:
                    login.abort()
                    raise SaslError("aborted", "The login was aborted.")
        except SaslError as problem:
            login.abort()
            self._refuse(login, problem.condition)
            return
        except EnvironmentProblem as problem:
            log.error("server.accounts_unreadable", extra={"reason": problem.text})
            login.abort()
            self._refuse(login, "temporary-auth-failure", "try again later")
            return
        match step:
            case Success(user, data):
                self._accept(user, data)
            case Challenge(text) if not login.user:
                self._challenge(text)
            case _:
                self._in_turn(login, login.user, step)

    def _in_turn(self, login: Login, user: str, step: Challenge | Hash) -> None:
        """Somebody is named: go on at once, or later if that was tried in vain too often."""
        hub = self.hub
        hold_s = hub.guard.hold_s(self.origin, user, hub.loop.time())
        if hold_s is None:
            login.abort()
            self._refuse(login, "temporary-auth-failure", "too many failed logins from this address")
        elif hold_s == 0.0:
            self._go_on(login, step)
        else:
            self.pause(BUSY)
            hub.loop.call_later(hold_s, self._go_on_later, login, step)

    def _go_on_later(self, login: Login, step: Challenge | Hash) -> None:
        if not self.closed_at:
            self._go_on(login, step)
            if isinstance(step, Challenge):
                self.resume(BUSY)

    def _go_on(self, login: Login, step: Challenge | Hash) -> None:
        if isinstance(step, Challenge):
            self._challenge(step.text)
        else:
            self.pause(BUSY)
            self.hub.spawn(self._check(login, step))

    def _challenge(self, text: str) -> None:
        self.write(f"<challenge xmlns='{x.NS_SASL}'>{text}</challenge>".encode())

    async def _check(self, login: Login, step: Hash) -> None:
        """A password that came as it is: hash it in a thread, then go on reading."""
        condition = "not-authorized"
        try:
            right = await self.hub.hashed(step.check)
        except EnvironmentProblem:
            right, condition = False, "temporary-auth-failure"
        if not right:
            # Also if it has hung up meanwhile: that was a try.
            self._refuse(login, condition)
        elif not self.closed_at:
            self._accept(step.user, "")
            self.resume(BUSY)

    def _accept(self, user: str, data: str) -> None:
        self.hub.guard.succeeded(self.origin, user)
        self._user = user
        self._login = None
        self.opened = False
        self.reader.stanza_bytes_max = self.hub.limits.stanza_bytes_max
        self.reader.reset()
        self.write(f"<success xmlns='{x.NS_SASL}'>{data}</success>".encode())

    def _refuse(self, login: Login, condition: str, text: str = "") -> None:
        """Say no, later each time, and close the stream after the last try."""
        hub = self.hub
        login.failures += 1
        delay_s = hub.limits.login_failure_delay_s * login.failures
        if condition == "not-authorized":
            delay_s = hub.guard.failed(self.origin, login.user, hub.loop.time())
        if condition != "temporary-auth-failure":  # those are counted, and logged once in a while
            fields = {**self._fields(), "condition": condition, "account": login.user}
            log.info("server.login_failed", extra=fields)
        words = f"<text xml:lang='en'>{x.escape_text(text)}</text>" if text else ""
        failure = f"<failure xmlns='{x.NS_SASL}'><{condition}/>{words}</failure>".encode()
        self._later(delay_s, failure, last=login.failures >= hub.limits.login_failures_max)

    def _later(self, delay_s: float, answer: bytes, *, last: bool) -> None:
        """Answer after a while, and read nothing until then."""
        self.pause(BUSY)

        def answer_now() -> None:
            if self.closed_at:
                return
            self.write(answer)
            if last:
                self.fail("policy-violation", "too many failures")
            else:
                self.resume(BUSY)

        self.hub.loop.call_later(delay_s, answer_now)

    # ----------------------------------------------------------------------------------------------
    # registration by invitation (XEP-0077)

    def _on_register(self, login: Login, element: Stanza) -> None:
        attrs = element.attrs
        kind = attrs.get("type")
        if (
            kind not in ("get", "set")
            or element.children[:1] == ()
            or element.children[0][0] != x.NS_REGISTER
        ):
            raise StreamError("not-authorized", "log in first")
        if not self._takes_secrets:
            self._answer_error(element, "policy-violation", "use STARTTLS first")
            return
        if kind == "get":
            self.write(x.iq_result(attrs, payload=REGISTRATION_FORM, from_=self.hub.settings.domain))
            return
        login.registrations += 1
        if login.registrations > self.hub.limits.registrations_max:
            raise StreamError("policy-violation", "too many tries to register")
        wanted = Registration.parse(element)
        if wanted is None:
            self._answer_error(element, "bad-request", "username, password and token are needed")
            return
        hold_s = self.hub.guard.hold_s(self.origin, TOKENS, self.hub.loop.time())
        if hold_s is None:
            self._answer_error(element, "resource-constraint", "too many failures from this address")
            return
        self.pause(BUSY)
        self.hub.spawn(self._register(login, element, wanted, hold_s))

    async def _register(self, login: Login, element: Stanza, wanted: Registration, hold_s: float) -> None:
        hub = self.hub
        await asyncio.sleep(hold_s)
        outcome = await make_account(hub, wanted)
        delay_s = 0.0
        if outcome.guessed:
            delay_s = hub.guard.failed(self.origin, TOKENS, hub.loop.time())
            log.info("server.registration_refused", extra={**self._fields(), "reason": outcome.text})
        elif outcome.condition:
            log.info("server.registration_failed", extra={**self._fields(), "reason": outcome.text})
        else:
            log.info("server.account_made", extra={**self._fields(), "account": outcome.text})
        request, domain = {"id": element.attrs.get("id", "")}, hub.settings.domain
        if outcome.condition:
            answer = x.error_reply("iq", request, outcome.condition, text=outcome.text, from_=domain)
        else:
            answer = x.iq_result(request, from_=domain)
        last = outcome.guessed and login.registrations >= hub.limits.registrations_max
        self._later(delay_s, answer, last=last)

    # ----------------------------------------------------------------------------------------------
    # binding (RFC 6120 section 7)

    def _on_bind(self, element: Stanza) -> None:
        hub = self.hub
        children = element.children
        if element.attrs.get("type") != "set" or not children or children[0][:2] != (x.NS_BIND, "bind"):
            raise StreamError("not-authorized", "bind a resource first")
        text = element.tree()[0].findtext(f"{{{x.NS_BIND}}}resource") or ""
        try:
            resource = prepare_resource(text) if text.strip() else secrets.token_hex(8)
        except JidError as problem:
            self._answer_error(element, "bad-request", problem.text)
            return
        resources = hub.router.tables.accounts.get(self._user) or {}
        if resource not in resources and len(resources) >= hub.limits.resources_max:
            self._answer_error(element, "resource-constraint", "this account has too many sessions")
            return
        account = hub.accounts.account(self._user)
        if account is None:
            raise StreamError("not-authorized", "the account was removed")
        session = hub.router.open_client(self, account, resource)
        self.session = session
        hub.logged_in(self)
        bound = f"<bind xmlns='{x.NS_BIND}'><jid>{x.escape_text(session.address)}</jid></bind>"
        self.write(x.iq_result({"id": element.attrs.get("id", "")}, payload=bound))
        log.info(
            "server.session_opened",
            extra={**self._fields(), "way": self.way, "encrypted": self.encrypted},
        )

    def _answer_error(self, element: Stanza, condition: str, text: str) -> None:
        request = {"id": element.attrs.get("id", "")}
        domain = self.hub.settings.domain
        self.write(x.error_reply("iq", request, condition, text=text, from_=domain))
