"""Addresses: what is accepted, what is the same, what is refused."""

import pytest

from kestrel.xmpp.jid import JID, JidError, bare


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a@b/c", ("a", "b", "c")),
        ("b", ("", "b", "")),
        ("b/c@d/e", ("", "b", "c@d/e")),
        ("A@B.Example/C", ("a", "b.example", "C")),
        ("Straße@Bücher.example", ("strasse", "bücher.example", "")),
        ("a@127.0.0.1", ("a", "127.0.0.1", "")),
        ("a@[::1]", ("a", "[::1]", "")),
        ("a@b.", ("a", "b", "")),
        ("a@b\u3002c", ("a", "b.c", "")),
        ("a@b/x y", ("a", "b", "x y")),
        ("a@b/\u2168", ("a", "b", "IX")),
        ("\u00ad\u00aa@b", ("a", "b", "")),
    ],
)
def test_addresses_are_prepared(text, parts):
    jid = JID.parse(text)
    assert (jid.local, jid.domain, jid.resource) == parts
    assert JID.parse(str(jid)) == jid


@pytest.mark.parametrize(
    "text",
    [
        "", "@b", "a@", "a@b/", "a@b@c", "a b@c", "a'@b", "a&@b", "a:@b", "a<@b", "/x", "a@b..c", "a@-b",
        "a@b_c", "a@b c", "a@[::x]", "a@b/\x07", "a@b/\ue000", "\u0221@b", "a\u06271@b", "x" * 1024 + "@b",
        "a@" + "b" * 256,
        "a@b/" + "c" * 1024, "a@b/" + "ü" * 512, "y" * 5000, "\u00ad@b", "a@b/\ud800", "a\u00a0b@c",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused_with_a_hint(text):
    with pytest.raises(JidError) as caught:
        JID.parse(text)
    assert caught.value.hint


def test_bare_and_resource():
    jid = JID.parse("a@b/c")
    assert jid.bare == JID.parse("a@b")
    assert not jid.is_bare
    assert jid.bare.is_bare
    assert jid.bare.bare is not jid
    assert jid.with_resource("d") == JID.parse("a@b/d")
    assert bare("a@b/c/d") == bare("a@b") == "a@b"


def test_the_longest_parts_are_accepted():
    jid = JID.parse("x" * 1023 + "@b/" + "y" * 1023)
    assert len(jid.local) == len(jid.resource) == 1023
