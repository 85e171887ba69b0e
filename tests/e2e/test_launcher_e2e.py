"""The real launcher with real processes and real signals."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from kestrel.ports import ProcessEnded, StartProcess
from kestrel.worker import launcher_process
from kestrel.worker.launcher import LauncherSettings, ProcessLauncher

pytestmark = pytest.mark.skipif(not hasattr(os, "waitid"), reason="needs POSIX process groups")

WAIT_S = 60.0
FOREVER = "while :; do sleep 1000; done"


class Ends:
    """Collects what the launcher tells."""

    def __init__(self) -> None:
        self.ended: dict[int, ProcessEnded] = {}
        self.lost: list[int] = []
        self._news = asyncio.Event()

    def on_ended(self, ended: Sequence[ProcessEnded]) -> None:
        for end in ended:
            assert end.attempt not in self.ended
            self.ended[end.attempt] = end
        self._news.set()

    def on_launcher_lost(self, attempts: Sequence[int]) -> None:
        self.lost += attempts
        self._news.set()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(WAIT_S):
            while len(self.ended) + len(self.lost) < count:
                self._news.clear()
                await self._news.wait()


class Bench:
    """A launcher, its ends, and a directory."""

    def __init__(self, directory: Path, launcher: ProcessLauncher, ends: Ends) -> None:
        self.directory = directory
        self.launcher = launcher
        self.ends = ends

    def process(self, attempt: int, argv: Sequence[str], **fields: object) -> StartProcess:
        out = f"{self.directory}/out/7/{attempt}"
        values: dict[str, object] = {"workdir": str(self.directory), "env": {}} | fields
        return StartProcess(attempt=attempt, argv=argv, stdout=f"{out}.out", stderr=f"{out}.err", **values)  # type: ignore[arg-type]

    async def run(self, argv: Sequence[str], **fields: object) -> ProcessEnded:
        attempt = len(self.ends.ended) + 1
        self.launcher.start([self.process(attempt, argv, **fields)])
        await self.ends.until(attempt)
        return self.ends.ended[attempt]

    def left_files(self) -> list[str]:
        return sorted(p.name for p in (self.directory / "out").rglob("*.*"))

    async def pid_in(self, name: str) -> int:
        """The number that a task writes into a file, once it is whole (ends with a newline)."""
        path = self.directory / name
        async with asyncio.timeout(WAIT_S):
            while not (path.exists() and path.read_text().endswith("\n")):  # noqa: ASYNC110 (a file)
                await asyncio.sleep(0.005)
        return int(path.read_text())


@contextlib.asynccontextmanager
async def bench(directory: Path, slots: int = 2) -> AsyncIterator[Bench]:
    launcher = ProcessLauncher(LauncherSettings(slots=slots))
    ends = Ends()
    await launcher.open(ends)
    try:
        yield Bench(directory, launcher, ends)
    finally:
        await launcher.close()


def gone(pid: int) -> None:
    """Wait until the process is gone (or a zombie that nobody collects); fails if it stays."""
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return
        except (FileNotFoundError, ProcessLookupError):
            return
        assert time.monotonic() < deadline, f"process {pid} lives"
        time.sleep(0.005)  # polls: the process is nobody's child here


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")


@pytest.mark.parametrize(
    ("argv", "exit_code", "number"),
    [
        (["true"], 0, 0),
        (["false"], 1, 0),
        (["sh", "-c", "exit 77"], 77, 0),
        (["sh", "-c", "kill -9 $$"], None, 9),
    ],
)
def test_exit_code_and_signal_are_told(
    tmp_path: Path, argv: list[str], exit_code: int | None, number: int
) -> None:
    async def scenario() -> None:
        async with bench(tmp_path) as b:
            end = await b.run(argv)
            assert (end.exit_code, end.signal, end.reason, end.timed_out) == (exit_code, number, "", False)
            assert end.started > 1e9
            assert end.wall_s > 0
            assert end.memory_kib > 0
            assert b.left_files() == []

    asyncio.run(scenario())


def test_output_that_fits_is_told_whole_and_not_kept(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with bench(tmp_path) as b:
            end = await b.run(
                ["sh", "-c", "echo one; echo zwö >&2; cat; echo $COLOUR; pwd"], env={"COLOUR": "red"}
            )
            assert end.out == f"one\nred\n{tmp_path}\n"
            assert end.err == "zwö\n"
            assert (end.out_bytes, end.err_bytes) == (len(end.out), 5)
            assert b.left_files() == []

    asyncio.run(scenario())


def test_of_long_output_the_tail_is_told_and_all_is_kept(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with bench(tmp_path) as b:
            end = await b.run(["sh", "-c", "seq 100000"], tail_bytes=100)
            assert end.out.endswith("\n99999\n100000\n")
            assert len(end.out) == 100
            assert end.out_bytes == (tmp_path / "out/7/1.out").stat().st_size == 588895
            assert b.left_files() == ["1.out"]

    asyncio.run(scenario())


def test_a_tail_never_begins_inside_of_a_character_and_binary_is_replaced(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with bench(tmp_path) as b:
            end = await b.run(
                ["sh", "-c", "printf '€€€€'; printf '\\377\\0x\\357\\277\\277' >&2"], tail_bytes=7
            )
            assert end.out == "€€"
            assert end.err == "\ufffd\0x\ufffd"

    asyncio.run(scenario())


def test_a_command_that_does_not_exist_ends_with_127_and_says_so(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with bench(tmp_path) as b:
            end = await b.run(["no-such-program", "x"])
            assert (end.exit_code, end.reason) == (127, "command not found: no-such-program")
            end = await b.run(["./missing"])
            assert (end.exit_code, end.reason) == (127, "command not found: ./missing")
            (tmp_path / "plain").write_text("x")
            end = await b.run(["./plain"])
            assert (end.exit_code, end.reason) == (126, "not executable: ./plain")
            script = tmp_path / "odd"
            script.write_text("#!/no/such/interpreter\n")
            script.chmod(0o700)
            end = await b.run(["./odd"])
            assert end.exit_code == 127
            assert end.reason.startswith("the interpreter of ./odd does not exist")
            assert b.left_files() == []

    asyncio.run(scenario())


def test_a_script_without_first_line_is_run_by_the_shell(tmp_path: Path) -> None:
    async def scenario() -> None:
        (tmp_path / "bare").write_text("echo ran $1\n")
        (tmp_path / "bare").chmod(0o700)
        async with bench(tmp_path) as b:
            assert (await b.run(["./bare", "well"])).out == "ran well\n"

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"workdir": "/no/such/place"}, "/no/such/place"),
        ({"env": {"A": "x\0y"}}, "null"),
        ({"stdout": ""}, ""),
    ],
)
def test_what_cannot_be_started_says_why(tmp_path: Path, fields: dict[str, object], word: str) -> None:
    async def scenario() -> None:
        async with bench(tmp_path) as b:
            if "stdout" in fields:
                (tmp_path / "out").write_text("a file where a directory should be")
                end = await b.run(["true"])
                word_here = "cannot write"
            else:
                end = await b.run(["true"], **fields)
                word_here = word
            assert end.exit_code is None
            assert word_here in end.reason
            (tmp_path / "out").is_file() and (tmp_path / "out").unlink()
            assert (await b.run(["true"])).exit_code == 0, "the launcher goes on"

    asyncio.run(scenario())


def test_the_time_limit_kills_a_whole_group_with_a_child_that_ignores_term(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with bench(tmp_path) as b:
            stubborn = f"(trap '' TERM; echo $(exec sh -c 'echo $PPID') > pid; {FOREVER}) & wait"
            end = await b.run(["sh", "-c", stubborn], time_limit_s=0.3)
            assert end.timed_out
            assert (end.exit_code, end.signal) == (None, signal.SIGTERM)
            gone(await b.pid_in("pid"))

    asyncio.run(scenario())


def test_a_task_that_ignores_term_is_killed_after_the_grace(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with bench(tmp_path) as b:
            began = time.monotonic()
            end = await b.run(["sh", "-c", f"trap '' TERM; {FOREVER}"], time_limit_s=0.2)
            assert (end.timed_out, end.signal) == (True, signal.SIGKILL)
            assert time.monotonic() - began >= launcher_process.GRACE_S

    asyncio.run(scenario())


def test_stop_ends_what_runs_and_what_waits(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with bench(tmp_path, slots=1) as b:
            b.launcher.start(
                [b.process(1, ["sh", "-c", f"echo $$ > pid; {FOREVER}"]), b.process(2, ["true"])]
            )
            pid = await b.pid_in("pid")
            b.launcher.stop([1, 2, 99])
            await b.ends.until(2)
            assert (b.ends.ended[1].signal, b.ends.ended[1].timed_out) == (signal.SIGTERM, False)
            assert b.ends.ended[2].unstarted
            gone(pid)

    asyncio.run(scenario())


def test_what_finds_no_slot_soon_is_given_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with bench(tmp_path, slots=1) as b:
            b.launcher.start([b.process(1, ["sleep", "1000"]), b.process(2, ["true"])])
            await b.ends.until(1)
            assert b.ends.ended[2].unstarted
            assert 1 not in b.ends.ended

    asyncio.run(scenario())


def test_slots_are_never_exceeded_and_wide_tasks_are_not_overtaken(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with bench(tmp_path, slots=2) as b:
            script = "echo $1 >> log; sleep 0.02; echo -$1 >> log"
            starts = [
                b.process(i, ["sh", "-c", script, "x", str(i)], slots=2 if i == 3 else 1) for i in range(1, 6)
            ]
            b.launcher.start(starts)
            await b.ends.until(5)
            running: set[str] = set()
            for line in (tmp_path / "log").read_text().split():
                if line.startswith("-"):
                    running.remove(line[1:])
                else:
                    running.add(line)
                assert len(running) <= (1 if "3" in running else 2)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("argv", "fields"),
    [
        (["true"], {}),
        (["false"], {}),
        (["sleep", "1000"], {"time_limit_s": 0.1}),
        (["no-such-program"], {}),
    ],
)
def test_cleanup_runs_whatever_happened(tmp_path: Path, argv: list[str], fields: dict[str, object]) -> None:
    async def scenario() -> None:
        async with bench(tmp_path) as b:
            end = await b.run(argv, cleanup=["sh", "-c", "echo noise; touch cleaned; exit 3"], **fields)
            assert (tmp_path / "cleaned").exists()
            assert end.exit_code in (0, 1, 127, None)
            assert end.out == ""
            assert b.left_files() == []

    asyncio.run(scenario())


@needs_proc
def test_a_background_process_does_not_outlive_its_task(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with bench(tmp_path) as b:
            script = f"({FOREVER}) & echo $! > pid; exec >&- 2>&-; exit 5"
            end = await b.run(["sh", "-c", script])
            assert end.exit_code == 5
            gone(await b.pid_in("pid"))

    asyncio.run(scenario())


def test_a_thousand_quick_tasks_are_each_told_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with bench(tmp_path) as b:
            b.launcher.start([b.process(i, ["echo", str(i)]) for i in range(1000)])
            waiting = set(range(1000))
            while waiting:
                await b.ends.until(1000)
                done = {a for a, end in b.ends.ended.items() if not end.unstarted}
                waiting -= done
                for attempt in waiting:
                    del b.ends.ended[attempt]
                b.launcher.start([b.process(i, ["echo", str(i)]) for i in sorted(waiting)])
            assert all(end.out == f"{a}\n" for a, end in b.ends.ended.items())
            assert b.left_files() == []

    asyncio.run(scenario())


@needs_proc
def test_a_killed_launcher_leaves_no_orphan_and_is_replaced(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with bench(tmp_path) as b:
            b.launcher.start(
                [
                    b.process(1, ["sh", "-c", f"echo $$ > pid; {FOREVER}"]),
                    b.process(2, ["sh", "-c", f"setsid sh -c 'echo $$ > escaped; {FOREVER}' & wait"]),
                ]
            )
            pids = [await b.pid_in("pid"), await b.pid_in("escaped")]
            first = b.launcher.pid
            os.kill(first, signal.SIGKILL)
            await b.ends.until(2)
            assert sorted(b.ends.lost) == [1, 2]
            for pid in pids:
                gone(pid)
            b.ends.lost.clear()
            b.launcher.start([b.process(3, ["echo", "again"])])
            await b.ends.until(1)
            assert b.ends.ended[3].out == "again\n"
            assert b.launcher.pid != first

    asyncio.run(scenario())


@needs_proc
def test_a_killed_agent_leaves_no_orphan(tmp_path: Path) -> None:
    program = f"""
import asyncio, sys
from kestrel.ports import StartProcess
from kestrel.worker.launcher import LauncherSettings, ProcessLauncher

async def main():
    launcher = ProcessLauncher(LauncherSettings(slots=2))
    await launcher.open(None)
    inner = "trap : TERM; echo $$; " + {FOREVER!r}
    for i, script in enumerate((inner, f"setsid sh -c '{{inner}}' & wait")):
        out = f"{{sys.argv[1]}}/{{i}}.out"
        launcher.start([StartProcess(i, ["sh", "-c", script], {{}}, sys.argv[1], out, out + ".err")])
    print(launcher.pid, flush=True)
    await asyncio.sleep(1000)

asyncio.run(main())
"""
    agent = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert agent.stdout is not None
        assert select.select([agent.stdout], [], [], WAIT_S)[0]
        launcher = int(agent.stdout.readline())
        deadline = time.monotonic() + WAIT_S
        files = [tmp_path / "0.out", tmp_path / "1.out"]
        while not all(f.exists() and f.read_text().endswith("\n") for f in files):
            assert time.monotonic() < deadline
            time.sleep(0.005)  # polls for a file: there is no event to wait for
        pids = [int(f.read_text()) for f in files]
    finally:
        agent.kill()
        agent.wait()
        agent.stdout and agent.stdout.close()
    for pid in (*pids, launcher):
        gone(pid)
