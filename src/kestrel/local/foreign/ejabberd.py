"""The configuration of an ejabberd 23.01 that serves one pool. Pure texts; each line says what it is for.

Called through `kestrel.local.foreign`. What the lines are good for was measured: docs/servers/ejabberd.md.
"""

from __future__ import annotations

from kestrel.config import WEBSOCKET_PATH
from kestrel.local.foreign.plan import RETRY_S_MAX, SESSIONS_PER_ACCOUNT_MAX, STANZA_BYTES_MAX, ServerPlan

STANZAS_QUEUED_MAX = 100_000
"""Waiting for one connection; more, and it is closed as too slow."""
BACKLOG = 1024


def ejabberd_yml(plan: ServerPlan) -> str:
    """The text of ejabberd.yml."""
    return "\n".join([*_head(plan), *_security(plan), *_listeners(plan), *_rules(), *_modules(plan)]) + "\n"


def ejabberdctl_cfg(*, config: str, data: str, logs: str, distribution_port: int) -> str:
    """The text of ejabberdctl.cfg for a server of one's own: its commands reach it on loopback only."""
    return "\n".join(
        [
            "# Settings of ejabberdctl for this server alone.",
            f'EJABBERD_CONFIG_PATH="{config}"',
            f'SPOOL_DIR="{data}"',
            f'LOGS_DIR="{logs}"',
            f'EJABBERD_LOG_PATH="{logs}/ejabberd.log"',
            f'EJABBERD_PID_PATH="{data}/ejabberd.pid"',
            "# The name and the port by which ejabberdctl finds the server: on this machine, without epmd.",
            f"ERLANG_NODE=kestrel-{distribution_port}@localhost",
            "INET_DIST_INTERFACE=127.0.0.1",
            f"ERL_DIST_PORT={distribution_port}",
            "",
        ]
    )


def _head(plan: ServerPlan) -> list[str]:
    return [
        f"# ejabberd 23.01 for a pool of Kestrel: domain {plan.domain}, manager {plan.component}.",
        "# This file has a secret in it: only the server should be able to read it.",
        "",
        f"loglevel: {plan.log_level}",
        "log_rotate_count: 1",
        "hosts:",
        f'  - "{plan.domain}" # accounts are somebody@{plan.domain}',
    ]


def _security(plan: ServerPlan) -> list[str]:
    files = dict.fromkeys((plan.certificate, plan.key))
    lines = ["", "certfiles:", *(f'  - "{name}"' for name in files)]
    lines += [
        "auth_method: internal",
        "auth_password_format: scram # passwords are kept as salted keys …",
        "auth_scram_hash: sha256 # … for SCRAM-SHA-256",
        "disable_sasl_mechanisms: [plain, digest-md5, x-oauth2] # a password itself never travels",
    ]
    if plan.federation is None:
        return [*lines, "s2s_access: none # closed to other servers"]
    lines += ["s2s_use_starttls: required # other servers by a good certificate only"]
    lines += [
        "# After a failed connection all that is for that server comes back as an error, for up to:",
        f"s2s_max_retry_delay: {RETRY_S_MAX} seconds # stock: 5 minutes",
    ]
    return [*lines, *([f's2s_cafile: "{plan.federation.cafile}"'] if plan.federation.cafile else [])]


def _listeners(plan: ServerPlan) -> list[str]:
    client = ["module: ejabberd_c2s", "access: c2s", *_bounds(), f"max_fsm_queue: {STANZAS_QUEUED_MAX}"]
    secure = "starttls_required: true" if plan.tls_required else "starttls: true"
    lines = ["", "listen:", "  # Workers and users: XMPP with STARTTLS."]
    lines += _listener(plan.port, plan.listen, [*client, secure])
    if plan.tls_port:
        lines += ["  # The same with TLS from the first byte (XEP-0368)."]
        lines += _listener(plan.tls_port, plan.listen, [*client, "tls: true"])
    if plan.https_port:
        lines += [f"  # The same as WebSocket: wss://…{WEBSOCKET_PATH} (RFC 7395)."]
        handlers = ["request_handlers:", f"  {WEBSOCKET_PATH}: ejabberd_http_ws"]
        http = ["module: ejabberd_http", "tls: true", f"backlog: {BACKLOG}", *handlers]
        lines += _listener(plan.https_port, plan.listen, http)
    lines += ["  # The manager (XEP-0114 has no encryption: loopback, or a network that you trust)."]
    manager = ["module: ejabberd_service", "access: all", *_bounds(), f"max_fsm_queue: {STANZAS_QUEUED_MAX}"]
    manager += ["hosts:", f'  "{plan.component}":', f'    password: "{plan.secret}"']
    lines += _listener(plan.component_port, plan.component_listen, manager)
    if plan.federation:
        ip = plan.federation.ip or plan.listen
        lines += ["  # Other servers."]
        lines += _listener(plan.federation.port, ip, ["module: ejabberd_s2s_in", *_bounds()])
    return lines


def _bounds() -> list[str]:
    """A batch of tasks or results is one stanza, and nobody is slowed down."""
    return [f"max_stanza_size: {STANZA_BYTES_MAX}", "shaper: none", f"backlog: {BACKLOG}"]


def _listener(port: int, ip: str, options: list[str]) -> list[str]:
    return [f"  - port: {port}", f'    ip: "{ip}"', *(f"    {option}" for option in options)]


def _rules() -> list[str]:
    return [
        "",
        "# All workers of a pool may share one account; Debian's limit is 10 sessions.",
        "shaper_rules:",
        f"  max_user_sessions: {SESSIONS_PER_ACCOUNT_MAX}",
        "access_rules:",
        "  c2s:",
        "    - allow: all",
        "# `ejabberdctl` may do everything; nothing else administers this server.",
        "api_permissions:",
        "  console:",
        "    from: ejabberd_ctl",
        "    who: all",
        '    what: "*"',
        "websocket_ping_interval: 30 seconds # NAT boxes remember the connection",
    ]


def _modules(plan: ServerPlan) -> list[str]:
    lines = [
        "",
        "# No archive, no offline messages, no registration (accounts: `ejabberdctl register`).",
        "modules:",
        "  mod_disco: {}",
        "  mod_roster: {}",
        "  mod_ping: # who has vanished is closed; the manager has noticed long before",
        "    send_pings: true",
        "    ping_interval: 30 seconds # and NAT boxes remember the connection",
        "    ping_ack_timeout: 30 seconds",
        "    timeout_action: kill",
        "  mod_stream_mgmt: # acknowledgements (XEP-0198); who is lost is lost at once",
        "    resume_timeout: 0",
        "    max_resume_timeout: 0",
    ]
    if plan.tls_required:
        lines += [
            "  mod_fail2ban: # 20 wrong passwords in 10 minutes, and an address has to wait as long",
            "    c2s_max_auth_failures: 20",
            "    c2s_auth_ban_lifetime: 10 minutes",
        ]
    return lines
