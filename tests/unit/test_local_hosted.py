"""A hosted server keeps what others know of it, for its owner alone, and leaves nothing when it fails."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from pathlib import Path

import pytest

from kestrel.config import Invitation, PoolAccess, Via
from kestrel.errors import EnvironmentProblem
from kestrel.local.hosted import HostedServer, HostedServerSettings


def life(directory: Path, **settings: object) -> tuple[str, str, PoolAccess]:
    """Start, save the administrator's access, stop: secret, fingerprint, access."""

    async def main() -> tuple[str, str, PoolAccess]:
        hosted = HostedServer(HostedServerSettings(directory / "pool", **settings))  # type: ignore[arg-type]
        await hosted.start()
        try:
            return hosted.secret, hosted.fingerprint, hosted.save_admin(directory / "access.json")
        finally:
            await hosted.stop()
            await hosted.stop()

    return asyncio.run(main())


def test_secret_certificate_and_the_administrators_password_are_the_same_in_every_life(tmp_path: Path):
    secret, fingerprint, access = life(tmp_path)
    again = life(tmp_path)
    assert again[:2] == (secret, fingerprint)
    assert again[2].password == access.password
    assert PoolAccess.load(tmp_path / "access.json") == again[2]
    assert stat.S_IMODE((tmp_path / "pool" / "component.secret").stat().st_mode) == 0o600


@pytest.mark.parametrize("spoil", ["damaged", "other password", "other domain", "empty password"])
def test_an_access_that_is_not_good_for_this_server_is_made_anew(tmp_path: Path, spoil: str):
    _, _, access = life(tmp_path)
    path = tmp_path / "access.json"
    match spoil:
        case "damaged":
            path.write_text("{")
        case "other password":
            path.write_text(path.read_text().replace(access.password, "guessed"))
        case "empty password":
            path.write_text(path.read_text().replace(access.password, ""))
        case _:
            path.write_text(path.read_text().replace("admin@kestrel.localhost", "admin@elsewhere"))
    _, _, renewed = life(tmp_path)
    assert renewed.password not in ("", "guessed", access.password)
    assert renewed.jid == "admin@kestrel.localhost"
    assert life(tmp_path)[2].password == renewed.password


def test_a_secret_that_others_could_read_is_closed_to_them(tmp_path: Path):
    secret, _, _ = life(tmp_path)
    path = tmp_path / "pool" / "component.secret"
    path.chmod(0o644)
    assert life(tmp_path)[0] == secret
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", None])
def test_a_secret_that_is_none_is_refused_with_what_to_do(tmp_path: Path, content: bytes | None):
    life(tmp_path)
    path = tmp_path / "pool" / "component.secret"
    if content is None:
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(EnvironmentProblem) as caught:
        life(tmp_path)
    assert str(path) in caught.value.text
    assert "remove" in caught.value.hint


def test_a_second_server_in_the_directory_is_refused_while_the_first_lives(tmp_path: Path):
    async def main() -> None:
        first = HostedServer(HostedServerSettings(tmp_path))
        await first.start()
        try:
            with pytest.raises(EnvironmentProblem) as caught:
                await HostedServer(HostedServerSettings(tmp_path)).start()
            assert caught.value.code == "in_use"
            assert str(os.getpid()) in caught.value.text
        finally:
            await first.stop()
        await first.start()  # and after it, the directory is free
        await first.stop()

    asyncio.run(main())


@pytest.mark.parametrize("option", ["port", "component_port"])
def test_a_start_that_fails_leaves_the_directory_free(tmp_path: Path, option: str):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(EnvironmentProblem) as caught:
            life(tmp_path, **{option: taken.getsockname()[1]})
        assert caught.value.code == "port_taken"
        assert f"--{option.replace('_', '-')}" in caught.value.hint
    life(tmp_path)


@pytest.mark.parametrize("via", ["", "tls", "wss"])
def test_invitations_and_the_administrators_access_say_which_way_to_come_in(tmp_path: Path, via: Via):
    async def main() -> tuple[Invitation, PoolAccess, int]:
        hosted = HostedServer(HostedServerSettings(tmp_path / "pool", via=via))
        await hosted.start()
        try:
            invitation = hosted.invite("worker", uses=1, expires_s=60)
            return invitation, hosted.save_admin(tmp_path / "access.json"), hosted.server.c2s_port
        finally:
            await hosted.stop()

    invitation, access, port = asyncio.run(main())
    assert (invitation.via, invitation.port, access.via) == (via, port, via)
    assert Invitation.parse(str(invitation)) == invitation
