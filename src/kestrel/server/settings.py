"""Every choice and every bound of the embedded server, by name.

Pure data; called by whoever starts a server. Times in seconds, sizes in bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kestrel.errors import UsageError
from kestrel.xmpp.jid import JID, JidError


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What one client, one address and all of them together may take."""

    stanza_bytes_max: int = 262_144
    login_stanza_bytes_max: int = 16_384
    """Largest element before the login has succeeded."""
    login_outgoing_bytes_max: int = 65_536
    """Bytes that may wait for a client that has not logged in; above, it is dropped."""
    component_stanza_bytes_max: int = 1_048_576
    depth_max: int = 64
    attributes_max: int = 64
    connections_max: int = 10_000
    connections_per_address_max: int = 4_096
    half_open_max: int = 4_096
    """Connections that have not logged in yet. Above, the address that has most of them gives one up."""
    half_open_per_address_max: int = 2_560
    first_words_bytes_max: int = 8_192
    """Bytes of a TLS hello or of the head of an HTTP request, and of what is kept until it is whole."""
    login_s_max: float = 30.0
    """From the connection to the bound resource (or the accepted component)."""
    tls_handshake_s_max: float = 15.0
    login_failures_max: int = 3
    """Per connection; the last one closes it."""
    login_failure_delay_s: float = 1.0
    """Wait before a failed login is answered; grows with each failure."""
    login_failure_delay_s_max: float = 10.0
    guard_half_life_s: float = 300.0
    """After so long a failed login counts half (see `LoginGuard`)."""
    guard_failures: float = 10.0
    """From so many on, tries of one network for one account have to wait for their turn …"""
    guard_pace_s: float = 10.0
    """… which comes every so often, …"""
    guard_known_pace_s: float = 0.25
    """… or as often as this if the account has logged in from there before."""
    guard_origin_failures: float = 50.0
    """From so many on, all tries of one network wait, but for accounts that have logged in from there …"""
    guard_origin_pace_s: float = 0.05
    """… and have their turn so often."""
    guard_hold_s_max: float = 10.0
    """Whose turn would come later than this is refused."""
    guard_entries_max: int = 20_000
    """Networks, accounts and pairs of them that are remembered, of each kind."""
    guard_report_s: float = 60.0
    """How often those who guess are written into the log."""
    registrations_max: int = 6
    """Tries to register per connection."""
    hashing_threads: int = 2
    hashing_queue_max: int = 256
    """Passwords that may wait to be hashed; more are asked to try later."""
    outgoing_bytes_max: int = 4 * 1024 * 1024
    """Bytes that may wait for a client that reads slowly; above, it is dropped."""
    component_outgoing_bytes_max: int = 256 * 1024 * 1024
    """The same for a component; its senders are paused long before."""
    congestion_bytes: int = 1024 * 1024
    """From so many waiting bytes on, clients that send to a component are not read any more."""
    component_stall_s_max: float = 60.0
    """A component that takes nothing for so long while bytes wait is dropped."""
    turn_s_max: float = 0.02
    """After so long with the presence and the queries of one client it is the others' turn."""
    stanzas_per_s: float = 0.0
    """Sustained rate per client, held by reading slower; 0: no limit."""
    bytes_per_s: float = 0.0
    """Likewise in bytes."""
    burst_s: float = 2.0
    """So many seconds' worth may come at once."""
    quiet_s_max: float = 90.0
    """After so long without a byte the other end is pinged."""
    pong_s_max: float = 30.0
    """After so long without a byte after a ping it is taken as dead."""
    component_pong_s_max: float = 1.0
    """So long a component may take to give a sign of life when another connection claims its domain."""
    rest_s: float = 5.0
    """After so long without a byte the parser of a connection is freed (about 10 KiB)."""
    linger_s_max: float = 2.0
    """How long a closed connection may take to receive what was written before."""
    stop_s_max: float = 5.0
    """How long `stop` waits for connections to be gone."""
    tick_s: float = 1.0
    """How often times are checked, at most."""
    resources_max: int = 10_000
    """Sessions of one account; the workers of a pool may share one."""
    directed_max: int = 10_000
    """Addresses that one client may have sent directed presence to."""
    component_directed_max: int = 1_000_000
    """Pairs of addresses between which a component's presence is known."""
    roster_items_max: int = 1_000
    """Contacts and pending requests of one account."""
    roster_bytes_max: int = 4_096
    """Name and groups of one contact."""
    route_cache_max: int = 65_536
    """Addresses of components that are remembered as looked up."""


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What is served, where, and within which bounds. Port 0: the operating system chooses."""

    domain: str
    host: str = "127.0.0.1"
    """Address to listen on for clients."""
    c2s_port: int = 0
    component_host: str = "127.0.0.1"
    """Address to listen on for components: XEP-0114 has no encryption, so keep it on loopback."""
    component_port: int = 0
    components: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Domain → secret of each component that may connect. Empty: no component port."""
    tls_certificate: Path | None = None
    """PEM file with certificate and key. Needed unless `host` is a loopback address."""
    tls_required: bool | None = None
    """Whether clients must encrypt before they log in. None: all but those on loopback."""
    limits: ServerLimits = field(default_factory=ServerLimits)

    def __post_init__(self) -> None:
        """Raises `UsageError` for domains that are none."""
        for domain in (self.domain, *self.components):
            if prepared_domain(domain) != domain:
                raise UsageError(
                    f"{domain!r} is not a domain in its normal form",
                    hint=f"write it as {prepared_domain(domain)!r}",
                )
        if self.domain in self.components:
            raise UsageError(
                f"the component {self.domain} has the server's own domain",
                hint=f"give it one of its own, such as manager.{self.domain}",
            )


def prepared_domain(text: str) -> str:
    """The normal form of a domain; raises `UsageError` if it is none."""
    try:
        jid = JID.parse(text)
    except JidError as problem:
        raise UsageError(f"{text!r} is no domain: {problem.text}", hint="e.g. kestrel.localhost") from None
    if jid.local or jid.resource:
        raise UsageError(f"{text!r} is an address, not a domain", hint=f"write {jid.domain!r}")
    return jid.domain
