"""Every number and name that steers a worker's agent. Pure data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from kestrel.core.addresses import Pattern, matching
from kestrel.protocol.messages import Profile
from kestrel.worker.hours import Hours


@dataclass(frozen=True, slots=True)
class OwnerRules:
    """What the owner of the machine allows. The default allows everything."""

    users: tuple[Pattern, ...] = ()
    """Whose jobs may run; empty: everybody's."""
    hours: Hours | None = None
    """When; None: always."""
    at_close: Literal["finish", "stop"] = "finish"
    """What becomes of running tasks when the hours end: they end by themselves, or are stopped and given
    back."""
    local_time: Callable[[float], datetime] = datetime.fromtimestamp
    """From Unix time to the time on the wall."""

    def refuses(self, user: str) -> bool:
        """Whether jobs of this user must not run. Who is not named is nobody's guest."""
        return bool(self.users) and not (user and matching(self.users, user))


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """How a worker behaves. Times in seconds."""

    manager: str
    """JID of the manager: a component's domain, or an account."""
    profile: Profile
    """What the worker says of itself; `held` is filled in."""
    workdir: str
    """Where tasks run whose job names no directory (absolute)."""
    output_directory: str
    """Where output files are kept (absolute)."""
    join_retry_s: float = 0.5
    """A manager that is not there is tried again after this, then after twice as long …"""
    join_retry_s_max: float = 2.0
    """… up to this: a restarted manager does not know whom it should tell."""
    welcome_s: float = 5.0
    """A manager that is there and does not welcome us is asked again after this, then twice as long …"""
    welcome_s_max: float = 60.0
    stanza_bytes_max: int = 200_000
    """Until a welcome says otherwise."""
    handover_s: float = 0.05
    """Of quick tasks so much work is handed to the launcher ahead of the slots; 0: none."""
    queued_max: int = 4000
    finished_max: int = 10_000
    finished_bytes_max: int = 64 * 1024 * 1024
    home: str = ""
    """What `~` means in a job's directory; empty: our own home."""
    env: dict[str, str] = field(default_factory=dict)
    """Added to the environment of every task."""
    owner: OwnerRules = field(default_factory=OwnerRules)
    windows: bool = False
    """Shell commands are for cmd.exe."""

    @property
    def slots(self) -> int:
        """Tasks at once."""
        return self.profile.slots or self.profile.cores
