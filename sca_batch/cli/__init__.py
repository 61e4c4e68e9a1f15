"""The `sca` command: one group, logging, and errors as one line and an exit code."""

from __future__ import annotations

import importlib
import logging
import os
import select
import sys

import click

from sca_batch import __version__
from sca_batch.cli.logs import set_up_logging, tell
from sca_batch.cli.stopping import Stop, stop_on_signals
from sca_batch.errors import EXIT_BUG, EXIT_INTERRUPTED, ScaError

__all__ = ["cli", "main", "run_command"]

# Each is in a file of its name, which is imported when it is chosen: `sca --help` answers without
# torch, and a broken optional package stops only the command that needs it.
COMMANDS = (
    "caption", "draw", "verify", "doctor", "model", "engine", "manifest", "stats", "train",
    "completion",
)  # fmt: skip


class LazyGroup(click.Group):
    """A group whose commands are imported when they are looked at."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"sca_batch.cli.{cmd_name}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            if not _has_reader_left():  # some other pipe of ours, of which click would say nothing
                raise RuntimeError("a pipe within sca broke") from error
            # `sca ... | head`: nothing is wrong. What is still buffered must not be written at the
            # end either.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise click.exceptions.Exit(0) from None


def _has_reader_left() -> bool:
    """True when nobody reads what is written to the standard output any more."""
    output = select.poll()
    output.register(sys.stdout, 0)  # errors and hang-ups are always told
    return bool(output.poll(0))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sca")
@click.option("-q", "--quiet", is_flag=True, help="Only warnings and errors.")
@click.option("-v", "--verbose", is_flag=True, help="Say more about what is done.")
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="json writes one object per line of the log.",
)
def cli(quiet: bool, verbose: bool, log_format: str) -> None:
    """Find every region of your images and describe each one in words.

    Regions come from Segment Anything's automatic mask generation, sentences from Segment and
    Caption Anything (CVPR 2024). Captions, masks and scores are written as Parquet and
    COCO-style JSON.

    \b
    Start here:
      sca caption ./images           caption a folder with the bundled model
      sca draw images-captions 1     look at the result for one image
      sca model list                 models that can be used
    """
    level = logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO
    set_up_logging(level, log_format)


def main(args: list[str] | None = None) -> None:
    """Runs the command line and exits with the code that its contract names."""
    run_command(cli, "sca", args)


def run_command(command: click.Command, name: str, args: list[str] | None = None) -> None:
    """Runs a command line; errors become one line, and everything an exit code."""
    stop = Stop()
    try:
        with stop_on_signals() as stop:
            code: object = command.main(args=args, prog_name=name, standalone_mode=False)
    except ScaError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        tell("Interrupted.")
        sys.exit(EXIT_INTERRUPTED if stop.signal is None else stop.exit_code)
    except Exception:  # the outermost frame: a bug is a traceback and its own exit code
        logging.getLogger(__name__).exception("This is a bug in sca; please report it.")
        sys.exit(EXIT_BUG)
    sys.exit(code if isinstance(code, int) else 0)
