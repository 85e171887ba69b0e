"""Patterns over addresses: they mean exactly whom their text says, part by part."""

from __future__ import annotations

import fnmatch

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kestrel.core.addresses import Pattern, PatternError, matching, parts_of
from kestrel.xmpp.jid import JID, JidError

ADDRESSES = (
    "worker@pool/42",
    "worker42@pool",
    "worker42@pool/",
    "machine27@pool/core2",
    "pool",
    "ann@b.pool/x",
)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("worker@pool/42", {0}),
        ("worker@pool", {0}),
        ("WORKER@Pool", {0}),
        ("worker*@pool", {0, 1, 2}),
        ("worker4?@pool", {1, 2}),
        ("pool", {0, 1, 2, 3, 4}),
        ("*@pool", {0, 1, 2, 3, 4}),
        ("*.pool", {5}),
        ("*pool", {0, 1, 2, 3, 4, 5}),
        ("@pool/core2", {3}),
        ("*/core2", {3}),
        ("/core2", {3}),
        ("*@*/4*", {0}),
        ("*", {0, 1, 2, 3, 4, 5}),
        ("ann@pool", set()),
        ("*@*/Core2", set()),
    ],
)
def test_a_pattern_means_whom_it_says(text: str, meant: set[int]):
    pattern = Pattern.parse(text)
    assert {i for i, address in enumerate(ADDRESSES) if pattern.matches(address)} == meant
    assert str(pattern) == text


@pytest.mark.parametrize("text", ["", "  ", "a@b@c", "a@", "a b@c", "a\n@c", "x" * 1025])
def test_what_is_no_pattern_is_refused_with_words(text: str):
    with pytest.raises(PatternError, match=r"pattern|contains|@"):
        Pattern.parse(text)


@pytest.mark.parametrize(
    "user", ["\u01f0", "\u0390", "STRA\u00dfE", "e\u0301", "\uff21nn", "\u1fb7", "a\u034fb"]
)
def test_an_account_is_meant_by_its_name_as_it_is_typed_and_as_servers_prepare_it(user: str):
    address = str(JID.parse(f"{user}@pool.example"))
    assert Pattern.parse(f"{user}@pool.example").matches(address)
    assert Pattern.parse(address).matches(address)
    assert Pattern.parse(address).matches(f"{address}/desk")


@given(st.text(min_size=1, max_size=6))
def test_every_account_that_there_can_be_can_be_named(user: str):
    try:
        address = str(JID.parse(f"{user}@pool.example"))
    except JidError:
        assume(False)
    assume(address.isprintable() and "/" not in address)
    assert Pattern.parse(address).matches(address)


def test_characters_that_regular_expressions_know_mean_themselves():
    assert Pattern.parse("a.b+c@d").matches("a.b+c@d")
    assert not Pattern.parse("a.b@d").matches("axb@d")


def test_a_list_of_patterns_means_whom_one_of_them_means():
    patterns = (Pattern.parse("ann@pool"), Pattern.parse("*/core2"))
    assert matching(patterns, "machine27@pool/core2")
    assert not matching(patterns, "worker@pool/42")
    assert not matching((), "ann@pool")


@given(
    user=st.text("ab1-.", min_size=1),
    domain=st.text("ab1-", min_size=1),
    resource=st.text("ab1/@ ", min_size=1),
)
def test_every_address_is_meant_by_itself_and_by_its_parts(user: str, domain: str, resource: str):
    address = f"{user}@{domain}/x{resource}x"
    assert parts_of(address) == (user, domain, f"x{resource}x")
    for text in (address, f"{user}@{domain}", domain, f"*/x{resource}x", f"{user}@*"):
        assert Pattern.parse(text).matches(address)


def test_a_hostile_pattern_takes_no_endless_time():
    assert not Pattern.parse("*a" * 400 + "b@pool").matches("a" * 1000 + "@pool")
    assert Pattern.parse("*" * 500 + "a?@pool").matches("b" * 1000 + "ab@pool")


@given(glob=st.text("ab*?"), text=st.text("ab", max_size=12))
def test_globs_mean_what_they_mean_elsewhere(glob: str, text: str):
    assert Pattern.parse(f"x{glob}@d").matches(f"x{text}@d") == fnmatch.fnmatchcase(f"x{text}", f"x{glob}")
