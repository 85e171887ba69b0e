"""The log of one history: what happened when, cheap to write, formatted only when somebody reads it.

It must never hold anything whose text depends on the machine or the interpreter's hash seed: the
digest of a history is compared between processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

Entry = tuple[object, ...]


class Trace:
    """Entries of one history, oldest first; beyond `entries_max` only their number is kept."""

    def __init__(self, entries_max: int = 2_000_000) -> None:
        self._entries: list[tuple[float, str, Entry]] = []
        self._entries_max = entries_max
        self.dropped = 0

    def add(self, now: float, what: str, *fields: object) -> None:
        """Note that `what` happened at `now` seconds of virtual time."""
        if len(self._entries) < self._entries_max:
            self._entries.append((now, what, fields))
        else:
            self.dropped += 1

    def __len__(self) -> int:
        return len(self._entries) + self.dropped

    def lines(self, last: int | None = None) -> Iterator[str]:
        """The entries as text, all or only the last ones."""
        last = None if last is None else min(last, len(self._entries))
        entries = self._entries if last is None else self._entries[len(self._entries) - last :]
        for now, what, fields in entries:
            yield f"{now:10.4f} {what:14s} " + " ".join(_text(f) for f in fields)

    def digest(self) -> str:
        """One number for the whole history, equal for equal histories."""
        digest = hashlib.sha256()
        for line in self.lines():
            digest.update(line.encode())
            digest.update(b"\n")
        return digest.hexdigest()


def _text(field: object) -> str:
    if isinstance(field, bytes):
        return field.decode("utf-8", "replace")
    return str(field)
