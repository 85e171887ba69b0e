"""The configuration of a Prosody 0.12 that serves one pool. A pure text; each line says what it is for.

Called through `kestrel.local.foreign`. What the lines are good for was measured: docs/servers/prosody.md.
"""

from __future__ import annotations

from kestrel.config import WEBSOCKET_PATH
from kestrel.local.foreign.plan import CONNECTING_S_MAX, STANZA_BYTES_MAX, ServerPlan

STANZAS_UNACKED_MAX = 10_000


def prosody_cfg(plan: ServerPlan) -> str:
    """The text of prosody.cfg.lua."""
    return "\n".join([*_head(plan), *_ports(plan), *_security(plan), *_speed(), *_hosts(plan)]) + "\n"


def _head(plan: ServerPlan) -> list[str]:
    modules = ["roster", "saslauth", "tls", "disco", "ping", "smacks", "admin_shell", "posix"]
    modules += ["websocket"] if plan.https_port else []
    modules += ["invites", "invites_register", "register"] if plan.invites else []
    closed = ["offline"] + ([] if plan.federation else ["s2s", "s2s_auth_certs"])
    lines = [
        f"-- Prosody 0.12 for a pool of Kestrel: domain {plan.domain}, manager {plan.component}.",
        "-- This file has a secret in it: only the server should be able to read it.",
        "",
        f'data_path = "{plan.data}" -- accounts are kept here',
    ]
    lines += [f'pidfile = "{plan.pidfile}"'] if plan.pidfile else []
    lines += [
        "log = {",
        f'  {plan.log_level} = "{plan.logs}/prosody.log"; -- logins, losses of sessions',
        "}",
    ]
    if plan.as_root:
        lines += ["run_as_root = true -- made by root; better make and run it as an ordinary user"]
    return [
        *lines,
        "",
        "-- Logins, TLS, pings, acknowledgements (XEP-0198), `prosodyctl shell`. Workers need no archive, no",
        "-- profile pictures, no lists of devices: what is not loaded costs nothing.",
        f"modules_enabled = {{ {_names(modules)} }}",
        "-- Nothing is kept for who is offline: managers and workers say again what matters.",
        f"modules_disabled = {{ {_names(closed)} }}",
    ]


def _ports(plan: ServerPlan) -> list[str]:
    lines = [
        "",
        f'interfaces = {{ "{plan.listen}" }} -- where workers and users reach this server',
        f"c2s_ports = {{ {plan.port} }} -- XMPP with STARTTLS",
        f"c2s_direct_tls_ports = {{ {plan.tls_port or ''} }} -- TLS from the first byte (XEP-0368)",
        "http_ports = {} -- no HTTP in the clear",
        f"https_ports = {{ {plan.https_port or ''} }} -- WebSocket: wss://…{WEBSOCKET_PATH}",
    ]
    if plan.https_port:
        lines += [
            f'http_default_host = "{plan.domain}" -- also for who knows only an address',
            f'http_paths = {{ websocket = "{WEBSOCKET_PATH}" }}',
        ]
    lines += [
        f'component_interfaces = {{ "{plan.component_listen}" }} -- the manager; there is no encryption',
        f"component_ports = {{ {plan.component_port} }}",
    ]
    if plan.federation is None:
        return [*lines, "s2s_ports = {} -- closed to other servers"]
    lines += [f"s2s_ports = {{ {plan.federation.port} }} -- other servers"]
    lines += [f's2s_interfaces = {{ "{plan.federation.ip}" }}'] if plan.federation.ip else []
    if plan.federation.dns:
        lines += [f'unbound = {{ resolvconf = false; hoststxt = true; forward = "{plan.federation.dns}" }}']
    return lines


def _security(plan: ServerPlan) -> list[str]:
    required = str(plan.tls_required).lower()
    why = "no login without TLS" if plan.tls_required else "on loopback TLS is offered, not demanded"
    cafile = f'; cafile = "{plan.federation.cafile}"' if plan.federation and plan.federation.cafile else ""
    lines = [
        "",
        f'certificates = "{plan.certificate.rpartition("/")[0] or "."}"',
        f'ssl = {{ certificate = "{plan.certificate}"; key = "{plan.key}"{cafile} }}',
        f"c2s_require_encryption = {required} -- {why}",
        'authentication = "internal_hashed" -- passwords are kept as salted keys …',
        'password_hash = "SHA-256" -- … for SCRAM-SHA-256',
        'disable_sasl_mechanisms = { "PLAIN", "DIGEST-MD5" } -- a password itself never travels',
        "c2s_timeout = 30 -- seconds that a connection may be without a login",
    ]
    if plan.federation:
        lines += [
            "s2s_require_encryption = true",
            "s2s_secure_auth = true -- other servers by a good certificate only",
            f"s2s_stanza_size_limit = {STANZA_BYTES_MAX}",
            f"s2s_timeout = {CONNECTING_S_MAX} -- then what waits for another server comes back; stock: 90",
        ]
    if plan.invites:
        lines += [
            "allow_registration = true -- accounts are made by who has an invitation …",
            "registration_invite_only = true -- … and by nobody else (XEP-0445)",
        ]
    else:
        lines += ["allow_registration = false -- accounts are made with `prosodyctl adduser`"]
    return lines


def _speed() -> list[str]:
    return [
        "",
        "-- No mod_limits: Debian's 10 kB/s would hold workers and managers back.",
        f"c2s_stanza_size_limit = {STANZA_BYTES_MAX} -- a batch of tasks or results is one stanza",
        f"component_stanza_size_limit = {STANZA_BYTES_MAX}",
        f"smacks_max_queue_size = {STANZAS_UNACKED_MAX} -- stanzas on the way to one session",
        'network_backend = "epoll"',
        "-- Large reads; no waiting for more data; room for many that connect at once; without Nagle's",
        "-- algorithm, which costs 45 ms per batch. After read_timeout of silence a space is sent: NAT boxes",
        "-- remember the connection.",
        "network_settings = {",
        "  read_size = 65536; min_wait = 0.00001; tcp_backlog = 1024; read_timeout = 10; nagle = false;",
        "}",
        "-- The usual collector of garbage collapses with many sessions: 7,400 against 32,000 messages/s.",
        'gc = { mode = "incremental"; threshold = 200; speed = 200 }',
    ]


def _hosts(plan: ServerPlan) -> list[str]:
    return [
        "",
        f'VirtualHost "{plan.domain}" -- accounts are somebody@{plan.domain}',
        "",
        f'Component "{plan.component}" -- the manager',
        f'  component_secret = "{plan.secret}"',
        "  -- Who connects last is the manager: a standby takes the place of one that stands still.",
        '  component_conflict_resolve = "kick_old"',
    ]


def _names(names: list[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)
