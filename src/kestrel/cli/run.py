"""Runs one bag of tasks to its end: feeds parameters in, prints what comes out, decides the exit code.

Memory stays bounded however many tasks there are: at most a window of them is with the manager and
not yet printed, and nothing is kept of a task once it is. Whatever blocks (printing, pipes) happens on
threads, because the pool may live on this very event loop. Called by `run_command`.
"""

from __future__ import annotations

import asyncio
import secrets
import signal
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, TypeVar

from kestrel.cli import run_outcome as outcome
from kestrel.cli.arguments import Bag, numbered
from kestrel.cli.joblog import JobLog, LoggedTasks
from kestrel.cli.output import Output, is_terminal
from kestrel.cli.progress import DRAW_S, ProgressBar, Tally, summary
from kestrel.cli.run_feed import Feed, Selection
from kestrel.cli.run_print import TaskPrinter
from kestrel.cli.run_texts import FETCHES_AT_ONCE, READY_BYTES_MAX, TaskTexts
from kestrel.client import Client
from kestrel.client.client import RequestError
from kestrel.errors import EnvironmentProblem, KestrelError
from kestrel.protocol import messages as m

WINDOW_TASKS = 50_000
"""Most tasks that are submitted and not yet printed."""
STOP_S_MAX = 10.0
"""How long running tasks have to end after Ctrl-C."""
SELECTORS_CHARS_MAX = 1000
"""Length of a list of tasks in one `cancel`."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What the user wants of the run, beside the bag itself."""

    keep_order: bool = False
    tag: bool = False
    tries: int = 1
    """How often a task is tried in all."""
    timeout_s: float = 0.0
    halt: outcome.Halt = field(default_factory=outcome.Halt)
    joblog: JobLog | None = None
    logged: LoggedTasks | None = None
    """What an earlier run did; with --resume or --resume-failed."""
    resume_failed: bool = False
    bar: bool | None = None
    requires: tuple[str, ...] = ()
    workers: tuple[str, ...] = ()
    name: str = ""
    workdir: str = ""
    slots: int | None = None
    """Of a pool of our own; None if the pool is there for others, too."""
    verbose: bool = False


async def run_bag(client: Client, options: RunOptions, bag: Bag, output: Output) -> int:
    """Run the tasks, print their output, and return the exit code: 0, 1-100 failed tasks, 101 more.

    Cancels the job when it is interrupted (then 128 + the signal's number) or cannot go on. Raises
    `KestrelError`; `BrokenPipeError` if nobody reads the output any more.
    """
    run = _Run(client, options, bag, output)
    try:
        return await run.run()
    finally:
        run.close()


class _Level(IntEnum):
    """How urgently the run is to end."""

    GO = 0
    SOON = 1
    """Let run what runs."""
    NOW = 2
    """Stop what runs, and wait until it has."""
    AT_ONCE = 3
    """Do not wait."""


class _Run:
    def __init__(self, client: Client, options: RunOptions, bag: Bag, output: Output) -> None:
        self.client = client
        self.options = options
        self.bag = bag
        self.output = output
        self.selection = Selection(bag, options.logged, also_failed=not options.resume_failed)
        self.feed = Feed(self.selection.parameters(), blocking=bag.blocking)
        self.printer = TaskPrinter(keep_order=options.keep_order)
        self.tally = Tally(total=None if self.selection.numbered else bag.count)
        self.bar = ProgressBar(self.tally, output.err, wanted=options.bar)
        self.job = 0
        self.submitted = 0
        self.succeeded = 0
        self.cancelled = 0
        self._named: list[str] = []
        self._mysterious = False
        """A task failed for a reason that its own output cannot tell."""
        self._level = _Level.GO
        self._exit_code: int | None = None
        self._problem: BaseException | None = None
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._writing = False
        """The printer is in use on a thread."""
        self._interrupted = False
        log_host = "" if options.joblog is None else ":" if options.slots is not None else "worker"
        self.texts = TaskTexts(
            client, output, self.selection, self.printer, self._write, tag=options.tag, log_host=log_host
        )

    def close(self) -> None:
        """Release what is not the event loop's."""
        self.bar.hide()
        self.feed.close()
        self.printer.close()

    # --- the course of things -------------------------------------------------------------------------

    async def run(self) -> int:
        with self._signals():
            taken = await self._unless_stopped(self.feed.take())
            if taken is not None and taken[0]:
                first, ended = taken
                await self._submit(first, ended)
                await self._attend(ended)
        return self._finish()

    async def _submit(self, first: list[list[str]], ended: bool) -> None:
        options, command = self.options, self.bag.command
        job = m.Job(
            command=numbered(command, self.bag.width) if self.selection.numbered else command,
            id=secrets.token_hex(8),
            name=options.name,
            args=first,
            open=not ended,
            requires=list(options.requires),
            workers=list(options.workers),
            workdir=options.workdir,
            retries=options.tries - 1,
            time_limit_s=options.timeout_s,
        )
        accepted = await self.client.request(job, m.Accepted)
        if accepted.job is None:
            raise EnvironmentProblem("the manager accepted the job without naming it")
        self.job = accepted.job
        self.submitted = len(first)
        if ended:
            self.tally.total = self.submitted
        # A pool of our own has its worker in a moment; with others' pools nobody knows.
        if accepted.warning and options.slots is None:
            self.output.warn(accepted.warning)
        if options.verbose:
            self.output.warn(f"job {self.job}: {command}")

    async def _attend(self, ended: bool) -> None:
        """Until the job has ended, or somebody does not want to wait for that."""
        consumer = asyncio.create_task(self._consume(), name="results")
        feeder = None if ended else asyncio.create_task(self._feed(), name="arguments")
        beside = self._beside()
        try:
            await self._follow(consumer, feeder)
            if consumer.done():
                consumer.result()
            if self._level is _Level.NOW:
                consumer.cancel()
                await asyncio.gather(consumer, return_exceptions=True)
                if not self._writing:  # else whoever reads our output has stopped reading
                    self.printer.release_all()
                    await self._write()
        except (KestrelError, OSError):
            await self._cancel_job()
            raise
        finally:
            for task in (consumer, feeder, *beside):
                if task is not None:
                    task.cancel()
            await asyncio.gather(consumer, *(t for t in (feeder, *beside) if t), return_exceptions=True)
        if self._problem is not None:
            raise self._problem

    async def _follow(self, consumer: asyncio.Task[None], feeder: asyncio.Task[None] | None) -> None:
        handled = _Level.GO
        deadline: float | None = None
        loop = asyncio.get_running_loop()
        while not consumer.done():
            changed = asyncio.create_task(self._changed.wait())
            watched = {consumer, changed} | ({feeder} if feeder is not None and not feeder.done() else set())
            timeout = None if deadline is None else max(0.0, deadline - loop.time())
            await asyncio.wait(watched, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            changed.cancel()
            self._changed.clear()
            if feeder is not None and feeder.done() and not feeder.cancelled() and feeder.exception():
                self._problem = self._problem or feeder.exception()
                self._stop(_Level.NOW)
            if self._level > handled:
                handled = self._level
                if feeder is not None:
                    feeder.cancel()
                    await asyncio.gather(feeder, return_exceptions=True)
                if handled is _Level.SOON:
                    await self._cancel_queued()
                elif handled is _Level.NOW:
                    await self._cancel_job()
                    deadline = loop.time() + STOP_S_MAX
            if handled is _Level.AT_ONCE or (deadline is not None and loop.time() >= deadline):
                return

    def _stop(self, level: _Level, exit_code: int | None = None) -> None:
        """End the run, with this exit code if it is the first that is given."""
        if exit_code is not None and (self._exit_code is None or level > self._level):
            self._exit_code = exit_code
        if level > self._level:
            self._level = level
            self._changed.set()

    async def _unless_stopped(self, awaitable: Awaitable[_T]) -> _T | None:
        """What it gives, or None if the run is stopped before."""
        task = asyncio.ensure_future(awaitable)
        changed = asyncio.create_task(self._changed.wait())
        try:
            await asyncio.wait({task, changed}, return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            for each in (task, changed):
                each.cancel()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """The first signal cancels the job, the second one does not wait for it."""
        loop = asyncio.get_running_loop()
        names = ("SIGINT", "SIGTERM", "SIGHUP")
        numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
        before = {number: signal.getsignal(number) for number in numbers}
        if before.get(getattr(signal, "SIGHUP", 0)) is signal.SIG_IGN:  # nohup
            del before[signal.SIGHUP]

        def received(number: int) -> None:
            level = _Level.NOW if self._level < _Level.NOW else _Level.AT_ONCE
            self._interrupted = True
            self._stop(level, 128 + number)

        for number in before:
            try:
                loop.add_signal_handler(number, received, number)
            except NotImplementedError:  # Windows
                signal.signal(number, lambda n, _frame: loop.call_soon_threadsafe(received, n))
        try:
            yield
        finally:
            for number, handler in before.items():
                try:
                    loop.remove_signal_handler(number)
                except NotImplementedError:
                    pass
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    # --- cancelling -----------------------------------------------------------------------------------

    async def _cancel_job(self) -> None:
        """Best effort and bounded: whoever asked for it is on the way out."""
        if not self.job:
            return
        try:
            async with asyncio.timeout(STOP_S_MAX):
                await self.client.request(m.Cancel(job=self.job), m.Accepted)
        except (TimeoutError, KestrelError) as problem:
            words = problem.text if isinstance(problem, KestrelError) else "no answer from the manager"
            self.output.warn(f"job {self.job} could not be cancelled: {words}")

    async def _cancel_queued(self) -> None:
        """No more tasks, and none of those that no worker has; what runs goes on."""
        size = (await self.client.info(self.job)).size
        await self.client.extend(self.job, size, [], last=True)
        after = -1
        while True:
            ask = m.ListTasks(job=self.job, states=["QUEUED"], after=after, limit=10_000)
            found = await self.client.request(ask, m.TaskList)
            for selector in selectors([task.task for task in found.tasks]):
                await self.client.request(m.Cancel(job=self.job, tasks=selector), m.Accepted)
            if not found.more:
                return
            after = found.tasks[-1].task

    # --- feeding --------------------------------------------------------------------------------------

    async def _feed(self) -> None:
        ended = False
        while not ended:
            while self.submitted - self.printer.printed >= WINDOW_TASKS:
                self._room.clear()
                await self._room.wait()
            piece, ended = await self.feed.take()
            try:
                await self.client.extend(self.job, self.submitted, piece, last=ended)
            except RequestError as problem:
                if problem.code == "closed":  # cancelled: the results say so
                    return
                raise
            self.submitted += len(piece)
            self.tally.skipped = self.selection.skipped
        self.tally.total = self.submitted

    # --- results --------------------------------------------------------------------------------------

    async def _consume(self) -> None:
        texts = self.texts
        async for page in self.client.results(self.job):
            for start in range(0, len(page), FETCHES_AT_ONCE):
                some = page[start : start + FETCHES_AT_ONCE]
                for result, whole in zip(some, await texts.whole(self.job, some), strict=True):
                    if result.state == "CANCELLED":
                        self.cancelled += 1
                        self.printer.end(result.task)
                    else:
                        await texts.print(self.job, result, whole)
                        self._count(result)
                if self.printer.ready_bytes > READY_BYTES_MAX:
                    await self._write()
            await self._write()
            self._room.set()

    def _count(self, result: m.TaskResult) -> None:
        self.tally.done += 1
        if result.state in outcome.FAILURES:
            self.tally.failed += 1
            self._mysterious |= not outcome.is_explained_by_itself(result)
            if len(self._named) < outcome.FAILURES_NAMED_MAX:
                seq, words = self.selection.seq(result.task), self.selection.own_words(result.params)
                self._named.append(outcome.failure_text(seq, words, result))
        else:
            self.succeeded += 1
        halt = self.options.halt
        if self._level is _Level.GO and halt.is_due(failed=self.tally.failed, succeeded=self.succeeded):
            level = _Level.NOW if halt.when == "now" else _Level.SOON
            self._stop(level, outcome.task_exit_code(result))

    async def _write(self) -> None:
        """Print what may be printed, then log it."""
        printer = self.printer
        if printer.has_ready:
            if printer.ready_for_terminal or is_terminal(self.output.stream):
                self.bar.hide()
            self._writing = True
            await asyncio.to_thread(self._write_on_thread)
        if printer.logged and self.options.joblog is not None:
            self.options.joblog.add(printer.logged)
            printer.logged.clear()

    def _write_on_thread(self) -> None:
        try:
            self.printer.write_all(self.output)
        finally:
            self._writing = False

    # --- beside ---------------------------------------------------------------------------------------

    def _beside(self) -> list[asyncio.Task[Any]]:
        """What goes on while the run lasts, only for people to see."""
        if not self.bar.enabled:
            return []
        return [asyncio.create_task(self._draw()), asyncio.create_task(self._watch())]

    async def _draw(self) -> None:
        while True:
            await asyncio.sleep(DRAW_S)
            if not self._writing:
                self.bar.draw()

    async def _watch(self) -> None:
        def changed(info: m.JobInfo) -> None:
            running = info.counts.running
            self.tally.running = min(running, self.options.slots) if self.options.slots else running
            self.tally.reruns = info.reruns

        await self.client.wait(self.job, changed)

    def _finish(self) -> int:
        """The last words, and the exit code."""
        self.bar.hide()
        tally, options = self.tally, self.options
        tally.skipped = self.selection.skipped
        if tally.failed and (options.verbose or self._mysterious) and self.output.mode != "json":
            self.output.warn(outcome.failures_line(tally.failed, tally.done, self._named))
        if self._interrupted:
            left = self.submitted - tally.done
            self.output.warn(f"interrupted: {tally.done} tasks done, {left} cancelled")
        elif self.cancelled and self._level is _Level.GO:
            raise EnvironmentProblem(
                f"job {self.job} was cancelled by someone else: {self.cancelled} of its tasks were not run",
                code="cancelled",
            )
        if options.verbose:
            self.output.warn(summary(tally, self.bar.elapsed_s()))
        return outcome.exit_code_of(tally.failed) if self._exit_code is None else self._exit_code


def selectors(tasks: Sequence[int]) -> Iterator[str]:
    """Ascending tasks as lists of ranges, each short enough for one message."""
    parts: list[str] = []
    room = SELECTORS_CHARS_MAX
    start = 0
    for i in range(1, len(tasks) + 1):
        if i < len(tasks) and tasks[i] == tasks[i - 1] + 1:
            continue
        part = str(tasks[start]) if i - 1 == start else f"{tasks[start]}-{tasks[i - 1]}"
        start = i
        room -= len(part) + 1
        if room < 0:
            yield ",".join(parts)
            parts, room = [], SELECTORS_CHARS_MAX - len(part) - 1
        parts.append(part)
    if parts:
        yield ",".join(parts)
