"""`python benchmarks/chaos [--tasks 100000] [--workers 8] [--store sqlite] [--every 4] [--seed 1] …`

A pool of real processes loses workers, managers, its server and its database all the time, and must lose
no task and record none twice. Ends with a table; see `--help` and docs/reliability.md. Linux only.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    here = Path(__file__).resolve()
    sys.path[:1] = [str(here.parents[1]), str(here.parents[2] / "tools")]
    from chaos.run import main

    sys.exit(main())
