"""Networks of network namespaces: machines, private networks behind NAT boxes, links that go silent.

    with Network() as net:
        world, home = net.lan("world"), net.lan("home")
        server = net.machine("server").plug(world, "192.0.2.1/24")
        box = net.nat_box("box", outside=world, address="192.0.2.11/24", inside=home, gateway="10.0.0.1/24")
        worker = net.machine("worker").plug(home, "10.0.0.2/24", gateway="10.0.0.1")
        worker.words("ping", "192.0.2.1")   # the command that runs it there
        worker.cut(); worker.heal(); box.forget()

Each machine is a namespace of its own; the switches of all LANs are bridges in one more. There is no link to
the network of this computer: nothing that happens inside leaves it, and addresses may be the same in many
places. Needs Linux, root, `ip`, `nft` and `conntrack`. What is made is named after this process, and removed
at the end of the block or of the program, with the processes in it; what a killed program left is removed by
the next one. It touches nothing else.
"""

from __future__ import annotations

import atexit
import itertools
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from realpool.processes import Hung, send, state_of, until

PROGRAMS = ("ip", "ss", "nft", "conntrack", "sysctl")
WITHOUT_SH = "/usr/sbin:/sbin:/usr/bin:/bin"
TOOL_S_MAX = 20.0
LEAVE_S_MAX = 10.0
ETC = Path("/etc/netns")
"""`ip netns exec` shows the files in there as those of /etc."""
_COUNTER = itertools.count(1)
_OURS = re.compile(r"kestrel-(\d+)-\d+-[\w-]+")

# Words for a person behind a wall: nothing comes back, not even a refusal. ARP goes on, as it does behind
# a router, or else connecting would fail at once instead of in silence.
CUT = """
table bridge cut
delete table bridge cut
table bridge cut {
  chain forward {
    type filter hook forward priority -300
    policy accept
@RULES@
  }
}
"""
CUT_PORT = """\
    iifname "@PORT@" ether type ip counter drop
    oifname "@PORT@" ether type ip counter drop"""
# A box as people have them at home: it hides who is inside, and drops what nobody inside asked for.
NAT = """
table ip box {
  chain out {
    type nat hook postrouting priority 100
    policy accept
    oifname "@OUTSIDE@" masquerade
  }
  chain through {
    type filter hook forward priority 0
    policy accept
    ct state invalid counter drop
    iifname "@OUTSIDE@" ct state new counter drop
  }
  chain mine {
    type filter hook input priority 0
    policy accept
    iifname "@OUTSIDE@" ct state { new, invalid } counter drop
  }
}
"""


class Lan:
    """A switch, with a cable to each machine that is plugged in."""

    def __init__(self, name: str, bridge: str) -> None:
        self.name = name
        self.bridge = bridge


class Machine:
    """One namespace; `words` runs something in it."""

    def __init__(self, network: Network, name: str) -> None:
        self.network = network
        self.name = name
        self.space = f"{network.prefix}-{name}"
        self.addresses: dict[str, str] = {}
        """By LAN."""
        self._ports: dict[str, str] = {}

    @property
    def address(self) -> str:
        """The first it got."""
        return next(iter(self.addresses.values()))

    def words(self, *command: str) -> list[str]:
        """The command that runs this one here; it becomes the process itself, without one in between."""
        return [self.network.ip, "netns", "exec", self.space, *command]

    def run(self, *command: str, text: str = "") -> str:
        """Run a tool here to its end; what it printed. Raises `Hung` with its words if it fails."""
        return _run(self.words(*command), text)

    def plug(self, lan: Lan, address: str, *, gateway: str = "") -> Machine:
        """A cable to this LAN, and our address in it, e.g. `192.0.2.1/24`."""
        end, port = f"eth{len(self._ports)}", self.network.next_port()
        wiring = self.network.wiring
        self.network.batch(
            f"-n {wiring} link add {port} type veth peer name {end} netns {self.space}",
            f"-n {wiring} link set {port} master {lan.bridge} up",
            f"-n {self.space} address add {address} dev {end}",
            f"-n {self.space} link set {end} up",
            *([f"-n {self.space} route add default via {gateway}"] if gateway else []),
        )
        self._ports[lan.name] = port
        self.addresses[lan.name] = address.partition("/")[0]
        return self

    def cut(self, lan: Lan | None = None) -> None:
        """From now on whatever it sends or is sent on this LAN (on all) vanishes; its cable stays in."""
        self.network.cut(self._named(lan))

    def heal(self, lan: Lan | None = None) -> None:
        """What was cut works again."""
        self.network.heal(self._named(lan))

    def _named(self, lan: Lan | None) -> list[str]:
        return list(self._ports.values()) if lan is None else [self._ports[lan.name]]

    def asks_names_of(self, address: str) -> None:
        """Its programs ask this name server."""
        place = ETC / self.space
        place.mkdir(parents=True)
        (place / "resolv.conf").write_text(f"nameserver {address}\noptions timeout:1 attempts:2\n")

    def pids(self) -> list[int]:
        """Processes that run here."""
        return [int(word) for word in _run([self.network.ip, "netns", "pids", self.space]).split()]


class NatBox(Machine):
    """A router that hides a LAN behind its one address."""

    def serve(self, outside: str) -> None:
        """Begin to route and to hide."""
        self.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        self.run("nft", "-f", "-", text=NAT.replace("@OUTSIDE@", outside))

    def mappings(self) -> int:
        """Connections through it that it knows."""
        return sum("ESTABLISHED" in line for line in self.run("conntrack", "-L").splitlines())

    def forget(self, *, for_good: bool = True) -> None:
        """Lose all mappings, as after a power cut.

        `for_good`: connections from before are dead, in silence, in both directions; new ones work. Without
        it the box takes up a connection again with the next packet from inside, as many do.
        """
        self.run("sysctl", "-qw", f"net.netfilter.nf_conntrack_tcp_loose={0 if for_good else 1}")
        self.run("conntrack", "-F")


class Network:
    """All of it; a context manager."""

    def __init__(self) -> None:
        self.prefix = f"kestrel-{os.getpid()}-{next(_COUNTER)}"
        self.ip = _program("ip")
        _sweep(self.ip)
        self.machines: dict[str, Machine] = {}
        self._ports = itertools.count(1)
        self._bridges = itertools.count(1)
        self._cut: set[str] = set()
        self._at_end: list[Callable[[], object]] = []
        self.wiring = self._space("wiring")
        atexit.register(self.remove)

    def __enter__(self) -> Network:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    # --- building -------------------------------------------------------------------------------------

    def lan(self, name: str) -> Lan:
        """A switch."""
        bridge = f"br{next(self._bridges)}"
        self.batch(
            f"-n {self.wiring} link add {bridge} type bridge forward_delay 0",
            f"-n {self.wiring} link set {bridge} up",
        )
        return Lan(name, bridge)

    def machine(self, name: str) -> Machine:
        """A machine without a cable."""
        return self._add(Machine(self, name))

    def nat_box(self, name: str, *, outside: Lan, address: str, inside: Lan, gateway: str) -> NatBox:
        """A box between two LANs: `address` is its own outside, `gateway` what those inside know it by."""
        box = NatBox(self, name)
        self._add(box).plug(outside, address).plug(inside, gateway)
        box.serve("eth0")
        return box

    def _add(self, machine: Machine) -> Machine:
        self._space(machine.name)
        self.machines[machine.name] = machine
        return machine

    def _space(self, name: str) -> str:
        space = f"{self.prefix}-{name}"
        self.batch(f"netns add {space}", f"-n {space} link set lo up")
        return space

    def next_port(self) -> str:
        """A name for one more plug."""
        return f"p{next(self._ports)}"

    # --- striking -------------------------------------------------------------------------------------

    def cut(self, ports: list[str]) -> None:
        """Nothing passes through these plugs of the switches any more."""
        self._cut.update(ports)
        self._apply_cuts()

    def heal(self, ports: list[str]) -> None:
        """It passes again."""
        self._cut.difference_update(ports)
        self._apply_cuts()

    def _apply_cuts(self) -> None:
        rules = "\n".join(CUT_PORT.replace("@PORT@", port) for port in sorted(self._cut))
        words = [self.ip, "netns", "exec", self.wiring, "nft", "-f", "-"]
        _run(words, CUT.replace("@RULES@", rules))

    # --- the end --------------------------------------------------------------------------------------

    def at_end(self, do: Callable[[], object]) -> None:
        """Done first at the end, the latest first: what runs in here is to end in order."""
        self._at_end.append(do)

    def remove(self) -> None:
        """End what runs in it, and remove it; may be called again."""
        atexit.unregister(self.remove)
        try:
            while self._at_end:
                self._at_end.pop()()
        finally:
            spaces = [self.wiring, *(machine.space for machine in self.machines.values())]
            for machine in self.machines.values():
                self._vacate(machine)
            self.machines.clear()
            _delete(self.ip, spaces)

    def _vacate(self, machine: Machine) -> None:
        """A namespace lives as long as a process is in it: end those that were left behind."""

        def vacant() -> bool:
            # Our own children stay as dead ones until they are waited for. What was started just now enters
            # after the first look.
            alive = [pid for pid in machine.pids() if state_of(pid) not in ("Z", "X", "")]
            for pid in alive:
                send(pid, signal.SIGKILL)
            return not alive

        until(vacant, f"nothing runs in {machine.space}", LEAVE_S_MAX)

    def batch(self, *lines: str) -> None:
        """`ip` commands without the word."""
        for line in lines:
            _run([self.ip, *line.split()])


def missing() -> str:
    """Why there can be no such networks here; empty: there can."""
    lacking = [name for name in PROGRAMS if not _program(name)]
    if lacking:
        return f"{', '.join(lacking)} missing: apt-get install iproute2 nftables conntrack procps"
    if os.geteuid() != 0:
        return "network namespaces need root"
    try:
        with Network() as network:
            lan, home = network.lan("outside"), network.lan("inside")
            network.nat_box("box", outside=lan, address="192.0.2.1/24", inside=home, gateway="10.0.0.1/24")
            network.machine("some").plug(lan, "192.0.2.2/24").cut()
    except Hung as problem:
        return f"network namespaces do not work here: {problem}"
    return ""


def _delete(ip: str, spaces: list[str]) -> None:
    for space in spaces:
        words = [ip, "netns", "delete", space]
        subprocess.run(words, check=False, capture_output=True, timeout=TOOL_S_MAX)
        shutil.rmtree(ETC / space, ignore_errors=True)
    with suppress(OSError):
        ETC.rmdir()  # if nobody else has something in it


def _sweep(ip: str) -> None:
    """Remove what a killed program left behind: its number is in the names, and no process has it."""
    names = _run([ip, "netns", "list"]).splitlines()
    found = [match for name in names if (match := _OURS.match(name))]
    dead = [match[0] for match in found if not Path(f"/proc/{match[1]}").exists()]
    for space in dead:
        for pid in _run([ip, "netns", "pids", space]).split():
            send(int(pid), signal.SIGKILL)
    if dead:
        _delete(ip, dead)


def _program(name: str) -> str:
    return shutil.which(name) or shutil.which(name, path=WITHOUT_SH) or ""


def _run(words: list[str], text: str = "") -> str:
    done = subprocess.run(
        words, input=text, capture_output=True, text=True, timeout=TOOL_S_MAX, check=False, env=_environment()
    )
    if done.returncode != 0:
        raise Hung(f"`{' '.join(words)}` failed ({done.returncode}): {done.stderr.strip()}")
    return done.stdout


def _environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:{WITHOUT_SH}"}
