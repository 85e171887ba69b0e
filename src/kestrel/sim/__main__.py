"""`python -m kestrel.sim`: replay one seed with its log, try many, or try new ones until told to stop."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Iterable
from itertools import count
from pathlib import Path

import click

from kestrel.sim.swarm import Verdict, play_all
from kestrel.sim.world import run_seed

SOAK_SEEDS = 10**9
"""A soak begins somewhere below, so that each one plays histories that nobody played before."""
REPORT_S = 60.0
"""A soak says so often that it is still there."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--seed", type=click.IntRange(min=0), help="Replay this seed.")
@click.option("--seeds", "span", metavar="A-B", help="Try these seeds, and print the failing ones.")
@click.option("--soak", is_flag=True, help="Try new seeds until Ctrl-C, and print the failing ones.")
@click.option("--verbose", is_flag=True, help="With --seed: print the whole log of the history.")
@click.option("--digest", is_flag=True, help="With --seed: print the digest of the log.")
@click.option("--first", is_flag=True, help="With --seeds or --soak: stop at the first failing seed.")
@click.option("--jobs", type=click.IntRange(min=1), help="Processes that play seeds. [default: one per core]")
@click.option(
    "--from", "begin", type=click.IntRange(min=0), help="With --soak: the first seed. [default: random]"
)
@click.option(
    "--log",
    type=click.Path(dir_okay=False, path_type=Path),
    help="With --seeds or --soak: append failing seeds and their stories to this file.",
)
def main(
    seed: int | None,
    span: str | None,
    soak: bool,
    verbose: bool,
    digest: bool,
    first: bool,
    jobs: int | None,
    begin: int | None,
    log: Path | None,
) -> None:
    """Run the production managers and workers on a virtual clock and a faulty network.

    Each seed is one history: a pool, its users and their jobs, and a choice of faults (crashes, partitions,
    full disks, lost answers, stopped processes, clocks that jump ...); then everything heals, everything
    must end, and what happened is judged. The same seed gives the same history everywhere.

    \b
    python -m kestrel.sim --seed 17              play one, and say how it went
    python -m kestrel.sim --seed 17 --verbose    the same, with all that happened
    python -m kestrel.sim --seeds 1-2000         what the tests play
    python -m kestrel.sim --soak                 until Ctrl-C

    Exits with 1 if a seed fails, with 0 if none did, after Ctrl-C as well.
    """
    if (seed is not None) + (span is not None) + soak != 1:
        raise click.UsageError("say one of --seed N, --seeds A-B and --soak")
    if seed is not None:
        sys.exit(_one(seed, verbose, digest))
    trial = _Trial(first, log, jobs)
    if span is not None:
        sys.exit(trial.run(_range(span)))
    begin = secrets.randbelow(SOAK_SEEDS) if begin is None else begin
    sys.exit(trial.run(count(begin), f"seeds from {begin} on; Ctrl-C ends this"))


def _range(span: str) -> range:
    first, dash, last = span.partition("-")
    if not (first.isdigit() and (last.isdigit() or not dash)):
        raise click.BadParameter(f"{span!r} is no range of seeds; write it like 1-200", param_hint="--seeds")
    return range(int(first), int(last or first) + 1)


def _one(seed: int, verbose: bool, digest: bool) -> int:
    outcome = run_seed(seed)
    if verbose:
        for line in outcome.world.trace.lines():
            click.echo(line)
    world = outcome.world
    if digest:
        click.echo(world.trace.digest())
    if not outcome.ok:
        click.echo(outcome.story(0 if verbose else 60))
        return 1
    click.echo(
        f"seed {seed}: ok, {world.steps} steps, {world.timeline.now:.0f} s of virtual time, "
        f"{len(world.ledger.runs)} runs, faults {world.faults.struck}"
    )
    return 0


class _Trial:
    """Many seeds, what they did, and which of them failed."""

    def __init__(self, first: bool, log: Path | None, jobs: int | None) -> None:
        self._first = first
        self._log = log
        self._jobs = jobs
        self._failed: list[int] = []
        self._played = self._steps = self._runs = 0
        self._began = time.monotonic()

    def run(self, seeds: Iterable[int], head: str = "") -> int:
        """Play them all, or until Ctrl-C; `head` is said first, and a word now and then after it."""
        verdicts = play_all(seeds, self._jobs)
        reported = self._began
        try:
            if head:
                click.echo(head)
            for verdict in verdicts:
                self._take(verdict)
                if self._first and self._failed:
                    break
                if head and time.monotonic() - reported > REPORT_S:
                    reported = time.monotonic()
                    self._summary()
        except KeyboardInterrupt:
            click.echo("stopped")
        finally:
            verdicts.close()
        self._summary()
        return 1 if self._failed else 0

    def _take(self, verdict: Verdict) -> None:
        self._played += 1
        self._steps += verdict.steps
        self._runs += verdict.runs
        if verdict.ok:
            return
        self._failed.append(verdict.seed)
        click.echo(f"{verdict.head}\n  replay: {verdict.replay}")
        if self._log is not None:
            with self._log.open("a", encoding="utf-8") as log:
                log.write(f"{verdict.story}\nreplay: {verdict.replay}\n\n")

    def _summary(self) -> None:
        elapsed = time.monotonic() - self._began
        click.echo(
            f"{self._played} seeds in {elapsed:.1f} s ({self._played / elapsed:.1f}/s, "
            f"{self._steps / elapsed:.0f} steps/s), {self._runs} runs of tasks"
        )
        shown = ", ".join(map(str, self._failed[:20])) + (" ..." if len(self._failed) > 20 else "")
        click.echo(f"{len(self._failed)} failed: {shown}" if self._failed else "all passed")


if __name__ == "__main__":
    main()
