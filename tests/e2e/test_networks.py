"""The networks that other tests break: silence is silent, boxes forget, and nothing is left of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from parts.networks import Network, need_networks
from realpool import networks
from realpool.networks import Machine, NatBox
from realpool.processes import until

SERVER = """
import socket, threading
listener = socket.create_server(("192.0.2.1", 7))
print("ready", flush=True)
def echo(peer):
    while data := peer.recv(100):
        peer.sendall(data)
while True:
    threading.Thread(target=echo, args=listener.accept()[:1], daemon=True).start()
"""
CLIENT = """
import socket, sys
link = socket.create_connection(("192.0.2.1", 7), 10)
link.settimeout(0.7)
for line in sys.stdin:
    link.sendall(b"x")
    try:
        print("echo" if link.recv(1) else "closed", flush=True)
    except TimeoutError:
        print("silence", flush=True)
"""


class Talk:
    """A connection from a machine to the server."""

    def __init__(self, machine: Machine) -> None:
        self.process = start(machine, CLIENT)

    def say(self) -> str:
        """What comes back."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()


def start(machine: Machine, program: str) -> subprocess.Popen[str]:
    words = machine.words(sys.executable, "-c", program)
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def end() -> None:
        process.kill()
        process.communicate()

    machine.network.at_end(end)
    return process


@pytest.fixture
def home() -> Iterator[tuple[NatBox, Machine]]:
    """A machine behind a box; the server is outside."""
    need_networks()
    with Network() as net:
        world, lan = net.lan("world"), net.lan("home")
        server = start(net.machine("server").plug(world, "192.0.2.1/24"), SERVER)
        box = net.nat_box("box", outside=world, address="192.0.2.2/24", inside=lan, gateway="10.0.0.1/24")
        machine = net.machine("inside").plug(lan, "10.0.0.2/24", gateway="10.0.0.1")
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        yield box, machine


def test_a_cut_link_is_silent_and_what_was_sent_arrives_when_it_is_healed(
    home: tuple[NatBox, Machine],
) -> None:
    _, machine = home
    talk = Talk(machine)
    assert talk.say() == "echo"
    machine.cut()
    assert talk.say() == "silence"
    machine.heal()
    assert talk.say() == "echo"


def test_a_box_that_forgets_for_good_kills_connections_in_silence_and_takes_new_ones(
    home: tuple[NatBox, Machine],
) -> None:
    box, machine = home
    talk = Talk(machine)
    assert talk.say() == "echo"
    assert box.mappings() == 1
    box.forget(for_good=False)
    assert talk.say() == "echo", "the next packet from inside makes a new mapping"
    box.forget()
    assert talk.say() == "silence"
    assert Talk(machine).say() == "echo"


def test_nothing_is_left_after_a_failure_with_something_running_inside() -> None:
    need_networks()
    net = Network()
    children = []

    def fail() -> None:
        with net:
            machine = net.machine("some").plug(net.lan("lan"), "192.0.2.1/24")
            machine.asks_names_of("192.0.2.2")
            children.append(subprocess.Popen(machine.words("sleep", "1000")))
            until(lambda: bool(machine.pids()), "it has entered", 10)
            raise LookupError

    with pytest.raises(LookupError):
        fail()
    assert children[0].wait(10) < 0, "it was killed"
    assert net.prefix not in spaces()


def test_what_a_killed_program_left_is_removed_by_the_next_one() -> None:
    need_networks()
    program = "from realpool.networks import Network; net = Network(); print(net.prefix, flush=True); input()"
    words = [sys.executable, "-c", program]
    tools = str(Path(networks.__file__).parents[1])
    with subprocess.Popen(
        words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": tools},
    ) as other:
        assert other.stdout is not None
        prefix = other.stdout.readline().strip()
        assert prefix in spaces()
        with Network():
            assert prefix in spaces(), "it lives"
        other.kill()
    with Network():
        assert prefix not in spaces()


def spaces() -> str:
    words = ["ip", "netns", "list"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout
