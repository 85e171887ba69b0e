"""`kestrel run`: one command over many arguments, on a pool of its own or on one that is there.

Reads the options and brings the parts together; the work is done in `run`.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

import click

from kestrel.cli.arguments import Bag, parse
from kestrel.cli.logs import set_up_logs
from kestrel.cli.options import duration, json_option
from kestrel.cli.output import Output
from kestrel.errors import EnvironmentProblem, UsageError

if TYPE_CHECKING:
    from kestrel.local import LocalPool
    from kestrel.local.worker_process import WorkerProcess

WORKER_LOOK_S = 0.5
"""How often a run looks whether its worker lives."""
WORKER_RESTARTS_MAX = 5
"""Workers that a run starts in the place of dead ones before it gives up."""

HELP = """Run COMMAND once for each argument, many at a time, and print what comes out.

{} in COMMAND stands for the argument; without it the argument is appended. Arguments come after
:::, from files after :::: (one a line, - is standard input), or from standard input. Several lists
make all combinations; {1} and {2} stand for the parts. Brings its own pool unless --pool names one.

\b
kestrel run -- gzip -k {} ::: *.log            # one task for each file
seq 1000 | kestrel run -- ./simulate.sh        # arguments from a pipe
kestrel run -- 'echo {1}-{2}' ::: a b ::: 1 2  # a-1 a-2 b-1 b-2
kestrel run -- 'sort {} > {.}.sorted' :::: list.txt
kestrel run --joblog log -- ./step {} ::: *.dat           # interrupted? go on with
kestrel run --joblog log --resume -- ./step {} ::: *.dat

\b
{}    the argument           {.}   without its extension   {#}  number of the task
{/}   its base name          {//}  its directory           {/.} base name without extension

Exit code: 0 if all tasks succeeded, 1-100: so many failed, 101: more, 130: interrupted, 255: other
errors. With --halt, that of the task that caused it. Options stand before the command.
"""


@click.command(
    help=HELP,
    options_metavar="[OPTIONS] --",
    context_settings={"allow_interspersed_args": False, "help_option_names": ["-h", "--help"]},
)
@click.option(
    "-j", "--jobs", metavar="N", help="Tasks at once: 8, 50%, +2, -1 (of the cores).  [default: cores]"
)
@click.option("-k", "--keep-order", is_flag=True, help="Print output in the order of the arguments.")
@click.option("--tag", is_flag=True, help="Begin each line of output with the task's argument and a tab.")
@click.option(
    "--joblog",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help=("Write a line to FILE for each task that has ended."),
)
@click.option("--resume", is_flag=True, help="Leave out the tasks that are in the job log.")
@click.option("--resume-failed", is_flag=True, help="The same, but try those again that failed.")
@click.option(
    "--retries",
    "tries",
    default=1,
    type=click.IntRange(0, 1001),
    metavar="N",
    help=("Try a task that fails up to N times in all."),
)
@click.option(
    "--timeout", callback=duration, metavar="TIME", help="Stop a task after so long: 90, 1h30m, 01:30:00."
)
@click.option(
    "--halt",
    default="never",
    metavar="WHEN",
    help=("Give up early: now,fail=1 stops what runs, soon,fail=3 lets it end; also success= and done=."),
)
@click.option("--dry-run", is_flag=True, help="Print the commands, run nothing.")
@click.option("--bar/--no-bar", default=None, help="Show a progress bar.  [default: on a terminal]")
@click.option("--pool", metavar="NAME", help="Run on this pool instead of one of our own.")
@click.option(
    "--requires", metavar="TAGS", default="", help="Only on workers that provide all of these; with --pool."
)
@click.option(
    "--workers",
    multiple=True,
    metavar="PATTERN",
    help="Only on workers that this means, e.g. 'lab*@pool'; may be repeated; with --pool.",
)
@click.option(
    "--workdir", metavar="DIR", help="Directory to run in, on the worker.  [default: the current one]"
)
@click.option("--name", default="", help="Name of the job, for people.")
@json_option
@click.option("-v", "--verbose", is_flag=True, help="Say how it went on standard error.")
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="COMMAND [::: ARGUMENT...]")
def run(words: tuple[str, ...], as_json: bool, dry_run: bool, **options: Any) -> int:
    out = Output("json" if as_json else "table")
    set_up_logs(verbose=False, quiet=True)
    _check(options)
    jobs = None if options["pool"] else parse_jobs(options["jobs"], _cores())
    stdin = _standard_input()
    bag = parse(words, stdin, stdin_is_terminal=stdin is not None and os.isatty(0))
    if dry_run:
        return _print_commands(bag, out)
    if jobs is None:
        return asyncio.run(_run(bag, out, options, None))
    from kestrel.local.worker_process import WorkerProcess

    # First of all, so that it loads while we do.
    worker = WorkerProcess(jobs)
    try:
        return asyncio.run(_run(bag, out, options, worker))
    finally:
        worker.end()


async def _run(bag: Bag, out: Output, options: dict[str, Any], worker: WorkerProcess | None) -> int:
    from kestrel.cli.joblog import JobLog, LoggedTasks
    from kestrel.cli.run import RunOptions, run_bag
    from kestrel.cli.run_outcome import Halt

    halt = Halt.parse(options["halt"])
    joblog: JobLog | None = None
    logged: LoggedTasks | None = None
    if options["joblog"] is not None:
        if options["resume"] or options["resume_failed"]:
            joblog, logged = JobLog.resume(options["joblog"])
        else:
            joblog = JobLog.create(options["joblog"])
    run_options = RunOptions(
        keep_order=options["keep_order"],
        tag=options["tag"],
        tries=max(1, options["tries"]),
        timeout_s=options["timeout"] or 0.0,
        halt=halt,
        joblog=joblog,
        logged=logged,
        resume_failed=options["resume_failed"],
        bar=options["bar"],
        requires=tuple(options["requires"].replace(",", " ").split()),
        workers=_patterns(options["workers"]),
        name=options["name"],
        workdir=_workdir(options["workdir"]),
        slots=worker.slots if worker else None,
        verbose=options["verbose"],
    )
    try:
        if worker is None:
            from kestrel.cli.connect import connected_client

            async with connected_client(options["pool"]) as client:
                return await run_bag(client, run_options, bag, out)
        from kestrel.local import LocalPool

        async with LocalPool(worker.slots, worker=worker) as pool:
            bag_run = asyncio.create_task(run_bag(pool.client, run_options, bag, out), name="bag")
            tender = asyncio.create_task(_tend(pool, out), name="worker")
            try:
                await asyncio.wait({bag_run, tender}, return_when=asyncio.FIRST_COMPLETED)
                return bag_run.result() if bag_run.done() else tender.result()
            finally:
                bag_run.cancel()
                tender.cancel()
                await asyncio.gather(bag_run, tender, return_exceptions=True)
    finally:
        if joblog is not None:
            joblog.close()


def _patterns(texts: tuple[str, ...]) -> tuple[str, ...]:
    if not texts:
        return ()
    from kestrel.cli.jobfile_keys import read_patterns

    return tuple(read_patterns(texts))


async def _tend(pool: LocalPool, out: Output) -> NoReturn:
    """Put another worker in the place of one that died. Raises `EnvironmentProblem` when that is no use."""
    slots = pool.slots
    while True:
        worker = pool.workers[-1]
        # Looked at instead of waited for: that takes no thread and no signal handler.
        while (code := worker.exit_code) is None:  # noqa: ASYNC110
            await asyncio.sleep(WORKER_LOOK_S)
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        if len(pool.workers) > WORKER_RESTARTS_MAX:
            raise EnvironmentProblem(
                f"the worker of this run {how}, and so did {WORKER_RESTARTS_MAX} before it",
                hint="is the memory full? Fewer tasks at once (-j) take less; "
                "with --joblog FILE a later --resume goes on from here",
            )
        out.warn(f"the worker of this run {how}; another one takes over what it had")
        pool.start_worker(slots)


def _check(options: dict[str, Any]) -> None:
    """What excludes what. Raises `UsageError`."""
    if (options["resume"] or options["resume_failed"]) and options["joblog"] is None:
        raise UsageError("--resume needs the job log of the run before", hint="add --joblog FILE")
    for name in ("requires", "workers"):
        if options[name] and not options["pool"]:
            raise UsageError(
                f"--{name} chooses workers of an existing pool, but this run brings its own",
                hint=f"add --pool NAME, or leave --{name} out",
            )
    if options["jobs"] and options["pool"]:
        raise UsageError(
            "--jobs is for a pool of our own; with --pool its workers say how much they do at once",
            hint="leave one of the two out",
        )


def parse_jobs(text: str | None, cores: int) -> int:
    """How many tasks at once: `8`, `50%`, `+2` or `-1` of `cores`; at least 1. Raises `UsageError`."""
    if text is None:
        return cores
    match = re.fullmatch(r"([+-]?)([0-9]{1,5})(%?)", text.strip())
    if match is None or (match[1] and match[3]) or (not match[1] and int(match[2]) == 0):
        raise UsageError(f"cannot read --jobs {text!r}", hint="write 8, 50%, +2 or -1; at least 1")
    sign, number, percent = match[1], int(match[2]), match[3]
    if percent:
        return max(1, cores * number // 100)
    if sign:
        return max(1, cores + number if sign == "+" else cores - number)
    return number


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _workdir(given: str | None) -> str:
    if given is not None:
        return given
    try:
        return os.getcwd()
    except OSError as problem:
        raise EnvironmentProblem(
            f"the current directory is gone: {problem.strerror}", hint="cd somewhere else, or give --workdir"
        ) from None


def _standard_input() -> BinaryIO | None:
    """Unbuffered: a thread that waits for a pipe must not hold a lock that Python wants at its exit."""
    if sys.stdin is None:
        return None
    try:
        return open(0, "rb", buffering=0, closefd=False)
    except OSError:
        return None


def _print_commands(bag: Bag, out: Output) -> int:
    from kestrel.protocol.placeholders import Template

    template = Template(bag.command)
    for index, words in enumerate(bag.parameters):
        command = template.fill(words, index)[-1]
        out.line(command)
        out.event({"seq": index + 1, "args": words, "command": command})
    return 0
