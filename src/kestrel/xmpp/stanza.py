"""Renders everything that Kestrel puts on an XMPP stream, as bytes ready for the socket.

Pure: text in, bytes out. It must never emit a character that XML 1.0 forbids (the other end would
close the stream over it), nor an unescaped value. Called by the client, the component, the link and
the embedded server; what was received is read by `kestrel.xmpp.stream`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from xml.etree.ElementTree import Element

NS_CLIENT = "jabber:client"
NS_COMPONENT = "jabber:component:accept"
NS_STREAM = "http://etherx.jabber.org/streams"
NS_STREAM_ERRORS = "urn:ietf:params:xml:ns:xmpp-streams"
NS_STANZA_ERRORS = "urn:ietf:params:xml:ns:xmpp-stanzas"
NS_TLS = "urn:ietf:params:xml:ns:xmpp-tls"
NS_SASL = "urn:ietf:params:xml:ns:xmpp-sasl"
NS_BIND = "urn:ietf:params:xml:ns:xmpp-bind"
NS_SESSION = "urn:ietf:params:xml:ns:xmpp-session"
NS_ACKS = "urn:xmpp:sm:3"
NS_PING = "urn:xmpp:ping"
NS_VERSION = "jabber:iq:version"
NS_DISCO_INFO = "http://jabber.org/protocol/disco#info"
NS_DISCO_ITEMS = "http://jabber.org/protocol/disco#items"
NS_REGISTER = "jabber:iq:register"
NS_REGISTER_FEATURE = "http://jabber.org/features/iq-register"
NS_INVITATION = "urn:kestrel:invitation:0"
NS_ROLE = "urn:kestrel:role:0"
NS_JSON = "urn:xmpp:json:0"
NS_HINTS = "urn:xmpp:hints"
NS_XML = "http://www.w3.org/XML/1998/namespace"

STREAM_END = b"</stream:stream>"

# Sets of what is to be found, not negated sets of what is not: those take 10 ms to compile.
_NEEDS_WORK = re.compile("[\x00-\x08\x0b-\x1f\"&'<>\ud800-\udfff\ufffe\uffff]")
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_JSON_UNSAFE = bytes(c for c in range(32) if c not in b"\t\n\r") + b"&<>\r"
_NONCHARACTERS = ((b"\xef\xbf\xbe", b"\\ufffe"), (b"\xef\xbf\xbf", b"\\uffff"))

ERROR_TYPES: Mapping[str, str] = {
    "bad-request": "modify",
    "conflict": "cancel",
    "feature-not-implemented": "cancel",
    "forbidden": "auth",
    "gone": "cancel",
    "internal-server-error": "cancel",
    "item-not-found": "cancel",
    "jid-malformed": "modify",
    "not-acceptable": "modify",
    "not-allowed": "cancel",
    "not-authorized": "auth",
    "policy-violation": "modify",
    "recipient-unavailable": "wait",
    "registration-required": "auth",
    "remote-server-not-found": "cancel",
    "remote-server-timeout": "wait",
    "resource-constraint": "wait",
    "service-unavailable": "cancel",
    "subscription-required": "auth",
    "undefined-condition": "cancel",
    "unexpected-request": "wait",
}
"""The `type` that goes with each stanza error condition (RFC 6120 section 8.3.3)."""


def escape_text(text: str) -> str:
    """Character data. What XML 1.0 forbids becomes U+FFFD; a carriage return survives."""
    if _NEEDS_WORK.search(text) is None:
        return text
    text = _FORBIDDEN.sub("\ufffd", text)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\r", "&#13;")


def escape_attribute(text: str) -> str:
    """The value of an attribute, for either kind of quotes; tabs and line ends survive."""
    if _NEEDS_WORK.search(text) is None and "\n" not in text and "\t" not in text:
        return text
    text = escape_text(text).replace('"', "&quot;").replace("'", "&apos;")
    return text.replace("\n", "&#10;").replace("\t", "&#9;")


def attributes(**values: str | None) -> str:
    """` name='value'` for each that is not empty. `from_` is written as `from`, `xml_lang` as `xml:lang`."""
    return "".join(
        f" {name.rstrip('_').replace('xml_', 'xml:')}='{escape_attribute(value)}'"
        for name, value in values.items()
        if value
    )


# --------------------------------------------------------------------------------------------------
# Stanzas


def json_text(payload: bytes) -> bytes:
    """A JSON text as character data that needs no XML escapes, so that both ends can copy it as it is.

    `&`, `<`, `>` and noncharacters can stand only inside JSON strings and become `\\u` escapes there.
    What is not UTF-8 or not allowed in XML (no valid JSON has it) becomes U+FFFD.
    """
    if not payload.isascii():
        payload = payload.decode("utf-8", "replace").encode("utf-8")
        for raw, escaped in _NONCHARACTERS:
            payload = payload.replace(raw, escaped)
    if len(payload.translate(None, _JSON_UNSAFE)) == len(payload):
        return payload
    payload = payload.replace(b"&", b"\\u0026").replace(b"<", b"\\u003c").replace(b">", b"\\u003e")
    payload = payload.replace(b"\r", b"\n")
    return _FORBIDDEN.sub("\ufffd", payload.decode("utf-8")).encode("utf-8")


def message_json(to: str, payload: bytes, *, from_: str = "", id: str = "", type: str = "") -> bytes:
    """A JSON text in an XEP-0335 container, without body, not to be stored (XEP-0334)."""
    head = f"<message{attributes(to=to, from_=from_, id=id, type=type)}><json xmlns='{NS_JSON}'>"
    return b"".join((head.encode(), json_text(payload), _JSON_TAIL))


_JSON_TAIL = f"</json><no-store xmlns='{NS_HINTS}'/></message>".encode()


def message_body(to: str, text: str, *, from_: str = "", id: str = "", type: str = "chat") -> bytes:
    """Words for a person (RFC 6121 section 5)."""
    head = attributes(to=to, from_=from_, id=id, type=type)
    return f"<message{head}><body>{escape_text(text)}</body></message>".encode()


def presence(
    to: str = "",
    *,
    show: str = "",
    status: str = "",
    type: str = "",
    from_: str = "",
    id: str = "",
    priority: int | None = None,
) -> bytes:
    """Presence (RFC 6121 section 4.7); directed if `to` is given."""
    inner = ""
    if show:
        inner += f"<show>{escape_text(show)}</show>"
    if status:
        inner += f"<status>{escape_text(status)}</status>"
    if priority is not None:
        inner += f"<priority>{priority}</priority>"
    return f"<presence{attributes(to=to, from_=from_, type=type, id=id)}>{inner}</presence>".encode()


def iq(type: str, id: str, *, to: str = "", from_: str = "", payload: str = "") -> bytes:
    """An info/query stanza (RFC 6120 section 8.2.3). `payload` is ready XML."""
    return f"<iq{attributes(type=type, id=id, to=to, from_=from_)}>{payload}</iq>".encode()


def iq_result(request: Mapping[str, str], *, payload: str = "", from_: str = "") -> bytes:
    """The answer to the iq with the attributes `request`. `payload` is ready XML."""
    return iq(
        "result",
        request.get("id", ""),
        to=request.get("from", ""),
        from_=from_ or request.get("to", ""),
        payload=payload,
    )


def error_element(condition: str, text: str = "") -> str:
    """The `<error/>` child of an error stanza (RFC 6120 section 8.3)."""
    words = f"<text xmlns='{NS_STANZA_ERRORS}'>{escape_text(text)}</text>" if text else ""
    kind = ERROR_TYPES[condition]
    return f"<error type='{kind}'><{condition} xmlns='{NS_STANZA_ERRORS}'/>{words}</error>"


def error_reply(
    name: str, request: Mapping[str, str], condition: str, *, text: str = "", from_: str = ""
) -> bytes:
    """The error that answers the stanza `name` with the attributes `request`.

    The caller must not answer errors with errors (RFC 6120 section 8.3.1).
    """
    head = attributes(
        type="error",
        id=request.get("id"),
        to=request.get("from"),
        from_=from_ or request.get("to"),
    )
    return f"<{name}{head}>{error_element(condition, text)}</{name}>".encode()


# --------------------------------------------------------------------------------------------------
# Streams


def stream_header(
    ns: str = NS_CLIENT,
    *,
    to: str = "",
    from_: str = "",
    id: str = "",
    version: str = "1.0",
    xml_lang: str = "",
) -> bytes:
    """The opening tag of a stream, with the XML declaration (RFC 6120 section 4.7)."""
    head = attributes(to=to, from_=from_, id=id, version=version, xml_lang=xml_lang)
    return (f"<?xml version='1.0'?><stream:stream xmlns='{ns}' xmlns:stream='{NS_STREAM}'{head}>").encode()


def stream_error(condition: str, text: str = "") -> bytes:
    """A stream error and the end of the stream (RFC 6120 section 4.9)."""
    words = f"<text xmlns='{NS_STREAM_ERRORS}'>{escape_text(text)}</text>" if text else ""
    return (
        f"<stream:error><{condition} xmlns='{NS_STREAM_ERRORS}'/>{words}</stream:error></stream:stream>"
    ).encode()


# --------------------------------------------------------------------------------------------------
# Trees


def render(element: Element, *, within: str = "") -> str:
    """An element tree as text that keeps its meaning wherever the default namespace is `within`.

    Namespaces are declared where they change; only namespaced attributes get a prefix.
    """
    parts: list[str] = []
    _render(element, within, parts)
    return "".join(parts)


def _render(element: Element, within: str, parts: list[str]) -> None:
    ns, name = split_name(element.tag)
    parts.append(f"<{name}")
    if ns != within:
        parts.append(f" xmlns='{escape_attribute(ns)}'")
    for number, (key, value) in enumerate(element.attrib.items()):
        key_ns, key_name = split_name(key)
        if key_ns == NS_XML:
            key_name = f"xml:{key_name}"
        elif key_ns:
            parts.append(f" xmlns:n{number}='{escape_attribute(key_ns)}'")
            key_name = f"n{number}:{key_name}"
        parts.append(f" {key_name}='{escape_attribute(value)}'")
    if not element.text and not len(element):
        parts.append("/>")
        return
    parts.append(f">{escape_text(element.text or '')}")
    for child in element:
        _render(child, ns, parts)
        parts.append(escape_text(child.tail or ""))
    parts.append(f"</{name}>")


def split_name(tag: str) -> tuple[str, str]:
    """`{ns}name` → (ns, name); the namespace may be empty."""
    if tag.startswith("{"):
        ns, _, name = tag[1:].partition("}")
        return ns, name
    return "", tag
