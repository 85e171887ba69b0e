"""Joining by accounts and invitations of a real Prosody: lines of `kestrel invite --jid` and `--from`."""

import asyncio
import os
import stat
import subprocess
import sys

import pytest

from kestrel.cli.joining import account_of, read_invitation
from kestrel.client import Client
from kestrel.client.connect import connected
from kestrel.config import PoolAccess
from kestrel.errors import AuthenticationError, UsageError
from parts.need import need
from parts.servers import Prosody

DOMAIN = "joining.localhost"
MANAGER = f"kestrel.{DOMAIN}"


@pytest.fixture(scope="module")
def prosody():
    accounts = {"shared": "secret/of+all"}
    with Prosody(program=need("prosody"), domain=DOMAIN, accounts=accounts, invites=True) as running:
        yield running


def line(prosody, *words):
    where = ["--host", f"xmpps://{prosody.host}:{prosody.tls_port}", "--fingerprint", prosody.fingerprint]
    command = [sys.executable, "-m", "kestrel", "invite", "--manager", MANAGER, *where, *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


async def logs_in(*accesses):
    """All of them at the same time."""
    clients = [Client(MANAGER) for _ in accesses]
    async with asyncio.TaskGroup() as group:
        together = asyncio.Barrier(len(accesses))

        async def one(client, access):
            async with connected(client, access):
                await together.wait()

        for client, access in zip(clients, accesses, strict=True):
            group.create_task(one(client, access))


def test_many_workers_share_an_account_by_one_line(prosody, tmp_path):
    (tmp_path / "pw").write_text("secret/of+all\n")
    words = ("--jid", f"shared@{DOMAIN}", "--password-file", str(tmp_path / "pw"))
    invited = read_invitation(line(prosody, *words))
    assert invited.via == "tls"

    async def scene():
        paths = [tmp_path / name / "access.json" for name in ("one", "two")]
        made = [
            await account_of(invited, path, "node", purpose="worker", resource="worker") for path in paths
        ]
        assert len({access.resource for access in made}) == 2
        again = [
            await account_of(invited, path, "node", purpose="worker", resource="worker") for path in paths
        ]
        assert again == made
        assert {stat.S_IMODE(path.stat().st_mode) for path in paths} == {0o600}
        await logs_in(*made)

    asyncio.run(scene())


def test_an_invitation_of_prosody_makes_an_account_that_is_kept(prosody, tmp_path):
    as_server = []
    if os.geteuid() == 0:
        as_server = ["setpriv", f"--reuid={prosody.user}", f"--regid={prosody.group}", "--clear-groups"]
    ctl = [need("prosodyctl"), "--config", str(prosody.config), "mod_invites", "generate", DOMAIN]
    made = subprocess.run([*as_server, *ctl], capture_output=True, text=True, check=True)
    (tmp_path / "line").write_text(line(prosody, "--from", made.stdout.strip().splitlines()[-1]))
    invited = read_invitation(f"@{tmp_path / 'line'}")
    path = tmp_path / "pools" / "default.json"

    async def scene():
        access = await account_of(invited, path, "Ann Other", purpose="user")
        assert access.jid == f"ann-other@{DOMAIN}"
        assert PoolAccess.load(path) == access
        await logs_in(access)
        assert await account_of(invited, path, "Ann Other", purpose="user") == access
        with pytest.raises(AuthenticationError) as caught:
            await account_of(invited, tmp_path / "other.json", "eve", purpose="user")
        assert caught.value.code == "bad_invitation"
        assert "ask for a new one" in caught.value.hint
        assert not (tmp_path / "other.json").exists()

    asyncio.run(scene())


@pytest.mark.parametrize("text", ["@missing", "", "kestrel worker --join"])
def test_a_line_that_cannot_be_read_is_named_without_its_secret(text):
    with pytest.raises(UsageError) as caught:
        read_invitation(text)
    assert caught.value.hint
