"""What is logged, for two kinds of readers.

Commands that stay write one line per event, its constant name and its fields. Who waits in front of a
command of his own is told in words what it waits for.
"""

from __future__ import annotations

import logging
import sys
import time

from kestrel.cli.output import Output

_STANDARD = frozenset(vars(logging.makeLogRecord({})))


class EventFormatter(logging.Formatter):
    """`2026-11-22T16:00:00Z INFO kestrel.manager worker_joined worker=… slots=4`."""

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%SZ"
    default_msec_format = None

    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{k}={v}" for k, v in vars(record).items() if k not in _STANDARD)
        text = f"{self.formatTime(record)} {record.levelname} {record.name} {record.getMessage()} {fields}"
        text = " ".join(text.split())  # errors come with their hint on a line of its own
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text.rstrip()


def set_up_logs(verbose: bool, *, quiet: bool = False) -> None:
    """Errors and warnings go to standard error; with `verbose` what happens, too."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(EventFormatter())
    _install(handler, logging.INFO if verbose else logging.ERROR if quiet else logging.WARNING)


def tell_in_words() -> None:
    """For commands that ask a manager and wait: warnings as a line on standard error, as people talk."""
    _install(_Teller(), logging.WARNING)


class _Teller(logging.Handler):
    """`kestrel: the manager is not there; waiting`."""

    def emit(self, record: logging.LogRecord) -> None:
        fields = vars(record)
        if "text" in fields:
            words = f"{fields['text']}; waiting"
        elif "reason" in fields:
            words = f"{str(fields['reason']).rstrip('.')}; trying again"
        else:
            words = record.getMessage()
        Output("table").warn(words)


def _install(handler: logging.Handler, level: int) -> None:
    root = logging.getLogger("kestrel")
    root.handlers[:] = [handler]
    root.propagate = False
    root.setLevel(level)
