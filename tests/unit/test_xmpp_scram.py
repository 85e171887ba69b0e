"""SCRAM: the examples of the RFCs, an implementation that is not ours as the other end, and what is kept."""

import pytest
from scramp import ScramClient, ScramException, ScramMechanism
from scramp.utils import saslprep

from kestrel.errors import AuthenticationError
from kestrel.xmpp import sasl, scram

MECHANISMS = [sasl.SCRAM_SHA_256, sasl.SCRAM_SHA_1]
SALT = b"0123456789abcdef"
EXAMPLES = {
    sasl.SCRAM_SHA_1: (  # RFC 5802 section 5
        "fyko+d2lbbFgONRv9qkxdawL",
        "3rfcNHYJY1ZVvWVs7j",
        "QSXCR+Q6sek8bf92",
        "v0X8v3Bz2T0CJGbJQyF0X+HI4Ts=",
        "rmF9pqV8S7suAoZWja4dJRkFsKQ=",
    ),
    sasl.SCRAM_SHA_256: (  # RFC 7677 section 3
        "rOprNGfwEbeRWgbNEkqO",
        "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0",
        "W22ZaJ0SNY7soEsUEjb6gQ==",
        "dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
        "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=",
    ),
}


def plain(text):
    return sasl.decode(text).decode()


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_the_example_of_the_rfc_comes_out_word_for_word(mechanism):
    ours, theirs, salt, proof, signature = EXAMPLES[mechanism]
    client = sasl.SaslClient([mechanism], "user", "pencil", encrypted=False, nonce=ours)
    assert plain(client.first) == f"n,,n=user,r={ours}"
    keys = sasl.make_keys(mechanism, "pencil", scram.bytes_of(salt))
    server = sasl.ScramServer(mechanism, {"user": keys}.get, b"secret")
    challenge = server.on_first(client.first, nonce=theirs)
    assert plain(challenge) == f"r={ours}{theirs},s={salt},i=4096"
    final = client.on_challenge(challenge)
    assert plain(final) == f"c=biws,r={ours}{theirs},p={proof}"
    user, success = server.on_final(final)
    assert (user, plain(success)) == ("user", f"v={signature}")
    client.on_success(success)


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("user", ["user", "na=me", "a,b", "zoë"])
@pytest.mark.parametrize("password", ["pencil", "I\u00adX", "\u2168", "pass\u00a0word", "pwd=,"])
def test_our_client_agrees_with_a_server_that_is_not_ours(mechanism, user, password):
    kept = ScramMechanism(mechanism).make_auth_info(password, iteration_count=4096, salt=SALT)
    asked = []

    def find(name):
        asked.append(name)
        return kept

    other = ScramMechanism(mechanism).make_server(find)
    client = sasl.SaslClient([mechanism], user, password, encrypted=False)
    other.set_client_first(plain(client.first))
    other.set_client_final(plain(client.on_challenge(sasl.encode(other.get_server_first().encode()))))
    client.on_success(sasl.encode(other.get_server_final().encode()))
    assert asked == [user]


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("user", ["user", "na=me", "a,b", "zoë"])
@pytest.mark.parametrize("password", ["pencil", "I\u00adX", "\u2168", "pass\u00a0word", "pwd=,"])
def test_our_server_agrees_with_a_client_that_is_not_ours(mechanism, user, password):
    keys = sasl.make_keys(mechanism, password, SALT)
    server = sasl.ScramServer(mechanism, {user: keys}.get, b"secret")
    other = ScramClient([mechanism], user, password)
    other.set_server_first(plain(server.on_first(sasl.encode(other.get_client_first().encode()))))
    name, success = server.on_final(sasl.encode(other.get_client_final().encode()))
    other.set_server_final(plain(success))
    assert name == user


@pytest.mark.parametrize(
    "text",
    [
        "",
        "user",
        "I\u00adX",
        "\u00aa",
        "\u2168",
        "a\u00a0b",
        "\u0627\u0628",
        "x\u0627",
        "\u06271",
        "\x07",
        "\ud800",
        "\u0221",
        "\u200e",
        "\ue000",
        "a\x7f",
        "\u0340",
        "\ufff9",
        "\u0627x\u0628",
    ],
)
def test_texts_are_prepared_as_by_an_implementation_that_is_not_ours(text):
    try:
        expected = saslprep(text)
    except ScramException:
        with pytest.raises(scram.ScramError):
            scram.prepare(text)
    else:
        assert scram.prepare(text) == expected


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("r=", "r=X"),
        lambda text: text.replace("p=", "p=AAAA"),
        lambda text: text.replace("c=biws", "c=eSws"),
        lambda text: text.partition(",p=")[0],
        lambda text: text.replace(",p=", ",q="),
        lambda text: text[:-8],
        lambda text: "",
    ],
)
def test_a_proof_that_was_changed_on_its_way_is_refused(change):
    keys = sasl.make_keys(sasl.SCRAM_SHA_256, "pencil", SALT)
    server = sasl.ScramServer(sasl.SCRAM_SHA_256, {"user": keys}.get, b"secret")
    client = sasl.SaslClient([sasl.SCRAM_SHA_256], "user", "pencil", encrypted=False)
    final = plain(client.on_challenge(server.on_first(client.first)))
    with pytest.raises(sasl.SaslError):
        server.on_final(sasl.encode(change(final).encode()))


def test_a_proof_is_good_once_and_for_its_own_exchange():
    keys = sasl.make_keys(sasl.SCRAM_SHA_256, "pencil", SALT)
    first, second = (sasl.ScramServer(sasl.SCRAM_SHA_256, {"user": keys}.get, b"secret") for _ in "12")
    client = sasl.SaslClient([sasl.SCRAM_SHA_256], "user", "pencil", encrypted=False)
    final = client.on_challenge(first.on_first(client.first))
    second.on_first(client.first)
    with pytest.raises(sasl.SaslError):
        second.on_final(final)
    first.on_final(final)
    with pytest.raises(sasl.SaslError):
        first.on_final(final)


@pytest.mark.parametrize(
    "challenge",
    [
        "r=other,s=MDEyMzQ1Njc4OQ==,i=4096",
        "r=nonce,s=MDEyMzQ1Njc4OQ==,i=4096",
        "r=nonceX,s=!,i=4096",
        "r=nonceX,s=MDEy,i=4096",
        "r=nonceX,i=4096,s=MDEyMzQ1Njc4OQ==",
        "m=x,r=nonceX,s=MDEyMzQ1Njc4OQ==,i=4096",
        "r=nonceX,s=MDEyMzQ1Njc4OQ==,i=1",
        "r=nonceX\u00e9,s=MDEyMzQ1Njc4OQ==,i=4096",
        "",
    ],
)
def test_a_challenge_that_could_be_somebody_elses_gets_no_proof(challenge):
    client = sasl.SaslClient([sasl.SCRAM_SHA_256], "user", "pencil", encrypted=True, nonce="nonce")
    with pytest.raises(AuthenticationError):
        client.on_challenge(sasl.encode(challenge.encode()))


def test_a_second_challenge_gets_no_second_proof():
    client = sasl.SaslClient([sasl.SCRAM_SHA_256], "user", "pencil", encrypted=True, nonce="nonce")
    challenge = sasl.encode(b"r=nonceX,s=MDEyMzQ1Njc4OQ==,i=4096")
    client.on_challenge(challenge)
    with pytest.raises(sasl.SaslError):
        client.on_challenge(challenge)


def test_salted_keys_are_made_once_and_the_oldest_are_forgotten():
    kept = scram.SaltedKeys(kept_max=2)
    first = kept.of(sasl.SCRAM_SHA_256, "pencil", SALT, 4096)
    assert kept.of(sasl.SCRAM_SHA_256, "pencil", SALT, 4096) is first
    assert kept.of(sasl.SCRAM_SHA_256, "pen", SALT, 4096) != first
    kept.of(sasl.SCRAM_SHA_256, "pencil", SALT, 4096)
    kept.of(sasl.SCRAM_SHA_1, "pencil", SALT, 4096)
    assert len(kept) == 2
    assert kept.of(sasl.SCRAM_SHA_256, "pencil", SALT, 4096) is first
    assert first == scram.salt_password(sasl.SCRAM_SHA_256, "pencil", SALT, 4096)
    # What belongs to the password and what to the salt is told apart.
    assert kept.of(sasl.SCRAM_SHA_256, "a1", b"2" + SALT, 4096) != kept.of(
        sasl.SCRAM_SHA_256, "a", b"12" + SALT, 4096
    )


def test_nothing_secret_is_shown():
    kept = scram.SaltedKeys()
    keys = kept.of(sasl.SCRAM_SHA_256, "pencil", SALT, 4096)
    stored = sasl.make_keys(sasl.SCRAM_SHA_256, "pencil", SALT)
    shown = repr((kept, keys, stored))
    assert "pencil" not in shown
    for secret in (keys.client_key, keys.server_key, stored.stored_key, stored.server_key):
        assert repr(secret) not in shown
    assert "pencil" not in repr(vars(kept))


def test_many_sessions_of_one_account_salt_its_password_once():
    kept = scram.SaltedKeys()
    keys = sasl.make_keys(sasl.SCRAM_SHA_256, "pencil", SALT)
    for _ in range(50):
        server = sasl.ScramServer(sasl.SCRAM_SHA_256, {"user": keys}.get, b"secret")
        client = sasl.SaslClient([sasl.SCRAM_SHA_256], "user", "pencil", encrypted=True, salted=kept)
        client.on_success(server.on_final(client.on_challenge(server.on_first(client.first)))[1])
    assert len(kept) == 1
