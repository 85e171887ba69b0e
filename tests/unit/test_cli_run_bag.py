"""A bag of tasks from its arguments to its exit code: real manager, real commands, no network."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import io
import json
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kestrel.cli import run as run_module
from kestrel.cli.arguments import parse
from kestrel.cli.joblog import JobLog
from kestrel.cli.output import Output
from kestrel.cli.run import RunOptions, run_bag
from kestrel.cli.run_outcome import Halt
from kestrel.client import Client
from kestrel.clock import AsyncioClock
from kestrel.errors import EnvironmentProblem, UsageError
from kestrel.manager.jobs import terms_of
from kestrel.manager.manager import Manager
from kestrel.ports import Show
from kestrel.protocol import codec
from kestrel.protocol import messages as m
from kestrel.protocol.placeholders import Template
from kestrel.store.memory import MemoryStore

MANAGER, USER, WORKER = "manager@here/x", "ann@here/cli", "worker@here/1"


class Switch:
    """Carries messages between the three, in order, on the event loop."""

    def __init__(self) -> None:
        self.owners: dict[str, Any] = {}

    def port(self, address: str, owner: Any) -> Port:
        self.owners[address] = owner
        return Port(self, address)


class Port:
    """One end of the switch: a `Transport`."""

    def __init__(self, switch: Switch, address: str) -> None:
        self.switch = switch
        self.address = address

    def _tell(self, to: str, method: str, *args: Any) -> None:
        owner = self.switch.owners.get(to)
        if owner is not None:
            asyncio.get_running_loop().call_soon(getattr(owner, method), self.address, *args)

    def send(self, to: str, payload: bytes, *, chat: bool = False) -> None:
        self._tell(to, "on_message", payload, chat)

    def say(self, to: str, text: str) -> None:
        raise AssertionError("nobody here talks")

    def announce(self, to: str, show: Show, status: str) -> None:
        self._tell(to, "on_available", show, status)

    def withdraw(self, to: str) -> None:
        self._tell(to, "on_unavailable", "")

    def ping(self, to: str) -> None:
        self.switch.owners[self.address].on_heard(to)


class Worker:
    """Runs real commands, `slots` at once, and keeps what they print; the tail in a report is 20 bytes."""

    def __init__(self, switch: Switch, slots: int, directory: str) -> None:
        self.port = switch.port(WORKER, self)
        self.slots = slots
        self.directory = Path(directory)
        self.specs: dict[int, m.TaskSpec] = {}
        self.waiting: dict[int, tuple[int, int, list[str]]] = {}
        self.running: dict[int, asyncio.Task[None]] = {}
        self.stopped: set[int] = set()
        self.reports = 0
        self.at_once = 0

    def join(self) -> None:
        self.port.announce(MANAGER, Show.CHAT, "")
        self.port.send(MANAGER, codec.encode(m.Profile(slots=self.slots)))

    def on_available(self, *_: Any) -> None: ...
    def on_unavailable(self, *_: Any) -> None: ...
    def on_heard(self, *_: Any) -> None: ...

    def on_message(self, sender: str, payload: bytes, chat: bool) -> None:
        match codec.decode_to_worker(payload):
            case m.Tasks() as tasks:
                if tasks.spec is not None:
                    self.specs[tasks.job] = tasks.spec
                template = Template(self.specs[tasks.job].command)
                for i, task in enumerate(tasks.tasks):
                    argv = template.fill(tasks.params[i] if tasks.params else None, task)
                    self.waiting[tasks.attempt + i] = (tasks.job, task, argv)
            case m.Stop(attempts=attempts):
                self.stopped.update(attempts)
                for attempt in attempts:
                    if attempt in self.waiting:
                        job, task, _ = self.waiting.pop(attempt)
                        self._report(m.AttemptReport(job=job, task=task, attempt=attempt, state="cancelled"))
                    elif attempt in self.running:
                        self.running[attempt].cancel()
            case m.Revoke(job=job, count=count):
                back = [a for a, (j, _, _) in self.waiting.items() if j == job][-count:]
                for attempt in back:
                    del self.waiting[attempt]
                self.port.send(MANAGER, codec.encode(m.Revoked(job=job, attempts=back)))
            case m.ReadOutput() as ask:
                data = (self.directory / f"{ask.attempt}.{ask.stream}").read_bytes()
                part = data[ask.offset : ask.offset + ask.limit]
                answer = m.OutputPart(
                    re=ask.id, job=ask.job, task=ask.task, attempt=ask.attempt, stream=ask.stream,
                    offset=ask.offset, data=base64.b64encode(part).decode(), size=len(data), final=True,
                )  # fmt: skip
                self.port.send(MANAGER, codec.encode(answer))
        self._start()

    def _start(self) -> None:
        while self.waiting and len(self.running) < self.slots:
            attempt = next(iter(self.waiting))
            self.running[attempt] = asyncio.create_task(self._run(attempt, *self.waiting.pop(attempt)))
        self.at_once = max(self.at_once, len(self.running))

    async def _run(self, attempt: int, job: int, task: int, argv: list[str]) -> None:
        report = functools.partial(m.AttemptReport, job=job, task=task, attempt=attempt)
        try:
            out, err = (self.directory / f"{attempt}.{name}" for name in ("stdout", "stderr"))
            with open(out, "wb") as out_file, open(err, "wb") as err_file:
                process = await asyncio.create_subprocess_exec(*argv, stdout=out_file, stderr=err_file)
                try:
                    code = await process.wait()
                except asyncio.CancelledError:
                    with contextlib.suppress(ProcessLookupError):
                        process.kill()
                    await asyncio.shield(asyncio.ensure_future(process.wait()))
                    raise
                finally:
                    process._transport.close()  # a cancelled task may end before the loop tells of the end
            texts = [file.read_bytes() for file in (out, err)]
            tails = [data[-20:].decode("utf-8", "replace") for data in texts]
            self._report(
                report(
                    state="failed" if code else "completed",
                    exit_code=code if code >= 0 else None,
                    signal=max(0, -code),
                    started=1.0,
                    out=tails[0],
                    err=tails[1],
                    out_bytes=len(texts[0]),
                    err_bytes=len(texts[1]),
                )
            )
        except asyncio.CancelledError:
            self._report(report(state="cancelled", exit_code=None, signal=9))
        except FileNotFoundError:
            self._report(report(state="failed", exit_code=127, reason=f"command not found: {argv[0]}"))
        finally:
            del self.running[attempt]
            self._start()

    def _report(self, report: m.AttemptReport) -> None:
        self.reports += 1
        self.port.send(MANAGER, codec.encode(m.Report(n=self.reports, attempts=[report])))


class Ran:
    """What a run left behind."""

    def __init__(self, code: int, out: bytes, err: bytes, worker: Worker) -> None:
        self.code = code
        self.out = out
        self.err = err.decode()
        self.worker = worker


class Pipes:
    """Standard output and error of a run, as bytes."""

    def __init__(self) -> None:
        self.out = io.TextIOWrapper(io.BytesIO())
        self.err = io.TextIOWrapper(io.BytesIO())

    def bytes(self) -> tuple[bytes, bytes]:
        return self.out.buffer.getvalue(), self.err.buffer.getvalue()  # type: ignore[attr-defined]


def ran(
    *words: str,
    slots: int = 2,
    stdin: Any = None,
    mode: Any = "table",
    during: Callable[[Worker, Pipes], Any] | None = None,
    **options: Any,
) -> Ran:
    """Run the bag that the words describe. `during` is awaited beside it."""

    async def go() -> Ran:
        switch = Switch()
        clock = AsyncioClock(asyncio.get_running_loop())
        store = MemoryStore(clock)
        manager = Manager(clock, None, store)  # type: ignore[arg-type]
        manager.transport = switch.port(MANAGER, manager)
        manager.start(store.open(terms_of))
        manager.on_up(MANAGER)
        client = Client(MANAGER, answer_s_max=30)
        client.attach(switch.port(USER, client))
        client.on_up(USER)
        pipes = Pipes()
        with tempfile.TemporaryDirectory() as directory:
            worker = Worker(switch, slots, directory)
            worker.join()
            beside = asyncio.create_task(during(worker, pipes)) if during else None
            output = Output(mode, pipes.out, pipes.err)
            try:
                bag = parse(words, stdin)
                code = await run_bag(client, RunOptions(slots=slots, **options), bag, output)
                if beside is not None:
                    await beside
            finally:
                for task in list(worker.running.values()):
                    task.cancel()
                await asyncio.gather(*worker.running.values(), return_exceptions=True)
                manager.close()
                store.close()
        return Ran(code, *pipes.bytes(), worker)

    return asyncio.run(go())


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that nobody announces; the test's own time limit ends it."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.01)


@contextlib.contextmanager
def a_log(path: Path, *, resume: bool = False) -> Iterator[dict[str, Any]]:
    log, logged = JobLog.resume(path) if resume else (JobLog.create(path), None)
    try:
        yield {"joblog": log, "logged": logged}
    finally:
        log.close()


def seqs_of(path: Path) -> list[int]:
    return sorted(int(line.split("\t")[0]) for line in path.read_text().splitlines()[1:])


def test_every_task_prints_once_and_the_code_is_0() -> None:
    run = ran("echo {}", ":::", "a", "b", "c")
    assert sorted(run.out.split()) == [b"a", b"b", b"c"]
    assert (run.code, run.err) == (0, "")


def test_the_code_is_the_number_of_failed_tasks() -> None:
    run = ran("false", ":::", "1", "2")
    assert (run.code, run.out, run.err) == (2, b"", "")


def test_more_than_100_failures_are_101() -> None:
    assert ran("false", ":::", *map(str, range(102)), slots=8).code == 101


def test_no_arguments_are_no_tasks() -> None:
    assert ran("echo", stdin=io.BytesIO(b"")).code == 0


def test_a_reason_that_no_output_tells_is_told() -> None:
    run = ran("no-such-command-here", ":::", "x")
    assert run.code == 1
    assert run.err == "kestrel: 1 of 1 task failed: 1 [x] (command not found: no-such-command-here)\n"


def test_verbose_runs_always_say_how_it_went() -> None:
    run = ran("exit {}", ":::", "3", "0", verbose=True)
    assert "1 of 2 tasks failed: 1 [3] (exit code 3)" in run.err
    assert "2 of 2 tasks done in" in run.err


def test_keep_order_prints_in_the_order_of_the_arguments() -> None:
    run = ran("[ {} = 0 ] && sleep 0.2; echo {}", ":::", *map(str, range(20)), slots=4, keep_order=True)
    assert run.out.split() == [str(i).encode() for i in range(20)]


def test_standard_error_goes_to_standard_error_and_tags_to_every_line() -> None:
    run = ran("echo {}; echo b; echo bad >&2", ":::", "x", "y", tag=True, keep_order=True)
    assert run.out == b"x\tx\nx\tb\ny\ty\ny\tb\n"
    assert run.err == "x\tbad\ny\tbad\n"


@pytest.mark.parametrize("size", [21, 65_536, 65_537, 300_000])
def test_output_longer_than_the_tail_arrives_whole_as_bytes(size: int) -> None:
    run = ran(r"printf '\377\000'; head -c {} /dev/zero", ":::", str(size - 2), keep_order=True)
    assert run.out == b"\xff\0" + bytes(size - 2)


def test_short_output_that_is_not_utf8_arrives_as_it_is() -> None:
    assert ran(r"printf '\377'", ":::", "x").out == b"\xff"


def test_arguments_that_come_slowly_are_run_as_they_come() -> None:
    reading, writing = os.pipe()

    async def feed(worker: Worker, pipes: Pipes) -> None:
        os.write(writing, b"first\n")
        await until(lambda: b"first\n" in pipes.bytes()[0])
        os.write(writing, b"second\n")
        os.close(writing)

    with os.fdopen(reading, "rb", buffering=0) as stdin:
        run = ran("echo", stdin=stdin, during=feed)
    assert run.out == b"first\nsecond\n"


def test_more_tasks_than_the_window_all_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "WINDOW_TASKS", 10)
    monkeypatch.setattr("kestrel.cli.run_feed.PIECE_TASKS_MAX", 4)
    run = ran("echo", ":::", *map(str, range(60)), slots=4, keep_order=True)
    assert run.out.split() == [str(i).encode() for i in range(60)]


def test_a_bad_line_late_in_the_input_stops_the_run_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kestrel.cli.run_feed.PIECE_TASKS_MAX", 2)
    with pytest.raises(UsageError, match="line 5 of standard input is not UTF-8"):
        ran("sleep 30;", stdin=io.BytesIO(b"1\n2\n3\n4\n\xff\n"))


def test_json_gives_a_line_per_task() -> None:
    run = ran("echo {}; exit {}", ":::", "0", "3", mode="json", keep_order=True)
    records = [json.loads(line) for line in run.out.splitlines()]
    assert [(r["seq"], r["args"], r["exit_code"], r["state"], r["stdout"]) for r in records] == [
        (1, ["0"], 0, "COMPLETED", "0\n"),
        (2, ["3"], 3, "FAILED", "3\n"),
    ]
    assert records[1]["command"] == "echo 3; exit 3"
    assert run.code == 1


def test_failed_tasks_are_tried_again_as_often_as_asked(tmp_path: Path) -> None:
    run = ran(f"echo x >> {tmp_path}/{{}}; false", ":::", "a", tries=3)
    assert (tmp_path / "a").read_text() == "x\n" * 3
    assert run.code == 1


def test_a_log_is_resumed_with_the_numbers_of_the_whole_bag(tmp_path: Path) -> None:
    path = tmp_path / "log"
    words = ["[ {} != c ] || [ -e " + str(tmp_path / "go") + " ] && echo {#}{}", ":::", "a", "b", "c", "d"]
    with a_log(path) as log:
        assert ran(*words, keep_order=True, **log).code == 1
    kept = [line for line in path.read_text().splitlines(keepends=True) if not line.startswith("2\t")]
    path.write_text("".join(kept))
    (tmp_path / "go").touch()
    with a_log(path, resume=True) as log:
        run = ran(*words, keep_order=True, **log)
    assert (run.code, run.out) == (0, b"2b\n")
    with a_log(path, resume=True) as log:
        run = ran(*words, keep_order=True, resume_failed=True, **log)
    assert (run.code, run.out) == (0, b"3c\n")
    assert seqs_of(path) == [1, 2, 3, 3, 4]
    assert path.read_text().endswith("echo 3c\n")


def test_a_log_of_another_command_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with a_log(tmp_path / "log") as log:
        ran("echo", ":::", "a", **log)
    with a_log(tmp_path / "log", resume=True) as log, pytest.raises(UsageError, match="another command"):
        ran(f"touch {tmp_path}/ran", ":::", "a", **log)
    assert not (tmp_path / "ran").exists()


def test_halt_now_stops_what_runs_and_gives_the_tasks_code() -> None:
    run = ran(
        "[ {} = 3 ] && exit 7; sleep 60", ":::", *map(str, range(50)), slots=4, halt=Halt.parse("now,fail=1")
    )
    assert run.code == 7


def test_halt_soon_lets_running_tasks_end_and_starts_no_queued_ones(tmp_path: Path) -> None:
    command = "if [ {} = 0 ]; then exit 5; fi; sleep 0.3; touch " + str(tmp_path) + "/{}"
    halt = Halt.parse("soon,fail=1")
    run = ran(command, ":::", *map(str, range(5000)), slots=2, halt=halt)
    assert run.code == 5
    assert (tmp_path / "1").exists()
    assert len(list(tmp_path.iterdir())) < 4900


async def _interrupt_when_running(worker: Worker, count: int, number: signal.Signals) -> None:
    await until(lambda: len(worker.running) >= count)
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_cancels_the_job_prints_what_is_done_and_logs_it(
    tmp_path: Path, number: signal.Signals
) -> None:
    async def interrupt(worker: Worker, pipes: Pipes) -> None:
        await until(lambda: b"quick" in pipes.bytes()[0])
        await _interrupt_when_running(worker, 2, number)

    with a_log(tmp_path / "log") as log:
        run = ran(
            "[ {} = 1 ] && echo quick || sleep 60", ":::", *map(str, range(1, 100)), during=interrupt, **log
        )
    assert run.code == 128 + number
    assert run.out == b"quick\n"
    assert "interrupted: 1 tasks done, 98 cancelled" in run.err
    assert seqs_of(tmp_path / "log") == [1]
    assert not run.worker.running


def test_an_interrupt_with_keep_order_prints_what_had_to_wait() -> None:
    async def interrupt(worker: Worker, pipes: Pipes) -> None:
        await until(lambda: worker.reports >= 9)
        os.kill(os.getpid(), signal.SIGINT)

    run = ran(
        "[ {} = 0 ] && sleep 60; echo {}", ":::", *map(str, range(10)), keep_order=True, during=interrupt
    )
    assert run.code == 130
    assert run.out.split() == [str(i).encode() for i in range(1, 10)]


def test_the_second_interrupt_does_not_wait_for_tasks_that_will_not_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run_module, "STOP_S_MAX", 1e9)
    monkeypatch.setattr(Worker, "_report", lambda self, report: None)

    async def interrupt(worker: Worker, pipes: Pipes) -> None:
        await _interrupt_when_running(worker, 2, signal.SIGINT)
        await until(lambda: bool(worker.stopped))
        os.kill(os.getpid(), signal.SIGINT)

    assert ran("sleep 60;", ":::", "1", "2", during=interrupt).code == 130


def test_an_interrupt_while_no_argument_has_come_ends_the_run() -> None:
    reading, writing = os.pipe()

    async def interrupt(worker: Worker, pipes: Pipes) -> None:
        await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGINT)

    with os.fdopen(reading, "rb", buffering=0) as stdin, os.fdopen(writing, "wb"):
        assert ran("echo", stdin=stdin, during=interrupt).code == 130


def test_a_reader_that_goes_away_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(self: Output, data: bytes, *, err: bool = False) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(Output, "write", gone)
    with pytest.raises(BrokenPipeError):
        ran("echo {}; [ {} = 1 ] || sleep 60", ":::", *map(str, range(1, 9)))


def test_a_full_disk_below_standard_output_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Output, data: bytes, *, err: bool = False) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Output, "write", full)
    with pytest.raises(EnvironmentProblem, match="No space left"):
        ran("echo", ":::", "a")
