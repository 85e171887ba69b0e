"""`python -m kestrel.worker`: a worker for local pools, without the command line's comforts."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import select
import shutil
import sys
from pathlib import Path

from kestrel.config import PoolAccess
from kestrel.errors import KestrelError
from kestrel.worker.profile import detect
from kestrel.worker.service import ServiceSettings, run_with_access


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 when the worker left in order, 1 when it could not work (and says why)."""
    parser = argparse.ArgumentParser(prog="python -m kestrel.worker", description=__doc__)
    parser.add_argument(
        "--access",
        required=True,
        help="file that says how to reach the pool; -: a line of standard input, whose end ends the worker",
    )
    parser.add_argument("--slots", type=int, default=None, help="tasks at once (default: cores)")
    parser.add_argument("--dir", type=Path, required=True, help="directory for spool and outputs")
    parser.add_argument("--workdir", type=Path, default=Path(), help="where tasks run")
    parser.add_argument("--provides", action="append", default=[], help="a tag that jobs may require")
    parser.add_argument("--kill-on-leave", action="store_true", help="SIGTERM stops what runs")
    parser.add_argument("--quiet", action="store_true", help="log nothing that mends itself")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.CRITICAL if options.quiet else logging.INFO, stream=sys.stderr)
    try:
        scratch: list[str] = []
        lifeline = options.access == "-"
        if lifeline:
            line = sys.stdin.buffer.readline()
            if not line:
                return 0  # whoever started us is gone, or has no use for us
            told = json.loads(line)
            access, scratch = PoolAccess(**told["access"]), told["scratch"]
        else:
            access = PoolAccess.load(Path(options.access))
        settings = ServiceSettings(
            manager=access.manager,
            profile=detect(slots=options.slots, provides=options.provides),
            directory=options.dir,
            workdir=options.workdir,
            kill_on_leave=options.kill_on_leave,
        )
        asyncio.run(run_with_access(access, settings, lifeline=sys.stdin.fileno() if lifeline else None))
    except KestrelError as problem:
        print(f"kestrel worker: {problem}", file=sys.stderr)  # noqa: T201 (this is its command line)
        return 1
    if lifeline and _cut(sys.stdin.fileno()):
        # Whoever started us ended, perhaps without a chance to tidy up.
        for directory in scratch:
            shutil.rmtree(directory, ignore_errors=True)
    return 0


def _cut(descriptor: int) -> bool:
    """Whether the other end of the lifeline is closed."""
    readable, _, _ = select.select([descriptor], [], [], 0)
    return bool(readable) and not os.read(descriptor, 1)


if __name__ == "__main__":
    sys.exit(main())
