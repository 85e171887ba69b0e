"""Tasks that run as another Unix user, and what tasks inherit of the worker: real processes and accounts."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from test_launcher_e2e import Bench, Ends, gone

from kestrel.errors import EnvironmentProblem, UsageError
from kestrel.worker.launcher import LauncherSettings, ProcessLauncher
from kestrel.worker.outputs import Outputs
from kestrel.worker.unix_user import UnixUser, check_enters, find_user, sealed_directory, task_environment

GUEST = "nobody"
SECRETS = {
    "KESTREL_INVITATION": "kestrel://sesame@pool.example.org/pool.example.org/manager.pool.example.org",
    "KESTREL_STORE": "postgresql://kestrel:sesame@db/kestrel",
    "PGPASSWORD": "sesame",
}


@pytest.fixture
def guest() -> UnixUser:
    """An account that only root can become; without root a loud skip, a failure where `CI` is set."""
    if os.geteuid() != 0:
        text = "only root can run tasks as another user: run the tests as root to see this tested"
        if os.environ.get("CI"):
            pytest.fail(text)
        pytest.skip(text)
    return find_user(GUEST)


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that everybody may enter; those of pytest are ours alone."""
    path = Path(tempfile.mkdtemp(prefix="kestrel-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def run(guest: UnixUser, place: Path, scripts: list[str], **fields: object) -> tuple[Bench, list[str]]:
    """Run shell scripts as the guest, one after the other; the bench and what each wrote."""
    home = place / "agent"
    home.mkdir(mode=0o700)
    (home / "access.json").write_text("sesame")
    out = sealed_directory(home, guest)
    work = place / "work"
    work.mkdir()
    os.chown(work, guest.uid, guest.gid)

    async def scenario() -> tuple[Bench, list[str]]:
        launcher = ProcessLauncher(
            LauncherSettings(slots=2, user=guest, output_directory=str(out), niceness=3)
        )
        ends = Ends()
        await launcher.open(ends)
        bench = Bench(work, launcher, ends)
        try:
            said = []
            for number, script in enumerate(scripts, 1):
                files = Outputs(str(out)).paths(7, number, number)
                process = bench.process(number, ["/bin/sh", "-c", script], **fields)
                process = type(process)(
                    process.attempt, process.argv, process.env, process.workdir, *files, tail_bytes=200
                )
                launcher.start([process])
                await ends.until(number)
                end = ends.ended[number]
                said.append(end.out + end.err + end.reason)
            return bench, said
        finally:
            await launcher.close()

    return asyncio.run(scenario())


@pytest.fixture
def grouped(guest: UnixUser) -> Iterator[None]:
    """This process has groups that no guest may keep."""
    before = os.getgroups()
    os.setgroups([0, 4])
    yield
    os.setgroups(before)


@pytest.mark.usefixtures("grouped")
def test_tasks_are_the_guest_in_every_respect(guest: UnixUser, open_directory: Path) -> None:
    _, said = run(
        guest,
        open_directory,
        [
            "id -u; id -g; id -G",
            "sed -n 's/^[UG]id:\\t//p' /proc/self/status",
            "umask; nice",
            'echo "$HOME $USER $LOGNAME $SHELL"',
            "touch mine && stat -c %U mine",
        ],
    )
    groups = " ".join(map(str, guest.groups))
    uid, gid = guest.uid, guest.gid
    assert said[0].split() == [str(uid), str(gid), *groups.split()]
    assert said[1].split() == [str(uid)] * 4 + [str(gid)] * 4, "real, effective, saved and of files"
    assert said[2].split() == ["0022", "3"]
    assert said[3] == f"{guest.home} {GUEST} {GUEST} {guest.shell}\n"
    assert said[4] == f"{GUEST}\n"


def test_the_guest_reaches_neither_credentials_nor_outputs_nor_the_launcher(
    guest: UnixUser, open_directory: Path
) -> None:
    home = open_directory / "agent"
    _, said = run(
        guest,
        open_directory,
        [
            f"cat {home}/access.json; ls {home}; ls {home}/sealed",
            f"ls {home}/sealed/out-{GUEST}",
            "cat /proc/$PPID/environ; ls /proc/$PPID/fd; ls -l /proc/$PPID/cwd",
            "ls /proc/self/fd",
            "id -u; su -c id root </dev/null; chmod 777 /etc/shadow",
        ],
    )
    for text in said[:3]:
        assert "sesame" not in text
        assert "ermission denied" in text or "annot" in text, text
    assert len(re.findall("ermission denied", said[0])) == 3
    assert said[3].split() == ["0", "1", "2", "3"], "3 is the directory that ls itself reads"
    assert said[4].startswith(f"{guest.uid}\n")
    assert "uid=0" not in said[4]


def test_output_of_the_guest_is_kept_where_only_the_agent_reads_it(
    guest: UnixUser, open_directory: Path
) -> None:
    _, said = run(guest, open_directory, ["seq 1000", "echo short", "printf wrong >&2; exit 3"])
    assert said[0].endswith("1000\n")
    assert (said[1], said[2]) == ("short\n", "wrong")
    out = open_directory / "agent" / "sealed" / f"out-{GUEST}"
    assert [str(p.relative_to(out)) for p in out.rglob("*.*")] == ["7/1.1.out"], "what the tail holds is gone"
    assert Outputs(str(out)).read(7, 1, 1, False, 0, 9).data == b"1\n2\n3\n4\n5"
    assert (open_directory / "agent" / "sealed").stat().st_mode & 0o777 == 0o700


def test_a_killed_launcher_leaves_nothing_of_the_guest(guest: UnixUser, open_directory: Path) -> None:
    out = sealed_directory(open_directory, guest)

    async def scenario() -> None:
        launcher = ProcessLauncher(LauncherSettings(user=guest, output_directory=str(out)))
        ends = Ends()
        await launcher.open(ends)
        bench = Bench(open_directory, launcher, ends)
        os.chown(open_directory, guest.uid, guest.gid)
        start = bench.process(1, ["/bin/sh", "-c", "setsid sleep 1000 & echo $! >pid; wait"])
        files = Outputs(str(out)).paths(1, 1, 1)
        launcher.start([type(start)(1, start.argv, {}, start.workdir, *files)])
        pid = await bench.pid_in("pid")
        os.kill(launcher.pid, 9)
        await ends.until(1)
        assert ends.lost == [1]
        await asyncio.to_thread(gone, pid)
        await launcher.close()

    asyncio.run(scenario())


def test_a_directory_that_the_guest_cannot_enter_is_refused_before_anything_starts(
    guest: UnixUser, open_directory: Path, tmp_path: Path
) -> None:
    check_enters(guest, open_directory)
    private = open_directory / "it's private"
    private.mkdir(mode=0o700)
    with pytest.raises(EnvironmentProblem, match="nobody cannot enter the working directory") as caught:
        check_enters(guest, private)
    assert "--workdir" in caught.value.hint
    with pytest.raises(EnvironmentProblem, match="cannot enter"):
        check_enters(guest, open_directory / "missing")


def test_who_cannot_be_become_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="no account 'nobody-at-all'"):
        find_user("nobody-at-all")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(EnvironmentProblem, match="only root can run tasks as 'nobody'"):
        find_user(GUEST)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(UsageError, match="'root' is root"):
        find_user("root")


# --- what tasks inherit -------------------------------------------------------------------------------


def test_tasks_inherit_our_environment_without_our_own_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (SECRETS | {"HARMLESS": "kept"}).items():
        monkeypatch.setenv(name, value)

    async def scenario() -> list[str]:
        launcher = ProcessLauncher(LauncherSettings())
        ends = Ends()
        with ExitStack() as stack:
            secret = stack.enter_context((tmp_path / "secret").open("w"))
            os.set_inheritable(secret.fileno(), False)
            await launcher.open(ends)
            bench = Bench(tmp_path, launcher, ends)
            said = [
                (await bench.run(["/bin/sh", "-c", script])).out
                for script in (
                    "cat /proc/self/environ | tr '\\0' '\\n'",
                    "cat /proc/$PPID/environ /proc/$PPID/cmdline | tr '\\0' '\\n'",
                    "ls /proc/self/fd",
                )
            ]
            await launcher.close()
        return said

    own, launchers, descriptors = asyncio.run(scenario())
    assert "HARMLESS=kept" in own.splitlines()
    for text in (own, launchers):
        assert "sesame" not in text
        assert not [line for line in text.splitlines() if line.split("=")[0] in SECRETS]
    assert descriptors.split() == ["0", "1", "2", "3"]


def test_another_account_inherits_only_what_is_harmless() -> None:
    user = UnixUser("guest", 1234, 1234, (1234,), "/srv/guest", "/bin/zsh")
    ours = SECRETS | {
        "PATH": "/opt/bin",
        "LC_ALL": "C.UTF-8",
        "AWS_SECRET_ACCESS_KEY": "sesame",
        "HOME": "/secret",
        "XDG_RUNTIME_DIR": "/run/user/0",
        "SSH_AUTH_SOCK": "/tmp/agent",
    }
    assert task_environment(ours, user) == {
        "PATH": "/opt/bin",
        "LC_ALL": "C.UTF-8",
        "HOME": "/srv/guest",
        "USER": "guest",
        "LOGNAME": "guest",
        "SHELL": "/bin/zsh",
    }


def test_the_mark_of_an_outer_launcher_stays_so_that_it_finds_all_that_it_started() -> None:
    assert task_environment({"KESTREL_LAUNCHER": "1-abc", "KESTREL_POOL": "x"}, None) == {
        "KESTREL_LAUNCHER": "1-abc"
    }
