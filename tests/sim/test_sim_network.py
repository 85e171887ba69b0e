"""The simulated clock and network keep what real ones promise, and break what real ones break."""

from __future__ import annotations

from random import Random

from kestrel.ports import Show
from kestrel.sim.clock import ProcessClock, Timeline
from kestrel.sim.network import CONFLICT, Link, Network
from kestrel.sim.trace import Trace


class Ear:
    """A node that writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []

    def on_up(self, address: str) -> None:
        self.told.append(("up",))

    def on_down(self, reason: str) -> None:
        self.told.append(("down",))

    def on_message(self, sender: str, payload: bytes, chat: bool) -> None:
        self.told.append(("message", sender, payload))

    def on_available(self, sender: str, show: Show, status: str) -> None:
        self.told.append(("available", sender, show))

    def on_unavailable(self, sender: str, reason: str) -> None:
        self.told.append(("unavailable", sender, reason))

    def on_heard(self, sender: str) -> None:
        self.told.append(("heard", sender))


class Rig:
    """A network with a few nodes."""

    def __init__(self) -> None:
        self.timeline = Timeline()
        self.network = Network(self.timeline, Random(7), Trace())
        self.links: dict[str, Link] = {}
        self.ears: dict[str, Ear] = {}

    def join(self, address: str) -> Link:
        link = Link(self.network, address, ProcessClock(self.timeline))
        self.links[address], self.ears[address] = link, Ear()
        link.attach(self.ears[address])
        link.connect()
        return link

    def run(self, seconds: float) -> None:
        end = self.timeline.call_later(seconds, lambda: None)
        while end.callback is not None:
            self.timeline.step()

    def heard(self, address: str) -> list[tuple[object, ...]]:
        told = self.ears[address].told[:]
        self.ears[address].told.clear()
        return told


def pair() -> tuple[Rig, Link, Link]:
    rig = Rig()
    a, b = rig.join("a@x/1"), rig.join("b@x/1")
    rig.run(1)
    assert rig.heard("a@x/1") == rig.heard("b@x/1") == [("up",)]
    return rig, a, b


def test_calls_due_at_once_come_in_the_order_they_were_asked_for() -> None:
    timeline = Timeline()
    clock = ProcessClock(timeline)
    called: list[int] = []
    for i in range(5):
        clock.call_later(1.0, lambda i=i: called.append(i))  # type: ignore[misc]
    clock.call_later(0.5, lambda: called.append(9)).cancel()
    while timeline.step():
        pass
    assert called == [0, 1, 2, 3, 4]


def test_a_suspended_process_is_called_when_it_goes_on_and_a_dead_one_never() -> None:
    timeline = Timeline()
    clock, dead = ProcessClock(timeline), ProcessClock(timeline)
    called: list[str] = []
    clock.call_later(1.0, lambda: called.append("slept"))
    clock.call_later(2.0, lambda: called.append("too"))
    dead.call_later(1.0, lambda: called.append("never"))
    clock.suspend()
    dead.kill()
    timeline.call_later(3.0, lambda: called.append("later"))
    while timeline.step():
        pass
    assert called == ["later"]
    clock.resume()
    while timeline.step():
        pass
    assert called == ["later", "slept", "too"]


def test_a_process_that_slept_does_not_know_that_time_passed() -> None:
    timeline = Timeline()
    clock = ProcessClock(timeline, origin=100.0)
    called: list[tuple[str, float]] = []
    clock.call_later(2.0, lambda: called.append(("soon", timeline.now)))
    clock.call_later(50.0, lambda: called.append(("later", timeline.now)))
    timeline.call_later(1.0, lambda: clock.suspend(asleep=True))
    timeline.call_later(10.0, lambda: clock.deliver(lambda: called.append(("message", timeline.now))))
    timeline.call_later(21.0, clock.resume)
    timeline.call_later(21.5, lambda: called.append(("clock", clock.now() - 100.0)))
    while timeline.step():
        pass
    assert called == [("message", 21.0), ("clock", 1.5), ("soon", 22.0), ("later", 70.0)]
    assert clock.wall() - 1_700_000_000.0 == timeline.now


def test_clocks_of_different_processes_differ_and_walls_jump() -> None:
    timeline = Timeline()
    one, two = ProcessClock(timeline, origin=5.0), ProcessClock(timeline, wall_offset_s=-10.0)
    assert one.now() - two.now() == 5.0
    assert one.wall() - two.wall() == 10.0
    two.wall_offset_s = 3600.0
    assert two.wall() - one.wall() == 3600.0
    assert two.now() == 0.0


def test_a_stream_keeps_its_order() -> None:
    rig, a, _ = pair()
    for i in range(50):
        a.send("b@x/1", b"%d" % i)
    rig.run(1)
    assert rig.heard("b@x/1") == [("message", "a@x/1", b"%d" % i) for i in range(50)]


def test_nobody_is_called_from_inside_the_call_that_asked() -> None:
    rig, a, _ = pair()
    a.send("nobody@x/1", b"{}")
    a.ping("b@x/1")
    assert rig.heard("a@x/1") == []
    rig.run(1)
    assert sorted(map(str, rig.heard("a@x/1"))) == [
        "('heard', 'b@x/1')",
        "('unavailable', 'nobody@x/1', 'service-unavailable')",
    ]


def test_who_was_sent_presence_learns_at_once_of_a_killed_process() -> None:
    rig, a, _ = pair()
    rig.join("c@x/1")
    a.announce("b@x/1", Show.CHAT, "")
    rig.run(1)
    a.clock.kill()
    a.close()
    rig.run(0.1)
    assert rig.heard("b@x/1") == [("available", "a@x/1", Show.CHAT), ("unavailable", "a@x/1", "closed")]
    assert rig.heard("c@x/1") == [("up",)]


def test_who_withdrew_is_not_announced_again() -> None:
    rig, a, _ = pair()
    a.announce("b@x/1", Show.CHAT, "")
    a.withdraw("b@x/1")
    rig.run(1)
    a.close()
    rig.run(1)
    assert [told[0] for told in rig.heard("b@x/1")] == ["available", "unavailable"]


def test_silence_tells_nobody_and_loses_nothing() -> None:
    rig, a, b = pair()
    a.announce("b@x/1", Show.CHAT, "")
    rig.run(1)
    rig.heard("b@x/1")
    rig.network.stall(a, True)
    a.send("b@x/1", b"1")
    b.send("a@x/1", b"2")
    rig.run(100)
    assert rig.heard("a@x/1") == rig.heard("b@x/1") == []
    rig.network.stall(a, False)
    rig.run(1)
    assert rig.heard("b@x/1") == [("message", "a@x/1", b"1")]
    assert rig.heard("a@x/1") == [("message", "b@x/1", b"2")]


def test_a_break_loses_the_end_of_a_stream_and_nothing_else() -> None:
    lost = set()
    for seed in range(20):
        rig, a, _ = pair()
        rig.network.random.seed(seed)
        for i in range(10):
            a.send("b@x/1", b"%d" % i)
        rig.network.break_session(a)
        a.send("b@x/1", b"sent into nothing")
        rig.run(10)
        got = [told[2] for told in rig.heard("b@x/1") if told[0] == "message"]
        assert got == [b"%d" % i for i in range(len(got))]
        lost.add(10 - len(got))
        assert [told[0] for told in rig.heard("a@x/1")] == ["down", "up"]
    assert len(lost) > 3


def test_a_server_that_restarts_forgets_everybody_without_a_word() -> None:
    rig, a, _ = pair()
    a.announce("b@x/1", Show.CHAT, "")
    rig.run(1)
    rig.heard("b@x/1")
    rig.network.stop_server()
    rig.run(5)
    assert rig.heard("b@x/1") == [("down",)]
    rig.network.start_server()
    rig.run(5)
    assert rig.heard("b@x/1") == [("up",)]


def test_binding_an_address_again_ends_the_old_session() -> None:
    rig, a, _ = pair()
    a.announce("b@x/1", Show.CHAT, "")
    rig.run(1)
    rig.network.stall(a, True)
    rig.join("a@x/1")
    rig.run(1)
    assert rig.heard("b@x/1")[-1] == ("unavailable", "a@x/1", CONFLICT)


def test_a_bare_address_reaches_a_session_of_it() -> None:
    rig, a, _ = pair()
    a.send("b@x", b"{}")
    rig.run(1)
    assert rig.heard("b@x/1") == [("message", "a@x/1", b"{}")]


def test_an_exclusive_address_is_refused_while_its_owner_seems_to_live() -> None:
    rig, a, _ = pair()
    rig.network.exclusive.add("a@x/1")
    second = rig.join("a@x/1")
    rig.run(5)
    assert not second.up
    assert a.up
    a.close()
    rig.run(5)
    assert second.up


def test_who_is_replaced_is_told_and_may_take_it_as_final() -> None:
    rig, a, _ = pair()
    final: list[str] = []
    a.on_conflict = lambda: final.append("conflict")
    rig.join("a@x/1")
    rig.run(10)
    assert final == ["conflict"]
    assert not a.up


def test_a_server_that_tells_nobody_of_a_component_that_goes_still_bounces_messages_to_it() -> None:
    rig, a, b = pair()
    rig.network.untold.add("a@x/1")
    a.announce("b@x/1", Show.CHAT, "")
    rig.run(1)
    rig.heard("b@x/1")
    a.close()
    rig.run(1)
    assert rig.heard("b@x/1") == []
    b.send("a@x/1", b"{}")
    rig.run(1)
    assert rig.heard("b@x/1") == [("unavailable", "a@x/1", "service-unavailable")]


def test_a_node_without_power_is_missed_when_the_server_finds_out() -> None:
    rig, a, _ = pair()
    a.announce("b@x/1", Show.CHAT, "")
    rig.run(1)
    rig.heard("b@x/1")
    a.clock.kill()
    assert a.session is not None
    rig.network.forget(a.session, 7.0)
    rig.run(6.5)
    assert rig.heard("b@x/1") == []
    rig.run(1)
    assert rig.heard("b@x/1") == [("unavailable", "a@x/1", "no sign of life")]
