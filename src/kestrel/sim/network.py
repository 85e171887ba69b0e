"""An XMPP network in memory: one server, sessions with ordered streams, presence, bounces, and faults.

Every node has a `Link`, which is the `kestrel.ports.Transport` of the production shell above it. Messages
travel as the encoded bytes. Callbacks never come from inside the call that caused them. Called by the
world and its faults.

Modelled, as XMPP has it:
* a session is two streams, each of which delivers in order; streams of different sessions run at their own
  pace, so what two senders send at once arrives in any order, and a reply may overtake a presence;
* a stream that breaks loses its end, never its middle; each side notices in its own time (`break_session`);
* who was sent directed presence learns when a session ends, but for addresses in `untold`: some servers
  (Prosody) say nothing of a component that goes; messages to somebody who is not there bounce;
* an address that is bound again ends the older session and tells it (conflict), which is final for a
  manager, as in production: it stands by again; or, for addresses in `exclusive`, the newcomer is turned
  away as long as the server believes that the older one lives;
* silence: nothing moves, nobody is told, nothing is lost yet (`stall`), for any set of nodes at once; a node
  that is silent cannot connect anew either;
* a server that restarts, and knows nobody then; delays of a hop, and spikes that hold up a whole stream;
* messages that arrive twice, as from a peer that sends again what it believes lost.

Not modelled: the loss of single stanzas within a living stream and disorder within it (TCP forbids both),
stream resumption (not used on these links), several servers (a broken link between two looks like silence
of the nodes behind it), presence that the server invents, and limits on size and rate (tested elsewhere).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from random import Random

from kestrel.ports import Show, TransportEvents
from kestrel.sim.clock import ProcessClock, Timeline, Timer
from kestrel.sim.trace import Trace

CONFLICT = "conflict: bound again"


class Kind(Enum):
    """What a stanza is."""

    MESSAGE = "message"
    WORDS = "words"
    AVAILABLE = "available"
    UNAVAILABLE = "unavailable"
    BOUNCE = "bounce"
    PING = "ping"
    PONG = "pong"
    END = "end"
    """Not a stanza: the end of the stream, after everything that was sent before."""


@dataclass(frozen=True, slots=True)
class Stanza:
    """One stanza on its way; `sender` is stamped by the server's knowledge of the session."""

    kind: Kind
    sender: str
    to: str
    payload: bytes = b""
    chat: bool = False
    show: Show = Show.ONLINE
    text: str = ""


@dataclass(slots=True)
class NetworkSettings:
    """How good the network is. Seconds; probabilities per stanza."""

    delay_s: float = 0.002
    """Longest ordinary delay of one hop."""
    spike_probability: float = 0.0
    spike_s: float = 0.0
    """Longest delay of a hop that is struck by a spike; the stream behind it waits too."""
    duplicate_probability: float = 0.0
    """Messages that arrive twice; XMPP does not do that, a peer that sends again does."""
    reconnect_s: float = 2.0
    """Longest wait before a node tries to connect again."""


class Stream:
    """One direction of a session: delivers in order, each stanza after its delay."""

    def __init__(self, network: Network, deliver: Callable[[Stanza], None]) -> None:
        self._network = network
        self._deliver = deliver
        self._queue: deque[tuple[float, Stanza]] = deque()
        self._last_due = 0.0
        self._timer: Timer | None = None
        self._stalled = False
        self.closed = False

    def __len__(self) -> int:
        return len(self._queue)

    def put(self, stanza: Stanza) -> None:
        """Send; into nothing if the stream is closed."""
        if self.closed:
            return
        network = self._network
        self._last_due = max(self._last_due, network.timeline.now + network.delay())
        self._queue.append((self._last_due, stanza))
        self._arm()

    def _arm(self) -> None:
        if self._timer is None and self._queue and not self._stalled and not self.closed:
            delay = self._queue[0][0] - self._network.timeline.now
            self._timer = self._network.timeline.call_later(delay, self._arrive)

    def _arrive(self) -> None:
        self._timer = None
        now = self._network.timeline.now
        while self._queue and not self._stalled and not self.closed and self._queue[0][0] <= now:
            _, stanza = self._queue.popleft()
            self._deliver(stanza)
        self._arm()

    def stall(self, stalled: bool) -> None:
        """Hold everything back (nothing is lost yet), or let it go on."""
        self._stalled = stalled
        self._arm()

    def cut(self, keep: int) -> None:
        """The stream is dead. The first `keep` stanzas under way still arrive, the others are lost."""
        if self.closed:
            return
        arriving = [stanza for _, stanza in self._queue][:keep]
        self._queue.clear()
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
        for stanza in arriving:
            self._deliver(stanza)


class Session:
    """One connection of a node, as the server sees it."""

    def __init__(self, network: Network, link: Link) -> None:
        self.link = link
        self.address = link.address
        self.directed: dict[str, None] = {}
        """Who was sent directed presence, and so learns of the end."""
        self.ended = False
        self.stalled = False
        self.up = Stream(network, lambda stanza: network.route(self, stanza))
        self.down = Stream(network, lambda stanza: link.arrive(self, stanza))

    def stall(self, stalled: bool) -> None:
        self.stalled = stalled
        self.up.stall(stalled)
        self.down.stall(stalled)


class Link:
    """A node's connection. Implements `kestrel.ports.Transport`; reconnects by itself."""

    def __init__(self, network: Network, address: str, clock: ProcessClock) -> None:
        self.address = address
        self.clock = clock
        self.session: Session | None = None
        self.refused = False
        """While set, every attempt to connect fails."""
        self.on_first_up: Callable[[], None] | None = None
        """Called once, before the owner hears that it is connected."""
        self.on_conflict: Callable[[], None] | None = None
        """Called when somebody else has bound our address, instead of connecting again."""
        self._network = network
        self._events: TransportEvents | None = None
        self._closed = False

    def attach(self, events: TransportEvents) -> None:
        """Tell these from now on."""
        self._events = events

    @property
    def up(self) -> bool:
        return self.session is not None

    # --- ports.Transport --------------------------------------------------------------------------

    def send(self, to: str, payload: bytes, *, chat: bool = False) -> None:
        self._put(Stanza(Kind.MESSAGE, self.address, to, payload, chat))

    def say(self, to: str, text: str) -> None:
        self._put(Stanza(Kind.WORDS, self.address, to, text=text))

    def announce(self, to: str, show: Show, status: str) -> None:
        self._put(Stanza(Kind.AVAILABLE, self.address, to, show=show, text=status))

    def withdraw(self, to: str) -> None:
        self._put(Stanza(Kind.UNAVAILABLE, self.address, to))

    def ping(self, to: str) -> None:
        self._put(Stanza(Kind.PING, self.address, to))

    def _put(self, stanza: Stanza) -> None:
        network = self._network
        if network.on_sent is not None:
            network.on_sent(self, stanza)
        if self.session is not None and not self._closed:
            self.session.up.put(stanza)

    # --- connection -------------------------------------------------------------------------------

    def connect(self) -> None:
        """Try now, and again until it succeeds."""
        if self._closed or self.clock.dead or self.session is not None:
            return
        network = self._network
        if not network.server_up or self.refused or not network.admits(self.address):
            self.clock.call_later(network.random.uniform(0.1, network.settings.reconnect_s), self.connect)
            return
        self.session = network.admit(self)
        network.note("up", self.address)
        self._tell(self._came_up)

    def lose(self, session: Session, reason: str) -> None:
        """The node notices that this session is dead."""
        if self.session is not session:
            return
        self.session = None
        network = self._network
        network.note("down", self.address, reason)
        self._tell(lambda events: events.on_down(reason))
        if reason == CONFLICT and self.on_conflict is not None:
            self.clock.deliver(self.on_conflict)
            return
        self.clock.call_later(network.random.uniform(0.1, network.settings.reconnect_s), self.connect)

    def close(self) -> None:
        """The process ends, by a signal or in order: the socket closes after what was written."""
        self._closed = True
        session, self.session = self.session, None
        if session is not None:
            session.down.cut(0)
            if session.stalled:
                self._network.forget(session, self._network.random.uniform(0.5, 20.0))
            else:
                session.up.put(Stanza(Kind.END, self.address, ""))

    def arrive(self, session: Session, stanza: Stanza) -> None:
        """A stanza comes out of the session's stream."""
        if self.session is not session or self._closed:
            return
        sender = stanza.sender
        match stanza.kind:
            case Kind.MESSAGE:
                self.clock.deliver(lambda: self._hear(stanza))
            case Kind.WORDS:
                self._tell(lambda events: events.on_message(sender, stanza.text.encode(), True))
            case Kind.AVAILABLE:
                self._tell(lambda events: events.on_available(sender, stanza.show, stanza.text))
            case Kind.UNAVAILABLE | Kind.BOUNCE:
                self._tell(lambda events: events.on_unavailable(sender, stanza.text))
            case Kind.PONG:
                self._tell(lambda events: events.on_heard(sender))
            case Kind.PING:
                self.clock.deliver(lambda: self._put(Stanza(Kind.PONG, self.address, sender)))
                self._tell(lambda events: events.on_heard(sender))

    def _hear(self, stanza: Stanza) -> None:
        if self._network.on_heard is not None:
            self._network.on_heard(self, stanza)
        assert self._events is not None, "a link needs an owner before it connects"
        self._events.on_message(stanza.sender, stanza.payload, stanza.chat)

    def _came_up(self, events: TransportEvents) -> None:
        first, self.on_first_up = self.on_first_up, None
        if first is not None:
            first()
        events.on_up(self.address)

    def _tell(self, call: Callable[[TransportEvents], None]) -> None:
        assert self._events is not None, "a link needs an owner before it connects"
        events = self._events
        self.clock.deliver(lambda: call(events))


class Network:
    """The server, and all sessions."""

    def __init__(self, timeline: Timeline, random: Random, trace: Trace) -> None:
        self.timeline = timeline
        self.random = random
        self.settings = NetworkSettings()
        self.server_up = True
        self.on_sent: Callable[[Link, Stanza], None] | None = None
        """Called with every stanza at the instant in which a shell sends it."""
        self.on_heard: Callable[[Link, Stanza], None] | None = None
        """Called with every message just before the shell of the node sees it."""
        self.exclusive: set[str] = set()
        """Addresses of which a second session is turned away while the first is there."""
        self.untold: set[str] = set()
        """Addresses whose end nobody is told of."""
        self._trace = trace
        self._sessions: dict[str, Session] = {}

    def note(self, what: str, *fields: object) -> None:
        """Write into the history's log."""
        self._trace.add(self.timeline.now, what, *fields)

    def delay(self) -> float:
        """How long a stanza takes for one hop."""
        settings = self.settings
        if settings.spike_probability and self.random.random() < settings.spike_probability:
            return self.random.uniform(0.0, settings.spike_s)
        return self.random.uniform(0.0, settings.delay_s)

    def in_flight(self) -> int:
        """Stanzas that wait in streams."""
        return sum(len(s.up) + len(s.down) for s in self._sessions.values())

    # --- sessions ---------------------------------------------------------------------------------

    def admits(self, address: str) -> bool:
        """Whether somebody may bind this address now."""
        return not (address in self.exclusive and address in self._sessions)

    def admit(self, link: Link) -> Session:
        """Bind; a session that has the address already is ended first (conflict), and its node told."""
        old = self._sessions.get(link.address)
        if old is not None:
            silent = old.stalled
            self._end(old, CONFLICT)
            if not silent:
                self._tell_lost(old, self.random.uniform(0.0, 0.1), CONFLICT)
        session = Session(self, link)
        self._sessions[link.address] = session
        return session

    def _end(self, session: Session, reason: str) -> None:
        """The server knows that the session is over: it tells whoever the node had shown itself to."""
        if session.ended:
            return
        session.ended = True
        session.up.cut(0)
        session.down.cut(0)
        if self._sessions.get(session.address) is session:
            del self._sessions[session.address]
        for to in session.directed if session.address not in self.untold else ():
            self._send_to(to, Stanza(Kind.UNAVAILABLE, session.address, to, text=reason))

    def _find(self, address: str) -> Session | None:
        """The session of a full address, or the first one of a bare address."""
        found = self._sessions.get(address)
        if found is None and "/" not in address:
            prefix = address + "/"
            found = next((s for a, s in self._sessions.items() if a.startswith(prefix)), None)
        return found

    def _send_to(self, to: str, stanza: Stanza) -> bool:
        session = self._find(to)
        if session is None:
            return False
        session.down.put(stanza)
        return True

    def route(self, session: Session, stanza: Stanza) -> None:
        """A stanza has reached the server."""
        kind = stanza.kind
        if kind is Kind.END:
            self._end(session, "closed")
            return
        if kind is Kind.AVAILABLE:
            session.directed[stanza.to] = None
        elif kind is Kind.UNAVAILABLE:
            session.directed.pop(stanza.to, None)
        known = self._send_to(stanza.to, stanza)
        if kind is Kind.MESSAGE:
            self.note("message", stanza.sender, stanza.to, stanza.payload)
            again = self.settings.duplicate_probability
            if known and again and self.random.random() < again:
                self.note("duplicated", stanza.sender, stanza.to)
                self._send_to(stanza.to, stanza)
        else:
            self.note(kind.value, stanza.sender, stanza.to, stanza.show.value, stanza.text)
        if not known and kind in (Kind.MESSAGE, Kind.WORDS, Kind.PING):
            session.down.put(Stanza(Kind.BOUNCE, stanza.to, stanza.sender, text="service-unavailable"))

    # --- faults -----------------------------------------------------------------------------------

    def break_session(
        self, link: Link, *, server_notices_s: float = 0.0, node_notices_s: float = 0.0
    ) -> None:
        """The connection breaks; the ends of both streams are lost. Each side notices in its own time."""
        session = link.session
        if session is None or session.ended:
            return
        self.note("break", link.address, f"server+{server_notices_s:.2f}", f"node+{node_notices_s:.2f}")
        session.up.cut(self.random.randint(0, len(session.up)))
        session.down.cut(self.random.randint(0, len(session.down)))
        self.timeline.call_later(server_notices_s, lambda: self._end(session, "connection lost"))
        self.timeline.call_later(node_notices_s, lambda: link.lose(session, "connection lost"))

    def stall(self, link: Link, stalled: bool) -> None:
        """The cable is out (or back): nothing moves, and nobody is told."""
        session = link.session
        if session is not None:
            self.note("stall" if stalled else "unstall", link.address)
            session.stall(stalled)
            if session.ended and not stalled:  # it ended meanwhile, as the node learns now
                self._tell_lost(session, 0.0, "connection lost")

    def forget(self, session: Session, after_s: float) -> None:
        """The node of this session died without a word; the server finds out some time later."""
        session.stall(True)
        self.timeline.call_later(after_s, lambda: self._end(session, "no sign of life"))

    def forget_dead(self) -> None:
        """The server finds out at once of all whose nodes died without a word."""
        for session in [s for s in self._sessions.values() if s.link.clock.dead and s.stalled]:
            self._end(session, "no sign of life")

    def _tell_lost(self, session: Session, after_s: float, reason: str) -> None:
        self.timeline.call_later(after_s, lambda: session.link.lose(session, reason))

    def stop_server(self) -> None:
        """Everybody is down; presence is forgotten, so nobody is told that anyone left."""
        self.note("server_down")
        self.server_up = False
        sessions, self._sessions = self._sessions, {}
        for session in sessions.values():
            session.ended = True
            session.up.cut(0)
            session.down.cut(0)
            self.timeline.call_later(
                self.random.uniform(0.0, 0.5),
                lambda s=session: s.link.lose(s, "server went down"),  # type: ignore[misc]
            )

    def start_server(self) -> None:
        """The server is back, and knows nobody."""
        self.note("server_up")
        self.server_up = True
