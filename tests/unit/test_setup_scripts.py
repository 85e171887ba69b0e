"""The scripts behind `make`: what they say and do on machines that lack something.

Each test runs them in a copy of the tree's scripts, with programs of its own first on the PATH, so that
nothing of this machine is changed.
"""

import os
import shutil
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import requirements

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")


class Machine:
    """A tree with the scripts, and a folder of programs that stand before the real ones."""

    def __init__(self, place: Path) -> None:
        self.tree = place / "tree"
        self.programs = place / "bin"
        self.policy = place / "policy-rc.d"
        self.clusters = place / "postgresql-common" / "createcluster.d"
        self.programs.mkdir()
        shutil.copytree(ROOT / "tools", self.tree / "tools")
        shutil.copy(ROOT / "pyproject.toml", self.tree)

    def program(self, name: str, *lines: str) -> Path:
        path = self.programs / name
        path.write_text("\n".join(["#!/bin/sh", *lines]) + "\n", encoding="utf-8")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    def user(self, number: int) -> None:
        self.program("id", f"echo {number}")

    def run(self, script: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        clean = {k: v for k, v in os.environ.items() if k not in ("CI", "PYTHON")}
        clean |= {
            "PATH": f"{self.programs}:{os.environ['PATH']}",
            "KESTREL_POLICY_FILE": str(self.policy),
            "KESTREL_CLUSTERS_DIRECTORY": str(self.clusters),
        }
        return subprocess.run(
            ["sh", str(self.tree / "tools" / script), *words],
            env=clean | environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def wants(self, *packages: str) -> None:
        """The list of Debian packages; each is missing if its program has no file in `bin`."""
        text = "# name program reason\n\n" + "".join(f"{p} {p}-program a reason\n" for p in packages)
        (self.tree / "tools" / "debian-packages.txt").write_text(text, encoding="utf-8")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_python_that_does_not_do_is_named_with_the_cure(machine: Machine) -> None:
    machine.user(1000)
    done = machine.run("setup.sh", "dev", PYTHON="/nonexistent/python")
    assert done.returncode == 1
    assert "no Python >= 3.11" in done.stderr
    assert "PYTHON=/nonexistent/python" in done.stderr
    assert "apt-get install python3 python3-venv" in done.stderr
    assert not (machine.tree / ".venv").exists()


def test_a_python_that_is_too_old_is_refused(machine: Machine) -> None:
    machine.user(1000)
    old = machine.program("python3.11", "exit 1  # what the version check of an old Python gives")
    done = machine.run("setup.sh", "base", PYTHON=str(old))
    assert done.returncode == 1
    assert "no Python >= 3.11" in done.stderr


def test_a_python_without_ensurepip_is_named_with_the_package(machine: Machine) -> None:
    machine.user(1000)
    bare = machine.program(
        "bare-python", f'case "$2" in "import ensurepip") exit 1;; esac; exec "{sys.executable}" "$@"'
    )
    done = machine.run("setup.sh", "dev", PYTHON=str(bare))
    assert done.returncode == 1
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    assert f"apt-get install {version}-venv" in done.stderr
    assert not (machine.tree / ".venv").exists()


def test_setup_asks_what_for(machine: Machine) -> None:
    done = machine.run("setup.sh")
    assert done.returncode == 2
    assert "base|dev" in done.stderr


def test_nothing_is_said_when_all_packages_are_there(machine: Machine) -> None:
    machine.wants("alpha")
    machine.program("alpha-program")
    done = machine.run("debian-packages.sh", "tests", CI="true")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_without_root_missing_packages_are_named_and_only_ci_fails(machine: Machine) -> None:
    machine.wants("alpha", "beta")
    machine.program("alpha-program")
    machine.user(1000)
    machine.program("apt-get", 'echo "must not be called" >&2; exit 99')
    done = machine.run("debian-packages.sh", "tests")
    assert done.returncode == 0
    assert "apt-get install beta" in done.stderr
    assert "alpha" not in done.stderr
    assert "skipped" in done.stderr
    assert machine.run("debian-packages.sh", "tests", CI="true").returncode == 1


def test_root_installs_what_is_missing_and_no_service_may_start_meanwhile(machine: Machine) -> None:
    machine.wants("alpha", "beta")
    machine.user(0)
    log = machine.tree / "log"
    machine.program(
        "apt-get", f'echo "$* $DEBIAN_FRONTEND" >> {log}', f"sh {machine.policy}", f"echo $? >> {log}"
    )
    machine.program("dpkg", 'test "$1 $2" = "-L alpha" && echo /etc/init.d/alphad', "exit 0")
    machine.program("update-rc.d", f'echo "update-rc.d $*" >> {log}')
    done = machine.run("debian-packages.sh", "tests", CI="true")
    assert done.returncode == 0, done.stderr
    assert log.read_text().splitlines() == [
        "install -y -q --no-install-recommends alpha beta noninteractive",
        "101",
        "update-rc.d alphad disable",
    ]
    assert not machine.policy.exists(), "what was changed is put back"


def test_a_program_may_be_a_path_with_wildcards_or_one_of_several(machine: Machine) -> None:
    place = machine.programs / "lib" / "15" / "bin"
    place.mkdir(parents=True)
    (machine.tree / "tools" / "debian-packages.txt").write_text(
        f"database serve|{machine.programs}/lib/*/bin/serve a reason\n", encoding="utf-8"
    )
    machine.user(1000)
    assert "apt-get install database" in machine.run("debian-packages.sh", "tests").stderr
    machine.program("lib/15/bin/serve")
    assert machine.run("debian-packages.sh", "tests", CI="true").stderr == ""
    (place / "serve").unlink()
    machine.program("serve")
    assert machine.run("debian-packages.sh", "tests", CI="true").stderr == ""


@pytest.mark.parametrize("before", [False, True])
def test_no_database_cluster_is_made_and_what_was_set_for_that_is_put_back(
    machine: Machine, before: bool
) -> None:
    machine.wants("postgresql")
    machine.user(0)
    log = machine.tree / "log"
    conf = machine.clusters / "kestrel.conf"
    machine.program("apt-get", f"cat {conf} >> {log}")
    for name in ("dpkg", "update-rc.d"):
        machine.program(name)
    if before:
        machine.clusters.mkdir(parents=True)
        (machine.clusters / "own.conf").write_text("ssl = off\n", encoding="utf-8")
    assert machine.run("debian-packages.sh", "tests", CI="true").returncode == 0
    assert log.read_text() == "create_main_cluster = false\n"
    assert machine.clusters.exists() == before
    assert not conf.exists()


def test_a_policy_that_was_there_before_stays(machine: Machine) -> None:
    machine.wants("alpha")
    machine.user(0)
    machine.policy.write_text("#!/bin/sh\nexit 42\n", encoding="utf-8")
    for name in ("apt-get", "dpkg", "update-rc.d"):
        machine.program(name)
    assert machine.run("debian-packages.sh", "tests").returncode == 0
    assert machine.policy.read_text(encoding="utf-8") == "#!/bin/sh\nexit 42\n"


def test_an_installation_that_fails_is_fatal_only_in_ci_and_leaves_nothing_behind(machine: Machine) -> None:
    machine.wants("alpha")
    machine.user(0)
    machine.program("apt-get", 'echo "E: no such package" >&2; exit 100')
    done = machine.run("debian-packages.sh", "tests", CI="true")
    assert done.returncode == 1
    assert "no such package" in done.stderr
    assert not machine.policy.exists()
    assert machine.run("debian-packages.sh", "tests").returncode == 0


def test_requirements_are_those_of_pyproject(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    monkeypatch.setattr(sys, "argv", ["requirements.py", "dev"])
    requirements.main()
    assert capsys.readouterr().out.splitlines() == project["dependency-groups"]["dev"]
    monkeypatch.setattr(sys, "argv", ["requirements.py", "base"])
    requirements.main()
    assert capsys.readouterr().out == ""


def test_groups_that_include_groups_are_followed() -> None:
    project = {"dependency-groups": {"a": ["x", {"include-group": "b"}], "b": ["y>=1"]}}
    assert requirements.group(project, "a") == ["x", "y>=1"]
