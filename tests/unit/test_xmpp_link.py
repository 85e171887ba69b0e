"""The link: which event a stanza becomes, which answer it gets, and that errors get none."""

from xml.etree.ElementTree import fromstring

import pytest

from kestrel.ports import Show
from kestrel.xmpp import stanza as x
from kestrel.xmpp.link import UNREACHABLE, XmppLink
from kestrel.xmpp.stream import StreamReader

PEER = "w@example.org/1"
ME = "mgr.example.org"


class Recorder:
    """Stands in for the manager and for the stream: keeps what it is told and what is sent."""

    last_problem = ""

    def __init__(self):
        self.told = []
        self.sent = []

    def __getattr__(self, name):
        if not name.startswith("on_"):
            raise AttributeError(name)
        return lambda *values: self.told.append((name[3:], *values))

    def send(self, stanza):
        self.sent.append(fromstring(stanza))


def linked(address=ME):
    recorder, link = Recorder(), XmppLink()
    link.deliver_to(recorder)
    link.attach(recorder)
    link.on_connected(address)
    assert recorder.told == [("up", address)]
    recorder.told.clear()
    ns = x.NS_CLIENT if "@" in address else x.NS_COMPONENT

    def take(raw):
        reader = StreamReader(namespaces=frozenset((ns,)))
        _, stanza = reader.feed(x.stream_header(ns) + raw.encode())
        link.on_stanza(stanza)
        return recorder.told, recorder.sent

    return link, recorder, take


def error(condition, name="message", extra="", sender=PEER):
    inner = f"<error type='cancel'><{condition} xmlns='{x.NS_STANZA_ERRORS}'/></error>"
    return f"<{name} from='{sender}' to='{ME}' type='error' id='1'>{extra}{inner}</{name}>"


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (
            f"<message from='{PEER}'><json xmlns='urn:xmpp:json:0'>{{}}</json><body>x</body></message>",
            ("message", PEER, b"{}", False),
        ),
        (
            f"<message from='{PEER}' type='chat'><body>é</body></message>",
            ("message", PEER, "é".encode(), True),
        ),
        (f"<presence from='{PEER}'/>", ("available", PEER, Show.ONLINE, "")),
        (
            f"<presence from='{PEER}'><show>dnd</show><status>full</status></presence>",
            ("available", PEER, Show.DND, "full"),
        ),
        (f"<presence from='{PEER}'><show>rubbish</show></presence>", ("available", PEER, Show.ONLINE, "")),
        (f"<presence from='{PEER}' type='unavailable'/>", ("unavailable", PEER, "unavailable")),
        (
            f"<presence from='{PEER}' type='unavailable'><status>bye</status></presence>",
            ("unavailable", PEER, "bye"),
        ),
        (f"<iq from='{PEER}' type='result' id='ping-1'/>", ("heard", PEER)),
        (error("feature-not-implemented", "iq"), ("heard", PEER)),
        (error("service-unavailable", "iq"), ("unavailable", PEER, "service-unavailable")),
        (error("item-not-found", "presence"), ("unavailable", PEER, "item-not-found")),
        *((error(c, extra="<body>hi</body>"), ("unavailable", PEER, c)) for c in sorted(UNREACHABLE)),
    ],
)
def test_a_stanza_becomes_one_event_and_no_answer(raw, told):
    _, _, take = linked()
    assert take(raw) == ([told], [])


@pytest.mark.parametrize(
    "raw",
    [
        f"<message from='{PEER}'/>",
        f"<message from='{PEER}'><body/></message>",
        f"<message from='{PEER}' type='groupchat'><body>hi</body></message>",
        f"<presence from='{PEER}' type='unsubscribed'/>",
        f"<presence from='{ME}'/>",
        "<handshake/>",
        error("not-acceptable"),
        error("feature-not-implemented", "iq", sender="example.org"),
        f"<message from='{PEER}' type='error'><body>no error element</body></message>",
    ],
)
def test_the_rest_is_ignored_without_an_answer(raw):
    _, _, take = linked()
    assert take(raw) == ([], [])


@pytest.mark.parametrize(
    ("payload", "found"),
    [
        ("<ping xmlns='urn:xmpp:ping'/>", None),
        (f"<query xmlns='{x.NS_DISCO_INFO}'/>", f"{{{x.NS_DISCO_INFO}}}query/"),
        (f"<query xmlns='{x.NS_DISCO_ITEMS}'/>", f"{{{x.NS_DISCO_ITEMS}}}query"),
        ("<query xmlns='jabber:iq:version'/>", "{jabber:iq:version}query/{jabber:iq:version}version"),
    ],
)
def test_what_every_entity_must_answer_is_answered(payload, found):
    _, _, take = linked()
    told, (answer,) = take(f"<iq from='{PEER}' to='jobs@{ME}' type='get' id='&lt;7'>{payload}</iq>")
    assert told == ([("heard", PEER)] if found is None else []), "only a ping is a sign of life by itself"
    assert answer.attrib == {"type": "result", "id": "<7", "to": PEER, "from": f"jobs@{ME}"}
    assert found is None or answer.find(found) is not None


@pytest.mark.parametrize("raw", ["<query xmlns='jabber:iq:roster'/>", ""])
@pytest.mark.parametrize("kind", ["get", "set"])
def test_other_queries_are_refused(kind, raw):
    _, _, take = linked()
    _, (answer,) = take(f"<iq from='{PEER}' to='{ME}' type='{kind}' id='7'>{raw}</iq>")
    assert answer.get("type") == "error"
    assert answer.find(f"error/{{{x.NS_STANZA_ERRORS}}}service-unavailable") is not None


def test_an_account_does_not_stamp_its_answers():
    _, recorder, take = linked("mgr@example.org/x")
    take(f"<iq from='{PEER}' to='mgr@example.org/x' type='get' id='7'><ping xmlns='urn:xmpp:ping'/></iq>")
    take("<iq type='result' id='7'/>")
    assert [s.get("from") for s in recorder.sent] == [None]
    assert recorder.told == [("heard", PEER), ("heard", "mgr@example.org")]


def test_subscriptions_are_accepted_and_probes_answered():
    _, _, take = linked()
    told, sent = take(f"<presence from='{PEER}' to='jobs@{ME}' type='subscribe'/>")
    take(f"<presence from='{PEER}' to='jobs@{ME}' type='probe'/>")
    assert told == []
    assert [(s.get("to"), s.get("type"), s.get("from")) for s in sent] == [
        ("w@example.org", "subscribed", f"jobs@{ME}"),
        ("w@example.org", None, f"jobs@{ME}"),
        (PEER, None, f"jobs@{ME}"),
    ]


def role(text="user", jid="ann@example.org", sender="example.org", kind="headline"):
    inner = f"<role xmlns='{x.NS_ROLE}' jid='{jid}'>{text}</role>"
    return f"<message from='{sender}' to='{ME}' type='{kind}'>{inner}</message>"


def believing(authority="example.org"):
    link, recorder, take = linked()
    recorder.role_authority = authority
    link.tell_roles(recorder)
    return take


@pytest.mark.parametrize("text", ["worker", "user", "admin", "none"])
def test_the_believed_server_tells_the_role_of_its_account(text):
    assert believing()(role(text)) == ([("role", "ann@example.org", text)], [])


@pytest.mark.parametrize(
    "raw",
    [
        role(sender="eve@example.org"),
        role(sender="example.org/x"),
        role(sender="elsewhere.org"),
        role(sender="elsewhere.org", jid="ann@elsewhere.org"),
        role(jid="ann@elsewhere.org"),
        role(jid="ann@sub.example.org"),
        role(jid="ann@example.org/phone"),
        role(jid="example.org"),
        role(jid=""),
        role(jid="a" * 9000 + "@example.org"),
        role("root"),
        role("<b/>"),
        role(kind="normal"),
        role(kind="error"),
    ],
)
def test_no_other_role_is_believed_or_answered(raw):
    assert believing()(raw) == ([], [])


def test_without_a_server_that_is_believed_nobody_is():
    assert believing("")(role()) == ([], [])
    _, _, take = linked()
    assert take(role()) == ([], [])


def test_who_is_not_admitted_hears_nothing_of_us():
    link, _, take = linked()
    link.admits = lambda peer: not peer.startswith("eve@")
    assert take(f"<presence from='eve@example.org/x' to='{ME}' type='subscribe'/>") == ([], [])
    assert take(f"<presence from='eve@example.org/x' to='{ME}' type='probe'/>") == ([], [])
    assert len(take(f"<presence from='{PEER}' to='{ME}' type='probe'/>")[1]) == 1


def test_what_is_sent_is_addressed():
    link, recorder, _ = linked()
    link.send(PEER, b'{"a": "<"}')
    link.send(PEER, b'{"a": "<"}', chat=True)
    link.say(PEER, "a & b")
    link.announce(PEER, Show.XA, "s")
    link.withdraw(PEER)
    link.ping(PEER)
    assert {(s.get("from"), s.get("to")) for s in recorder.sent} == {(ME, PEER)}
    container, chat, words, presence, gone, ping = recorder.sent
    assert container.findtext(f"{{{x.NS_JSON}}}json") == '{"a": "\\u003c"}'
    assert container.find(f"{{{x.NS_HINTS}}}no-store") is not None
    assert (chat.get("type"), chat.findtext("body")) == ("chat", '{"a": "<"}')
    assert words.findtext("body") == "a & b"
    assert (presence.findtext("show"), presence.findtext("status")) == ("xa", "s")
    assert gone.get("type") == "unavailable"
    assert (ping.get("type"), ping[0].tag) == ("get", "{urn:xmpp:ping}ping")


def test_the_end_of_a_connection_is_told():
    link, recorder, _ = linked()
    link.on_disconnected("why")
    assert recorder.told == [("down", "why")]
    assert link.address == ""


def test_who_may_not_act_leaves_pings_unanswered_for_as_long_as_that():
    link, _, take = linked()
    ping = f"<iq from='{PEER}' to='{ME}' type='get' id='7'><ping xmlns='urn:xmpp:ping'/></iq>"
    link.mute = lambda: True
    assert take(ping)[1] == []
    link.mute = lambda: False
    assert [answer.get("type") for answer in take(ping)[1]] == ["result"]
