"""Which proxy the environment names for whom, and what each answer of a proxy means."""

import asyncio

import pytest

from kestrel.xmpp.proxy import ANSWER_BYTES_MAX, Proxy, ProxyProblem, open_tunnel, proxy_for

WEB = "http://proxy.x.org:8080"
PROXY = Proxy("proxy.x.org", 8080)


@pytest.mark.parametrize(
    ("environ", "proxy"),
    [
        ({}, None),
        ({"HTTPS_PROXY": WEB}, PROXY),
        ({"ALL_PROXY": WEB}, PROXY),
        ({"HTTPS_PROXY": "", "ALL_PROXY": WEB}, PROXY),
        ({"HTTP_PROXY": WEB, "http_proxy": WEB}, None),
        ({"https_proxy": WEB, "HTTPS_PROXY": "http://other"}, PROXY),
        ({"HTTPS_PROXY": WEB, "ALL_PROXY": "http://other"}, PROXY),
        ({"HTTPS_PROXY": "proxy.x.org:8080"}, PROXY),
        ({"HTTPS_PROXY": "http://proxy.x.org"}, Proxy("proxy.x.org", 80)),
        ({"HTTPS_PROXY": "https://proxy.x.org/"}, Proxy("proxy.x.org", 443, tls=True)),
        ({"HTTPS_PROXY": "http://a%40b:p%3Aw@[::1]:3128"}, Proxy("::1", 3128, login="a@b:p:w")),
    ],
)
def test_the_environment_names_the_proxy_and_small_letters_win(environ, proxy):
    assert proxy_for("x.org", 443, environ) == proxy


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "kestrel.localhost"])
def test_loopback_is_never_reached_by_a_proxy(host):
    assert proxy_for(host, 443, {"HTTPS_PROXY": WEB}) is None


@pytest.mark.parametrize(
    ("exceptions", "host", "direct"),
    [
        ("*", "x.org", True),
        ("x.org", "x.org", True),
        ("x.org", "a.x.org", True),
        (".x.org", "a.x.org.", True),
        ("*.x.org", "a.x.org", True),
        ("a.org, X.ORG", "x.org", True),
        ("a.org b.org", "x.org", False),
        ("x.org", "ax.org", False),
        ("x.org:443", "x.org", True),
        ("x.org:5222", "x.org", False),
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("2.3", "10.1.2.3", False),
        ("fe80::1", "fe80::1", True),
        ("", "x.org", False),
    ],
)
def test_exceptions_are_reached_without(exceptions, host, direct):
    assert (proxy_for(host, 443, {"ALL_PROXY": WEB, "NO_PROXY": exceptions}) is None) is direct
    assert (
        proxy_for(host, 443, {"ALL_PROXY": WEB, "no_proxy": exceptions, "NO_PROXY": "x.org"}) is None
    ) is direct


@pytest.mark.parametrize(
    "text", ["socks5://u:hunter2@h:1080", "http://", "http://u:hunter2/x@h:80", "http://u:hunter2@h:99999"]
)
def test_a_proxy_that_cannot_be_used_is_told_without_its_password(text, caplog):
    assert proxy_for("x.org", 443, {"HTTPS_PROXY": text}) is None
    told = [r for r in caplog.records if r.message == "xmpp.proxy_ignored"]
    assert all("hunter" not in str(vars(r)) for r in caplog.records)
    assert len(told) <= 1, "once for each reason is enough"


def test_the_login_is_not_shown():
    proxy = proxy_for("x.org", 443, {"HTTPS_PROXY": "http://user:hunter2@h:80"})
    assert "hunter2" not in f"{proxy} {proxy!r}"


# --------------------------------------------------------------------------------------------------
# the tunnel, through a proxy that says what the test wants said


def tunnel(answer, *, login="", host="x.org"):
    """What the proxy was asked, and what came of it: "through" or the problem."""
    asked = []

    async def serve(reader, writer):
        asked.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(answer)
        if answer.endswith(b"\r\n\r\n"):
            await reader.read()
        writer.close()

    async def main():
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        before = asyncio.all_tasks()
        try:
            transport = await open_tunnel(Proxy("127.0.0.1", port, login=login), host, 5222)
            transport.abort()
            return "through"
        except ProxyProblem as problem:
            return problem
        finally:
            server.close()
            await asyncio.sleep(0)
            if serving := asyncio.all_tasks() - before:
                await asyncio.wait(serving)

    return asyncio.run(main()), asked


def test_the_proxy_is_asked_for_host_and_port_with_the_login():
    outcome, (asked,) = tunnel(b"HTTP/1.0 200 Fine\r\nX: y\r\n\r\n", login="user:p:w")
    assert outcome == "through"
    assert asked == (
        "CONNECT x.org:5222 HTTP/1.1\r\nHost: x.org:5222\r\nProxy-Authorization: Basic dXNlcjpwOnc=\r\n\r\n"
    )
    outcome, (asked,) = tunnel(b"HTTP/1.1 200\r\n\r\n", host="fe80::1")
    assert outcome == "through"
    assert asked == "CONNECT [fe80::1]:5222 HTTP/1.1\r\nHost: [fe80::1]:5222\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 407 Who are you\r\n\r\n", "wants a login"),
        (b"HTTP/1.1 403 Filtered\r\nContent-Length: 3\r\n\r\nno!", "does not let us through (403 Filtered)"),
        (b"HTTP/1.1 502 Bad\r\n\r\n", "no tunnel (502 Bad)"),
        (b"HTTP/1.1 302 Go\r\nLocation: http://evil/\r\n\r\n", "no tunnel (302 Go)"),
        (b"SSH-2.0-rubbish\r\n\r\n", "does not answer as an HTTP proxy"),
        (b"\x00\xff\r\n\r\n", "does not answer as an HTTP proxy"),
        (b"HTTP/1.1 200 OK\r\n\r\nand more", "more than its answer"),
        (b"HTTP/1.1 200 OK\r\n", "without an answer"),
        (b"", "without an answer"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 2 * ANSWER_BYTES_MAX, "longer than"),
    ],
)
def test_every_other_answer_is_told_in_words(answer, words):
    problem, _ = tunnel(answer)
    assert words in problem.text
    assert problem.retry


def test_a_refused_login_is_told_without_the_password():
    problem, _ = tunnel(b"HTTP/1.1 407 No\r\n\r\n", login="user:hunter2")
    assert "does not accept the login" in problem.text
    assert "hunter2" not in str(problem)


def test_a_host_that_could_be_read_as_a_header_is_not_sent():
    problem, asked = tunnel(b"", host="x.org\r\nX: y")
    assert "no name" in problem.text
    assert asked == []
