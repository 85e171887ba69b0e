"""Runs a manager on asyncio: XMPP link below it, a store beside it, one event loop.

On a store that several managers share it first stands by until the lease is its own, and ends when
another one has taken it; one service is one candidacy. Called by `kestrel up`, `kestrel manager` and the
ephemeral pool of `kestrel run`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from kestrel.clock import AsyncioClock
from kestrel.errors import EnvironmentProblem, StoreError
from kestrel.manager.jobs import terms_of
from kestrel.manager.leadership import Leadership, LeaseSettings
from kestrel.manager.manager import Manager
from kestrel.manager.settings import ManagerSettings
from kestrel.ports import IN_USE, LeaseBook, LeaseView, Store, StoreContent
from kestrel.xmpp.link import XmppLink, XmppStream

log = logging.getLogger("kestrel.manager")

CONNECT_S_MAX = 15.0
TAKE_OVER_S_MAX = 60.0
"""So long may the server still believe that the predecessor is there; then the lease is given back."""
RELEASE_S_MAX = 3.0
"""So long is waited for the answer when the lease is given back; later it runs out by itself."""
SQLITE_HOLDER = "another manager"


class StreamMaker(Protocol):
    """Makes the manager's XMPP connection (component or account) for a link."""

    def __call__(self, link: XmppLink) -> XmppStream: ...


class _StartingLink(XmppLink):
    """Has the manager started when it is connected for the first time, before the manager hears of it.

    So the time in which the workers of the last life may come back begins when they can.
    """

    def __init__(self, begin: Callable[[], None]) -> None:
        super().__init__()
        self._begin: Callable[[], None] | None = begin

    def on_connected(self, address: str) -> None:
        begin, self._begin = self._begin, None
        if begin is not None:
            begin()
        super().on_connected(address)


class ManagerService:
    """One manager, its store and its connection, from `stand_by` or `start` to `stop`."""

    def __init__(
        self,
        make_stream: StreamMaker,
        store: Store,
        settings: ManagerSettings,
        lease: LeaseSettings | None = None,
    ) -> None:
        """`lease`: of meaning only for a store that several managers share."""
        self._make_stream = make_stream
        self._store = store
        self._settings = settings
        self._lease = lease or LeaseSettings()
        self._leadership: Leadership | None = None
        self._taken: asyncio.Future[int] | None = None
        self._stood_by = False
        self._opening: asyncio.Future[StoreContent] | None = None
        self._content: StoreContent | None = None
        self._running: asyncio.Task[None] | None = None
        self._failure: asyncio.Future[None] | None = None
        self._stream: XmppStream | None = None
        self.manager: Manager | None = None
        self.holder = f"{socket.gethostname()} (process {os.getpid()})"
        """How others see us."""

    # --- from waiting to acting ---------------------------------------------------------------------------

    async def stand_by(
        self, on_waiting: Callable[[str], None] | None = None, *, first_contact_s_max: float | None = None
    ) -> None:
        """Return when the store is ours; `on_waiting` is told who has it, each time that this changes.

        Raises `StoreError` when waiting cannot help; also when a shared store was not reached at all for
        `first_contact_s_max` (None: wait for ever), for then its address may be wrong. Call `stop` whatever
        happens.
        """
        self._prepare()
        self._stood_by = True
        if isinstance(self._store, LeaseBook):
            await self._lead(self._store, on_waiting, first_contact_s_max)
            return
        told = False
        while True:
            try:
                await self._open()
                return
            except StoreError as problem:
                if problem.code != IN_USE:
                    raise
            if not told and on_waiting is not None:
                on_waiting(SQLITE_HOLDER)
            told = True
            await asyncio.sleep(self._lease.poll_s)

    async def start(self) -> Manager:
        """Read the store, connect, and return when the server has let the manager in.

        Takes the store first if `stand_by` was not called. Raises `StoreError` (code `IN_USE` if another
        manager has the store), `AuthenticationError` or `EnvironmentProblem`; nothing is left running then.
        """
        self._prepare()
        try:
            if isinstance(self._store, LeaseBook) and self._leadership is None:
                await self._lead(self._store, None, 0.0, patient=False)
            await self._open()
            link = _StartingLink(self._begin)
            lapsed = None if self._leadership is None else self._leadership.lapsed
            clock = AsyncioClock(asyncio.get_running_loop())
            manager = Manager(clock, link, self._store, self._settings, lapsed=lapsed)
            manager.on_failed = self._on_failed
            if lapsed is not None:
                link.mute = lapsed  # so that a server that doubts lets in who took over
            link.deliver_to(manager)
            link.tell_roles(manager)
            link.admits = manager.admits
            self.manager = manager
            stream = self._stream = self._make_stream(link)
            link.attach(stream)
            self._running = asyncio.create_task(stream.run(), name="manager stream")
            await self._connected(stream, self._running)
        except BaseException:
            await self.stop()
            raise
        return manager

    def _prepare(self) -> None:
        if self._failure is None:
            self._failure = asyncio.get_running_loop().create_future()

    def _begin(self) -> None:
        assert self.manager is not None
        assert self._content is not None
        content, self._content = self._content, None
        self.manager.start(content)

    async def _open(self) -> None:
        """Take and read the store, on another thread: it may take its time."""
        if self._content is None:
            loop = asyncio.get_running_loop()
            self._opening = loop.run_in_executor(None, self._store.open, terms_of)
            self._content = await self._unless_failed(asyncio.shield(self._opening))

    async def _connected(self, stream: XmppStream, running: asyncio.Task[None]) -> None:
        up = asyncio.ensure_future(stream.wait_connected())
        limit_s = TAKE_OVER_S_MAX if self._stood_by else CONNECT_S_MAX
        assert self._failure is not None
        try:
            await asyncio.wait(
                {up, running, self._failure}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED
            )
            for end in (self._failure, running):
                if end.done():
                    end.result()
            if not up.done():
                raise EnvironmentProblem(
                    f"the manager cannot connect to its XMPP server: {stream.last_problem or 'no answer'}",
                    hint="check the address; is the server running, does it know the component, and is no "
                    "other manager connected as it?",
                    retry=True,
                )
        finally:
            up.cancel()

    # --- the lease ------------------------------------------------------------------------------------------

    async def _lead(
        self,
        book: LeaseBook,
        on_waiting: Callable[[str], None] | None,
        first_contact_s_max: float | None,
        *,
        patient: bool = True,
    ) -> None:
        """Until the lease is ours; raises `StoreError` when it will not be."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        taken = self._taken = loop.create_future()
        patience_s = self._lease.lease_s if patient else None  # who may not stand by again keeps its place
        leadership = self._leadership = Leadership(
            AsyncioClock(loop), book, self.holder, self._lease, patience_s=patience_s
        )
        seen: LeaseView | None = None

        def on_view(view: LeaseView) -> None:
            nonlocal seen
            former, seen = seen, view
            if view.holder and (former is None or view.holder != former.holder) and on_waiting is not None:
                on_waiting(view.holder)
            if not patient and former is not None and view.holder and _moved(former, view):
                fail(_in_use(view.holder))  # somebody renews it

        def on_trouble(problem: StoreError) -> None:
            # A wrong address, another pool's database, a newer Kestrel's; or who may not wait cannot see.
            waited_in_vain = first_contact_s_max is not None and loop.time() - began >= first_contact_s_max
            if not leadership.held and (not problem.retry or (seen is None and waited_in_vain)):
                leadership.close()
                fail(problem)

        def fail(problem: StoreError) -> None:
            if not taken.done():
                taken.set_exception(problem)

        leadership.on_view = on_view
        leadership.on_trouble = on_trouble
        leadership.on_taken = lambda epoch: None if taken.done() else taken.set_result(epoch)
        leadership.on_lost = self._on_failed
        leadership.on_renewed = self._on_renewed
        leadership.stand_by()
        if patient:
            await taken
            return
        done, _ = await asyncio.wait({taken}, timeout=CONNECT_S_MAX + self._lease.lease_s)
        if not done:
            raise leadership.problem or _in_use("" if seen is None else seen.holder)
        taken.result()

    def _on_renewed(self) -> None:
        if self.manager is not None:
            self.manager.resume()

    # --- the end --------------------------------------------------------------------------------------------

    def _on_failed(self, problem: Exception) -> None:
        if self._failure is not None and not self._failure.done():
            self._failure.set_exception(problem)

    async def _unless_failed(self, wanted: asyncio.Future[StoreContent]) -> StoreContent:
        assert self._failure is not None
        ends: set[asyncio.Future[Any]] = {wanted, self._failure}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if self._failure.done():
            wanted.cancel()
            self._failure.result()
        return wanted.result()

    async def wait(self) -> None:
        """Until the manager cannot go on; raises why: `StoreError` with code `FENCED` if it was replaced."""
        assert self._running is not None
        assert self._failure is not None
        await asyncio.wait({self._running, self._failure}, return_when=asyncio.FIRST_COMPLETED)
        for future in (self._failure, self._running):
            if future.done():
                future.result()

    async def stop(self) -> None:
        """Leave in order: tell, stop reacting, close the stream, finish what the store has in hand, and give
        the lease back, so that another manager takes over at once. Also ends `stand_by`."""
        if self.manager is not None:
            self.manager.close()
        if self._stream is not None:
            await self._stream.close()
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        for future in (self._failure, self._taken):
            if future is not None and not future.cancel() and not future.cancelled():
                future.exception()  # told already, or there is nobody left to tell
        if self._opening is not None:
            await asyncio.wait({self._opening})
            self._opening.exception()
        await self._give_back()
        await asyncio.get_running_loop().run_in_executor(None, self._store.close)

    async def _give_back(self) -> None:
        """A store that was opened gives the lease back as it is closed, after its last unit; until then
        nothing more is asked. One that was not opened has nothing to finish."""
        leadership, self._leadership = self._leadership, None
        if leadership is None:
            return
        if self._opening is not None:
            leadership.close()
            return
        answered = asyncio.Event()
        leadership.release(answered.set)
        try:
            async with asyncio.timeout(RELEASE_S_MAX):
                await answered.wait()
        except TimeoutError:
            log.warning("lease_not_released", extra={"epoch": leadership.epoch, "problem": "no answer"})


def _moved(former: LeaseView, view: LeaseView) -> bool:
    return (former.epoch, former.beat) != (view.epoch, view.beat)


def _in_use(holder: str) -> StoreError:
    return StoreError(
        f"the store is in use by the manager {holder}" if holder else "the store is in use",
        hint="stop that manager; `kestrel manager` can also wait for its end (--standby)",
        code=IN_USE,
        retry=True,
    )


async def run_until(service: ManagerService, stopped: Callable[[], Awaitable[object]]) -> None:
    """Serve until `stopped` returns or the manager fails (then raise why)."""
    ends = [asyncio.ensure_future(service.wait()), asyncio.ensure_future(stopped())]
    try:
        done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for end in done:
            end.result()
    finally:
        for end in ends:
            end.cancel()
        await asyncio.gather(*ends, return_exceptions=True)
