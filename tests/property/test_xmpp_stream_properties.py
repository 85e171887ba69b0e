"""However the bytes of a stream are cut, the reader says the same; and it never breaks on rubbish."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from kestrel.xmpp import stanza as x
from kestrel.xmpp.stream import Stanza, StreamEnd, StreamError, StreamHeader, StreamReader

HEADER = x.stream_header(to="example.org")
PIECES = [
    b"<presence/>",
    b"<presence></presence>",
    b"<presence a='/>'>/></presence >",
    b" \r\n",
    b"<message to='a@b/c' id='1'><body>hello &amp; bye</body></message>",
    b"<message a='>' b=\"'/>'\"><a x='>'/><b>/></b><b/>t<b><c/></b></message>",
    "<message><body>ä€\U0001f600</body></message>".encode(),
    b"<message><x><![CDATA[</x>]]></x></message>",
    x.message_json("a@b/c", b'{"type": "x"}'),
    b"<stream:features><mechanisms xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/></stream:features>",
    b"<p:x xmlns:p='urn:p' p:a='1'/>",
    x.STREAM_END,
    b"text",
    b"<message></iq>",
    b"<!-- -->",
    b"&amp;",
    b"<iq><a>" + b"y" * 500 + b"</a></iq>",
]


def shown(event):
    if isinstance(event, Stanza):
        return event.tag, event.attrs, event.raw, event.children
    return event


def read(chunks, **bounds):
    reader = StreamReader(**bounds)
    events = []
    try:
        for chunk in chunks:
            events += reader.feed(chunk)
    except StreamError as problem:
        events += problem.events
        return [shown(e) for e in events], problem.condition
    return [shown(e) for e in events], ""


def cut(data, points):
    edges = [0, *sorted({p for p in points if p < len(data)}), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


@given(st.lists(st.sampled_from(PIECES), max_size=12), st.lists(st.integers(0, 2000), max_size=12))
@settings(max_examples=300, deadline=None)
def test_any_split_gives_the_same_events(pieces, points):
    data = HEADER + b"".join(pieces)
    whole = read([data], stanza_bytes_max=400)
    assert isinstance(whole[0][0], StreamHeader)
    assert read(cut(data, points), stanza_bytes_max=400) == whole
    assert read([data[i : i + 1] for i in range(len(data))], stanza_bytes_max=400) == whole


@given(st.lists(st.sampled_from(PIECES[:11]), max_size=12))
@settings(deadline=None)
def test_all_good_pieces_arrive(pieces):
    events, problem = read([HEADER + b"".join(pieces) + x.STREAM_END])
    assert problem == ""
    assert events[-1] == StreamEnd()
    assert b"".join(e[2] for e in events[1:-1]) == b"".join(p for p in pieces if p.strip())


@given(
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(0, 3000), st.binary(max_size=3)), min_size=1, max_size=4),
    st.lists(st.integers(0, 2000), max_size=5),
)
@settings(max_examples=500, deadline=None)
def test_mutations_are_read_or_refused_and_cuts_lose_no_event(pieces, changes, points):
    data = bytearray(HEADER + b"".join(pieces))
    for at, replacement in changes:
        at %= len(data)
        data[at : at + 1] = replacement
    whole, problem = read([bytes(data)])
    parts, same = read(cut(bytes(data), points))
    assert parts == whole
    assert bool(problem) == bool(same)
    for event in whole:
        if isinstance(event, tuple) and event[3]:
            inner = read([HEADER, event[2]])[0]
            assert inner[1][1:] == event[1:]


@given(st.lists(st.sampled_from(PIECES[4:9]), min_size=1, max_size=5), st.integers(0, 400))
@settings(deadline=None)
def test_a_fresh_parser_in_the_midst_changes_nothing(pieces, pause):
    data = b"".join(pieces)
    reader = StreamReader()
    reader.feed(HEADER)
    first = reader.feed(data[:pause])
    reader.rest()
    rest = reader.feed(data[pause:])
    whole = StreamReader()
    assert [shown(e) for e in first + rest] == [shown(e) for e in whole.feed(HEADER + data)[1:]]


@given(st.text())
def test_every_text_survives_as_a_body_and_as_an_attribute(text):
    raw = x.message_body("to", text, id="i" + text)
    reader = StreamReader()
    _, stanza = reader.feed(HEADER + raw)
    wanted = x._FORBIDDEN.sub("\ufffd", text)
    assert stanza.body() == wanted
    assert stanza.attrs["id"] == "i" + wanted
    (again,) = reader.feed(stanza.with_addresses("me"))
    assert again.attrs["id"] == "i" + wanted
    assert again.body() == wanted
