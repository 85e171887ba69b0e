"""Where the parameters of a bag come from while it runs: at once from a list, or as a pipe gives them.

`take` gives what is there, at least one entry, at most a message full. Reading a pipe may block for
ever, so it happens on a daemon thread that waits while `AHEAD_MAX` entries are unclaimed.
Called by `run`.
"""

from __future__ import annotations

import asyncio
import threading
from array import array
from collections import deque
from collections.abc import Iterator

import msgspec

from kestrel.cli.arguments import Bag
from kestrel.cli.joblog import LoggedTasks
from kestrel.errors import UsageError
from kestrel.protocol.placeholders import Template

PIECE_TASKS_MAX = 10_000
"""Most tasks in one message."""
PIECE_BYTES_MAX = 100_000
"""About how much JSON of parameters travels in one message."""
ENTRY_BYTES_MAX = 150_000
"""The same for one task: with the command it must fit into a stanza of 256 KiB."""
AHEAD_MAX = 20_000
"""Entries read from a pipe before anybody wanted them."""


class Selection:
    """The tasks of a bag that are to be run, with the numbers that they have in the whole bag.

    Without a job log that is all of them. With one, each chosen task carries its number (from 1) and
    its index (from 0) as two more parameters, see `arguments.numbered`.
    """

    def __init__(self, bag: Bag, logged: LoggedTasks | None = None, *, also_failed: bool = True) -> None:
        self.skipped = 0
        self._bag = bag
        self._logged = logged if logged is not None and logged.count else None
        self._also_failed = also_failed
        self._template = Template(bag.command)
        self._seqs = array("Q")

    @property
    def numbered(self) -> bool:
        """Whether parameters carry numbers."""
        return self._logged is not None

    def parameters(self) -> Iterator[list[str]]:
        """Parameters of the tasks to run. Raises what `Bag.parameters` and `LoggedTasks.is_done` do."""
        logged = self._logged
        if logged is None:
            yield from self._bag.parameters
            return
        for index, words in enumerate(self._bag.parameters):
            if logged.is_done(index + 1, self.command_text(words, index), also_failed=self._also_failed):
                self.skipped += 1
                continue
            self._seqs.append(index + 1)
            yield [*words, str(index + 1), str(index)]

    def seq(self, index: int) -> int:
        """Number in the whole bag (from 1) of the task with this index in the job."""
        return self._seqs[index] if self._logged is not None else index + 1

    def own_words(self, words: list[str]) -> list[str]:
        """The task's parameters without its numbers."""
        return words[: self._bag.width] if self._logged is not None else words

    def command_text(self, words: list[str], index: int) -> str:
        """The command as the shell gets it for the task with this index in the whole bag."""
        return self._template.fill(words, index)[-1]


class Feed:
    """Pieces of the parameters, in order."""

    def __init__(self, parameters: Iterator[list[str]], *, blocking: bool) -> None:
        self._parameters = parameters
        self._waiting: list[str] | None = None
        """Fetched, but too much for the last piece."""
        self._pipe = _Pipe(parameters) if blocking else None

    async def take(self) -> tuple[list[list[str]], bool]:
        """The next entries, and whether they were the last. An empty list only at the end."""
        piece: list[list[str]] = []
        room = PIECE_BYTES_MAX
        while True:
            words = self._waiting
            self._waiting = None
            if words is None:
                if self._pipe is None:
                    words = next(self._parameters, None)
                else:
                    words, ended = await self._pipe.get(wait=not piece)
                    if words is None and not ended:
                        return piece, False
                if words is None:
                    return piece, True
            room -= _wire_bytes(words)
            if piece and (room < 0 or len(piece) == PIECE_TASKS_MAX):
                self._waiting = words
                return piece, False
            piece.append(words)

    def close(self) -> None:
        """Want no more."""
        if self._pipe is not None:
            self._pipe.close()


def _wire_bytes(words: list[str]) -> int:
    """Length of the entry as JSON in XML; raises `UsageError` if no message holds it."""
    text = msgspec.json.encode(words)
    size = len(text) + 1 + 4 * text.count(b"&") + 3 * (text.count(b"<") + text.count(b">"))
    if size > ENTRY_BYTES_MAX:
        raise UsageError(
            f"the arguments of one task take {size} bytes; at most {ENTRY_BYTES_MAX} are possible"
            f" (they begin with {words[0][:40]!r})",
            hint="put the data into a file, and give the file's name",
        )
    return size


class _Pipe:
    """An iterator that may block, read ahead by a thread."""

    def __init__(self, source: Iterator[list[str]]) -> None:
        self._source = source
        self._loop = asyncio.get_running_loop()
        self._changed = threading.Condition()
        self._entries: deque[list[str]] = deque()
        self._ended = False
        self._closed = False
        self._problem: BaseException | None = None
        self._there = asyncio.Event()
        threading.Thread(target=self._read, name="arguments", daemon=True).start()

    async def get(self, *, wait: bool) -> tuple[list[str] | None, bool]:
        """The next entry, or None; and whether the end is reached. Raises what reading raised."""
        while True:
            with self._changed:
                if self._entries:
                    self._changed.notify()
                    return self._entries.popleft(), False
                if self._problem is not None:
                    raise self._problem
                if self._ended or not wait:
                    return None, self._ended
                self._there.clear()
            await self._there.wait()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _read(self) -> None:
        try:
            for words in self._source:
                with self._changed:
                    self._changed.wait_for(lambda: len(self._entries) < AHEAD_MAX or self._closed)
                    if self._closed:
                        return
                    self._entries.append(words)
                    self._wake()
        except Exception as problem:  # noqa: BLE001 (handed to the loop's side, which raises it)
            with self._changed:
                self._problem = problem
        finally:
            with self._changed:
                self._ended = True
                self._wake()

    def _wake(self) -> None:
        """With the lock held. Nobody waits once the loop's side has closed the pipe."""
        if not self._closed and not self._there.is_set():
            self._loop.call_soon_threadsafe(self._there.set)
