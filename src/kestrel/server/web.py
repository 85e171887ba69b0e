"""What the one port answers to HTTP: a WebSocket that carries XMPP, or in words why there is none.

Pure: the head of a request in, bytes out. Nothing but GET is ever read, nothing is served but two
sentences, and no connection is used twice. Called by the doorman, on the first request: it brings wsproto.

Any page in a browser may ask for a WebSocket here, whatever its `Origin` says, and it is let in as far as
everybody is: up to the login. No cookie counts here, so a page has no power that it did not bring along; what
lets somebody in is a password, or an invitation, that was typed into that page.
"""

from __future__ import annotations

from http import HTTPStatus

from kestrel.config import WEBSOCKET_PATH
from kestrel.xmpp.websocket import SUBPROTOCOL, Answer, ServerHandshake

HEADERS_MAX = 64


def answer_to(head: bytes, *, domain: str, may_enter: bool) -> Answer:
    """The answer to a request, of which `head` is all up to and with the empty line.

    `may_enter` is False if who asks should have come by TLS.
    """
    request, *lines = head.decode("latin-1").split("\r\n")
    path = request.split(" ")[1].partition("?")[0] if request.count(" ") == 2 else ""
    headers = {
        name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }
    if not path:
        return refusal(HTTPStatus.BAD_REQUEST, "This is no HTTP request.")
    if len(lines) > HEADERS_MAX:
        return too_long()
    upgrades = headers.get("upgrade", "").lower() == "websocket"
    if path == "/" and not upgrades:
        text = f"This is the XMPP server of {domain}. It is not for browsers: workers and users of a Kestrel "
        text += f"pool come here, with XMPP, with XMPP in TLS, or with a WebSocket at {WEBSOCKET_PATH}."
        return refusal(HTTPStatus.OK, text)
    if path != WEBSOCKET_PATH:
        return refusal(HTTPStatus.NOT_FOUND, f"There is nothing here; the WebSocket is at {WEBSOCKET_PATH}.")
    if not upgrades:
        return refusal(
            HTTPStatus.UPGRADE_REQUIRED,
            f"Here is a WebSocket that carries XMPP for {domain} (RFC 7395).",
            "Upgrade: websocket\r\n",
        )
    if not may_enter:
        return refusal(HTTPStatus.FORBIDDEN, "Passwords are taken only encrypted: use wss:// on this port.")
    protocols = [each.strip() for each in headers.get("sec-websocket-protocol", "").split(",")]
    if SUBPROTOCOL not in protocols:
        return refusal(
            HTTPStatus.BAD_REQUEST,
            f"This WebSocket speaks {SUBPROTOCOL!r}: name it in Sec-WebSocket-Protocol.",
        )
    if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
        return refusal(HTTPStatus.BAD_REQUEST, "A request for a WebSocket has no body.")
    answer = ServerHandshake(frozenset((WEBSOCKET_PATH,))).feed(head)
    return answer or refusal(HTTPStatus.BAD_REQUEST, "This request is not complete.")


def too_long() -> Answer:
    """To a head that is larger than anybody needs."""
    return refusal(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "This request is too long.")


def too_late() -> Answer:
    """To a head that did not become whole in time."""
    return refusal(HTTPStatus.REQUEST_TIMEOUT, "This request took too long.")


def refusal(status: HTTPStatus, text: str, headers: str = "") -> Answer:
    """A text; the connection is to be closed behind it."""
    body = f"{text}\n".encode()
    head = (
        f"HTTP/1.1 {status} {status.phrase}\r\n"
        f"Content-Type: text/plain; charset=utf-8\r\nContent-Length: {len(body)}\r\n{headers}"
        "X-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
    )
    return Answer(head.encode() + body, None)
