"""A place is read as people write it: a path, a database, or a mistake that is explained."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kestrel.errors import UsageError
from kestrel.store import SqliteStore
from kestrel.store.places import is_database, make_store, open_archive, without_password
from parts.disk import SmallDisk, small_disk

__all__ = ["small_disk"]


def nobody(call: object) -> None:
    raise AssertionError("nothing was committed")


def test_a_path_is_a_file(tmp_path: Path) -> None:
    for place in (tmp_path / "store.db", str(tmp_path / "store.db")):
        store = make_store(place, nobody, pool="blue")
        assert isinstance(store, SqliteStore)
        assert store.path == tmp_path / "store.db"


@pytest.mark.parametrize("place", ["mysql://host/x", "http://host", "sqlite:///x.db", "", "Postgresql+x://h"])
def test_what_is_no_place_is_a_mistake_with_a_hint(place: str) -> None:
    for use in (lambda: make_store(place, nobody), lambda: open_archive(place)):
        with pytest.raises(UsageError) as caught:
            use()
        assert caught.value.hint


@pytest.mark.parametrize(
    ("place", "shown"),
    [
        ("/var/lib/store.db", "/var/lib/store.db"),
        ("a:b@c/store.db", "a:b@c/store.db"),
        ("postgresql://host/jobs", "postgresql://host/jobs"),
        ("postgresql://ann:s3cret@host/jobs", "postgresql://ann@host/jobs"),
        ("postgres://ann:s3:cr@et@host:5433/jobs", "postgres://ann@host:5433/jobs"),
        ("postgresql://ann@host/jobs?password=s3cret&sslmode=require", "postgresql://ann@host/jobs?password=…&sslmode=require"),
        ("postgresql:///jobs?sslmode=require&password=s3cret", "postgresql:///jobs?sslmode=require&password=…"),
    ],
)  # fmt: skip
def test_a_password_is_left_out_of_what_is_shown(place: str, shown: str) -> None:
    assert without_password(place) == shown
    assert "s3" not in without_password(place)


def test_databases_are_told_from_files() -> None:
    assert is_database("postgresql://host/jobs")
    assert is_database("postgres://host/jobs")
    assert not is_database(Path("postgresql"))
    assert not is_database("store.db")


def test_without_psycopg_the_command_that_installs_it_is_told_and_files_work_all_the_same() -> None:
    script = (
        "import sys\n"
        "sys.modules['psycopg'] = None\n"
        "from kestrel.errors import UsageError\n"
        "from kestrel.store.places import make_store, open_archive\n"
        "for use in (lambda: make_store('postgresql://h/d', print), lambda: open_archive('postgresql://h/d')):\n"
        "    try: use()\n"
        "    except UsageError as problem: print(problem)\n"
        "make_store('store.db', print)\n"
        "print('a file works')\n"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert said.count("pip install 'kestrel-mtc[postgres]'") == 2
    assert said.endswith("a file works\n")


def test_a_file_does_not_load_the_driver_of_a_database() -> None:
    script = (
        "import sys\n"
        "from kestrel.store.places import make_store\n"
        "make_store('store.db', print)\n"
        "print(sorted(m for m in sys.modules if 'psycopg' in m or 'postgres' in m))\n"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert said == "[]\n"


def test_scratch_of_a_run_keeps_no_room_for_others(small_disk: SmallDisk) -> None:
    """Somebody whose disk is nearly full may want to run gzip."""
    small_disk.fill(leave_bytes=2**20)
    for durable, short in ((True, True), (False, False)):
        store = make_store(small_disk.path / f"{durable}.db", nobody, durable=durable)
        store.open(lambda record: None)
        assert (store.shortage() is not None) == short
        store.close()
