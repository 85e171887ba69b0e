"""docs/cli.md from the commands themselves. Called by gen_docs."""

from __future__ import annotations

import click

from kestrel.cli.main import COMMANDS, cli

HEAD = """\
# The command line

Generated from the commands: do not edit, run `make docs`.

Every command answers `--help`. `--json` prints for programs: JSON with ISO-8601 times in UTC and seconds as
numbers. Errors go to standard error as `kestrel: what happened` and `hint: what to do`; with `--json` also
as an object `{"error": {"code", "text", "hint"}}` on standard output.

| exit code | meaning |
|---|---|
| 0 | all went well; for `run`, `wait` and `submit --wait`: every task completed |
| 1-100 | so many tasks did not complete |
| 101 | more than 100 tasks did not complete |
| 130 | interrupted by Ctrl-C |
| 255 | any other error; also a command line that could not be understood |

A job is named by its number (`17`) or as `last`; a task as `17_3`, several as `17_[0-4,9]`.
Which pool is meant: `--pool NAME`, else the environment variable `KESTREL_POOL`, else `default`.

Tasks find in their environment `KESTREL_JOB_ID`, `KESTREL_TASK_ID`, `KESTREL_ATTEMPT`, `KESTREL_ENTRY` (their
first parameter), `KESTREL_WORKER` and `KESTREL_TASK_DIR`, and Slurm's `SLURM_ARRAY_JOB_ID` and
`SLURM_ARRAY_TASK_ID`.
"""


def cli_markdown() -> str:
    """The whole page."""
    parts = [HEAD]
    width = {"max_content_width": 100, "terminal_width": 100}
    root = click.Context(cli, info_name="kestrel", **width, **cli.context_settings)  # type: ignore[arg-type]
    for name, (_, summary) in COMMANDS.items():
        command = cli.get_command(root, name)
        if command is None:
            raise LookupError(name)
        context = click.Context(command, info_name=name, parent=root, **width)  # type: ignore[arg-type]
        parts.append(f"\n## kestrel {name}\n\n{summary[0].upper()}{summary[1:]}.\n")
        parts.append(f"\n```text\n{command.get_help(context)}\n```\n")
        for below in command.commands.values() if isinstance(command, click.Group) else ():
            inner = click.Context(below, info_name=below.name, parent=context, **width)  # type: ignore[arg-type]
            parts.append(f"\n### kestrel {name} {below.name}\n")
            parts.append(f"\n```text\n{below.get_help(inner)}\n```\n")
    return "".join(parts)
