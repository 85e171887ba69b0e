"""Job files: TOML, JSON, and the ancestor's INI with its `[job]` section, all with the same keys.

All mistakes of a file are found before anything is said, each with its line and what was probably
meant. Relative commands run in the directory of submission, which is why `workdir` is filled in.
Reads the job file and the file that `each_line` names, nothing else. Called by `submit`.
"""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from kestrel.cli.jobfile_keys import KEYS, SIZES, Reading, names
from kestrel.cli.jobfile_text import Entry, Mistake, read_ini, read_json, read_toml
from kestrel.errors import EnvironmentProblem, UsageError
from kestrel.protocol import messages as m

JOB_FILE_BYTES_MAX = 64 * 2**20


class JobFileError(UsageError):
    """A job file with mistakes; `mistakes` are lines such as `job.ini:3: unknown key "qeue"; …`."""

    code = "job_file"

    def __init__(self, mistakes: list[str]) -> None:
        count = "a mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        super().__init__(
            "\n".join(
                [f"{count} in the job file; nothing was submitted", *(f"  {line}" for line in mistakes)]
            ),
            hint="keys: " + ", ".join(names()),
        )
        self.mistakes = mistakes


def read_job_file(path: str | Path, *, directory: Path | None = None) -> m.Job:
    """The job that a file describes; `-` is standard input. `directory`: of submission, default the current.

    Raises `JobFileError` with all mistakes, `EnvironmentProblem` if the file cannot be read.
    """
    name = str(path)
    try:
        if name == "-":
            with os.fdopen(os.dup(0), "rb") as stream:
                data = stream.read(JOB_FILE_BYTES_MAX + 1)
        else:
            with open(path, "rb") as stream:
                data = stream.read(JOB_FILE_BYTES_MAX + 1)
    except OSError as problem:
        raise EnvironmentProblem(
            f"cannot read the job file {name}: {problem.strerror or problem}",
            hint="to submit a command without a file: kestrel submit -- CMD",
        ) from None
    if len(data) > JOB_FILE_BYTES_MAX:
        raise UsageError(
            f"the job file {name} has more than {JOB_FILE_BYTES_MAX} bytes",
            hint="put the arguments into a file of their own and name it with each_line",
        )
    shown = "standard input" if name == "-" else name
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        line = data.count(b"\n", 0, problem.start) + 1
        raise JobFileError([f"{shown}:{line}: not UTF-8"]) from None
    return parse_job(text, shown, directory or Path.cwd())


def parse_job(text: str, name: str, directory: Path) -> m.Job:
    """The job that the text describes; `name` is for messages, and its extension may tell the format."""
    mistakes: list[Mistake] = []
    entries = _reader(text, name)(text, mistakes)
    unreadable = bool(mistakes) and not entries
    job = None if unreadable else _Builder(directory, mistakes).build(entries)
    if mistakes or job is None:
        ordered = sorted(mistakes, key=lambda mistake: mistake.line)
        raise JobFileError([f"{name}:{mistake.line}: {mistake.text}" for mistake in ordered])
    return job


def _reader(text: str, name: str) -> Any:
    """By extension; else by how it begins."""
    match Path(name).suffix.lower():
        case ".toml":
            return read_toml
        case ".json":
            return read_json
        case ".ini" | ".cfg":
            return read_ini
    for line in text.splitlines():
        line = line.strip()
        if line.startswith("{"):
            return read_json
        if line and line[0] not in "#;":
            # A TOML file may begin with a table, but its strings are quoted: the ancestor's never were.
            return read_ini if line.startswith("[") and not _looks_like_toml(text) else read_toml
    return read_toml


def _looks_like_toml(text: str) -> bool:
    values = [line.partition("=")[2].strip() for line in text.splitlines() if "=" in line]
    return any(value[:1] in ('"', "'", "[", "{") for value in values) and all(
        value[:1] in ('"', "'", "[", "{") or value[:1].isdigit() or value in ("true", "false")
        for value in values
    )


@dataclass(slots=True)
class _Builder:
    """Makes a job of entries, and notes everything that is wrong with them."""

    directory: Path
    mistakes: list[Mistake]

    def build(self, entries: list[Entry]) -> m.Job | None:
        fields: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for entry in entries:
            key = self._key(entry)
            if key is None:
                continue
            if key in lines:
                self._note(entry.line, f'"{entry.key}" was given before, in line {lines[key]}')
                continue
            lines[key] = entry.line
            try:
                fields[key] = KEYS[key].read(Reading(entry.value, entry.text_only, self.directory))
            except UsageError as problem:
                self._note(
                    entry.line, f"{entry.key}: {problem.text}" + (f"; {problem.hint}" if problem.hint else "")
                )
        self._check(fields, lines)
        return None if self.mistakes else self._job(fields)

    def _note(self, line: int, text: str) -> None:
        self.mistakes.append(Mistake(line, text))

    def _key(self, entry: Entry) -> str | None:
        """The canonical name of the entry's key."""
        wanted = entry.key.replace("-", "_").lower()
        for key, meaning in KEYS.items():
            if wanted == key or wanted in meaning.aliases:
                return key
        known = names()
        near = difflib.get_close_matches(wanted, known, n=1, cutoff=0.6)
        meant = f'did you mean "{near[0]}"?' if near else "the keys are " + ", ".join(known)
        self._note(entry.line, f'unknown key "{entry.key}"; {meant}')
        return None

    def _check(self, fields: dict[str, Any], lines: dict[str, int]) -> None:
        """What must be there, and what excludes what."""
        if "command" not in lines:
            known = any(mistake.text.endswith('did you mean "command"?') for mistake in self.mistakes)
            if not known:
                self._note(1, 'there is no "command"; say what to run, e.g. command = ./run_task.sh')
        sizes = [key for key in SIZES if key in lines]
        for key in sizes[1:]:
            self._note(
                lines[key],
                f'"{key}" and "{sizes[0]}" (line {lines[sizes[0]]}) exclude each other: '
                "both say how many tasks there are",
            )

    def _job(self, fields: dict[str, Any]) -> m.Job | None:
        if "each_line" in fields:
            fields["args"] = fields.pop("each_line")
        if "array" in fields:
            # The index of an array is not appended (Slurm's is not); `{}` stands for it.
            indices = fields.pop("array")
            fields.setdefault("append_index", False)
            if indices == range(len(indices)):
                fields["queue"] = len(indices)
            else:
                fields["args"] = [[str(index)] for index in indices]
        fields.setdefault("workdir", str(self.directory))
        try:
            return msgspec.convert({"type": "job", **fields}, m.Job)
        except msgspec.ValidationError as problem:
            self._note(1, str(problem))
            return None
