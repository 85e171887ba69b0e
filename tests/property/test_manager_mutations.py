"""10,000 mutations of valid messages, from users and workers, leave the manager in order."""

from __future__ import annotations

import random

import pytest

from kestrel.protocol import codec
from kestrel.protocol import messages as m
from parts.manager import USER, WORKER, Rig

SEEDS = 20
PER_SEED = 500
VALID = [
    codec.encode(message)
    for message in (
        m.Profile(os="Linux", ram=4096, cores=4, provides=["FOO"], held=[m.HeldAttempt(1, 0, 2**32 + 1)]),
        m.Report(n=3, attempts=[m.AttemptReport(job=1, task=0, attempt=2**32 + 1, out="x")]),
        m.Revoked(job=1, attempts=[2**32 + 2]),
        m.OutputPart(re="1", job=1, task=0, data="eA==", size=1),
        m.Job(command="echo {}", args=[["a"], ["b"]], open=True, requires=["foo"], id="s"),
        m.Job(command=["true"], queue=3, retries=2, priority=5),
        m.Extend(job=1, offset=2, args=[["c"]], last=True),
        m.Cancel(job=1, tasks="0-1:2"),
        m.Status(all=True),
        m.ListTasks(job=1, states=["RUNNING"], limit=5),
        m.Results(job=1, wait=True, tasks=""),
        m.Results(job=1, tasks="0-1"),
        m.Output(job=1, task=0),
        m.Watch(job=1),
        m.Pool(),
        m.Explain(job=1, task=0),
        m.Drain(worker=WORKER, undo=True),
        m.Help(),
        m.Error(code="x", text="y"),
    )
]


def mutated(text: bytes, chance: random.Random) -> bytes:
    """One to three small damages, of the kind that a fuzzer makes."""
    data = bytearray(text)
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(6):
            case 0:
                data[at:at] = bytes([chance.randrange(256)])
            case 1:
                del data[at : at + chance.randint(1, 8)]
            case 2 if at < len(data):
                data[at] = chance.randrange(256)
            case 3:
                data[at:at] = chance.choice([b"0", b"-1", b"1e400", b"99999999999999999999", b"null", b'"'])
            case 4:
                other = chance.choice(VALID)
                data[at:at] = other[chance.randrange(len(other)) :]
            case _:
                data += data[: chance.randrange(len(data) + 1)]
    return bytes(data)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_manager_answers_mutations_and_goes_on(seed: int):
    chance = random.Random(seed)
    rig = Rig()
    failed: list[Exception] = []
    rig.manager.on_failed = failed.append
    rig.join(cores=2)
    for _ in range(PER_SEED):
        sender = chance.choice((USER, WORKER, "w2@example.org/x", "eve@example.org/y"))
        payload = chance.choice(VALID)
        if chance.random() < 0.9:
            payload = mutated(payload, chance)
        rig.notes.sent.clear()
        rig.manager.on_message(sender, payload, chance.random() < 0.3)
        if chance.random() < 0.2:
            rig.run(0.05)
    rig.run(1)
    rig.manager.scheduler.check_invariants()
    assert failed == []
    answer = rig.ask(m.Job(command="true", id="healthy"), sender="ann@example.org/other")
    assert isinstance(answer, m.Accepted)
    rig.join("w9@example.org/fresh", cores=64)
    rig.run(40)
    given = [t for t in rig.to("w9@example.org/fresh", m.Tasks) if t.job == answer.job]
    assert given, "a healthy worker gets the healthy job"
    for n, tasks in enumerate(given, 1):
        rig.finish(tasks, "w9@example.org/fresh", n=n)
    info = rig.ask(m.Status(job=answer.job), sender="ann@example.org/other").jobs[0]
    assert info.state == "COMPLETED"
