"""No server that a test started outlives the test's process, however that ends."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from parts.servers import KINDS, make_server
from realpool.live import listening
from realpool.processes import Hung, state_of, until

ROOT = Path(__file__).resolve().parents[2]
END_S = 20.0
HOLDER = """
import sys, time
sys.path[:0] = ["tools", "tests"]
from parts.servers import make_server
server = make_server(sys.argv[1])
server.start()
print(server.pid, server.directory, flush=True)
sys.stdin.read()
raise SystemExit("an error of the test")
"""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("end", ["error", "SIGINT", "SIGKILL"])
def test_a_server_ends_with_the_process_that_started_it(kind: str, end: str):
    make_server(kind).__exit__()  # it is installed, or this is skipped
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, kind],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        pid, _, directory = holder.stdout.readline().strip().partition(" ")
        assert state_of(int(pid)) not in ("", "Z")
        if end == "error":
            holder.stdin.close()
        else:
            holder.send_signal(signal.Signals[end])
        holder.wait(END_S)
    until(lambda: state_of(int(pid)) in ("", "Z"), f"{kind} ends", END_S)
    if end in ("error", "SIGINT"):
        assert not Path(directory).exists()
    else:
        subprocess.run(["rm", "-r", directory], check=True)


@pytest.mark.parametrize("kind", KINDS)
def test_one_that_cannot_start_says_why_and_leaves_nothing(kind: str):
    with make_server(kind) as first:
        second = make_server(kind)
        second.component_port = 1
        if hasattr(second, "config"):
            second.config.write_text("this is no configuration")
        else:
            second.port = first.port
        with pytest.raises(Hung), second:
            pass
        assert not second.running
        assert not second.directory.exists()
        assert set(first.ports) <= listening(first.pid)
