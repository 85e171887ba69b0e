"""How soon a pool has its workers back after networks broke: NAT boxes that forget, sites that are cut off.

Run as root: `python benchmarks/broken_networks.py [--rounds 3] [--only WORDS]`. Linux only. Everything
happens in network namespaces that it makes and removes; nothing leaves them.

`lost` is the time from the break to the manager's word that the worker is lost; `back` the time from the
moment at which connecting is possible again (at once behind a NAT box, else when it is healed) to its word
that the worker has joined again, with what it has in hand. Medians, and the longest.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "tools"))

from chaos.report import table
from realpool.computers import Computer
from realpool.ejabberd import Ejabberd
from realpool.live import LiveServer
from realpool.networks import NatBox, Network, missing
from realpool.processes import now, until
from realpool.prosody import Prosody
from realpool.sites import TwoSites

PATIENCE_S = 400.0
PUBLIC = "192.0.2.1"
LOST, JOINED = "worker_lost", "worker_joined"


@dataclass(frozen=True, slots=True)
class Scene:
    """A break, and how long it lasts."""

    what: str
    lost_after_s: int
    break_s: float = 0.0
    """0: what was connected is dead, and connecting is possible at once."""
    other: str = ""
    """The server of the other site; empty: no sites, but NAT."""
    tcp_retries: int = 0
    """`net.ipv4.tcp_retries2` of both servers; 0: as Linux has it (15)."""


SCENES = (
    *(Scene("NAT box forgets", lease) for lease in (15, 3, 2)),
    *(Scene("sites cut off", lease, s, "ejabberd") for lease, s in ((15, 30), (3, 5), (3, 20), (3, 60))),
    *(Scene("sites cut off", 3, s, "ejabberd", 5) for s in (20, 60)),
    Scene("sites cut off", 3, 20, "prosody"),
    Scene("sites cut off", 3, 60, "prosody"),
)


class Pen:
    """The manager's log, from now on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._from = path.stat().st_size

    def written(self, words: str, beginning: float) -> float:
        """Seconds from `beginning` until these words stand there."""

        def seen() -> bool:
            with self._path.open("rb") as log:
                log.seek(self._from)
                return words.encode() in log.read()

        until(seen, f"the manager logs {words!r}", PATIENCE_S)
        return now() - beginning


def wait(s: float) -> None:
    """A break lasts so long."""
    end = now() + s
    until(lambda: now() >= end, "time passes", s + 60)


@contextmanager
def behind_nat(scratch: Path, scene: Scene) -> Iterator[tuple[Path, NatBox]]:
    """A worker behind a box; the manager's log, and the box."""
    with Network() as net:
        world, home = net.lan("world"), net.lan("home")
        box = net.nat_box("box", outside=world, address="192.0.2.11/24", inside=home, gateway="10.0.0.1/24")
        server = Computer(net.machine("server").plug(world, f"{PUBLIC}/24"), scratch)
        worker = Computer(net.machine("worker").plug(home, "10.0.0.2/24", gateway="10.0.0.1"), scratch)
        words = ("up", "--listen", PUBLIC, "--json", "-v", "--lost-after", f"{scene.lost_after_s}s")
        up = server.start("up", *words)
        line = json.loads(up.wait_for("{", PATIENCE_S).text)["invitation"]
        worker.start("worker", "worker", "--join", line, "--name", "w", "-v")
        log = server.home / "up.log"
        until(lambda: JOINED in log.read_text(), "the worker joins", PATIENCE_S, seen=log.read_text)
        yield log, box


def nat_forgets(scratch: Path, scene: Scene, rounds: int) -> list[tuple[float, float]]:
    """Per round: lost and back."""
    times = []
    with behind_nat(scratch, scene) as (log, box):
        for _ in range(rounds):
            pen, beginning = Pen(log), now()
            box.forget()
            # The worker may well be back before the manager has missed it.
            back = pen.written(JOINED, beginning)
            text = log.read_bytes()[pen._from :]
            lost = pen.written(LOST, beginning) if LOST.encode() in text else float("nan")
            times.append((lost, back))
            wait(scene.lost_after_s)
    return times


def make(other: str) -> Callable[..., LiveServer]:
    """Site A has a Prosody; the other one what is wanted."""
    return lambda kind, **wanted: (Prosody if kind == "prosody" or other == "prosody" else Ejabberd)(**wanted)


def sites_cut_off(scratch: Path, scene: Scene, rounds: int) -> list[tuple[float, float]]:
    """The same for a worker at another site."""
    times = []
    with TwoSites(scratch, make(scene.other)) as sites:
        for site in (sites.a, sites.b) if scene.tcp_retries else ():
            site.machine.run("sysctl", "-qw", f"net.ipv4.tcp_retries2={scene.tcp_retries}")
        host = Computer(sites.a.machine, scratch)
        allowed = ("--worker", sites.b.domain, "--user", sites.a.domain)
        host.start_manager(sites.a.server, "--lost-after", f"{scene.lost_after_s}s", *allowed)
        worker = sites.computer(sites.b, "worker")
        worker.start_worker(sites.account(sites.b, "worker"))
        log = host.home / "manager.log"
        until(lambda: JOINED in log.read_text(), "the worker joins", PATIENCE_S, seen=log.read_text)
        for _ in range(rounds):
            pen, beginning = Pen(log), now()
            sites.b.cut()
            lost = pen.written(LOST, beginning)
            wait(scene.break_s - (now() - beginning))
            pen, healed = Pen(log), now()
            sites.b.heal()
            times.append((lost, pen.written(JOINED, healed)))
    return times


def row(scratch: Path, scene: Scene, rounds: int) -> list[str]:
    """One line of the table."""
    with tempfile.TemporaryDirectory(dir=scratch) as directory:
        play = sites_cut_off if scene.other else nat_forgets
        times = play(Path(directory), scene, rounds)
    lost, back = zip(*times, strict=True)
    what = f"{scene.what} ({scene.other})" if scene.other else scene.what
    what += f", tcp_retries2 = {scene.tcp_retries}" if scene.tcp_retries else ""
    shown = [f"{statistics.median(ts):.1f} ({max(ts):.1f})" for ts in (lost, back)]
    return [what, f"{scene.lost_after_s} s", f"{scene.break_s:g} s" if scene.break_s else "-", *shown]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--only", default="", help="scenes with these words")
    given = options.parse_args()
    problem = missing()
    if problem:
        sys.exit(problem)
    rows = []
    with tempfile.TemporaryDirectory(prefix="kestrel-networks-") as scratch:
        for scene in SCENES:
            if given.only in f"{scene.what} {scene.other} {scene.tcp_retries} {scene.break_s:g}":
                rows.append(row(Path(scratch), scene, given.rounds))
                print("  ".join(rows[-1]), file=sys.stderr, flush=True)
    print(table(["break", "--lost-after", "lasts", "lost, s", "back, s"], rows))


if __name__ == "__main__":
    main()
