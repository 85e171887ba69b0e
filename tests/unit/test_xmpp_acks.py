"""XEP-0198 counters: they wrap, they are bounded, and a lying peer is found out."""

import pytest

from kestrel.xmpp.acks import REQUEST_EVERY, AckCounter, AckError


def test_what_is_acknowledged_is_no_longer_counted():
    acks = AckCounter()
    for _ in range(5):
        acks.count_sent()
    assert acks.unacked == 5
    assert acks.on_ack("3") == 3
    assert acks.on_ack("3") == 0
    assert acks.unacked == 2


def test_an_acknowledgement_is_asked_for_now_and_then():
    acks = AckCounter()
    assert [acks.count_sent() for _ in range(2 * REQUEST_EVERY)].count(True) == 2


def test_received_stanzas_are_told_modulo_two_to_the_32():
    acks = AckCounter()
    acks.count_received(2**32 - 1)
    acks.count_received(3)
    assert acks.answer() == b"<a xmlns='urn:xmpp:sm:3' h='2'/>"


def test_sent_stanzas_wrap():
    acks = AckCounter()
    acks.sent = acks.acked = 2**32 - 2
    for _ in range(4):
        acks.count_sent()
    assert acks.sent == 2
    assert acks.on_ack("1") == 3
    assert acks.unacked == 1


@pytest.mark.parametrize("h", [None, "", "x", "-1", "6", "4294967296", "99999999999", "\u0661"])
def test_wrong_counts_are_refused_and_change_nothing(h):
    acks = AckCounter()
    acks.count_sent(5)
    with pytest.raises(AckError):
        acks.on_ack(h)
    assert acks.unacked == 5


def test_what_is_on_its_way_is_bounded():
    acks = AckCounter(unacked_max=10)
    acks.count_sent(10)
    with pytest.raises(AckError):
        acks.count_sent()
