"""Preparing an address twice is preparing it once; parsing never fails but by JidError."""

from hypothesis import given, settings
from hypothesis import strategies as st

from kestrel.xmpp.jid import JID, JidError, bare


def parsed(text):
    try:
        return JID.parse(text)
    except JidError:
        return None


@given(st.text() | st.text(alphabet="ab@/.ÄßⅨ\u00ad\u3002 -_é", max_size=12))
@settings(max_examples=600, deadline=None)
def test_preparation_is_idempotent(text):
    jid = parsed(text)
    if jid is not None:
        assert JID.parse(str(jid)) == jid
        assert bare(str(jid)) == str(jid.bare)


@given(
    st.text(alphabet="abcxyz09.-_", min_size=1),
    st.from_regex(r"[a-z0-9]{1,9}(\.[a-z0-9]{1,9}){0,3}", fullmatch=True),
    st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126), max_size=40),
)
def test_plain_addresses_round_trip(local, domain, resource):
    text = f"{local}@{domain}/{resource}" if resource else f"{local}@{domain}"
    jid = JID.parse(text)
    assert str(jid) == text
    assert (jid.local, jid.domain, jid.resource) == (local, domain, resource)
    assert JID.parse(text.swapcase()).bare == jid.bare
