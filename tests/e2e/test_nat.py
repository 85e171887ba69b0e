"""A pool whose workers and user are at home behind NAT boxes, two of them with the very same addresses.

In network namespaces with real masquerading; server and manager have the only public address.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from parts.networks import Network, need_networks
from realpool.computers import Computer
from realpool.networks import NatBox
from realpool.processes import Process, until

PUBLIC = "192.0.2.1"
LOST_AFTER = "3s"
SOON_S = 30.0
OUTPUT_BYTES = 300_000
"""More than a result carries (4 KiB), and than one message holds."""


@dataclass(frozen=True, slots=True)
class Homes:
    """A pool and who takes part in it."""

    up: Process
    user: Computer
    workers: list[Process]
    boxes: list[NatBox]
    scratch: Path

    def seen(self) -> int:
        done = self.user.run("pool", "--json")
        return len(json.loads(done.stdout).get("workers", [])) if done.returncode == 0 else -1

    def describe(self) -> str:
        parts = [self.up, *self.workers]
        return "\n".join(f"{part.describe()}\n{part.log()}" for part in parts)

    def count_started(self, ran: Path) -> int:
        return len(ran.read_text().split()) if ran.exists() else 0


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Homes]:
    need_networks()
    scratch = tmp_path_factory.mktemp("nat")
    with Network() as net:
        world = net.lan("world")
        server = Computer(net.machine("server").plug(world, f"{PUBLIC}/24"), scratch)
        people, boxes = [], []
        for number, name in enumerate(("one", "two", "user"), 1):
            lan = net.lan(name)
            outside = f"192.0.2.{10 + number}/24"
            boxes.append(
                net.nat_box(f"box{number}", outside=world, address=outside, inside=lan, gateway="10.0.0.1/24")
            )
            machine = net.machine(name).plug(lan, "10.0.0.2/24", gateway="10.0.0.1")
            people.append(Computer(machine, scratch))
        words = ["up", "--listen", PUBLIC, "--json", "-v", "--lost-after", LOST_AFTER]
        up = server.start("up", *words)
        line = json.loads(up.wait_for("{", SOON_S).text)["invitation"]
        user = people.pop()
        user.say("join", "-", text=server.ask("invite", "--role", "user")["invitation"])
        join = ("worker", "--join", line, "--slots", "4", "-v")
        workers = [each.start("worker", *join, "--name", each.name) for each in people]
        pool = Homes(up, user, workers, boxes, scratch)
        until(lambda: pool.seen() == 2, "both workers are seen", SOON_S, seen=pool.describe)
        yield pool


def test_everything_works_through_nat_with_the_same_addresses_on_both_sides(homes: Homes) -> None:
    user = homes.user
    printed = user.say("run", "-k", "--", "echo got {}; cat", ":::", "a", "b", "c", text="")
    assert printed.split("\n") == ["got a", "got b", "got c", ""]
    piped = user.say("run", "-k", "--", "echo line", text="x\ny\n")
    assert piped == "line x\nline y\n"
    sent = user.ask("submit", "-n", "20", "--wait", "--", "echo $KESTREL_WORKER >&2; echo")
    assert sent["state"] == "COMPLETED"
    job = str(sent["job"])
    results = [json.loads(text) for text in user.say("results", job, "--json").splitlines()]
    assert len(results) == 20
    assert {result["worker"].partition("@")[0] for result in results} == {"one", "two"}, "both took part"
    assert user.say("cat", f"{job}_7") == "7\n"
    assert user.say("cat", "--stderr", f"{job}_7").partition("@")[0] in ("one", "two")


def test_output_of_any_length_is_read_from_a_worker_behind_nat(homes: Homes) -> None:
    user = homes.user
    command = f"yes 0123456789abcde | head -c {OUTPUT_BYTES} #"
    job = user.ask("submit", "-n", "2", "--wait", "--", command)["job"]
    for task in range(2):
        text = user.say("cat", f"{job}_{task}")
        assert len(text) == OUTPUT_BYTES
        assert set(text.split("\n")[:-1]) == {"0123456789abcde"}


def test_when_the_boxes_forget_all_connections_the_pool_recovers_and_nothing_is_lost_or_recorded_twice(
    homes: Homes,
) -> None:
    user, ran, gate = homes.user, homes.scratch / "ran", homes.scratch / "gate"
    command = f"echo $KESTREL_TASK_ID >> {ran}; until [ -e {gate} ]; do sleep 0.05; done; echo done"
    job = str(user.ask("submit", "-n", "12", "--", command)["job"])
    until(lambda: homes.count_started(ran) == 8, "all slots are busy", SOON_S, seen=homes.describe)
    waiting = user.start("wait", "wait", job)
    until(lambda: homes.boxes[2].mappings() > 0, "somebody waits for the job", SOON_S)
    for box in homes.boxes:
        assert box.mappings() > 0
        box.forget()
    gate.touch()
    until(lambda: not waiting.running, "who waits for the job hears its end", SOON_S, seen=homes.describe)
    assert waiting.exit_code == 0, waiting.log()
    until(lambda: homes.seen() == 2, "both workers are back", SOON_S, seen=homes.describe)
    status = user.ask("status", job)[0]
    assert status["state"] == "COMPLETED"
    results = [json.loads(text) for text in user.say("results", job, "--json").splitlines()]
    assert Counter(result["task"] for result in results) == Counter(range(12)), "each once"
    assert all(worker.running for worker in homes.workers)
