"""`kestrel server config`: what is printed, what is written for its owner only, and what is refused."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kestrel.cli.main import cli
from kestrel.cli.server_config import config
from kestrel.errors import KestrelError
from kestrel.local.foreign import Federation, PlanError, ServerPlan, ejabberd_yml, prosody_cfg

KINDS = pytest.mark.parametrize("kind", ["prosody", "ejabberd"])
NAMES = {"prosody": "prosody.cfg.lua", "ejabberd": "ejabberd.yml"}


def run(*words: str) -> Result:
    # As below the root: click keeps a command's help option from its first call on.
    done = CliRunner().invoke(config, words, **cli.context_settings)
    if done.exception is not None and not isinstance(done.exception, (KestrelError, SystemExit)):
        raise done.exception
    return done


def plan(**changes: object) -> ServerPlan:
    given = {
        "domain": "example.org",
        "component": "kestrel.example.org",
        "secret": "hush",
        "data": "/data",
        "logs": "/logs",
        "certificate": "/c.pem",
        "key": "/k.pem",
    }
    return ServerPlan(**(given | changes))  # type: ignore[arg-type]


TEXTS = pytest.mark.parametrize("text_of", [prosody_cfg, ejabberd_yml])


@TEXTS
def test_tls_is_demanded_everywhere_but_on_loopback(text_of):
    demands = "c2s_require_encryption = true" if text_of is prosody_cfg else "starttls_required: true"
    assert demands not in text_of(plan())
    assert demands in text_of(plan(listen="0.0.0.0"))
    assert demands in text_of(plan(require_tls=True))


@TEXTS
def test_other_servers_are_shut_out_unless_asked_for(text_of):
    open_, shut = text_of(plan(federation=Federation(port=6269, cafile="/ca.pem"))), text_of(plan())
    assert "6269" in open_
    assert "/ca.pem" in open_
    assert ("s2s_access: none" in shut) or ('"s2s"' in shut and "s2s_ports = {}" in shut)
    assert "s2s_secure_auth = true" in open_ or "s2s_use_starttls: required" in open_


@TEXTS
def test_a_link_that_does_not_come_up_is_given_up_soon(text_of):
    text = text_of(plan(federation=Federation()))
    assert ("s2s_timeout = 20" in text) or ("s2s_max_retry_delay: 5 seconds" in text)


def test_where_and_whom_to_link_needs_the_wish_to_link():
    done = run("prosody", "--federate-listen", "192.0.2.1")
    assert isinstance(done.exception, KestrelError)
    assert "--federate" in done.exception.hint
    done = run("prosody", "--federate", "--federate-listen", "192.0.2.1", "--federate-ca", "/ca.pem")
    assert 's2s_interfaces = { "192.0.2.1" }' in done.output
    assert 'cafile = "/ca.pem"' in done.output


@pytest.mark.parametrize(
    "changes",
    [
        {"domain": 'a"b'},
        {"domain": "Example.org", "component": "kestrel.Example.org"},
        {"component": "kestrel.example.com"},
        {"secret": 'x"; os.exit()'},
        {"data": "/a\nb"},
        {"key": "a\\b"},
        {"listen": "everywhere"},
        {"federation": Federation(ip="everywhere")},
        {"federation": Federation(cafile='/a"b')},
        {"federation": Federation(dns="\n")},
    ],
)
def test_what_could_break_out_of_the_text_is_refused(changes):
    with pytest.raises(PlanError) as caught:
        plan(**changes)
    assert caught.value.hint


@KINDS
def test_printed_it_is_for_the_system_service_with_a_fresh_secret(kind):
    first, second = run(kind, "--domain", "example.org"), run(kind, "--domain", "example.org")
    assert first.exit_code == 0
    assert f"/var/lib/{kind}" in first.output or kind == "ejabberd"
    assert "kestrel.example.org" in first.output
    assert first.output != second.output


@KINDS
def test_in_a_directory_all_is_there_and_stays_and_nobody_else_may_read_it(kind, tmp_path: Path):
    own = tmp_path / "own"
    assert run(kind, "--dir", str(own), "--domain", "example.org").exit_code == 0
    before = {path.name: path.read_bytes() for path in own.iterdir() if path.is_file()}
    assert {NAMES[kind], "component.secret", "server.pem"} <= set(before)
    assert before["component.secret"].strip() in before[NAMES[kind]]
    if os.name == "posix":
        assert {stat.S_IMODE((own / name).stat().st_mode) for name in before} == {0o600}
        assert stat.S_IMODE(own.stat().st_mode) == 0o700
    assert run(kind, "--dir", str(own), "--domain", "example.org").exit_code == 0
    assert {path.name: path.read_bytes() for path in own.iterdir() if path.is_file()} == before


@KINDS
def test_a_configuration_that_was_changed_is_not_overwritten_by_accident(kind, tmp_path: Path):
    path = tmp_path / "server.conf"
    path.write_text("mine")
    refused = run(kind, "--output", str(path))
    assert isinstance(refused.exception, KestrelError)
    assert str(path) in str(refused.exception)
    assert path.read_text() == "mine"
    assert run(kind, "--output", str(path), "--force").exit_code == 0
    assert "kestrel.localhost" in path.read_text()


@KINDS
def test_the_secret_may_be_one_that_is_there(kind, tmp_path: Path):
    secret = tmp_path / "secret"
    secret.write_text("from-before\n")
    assert "from-before" in run(kind, "--secret-file", str(secret)).output
    secret.write_text("")
    assert isinstance(run(kind, "--secret-file", str(secret)).exception, KestrelError)


def test_what_ejabberd_cannot_do_is_refused_with_a_way_out():
    refused = run("ejabberd", "--invites")
    assert isinstance(refused.exception, KestrelError)
    assert refused.exception.hint
