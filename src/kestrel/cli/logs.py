"""Logging for commands that stay: one line per event, its constant name and its fields."""

from __future__ import annotations

import logging
import sys
import time

_STANDARD = frozenset(vars(logging.makeLogRecord({})))


class EventFormatter(logging.Formatter):
    """`2026-11-22T16:00:00Z INFO kestrel.manager worker_joined worker=… slots=4`."""

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%SZ"
    default_msec_format = None

    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{k}={v}" for k, v in vars(record).items() if k not in _STANDARD)
        text = f"{self.formatTime(record)} {record.levelname} {record.name} {record.getMessage()} {fields}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text.rstrip()


def set_up_logs(verbose: bool, *, quiet: bool = False) -> None:
    """Errors and warnings go to standard error; with `verbose` what happens, too."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(EventFormatter())
    root = logging.getLogger("kestrel")
    root.handlers[:] = [handler]
    root.propagate = False
    root.setLevel(logging.INFO if verbose else logging.ERROR if quiet else logging.WARNING)
