"""`kestrel submit`: a job file, or a command after `--`."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec

from kestrel.cli.arguments import SEPARATORS, parse
from kestrel.cli.connect import connected_client
from kestrel.cli.jobfile_keys import read_patterns
from kestrel.cli.options import DashedCommand, after_dashes, duration, json_option, pool_option
from kestrel.cli.output import Output
from kestrel.client import Submission
from kestrel.errors import UsageError
from kestrel.protocol import messages as m


@click.command(cls=DashedCommand, options_metavar="[OPTIONS]")
@click.argument("file", required=False, metavar="[FILE | -- COMMAND… [::: ARGS…]]")
@click.option(
    "-n", "--queue", type=click.IntRange(1), help="Run COMMAND so many times; each gets its index appended."
)
@click.option("--name", default="", help="Name of the job.")
@click.option("--requires", default="", metavar="TAGS", help="Tags that a worker must provide.")
@click.option(
    "--workers",
    multiple=True,
    metavar="PATTERN",
    help="Only workers that this means, e.g. 'lab*@pool' or '*/core2'; may be repeated.",
)
@click.option("--retries", type=click.IntRange(0), default=None, help="Try failed tasks again so often.")
@click.option("--priority", type=int, default=None, help="Higher runs first.")
@click.option(
    "--time-limit", metavar="TIME", callback=duration, help="Longest time for one task, e.g. 1h30m."
)
@click.option("--workdir", metavar="DIR", help="Directory on the worker to run in.  [default: this one]")
@click.option(
    "--id", "submission", default="", help="Repeating a submission with the same id gives the same job."
)
@click.option(
    "--wait", "wait_for_it", is_flag=True, help="Wait until it has ended, then exit as `kestrel wait`."
)
@click.option("--dry-run", is_flag=True, help="Check and print the job; submit nothing.")
@pool_option
@json_option
@click.pass_context
def submit(
    ctx: click.Context,
    file: str | None,
    queue: int | None,
    name: str,
    requires: str,
    workers: tuple[str, ...],
    retries: int | None,
    priority: int | None,
    time_limit: float | None,
    workdir: str | None,
    submission: str,
    wait_for_it: bool,
    dry_run: bool,
    pool: str | None,
    as_json: bool,
) -> None:
    """Submit a job file (INI, TOML or JSON), or the command after `--`.

    \b
    kestrel submit job.ini
    kestrel submit -n 50 -- ./run_task.sh          # ./run_task.sh 0 … ./run_task.sh 49
    kestrel submit -- gzip -k {} ::: *.log         # one task per argument
    kestrel submit --workers '*@pool/gpu?' job.toml
    """
    job, args = _job_of(file, after_dashes(ctx), queue)
    changes: dict[str, object] = {"id": submission or job.id}
    if name:
        changes["name"] = name
    if requires:
        changes["requires"] = requires
    if workers:
        changes["workers"] = read_patterns(workers)
    if retries is not None:
        changes["retries"] = retries
    if priority is not None:
        changes["priority"] = priority
    if time_limit is not None:
        changes["time_limit_s"] = time_limit
    if workdir is not None:
        changes["workdir"] = os.path.abspath(workdir)
    elif not job.workdir:
        changes["workdir"] = os.getcwd()
    job = msgspec.structs.replace(job, **changes)
    out = Output("json" if as_json else "table")
    if dry_run:
        out.document(msgspec.structs.replace(job, args=list(args)) if args is not None else job)
        return

    async def talk() -> tuple[Submission, m.JobInfo | None]:
        async with connected_client(pool) as client:
            accepted = await client.submit(job, args)
            if not as_json:
                count = "1 task" if accepted.size == 1 else f"{accepted.size} tasks"
                out.line(f"Job {accepted.job}: {count}")
                if accepted.warning:
                    out.warn(accepted.warning)
            return accepted, await client.wait(accepted.job) if wait_for_it else None

    accepted, ended = asyncio.run(talk())
    if as_json:
        out.document(
            {"job": accepted.job, "size": accepted.size, "warning": accepted.warning}
            | ({"state": ended.state} if ended else {})
        )
    if ended is not None:
        from kestrel.cli.jobs import exit_code

        sys.exit(exit_code([ended]))


def _job_of(
    file: str | None, words: list[str] | None, queue: int | None
) -> tuple[m.Job, Iterator[m.Parameters] | None]:
    if file is not None and words is not None:
        raise UsageError(f"both a job file ({file}) and a command after -- are given", hint="leave one out")
    if file is not None:
        from kestrel.cli.jobfile import read_job_file

        job = read_job_file(Path(file))
        return (job if queue is None else msgspec.structs.replace(job, queue=queue, args=None)), None
    if not words:
        raise UsageError(
            "nothing to submit",
            hint="name a job file, or write a command after --; see kestrel submit --help",
        )
    if not any(word in SEPARATORS for word in words):
        return m.Job(command=" ".join(words), queue=queue), None
    if queue is not None:
        raise UsageError("-n and ::: exclude each other", hint="::: runs the command once per argument")
    stdin = open(0, "rb", buffering=0, closefd=False)  # noqa: SIM115 (unbuffered: a slow pipe streams)
    bag = parse(words, stdin, stdin_is_terminal=stdin.isatty())
    return m.Job(command=bag.command), bag.parameters
