"""Accounts and invitations: what is kept, what is refused, what survives."""

import sqlite3
import stat

import pytest

from kestrel.errors import AuthenticationError, EnvironmentProblem, UsageError
from kestrel.server.accounts import Account, Accounts, NameTakenError, keys_of_password
from kestrel.server.database import MIGRATIONS, open_database
from kestrel.xmpp.sasl import check_password


@pytest.fixture
def accounts():
    made = Accounts(":memory:")
    yield made
    made.close()


def test_a_password_is_kept_as_keys_only_and_checked_by_both_mechanisms(tmp_path):
    path = tmp_path / "accounts.db"
    accounts = Accounts(path)
    assert accounts.add("Alice", "correct horse", "admin") == "alice"
    for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-1"):
        keys = accounts.keys("alice", mechanism)
        assert keys.iterations == 4096
        assert check_password(mechanism, "correct horse", keys)
        assert not check_password(mechanism, "wrong horse", keys)
    token = accounts.invite("worker")
    accounts.close()
    content = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"correct horse" not in content
    assert token.encode() not in content


def test_the_file_is_for_its_owner_only_and_is_mended_if_it_was_not(tmp_path):
    path = tmp_path / "accounts.db"
    Accounts(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    accounts = Accounts(path)
    accounts.add("a", "b", "user")
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o600}
    accounts.close()


def test_accounts_last_and_roles_can_be_read(tmp_path):
    accounts = Accounts(tmp_path / "a.db")
    accounts.add("w", "1", "worker")
    secret = accounts.secret
    accounts.close()
    accounts = Accounts(tmp_path / "a.db")
    assert accounts.role("w") == "worker"
    assert accounts.role("nobody") is None
    assert [(a.local, a.role) for a in accounts.everyone()] == [("w", "worker")]
    assert accounts.secret == secret
    accounts.close()


def test_put_replaces_password_and_role_and_add_refuses_a_taken_name(accounts):
    accounts.put("a", "one", "user")
    accounts.put("a", "two", "admin")
    assert accounts.role("a") == "admin"
    assert check_password("SCRAM-SHA-1", "two", accounts.keys("a", "SCRAM-SHA-1"))
    with pytest.raises(NameTakenError):
        accounts.add("A", "three", "user")
    assert check_password("SCRAM-SHA-1", "two", accounts.keys("a", "SCRAM-SHA-1"))


def test_removed_accounts_leave_no_keys(accounts):
    accounts.add("a", "one", "user")
    accounts.remove("a")
    assert accounts.keys("a", "SCRAM-SHA-1") is None
    with pytest.raises(UsageError, match="no account"):
        accounts.remove("a")


@pytest.mark.parametrize("name", ["", "a b", "a@b", "a/b", "x" * 1100, "\u0000"])
def test_names_that_are_no_local_parts_are_refused(accounts, name):
    with pytest.raises(UsageError):
        accounts.add(name, "pw", "user")
    assert accounts.everyone() == []


@pytest.mark.parametrize("password", ["", "\u0007", "x" * 2000])
def test_unusable_passwords_are_refused(accounts, password):
    with pytest.raises(UsageError):
        accounts.add("a", password, "user")


def test_unknown_roles_and_iterations_are_refused(accounts):
    with pytest.raises(UsageError, match="no role"):
        accounts.add("a", "b", "king")
    with pytest.raises(UsageError, match="iterations"):
        Accounts(":memory:", iterations=1)


def test_an_invitation_makes_as_many_accounts_as_it_says(accounts):
    token = accounts.invite("worker", uses=2)
    keys = keys_of_password("pw")
    assert accounts.check_token(token) == "worker"
    assert accounts.redeem(token, "w1", keys) == "worker"
    assert accounts.redeem(token, "w2", keys) == "worker"
    with pytest.raises(AuthenticationError):
        accounts.redeem(token, "w3", keys)
    assert [a.local for a in accounts.everyone()] == ["w1", "w2"]


def test_a_taken_name_uses_nothing_up(accounts):
    accounts.add("w1", "x", "user")
    token = accounts.invite("worker")
    with pytest.raises(NameTakenError):
        accounts.redeem(token, "w1", keys_of_password("pw"))
    assert accounts.role("w1") == "user"
    assert accounts.redeem(token, "w2", keys_of_password("pw")) == "worker"


def test_invitations_expire_and_can_be_revoked():
    now = [1000.0]
    accounts = Accounts(":memory:", clock=lambda: now[0])
    expiring, by_id, by_token = (accounts.invite("user", expires_s=s) for s in (10, 20, 30))
    accounts.revoke(accounts.invitations()[1].id)
    accounts.revoke(by_token)
    with pytest.raises(AuthenticationError):
        accounts.check_token(by_id)
    assert accounts.check_token(expiring) == "user"
    now[0] += 10
    with pytest.raises(AuthenticationError):
        accounts.check_token(expiring)
    assert accounts.invitations() == []
    with pytest.raises(UsageError):
        accounts.revoke("nothing")
    used = accounts.invite("user")
    accounts.redeem(used, "ann", keys_of_password("pw"))
    assert accounts.revoke(accounts.everyone()[0].invitation) == accounts.id_of(used)  # as accounts show it
    with pytest.raises(AuthenticationError, match="revoked"):
        accounts.check_token(used)
    accounts.close()


def test_two_processes_may_have_the_file(tmp_path):
    first, second = Accounts(tmp_path / "a.db"), Accounts(tmp_path / "a.db")
    token = second.invite("worker")
    assert first.redeem(token, "w", keys_of_password("pw")) == "worker"
    assert second.role("w") == "worker"
    first.close()
    second.close()


def test_a_newer_file_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "a.db"
    Accounts(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(EnvironmentProblem, match="newer Kestrel"):
        Accounts(path)
    assert path.read_bytes() == before


def test_a_file_of_somebody_else_is_refused(tmp_path):
    path = tmp_path / "a.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    with pytest.raises(EnvironmentProblem, match="another application"):
        Accounts(path)
    (tmp_path / "text").write_text("This is no database, only a long enough text. " * 50)
    with pytest.raises(EnvironmentProblem, match="cannot be used"):
        Accounts(tmp_path / "text")


def test_a_place_that_cannot_be_is_named(tmp_path):
    with pytest.raises(EnvironmentProblem, match="missing"):
        Accounts(tmp_path / "missing" / "a.db")
    with pytest.raises(EnvironmentProblem, match="cannot be used"):
        Accounts(tmp_path)


def test_a_file_that_cannot_grow_is_reported_and_nothing_is_half_done(tmp_path):
    accounts = Accounts(tmp_path / "a.db")
    pages = accounts.connection.execute("PRAGMA page_count").fetchone()[0]
    accounts.connection.execute(f"PRAGMA max_page_count = {pages}")

    def fill() -> None:
        for number in range(1000):
            accounts.invite("worker", uses=number + 1)

    with pytest.raises(EnvironmentProblem, match="disk full") as caught:
        fill()
    assert caught.value.retry
    assert not accounts.connection.in_transaction
    accounts.close()


def test_the_version_changes_with_what_any_process_does_to_accounts(tmp_path):
    first, second = Accounts(tmp_path / "a.db"), Accounts(tmp_path / "a.db")
    seen = [first.version()]
    for change in (
        lambda: first.put("w", "pw", "worker"),
        lambda: first.set_role("w", "user"),
        lambda: first.set_keys("w", keys_of_password("new")),
        lambda: second.set_role("w", "admin"),
        lambda: second.remove("w"),
        lambda: second.put("w", "pw", "worker"),
        lambda: first.remove("w"),
    ):
        change()
        assert first.version() not in seen
        seen.append(first.version())
    assert first.version() == seen[-1]
    first.close()
    second.close()


def test_a_role_is_changed_for_accounts_that_are_there_and_roles_that_are_some(accounts):
    accounts.add("ann", "x", "user")
    accounts.set_role("Ann", "admin")
    assert accounts.role("ann") == "admin"
    with pytest.raises(UsageError, match="no account"):
        accounts.set_role("nobody", "admin")
    with pytest.raises(UsageError, match="no role"):
        accounts.set_role("ann", "king")


def test_accounts_tell_with_which_invitation_they_were_made(accounts):
    token = accounts.invite("worker", uses=2, name="room 12")
    (state,) = accounts.invitations()
    assert (state.name, state.id) == ("room 12", accounts.id_of(token))
    accounts.redeem(token, "w1", keys_of_password("pw"))
    assert accounts.account("w1").invitation == state.id
    assert accounts.revoke(token) == state.id
    assert accounts.account("w1").role == "worker"
    accounts.add("plain", "x", "user")
    assert accounts.account("plain").invitation == ""
    for name in ("x" * 101, "two\nlines"):
        with pytest.raises(UsageError, match="name of an invitation"):
            accounts.invite("worker", name=name)


def test_who_comes_with_a_dead_invitation_is_told_why_for_a_while():
    now = [1000.0]
    accounts = Accounts(":memory:", clock=lambda: now[0])
    used, late, gone = (accounts.invite("user", expires_s=100) for _ in range(3))
    accounts.redeem(used, "ann", keys_of_password("pw"))
    accounts.revoke(gone)

    def reasons():
        found = []
        for token in (used, late, gone, "never seen"):
            with pytest.raises(AuthenticationError) as caught:
                accounts.check_token(token)
            found.append(caught.value.text.removeprefix("the invitation "))
        return found

    unknown = "is unknown or was revoked"
    with pytest.raises(AuthenticationError, match="used up"):
        accounts.check_token(used)
    now[0] += 100
    assert reasons() == ["has expired", "has expired", unknown, unknown]
    accounts.invite("user")
    assert reasons()[0] == "has expired", "kept, so that it can be told"
    now[0] += 31 * 86400
    accounts.invite("user")
    assert reasons() == [unknown] * 4


def test_a_file_of_the_first_kestrel_is_taken_over(tmp_path):
    path = tmp_path / "a.db"
    open_database(path, migrations=MIGRATIONS[:1]).close()
    with sqlite3.connect(path) as connection:
        connection.execute("INSERT INTO accounts VALUES ('ann', 'user', 5.0)")
        connection.execute("INSERT INTO invitations VALUES ('00', 'worker', 3, 9e9, 5.0)")
    connection.close()
    accounts = Accounts(path)
    assert accounts.account("ann") == Account("ann", "user", 5.0, "")
    assert [(each.role, each.uses_left, each.name) for each in accounts.invitations()] == [("worker", 3, "")]
    accounts.close()
