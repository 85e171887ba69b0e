"""Every number and name that steers a manager's shell. The scheduler has its own settings."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from kestrel.core.model import SchedulerSettings
from kestrel.manager.access import AccessRules


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
    far_quiet_s: float = 10.0
    """So long (a lease at least) after something was sent to a worker on another server it is asked what it
    has in hand."""
    absence_s: float = 2.0
    """So long after the manager is back, workers of its last life that are not there may still come back:
    server and manager may have been restarted together."""
    inbox_max: int = 100_000
    """Messages waiting for the store; beyond it users are turned away."""
    inbox_bytes_max: int = 256 * 1024 * 1024
    """The same in bytes as they came: a few large ones must not fill the memory either."""
    jobs_open_per_user_max: int = 10_000
    tasks_open_per_user_max: int = 200_000_000
    """Tasks of one user that are queued or running, or in jobs that have not ended."""
    access: AccessRules = field(default_factory=AccessRules)
    """Who may work, use and administrate, and who may nothing."""
    role_authority: str = ""
    """Domain whose server is believed when it tells the roles of its accounts; empty: the manager's own."""
    roles_max: int = 200_000
    """Accounts of which a told role is remembered; beyond it the oldest has none."""
    messages_per_s: float = 1_000.0
    """Messages of one user, with all its clients, over a longer time; 0: no limit."""
    messages_burst: float = 5_000.0
    """So many at once."""
    worker_messages_per_s: float = 2_000.0
    """Messages of one worker: even a thousand slots with tasks of a millisecond need some fifty."""
    worker_messages_burst: float = 10_000.0
    refusals_per_s: float = 20.0
    """Error answers to what one account may not send; what is beyond is only counted."""
    refusals_burst: float = 100.0
    all_refusals_per_s: float = 500.0
    """The same for all accounts together: a hostile server can make up as many as it likes."""
    refusal_log_s: float = 60.0
    """So long after a line in the log the next refusals of an account are only counted."""
    refusal_lines_per_s: float = 20.0
    """Lines in the log for all accounts together."""
    refused_accounts_max: int = 10_000
    """Accounts of which it is remembered how often they were refused."""


TICKS_PER_LEASE = 8
"""Leases are looked at at least so often within one."""
PROBES_PER_LEASE = 3


def noticing_within(settings: ManagerSettings, lost_after_s: float) -> ManagerSettings:
    """The same, but a worker that is silent for so long is lost; it is asked after a third of it."""
    scheduler = replace(settings.scheduler, lease_s=lost_after_s, probe_s=lost_after_s / PROBES_PER_LEASE)
    tick_s = min(settings.tick_s, lost_after_s / TICKS_PER_LEASE)
    return replace(settings, scheduler=scheduler, tick_s=tick_s)
