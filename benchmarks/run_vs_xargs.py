"""`kestrel run -- true ::: 1 … N` against `xargs -P2 -n1 true`, whole commands, in turns.

Everything counts: start of the interpreter, server, manager, worker, store, XMPP, and the end of it all.
Run: `python benchmarks/run_vs_xargs.py [--tasks 10000] [--rounds 5]`. Target: ratio >= 0.7.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time


def seconds(command: list[str], text: str) -> float:
    """Wall time of a command with `text` on its standard input."""
    began = time.perf_counter()
    subprocess.run(command, input=text, text=True, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    """Measure in turns and print both rates and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slots", type=int, default=2)
    options = parser.parse_args()
    numbers = "".join(f"{i}\n" for i in range(1, options.tasks + 1))
    kestrel = [sys.executable, "-m", "kestrel", "run", "--no-bar", "-j", str(options.slots), "--", "true"]
    xargs = ["xargs", f"-P{options.slots}", "-n1", "true"]
    ratios, ours, theirs = [], [], []
    for turn in range(options.rounds):
        ours.append(seconds(kestrel, numbers))
        theirs.append(seconds(xargs, numbers))
        ratios.append(theirs[-1] / ours[-1])
        print(
            f"round {turn + 1}: kestrel {options.tasks / ours[-1]:7,.0f}/s   "
            f"xargs {options.tasks / theirs[-1]:7,.0f}/s   ratio {ratios[-1]:.2f}"
        )
    print(f"\n| | tasks/s (median of {options.rounds}) |\n|---|---|")
    print(f"| kestrel run, {options.slots} slots | {options.tasks / statistics.median(ours):,.0f} |")
    print(f"| xargs -P{options.slots} -n1 | {options.tasks / statistics.median(theirs):,.0f} |")
    print(f"| ratio, pair by pair | {statistics.median(ratios):.2f} (target 0.7) |")


if __name__ == "__main__":
    main()
