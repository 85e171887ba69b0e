"""Pools whose invitations say another way in: everybody comes that way, through the same port."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from parts.pool import Pool


@pytest.mark.parametrize(("via", "way"), [("wss", "websocket"), ("tls", "stream")])
def test_workers_and_users_come_in_the_way_that_the_invitation_says(tmp_path: Path, via: str, way: str):
    with Pool(tmp_path, "--port", "0", "--invite-via", via) as pool:
        assert pool.invitation.endswith(f"?via={via}")
        pool.worker("one")
        assert pool.run("submit", "--wait", "--", "true").returncode == 0
        opened = re.findall(r"server\.session_opened .*", pool.log_of(pool.up))
    assert len(opened) >= 2, "a worker and a user"
    for line in opened:
        assert f"way={way} encrypted=True" in line
