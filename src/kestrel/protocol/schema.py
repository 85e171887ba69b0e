"""The reference of the protocol, made from the message classes: Markdown and JSON Schema.

Pure: the source text of `SOURCES` (for the docstrings of fields, which Python does not keep),
the hand-written head and the examples are arguments, texts are the result. Called by
tools/gen_docs.py, which does the reading and writing, and by tests. Must never be needed at run time.
"""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from msgspec import inspect as mi

from kestrel.protocol import fields, user_messages, worker_messages
from kestrel.protocol import messages as m

SOURCES = (fields, worker_messages, user_messages)
"""The modules that define messages, in the order of the documents; their texts together are `source`."""

DIRECTIONS: tuple[tuple[str, Any], ...] = (
    ("worker → manager", m.WorkerToManager),
    ("manager → worker", m.ManagerToWorker),
    ("user → manager", m.UserToManager),
    ("manager → user", m.ManagerToUser),
)

COMMON_MEANINGS = {
    "id": "Chosen by the sender; the answer names it as `re`.",
    "re": "The `id` of the request that this answers; empty if it had none.",
    "job": "Number of the job.",
    "task": "Index of the task in its job, from 0.",
    "attempt": "Number of the attempt.",
    "stream": "Which of the two output streams.",
    "offset": "Position in the stream, in bytes.",
    "limit": "At most so many.",
    "protocol": "Version of this protocol that the sender speaks.",
    "pool": "Name of the pool.",
    "epoch": "Number of this life of the manager.",
    "name": "A name for people.",
    "env": "Variables added to the environment of the task.",
    "workdir": "Directory to run in; empty: where the worker was told to work.",
    "time_limit_s": "A task that runs longer is killed and ends as `timeout`; 0: no limit.",
    "hostname": "Name of the machine.",
    "python": "Version of the Python that runs the worker.",
    "version": "Version of the worker program.",
    "os": "Operating system, e.g. `Linux`.",
    "arch": "Machine architecture, e.g. `x86_64`.",
    "ram": "Memory in MiB.",
    "cores": "Processor cores.",
    "slots": "Tasks at once.",
    "provides": "Tags that jobs may require; case does not count.",
    "labels": "Anything worth knowing, as name and value.",
    "state": "Its state.",
    "exit_code": "Exit code; null when a signal ended it or it never started.",
    "signal": "Number of the signal that ended it, or 0.",
    "started": "Unix time of the start, 0 if it never started.",
    "wall_s": "Seconds from start to end.",
    "cpu_s": "Processor seconds, user and system.",
    "memory_kib": "Peak resident memory of the largest process.",
    "out": "The end of standard output.",
    "err": "The end of standard error.",
    "out_bytes": "Whole length of standard output.",
    "err_bytes": "Whole length of standard error.",
    "reason": "Why, in words, where the state alone does not say it.",
    "params": "The words that stand for the task.",
    "worker": "Address (full JID) of the worker.",
    "user": "Bare JID of the owner.",
    "cleanup": "Run after each attempt, whatever happened; its own outcome does not count.",
    "command": "What to run: a list of words, or a string for `sh -c`.",
    "count": "How many.",
    "attempts": "The attempts, by number.",
    "requeued": "Attempts that were put back into the queue.",
    "joined": "Unix time of joining.",
    "size": "How many tasks the job has.",
    "open": "True while more tasks may be added.",
    "submitted": "Unix time of the submission.",
}
"""Fields that mean the same wherever they have no docstring of their own."""

MEANINGS = {
    "Revoke.count": "At most so many.",
    "Revoked.attempts": "Attempts that were given back, by number.",
    "Report.attempts": "The attempts that ended.",
    "Report.n": "Number of this report, from 1, counted up by the worker.",
    "Tasks.tasks": "Indices of the tasks, in the order in which to run them.",
    "Tasks.attempt": "Number of the first attempt.",
    "Ack.n": "Number of the last report that is stored.",
    "Stop.attempts": "The attempts to stop, by number.",
    "Job.queue": "How many tasks; absent: as many as `args`, or one.",
    "Job.append_index": "Whether the index becomes the last word; absent: if there is no placeholder.",
    "Job.slots": "How many of a worker's slots one task takes.",
    "ReadOutput.limit": "At most so many bytes.",
    "Output.limit": "At most so many bytes.",
    "Extend.args": "One entry per task, as in `job`.",
    "Extend.offset": "Index of the first of these tasks.",
    "Cancel.tasks": "Ranges of indices; empty: all.",
    "Status.job": "Number of the job; absent: all jobs of this user.",
    "Status.all": "The jobs of everybody, not only one's own.",
    "ListTasks.states": "Only tasks in these states, e.g. `FAILED`; empty: all.",
    "Results.after": "Only results with a greater number.",
    "Results.wait": "Answer only when there is something to tell.",
    "Watch.stop": "True: be told no more.",
    "Drain.undo": "True: give it tasks again.",
    "Explain.task": "Index of one task; absent: the job as a whole.",
    "Accepted.job": "Number of the job that the request was about.",
    "JobStatus.jobs": "The jobs, the newest first.",
    "JobStatus.workers": "Workers in the pool.",
    "JobStatus.slots": "Slots of all workers together.",
    "JobInfo.state": "The state of the whole job.",
    "JobInfo.reason": "Why it is not running, when there is something to say.",
    "JobInfo.counts": "How many of its tasks are in which state.",
    "Event.job": "The job as it is now.",
    "ResultPage.results": "The results.",
    "ResultPage.last": "Number of the last result of this page: the next `after`.",
    "ResultPage.done": "True: the job has ended and this was its last page.",
    "TaskList.tasks": "The tasks, by index.",
    "TaskList.more": "True: there are more than the limit.",
    "TaskResult.state": "`COMPLETED`, `FAILED`, `CANCELLED`, `TIMEOUT` or `NODE_FAIL`.",
    "TaskResult.worker": "Address of the worker that ran it; empty if none did.",
    "TaskInfo.state": "`QUEUED`, `RUNNING`, or one of the states in which a task ends.",
    "TaskInfo.worker": "Address of the worker that has or had it; empty if none.",
    "WorkerInfo.state": "What it can take at the moment; `away`: its hours are over, or its disk is full.",
    "WorkerInfo.completed": "Attempts that it completed since it joined.",
    "WorkerInfo.failed": "Attempts that failed on it since it joined.",
    "LostWorker.reason": "How it was noticed.",
    "PoolStatus.workers": "The workers, by address.",
    "PoolStatus.lost": "Who left lately.",
    "Explanation.lines": "The explanation, one sentence a line.",
    "Explanation.task": "Index of the task, if the question was about one.",
    "Text.text": "The words.",
    "Error.code": "A constant for programs.",
    "Error.text": "What is wrong, with the name of the thing.",
    "Error.hint": "What to do about it; may be empty.",
    "TaskCounts.queued": "Waiting for a worker.",
    "TaskCounts.completed": "Ended with exit code 0.",
    "TaskCounts.failed": "Ended otherwise, and all retries are used up.",
    "TaskCounts.cancelled": "Cancelled by the user.",
    "TaskCounts.timeout": "Killed by the time limit.",
    "TaskCounts.node_fail": "Lost with their workers, and not to be run again.",
}
"""Fields whose meaning depends on where they are, and that have no docstring of their own."""


def message_types() -> dict[str, type[m.Message]]:
    """Every message class by its `type`, in the order of the directions."""
    return {c.__struct_config__.tag: c for _, union in DIRECTIONS for c in union.__args__}


def field_docs(source: str) -> dict[str, dict[str, str]]:
    """Docstrings of fields, by class and field: the string literals that follow them in `source`."""
    docs: dict[str, dict[str, str]] = {}
    for node in ast.parse(source).body:
        if not isinstance(node, ast.ClassDef):
            continue
        fields = docs.setdefault(node.name, {})
        for before, after in zip(node.body, node.body[1:], strict=False):
            if (
                isinstance(before, ast.AnnAssign)
                and isinstance(before.target, ast.Name)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
                and isinstance(after.value.value, str)
            ):
                fields[before.target.id] = " ".join(after.value.value.split())
    return docs


def meaning(docs: Mapping[str, Mapping[str, str]], struct: str, field: str) -> str:
    """What a field means; `KeyError` if nobody says it."""
    own = docs.get(struct, {}).get(field) or MEANINGS.get(f"{struct}.{field}")
    return own or COMMON_MEANINGS[field]


# --------------------------------------------------------------------------------------------------
# JSON Schema


def json_schema(source: str) -> dict[str, Any]:
    """A JSON Schema (2020-12): any message at the top, each class and each direction in `$defs`."""
    types = message_types()
    references, components = msgspec.json.schema_components(types.values())
    docs = field_docs(source)
    for name, component in components.items():
        component["description"] = _doc(getattr(m, name))
        # The tag and nothing else is needed to tell messages apart.
        for field, schema in component["properties"].items():
            if field == "type" and "type" not in getattr(m, name).__struct_fields__:
                continue
            said = meaning(docs, name, field)
            component["properties"][field] = {"description": said, **schema}
    directions = {
        _direction_name(title): {
            "title": title,
            "oneOf": [{"$ref": f"#/$defs/{c.__name__}"} for c in union.__args__],
        }
        for title, union in DIRECTIONS
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"Kestrel protocol, version {m.PROTOCOL_VERSION}",
        "description": "Any message. Fields that are not listed are ignored by the receiver.",
        "oneOf": list(references),
        "$defs": {**directions, **dict(sorted(components.items()))},
    }


def json_schema_text(source: str) -> str:
    """`json_schema` as the text of docs/protocol.schema.json."""
    return json.dumps(json_schema(source), indent=2, ensure_ascii=False) + "\n"


def _direction_name(title: str) -> str:
    sender, receiver = title.split(" → ")
    return f"{sender}_to_{receiver}"


def _doc(struct: type) -> str:
    return inspect.cleandoc(struct.__doc__ or "")


# --------------------------------------------------------------------------------------------------
# Markdown


def protocol_markdown(source: str, head: str, examples: Mapping[str, Any]) -> str:
    """docs/protocol.md: `head`, the table of directions, every message with an example, the parts.

    `examples` has one JSON value per message `type`; `KeyError` if one is missing.
    """
    docs = field_docs(source)
    lines = [
        "<!-- Generated by `make docs` from src/kestrel/protocol/*messages.py and tools/protocol/. -->",
        "",
        *head.replace("{PROTOCOL_VERSION}", str(m.PROTOCOL_VERSION)).rstrip().split("\n"),
        "",
        "## All messages",
        "",
        "| from → to | types |",
        "|---|---|",
    ]
    for title, union in DIRECTIONS:
        tags = (c.__struct_config__.tag for c in union.__args__)
        lines.append(f"| {title} | {', '.join(f'[`{t}`](#{t})' for t in tags)} |")
    lines += ["", "A field without a default is required. Indices start at 0, times are seconds."]
    shown: set[type] = set()
    for title, union in DIRECTIONS:
        lines += ["", f"## From {title.replace(' → ', ' to ')}"]
        for struct in union.__args__:
            if struct not in shown:
                shown.add(struct)
                lines += _message(docs, struct, examples[struct.__struct_config__.tag])
    lines += ["", "## Parts of messages"]
    for struct in _parts(docs, shown):
        lines += ["", f"### {struct.__name__}", "", _doc(struct), "", *_fields(docs, struct)]
    return "\n".join(lines) + "\n"


def _message(docs: Mapping[str, Mapping[str, str]], struct: type, example: Any) -> list[str]:
    return [
        "",
        f"### {mi.type_info(struct).tag}",  # type: ignore[attr-defined]
        "",
        _doc(struct),
        "",
        *_fields(docs, struct),
        "```json",
        json.dumps(example, ensure_ascii=False),
        "```",
    ]


def _fields(docs: Mapping[str, Mapping[str, str]], struct: type) -> list[str]:
    info = mi.type_info(struct)
    assert isinstance(info, mi.StructType)
    if not info.fields:
        return []
    lines = ["| field | type | default | meaning |", "|---|---|---|---|"]
    for field in info.fields:
        cells = (
            f"`{field.encode_name}`",
            type_words(field.type),
            default_words(field),
            meaning(docs, struct.__name__, field.name),
        )
        lines.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    return [*lines, ""]


def default_words(field: mi.Field) -> str:
    """The default as JSON, or nothing if the field is required."""
    if field.required:
        return ""
    value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    if value is None:
        return "absent"
    return f"`{msgspec.json.encode(value).decode()}`"


def type_words(kind: mi.Type) -> str:
    """A type as a person would say it, with its bounds."""
    match kind:
        case mi.IntType():
            return "integer" + _bounds(kind.ge, kind.le)
        case mi.FloatType():
            return "number" + _bounds(kind.ge, kind.le)
        case mi.BoolType():
            return "true or false"
        case mi.NoneType():
            return "null"
        case mi.StrType():
            return "text" + _length(kind.min_length, kind.max_length, "characters")
        case mi.LiteralType():
            return ", ".join(f"`{v}`" for v in kind.values)
        case mi.ListType():
            return f"list of {type_words(kind.item_type)}" + _length(
                kind.min_length, kind.max_length, "entries"
            )
        case mi.DictType():
            return f"object: {type_words(kind.key_type)} → {type_words(kind.value_type)}"
        case mi.StructType():
            return f"[{kind.cls.__name__}](#{kind.cls.__name__.lower()})"
        case mi.UnionType():
            return " or ".join(type_words(t) for t in kind.types)
        case _:
            raise TypeError(f"no words for {kind!r}: teach them to kestrel.protocol.schema")


def _bounds(low: float | None, high: float | None) -> str:
    if high == 2**53:
        high = None
    if low is not None and high is not None:
        return f" {low} … {high}"
    return f" ≥ {low}" if low is not None else ""


def _length(low: int | None, high: int | None, unit: str) -> str:
    if high is None:
        return ""
    return f" ({low or 0} … {high} {unit})" if low else f" (at most {high} {unit})"


def _parts(docs: Mapping[str, object], messages: Iterable[type]) -> list[type]:
    """Structs that messages are made of, in the order in which their modules define them."""
    found: dict[type, None] = {}

    def look(kind: mi.Type) -> None:
        match kind:
            case mi.StructType():
                if kind.cls not in messages:
                    found[kind.cls] = None
                for field in kind.fields:
                    look(field.type)
            case mi.ListType():
                look(kind.item_type)
            case mi.DictType():
                look(kind.value_type)
            case mi.UnionType():
                for part in kind.types:
                    look(part)
            case _:
                pass

    for struct in messages:
        look(mi.type_info(struct))
    order = list(docs)
    return sorted(found, key=lambda c: order.index(c.__name__))
