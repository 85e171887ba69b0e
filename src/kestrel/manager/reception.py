"""Where every message arrives: who may send it, how much of it, what it says, and which room it goes to.

Called by `Manager` for each message, and for nothing else. A message of somebody who may not send it costs
little and changes nothing: it is refused before anything else is looked at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kestrel.errors import KestrelError
from kestrel.manager.access import Refusal
from kestrel.manager.limits import Buckets
from kestrel.manager.unit import Request
from kestrel.manager.words import Manner, command_from_words, manner_of
from kestrel.protocol import codec
from kestrel.protocol import messages as m
from kestrel.xmpp.jid import bare

if TYPE_CHECKING:
    from kestrel.manager.manager import Manager


class Reception:
    """Takes messages in for one manager."""

    def __init__(self, manager: Manager) -> None:
        settings = manager.settings
        self.manager = manager
        self._of_users = Buckets(
            settings.messages_per_s, settings.messages_burst, kept_max=settings.greeted_max
        )
        self._of_workers = Buckets(
            settings.worker_messages_per_s, settings.worker_messages_burst, kept_max=settings.workers_max
        )

    def receive(self, sender: str, payload: bytes, chat: bool) -> None:
        """One message of anybody."""
        manager = self.manager
        manager.counters["messages"] += 1
        manner = manner_of(payload, chat)
        if not manager.access.admits(sender):
            self._turn_away(sender, manner, payload)
            return
        manager.roster.wrote(sender)
        try:
            message = _read(manner, payload)
            if isinstance(message, m.WorkerToManager):
                self._take_from_worker(sender, manner, message, len(payload))
            elif isinstance(message, m.Error):
                manager._take(sender, manner, message)
            else:
                self._take_from_user(sender, manner, message, len(payload))
        except codec.ProtocolError as problem:
            manager.counters["bad_messages"] += 1
            self._refuse(sender, manner, Refusal(problem.code, problem.text, problem.hint), problem.re)
        except KestrelError as problem:
            refusal = self._too_many(sender) if manner is Manner.WORDS else None
            if refusal is not None:
                self._refuse(sender, manner, refusal)
                return
            error = m.Error(code=problem.code, text=problem.text, hint=problem.hint)
            manager.reply_now(sender, manner, error)

    # --- workers --------------------------------------------------------------------------------------

    def _take_from_worker(self, sender: str, manner: Manner, message: m.WorkerToManager, size: int) -> None:
        manager = self.manager
        refusal = manager.access.may(sender, "worker")
        if refusal is not None:
            self._refuse(sender, manner, refusal)
            return
        if manager.is_overfull or self._of_workers.take(sender, manager.clock.now()):
            # Left out: it keeps its results, and is asked to introduce itself again when there is room.
            manager.counters["dropped"] += 1
            manager.roster.leave_out(sender)
            return
        manager.inbox_bytes += size
        manager._take(sender, manner, message)

    # --- users ----------------------------------------------------------------------------------------

    def _take_from_user(self, sender: str, manner: Manner, message: m.UserToManager, size: int) -> None:
        manager = self.manager
        refusal = manager.access.may(sender, "user") or self._too_many(sender)
        if refusal is not None:
            self._refuse(sender, manner, refusal, message.id)
        elif manager.is_overfull:
            manager.counters["dropped"] += 1
            error = m.Error(re=message.id, code="busy", text="the manager is overloaded", hint="try again")
            manager.reply_now(sender, manner, error)
        else:
            manager.inbox_bytes += size
            manager._take(sender, manner, message)

    def _too_many(self, sender: str) -> Refusal | None:
        wait_s = self._of_users.take(bare(sender), self.manager.clock.now())
        if not wait_s:
            return None
        most = self.manager.settings.messages_per_s
        return Refusal(
            "rate",
            f"{bare(sender)} sent more than {most:g} messages a second",
            f"wait {max(wait_s, 0.1):.1f} s; one job with many tasks needs fewer messages than many jobs",
        )

    def turn_back(self, request: Request) -> None:
        """Its sender was allowed to make it when it came, and is not now."""
        sender, manner, message = request
        refusal = self.manager.access.may(sender, "user")
        assert refusal is not None
        self._refuse(sender, manner, refusal, message.id)

    # --- refusals -------------------------------------------------------------------------------------

    def _turn_away(self, sender: str, manner: Manner, payload: bytes) -> None:
        """Of somebody who may nothing here. What it wants is looked at only to answer it."""
        refusal = self.manager.access.may(sender, "user")
        assert refusal is not None

        def answer(refusal: Refusal) -> None:
            asked = ""
            try:
                message = _read(manner, payload)
            except KestrelError:
                message = None  # whatever it is, it is not wanted
            match message:
                case m.Error():  # an answer to an error would be the beginning of a loop
                    return
                case m.Profile() | m.Report() | m.Revoked() | m.OutputPart():
                    refusal = self.manager.access.may(sender, "worker") or refusal
                case None:
                    pass
                case _:
                    asked = message.id
            self._answer(sender, manner, refusal, asked)

        self.manager.refusals.refuse(sender, refusal, answer)

    def _refuse(self, sender: str, manner: Manner, refusal: Refusal, re: str = "") -> None:
        self.manager.refusals.refuse(sender, refusal, lambda told: self._answer(sender, manner, told, re))

    def _answer(self, sender: str, manner: Manner, refusal: Refusal, re: str) -> None:
        error = m.Error(re=re, code=refusal.code, text=refusal.text, hint=refusal.hint)
        self.manager.reply_now(sender, manner, error)


def _read(manner: Manner, payload: bytes) -> m.ToManager:
    """Raises `ProtocolError`, or `UsageError` for words."""
    if manner is Manner.WORDS:
        return command_from_words(payload.decode("utf-8", "replace"))
    return codec.decode_to_manager(payload)
