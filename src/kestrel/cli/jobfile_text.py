"""The three syntaxes of job files, each as the same list of entries with their lines.

Pure. Never gives up at the first mistake if it can go on. Called by `jobfile`.
"""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass
from typing import Any

TABLES = ("job", "env")
"""Sections that a job file may have; `job` may be left out where the syntax allows it."""


@dataclass(frozen=True, slots=True)
class Mistake:
    """What is wrong in a line (counted from 1)."""

    line: int
    text: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A key with its value. `text_only`: the syntax knows only text, so numbers arrive as such."""

    key: str
    value: Any
    line: int
    text_only: bool = False


# --------------------------------------------------------------------------------------------------
# INI, as the ancestor's job files have it

_SECTION = re.compile(r"\[\s*([^\]]*?)\s*\]\s*(?:[#;].*)?")
_SETTING = re.compile(r"([^=:\s][^=:]*?)\s*[=:]\s*(.*)")


def read_ini(text: str, mistakes: list[Mistake]) -> list[Entry]:
    """`key = value` under `[job]`, values go on in lines that are indented; `#` and `;` begin comments."""
    found: list[_Setting] = []
    section = ""
    ignored = False
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if not line or line[0] in "#;":
            continue
        if match := _SECTION.fullmatch(line):
            section = match[1].lower()
            ignored = section not in TABLES
            if ignored:
                mistakes.append(Mistake(number, f"unknown section [{match[1]}]; a job file has [job]"))
        elif ignored:
            continue
        elif raw[0].isspace() and found and found[-1].section == section:
            found[-1].lines.append(line)
        elif match := _SETTING.fullmatch(line):
            if not section:
                mistakes.append(
                    Mistake(number, "a setting before the first section; begin with a line [job]")
                )
                section = "job"
            found.append(_Setting(section, match[1], [match[2]] if match[2] else [], number))
        else:
            mistakes.append(
                Mistake(
                    number, f"cannot read {line[:60]!r}; write key = value, or indent what continues a value"
                )
            )
    return _ini_entries(found, mistakes)


@dataclass(slots=True)
class _Setting:
    section: str
    key: str
    lines: list[str]
    number: int


def _ini_entries(found: list[_Setting], mistakes: list[Mistake]) -> list[Entry]:
    entries: list[Entry] = []
    env: dict[str, str] = {}
    env_line = 0
    for setting in found:
        value = "\n".join(setting.lines)
        if setting.section != "env":
            entries.append(Entry(setting.key, value, setting.number, text_only=True))
        elif setting.key in env:
            mistakes.append(Mistake(setting.number, f'the variable "{setting.key}" was given before'))
        else:
            env[setting.key] = value
            env_line = env_line or setting.number
    if env:
        entries.append(Entry("env", env, env_line))
    return entries


# --------------------------------------------------------------------------------------------------
# TOML

_TOML_PLACE = re.compile(r"^(.*?)\s*\(at (?:line (\d+), column \d+|end of document)\)$", re.DOTALL)


def read_toml(text: str, mistakes: list[Mistake]) -> list[Entry]:
    """Keys at the top or in a table `[job]`; the environment also as a table `[env]` or `[job.env]`."""
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as problem:
        match = _TOML_PLACE.match(str(problem))
        last = text.count("\n") + (not text.endswith("\n"))
        line = int(match[2]) if match and match[2] else max(1, last)
        words = match[1] if match else str(problem)
        mistakes.append(Mistake(line, f"not TOML: {words[:1].lower()}{words[1:]}"))
        return []
    return _nested_entries(content, _toml_lines(text), mistakes)


def _toml_lines(text: str) -> dict[str, int]:
    """Where each key is, as `key` or `table.key`. Lines inside of long strings do no harm: first come."""
    lines: dict[str, int] = {}
    table = ""
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if match := re.match(r"\[+\s*([^\]]+?)\s*\]+", line):
            if "=" not in line.partition("#")[0]:
                table = match[1].replace('"', "").replace(" ", "") + "."
                lines.setdefault(table[:-1], number)
        elif match := re.match(r"""["']?([^"'=\s]+)["']?\s*=""", line):
            lines.setdefault(table + match[1], number)
            lines.setdefault((table + match[1]).partition(".")[0], number)
    return lines


# --------------------------------------------------------------------------------------------------
# JSON


def read_json(text: str, mistakes: list[Mistake]) -> list[Entry]:
    """An object with the same keys; a `job` message of the protocol is one, too."""
    try:
        content = json.loads(text)
    except json.JSONDecodeError as problem:
        mistakes.append(Mistake(problem.lineno, f"not JSON: {problem.msg.lower()} (column {problem.colno})"))
        return []
    except RecursionError:
        mistakes.append(Mistake(1, "not a job: nested too deeply"))
        return []
    if not isinstance(content, dict):
        mistakes.append(Mistake(1, 'not a job: write an object such as {"command": "./run_task.sh"}'))
        return []
    kind = content.pop("type", "job")
    lines: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        for key in re.findall(r'"((?:[^"\\]|\\.)*)"\s*:', line):
            lines.setdefault(key, number)
    if kind != "job":
        mistakes.append(Mistake(lines.get("type", 1), f'the type is {kind!r}, but a job file is a "job"'))
    return _nested_entries(content, lines, mistakes)


def _nested_entries(content: dict[str, Any], lines: dict[str, int], mistakes: list[Mistake]) -> list[Entry]:
    """Entries of the object; those of a table `job` in it, too."""
    entries: list[Entry] = []
    for key, value in content.items():
        if key == "job" and isinstance(value, dict):
            for inner, inner_value in value.items():
                line = lines.get(f"job.{inner}", lines.get(inner, lines.get("job", 1)))
                entries.append(Entry(inner, inner_value, line))
        elif isinstance(value, dict) and key not in TABLES:
            known = " or ".join(f"[{name}]" for name in TABLES)
            mistakes.append(Mistake(lines.get(key, 1), f"unknown section [{key}]; a job file has {known}"))
        else:
            entries.append(Entry(key, value, lines.get(key, 1)))
    return entries
