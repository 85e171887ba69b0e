"""Contacts and presence subscriptions of each account (RFC 6121 sections 2 and 3, appendix A).

The state table is pure; `Rosters` keeps it in the file of the accounts and remembers those of accounts
that are online. Called by the presence rules and by the roster queries. A contact is a bare JID.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum

from kestrel.errors import EnvironmentProblem
from kestrel.server.accounts import Accounts
from kestrel.xmpp.stanza import attributes, escape_text


@dataclass(frozen=True, slots=True)
class RosterItem:
    """One contact of one account."""

    contact: str
    name: str = ""
    groups: tuple[str, ...] = ()
    receives: bool = False
    """We get the contact's presence (`to`)."""
    sends: bool = False
    """The contact gets ours (`from`)."""
    asked: bool = False
    """We have asked to get it and wait for the answer (`ask='subscribe'`)."""
    pending: bool = False
    """The contact has asked to get ours and waits for the answer."""
    listed: bool = True
    """Whether it is in the roster as clients see it; a mere request is not (RFC 6121 section 3.1.3)."""

    @property
    def subscription(self) -> str:
        """`none`, `to`, `from` or `both`."""
        return ("none", "from", "to", "both")[2 * self.receives + self.sends]

    @property
    def is_void(self) -> bool:
        """Nothing is left to be kept."""
        return not (self.listed or self.pending)

    def xml(self) -> str:
        """As an `<item/>` of `jabber:iq:roster`."""
        ask = "subscribe" if self.asked else ""
        head = attributes(jid=self.contact, name=self.name, subscription=self.subscription, ask=ask)
        if not self.groups:
            return f"<item{head}/>"
        groups = "".join(f"<group>{escape_text(group)}</group>" for group in self.groups)
        return f"<item{head}>{groups}</item>"


class Verdict(Enum):
    """What becomes of a subscription stanza."""

    DROP = "drop"
    PASS = "pass"
    """Route it (outbound) or deliver it (inbound)."""
    ACCEPTED = "accepted"
    """It was accepted before: answer `subscribed` for the account."""


def outbound(item: RosterItem, kind: str) -> tuple[RosterItem, Verdict]:
    """The account's owner sends `kind` to the contact (RFC 6121 appendix A.2)."""
    match kind:
        case "subscribe":
            if item.receives:
                return item, Verdict.DROP
            return replace(item, asked=True, listed=True), Verdict.PASS
        case "unsubscribe":
            return replace(item, asked=False, receives=False), Verdict.PASS
        case "subscribed":
            if not item.pending:
                return item, Verdict.DROP
            return replace(item, pending=False, sends=True, listed=True), Verdict.PASS
        case "unsubscribed":
            if not (item.pending or item.sends):
                return item, Verdict.DROP
            return replace(item, pending=False, sends=False), Verdict.PASS
    raise AssertionError(kind)


def inbound(item: RosterItem, kind: str) -> tuple[RosterItem, Verdict]:
    """The contact sends `kind` to the account (RFC 6121 appendix A.3)."""
    match kind:
        case "subscribe":
            if item.sends:
                return item, Verdict.ACCEPTED
            if item.pending:
                return item, Verdict.DROP
            return replace(item, pending=True), Verdict.PASS
        case "unsubscribe":
            if not (item.pending or item.sends):
                return item, Verdict.DROP
            return replace(item, pending=False, sends=False), Verdict.PASS
        case "subscribed":
            if not item.asked:
                return item, Verdict.DROP
            return replace(item, asked=False, receives=True), Verdict.PASS
        case "unsubscribed":
            if not (item.asked or item.receives):
                return item, Verdict.DROP
            return replace(item, asked=False, receives=False), Verdict.PASS
    raise AssertionError(kind)


class Rosters:
    """All rosters. Read from the file when first asked for; kept while `is_online` says so."""

    def __init__(self, accounts: Accounts, is_online: Callable[[str], bool], items_max: int) -> None:
        self._accounts = accounts
        self._is_online = is_online
        self._items_max = items_max
        self._loaded: dict[str, dict[str, RosterItem]] = {}

    def of(self, local: str) -> dict[str, RosterItem]:
        """Contact → item, by contact. Not to be changed by the caller."""
        items = self._loaded.get(local)
        if items is not None:
            return items
        try:
            rows = self._accounts.connection.execute(
                "SELECT contact, name, groups, receives, sends, asked, pending, listed "
                "FROM roster WHERE local = ? ORDER BY contact",
                (local,),
            ).fetchall()
        except sqlite3.Error as problem:
            raise EnvironmentProblem(
                f"the accounts file {self._accounts.path} cannot be read: {problem}",
                hint="was it moved or damaged?",
                retry=True,
            ) from problem
        items = {
            contact: RosterItem(contact, name, tuple(json.loads(groups)), *map(bool, flags))
            for contact, name, groups, *flags in rows
        }
        if self._is_online(local):
            self._loaded[local] = items
        return items

    def item(self, local: str, contact: str) -> RosterItem:
        """The item, or a void one."""
        return self.of(local).get(contact) or RosterItem(contact, listed=False)

    def has_account(self, local: str) -> bool:
        """Whether there is such an account."""
        return self._accounts.role(local) is not None

    def has_room(self, local: str, contact: str) -> bool:
        """Whether the contact is there already or can be added."""
        items = self.of(local)
        return contact in items or len(items) < self._items_max

    def save(self, local: str, item: RosterItem) -> None:
        """Keep the item; a void one is deleted. Raises `EnvironmentProblem` if it cannot be written."""
        with self._accounts.transaction() as connection:
            if item.is_void:
                connection.execute(
                    "DELETE FROM roster WHERE local = ? AND contact = ?", (local, item.contact)
                )
            else:
                connection.execute(
                    "INSERT OR REPLACE INTO roster VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        local,
                        item.contact,
                        item.name,
                        json.dumps(item.groups),
                        item.receives,
                        item.sends,
                        item.asked,
                        item.pending,
                        item.listed,
                    ),
                )
        items = self._loaded.get(local)
        if items is not None:
            items.pop(item.contact, None)
            if not item.is_void:
                items[item.contact] = item

    def forget(self, local: str) -> None:
        """The account is offline: what was remembered is dropped."""
        self._loaded.pop(local, None)

    @property
    def remembered(self) -> int:
        """How many rosters are held in memory."""
        return len(self._loaded)
