"""docs/CLI.md, made from the commands themselves: `python -m sca_batch.cli.reference`."""

from __future__ import annotations

from collections.abc import Iterator

import click

from sca_batch.cli import cli

INTRODUCTION = """# The command line

Generated from the commands: `python -m sca_batch.cli.reference > docs/CLI.md`.
"""


def reference() -> str:
    """The help of every command, as one Markdown page."""
    parts = [INTRODUCTION]
    for path, command, context in _walk(
        cli, click.Context(cli, info_name="sca", **cli.context_settings)
    ):
        help_text = command.get_help(context).rstrip()
        parts.append(f"## {path}\n\n```text\n{help_text}\n```\n")
    return "\n".join(parts)


def _walk(
    command: click.Command, context: click.Context
) -> Iterator[tuple[str, click.Command, click.Context]]:
    # A fixed width: the page must not depend on whose terminal it was made in.
    context.terminal_width = context.max_content_width = 100
    yield context.command_path, command, context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child is not None:
                yield from _walk(child, click.Context(child, info_name=name, parent=context))


if __name__ == "__main__":
    click.echo(reference(), nl=False)
