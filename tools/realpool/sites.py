"""Two sites, each with its own domain, server and network, linked by nothing but their servers (s2s).

Site A has the pool: a Prosody, with the manager as its component. Site B has an ejabberd, with accounts for
its workers and users. Computers of a site reach the server of their site and no other; the servers reach each
other on a LAN between the sites, find each other by DNS and believe certificates of one authority. Called by
tests and benchmarks.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kestrel.config import PoolAccess
from kestrel.local.foreign import Federation
from realpool import names
from realpool.authority import Authority
from realpool.computers import Computer
from realpool.live import LiveServer
from realpool.networks import Lan, Machine, Network
from realpool.processes import Process

READY_S_MAX = 30.0
PREFIX = 24
_LINKS = ("dport", "=", ":5269", "or", "sport", "=", ":5269")


class Site:
    """One domain and its LAN; number 1 is A, number 2 is B."""

    def __init__(self, network: Network, between: Lan, number: int) -> None:
        self.network = network
        self.letter = "ab"[number - 1]
        # Not `.test`: libunbound, which Prosody asks, answers for that domain itself.
        self.domain = f"site-{self.letter}.example"
        self.component = f"kestrel.{self.domain}"
        self.inside = f"10.{number}.0.1"
        self.outside = f"192.0.2.{number}"
        self.lan = network.lan(f"site-{self.letter}")
        self.between = between
        self.machine = network.machine(f"server-{self.letter}")
        self.machine.plug(self.lan, f"{self.inside}/{PREFIX}").plug(between, f"{self.outside}/{PREFIX}")
        self._hosts = 1
        self.server: LiveServer

    def next_machine(self, name: str) -> Machine:
        """One more computer of this site."""
        self._hosts += 1
        machine = self.network.machine(name)
        machine.plug(self.lan, f"{self.inside.removesuffix('.1')}.{self._hosts}/{PREFIX}")
        machine.asks_names_of(self.inside)
        return machine

    def records(self) -> list[str]:
        """What the DNS says of it."""
        addresses = {"xmpp": self.outside, "inside": self.inside}
        lines = [f"{name}.{self.domain}. 60 IN A {address}" for name, address in addresses.items()]
        for name in (self.domain, self.component):
            lines.append(f"_xmpp-server._tcp.{name}. 60 IN SRV 0 0 5269 xmpp.{self.domain}.")
        port = self.server.port
        return [*lines, f"_xmpp-client._tcp.{self.domain}. 60 IN SRV 0 0 {port} inside.{self.domain}."]

    def cut(self) -> None:
        """From now on it hears nothing of other sites, nor they of it, and nobody is told."""
        self.machine.cut(self.between)

    def heal(self) -> None:
        self.machine.heal(self.between)

    def unsent(self) -> int:
        """Bytes that its server has sent to other servers, and that they have not got yet."""
        rows = self.machine.run("ss", "-tnH", *_LINKS).splitlines()
        return sum(int(row.split()[2]) for row in rows)

    def reset_links(self) -> None:
        """Its connections with other servers are dead, as after a failure of the machine in front of it."""
        self.machine.run("ss", "-tnK", *_LINKS)


class TwoSites:
    """`with TwoSites(scratch, make_server) as sites: …`; both servers run, and no manager yet."""

    def __init__(self, scratch: Path, make_server: Callable[..., LiveServer], *, stranger: str = "") -> None:
        """`make_server(kind, **wanted)` makes a server that is not started yet.

        `stranger`: letter of a site whose certificate is from an authority that nobody else believes.
        """
        self.scratch = scratch
        self.network = network = Network()
        try:
            # Servers run as somebody else, and must be able to read it.
            self._kept = tempfile.TemporaryDirectory(prefix="kestrel-sites-")
            os.chmod(self._kept.name, 0o755)
            self.authority = Authority(Path(self._kept.name))
            self._stranger = stranger
            between = network.lan("between")
            self.a, self.b = Site(network, between, 1), Site(network, between, 2)
            for site, kind in ((self.a, "prosody"), (self.b, "ejabberd")):
                site.server = make_server(kind, **self._wanted(site))
                network.at_end(site.server.__exit__)
        except BaseException:
            network.remove()
            raise

    def _wanted(self, site: Site) -> dict[str, Any]:
        """How its server is made."""
        authority = self.authority
        if site.letter == self._stranger:
            elsewhere = Path(self._kept.name) / "elsewhere"
            elsewhere.mkdir()
            authority = Authority(elsewhere)
        files = authority.certify(site.domain, site.component)
        if os.geteuid() == 0:
            for file in files:
                os.chmod(file, 0o644)  # good for two days and two domains that nobody can have
        wanted: dict[str, Any] = {
            "domain": site.domain,
            "components": {site.component: "secret-component"},
            "host": site.inside,
            "federation": Federation(ip=site.outside, cafile=str(self.authority.file)),
            "certificate": files,
            "within": tuple(site.machine.words()),
        }
        site.machine.asks_names_of(site.inside)
        return wanted

    def __enter__(self) -> TwoSites:
        try:
            records = [*self.a.records(), *self.b.records()]
            for site in (self.a, self.b):
                self._start_names(site, records)
                site.server.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.network.remove()
        self._kept.cleanup()

    def _start_names(self, site: Site, records: list[str]) -> None:
        """Each site has a name server, which a break between the sites leaves alone."""
        words = site.machine.words(sys.executable, "-m", names.__name__, site.inside, *records)
        tools = str(Path(names.__file__).parents[1])
        server = Process(
            f"name server of {site.domain}",
            words,
            env={**os.environ, "PYTHONPATH": tools},
            directory=self.scratch,
            log=self.scratch / f"names-{site.letter}.log",
        )
        self.network.at_end(server.end)
        server.start()
        server.wait_for("name server on", READY_S_MAX)

    def computer(self, site: Site, name: str) -> Computer:
        """A computer of this site, which believes the authority and finds its server by DNS."""
        computer = Computer(site.next_machine(name), self.scratch)
        computer.env["SSL_CERT_FILE"] = str(self.authority.file)
        return computer

    def account(self, site: Site, name: str) -> PoolAccess:
        """An account at a site, for the pool of site A; nothing but the address is known of its server."""
        password = site.server.add_account(name).password
        pinned = site.server.fingerprint if site.letter == self._stranger else ""
        jid = f"{name}@{site.domain}"
        return PoolAccess(self.a.component, jid, password, host="", port=0, fingerprint=pinned)
