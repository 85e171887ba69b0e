"""The answer to `pool`: which workers there are, filtered by patterns, one by one or in groups.

Only reads. Called by `questions`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import msgspec

from kestrel.core.addresses import Part, parts_of
from kestrel.core.model import WorkerId
from kestrel.core.pool import WorkerView
from kestrel.manager.meant import meant_by, natural, nobody, patterns_of
from kestrel.protocol import codec
from kestrel.protocol import messages as m

if TYPE_CHECKING:
    from kestrel.manager.manager import Manager

REASON_CHARS_SHOWN: Final = 200
LOST_SHOWN: Final = 20
USERS_SHOWN: Final = 8
"""So many of an owner's patterns are shown with a worker."""


def pool_status(manager: Manager, message: m.Pool) -> m.PoolStatus:
    """Who is there and who left lately. Raises `UsageError` if a pattern is none, or they mean nobody."""
    patterns = patterns_of(message.workers, "pool: `workers`")
    views = manager.scheduler.workers()
    names = meant_by(patterns, views)
    lost = _lost(manager)
    if patterns:
        left = set(meant_by(patterns, [w.worker for w in lost]))
        lost = [w for w in lost if w.worker in left]
        if not names and not lost:
            raise nobody(patterns, list(views))
    answer = m.PoolStatus(
        re=message.id,
        pool=manager.settings.pool,
        epoch=manager.epoch,
        count=len(names),
        lost=lost[-LOST_SHOWN:],
    )
    room = manager.settings.stanza_bytes_max * 3 // 4
    if message.by:
        groups = sorted(_groups(views, names, message.by), key=lambda group: natural(group.name))
        return msgspec.structs.replace(answer, groups=_fitting(groups, room, message.limit))
    infos: list[m.WorkerInfo] = []
    for name in names:
        info = _worker_info(manager, name, views[name])
        room -= _size(info)
        if len(infos) == message.limit or room < 0:
            break
        infos.append(info)
    return msgspec.structs.replace(answer, workers=infos)


def _groups(views: dict[WorkerId, WorkerView], names: list[WorkerId], by: Part) -> list[m.WorkerGroup]:
    found: dict[str, list[WorkerView]] = {}
    for name in names:
        found.setdefault(getattr(parts_of(name), by), []).append(views[name])
    return [
        m.WorkerGroup(
            name=part,
            workers=len(members),
            idle=sum(v.used < v.slots and not v.drained and not v.reason for v in members),
            slots=sum(v.slots for v in members),
            running=sum(v.in_hand for v in members),
            completed=sum(v.completed for v in members),
            failed=sum(v.failed for v in members),
        )
        for part, members in found.items()
    ]


def _fitting(groups: list[m.WorkerGroup], room: int, limit: int) -> list[m.WorkerGroup]:
    """As many as a stanza holds: who asks sees from the sums that some are missing."""
    for i, group in enumerate(groups):
        room -= _size(group)
        if i == limit or room < 0:
            return groups[:i]
    return groups


def _size(part: object) -> int:
    return 1 + codec.wire_size(msgspec.json.encode(part))


def _lost(manager: Manager) -> list[m.LostWorker]:
    now, wall = manager.clock.now(), manager.clock.wall()
    lost = [
        m.LostWorker(
            worker=w.worker,
            lost=wall - (now - w.at),
            reason=w.reason[:REASON_CHARS_SHOWN],
            requeued=w.requeued,
        )
        for w in manager.scheduler.lost_workers()
    ]
    return lost + [
        m.LostWorker(worker=worker, lost=at, reason=reason[:REASON_CHARS_SHOWN])
        for worker, (at, reason) in manager.roster.refused.items()
    ]


def _worker_info(manager: Manager, worker: WorkerId, view: WorkerView) -> m.WorkerInfo:
    entry = manager.workers[worker]
    profile = entry.profile
    state: Literal["idle", "busy", "full", "draining", "away", "quarantined"] = "busy"
    if view.drained:
        state = "away" if manager.roster.is_away(worker) else "draining"
    elif view.quarantined:
        state = "quarantined"
    elif not view.in_hand:
        state = "idle"
    elif view.used >= view.slots:
        state = "full"
    users = profile.users[:USERS_SHOWN]
    if len(profile.users) > USERS_SHOWN:
        users.append("…")
    return m.WorkerInfo(
        worker=worker,
        state=state,
        os=profile.os,
        arch=profile.arch,
        hostname=profile.hostname,
        ram=profile.ram,
        cores=profile.cores,
        slots=view.slots,
        running=view.in_hand,
        completed=view.completed,
        failed=view.failed,
        provides=profile.provides,
        joined=entry.joined,
        version=profile.version,
        users=users,
    )
