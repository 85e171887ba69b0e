"""Paths, secret files, invitations and access files: whole, private, and refused with words."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kestrel.config import (
    Invitation,
    PoolAccess,
    ServerPlace,
    Via,
    config_home,
    data_home,
    pool_access_path,
    private_directory,
    write_private,
)
from kestrel.errors import EnvironmentProblem, UsageError

INVITATION = Invitation("to/ken@+ %", "192.0.2.1", 5222, "example.org", "manager.example.org", "ab" * 32)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_homes_follow_the_environment_if_it_names_absolute_paths(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_DATA_HOME", "/somewhere/data")
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
    monkeypatch.setenv("HOME", "/somewhere/ann")
    assert data_home() == Path("/somewhere/data/kestrel")
    assert config_home() == Path("/somewhere/ann/.config/kestrel")


def test_a_secret_file_is_private_in_a_private_directory_whatever_the_umask(tmp_path: Path):
    path = tmp_path / "new" / "secret.json"
    before = os.umask(0)
    try:
        write_private(path, "geheim: ä")
        write_private(path, "again")
    finally:
        os.umask(before)
    assert (mode(path), mode(path.parent)) == (0o600, 0o700)
    assert path.read_text(encoding="utf-8") == "again"
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_cannot_be_written_is_named_and_the_old_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "secret"
    write_private(path, "old")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    for name in ("os.replace", "tempfile.mkstemp"):
        with monkeypatch.context() as patch:
            patch.setattr(name, full)
            with pytest.raises(EnvironmentProblem, match="No space left") as caught:
                write_private(path, "new")
        assert str(path) in caught.value.text
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_directory_that_is_a_file_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem, match="file"):
        private_directory(tmp_path / "file" / "below")


@pytest.mark.parametrize(
    "host", ["192.0.2.1", "pool.example.org", "::1", "2001:db8::1", "::ffff:192.0.2.1", "fe80::1%eth0"]
)
@pytest.mark.parametrize("fingerprint", ["", "0f" * 32])
def test_an_invitation_is_read_as_it_was_written(host: str, fingerprint: str):
    invitation = Invitation("a/b@c", host, 5222, "example.org", "manager.example.org", fingerprint)
    assert Invitation.parse(f"  {invitation}\n") == invitation


@given(token=st.text(min_size=1), domain=st.text(min_size=1), port=st.integers(1, 65535))
def test_any_token_and_domain_survive_an_invitation(token: str, domain: str, port: int):
    invitation = Invitation(token, "h", port, domain, f"manager.{domain}")
    line = str(invitation)
    assert len(line.splitlines()) == 1
    assert Invitation.parse(line) == invitation


@pytest.mark.parametrize("port", [0, 443])
@pytest.mark.parametrize(("via", "path"), [("", ""), ("tls", ""), ("wss", "/a b?c=d&e")])
@pytest.mark.parametrize("user", ["", "w:1@/ä"])
def test_an_invitation_may_name_an_account_and_another_way_in(user: str, via: Via, path: str, port: int):
    invitation = Invitation("pa:ss", "::1", port, "d", "m", "ab" * 32, user, via, path)
    assert Invitation.parse(f"kestrel worker --join {invitation}") == invitation


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", ServerPlace("", 7)),
        ("pool.example.org", ServerPlace("pool.example.org", 7)),
        ("pool.example.org:5333", ServerPlace("pool.example.org", 5333)),
        ("::1", ServerPlace("::1", 7)),
        ("[::1]:5333", ServerPlace("::1", 5333)),
        ("xmpp://h", ServerPlace("h", 7)),
        ("xmpps://h:443", ServerPlace("h", 443, "tls")),
        ("XMPPS://h/", ServerPlace("h", 7, "tls")),
        ("wss://h", ServerPlace("h", 7, "wss")),
        ("wss://h:8443/xmpp-websocket", ServerPlace("h", 8443, "wss")),
        ("ws://[::1]:80/ws?x=1", ServerPlace("::1", 80, "ws", "/ws?x=1")),
    ],
)
def test_the_address_of_a_server_is_read(text: str, place: ServerPlace):
    assert ServerPlace.parse(text, 7) == place


@pytest.mark.parametrize(
    "text", ["ftp://h", "h:99999", "xmpps://h/path", "h/path", "two words", "wss://", "a@h"]
)
def test_what_is_no_address_of_a_server_is_refused(text: str):
    with pytest.raises(UsageError, match=r"address of a server|path"):
        ServerPlace.parse(text)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "hello",
        "kestrel://token@host/example.org",
        "kestrel://token@host:5222/example.org/manager?via=pigeon",
        "kestrel://ann:token:more@host:5222/example.org/manager",
        "kestrel://token@host:0/example.org/manager",
        "kestrel://token@host:99999/example.org/manager",
        "kestrel://token@:5222/example.org/manager",
        "kestrel://token@host:5222/example.org/manager/short",
        "https://token@host:5222/example.org/manager",
        "kestrel://token@host:5222/example.org/manager and more/",
    ],
)
def test_what_is_no_invitation_is_refused_without_showing_its_token(line: str):
    with pytest.raises(UsageError, match="no invitation") as caught:
        Invitation.parse(line)
    assert "token" not in caught.value.text


def test_secrets_are_not_shown_by_what_holds_them():
    access = PoolAccess("manager.example.org", "ann@example.org", "geheim")
    assert "geheim" not in repr(access)
    assert "to/ken" not in repr(INVITATION)


def test_an_access_file_is_private_and_read_as_it_was_written(tmp_path: Path):
    path = tmp_path / "pools" / "default.json"
    access = PoolAccess("manager.example.org", "ann@example.org", "geheim", "::1", 5222, "ab" * 32, "x")
    access.save(path)
    assert mode(path) == 0o600
    assert PoolAccess.load(path) == access


def test_an_access_file_of_a_newer_version_is_read(tmp_path: Path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"manager": "m", "jid": "a@b", "password": "p", "colour": "red"}))
    assert PoolAccess.load(path).jid == "a@b"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b'{"manager": "m", "jid": "a@b"}',
        b'{"manager": "m", "jid": 5, "password": "p"}',
        b'{"manager": "m", "jid": "a@b", "password": "p", "port": "5222"}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_access_file_is_named(tmp_path: Path, content: bytes):
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(EnvironmentProblem, match=r"broken\.json"):
        PoolAccess.load(path)


def test_a_missing_access_file_says_how_to_get_a_pool(tmp_path: Path):
    with pytest.raises(UsageError, match="does not exist") as caught:
        PoolAccess.load(tmp_path / "none.json")
    assert (caught.value.code, "kestrel up" in caught.value.hint) == ("no_pool", True)


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", ".hidden", "x" * 65, "a\n"])
def test_a_pool_has_a_name_that_is_good_for_a_file(name: str):
    with pytest.raises(UsageError, match="no name"):
        pool_access_path(name)
