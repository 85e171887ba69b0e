"""A link to a server that is not there says so, once for each outage."""

import asyncio
import logging

from kestrel.errors import EnvironmentProblem
from kestrel.xmpp.client import ClientSettings, XmppClient
from kestrel.xmpp.session import SessionSettings

PATIENCE_S = 20


class Silent:
    def on_connected(self, address):
        raise AssertionError("nobody is there")

    def on_disconnected(self, reason):
        pass

    def on_stanza(self, stanza):
        pass


def test_whoever_waits_is_told_once_that_it_keeps_trying(caplog, monkeypatch):
    tried = asyncio.Event()
    count = 0

    async def nobody(self):
        nonlocal count
        count += 1
        if count > 6:
            tried.set()
        raise EnvironmentProblem("No XMPP server can be reached.", retry=True)

    monkeypatch.setattr(XmppClient, "_log_in", nobody)

    async def story():
        bounds = SessionSettings(retry_s_min=0.001, retry_s_max=0.002)
        settings = ClientSettings("a@localhost", "pw", host="127.0.0.1", port=1, session=bounds)
        client = XmppClient(settings, Silent())
        running = asyncio.create_task(client.run())
        async with asyncio.timeout(PATIENCE_S):
            await tried.wait()
        await client.close()
        await running

    with caplog.at_level(logging.WARNING):
        asyncio.run(story())
    assert [record.getMessage() for record in caplog.records] == ["xmpp.keeps_trying"]
    assert "No XMPP server" in caplog.records[0].reason
