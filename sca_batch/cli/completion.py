"""`sca completion`: words for the shell to offer behind `sca`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

__all__ = ["completion"]


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, /, shell: str) -> None:
    """Print the script with which SHELL completes commands and options of sca.

    \b
    Examples:
      sca completion bash >> ~/.bashrc
      sca completion zsh >> ~/.zshrc
      sca completion fish > ~/.config/fish/completions/sca.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None, f"click does not know {shell}"
    click.echo(kind(ctx.find_root().command, {}, "sca", "_SCA_COMPLETE").source())
