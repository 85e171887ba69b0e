"""Registration by invitation against a scripted server: what is sent, and what each answer means."""

import asyncio
from xml.etree.ElementTree import tostring

import pytest

from kestrel.errors import AuthenticationError, EnvironmentProblem, PeerError, UsageError
from kestrel.xmpp import stanza as x
from kestrel.xmpp.dial import TlsMode
from kestrel.xmpp.register import NAMES_TRIED_MAX, register
from kestrel.xmpp.stream import Stanza, StreamReader

PATIENCE_S = 20


def joined(answers, **wanted):
    """Register against a server that answers in turn; returns (outcome, queries it was sent)."""
    queries = []

    async def serve(reader, writer):
        stream = StreamReader()
        answers_left = list(answers)
        while data := await reader.read(65536):
            for event in stream.feed(data):
                if not isinstance(event, Stanza):
                    if not queries:
                        writer.write(x.stream_header(from_="localhost", id="1") + b"<stream:features/>")
                    continue
                queries.append(event.tree()[0])
                condition = answers_left.pop(0)
                if condition:
                    writer.write(x.error_reply("iq", event.attrs, condition, text="no"))
                else:
                    writer.write(x.iq_result(event.attrs))
        writer.close()

    async def main():
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await register("127.0.0.1", port, "localhost", "tok<en", **wanted)
        finally:
            server.close()
            await asyncio.sleep(0)
            serving = asyncio.all_tasks() - {asyncio.current_task()}
            if serving:
                await asyncio.wait(serving, timeout=PATIENCE_S)

    try:
        return asyncio.run(main()), queries
    except (AuthenticationError, UsageError, PeerError, EnvironmentProblem) as problem:
        return problem, queries


def test_the_chosen_name_password_and_token_are_sent():
    outcome, (query,) = joined([""], username="Worker1", password="p&w")
    assert outcome == ("worker1@localhost", "p&w")
    assert query.tag == f"{{{x.NS_REGISTER}}}query", tostring(query)
    assert query.findtext(f"{{{x.NS_REGISTER}}}username") == "Worker1"
    assert query.findtext(f"{{{x.NS_REGISTER}}}password") == "p&w"
    assert query.findtext(f"{{{x.NS_INVITATION}}}token") == "tok<en"


def test_without_a_name_another_is_tried_when_one_is_taken():
    (jid, password), queries = joined(["conflict", ""])
    names = [query.findtext(f"{{{x.NS_REGISTER}}}username") for query in queries]
    assert len(set(names)) == 2
    assert jid == f"{names[1]}@localhost"
    assert len(password) >= 24


@pytest.mark.parametrize(
    ("answers", "wanted", "kind", "code"),
    [
        (["not-authorized"], {}, AuthenticationError, "bad_invitation"),
        (["conflict"], {"username": "a"}, UsageError, "usage"),
        (["conflict"] * NAMES_TRIED_MAX, {}, UsageError, "usage"),
        (["resource-constraint"], {}, PeerError, "peer"),
        ([], {"tls": TlsMode.REQUIRED}, EnvironmentProblem, "no_tls"),
    ],
)
def test_each_refusal_is_told_with_a_cure(answers, wanted, kind, code):
    problem, queries = joined(answers, **wanted)
    assert type(problem) is kind
    assert problem.code == code
    assert problem.hint
    assert len(queries) == len(answers)
