"""The commands that look at jobs and steer them: status, tasks, wait, results, cat, cancel, explain.

Each opens a connection, asks, prints through `output`, and ends.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import TypeVar

import click

from kestrel.cli.connect import connected_client
from kestrel.cli.options import json_option, pool_option
from kestrel.cli.output import Output, duration_text, iso_time
from kestrel.cli.pool import show_pool
from kestrel.cli.progress import ProgressBar, Tally
from kestrel.cli.select import select
from kestrel.client import Client
from kestrel.errors import UsageError
from kestrel.protocol import messages as m

_T = TypeVar("_T")
JOB_COLUMNS = ("JOB", "NAME", "STATE", "TASKS", "DONE", "RUN", "WAIT", "FAIL", "SUBMITTED", "USER")
TASK_COLUMNS = ("TASK", "STATE", "ATTEMPT", "WORKER")
RESULT_COLUMNS = ("TASK", "STATE", "EXIT", "WALL", "CPU", "MEM_MIB", "WORKER", "REASON")


def ask(pool: str | None, question: Callable[[Client], Awaitable[_T]]) -> _T:
    """Run one conversation with a manager."""

    async def talk() -> _T:
        async with connected_client(pool) as client:
            return await question(client)

    return asyncio.run(talk())


def out_of(as_json: bool) -> Output:
    """The output interface for the options."""
    return Output("json" if as_json else "table")


def job_row(job: m.JobInfo) -> tuple[object, ...]:
    """A job as a row of `JOB_COLUMNS`."""
    c = job.counts
    bad = c.failed + c.timeout + c.node_fail
    name = job.name or job.command
    return (
        job.job,
        name if len(name) <= 30 else name[:29] + "…",
        job.state,
        job.size,
        c.completed + c.cancelled + bad,
        c.running,
        c.queued,
        bad,
        iso_time(job.submitted),
        job.user.partition("@")[0],
    )


@click.command()
@click.argument("what", required=False, metavar="[JOB|pool]")
@click.option("--all", "everybody", is_flag=True, help="Everybody's jobs, not only your own.")
@pool_option
@json_option
def status(what: str | None, everybody: bool, pool: str | None, as_json: bool) -> None:
    """Show your jobs, one job, or the pool.

    \b
    kestrel status          your jobs
    kestrel status 17       one job
    kestrel status pool     the workers
    """
    out = out_of(as_json)

    async def question(client: Client) -> m.JobStatus | m.PoolStatus:
        if what == "pool":
            return await client.request(m.Pool(), m.PoolStatus)
        if what is None:
            return await client.request(m.Status(all=everybody), m.JobStatus)
        job = (await select(client, what)).job
        return await client.request(m.Status(job=job), m.JobStatus)

    answer = ask(pool, question)
    if isinstance(answer, m.PoolStatus):
        show_pool(out, answer)
        return
    out.records(answer.jobs, columns=JOB_COLUMNS, row=job_row)
    if not as_json:
        _job_words(out, answer, what)


def _job_words(out: Output, answer: m.JobStatus, what: str | None) -> None:
    if not answer.jobs:
        out.line("You have no jobs. Submit one: kestrel submit -- ./my_task.sh")
    if what is not None and answer.jobs[0].reruns:
        out.line(f"{answer.jobs[0].reruns} attempts were lost with their worker and run again.")
    workers = _counted(answer.workers, "worker")
    out.line(f"{workers}, {answer.busy} of {answer.slots} slots busy.")


@click.command()
@click.argument("job")
@click.option("--state", "states", multiple=True, metavar="STATE", help="Only these, e.g. FAILED.")
@pool_option
@json_option
def tasks(job: str, states: tuple[str, ...], pool: str | None, as_json: bool) -> None:
    """List the tasks of JOB with their states and workers."""

    async def question(client: Client) -> list[m.TaskInfo]:
        number = (await select(client, job)).job
        rows: list[m.TaskInfo] = []
        after = -1
        while True:
            request = m.ListTasks(job=number, states=list(states), after=after)
            page = await client.request(request, m.TaskList)
            rows += page.tasks
            if not page.more:
                return rows
            after = page.tasks[-1].task

    out = out_of(as_json)
    rows = ask(pool, question)
    out.records(rows, columns=TASK_COLUMNS, row=lambda t: (t.task, t.state, t.attempt or "", t.worker))


@click.command()
@click.argument("jobs", nargs=-1, required=True, metavar="JOB…")
@click.option("--bar/--no-bar", default=None, help="Show how far it is.  [default: on a terminal]")
@pool_option
@json_option
def wait(jobs: tuple[str, ...], bar: bool | None, pool: str | None, as_json: bool) -> None:
    """Wait until each JOB has ended.

    Exit code 0 if every task completed, else the number of tasks that did not (101: more than 100).
    """

    async def question(client: Client) -> list[m.JobInfo]:
        ended = []
        for text in jobs:
            number = (await select(client, text)).job
            tally = Tally()
            progress = ProgressBar(tally, sys.stderr, wanted=bar)

            def show(info: m.JobInfo, tally: Tally = tally, progress: ProgressBar = progress) -> None:
                tally_job(tally, info)
                progress.draw()

            try:
                ended.append(await client.wait(number, show))
            finally:
                progress.hide()
        return ended

    out = out_of(as_json)
    ended = ask(pool, question)
    out.records(ended, columns=JOB_COLUMNS, row=job_row)
    sys.exit(exit_code(ended))


def tally_job(tally: Tally, job: m.JobInfo) -> None:
    """Bring a tally up to date with a job."""
    c = job.counts
    tally.total = None if job.open else job.size
    tally.failed = c.failed + c.timeout + c.node_fail
    tally.done = c.completed + c.cancelled + tally.failed
    tally.running = c.running
    tally.reruns = job.reruns


def exit_code(jobs: list[m.JobInfo]) -> int:
    """GNU parallel's: the number of tasks that did not complete, 101 for more than 100."""
    bad = sum(job.size - job.counts.completed for job in jobs)
    return min(bad, 101)


@click.command()
@click.argument("job")
@pool_option
@json_option
def results(job: str, pool: str | None, as_json: bool) -> None:
    """Show how the tasks of JOB ended (JOB, or tasks of it: 17_3, 17_[0-9]).

    With --json one JSON object a line, with the ends of standard output and error.
    """
    out = out_of(as_json)

    async def question(client: Client) -> list[m.TaskResult]:
        selection = await select(client, job)
        found: list[m.TaskResult] = []
        after = 0
        while True:
            request = m.Results(job=selection.job, after=after, tasks=selection.tasks)
            page = await client.request(request, m.ResultPage)
            if as_json:
                for result in page.results:
                    out.event(result)
            else:
                found += page.results
            after = page.last
            if page.done or (not page.results and not selection.tasks):
                return found

    found = ask(pool, question)
    if not as_json:
        out.records(sorted(found, key=lambda r: r.task), columns=RESULT_COLUMNS, row=_result_row)


def _result_row(r: m.TaskResult) -> tuple[object, ...]:
    end = f"{r.exit_code if r.exit_code is not None else 0}:{r.signal}" if r.signal else r.exit_code
    end = "" if end is None else end
    wall, cpu = duration_text(r.wall_s), duration_text(r.cpu_s)
    memory = round(r.memory_kib / 1024, 1)
    return (r.task, r.state, end, wall, cpu, memory, r.worker.partition("@")[0], r.reason)


@click.command()
@click.argument("task", metavar="JOB_TASK")
@click.option("--stderr", is_flag=True, help="Standard error instead of standard output.")
@pool_option
def cat(task: str, stderr: bool, pool: str | None) -> None:
    """Print what a task wrote so far, e.g. `kestrel cat 17_3`."""

    async def question(client: Client) -> None:
        selection = await select(client, task)
        stream = "stderr" if stderr else "stdout"
        async for piece in client.output(selection.job, selection.one_task(), stream):
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()

    ask(pool, question)


@click.command()
@click.argument("jobs", nargs=-1, required=True, metavar="JOB…")
@pool_option
@json_option
def cancel(jobs: tuple[str, ...], pool: str | None, as_json: bool) -> None:
    """Cancel jobs, or some of their tasks (17, 17_3, 17_[0-9], last)."""

    async def question(client: Client) -> list[m.Accepted]:
        done = []
        for text in jobs:
            selection = await select(client, text)
            request = m.Cancel(job=selection.job, tasks=selection.tasks)
            done.append(await client.request(request, m.Accepted))
        return done

    out = out_of(as_json)
    answers = ask(pool, question)
    if as_json:
        out.document(answers)
        return
    for answer in answers:
        note = f" ({answer.warning})" if answer.warning else ""
        out.line(f"Job {answer.job}: {_counted(answer.changed, 'task')} cancelled{note}")


@click.command()
@click.argument("job", metavar="JOB[_TASK]")
@pool_option
@json_option
def explain(job: str, pool: str | None, as_json: bool) -> None:
    """Say why a job or a task does not run, or what became of it (17, 17_3)."""

    async def question(client: Client) -> m.Explanation:
        selection = await select(client, job)
        if selection.tasks and selection.task is None:
            raise UsageError("explain takes a job or one task", hint=f"e.g. {selection.job}_0")
        return await client.request(m.Explain(job=selection.job, task=selection.task), m.Explanation)

    out = out_of(as_json)
    answer = ask(pool, question)
    if as_json:
        out.document(answer)
        return
    for line in answer.lines:
        out.line(line)
    for line in answer.story:
        out.line(f"  {line}")


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
