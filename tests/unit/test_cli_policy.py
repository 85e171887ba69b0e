"""The options with which a manager is told who may do what, how much, and when a worker is lost."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from kestrel.cli.main import cli
from kestrel.cli.policy import Policy, policy_options, read_pattern
from kestrel.errors import UsageError
from kestrel.manager.access import AccessRules


def policy(*words: str) -> Policy:
    """What the command is called with."""
    got: list[Policy] = []

    @click.command()
    @policy_options
    def command(policy: Policy) -> None:
        got.append(policy)

    command.main(list(words), standalone_mode=False)
    return got[0]


def test_without_options_everything_is_as_it_is_set():
    settings = policy().settings("lab")
    assert settings == type(settings)(pool="lab")


def test_lists_may_be_repeated():
    rules = policy("--user", "a.org", "--user", "*@b.org", "--deny", "eve@b.org").settings("p").access
    assert rules == AccessRules.of(users=("a.org", "*@b.org"), denied=("eve@b.org",))


def test_who_starts_it_administrates_beside_the_list():
    rules = policy("--admin", "ann@a.org").settings("p", owners=("admin@x",)).access
    assert [str(p) for p in rules.admins] == ["ann@a.org"]
    assert [str(p) for p in rules.owners] == ["admin@x"]


def test_limits_reach_the_settings():
    settings = policy("--max-queued", "7", "--max-rate", "2.5").settings("p")
    assert settings.tasks_open_per_user_max == 7
    assert (settings.messages_per_s, settings.messages_burst) == (2.5, 12.5)


def test_a_worker_is_lost_after_the_time_that_is_named():
    settings = policy("--lost-after", "3s").settings("p")
    assert (settings.scheduler.lease_s, settings.scheduler.probe_s) == (3.0, 1.0)
    assert settings.tick_s < 0.5


def test_less_than_two_seconds_is_refused():
    with pytest.raises(UsageError) as refused:
        policy("--lost-after", "1.9s")
    assert "2s at least" in refused.value.hint


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("ann@@example.org", "did you mean --user ann@example.org?"),
        ("xmpp:ann@example.org", "did you mean --user ann@example.org?"),
        ("ann@example.org,", "did you mean --user ann@example.org?"),
        ("ann@x@example.org", "did you mean --user ann@example.org?"),
        ("a.org,b.org", "write --user a.org --user b.org"),
        ("ann@a.org bob@a.org", "write --user ann@a.org --user bob@a.org"),
        ("ann@", "e.g. --user ann@example.org, or a domain"),
        ("", "e.g. --user ann@example.org, or a domain"),
        ("@", "e.g. --user ann@example.org, or a domain"),
    ],
)
def test_what_is_no_pattern_is_refused_with_what_was_probably_meant(text: str, hint: str):
    with pytest.raises(UsageError) as refused:
        read_pattern(text, "--user")
    assert refused.value.hint == hint
    assert "--user" in refused.value.text


@pytest.mark.parametrize("text", ["ann@example.org", "*", "*.example.org", "lab@pool/4*", "*/core2"])
def test_what_is_a_pattern_is_taken_as_it_is(text: str):
    assert read_pattern(text, "--user").text == text


@pytest.mark.parametrize("command", ["manager", "up"])
def test_both_commands_have_the_options(command: str):
    shown = CliRunner().invoke(cli, [command, "--help"]).output
    for option in ("--admin", "--user", "--worker", "--deny", "--max-queued", "--max-rate", "--lost-after"):
        assert option in shown
