"""Who may work for a pool, use it, and steer all of it: rules, and the roles that a server tells.

Pure. A role comes from the rules that the manager was started with, or else from what the server of its own
domain tells of its accounts, or else, where that server tells nothing, from the domain alone. It must never
take anybody in for what is not known: an account of which a telling server has told nothing may nothing.
Called by the manager's rooms for everything that comes in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from kestrel.core.addresses import Pattern, matching, parts_of

Role = Literal["worker", "user", "admin"]
ROLES: Final[tuple[Role, ...]] = ("worker", "user", "admin")

_BITS: Final[dict[str, int]] = {"worker": 1, "user": 2, "admin": 7}
"""An administrator is a user and a worker, too."""
_OWN_BITS: Final[dict[Role, int]] = {"worker": 1, "user": 2, "admin": 4}
_ACTS: Final[dict[Role, str]] = {
    "worker": "work for this pool",
    "user": "use this pool",
    "admin": "administrate this pool",
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why somebody may not, as the `error` message says it."""

    code: str
    text: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class AccessRules:
    """Lists of who may what. An empty list leaves its role to the default; `denied` beats everything."""

    admins: tuple[Pattern, ...] = ()
    users: tuple[Pattern, ...] = ()
    workers: tuple[Pattern, ...] = ()
    denied: tuple[Pattern, ...] = ()
    owners: tuple[Pattern, ...] = ()
    """Administrators beside those of the list or the default: who started the manager."""

    @classmethod
    def of(
        cls,
        *,
        admins: tuple[str, ...] = (),
        users: tuple[str, ...] = (),
        workers: tuple[str, ...] = (),
        denied: tuple[str, ...] = (),
    ) -> AccessRules:
        """Rules from texts; raises `PatternError`."""
        admin, user, worker, deny = (
            tuple(Pattern.parse(text) for text in texts) for texts in (admins, users, workers, denied)
        )
        return cls(admin, user, worker, deny)

    def listed(self, role: Role) -> tuple[Pattern, ...]:
        """The list of one role."""
        match role:
            case "worker":
                return self.workers
            case "user":
                return self.users
            case "admin":
                return self.admins

    def as_words(self, home: str) -> dict[str, list[str]]:
        """Who may what, for people and programs; `home` as in `Access`."""
        default = [f"everybody of {home}"] if home else []
        return {
            "workers": _names(self.workers) or default,
            "users": _names(self.users) or default,
            "admins": _names((*self.admins, *self.owners)),
            "denied": _names(self.denied),
        }

    def sentence(self, home: str) -> str:
        """The same in one line: `Workers and users: everybody of example.org; admins: nobody.`"""
        names = {role: ", ".join(found) or "nobody" for role, found in self.as_words(home).items()}
        if names["workers"] == names["users"]:
            parts = [f"Workers and users: {names['users']}"]
        else:
            parts = [f"Workers: {names['workers']}", f"users: {names['users']}"]
        parts.append(f"admins: {names['admins']}")
        if self.denied:
            parts.append(f"shut out: {names['denied']}")
        defaults = home and not (self.workers and self.users)
        told = f" Roles that the server of {home} tells hold instead." if defaults else ""
        return "; ".join(parts) + "." + told


class Access:
    """Answers who may what. Remembers the roles that the believed server told, `roles_max` at most."""

    def __init__(self, rules: AccessRules, authority: str = "", *, roles_max: int, cached_max: int) -> None:
        """`authority`: domain whose server is believed; empty: the one of the manager, once it is known."""
        self.rules = rules
        self.home = ""
        """Domain whose accounts may work and use where nothing else is said; empty: nobody may."""
        self._authority = authority
        self._told: dict[str, Role] = {}
        self._tells = False
        """Whether the believed server has told any role: then its accounts have no others."""
        self._roles_max = roles_max
        self._cache: dict[str, int] = {}
        self._cached_max = cached_max

    @property
    def authority(self) -> str:
        """Domain whose server is believed, for its own accounts."""
        return self._authority or self.home

    def live_at(self, address: str) -> None:
        """The manager's own address is known."""
        home = home_of(address)
        if home != self.home:
            self.home = home
            self._cache.clear()

    def tell(self, jid: str, role: str) -> str:
        """The believed server says that this account of its domain has this role (`none`: no account, or
        none of its roles). Who may have lost a right by that: the account, the whole domain when it is the
        first role that is told, or nobody (empty)."""
        if parts_of(jid).domain != self.authority:
            return ""
        first, self._tells = not self._tells, True
        known = self._told.pop(jid, None)
        if role in ROLES:
            self._told[jid] = role
            if len(self._told) > self._roles_max:
                del self._told[next(iter(self._told))]
        changed = first or (known is not None and known != role)
        if changed:
            self._cache.clear()
        if first:
            return self.authority
        return jid if changed else ""

    def may(self, address: str, role: Role) -> Refusal | None:
        """None if the address may act in this role; else why not. The address is the one that was stamped."""
        if self._bits(address) & _OWN_BITS[role]:
            return None
        return self._refusal(address, role)

    def admits(self, address: str) -> bool:
        """Whether the address may anything here at all."""
        return self._bits(address) != 0

    def is_admin(self, address: str) -> bool:
        """Whether the address may touch what is not its own."""
        return bool(self._bits(address) & _OWN_BITS["admin"])

    # ----------------------------------------------------------------------------------------------

    def _bits(self, address: str) -> int:
        bits = self._cache.get(address)
        if bits is None:
            bits = self._judged(address)
            if bits:  # strangers are not remembered: there is no end of them
                if len(self._cache) >= self._cached_max:
                    self._cache.clear()
                self._cache[address] = bits
        return bits

    def _judged(self, address: str) -> int:
        rules = self.rules
        if matching(rules.denied, address):
            return 0
        default = self._default(address)
        bits = 0
        for role in ROLES:
            listed = rules.listed(role)
            if matching(listed, address) if listed else default & _OWN_BITS[role]:
                bits |= _BITS[role]
        if matching(rules.owners, address):
            bits |= _BITS["admin"]
        return bits

    def _default(self, address: str) -> int:
        user, domain, _ = parts_of(address)
        if not user:  # a server or a component is nobody's account
            return 0
        if self._tells and domain == self.authority:
            told = self._told.get(f"{user}@{domain}")
            return _BITS[told] if told is not None else 0
        return _BITS["worker"] | _BITS["user"] if domain == self.home and domain else 0

    def _refusal(self, address: str, role: Role) -> Refusal:
        account = address.partition("/")[0]
        text = f"{account} may not {_ACTS[role]}"
        if matching(self.rules.denied, address):
            return Refusal("not_allowed", f"{text}: it is shut out", "ask an administrator of the pool")
        if role == "admin":
            return Refusal("not_admin", text, f"the manager's option --admin {account} allows it")
        domain = parts_of(account).domain
        told = self._told.get(account)
        if self.rules.listed(role):
            text = f"{text}: it is on no list of {role}s"
        elif self._tells and domain == self.authority:
            text = f"{text}: " + (f"its role is {told}" if told else f"it has no role on {domain}")
        else:
            text = f"{text}: " + (
                f"it is no account of {self.home}" if self.home else f"there is no list of {role}s"
            )
        hint = f"an administrator of the pool can allow it: option --{role} {account} of its manager"
        if told:
            hint = f"who runs the server can change that: kestrel account role {account} {role}"
        return Refusal("not_allowed", text, hint)


def is_of(address: str, whose: str) -> bool:
    """Whether the address belongs to this account or domain."""
    account = address.partition("/")[0]
    return whose in (account, account.rpartition("@")[2])


def home_of(address: str) -> str:
    """The domain of whose server a manager is a guest: that of its account, or a component's without the
    first label (`kestrel.example.org` is a guest of example.org)."""
    user, domain, _ = parts_of(address)
    return domain if user else domain.partition(".")[2]


def _names(patterns: tuple[Pattern, ...]) -> list[str]:
    return [_name(p) for p in patterns]


def _name(pattern: Pattern) -> str:
    if pattern.user or pattern.resource:
        return pattern.text
    return f"everybody of {pattern.domain}" if pattern.domain else "everybody"
