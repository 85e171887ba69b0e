"""The stream reader: what it yields, what it refuses, and that its output is safe to copy elsewhere."""

import json
from xml.etree.ElementTree import fromstring

import pytest

from kestrel.xmpp import stanza as x
from kestrel.xmpp.stream import PARSER_BYTES_MAX, Stanza, StreamEnd, StreamError, StreamHeader, StreamReader

HEADER = x.stream_header(to="example.org")
COMPONENT = frozenset((x.NS_COMPONENT,))


def opened(header: bytes = HEADER, **settings) -> StreamReader:
    reader = StreamReader(**settings)
    (event,) = reader.feed(header)
    assert isinstance(event, StreamHeader)
    return reader


def one(raw: bytes, header: bytes = HEADER, **settings) -> Stanza:
    (event,) = opened(header, **settings).feed(raw)
    assert isinstance(event, Stanza)
    return event


def refused(data: bytes, header: bytes = HEADER, **settings) -> StreamError:
    reader = opened(header, **settings)
    with pytest.raises(StreamError) as caught:
        reader.feed(data)
    with pytest.raises(StreamError) as again:
        reader.feed(b"<presence/>")
    assert again.value.condition == caught.value.condition
    return caught.value


def in_stream(raw: bytes, ns: str = x.NS_CLIENT):
    """The tree of a stanza as an independent parser sees it in another ordinary stream."""
    return fromstring(x.stream_header(ns).split(b"?>", 1)[1] + raw + x.STREAM_END)[0]


def test_header_gives_namespace_and_attributes():
    (event,) = StreamReader().feed(HEADER)
    assert event == StreamHeader(x.NS_CLIENT, {"to": "example.org", "version": "1.0"})


def test_white_space_before_the_header_and_between_stanzas_is_ignored():
    reader = StreamReader()
    assert reader.feed(b" \r\n") == []
    assert len(reader.feed(b"\n" + HEADER)) == 1
    assert reader.feed(b" ") == []
    assert reader.feed(b" \n<presence/> ")[0].raw == b"<presence/>"
    assert reader.at_boundary


@pytest.mark.parametrize(
    "raw",
    [
        b"<presence/>",
        b"<presence></presence>",
        b"<presence ></presence >",
        b"<presence a='>'/>",
        b"<presence a='/>'></presence>",
        b"<presence>/></presence>",
        b'<message to="a>b\'/>"><body>/></body ></message\n>',
        b"<message><a x='>'/></message>",
        b"<message><a x='/>'>/></a><b/><b/>/></message>",
        b"<message><a><b/></a></message>",
        b"<message><a><a/></a>text</message>",
        b"<message><a>]]&gt;<![CDATA[</a>/>]]></a></message>",
        "<message><body>ä€\U0001f600</body></message>".encode(),
    ],
)
def test_raw_and_children_are_the_bytes_that_came(raw):
    reader = opened()
    first, second = reader.feed(raw + raw)
    assert first.raw == second.raw == raw
    tree = first.tree()
    assert [name for _, name, _, _ in first.children] == [c.tag.partition("}")[2] for c in tree]
    for (_, name, start, end), child in zip(first.children, tree, strict=True):
        cut = raw[start:end]
        assert cut.startswith(b"<" + name.encode())
        alone = fromstring(b"<r xmlns='jabber:client'>" + cut + b"</r>")[0]
        assert (alone.text, alone.attrib, len(alone)) == (child.text, child.attrib, len(child))


def test_end_of_stream_is_told_and_what_follows_is_ignored():
    reader = opened()
    assert reader.feed(b"</stream:stream><junk") == [StreamEnd()]
    assert reader.feed(b"<presence/>") == []


def test_reset_starts_over():
    reader = opened()
    reader.feed(b"<auth")
    reader.reset()
    assert [type(e) for e in reader.feed(HEADER + b"<iq/>")] == [StreamHeader, Stanza]


@pytest.mark.parametrize(
    ("data", "condition"),
    [
        (b"<!-- c --><presence/>", "restricted-xml"),
        (b"<message><!-- c --></message>", "restricted-xml"),
        (b"<message><?pi?></message>", "restricted-xml"),
        (b"<message>&foo;</message>", "restricted-xml"),
        (b"<message a='&foo;'/>", "restricted-xml"),
        (b"<message></iq>", "not-well-formed"),
        (b"<message a='1' a='2'/>", "not-well-formed"),
        (b"<p:message/>", "not-well-formed"),
        (b"<message>\x00</message>", "not-well-formed"),
        (b"<message>&#0;</message>", "not-well-formed"),
        (b"<message>&#xFFFE;</message>", "not-well-formed"),
        (b"<message>\xff</message>", "not-well-formed"),
        (b"<message>\xed\xa0\x80</message>", "not-well-formed"),
        (b"text", "bad-format"),
        (b"text<message/>", "bad-format"),
        (b"<![CDATA[x]]><message/>", "bad-format"),
        (b"x</stream:stream>", "bad-format"),
        (b"&amp;", "bad-format"),
        (b"<message><stream:error/></message>", "invalid-namespace"),
        (b"<message><a stream:b='1'/></message>", "invalid-namespace"),
        (b"<message><a xmlns:s='http://etherx.jabber.org/streams' s:b='1'/></message>", "invalid-namespace"),
        (b"<m>" + b"<a>" * 63, "policy-violation"),
        (b"<m " + b" ".join(b"a%d='1'" % n for n in range(65)) + b"/>", "policy-violation"),
    ],
)
def test_what_breaks_the_rules_is_refused_by_name(data, condition):
    problem = refused(data)
    assert problem.condition == condition
    assert problem.events == []


@pytest.mark.parametrize(
    ("header", "condition"),
    [
        (b"<!DOCTYPE x><x/>", "restricted-xml"),
        (b"<?xml version='1.0'?><!DOCTYPE x [<!ENTITY a 'b'>]><x/>", "restricted-xml"),
        (b"<?xml version='1.0' encoding='ISO-8859-1'?><x/>", "unsupported-encoding"),
        ("<x/>".encode("utf-16"), "unsupported-encoding"),
        ("<x/>".encode("utf-16-le"), "unsupported-encoding"),
        (HEADER.replace(b"jabber:client", b"jabber:server"), "invalid-namespace"),
        (HEADER.replace(b"etherx", b"other"), "invalid-namespace"),
        (b"<stream xmlns='http://etherx.jabber.org/streams'>", "invalid-namespace"),
        (b"<stream>", "invalid-namespace"),
        (b"<message xmlns='jabber:client'>", "bad-format"),
        (b"GET / HTTP/1.1\r\n\r\n", "not-well-formed"),
        (b"<" + b"a" * 300_000, "policy-violation"),
    ],
)
def test_a_wrong_header_is_refused_by_name(header, condition):
    with pytest.raises(StreamError) as caught:
        StreamReader().feed(header)
    assert caught.value.condition == condition


def test_events_before_a_fault_are_not_lost():
    problem = refused(b"<presence/><iq/><!---->")
    assert [event.name for event in problem.events] == ["presence", "iq"]


def test_a_stanza_is_bounded_also_while_it_is_incomplete():
    assert refused(b"<message>" + b"x" * 1000, stanza_bytes_max=1000).condition == "policy-violation"
    assert refused(b"<message a='" + b"x" * 1000, stanza_bytes_max=1000).condition == "policy-violation"
    assert refused(b"<message>" + b"x" * 1000 + b"</message>", stanza_bytes_max=1000).condition == (
        "policy-violation"
    )
    fitting = b"<message>" + b"x" * 981 + b"</message>"
    assert len(fitting) == 1000
    assert one(fitting, stanza_bytes_max=1000).raw == fitting


def test_names_and_bytes_do_not_pile_up_in_the_parser():
    reader = opened()
    most = 0
    for number in range(3000):
        raw = b"<message a%d='1'><p%d:b%d xmlns:p%d='urn:%d'/></message>" % ((number,) * 5)
        (stanza,) = reader.feed(raw)
        assert stanza.raw == raw
        most = max(most, len(reader._names))
    assert most < 600
    for _ in range(2 * PARSER_BYTES_MAX // 10_000):
        reader.feed(b"<message><body>" + b"x" * 10_000 + b"</body></message><mess")
        reader.feed(b"age/>")
        assert reader._base <= PARSER_BYTES_MAX + 30_000


def test_rest_frees_the_parser_only_between_stanzas():
    reader = opened()
    reader.feed(b"<mess")
    reader.rest()
    assert reader._parser is not None
    assert len(reader.feed(b"age/>")) == 1
    reader.rest()
    assert reader._parser is None
    assert reader.feed(b" ") == []
    assert reader._parser is None
    (stanza,) = reader.feed(b"<message><body>x</body></message>")
    assert stanza.body() == "x"
    reader.rest()
    assert reader.feed(x.STREAM_END) == [StreamEnd()]


def test_rest_keeps_the_prefix_of_an_unusual_header():
    header = b"<s:stream xmlns='jabber:client' xmlns:s='http://etherx.jabber.org/streams' xmlns:p='urn:p'>"
    reader = opened(header)
    reader.rest()
    (stanza,) = reader.feed(b"<message><p:x/></message>")
    assert stanza.children[0][:2] == ("urn:p", "x")
    reader.rest()
    assert reader.feed(b"</s:stream>") == [StreamEnd()]


@pytest.mark.parametrize(
    ("inner", "text"),
    [
        (b"<body>plain</body>", "plain"),
        (b"<body/>", ""),
        (b"<body></body>", ""),
        (b"<body a='>'>x</body>", "x"),
        (b"<body>&lt;&gt;&amp;&quot;&apos;</body>", "<>&\"'"),
        (b"<body>&#65;&#x1F600;&#x0a;</body>", "A\U0001f600\n"),
        (b"<body>&amp;lt;</body>", "&lt;"),
        (b"<body>a\r\nb\rc&#13;</body>", "a\nb\nc\r"),
        (b"<body>a<![CDATA[<b>&amp;]]>c</body>", "a<b>&amp;c"),
        (b"<body>a<i>b</i>c</body>", "ac"),
        ("<body>é</body>".encode(), "é"),
        (b"<x xmlns='other'><body>no</body></x><body>yes</body>", "yes"),
    ],
)
def test_body_is_what_a_tree_would_say(inner, text):
    assert one(b"<message>" + inner + b"</message>").body() == text


def test_without_body_or_container_there_is_none():
    stanza = one(b"<message><body xmlns='other'>x</body></message>")
    assert stanza.body() is None
    assert stanza.json() is None
    assert not stanza.has_child(x.NS_CLIENT, "body")
    assert stanza.has_child("other", "body")


@pytest.mark.parametrize("value", ["a & b < c > d", "\ufffe\uffff", "\r\n\t", "é\U0001f600", "]]>", "'\""])
def test_json_in_a_container_survives_and_needs_no_unescaping(value):
    payload = json.dumps({"type": "x", "v": value}, ensure_ascii=False).encode()
    raw = x.message_json("a@b/c", payload)
    stanza = one(raw)
    assert json.loads(stanza.json()) == {"type": "x", "v": value}
    assert stanza.has_child(x.NS_HINTS, "no-store")
    assert stanza.body() is None
    assert b"&" not in raw


def test_escaped_json_of_others_is_unescaped():
    raw = b'<message><json xmlns="urn:xmpp:json:0">{&quot;a&quot;: "&amp;&lt;"}</json></message>'
    assert json.loads(one(raw).json()) == {"a": "&<"}
    cdata = b"<message><j:json xmlns:j='urn:xmpp:json:0'><![CDATA[{\"a\": 1}]]></j:json></message>"
    assert json.loads(one(cdata).json()) == {"a": 1}


def test_a_container_with_anything_in_it_cannot_break_the_stream():
    for payload in (b"\x00\x1f\x7f", b"\xff\xfe", b"</json>", b"\xed\xa0\x80", b"\xef\xbf\xbe\x0b"):
        assert one(x.message_json("a", payload)).json() is not None


def test_new_addresses_replace_what_the_sender_wrote():
    stanza = one(
        b"<message from='liar@x' to='a@b' id='&lt;&apos;1' type='chat' xml:lang='de' other='x'>\n"
        b"text<body>hi</body>text</message>"
    )
    raw = stanza.with_addresses("me@x/1&<'\"")
    tree = in_stream(raw)
    assert tree.attrib == {
        "from": "me@x/1&<'\"",
        "to": "a@b",
        "id": "<'1",
        "type": "chat",
        "{http://www.w3.org/XML/1998/namespace}lang": "de",
    }
    assert raw.endswith(b"><body>hi</body></message>")
    assert in_stream(stanza.with_addresses("a", "c@d/e")).get("to") == "c@d/e"


def test_an_empty_stanza_gets_new_addresses():
    assert one(b"<presence>text</presence>").with_addresses("a@b/c") == b"<presence from='a@b/c'/>"


@pytest.mark.parametrize(
    "raw",
    [
        b"<message xmlns='jabber:client'><body>hi</body></message>",
        b"<message><body xmlns='jabber:client'>hi</body></message>",
        b"<message><body xmlns='jabber:clien&#116;'>hi</body></message>",
        b"<c:message xmlns:c='jabber:client'><c:body>hi</c:body></c:message>",
        b"<c:message xmlns:c='jabber:client' xmlns='urn:x'><c:body>hi</c:body></c:message>",
        b"<message xmlns:c='jabber:client'><c:body a:b='1' xmlns:a='urn:a'>hi</c:body></message>",
        b"<messages:message xmlns:messages='jabber:client'><body>hi</body></messages:message>",
    ],
)
@pytest.mark.parametrize("ns", [x.NS_CLIENT, x.NS_COMPONENT])
def test_children_keep_their_meaning_in_another_stream(raw, ns):
    stanza = one(raw)
    assert stanza.body() == "hi"
    tree = in_stream(stanza.with_addresses("a@b/c", ns=ns), ns)
    assert tree.tag == f"{{{ns}}}message"
    assert tree.findtext(f"{{{ns}}}body") == "hi"
    assert tree.attrib == {"from": "a@b/c"}


def test_a_component_s_children_follow_into_the_client_s_namespace():
    header = x.stream_header(x.NS_COMPONENT)
    raw = b"<message><body xmlns='jabber:component:accept'>hi</body><x xmlns='urn:x'><y/></x></message>"
    stanza = one(raw, header, namespaces=COMPONENT)
    assert stanza.body() == "hi"
    tree = in_stream(stanza.with_addresses("a"))
    assert tree.findtext("{jabber:client}body") == "hi"
    assert tree.find("{urn:x}x/{urn:x}y") is not None


def test_a_forwarded_stanza_stays_in_its_namespace():
    raw = (
        b"<message><forwarded xmlns='urn:xmpp:forward:0'><message xmlns='jabber:client'>"
        b"<body>hi</body></message></forwarded></message>"
    )
    tree = in_stream(one(raw).with_addresses("a", ns=x.NS_COMPONENT), x.NS_COMPONENT)
    found = tree.findtext("{urn:xmpp:forward:0}forwarded/{jabber:client}message/{jabber:client}body")
    assert found == "hi"


@pytest.mark.parametrize(
    "raw",
    [
        b"<message><p:x p:a='1'><y/></p:x></message>",
        b"<message><x p:a='1' xml:lang='de' xmlns='urn:x'>a<y xmlns=''/>b</x></message>",
        b"<message p:a='1'><x xmlns='urn:x'/></message>",
    ],
)
def test_prefixes_of_the_header_are_not_lost(raw):
    header = b"<stream:stream xmlns='jabber:client' xmlns:stream='%b' xmlns:p='urn:p'>" % x.NS_STREAM.encode()
    stanza = one(raw, header)
    sent = in_stream(stanza.with_addresses("a"))
    for mine, other in zip(stanza.tree().iter(), sent.iter(), strict=True):
        if mine.tag != "{jabber:client}message":
            assert (mine.tag, mine.attrib, mine.text) == (other.tag, other.attrib, other.text)


def test_prefixes_of_the_root_are_not_lost():
    stanza = one(b"<message xmlns:p='urn:p'><p:x p:a='1'/></message>")
    assert in_stream(stanza.with_addresses("a"))[0].attrib == {"{urn:p}a": "1"}


def test_stanzas_split_over_reads_are_not_held_back():
    reader = opened()
    assert reader.feed(b"<message><body>" + b"x" * 5000) == []
    assert reader.feed(b"</body></mess") == []
    assert len(reader.feed(b"age>")) == 1


def test_names_are_taken_apart():
    stanza = one(b"<stream:features><starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/></stream:features>")
    assert (stanza.ns, stanza.name) == (x.NS_STREAM, "features")
    assert stanza.children[0][:2] == (x.NS_TLS, "starttls")
