"""The entry point of the `kestrel` command: finds the subcommand, turns errors into words.

Subcommands are imported when they are called, so that `kestrel run` starts quickly.
Nothing but this module decides the exit code of an error: 255.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from typing import Any, NoReturn

import click

from kestrel import __version__
from kestrel.errors import InternalError, KestrelError, UsageError

COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("kestrel.cli.run_command", "run one command over many arguments and print what comes out"),
    "up": ("kestrel.cli.up", "start a pool here: server and manager, ready for workers"),
    "worker": ("kestrel.cli.worker", "lend this machine to a pool"),
    "manager": ("kestrel.cli.manager", "start a manager on an XMPP server that runs already"),
    "server": ("kestrel.cli.server", "run the XMPP server of a pool apart from its manager"),
    "submit": ("kestrel.cli.submit", "submit a job file or a command to a pool"),
    "status": ("kestrel.cli.jobs", "show jobs"),
    "wait": ("kestrel.cli.jobs", "wait until jobs have ended"),
    "results": ("kestrel.cli.jobs", "show how tasks ended"),
    "cat": ("kestrel.cli.jobs", "print what a task wrote"),
    "cancel": ("kestrel.cli.jobs", "cancel a job or some of its tasks"),
    "explain": ("kestrel.cli.jobs", "say why a job or task does not run"),
    "tasks": ("kestrel.cli.jobs", "list the tasks of a job"),
    "pool": ("kestrel.cli.pool", "show the workers of a pool"),
    "drain": ("kestrel.cli.pool", "give a worker no more tasks"),
    "invite": ("kestrel.cli.invite", "print an invitation for another machine or person"),
    "join": ("kestrel.cli.join", "use a pool that somebody has invited you to"),
    "account": ("kestrel.cli.account", "list, end and change the accounts of a pool"),
    "store": ("kestrel.cli.store", "check, back up or export what a manager has stored"),
    "completion": ("kestrel.cli.completion", "print the completion script for a shell"),
}
"""Name → module that holds the click command of that name, one line of help."""

HELP = """Kestrel runs bags of many small tasks on machines that come and go.

\b
On this machine, nothing to set up:
  kestrel run -- 'gzip -k {}' ::: *.log
  seq 1000 | kestrel run -- ./simulate.sh
\b
On many machines:
  kestrel up                          # here; prints an invitation
  kestrel worker --join kestrel://…   # on each of the others
  kestrel submit job.ini
  kestrel status
"""


class ReaderGone(Exception):
    """What read our output is gone (`| head`)."""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are wanted, with a hint for a mistyped name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(COMMANDS[cmd_name][0])
        command = getattr(module, cmd_name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else " `kestrel --help` lists the commands."
            ctx.fail(f"there is no command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """click would end a command whose reader is gone with exit code 1, as if a task had failed."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise ReaderGone from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(
    cls=LazyGroup, help=HELP, context_settings={"help_option_names": ["-h", "--help"]}, no_args_is_help=True
)
@click.version_option(__version__, prog_name="kestrel")
def cli() -> None:
    """The root of the commands."""


def main() -> NoReturn:
    """Run the command line; never shows a traceback for what is not our bug."""
    try:
        code = cli.main(standalone_mode=False, prog_name="kestrel")
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as problem:
        _show_misuse(problem)
        # Not click's 2: codes up to 101 say how many tasks failed.
        sys.exit(0 if isinstance(problem, click.exceptions.NoArgsIsHelpError) else 255)
    except click.Abort:
        print("kestrel: interrupted", file=sys.stderr)  # noqa: T201
        sys.exit(130)
    except InternalError:
        raise
    except KestrelError as problem:
        _show(problem)
        sys.exit(255)
    except KeyboardInterrupt:
        sys.exit(130)
    except ReaderGone:
        # Nothing to say, and nothing to flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def _show_misuse(problem: click.ClickException) -> None:
    """As click shows it; in JSON as any other error when that was asked for."""
    if isinstance(problem, click.exceptions.NoArgsIsHelpError) or not _wants_json():
        problem.show()
        return
    context = problem.ctx if isinstance(problem, click.UsageError) else None
    path = context.command_path if context else "kestrel"
    _show(UsageError(problem.format_message(), hint=f"see {path} --help"))


def _show(problem: KestrelError) -> None:
    """In the words of the output interface, in JSON when that was asked for."""
    from kestrel.cli.output import Output

    Output("json" if _wants_json() else "table").error(problem)


def _wants_json() -> bool:
    """Known also where the options could not be read."""
    words = sys.argv[1 : sys.argv.index("--")] if "--" in sys.argv else sys.argv[1:]
    return "--json" in words
