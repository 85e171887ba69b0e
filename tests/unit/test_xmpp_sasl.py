"""SASL: both ends agree, and neither believes what was not proved."""

import base64

import pytest

from kestrel.errors import AuthenticationError
from kestrel.xmpp import sasl

SALT = b"0123456789abcdef"
SECRET = b"secret of the server"


def server(mechanism=sasl.SCRAM_SHA_256, password="pencil", user="user"):
    keys = sasl.make_keys(mechanism, password, SALT)
    return sasl.ScramServer(mechanism, lambda name: keys if name == user else None, SECRET)


@pytest.mark.parametrize("mechanism", [sasl.SCRAM_SHA_256, sasl.SCRAM_SHA_1])
@pytest.mark.parametrize("user", ["user", "na=me", "zoë"])
def test_both_ends_agree_on_the_right_password(mechanism, user):
    client = sasl.SaslClient([mechanism, "X-OTHER"], user, "pencil", encrypted=False)
    other = server(mechanism, user=user)
    final = client.on_challenge(other.on_first(client.first))
    name, success = other.on_final(final)
    assert name == user
    client.on_success(success)


def test_the_strongest_mechanism_is_chosen():
    offered = ["PLAIN", "SCRAM-SHA-1", "SCRAM-SHA-256"]
    assert sasl.SaslClient(offered, "u", "p", encrypted=True).mechanism == "SCRAM-SHA-256"
    assert sasl.SaslClient(offered[:2], "u", "p", encrypted=True).mechanism == "SCRAM-SHA-1"
    assert sasl.SaslClient(offered[:1], "u", "p", encrypted=True).mechanism == "PLAIN"


@pytest.mark.parametrize("offered", [["PLAIN"], [], ["EXTERNAL"]])
def test_plain_is_never_used_in_the_clear(offered):
    with pytest.raises(AuthenticationError) as caught:
        sasl.SaslClient(offered, "u", "p", encrypted=False)
    assert caught.value.hint


def test_a_wrong_password_is_refused():
    client = sasl.SaslClient([sasl.SCRAM_SHA_256], "user", "pen", encrypted=True)
    other = server()
    final = client.on_challenge(other.on_first(client.first))
    with pytest.raises(sasl.SaslError) as caught:
        other.on_final(final)
    assert caught.value.condition == "not-authorized"


def test_unknown_users_cannot_be_told_from_known_ones():
    def challenge(user):
        client = sasl.SaslClient([sasl.SCRAM_SHA_256], user, "pencil", encrypted=True)
        other = server()
        text = other.on_first(client.first)
        fields = dict(part.split("=", 1) for part in base64.b64decode(text).decode().split(","))
        with pytest.raises(sasl.SaslError) as caught:
            other.on_final(client.on_challenge(text))
        return fields["s"], fields["i"], caught.value.condition, str(caught.value)

    first, again, other = challenge("ghost"), challenge("ghost"), challenge("spirit")
    assert first == again
    assert first[0] != other[0]
    assert len(base64.b64decode(first[0])) == len(SALT)
    assert first[1:] == other[1:] == ("4096", "not-authorized", "Name or password is wrong.")


def test_a_server_that_does_not_know_the_password_is_not_believed():
    client = sasl.SaslClient([sasl.SCRAM_SHA_256], "user", "pencil", encrypted=True)
    client.on_challenge(server(password="other").on_first(client.first))
    with pytest.raises(AuthenticationError):
        client.on_success(sasl.encode(b"v=" + base64.b64encode(b"x" * 32)))


@pytest.mark.parametrize("data", ["", "="])
def test_success_without_a_signature_is_not_believed(data):
    client = sasl.SaslClient([sasl.SCRAM_SHA_256], "user", "pencil", encrypted=True)
    client.on_challenge(server().on_first(client.first))
    with pytest.raises(AuthenticationError):
        client.on_success(data)


def test_success_before_any_challenge_is_not_believed():
    client = sasl.SaslClient([sasl.SCRAM_SHA_256], "user", "pencil", encrypted=True)
    with pytest.raises(AuthenticationError):
        client.on_success(sasl.encode(b"v=" + base64.b64encode(b"x" * 32)))


def test_the_signature_may_come_as_a_challenge():
    client = sasl.SaslClient([sasl.SCRAM_SHA_1], "user", "pencil", encrypted=True)
    other = server(sasl.SCRAM_SHA_1)
    _, success = other.on_final(client.on_challenge(other.on_first(client.first)))
    assert client.on_challenge(success) == "="
    client.on_success("")


@pytest.mark.parametrize("count", ["1", "4095", "1000001", "99999999999999", "x"])
def test_iterations_out_of_bounds_are_refused(count):
    client = sasl.SaslClient([sasl.SCRAM_SHA_256], "user", "pencil", encrypted=True)
    nonce = base64.b64decode(client.first).decode().rpartition("r=")[2]
    with pytest.raises(AuthenticationError):
        client.on_challenge(sasl.encode(f"r={nonce}abc,s={sasl.encode(SALT)},i={count}".encode()))


@pytest.mark.parametrize(
    "text",
    ["!", "AA", sasl.encode(b"\xff"), sasl.encode(b"n,,n=u"), "=", "A" * 5000, sasl.encode(b"p=x,,n=u,r=a")],
)
def test_rubbish_is_refused_by_the_server(text):
    with pytest.raises(sasl.SaslError):
        server().on_first(text)


def test_acting_for_somebody_else_is_refused():
    with pytest.raises(sasl.SaslError) as caught:
        server().on_first(sasl.encode(b"n,a=admin,n=user,r=abc"))
    assert caught.value.condition == "invalid-authzid"
    with pytest.raises(sasl.SaslError) as caught:
        sasl.parse_plain(sasl.encode(b"admin\0user\0pencil"))
    assert caught.value.condition == "invalid-authzid"


def test_plain_is_taken_apart_and_checked():
    assert sasl.parse_plain(sasl.encode(b"\0user\0pencil")) == ("user", "pencil")
    assert sasl.parse_plain(sasl.encode(b"user@x\0user\0pencil")) == ("user", "pencil")
    for text in (b"", b"\0user", b"\0\0x", b"\0user\0", b"\0a\0b\0c"):
        with pytest.raises(sasl.SaslError):
            sasl.parse_plain(sasl.encode(text))
    keys = sasl.make_keys(sasl.SCRAM_SHA_256, "pencil", SALT)
    assert sasl.check_password(sasl.SCRAM_SHA_256, "pencil", keys)
    assert not sasl.check_password(sasl.SCRAM_SHA_256, "pen", keys)
    assert not sasl.check_password(sasl.SCRAM_SHA_256, "\x00", keys)
    assert not sasl.check_password(
        sasl.SCRAM_SHA_256, "pencil", sasl.fake_keys(sasl.SCRAM_SHA_256, "u", SECRET)
    )


@pytest.mark.parametrize("password", ["", "\x07", "\ud800"])
def test_a_password_that_cannot_be_prepared_is_told(password):
    with pytest.raises(sasl.SaslError):
        sasl.make_keys(sasl.SCRAM_SHA_256, password, SALT)
