"""A client's requests survive links and managers that go, and fail with words when nobody answers."""

from __future__ import annotations

import asyncio
import base64
import gc
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

import kestrel.client.client
from kestrel.client import Client, RequestError
from kestrel.errors import EnvironmentProblem, PeerError, UsageError
from kestrel.ports import Show
from kestrel.protocol import codec
from kestrel.protocol import messages as m

MANAGER = "manager.example.org"
Answer = Callable[[Any], m.Message | None]


class Far:
    """A transport whose other end is a function: request → answer, or None for silence."""

    def __init__(self, client: Client, answer: Answer) -> None:
        self.client = client
        self.answer = answer
        self.seen: list[Any] = []
        self.sought = 0

    def send(self, to: str, payload: bytes, *, chat: bool = False) -> None:
        message = codec.decode_to_manager(payload)
        self.seen.append(message)
        answer = self.answer(message)
        if answer is not None:
            self.deliver(answer)

    def deliver(self, message: m.Message) -> None:
        text = codec.encode(message)
        asyncio.get_running_loop().call_soon(self.client.on_message, MANAGER, text, False)

    def announce(self, to: str, show: Show, status: str) -> None:
        self.sought += 1

    def say(self, to: str, text: str) -> None: ...
    def withdraw(self, to: str) -> None: ...
    def ping(self, to: str) -> None: ...

    def kinds(self) -> list[str]:
        return [type(message).__name__ for message in self.seen]


def play(answer: Answer, scene: Callable[[Client, Far], Awaitable[None]], **options: Any) -> None:
    """Run a scene with a connected client; nothing may be left over, and nobody may be unheard."""

    async def main() -> None:
        loud: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: loud.append(context))
        client = Client(MANAGER, **options)
        far = Far(client, answer)
        client.attach(far)
        client.on_up("ann@example.org/x")
        client.on_available(MANAGER, Show.ONLINE, "")
        try:
            await scene(client, far)
        finally:
            client.close()
        await asyncio.sleep(0)
        assert client._pending == {}
        assert client._watchers == {}
        assert asyncio.all_tasks() == {asyncio.current_task()}
        gc.collect()
        assert loud == []

    asyncio.run(main())


async def settled() -> None:
    """Until nothing more happens by itself: deliveries are calls of the loop, a few rounds of it."""
    for _ in range(10):
        await asyncio.sleep(0)


def info(job: int, finished: float = 0.0) -> m.JobInfo:
    return m.JobInfo(job=job, user="ann@example.org", finished=finished)


def test_a_request_is_sent_again_when_the_link_or_the_manager_is_back():
    async def scene(client: Client, far: Far) -> None:
        asked = asyncio.create_task(client.request(m.Help(), m.Text))
        await asyncio.sleep(0)
        client.on_down("cable")
        client.on_up("ann@example.org/x")
        client.on_unavailable(MANAGER, "restarts")
        far.answer = lambda message: m.Text(re=message.id, text="yes")
        client.on_available(MANAGER, Show.ONLINE, "")
        assert (await asked).text == "yes"
        assert len({message.id for message in far.seen}) == 1
        assert len(far.seen) == 3

    play(lambda _: None, scene)


def test_silence_ends_in_words_that_name_the_manager_and_the_last_trouble():
    async def scene(client: Client, far: Far) -> None:
        client.on_unavailable(MANAGER, "shut down")
        with pytest.raises(EnvironmentProblem) as caught:
            await client.request(m.Help(), m.Text)
        assert caught.value.code == "no_answer"
        assert MANAGER in caught.value.text
        assert "shut down" in caught.value.text

    play(lambda _: None, scene, answer_s_max=0.01)


def test_a_submission_that_nobody_answered_can_be_repeated_as_the_same_job():
    """Its id was made up here, and nobody else knows it."""

    async def scene(client: Client, far: Far) -> None:
        for args in ([["1"]], [["x" * 60_000]] * 9):
            far.seen.clear()
            with pytest.raises(EnvironmentProblem) as caught:
                await client.submit(m.Job(command="true"), args)
            assert caught.value.code == "no_answer"
            assert f"--id {far.seen[0].id}" in caught.value.hint

    play(lambda _: None, scene, answer_s_max=0.01)


def test_a_refusal_is_raised_in_the_managers_words_and_a_wrong_answer_as_the_peers_fault():
    async def scene(client: Client, far: Far) -> None:
        with pytest.raises(RequestError) as caught:
            await client.request(m.Status(job=9), m.JobStatus)
        assert (caught.value.code, caught.value.text, caught.value.hint) == (
            "unknown_job",
            "no job 9",
            "?!",
        )
        far.answer = lambda message: m.Text(re=message.id, text="?")
        with pytest.raises(PeerError, match="Text"):
            await client.request(m.Status(job=9), m.JobStatus)

    play(lambda r: m.Error(re=r.id, code="unknown_job", text="no job 9", hint="?!"), scene)


def test_strangers_and_garbage_answer_nothing():
    async def scene(client: Client, far: Far) -> None:
        asked = asyncio.create_task(client.request(m.Help(), m.Text))
        await asyncio.sleep(0)
        forged = codec.encode(m.Text(re=far.seen[0].id, text="forged"))
        client.on_message("eve@example.org/x", forged, False)
        client.on_message(MANAGER, b"{", False)
        client.on_message(MANAGER, b'{"type": "later_invention"}', False)
        far.deliver(m.Text(re=far.seen[0].id, text="true"))
        assert (await asked).text == "true"

    play(lambda _: None, scene)


def test_closing_ends_what_is_under_way_at_once():
    async def scene(client: Client, far: Far) -> None:
        asked = asyncio.create_task(client.request(m.Help(), m.Text))
        await asyncio.sleep(0)
        client.close()
        with pytest.raises(EnvironmentProblem, match="closed"):
            await asked
        with pytest.raises(EnvironmentProblem, match="closed"):
            await client.request(m.Help(), m.Text)

    play(lambda _: None, scene)


def test_the_same_request_twice_shares_its_answer_and_another_under_its_id_is_refused():
    async def scene(client: Client, far: Far) -> None:
        job = m.Job(command="true", id="mine")
        both = [asyncio.create_task(client.submit(job)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(UsageError, match="mine"):
            await client.submit(m.Job(command="false", id="mine"))
        far.deliver(m.Accepted(re="mine", job=4, size=1))
        assert [s.job for s in await asyncio.gather(*both)] == [4, 4]
        assert len(far.seen) == 1

    play(lambda _: None, scene)


def test_an_address_in_other_letters_is_the_same_manager():
    async def main() -> None:
        client = Client("Manager.Example.ORG")
        client.on_available(MANAGER, Show.ONLINE, "")
        assert client.manager_present

    asyncio.run(main())


class Bag:
    """The manager's side of a submission."""

    def __init__(self) -> None:
        self.args: list[list[str]] = []
        self.open = True

    def __call__(self, message: Any) -> m.Message | None:
        if isinstance(message, m.Job):
            self.args = list(message.args or [])
            self.open = message.open
        elif isinstance(message, m.Extend):
            assert message.offset == len(self.args)
            self.args += message.args
            self.open = not message.last
        return m.Accepted(re=message.id, job=7, size=len(self.args))


def test_a_long_submission_arrives_in_order_and_whole():
    bag = Bag()
    args = [[str(i), "x" * 1000] for i in range(3000)]

    async def scene(client: Client, far: Far) -> None:
        submission = await client.submit(m.Job(command="echo"), iter(args))
        assert (submission.job, submission.size) == (7, 3000)
        assert far.kinds()[0] == "Job"
        assert far.kinds().count("Extend") > 20

    play(bag, scene)
    assert bag.args == args
    assert not bag.open


def test_a_job_that_shall_stay_open_stays_open():
    bag = Bag()

    async def scene(client: Client, far: Far) -> None:
        await client.submit(m.Job(command="echo", open=True), [["x" * 60_000]] * 4)

    play(bag, scene)
    assert len(bag.args) == 4
    assert bag.open


def broken_arguments() -> Iterator[list[str]]:
    for _ in range(300):
        yield ["x" * 1000]
    raise OSError("the file is gone")


@pytest.mark.parametrize(("id", "cancelled"), [("", True), ("mine", False)])
def test_a_submission_that_breaks_off_is_cancelled_unless_it_can_be_gone_on_with(id: str, cancelled: bool):
    async def scene(client: Client, far: Far) -> None:
        with pytest.raises(OSError, match="gone"):
            await client.submit(m.Job(command="echo", id=id), broken_arguments())
        assert ("Cancel" in far.kinds()) is cancelled

    play(Bag(), scene)


def test_a_refused_addition_ends_the_submission_with_the_managers_words():
    bag = Bag()

    def answer(message: Any) -> m.Message | None:
        if isinstance(message, m.Extend):
            return m.Error(re=message.id, code="closed", text="job 7 is closed")
        return bag(message)

    async def scene(client: Client, far: Far) -> None:
        with pytest.raises(RequestError, match="closed"):
            await client.submit(m.Job(command="echo"), [["x" * 60_000]] * 20)

    play(answer, scene)


@pytest.mark.parametrize(
    ("job", "args", "word"),
    [
        (m.Job(command="echo"), [["x" * 100_000]], "arguments"),
        (m.Job(command="echo"), [["\udcff"]], "Unicode"),
        (m.Job(command="echo \udcff"), None, "Unicode"),
        (m.Job(command="echo", env={"A": "&" * 60_000}), None, "request"),
    ],
)
def test_what_no_message_can_carry_is_refused_here(job: m.Job, args: list[list[str]] | None, word: str):
    async def scene(client: Client, far: Far) -> None:
        with pytest.raises(UsageError, match=word):
            await client.submit(job, args)
        assert far.seen == []

    play(Bag(), scene)


def test_an_empty_bag_is_the_managers_to_refuse():
    async def scene(client: Client, far: Far) -> None:
        with pytest.raises(RequestError, match="nothing to do"):
            await client.submit(m.Job(command="echo"), iter(()))
        assert (far.seen[0].args, far.seen[0].open) == ([], False)

    play(lambda r: m.Error(re=r.id, code="usage", text="nothing to do"), scene)


def test_results_follow_the_cursor_until_the_manager_is_done():
    pages = [([0, 1], 2, False), ([], 2, False), ([2], 3, True)]

    def answer(message: m.Results) -> m.Message:
        tasks, last, done = pages.pop(0)
        results = [m.TaskResult(task=t) for t in tasks]
        return m.ResultPage(re=message.id, job=1, results=results, last=last, done=done)

    async def scene(client: Client, far: Far) -> None:
        seen = [r.task async for page in client.results(1) for r in page]
        assert seen == [0, 1, 2]
        assert [(r.after, r.wait) for r in far.seen] == [(0, True), (2, True), (2, True)]

    play(answer, scene)


def test_output_is_read_in_pieces_to_its_end_and_damage_is_told():
    whole = bytes(range(256)) * 500

    def answer(message: m.Output) -> m.Message:
        data = base64.b64encode(whole[message.offset : message.offset + message.limit]).decode()
        return m.OutputPart(re=message.id, job=1, task=0, offset=message.offset, data=data, size=len(whole))

    async def scene(client: Client, far: Far) -> None:
        assert b"".join([piece async for piece in client.output(1, 0, "stdout")]) == whole
        far.answer = lambda r: m.OutputPart(re=r.id, job=1, task=0, data="!", size=9)
        with pytest.raises(PeerError, match="damaged"):
            await anext(client.output(1, 0, "stdout"))

    play(answer, scene)


def test_two_waits_for_a_job_both_end_with_its_event_and_are_then_forgotten():
    async def scene(client: Client, far: Far) -> None:
        waits = [asyncio.create_task(client.wait(1)) for _ in range(2)]
        await settled()
        far.deliver(m.Event(job=info(1, finished=5.0)))
        assert [i.finished for i in await asyncio.gather(*waits)] == [5.0, 5.0]

    play(lambda r: m.JobStatus(re=r.id, jobs=[info(1)]), scene)


def test_an_end_that_was_missed_while_the_link_was_down_is_heard_of_when_it_is_back():
    async def scene(client: Client, far: Far) -> None:
        waiting = asyncio.create_task(client.wait(1))
        await settled()
        far.answer = lambda r: m.JobStatus(re=r.id, jobs=[info(1, finished=5.0)])
        client.on_down("cable")
        client.on_up("ann@example.org/x")
        assert (await waiting).finished == 5.0

    play(lambda r: m.JobStatus(re=r.id, jobs=[info(1)]), scene)


def test_who_waits_for_a_job_waits_through_a_store_that_fails(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kestrel.client.client, "WATCH_S", 0.005)
    answers: list[Callable[[Any], m.Message]] = [
        lambda r: m.JobStatus(re=r.id, jobs=[info(1)]),
        lambda r: m.Error(re=r.id, code="store", text="the connection to the database is lost"),
        lambda r: m.Error(re=r.id, code="store_full", text="no room left"),
        lambda r: m.JobStatus(re=r.id, jobs=[info(1, finished=5.0)]),
    ]

    async def scene(client: Client, far: Far) -> None:
        assert (await client.wait(1)).finished == 5.0

    def answer(request: Any) -> m.Message:
        return answers.pop(0)(request)

    play(answer, scene)
    assert answers == []


def test_a_wait_that_is_given_up_stops_watching():
    async def scene(client: Client, far: Far) -> None:
        waiting = asyncio.create_task(client.wait(1))
        await settled()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert [r.stop for r in far.seen] == [False, True]

    play(lambda r: m.JobStatus(re=r.id, jobs=[info(1)]), scene)
