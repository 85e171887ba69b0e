"""A disk that fills up under a running pool: nothing new is taken on, what runs goes on, nothing is lost."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from parts.disk import SmallDisk, small_disk
from parts.pool import Pool, eventually

__all__ = ["small_disk"]

TASKS = 200
TASK = "until test -e {gate}; do sleep 0.02; done; echo $1 >> {gate}.ran; head -c 4000 /dev/zero | tr '\\0' x"
"""Waits for a file, notes that it ran, and says enough to fill what is left of the disk."""


def submit(pool: Pool, gate: str, tasks: int = TASKS) -> int:
    script = pool.scratch / f"{gate}.sh"
    script.write_text("#!/bin/sh\n" + TASK.format(gate=pool.scratch / gate) + "\n")
    script.chmod(0o755)
    done = pool.run("submit", "--json", "--requires", gate, "-n", str(tasks), "--", str(script))
    assert done.returncode == 0, done.stderr
    return int(json.loads(done.stdout)["job"])


def status(pool: Pool, job: int) -> dict[str, Any]:
    (found,) = [j for j in pool.ask("status", str(job)) if j["job"] == job]
    return dict(found)


def refusal(pool: Pool) -> dict[str, str] | None:
    """What a submission is refused with; None: it was taken."""
    done = pool.run("submit", "--json", "--", "true")
    if done.returncode == 0:
        return None
    assert done.returncode == 255
    error: dict[str, str] = json.loads(done.stdout)["error"]
    return error


def ran(pool: Pool, gate: str) -> Counter[str]:
    return Counter((pool.scratch / f"{gate}.ran").read_text().split())


def test_a_disk_that_fills_up_stops_submissions_and_nothing_else(
    tmp_path: Path, small_disk: SmallDisk
) -> None:
    place = small_disk.path / "pool"
    everything = Counter(map(str, range(TASKS)))
    with Pool(tmp_path, "--port", "0", "--dir", str(place)) as pool:
        for name in ("first", "second"):
            pool.worker(name, "--slots", "2", "--provides", name)
        first, second = submit(pool, "first"), submit(pool, "second")

        # Nearly full: jobs are refused with the reason, what is there runs to its end.
        small_disk.fill(leave_bytes=3 * 2**20)
        error = eventually(lambda: refusal(pool), "a submission is refused")
        assert error["code"] == "store"
        assert "are left on the disk of the store" in error["text"]
        assert str(place) in error["hint"]
        (pool.scratch / "first").touch()
        eventually(
            lambda: status(pool, first)["state"] == "COMPLETED",
            "a job runs to its end on the room kept for it",
        )
        assert ran(pool, "first") == everything

        # Full to the last byte: results wait with the workers, and who asks is told why.
        small_disk.fill(leave_bytes=0)
        (pool.scratch / "second").touch()
        eventually(lambda: "store_unavailable" in pool.log_of(pool.up), "the manager meets the full disk")
        error = refusal(pool)
        assert error is not None
        assert "no room left for the store" in error["text"]
        assert pool.up.poll() is None

        # Room again: everything goes on by itself.
        small_disk.empty()
        eventually(lambda: status(pool, second)["state"] == "COMPLETED", "the results are stored")
        eventually(lambda: refusal(pool) is None, "submissions are taken again")
        assert ran(pool, "second") == everything, "a task ran twice"
        results = [
            json.loads(line) for line in pool.run("results", str(second), "--json").stdout.splitlines()
        ]
        assert Counter(str(r["task"]) for r in results) == everything
        checked = pool.run("store", "check", "--store", str(place / "store.db"))
        assert checked.returncode == 0, checked.stdout + checked.stderr
    log = pool.log_of(pool.up)
    for event in ("store_short", "store_recovered", "store_room_again"):
        assert event in log
