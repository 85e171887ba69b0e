"""A set of things ordered by a number, with cheap changes: a heap whose stale entries are dropped late.

Used for workers that want work (least loaded first) and for workers that could give some back (most
loaded first). Ties go to who was entered first, so the order never depends on chance.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

T = TypeVar("T")


class Ranking(Generic[T]):
    """Members by ascending key. `put`, `discard` and `first` cost O(log n) amortised, memory is O(n)."""

    __slots__ = ("_entries", "_heap", "_serial")

    def __init__(self) -> None:
        self._entries: dict[T, tuple[int, int, T]] = {}
        self._heap: list[tuple[int, int, T]] = []
        self._serial = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, item: T) -> bool:
        return item in self._entries

    def __iter__(self) -> Iterator[T]:
        return iter(self._entries)

    def key(self, item: T) -> int:
        """The number it stands under; KeyError if it is not in."""
        return self._entries[item][0]

    def put(self, item: T, key: int) -> None:
        """Enter it, or give it another number."""
        known = self._entries.get(item)
        if known is not None and known[0] == key:
            return
        self._serial += 1
        entry = (key, self._serial, item)
        self._entries[item] = entry
        heap = self._heap
        heappush(heap, entry)
        if len(heap) > 2 * len(self._entries) + 64:
            heap[:] = self._entries.values()
            heapify(heap)

    def discard(self, item: T) -> None:
        """Take it out, if it is in."""
        self._entries.pop(item, None)

    def first(self) -> T | None:
        """The member with the least number, or None."""
        heap, entries = self._heap, self._entries
        while heap:
            entry = heap[0]
            if entries.get(entry[2]) is entry:
                return entry[2]
            heappop(heap)
        return None
