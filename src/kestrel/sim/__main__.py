"""`python -m kestrel.sim`: replay one seed with its log, or try many and name those that fail."""

from __future__ import annotations

import sys
import time

import click

from kestrel.sim.world import run_seed


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--seed", type=int, help="Replay this seed.")
@click.option("--seeds", "span", metavar="A-B", help="Try these seeds, and print the failing ones.")
@click.option("--verbose", is_flag=True, help="With --seed: print the whole log of the history.")
@click.option("--digest", is_flag=True, help="With --seed: print the digest of the log.")
def main(seed: int | None, span: str | None, verbose: bool, digest: bool) -> None:
    """Run the production manager and workers on a virtual clock and a faulty network.

    The same seed gives the same history everywhere. Exits with 1 if a seed fails.
    """
    if (seed is None) == (span is None):
        raise click.UsageError("say either --seed N or --seeds A-B")
    if seed is not None:
        sys.exit(_one(seed, verbose, digest))
    assert span is not None
    first, dash, last = span.partition("-")
    if not (first.isdigit() and (last.isdigit() or not dash)):
        raise click.BadParameter(f"{span!r} is no range of seeds; write it like 1-200", param_hint="--seeds")
    sys.exit(_many(range(int(first), int(last or first) + 1)))


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


def _many(seeds: range) -> int:
    started = time.monotonic()
    failed = []
    steps = 0
    for seed in seeds:
        outcome = run_seed(seed)
        steps += outcome.world.steps
        if not outcome.ok:
            failed.append(seed)
            click.echo(outcome.story(0))
    elapsed = time.monotonic() - started
    click.echo(
        f"{len(seeds)} seeds in {elapsed:.1f} s ({len(seeds) / elapsed:.1f}/s, {steps / elapsed:.0f} steps/s)"
    )
    click.echo(f"failing: {failed}" if failed else "all passed")
    return 1 if failed else 0


if __name__ == "__main__":
    main()
