"""`kestrel completion SHELL`: the script that teaches a shell to complete `kestrel` commands."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script for SHELL.

    \b
    bash: kestrel completion bash > ~/.local/share/bash-completion/completions/kestrel
    zsh:  kestrel completion zsh > "${fpath[1]}/_kestrel"
    fish: kestrel completion fish > ~/.config/fish/completions/kestrel.fish
    """
    maker = get_completion_class(shell)
    assert maker is not None
    click.echo(maker(ctx.find_root().command, {}, "kestrel", "_KESTREL_COMPLETE").source())
