"""A user's connection to a manager: requests with answers, submissions in pieces, results by cursor.

A request survives a broken link, an absent manager and one that takes over from another: it is sent
again when they are back, which is safe because every request can be repeated (a submission carries its
own id, an addition its offset). Who waits for results or the end of a job waits through longer absences,
too.
Runs on asyncio. Called by the command line, and by programs.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from kestrel.client.pieces import check_size, pieces
from kestrel.client.seeking import Seeker
from kestrel.errors import EnvironmentProblem, InternalError, KestrelError, PeerError, UsageError
from kestrel.ports import Show, Transport
from kestrel.protocol import codec
from kestrel.protocol import messages as m
from kestrel.xmpp.jid import JID

log = logging.getLogger("kestrel.client")

SUBMISSION_WINDOW = 8
"""Additions under way at once."""
ANSWER_S_MAX = 60.0
PIECE_BYTES = 65536
OUTPUT_RETRY_S = 0.5
ABSENCE_S_MAX = 900.0
"""How long a manager may be away before waiting for results, or for the end of a job, is given up."""
WATCH_S = 15.0
"""How often a watch is asked for again: a new manager does not know of it, nor always we of the manager."""
UNANSWERED_S = 5.0
"""After so long it is said what an answer is waited for."""
RETURN_S = 10.0
"""So long after a manager's return its workers may still be on their way back."""
NOT_NOW = frozenset(("going", "busy", "rate"))
"""Refusals that are no answer: the manager is leaving, has too much to do, or has heard too much from us at
once. The request is repeated."""
UNCERTAIN = NOT_NOW | {"no_answer", "closed"}
"""After these, and while the store fails, nobody knows whether a submission was, or will be, accepted."""
STORE_FAILS = "store"
"""So begin the codes with which a manager says that its store does not work now."""

_T = TypeVar("_T")
UserRequest = m.UserToManager


class RequestError(PeerError):
    """The manager answered with an `error`."""


@dataclass(slots=True)
class _Pending:
    message: m.UserToManager
    answers: list[asyncio.Future[m.ManagerToUser]]
    since: float
    """When it was asked (loop time)."""
    refusal: m.Error | None = None
    """What the manager said last, if it was no answer."""


@dataclass(frozen=True, slots=True)
class Submission:
    """A job that the manager accepted and stored."""

    job: int
    size: int
    warning: str = ""


class Client:
    """Implements `TransportEvents`; give it to a transport, then await `ready`.

    All methods must be called on the event loop's thread.
    """

    def __init__(
        self, manager: str, *, answer_s_max: float = ANSWER_S_MAX, absence_s_max: float = ABSENCE_S_MAX
    ) -> None:
        self.manager = str(JID.parse(manager))
        self.answer_s_max = answer_s_max
        self.absence_s_max = absence_s_max
        self.manager_present = False
        self._transport: Transport | None = None
        self._pending: dict[str, _Pending] = {}
        self._count = 0
        self._life = secrets.token_hex(4)
        self._up = asyncio.Event()
        self._watchers: dict[int, list[Callable[[m.JobInfo], None]]] = {}
        self._closed: KestrelError | None = None
        self._last_problem = ""
        self._absent_since = 0.0
        self._greeted = False
        self._wait_told = False
        """Whether it was said, since the manager was last heard of, that we wait for it."""
        self._returned_at: float | None = None
        """When a manager greeted us that did not know us, though one did before."""
        self._seeker = Seeker(self._announce, self._unheard_since)
        self._repeater = Seeker(self._send_refused_again, self._refused_since)

    def attach(self, transport: Transport) -> None:
        """Send through this transport from now on."""
        self._transport = transport

    def close(self, problem: KestrelError | None = None) -> None:
        """Seek the manager no more; requests under way, and later ones, fail at once, with `problem`."""
        if self._closed is None:
            self._closed = problem or EnvironmentProblem(
                "the connection to the manager was closed", code="closed"
            )
        self._up.clear()
        self._seeker.stop()
        self._repeater.stop()
        for pending in self._pending.values():
            for answer in pending.answers:
                if not answer.done():
                    answer.set_exception(self._closed)

    # --- what the transport tells -----------------------------------------------------------------

    def on_up(self, address: str) -> None:
        self._up.set()
        self._announce()
        self._send_all_again()
        self._seeker.again()

    def on_down(self, reason: str) -> None:
        self._up.clear()
        self._seeker.stop()
        self._repeater.stop()
        self._lose_manager(reason)

    def on_available(self, sender: str, show: Show, status: str) -> None:
        """A manager greets whom it does not know: another life of it knows nothing of our requests."""
        if not self._is_manager(sender):
            return
        if self._greeted:
            self._returned_at = asyncio.get_running_loop().time()
        self._greeted = self.manager_present = True
        self._wait_told = False
        self._last_problem = ""
        self._send_all_again()
        self._seeker.again()

    def on_unavailable(self, sender: str, reason: str) -> None:
        if self._is_manager(sender):
            words = f"the manager {self.manager} is not there"
            self._lose_manager(f"{words} ({reason})" if reason else words)
            self._seeker.look()

    def _lose_manager(self, problem: str) -> None:
        if self.manager_present:
            self._absent_since = asyncio.get_running_loop().time()
        self.manager_present = False
        self._last_problem = problem

    def _announce(self) -> None:
        """Show ourselves: a manager that does not know us greets us."""
        assert self._transport is not None
        if self._up.is_set():
            self._transport.announce(self.manager, Show.ONLINE, "user")

    def _unheard_since(self) -> float | None:
        """Since when we wait for the manager itself, or for an answer; None: we do not."""
        if not self._up.is_set():
            return None
        oldest = next(iter(self._pending.values()), None)
        if not self.manager_present:
            return self._absent_since
        return None if oldest is None else oldest.since

    def _refused_since(self) -> float | None:
        if not self._up.is_set():
            return None
        return next((p.since for p in self._pending.values() if p.refusal is not None), None)

    def on_heard(self, sender: str) -> None:
        """Pings are the link's own business."""

    def on_message(self, sender: str, payload: bytes, chat: bool) -> None:
        if not self._is_manager(sender):
            log.warning("message_from_stranger", extra={"sender": sender})
            return
        try:
            message = codec.decode_to_user(payload)
        except codec.ProtocolError as problem:
            log.warning("bad_message", extra={"sender": sender, "text": problem.text})
            return
        if isinstance(message, m.Event):
            self._changed(message.job)
            return
        if isinstance(message, m.JobStatus) and not message.re:  # watching was asked for again
            for info in message.jobs:
                self._changed(info)
        pending = self._pending.get(message.re)
        if pending is None:
            return
        if isinstance(message, m.Error) and self._is_no_answer(message, pending):
            pending.refusal = message
            self._repeater.look()
            return
        for answer in pending.answers:
            if not answer.done():
                answer.set_result(message)

    def _is_no_answer(self, error: m.Error, pending: _Pending) -> bool:
        """Whether the request has to be repeated: the manager could not take it, or one that comes before."""
        asked = pending.message
        if error.code != "gap" or not isinstance(asked, m.Extend):
            return error.code in NOT_NOW
        before = (p.message for p in self._pending.values())
        return any(isinstance(b, m.Extend) and b.job == asked.job and b.offset < asked.offset for b in before)

    def _changed(self, info: m.JobInfo) -> None:
        for watcher in list(self._watchers.get(info.job, ())):
            watcher(info)

    def _is_manager(self, sender: str) -> bool:
        return sender == self.manager or sender.partition("/")[0] == self.manager

    def _send_all_again(self) -> None:
        for pending in self._pending.values():
            pending.refusal = None
            self._send(pending.message)
        for job in self._watchers:
            self._send(m.Watch(job=job))

    def _send_refused_again(self) -> None:
        for pending in self._pending.values():
            if pending.refusal is not None:
                self._send(pending.message)

    def _send(self, message: m.UserToManager) -> None:
        if self._transport is None:
            raise InternalError("a client without a transport")
        if self._up.is_set():
            self._transport.send(self.manager, codec.encode(message))

    # --- requests -----------------------------------------------------------------------------------

    async def request(self, message: UserRequest, answer: type[_T]) -> _T:
        """Send one request and wait for its answer of the given type.

        Raises `RequestError` with the manager's own words, `EnvironmentProblem` if no answer came
        within `answer_s_max` seconds or the client was closed, `UsageError` for what no stanza holds.
        A manager that is leaving or busy is asked again until then.
        The same request may be under way twice; two different ones with the same id may not.
        """
        if self._closed is not None:
            raise self._closed
        if not message.id:
            self._count += 1
            message = msgspec.structs.replace(message, id=f"{self._life}-{self._count}")
        key = message.id
        check_size(message)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[m.ManagerToUser] = loop.create_future()
        pending = self._pending.setdefault(key, _Pending(message, [], loop.time()))
        if pending.message != message:
            raise UsageError(f"another request with the id {key!r} is under way", hint="choose another id")
        pending.answers.append(future)
        telling = loop.call_later(UNANSWERED_S, self._tell_wait, pending)
        try:
            if len(pending.answers) == 1:
                self._send(message)
                self._seeker.look()
            async with asyncio.timeout(self.answer_s_max):
                got = await future
        except TimeoutError:
            if pending.refusal is None:
                raise self._no_answer() from None
            got = pending.refusal
        finally:
            telling.cancel()
            pending.answers.remove(future)
            if not pending.answers:
                del self._pending[key]
        if isinstance(got, m.Error):
            raise RequestError(got.text, hint=got.hint, code=got.code)
        if not isinstance(got, answer):
            raise PeerError(f"the manager answered {type(got).__name__} to {type(message).__name__}")
        return got

    def _tell_wait(self, pending: _Pending) -> None:
        """Nobody shall sit in front of a silent command and wonder. A link that is down speaks for itself; a
        manager that is there may hold a request back until there is something to answer."""
        if self._wait_told or not self._up.is_set() or (self.manager_present and pending.refusal is None):
            return
        self._wait_told = True
        text = pending.refusal.text if pending.refusal else self._last_problem
        log.warning("answer_awaited", extra={"text": text or f"the manager {self.manager} does not answer"})

    def _no_answer(self) -> KestrelError:
        text = f"no answer from the manager {self.manager} in {self.answer_s_max:g} s"
        return EnvironmentProblem(
            f"{text}: {self._last_problem}" if self._last_problem else text,
            hint="is it running (`kestrel up` or `kestrel manager`)? The request may be repeated safely",
            code="no_answer",
            retry=True,
        )

    async def patiently(self, message: UserRequest, answer: type[_T]) -> _T:
        """As `request`, for who waits anyway: an absent manager is asked again for `absence_s_max`."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self.absence_s_max
        while True:
            try:
                return await self.request(message, answer)
            except KestrelError as problem:
                if problem.code not in {"no_answer", *NOT_NOW} or loop.time() >= until:
                    raise
                log.warning("manager_awaited", extra={"text": problem.text})

    # --- submission ---------------------------------------------------------------------------------

    async def submit(self, job: m.Job, args: Iterable[m.Parameters] | None = None) -> Submission:
        """Submit a job; `args` may be longer than one message holds, or `job.args` is used.

        The answer comes when all of it is stored. Repeating a submission with the same `job.id` gives
        the same job, and goes on where it broke off. A job without such an id cannot be gone on with, so
        it is cancelled when its submission breaks off (also when `args` raises). Raises as `request`; where
        it may have been accepted all the same, the hint names the id.
        """
        resumable = bool(job.id)
        if not job.id:
            job = msgspec.structs.replace(job, id=secrets.token_hex(8))
        if args is None and job.args is not None:
            args = job.args
        if args is None:
            return await self._begin(job)
        portions = pieces(args)
        first = next(portions, [])
        second = next(portions, None)
        if second is None:
            return await self._begin(msgspec.structs.replace(job, args=first))
        submission = await self._begin(msgspec.structs.replace(job, args=first, open=True))
        try:
            size = await self._extend(submission.job, len(first), second, portions, close=not job.open)
        except BaseException:
            if not resumable:
                self._send(m.Cancel(job=submission.job))  # it goes out before the stream is closed
            raise
        return Submission(submission.job, size, submission.warning)

    async def _begin(self, job: m.Job) -> Submission:
        """Send the job, with its first tasks or all."""
        try:
            return _submission(await self.request(job, m.Accepted))
        except KestrelError as problem:
            if problem.code in UNCERTAIN or problem.code.startswith(STORE_FAILS):
                problem.hint += f"; with --id {job.id} it is the same job, should it have been accepted"
            raise

    async def _extend(
        self,
        job: int,
        offset: int,
        piece: list[m.Parameters] | None,
        portions: Iterator[list[m.Parameters]],
        *,
        close: bool,
    ) -> int:
        """Send the rest, a window of additions at a time, in order; returns the job's size."""
        window: set[asyncio.Task[m.Accepted]] = set()
        try:
            while piece is not None:
                following = next(portions, None)
                message = m.Extend(job=job, offset=offset, args=piece, last=close and following is None)
                window.add(asyncio.create_task(self.patiently(message, m.Accepted)))
                await asyncio.sleep(0)  # lets the request go out, so that additions keep their order
                offset += len(piece)
                piece = following
                if len(window) >= SUBMISSION_WINDOW or piece is None:
                    until = asyncio.ALL_COMPLETED if piece is None else asyncio.FIRST_COMPLETED
                    done, _ = await asyncio.wait(window, return_when=until)
                    for task in done:
                        task.result()
                    window -= done
        finally:
            for task in window:
                task.cancel()
            await asyncio.gather(*window, return_exceptions=True)
        return offset

    async def extend(self, job: int, offset: int, args: list[m.Parameters], *, last: bool) -> m.Accepted:
        """Add tasks to an open job; `offset` is the index of the first. An absent manager is waited for."""
        return await self.patiently(m.Extend(job=job, offset=offset, args=args, last=last), m.Accepted)

    # --- questions ----------------------------------------------------------------------------------

    async def info(self, job: int) -> m.JobInfo:
        """The job at a glance."""
        status = await self.request(m.Status(job=job), m.JobStatus)
        return status.jobs[0]

    async def results(
        self, job: int, after: int = 0, *, limit: int = 500
    ) -> AsyncIterator[list[m.TaskResult]]:
        """Results of a job in the order in which they were stored, as they come, until it has ended."""
        while True:
            page = await self.patiently(m.Results(job=job, after=after, limit=limit, wait=True), m.ResultPage)
            if page.results:
                yield page.results
            after = page.last
            if page.done:
                return

    async def wait(self, job: int, changed: Callable[[m.JobInfo], None] | None = None) -> m.JobInfo:
        """Wait until the job has ended; `changed` is called with its state now and then."""
        ended: asyncio.Future[m.JobInfo] = asyncio.get_running_loop().create_future()

        def on_change(info: m.JobInfo) -> None:
            if changed is not None:
                changed(info)
            if info.finished and not ended.done():
                ended.set_result(info)

        self._watchers.setdefault(job, []).append(on_change)
        try:
            status = await self.request(m.Watch(job=job), m.JobStatus)
            on_change(status.jobs[0])
            while True:
                try:
                    async with asyncio.timeout(WATCH_S):
                        return await asyncio.shield(ended)
                except TimeoutError:  # events can be lost with a link or a manager
                    await self._look_again(job, on_change)
        finally:
            self._watchers[job].remove(on_change)
            if not self._watchers[job]:
                del self._watchers[job]
                if not ended.done():
                    self._send(m.Watch(job=job, stop=True))

    async def _look_again(self, job: int, on_change: Callable[[m.JobInfo], None]) -> None:
        try:
            status = await self.patiently(m.Watch(job=job), m.JobStatus)
        except RequestError as problem:
            if not problem.code.startswith(STORE_FAILS):
                raise
            log.warning("store_awaited", extra={"text": problem.text})  # what runs goes on meanwhile
        else:
            on_change(status.jobs[0])

    async def output(self, job: int, task: int, stream: str, offset: int = 0) -> AsyncIterator[bytes]:
        """The bytes that a task has written so far, from `offset` on, in pieces."""
        ask = m.Output(
            job=job, task=task, stream="stderr" if stream == "stderr" else "stdout", limit=PIECE_BYTES
        )
        while True:
            part = await self._piece(msgspec.structs.replace(ask, offset=offset))
            try:
                data = base64.b64decode(part.data, validate=True)
            except ValueError:
                raise PeerError(f"the output of task {job}_{task} came damaged", hint="try again") from None
            if data:
                yield data
            offset += len(data)
            if offset >= part.size or not data:
                return

    async def _piece(self, ask: m.Output) -> m.OutputPart:
        """A piece of output; a worker that a manager just back does not see yet is waited for."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                return await self.request(ask, m.OutputPart)
            except RequestError as problem:
                back = self._returned_at
                if problem.code != "output_unreachable" or back is None or loop.time() > back + RETURN_S:
                    raise
            await asyncio.sleep(OUTPUT_RETRY_S)


def _submission(accepted: m.Accepted) -> Submission:
    if accepted.job is None:
        raise PeerError("the manager accepted a submission without naming the job")
    return Submission(accepted.job, accepted.size, accepted.warning)
