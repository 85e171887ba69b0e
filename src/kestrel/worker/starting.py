"""What a task needs to start: its command with the placeholders filled in, its environment, its files.

Pure but for joining paths. Called by the worker's agent.
"""

from __future__ import annotations

import os

from kestrel.core.execution_events import AttemptStart
from kestrel.ports import StartProcess
from kestrel.protocol.messages import TaskSpec
from kestrel.protocol.placeholders import Template
from kestrel.worker.settings import WorkerSettings


class PreparedJob:
    """A job's specification, made ready to start many tasks of it. Opaque to the execution machine."""

    __slots__ = ("_cleanup", "_command", "_env", "_time_limit_s", "_workdir")

    def __init__(self, job: int, spec: TaskSpec, worker: str, settings: WorkerSettings) -> None:
        self._command = Template(spec.command, windows=settings.windows)
        self._cleanup = None if spec.cleanup is None else Template(spec.cleanup, windows=settings.windows)
        self._workdir = settings.workdir
        if spec.workdir:  # absolute, from the home directory, or from where this worker works
            self._workdir = os.path.join(settings.workdir, _expanded(spec.workdir, settings.home))
        self._time_limit_s = spec.time_limit_s
        self._env = {
            **settings.env,
            **spec.env,
            "KESTREL_JOB_ID": str(job),
            "KESTREL_WORKER": worker,
            "KESTREL_TASK_DIR": self._workdir,
            "SLURM_ARRAY_JOB_ID": str(job),
        }

    def start(self, attempt: AttemptStart, files: tuple[str, str], tail_bytes: int) -> StartProcess:
        """The process of one attempt."""
        index = str(attempt.task)
        params = attempt.params
        env = self._env.copy()
        env["KESTREL_TASK_ID"] = env["SLURM_ARRAY_TASK_ID"] = index
        env["KESTREL_ATTEMPT"] = str(attempt.attempt)
        env["KESTREL_ENTRY"] = index if params is None else (params[0] if params else "")
        return StartProcess(
            attempt=attempt.attempt,
            argv=self._command.fill(params, attempt.task),
            env=env,
            workdir=self._workdir,
            stdout=files[0],
            stderr=files[1],
            time_limit_s=self._time_limit_s,
            cleanup=None if self._cleanup is None else self._cleanup.fill(params, attempt.task),
            tail_bytes=tail_bytes,
            slots=attempt.slots,
        )


def _expanded(path: str, home: str) -> str:
    if home and (path == "~" or path.startswith("~/")):
        return home + path[1:]
    return os.path.expanduser(path)
