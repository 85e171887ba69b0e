"""What is in a store as plain records, one after another: each job, then its results.

Called by `kestrel store export`. Memory is bounded by a page of the archive.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from kestrel.core.model import JobId
from kestrel.errors import UsageError
from kestrel.ports import JobRecord
from kestrel.protocol import messages as m
from kestrel.store.archive import Archive

RESULT_FIELDS = m.TaskResult.__struct_fields__


def exported(archive: Archive, job: JobId | None = None) -> Iterator[dict[str, Any]]:
    """Records of all jobs, or of one, as JSON knows them; times are Unix time.

    Raises `UsageError` if there is no such job.
    """
    found = False
    for record in archive.jobs():
        if job is not None and record.job != job:
            continue
        found = True
        yield _job(record)
        for seq, result in archive.results(record.job):
            fields = {name: getattr(result, name) for name in RESULT_FIELDS}
            yield {"type": "result", "job": record.job, "seq": seq, **fields}
    if job is not None and not found:
        raise UsageError(f"the store has no job {job}", hint="leave --job out to export all jobs")


def _job(record: JobRecord) -> dict[str, Any]:
    return {
        "type": "job",
        "job": record.job,
        "user": record.user,
        "submission": record.submission,
        "state": record.state.value,
        "size": record.size,
        "open": record.open,
        "submitted": record.submitted,
        "finished": record.finished,
        "last": record.last,
        "counts": {name: getattr(record.counts, name) for name in m.TaskCounts.__struct_fields__},
        "reruns": record.reruns,
        "specification": _specification(record.message),
    }


def _specification(message: bytes) -> Any:
    """The submitted message without its parameters; as text where it is damaged."""
    try:
        return msgspec.json.decode(message)
    except msgspec.DecodeError:
        return message.decode(errors="replace")
