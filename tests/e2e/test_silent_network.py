"""A worker falls silent, and nobody is told: on each server the pool notices, and forgets nothing.

In network namespaces, with rules that drop whatever a machine sends or is sent.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from parts.networks import Network, need_networks
from parts.servers import KINDS, make_server
from realpool.computers import Computer
from realpool.live import LiveServer
from realpool.processes import Process, until

PUBLIC = "192.0.2.1"
SOON_S = 40.0


@dataclass(frozen=True, slots=True)
class Place:
    """One LAN with a server and its manager, a user and two workers, each on a computer of its own."""

    server: LiveServer
    manager: Process
    user: Computer
    one: Computer
    two: Computer
    scratch: Path

    def seen(self) -> list[str]:
        """Names of the workers in the pool, as far as the user can see it."""
        done = self.user.run("pool", "--json")
        if done.returncode != 0:
            return ["?"]
        return sorted(w["worker"].rpartition("/")[2] for w in json.loads(done.stdout).get("workers", []))

    def describe(self) -> str:
        parts = [self.manager, *self.one.processes, *self.two.processes]
        return "\n".join(f"{part.describe()}\n{part.log()}" for part in parts) + self.server.log[-3000:]


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    need_networks()
    with Network() as net:
        lan = net.lan("lan")
        machine = net.machine("host").plug(lan, f"{PUBLIC}/24")
        server = make_server(request.param, host=PUBLIC, within=tuple(machine.words()))
        net.at_end(server.__exit__)
        server.start()
        host = Computer(machine, tmp_path)
        user, one, two = (
            Computer(net.machine(name).plug(lan, f"192.0.2.{number}/24"), tmp_path)
            for number, name in enumerate(("user", "one", "two"), 2)
        )
        user.use(server.add_account("ann", role="user"))
        account = server.add_account("worker", role="worker")
        manager = host.start_manager(server, "--lost-after", "3s")
        one.start_worker(account, "--slots", "1")
        pool = Place(server, manager, user, one, two, tmp_path)
        until(lambda: pool.seen() == ["one"], "the first worker is seen", SOON_S, seen=pool.describe)
        two.start_worker(account, "--slots", "1")
        yield pool


def test_who_falls_silent_is_lost_within_the_lease_and_what_it_finished_meanwhile_counts_once(
    place: Place,
) -> None:
    ran, gate = place.scratch / "ran", place.scratch / "gate-one"

    def runs() -> list[str]:
        return ran.read_text().split() if ran.exists() else []

    here = "${KESTREL_WORKER##*/}"
    loop = f"until [ -e {place.scratch}/gate-{here} ]; do sleep 0.05; done"
    job = str(place.user.ask("submit", "--", f"echo {here} >> {ran}; {loop}; echo from {here} #")["job"])
    until(lambda: runs() == ["one"], "the first worker runs it", SOON_S, seen=place.describe)
    waiting = place.user.start("wait", "wait", job)
    until(lambda: place.seen() == ["one", "two"], "the second worker is seen", SOON_S, seen=place.describe)

    place.one.machine.cut()
    place.user.machine.cut()
    until(lambda: runs() == ["one", "two"], "the other one runs it, too", SOON_S, seen=place.describe)
    gate.touch()
    journal = next(place.one.home.rglob("finished.journal"))
    until(lambda: b'"attempt"' in journal.read_bytes(), "it is finished in silence", SOON_S)
    place.one.machine.heal()
    place.user.machine.heal()

    until(lambda: not waiting.running, "who waited hears the end", SOON_S, seen=place.describe)
    assert waiting.exit_code == 0, waiting.log()
    results = [json.loads(text) for text in place.user.say("results", "--json", job).splitlines()]
    assert len(results) == 1
    assert place.user.say("cat", f"{job}_0").strip() == "from one", "the first result that was stored won"
    until(lambda: place.seen() == ["one", "two"], "both work again", SOON_S, seen=place.describe)
    until(lambda: b'"attempt"' not in journal.read_bytes(), "it was acknowledged", SOON_S)
    assert place.user.ask("submit", "-n", "4", "--wait", "--", "true")["state"] == "COMPLETED"
