"""A whole worker service with real processes; only the XMPP stream is scripted."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kestrel.config import PoolAccess
from kestrel.errors import EnvironmentProblem, UsageError
from kestrel.protocol import codec
from kestrel.protocol import messages as m
from kestrel.worker.service import ServiceSettings, WorkerService
from kestrel.xmpp.link import XmppLink
from kestrel.xmpp.stanza import message_json
from kestrel.xmpp.stream import Stanza, StreamReader

MANAGER = "manager.kestrel.localhost"
ME = "w1@kestrel.localhost/box"
HEADER = (
    b"<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' version='1.0'>"
)
WAIT_S = 60.0


class ManagerStream:
    """A stream with a manager at its other end that welcomes, and acknowledges every report if `acks`."""

    def __init__(self, link: XmppLink) -> None:
        self.last_problem = ""
        self.link = link
        self.acks = True
        self.doubts_after_s: float | None = None
        self.received: list[m.ToManager] = []
        self.presence: list[bytes] = []
        self.news = asyncio.Event()
        self._reader = StreamReader()
        self._reader.feed(HEADER)

    async def run(self) -> None:
        self.link.on_connected(ME)
        await asyncio.Event().wait()

    async def wait_connected(self) -> None:
        return None

    def expect_sign_of_life(self, within_s: float | None) -> None:
        self.doubts_after_s = within_s

    async def close(self) -> None:
        return None

    def send(self, stanza: bytes) -> None:
        if stanza.startswith(b"<presence"):
            self.presence.append(stanza)
            return
        found = re.search(rb"<json[^>]*>(.*)</json>", stanza, re.DOTALL)
        assert found is not None
        message = codec.decode_to_manager(found[1])
        self.received.append(message)
        self.news.set()
        if isinstance(message, m.Profile):
            self.tell(m.Welcome(epoch=1))
        elif isinstance(message, m.Report) and self.acks:
            self.tell(m.Ack(n=message.n))

    def tell(self, message: m.Message) -> None:
        text = message_json(ME, codec.encode(message), from_=MANAGER)
        for event in self._reader.feed(text):
            assert isinstance(event, Stanza)
            asyncio.get_running_loop().call_soon(self.link.on_stanza, event)

    async def reports(self, count: int) -> list[m.AttemptReport]:
        async with asyncio.timeout(WAIT_S):
            while True:
                found = [a for r in self.received if isinstance(r, m.Report) for a in r.attempts]
                if len(found) >= count:
                    return found
                self.news.clear()
                await self.news.wait()


class World:
    def __init__(self, directory: Path) -> None:
        profile = m.Profile(cores=2)
        self.settings = ServiceSettings(MANAGER, profile, directory / "worker", directory)
        self.service = WorkerService(self.make_stream, self.settings)

    def make_stream(self, link: XmppLink) -> ManagerStream:
        self.stream = ManagerStream(link)
        return self.stream


def test_a_bag_of_real_tasks_runs_and_the_worker_leaves_in_order(tmp_path: Path) -> None:
    async def scenario() -> None:
        world = World(tmp_path)
        await world.service.start()
        await asyncio.sleep(0)
        spec = m.TaskSpec(command='echo "$KESTREL_JOB_ID {1}" | tr a-z A-Z; exit $KESTREL_TASK_ID')
        params = [[f"it's {i} & <more>"] for i in range(50)]
        world.stream.tell(m.Tasks(job=9, attempt=1, tasks=list(range(50)), params=params, spec=spec))
        reports = await world.stream.reports(50)
        assert sorted(r.task for r in reports) == list(range(50))
        for r in reports:
            assert r.out == f"9 IT'S {r.task} & <MORE>\n"
            assert (r.exit_code, r.state) == (r.task, "failed" if r.task else "completed")
        assert world.stream.doubts_after_s == m.Welcome(epoch=1).lease_s
        world.service.leave()
        async with asyncio.timeout(WAIT_S):
            await world.service.wait()
        await world.service.stop()
        assert b"unavailable" in world.stream.presence[-1]
        assert [p.name for p in (tmp_path / "worker" / "out" / "9").iterdir()] == []

    asyncio.run(scenario())


def test_what_was_not_acknowledged_is_reported_by_the_next_life_of_the_worker(tmp_path: Path) -> None:
    async def scenario() -> None:
        first = World(tmp_path)
        await first.service.start()
        first.stream.acks = False
        first.stream.tell(m.Tasks(job=9, attempt=5, tasks=[0], spec=m.TaskSpec(command=["echo", "kept"])))
        (before,) = await first.stream.reports(1)
        await first.service.stop()
        second = World(tmp_path)
        await second.service.start()
        (after,) = await second.stream.reports(1)
        assert after == before
        profile = next(r for r in second.stream.received if isinstance(r, m.Profile))
        assert profile.held == [m.HeldAttempt(9, 0, 5)]
        await second.service.stop()

    asyncio.run(scenario())


def test_asked_twice_it_leaves_at_once_and_kills_what_runs(tmp_path: Path) -> None:
    async def scenario() -> None:
        world = World(tmp_path)
        await world.service.start()
        world.stream.tell(
            m.Tasks(
                job=9, attempt=5, tasks=[0], spec=m.TaskSpec(command=["sh", "-c", "touch up; sleep 1000"])
            )
        )
        async with asyncio.timeout(WAIT_S):
            while not (tmp_path / "up").exists():  # noqa: ASYNC110 (a file)
                await asyncio.sleep(0.005)
            launcher = world.service.launcher.pid
            world.service.leave()
            world.service.leave()
            await world.service.wait()
        await world.service.stop()
        assert not Path(f"/proc/{launcher}").exists()

    asyncio.run(scenario())


def test_what_is_wrong_with_the_settings_is_said(tmp_path: Path) -> None:
    async def refused(settings: ServiceSettings) -> None:
        await WorkerService(World(tmp_path).make_stream, settings).start()

    good = World(tmp_path).settings
    missing = ServiceSettings(MANAGER, good.profile, good.directory, tmp_path / "missing")
    with pytest.raises(EnvironmentProblem, match=r"the working directory .*missing does not exist"):
        asyncio.run(refused(missing))
    large = ServiceSettings(MANAGER, m.Profile(provides=["x" * 1000] * 100), good.directory, tmp_path)
    with pytest.raises(UsageError, match="profile takes"):
        asyncio.run(refused(large))


def test_the_program_says_what_is_wrong_in_one_line_and_ends_with_1(tmp_path: Path) -> None:
    access = tmp_path / "access.json"
    PoolAccess(MANAGER, "w1@kestrel.localhost", "secret", "127.0.0.1", 1).save(access)
    words = [sys.executable, "-m", "kestrel.worker", "--access", str(access), "--dir", str(tmp_path / "d")]
    done = subprocess.run(
        [*words, "--workdir", str(tmp_path / "gone")],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("kestrel worker: the working directory")
    assert "Traceback" not in done.stderr
