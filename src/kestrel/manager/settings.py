"""Every number and name that steers a manager's shell. The scheduler has its own settings."""

from __future__ import annotations

from dataclasses import dataclass, field

from kestrel.core.model import SchedulerSettings


@dataclass(frozen=True, slots=True)
class ManagerSettings:
    """Bounds of one manager. Sizes are bytes of JSON text unless they say otherwise."""

    pool: str = "kestrel"
    """Name of the pool, shown to people."""
    scheduler: SchedulerSettings = field(default_factory=SchedulerSettings)
    tick_s: float = 0.5
    """How often leases are looked at."""
    report_delay_s: float = 0.02
    tail_bytes: int = 4096
    stanza_bytes_max: int = 200_000
    words_chars_max: int = 20_000
    """Longest answer in plain words."""
    announce_s: float = 0.25
    """Least time between two `event` messages about one job to one watcher."""
    wait_s_max: float = 20.0
    """Longest time that a `results` request with `wait` stays unanswered."""
    store_retry_s: float = 1.0
    watchers_per_job_max: int = 100
    waiters_max: int = 10_000
    relays_max: int = 1_000
    """Output requests that wait for a worker's answer."""
    relay_s_max: float = 20.0
    profile_bytes_max: int = 16_384
    """What a worker may say of itself, beside what it holds."""
    task_bytes_max: int = 90_000
    """Command, environment and the like of a job; and, separately, the arguments of one task. Both must
    fit into one stanza."""
    selected_tasks_max: int = 1_000_000
    """Tasks that one request may name one by one."""
    greeted_max: int = 100_000
    """Peers of which it is remembered that they know our presence."""
    workers_max: int = 100_000
    tasks_open_max: int = 500_000_000
    """Tasks of all jobs that have not ended: one byte of memory each."""
    drained_max: int = 10_000
    """Workers that users have drained, whether they are there or not."""
    refused_max: int = 20
    """Workers that could not be let in of which is remembered why."""
    recalls_per_tick_max: int = 500
    """Workers that are called with one tick when the manager is back."""
    recall_s: float = 5.0
    """After so long an expected worker that did not answer is called again."""
    recalls_max: int = 12
    """So often."""
    absence_s: float = 2.0
    """So long after the manager is back, workers of its last life that are not there may still come back:
    server and manager may have been restarted together."""
    inbox_max: int = 100_000
    """Messages waiting for the store; beyond it users are turned away."""
    jobs_open_per_user_max: int = 10_000
    admins: frozenset[str] = frozenset()
    """Bare JIDs that may touch everybody's jobs."""
