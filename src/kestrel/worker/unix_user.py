"""As whom, and in which environment, the tasks of a worker run.

Called by the worker's service before anything is started. What tasks inherit is decided here: never a
variable in which Kestrel itself is told a secret. The change of the user is made by the launcher process.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kestrel.errors import EnvironmentProblem, UsageError
from kestrel.worker.launcher_wire import MARK

OWN_PREFIX = "KESTREL_"
"""Variables that begin so are ours (`KESTREL_INVITATION`, `KESTREL_STORE` …), and no task's business."""
OWN_SECRETS = frozenset(("PGPASSWORD", "PGPASSFILE"))
"""What a manager with a database may have been started with."""
KEPT_FOR_OTHERS = frozenset(("PATH", "LANG", "LANGUAGE", "TZ", "TERM"))
"""Of one user's environment only these, and `LC_*`, are handed to another one, as sudo does."""
PATH_DEFAULT = "/usr/local/bin:/usr/bin:/bin"
ENTER_S_MAX = 10.0


@dataclass(frozen=True, slots=True)
class UnixUser:
    """An account of this machine."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str
    shell: str


def find_user(name: str) -> UnixUser:
    """The account with this name, for a worker that may become it. Raises `UsageError`,
    `EnvironmentProblem`."""
    try:
        import pwd
    except ImportError:
        raise EnvironmentProblem(
            "this system has no Unix accounts", hint="leave --run-as out, or run the worker on Unix"
        ) from None
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise UsageError(
            f"there is no account {name!r} on this machine",
            hint=f"make one (useradd --system {name}), or name another with --run-as",
        ) from None
    if os.geteuid() != 0:
        raise EnvironmentProblem(
            f"only root can run tasks as {name!r}",
            hint=f"start the worker as root, or as {name} without --run-as",
        )
    if entry.pw_uid == 0:
        raise UsageError(
            f"{name!r} is root: --run-as is for an account with fewer rights", hint="e.g. --run-as nobody"
        )
    groups = tuple(os.getgrouplist(name, entry.pw_gid))
    shell = entry.pw_shell or "/bin/sh"
    return UnixUser(name, entry.pw_uid, entry.pw_gid, groups, entry.pw_dir or "/", shell)


def check_enters(user: UnixUser, directory: Path) -> None:
    """Raise `EnvironmentProblem` if the account cannot work in this directory."""
    done = subprocess.run(
        ["/bin/sh", "-c", 'cd -- "$1" && test -r .', "sh", str(directory)],
        user=user.uid,
        group=user.gid,
        extra_groups=user.groups,
        cwd="/",
        env={"PATH": PATH_DEFAULT},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=ENTER_S_MAX,
        check=False,
    )
    if done.returncode != 0:
        raise EnvironmentProblem(
            f"{user.name} cannot enter the working directory {directory}",
            hint=f"name one that {user.name} may use: --workdir, e.g. --workdir /tmp",
        )


def sealed_directory(parent: Path, user: UnixUser) -> Path:
    """A directory that this account owns and has no path to: the launcher holds it open, and tasks cannot
    put links into it that we would follow. Raises `EnvironmentProblem`."""
    seal = parent / "sealed"
    inner = seal / f"out-{user.name}"
    try:
        seal.mkdir(mode=0o700, parents=True, exist_ok=True)
        seal.chmod(0o700)
        inner.mkdir(mode=0o700, exist_ok=True)
        os.chown(inner, user.uid, user.gid, follow_symlinks=False)
    except OSError as problem:
        raise EnvironmentProblem(
            f"cannot prepare {inner} for {user.name}: {problem.strerror or problem}",
            hint="choose another directory with --dir",
        ) from None
    return inner


def task_environment(environment: Mapping[str, str], user: UnixUser | None) -> dict[str, str]:
    """What tasks inherit of ours: all but our own variables; of another account's, what is harmless."""
    if user is None:
        # the mark stays: should the worker run within a task, the outer launcher finds all by it
        return {
            key: value
            for key, value in environment.items()
            if key == MARK or not (key.startswith(OWN_PREFIX) or key in OWN_SECRETS)
        }
    kept = {
        key: value
        for key, value in environment.items()
        if key in KEPT_FOR_OTHERS or key == MARK or key.startswith("LC_")
    }
    return (
        {"PATH": PATH_DEFAULT}
        | kept
        | {
            "HOME": user.home,
            "USER": user.name,
            "LOGNAME": user.name,
            "SHELL": user.shell,
        }
    )
