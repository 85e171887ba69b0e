"""What a client does while managers change: it shows itself, repeats what is unanswered, and waits calmly."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

import pytest

from kestrel.client import Client, RequestError, seeking
from kestrel.errors import EnvironmentProblem
from kestrel.ports import Show
from kestrel.protocol import codec
from kestrel.protocol import messages as m

MANAGER = "manager.example.org"
JOB = m.JobInfo(job=1, user="ann@example.org")
ENDED = m.JobInfo(job=1, user="ann@example.org", finished=5.0)


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeking, "SEEK_S", 0.01)
    monkeypatch.setattr(seeking, "SEEK_S_MAX", 0.04)


class Lives:
    """A manager with several lives behind a transport. A life greets whom it does not know yet."""

    def __init__(self, client: Client, answer: Callable[[Any], m.Message | None]) -> None:
        self.client = client
        self.answer = answer
        self.there = True
        self.knows = False
        self.seen: list[Any] = []
        self.shown = 0

    def begin(self) -> None:
        """Another life takes over, which tells nobody."""
        self.there, self.knows = True, False

    def send(self, to: str, payload: bytes, *, chat: bool = False) -> None:
        if self.there:
            self.seen.append(codec.decode_to_manager(payload))
            answer = self.answer(self.seen[-1])
            if answer is not None:
                self.deliver(answer)

    def deliver(self, message: m.Message) -> None:
        text = codec.encode(message)
        asyncio.get_running_loop().call_soon(self.client.on_message, MANAGER, text, False)

    def announce(self, to: str, show: Show, status: str) -> None:
        self.shown += 1
        if self.there and not self.knows:
            self.knows = True
            loop = asyncio.get_running_loop()
            loop.call_soon(self.client.on_available, MANAGER, Show.ONLINE, "")

    def say(self, to: str, text: str) -> None: ...
    def withdraw(self, to: str) -> None: ...
    def ping(self, to: str) -> None: ...


def play(
    answer: Callable[[Any], m.Message | None],
    scene: Callable[[Client, Lives], Awaitable[None]],
    **options: Any,
) -> None:
    async def main() -> None:
        client = Client(MANAGER, **options)
        lives = Lives(client, answer)
        client.attach(lives)
        client.on_up("ann@example.org/x")
        await asyncio.sleep(0)
        try:
            async with asyncio.timeout(20):
                await scene(client, lives)
        finally:
            client.close()

    asyncio.run(main())


def silent(_: Any) -> None:
    return None


def test_a_manager_that_takes_over_in_silence_is_found_and_gets_everything_unanswered():
    async def scene(client: Client, lives: Lives) -> None:
        lives.there = False
        asked = [asyncio.create_task(client.request(m.Status(job=i), m.JobStatus)) for i in (1, 2)]
        await asyncio.sleep(0)
        assert lives.seen == []
        lives.answer = lambda r: m.JobStatus(re=r.id, jobs=[JOB])
        lives.begin()
        await asyncio.gather(*asked)
        assert [r.job for r in lives.seen] == [1, 2], "in the order in which they were asked"

    play(silent, scene)


def test_a_watch_is_asked_for_again_when_another_life_greets():
    def answer(r: Any) -> m.Message:
        return m.JobStatus(re=r.id, jobs=[JOB])

    async def scene(client: Client, lives: Lives) -> None:
        waiting = asyncio.create_task(client.wait(1))
        await asyncio.sleep(0)
        assert len(lives.seen) == 1
        lives.answer = lambda r: m.JobStatus(re=r.id, jobs=[ENDED])
        client.on_unavailable(MANAGER, "restarts")
        lives.begin()
        assert (await waiting).finished
        assert [type(r).__name__ for r in lives.seen] == ["Watch", "Watch"]

    play(answer, scene)


def test_who_waits_shows_himself_ever_more_calmly_and_not_at_all_without_a_question():
    async def scene(client: Client, lives: Lives) -> None:
        loop = asyncio.get_running_loop()
        assert lives.shown == 1
        times = []
        announce = lives.announce

        def noted(to: str, show: Show, status: str) -> None:
            times.append(loop.time())
            announce(to, show, status)

        lives.announce = noted  # type: ignore[method-assign]
        with pytest.raises(EnvironmentProblem):
            await client.request(m.Help(), m.Text)
        gaps = [b - a for a, b in pairwise(times)]
        assert all(gap >= 0.019 for gap in gaps), "never sooner than twice the first pause"
        assert gaps[1] >= 0.039
        shown = lives.shown
        await asyncio.sleep(seeking.SEEK_S * 3)
        assert lives.shown == shown

    play(silent, scene, answer_s_max=0.3)


@pytest.mark.parametrize("code", ["going", "busy"])
def test_a_refusal_for_now_is_asked_again_and_never_told_if_it_ends(code: str):
    refusals = [m.Error(code=code, text="not now")] * 3

    def answer(r: Any) -> m.Message:
        if refusals:
            refusal = refusals.pop()
            return m.Error(re=r.id, code=refusal.code, text=refusal.text)
        return m.Accepted(re=r.id, job=7, size=1)

    async def scene(client: Client, lives: Lives) -> None:
        accepted = await client.submit(m.Job(command="true"))
        assert accepted.job == 7
        assert len({r.id for r in lives.seen}) == 1, "always the same submission"
        assert len(lives.seen) == 4

    play(answer, scene)


def test_a_refusal_that_does_not_end_is_told_in_the_managers_words():
    async def scene(client: Client, lives: Lives) -> None:
        with pytest.raises(RequestError, match="too much to do") as caught:
            await client.request(m.Help(), m.Text)
        assert caught.value.code == "busy"

    play(lambda r: m.Error(re=r.id, code="busy", text="too much to do"), scene, answer_s_max=0.05)


def test_additions_behind_one_that_was_refused_for_now_are_repeated_in_order():
    stored: list[list[str]] = []
    refused = []

    def answer(r: Any) -> m.Message:
        if isinstance(r, m.Extend):
            if r.offset == 10 and not refused:
                refused.append(r.offset)
                return m.Error(re=r.id, code="busy", text="not now")
            if r.offset > len(stored):
                return m.Error(re=r.id, code="gap", text="begins too late")
            stored[r.offset :] = r.args
        return m.Accepted(re=r.id, job=7, size=len(stored))

    async def scene(client: Client, lives: Lives) -> None:
        for_ten = [[str(i)] for i in range(10)]
        await client.extend(7, 0, for_ten, last=False)
        await asyncio.gather(*(client.extend(7, n, for_ten, last=False) for n in (10, 20, 30)))
        assert len(stored) == 40

    play(answer, scene)


def test_a_gap_that_nobody_is_going_to_fill_is_told_at_once():
    async def scene(client: Client, lives: Lives) -> None:
        with pytest.raises(RequestError, match="too late"):
            await client.extend(7, 10, [["a"]], last=True)
        assert len(lives.seen) == 1

    play(lambda r: m.Error(re=r.id, code="gap", text="begins too late"), scene)


def test_results_are_waited_for_longer_than_one_answer_may_take():
    def answer(r: m.Results) -> m.Message:
        return m.ResultPage(
            re=r.id, job=1, results=[m.TaskResult(task=r.after)], last=r.after + 1, done=r.after == 1
        )

    async def scene(client: Client, lives: Lives) -> None:
        tasks = []
        async for page in client.results(1):
            tasks += [r.task for r in page]
            if lives.there and len(tasks) == 1:
                lives.there = False
                asyncio.get_running_loop().call_later(0.2, lives.begin)
        assert tasks == [0, 1], "each page once"

    play(answer, scene, answer_s_max=0.05)


def test_waiting_for_an_absent_manager_ends_too():
    async def scene(client: Client, lives: Lives) -> None:
        with pytest.raises(EnvironmentProblem, match="no answer"):
            await anext(client.results(1))

    play(silent, scene, answer_s_max=0.01, absence_s_max=0.05)


def test_output_of_a_worker_that_is_on_its_way_back_is_waited_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("kestrel.client.client.OUTPUT_RETRY_S", 0.01)
    refusals = [1, 2]

    def answer(r: m.Output) -> m.Message:
        if refusals:
            refusals.pop()
            return m.Error(re=r.id, code="output_unreachable", text="the worker is not there")
        return m.OutputPart(re=r.id, job=1, task=0, data="aGk=", size=2)

    async def scene(client: Client, lives: Lives) -> None:
        with pytest.raises(RequestError, match="not there"):
            await anext(client.output(1, 0, "stdout"))
        client.on_available(MANAGER, Show.ONLINE, "")  # another life
        assert [piece async for piece in client.output(1, 0, "stdout")] == [b"hi"]

    play(answer, scene)


def test_an_end_of_the_connection_for_good_is_what_requests_fail_with():
    async def scene(client: Client, lives: Lives) -> None:
        asked = asyncio.create_task(client.request(m.Help(), m.Text))
        await asyncio.sleep(0)
        client.close(EnvironmentProblem("the account is gone", code="gone"))
        for question in (asked, client.request(m.Help(), m.Text)):
            with pytest.raises(EnvironmentProblem, match="account is gone"):
                await question

    play(silent, scene)


def test_who_waits_for_an_absent_manager_is_told_once_and_again_when_it_goes_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("kestrel.client.client.UNANSWERED_S", 0.01)

    async def scene(client: Client, lives: Lives) -> None:
        lives.there = False
        for _ in range(2):
            client.on_unavailable(MANAGER, "restarts")
            for _ in range(2):
                with pytest.raises(EnvironmentProblem, match="no answer"):
                    await client.request(m.Help(), m.Text)
            client.on_available(MANAGER, Show.ONLINE, "")
        client.on_down("the server is gone")  # the link itself says that
        with pytest.raises(EnvironmentProblem, match="no answer"):
            await client.request(m.Help(), m.Text)

    with caplog.at_level("WARNING", logger="kestrel.client"):
        play(silent, scene, answer_s_max=0.05)
    told = [r.__dict__["text"] for r in caplog.records if r.getMessage() == "answer_awaited"]
    assert told == [f"the manager {MANAGER} is not there (restarts)"] * 2


def test_a_manager_that_is_there_may_think_as_long_as_it_likes_in_silence(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("kestrel.client.client.UNANSWERED_S", 0.01)

    async def scene(client: Client, lives: Lives) -> None:
        with pytest.raises(EnvironmentProblem, match="no answer"):
            await client.request(m.Help(), m.Text)

    with caplog.at_level("WARNING", logger="kestrel.client"):
        play(silent, scene, answer_s_max=0.05)
    assert [r.getMessage() for r in caplog.records] == []
