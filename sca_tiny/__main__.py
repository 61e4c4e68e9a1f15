"""`python -m sca_tiny`: makes the bundled model, and the table of what its scenes show."""

from __future__ import annotations

import logging

import click

from sca_batch.cli import run_command
from sca_batch.cli.logs import set_up_logging
from sca_batch.cli.options import GroupedCommand, given_options, options_of
from sca_batch.cli.stopping import said, stop_training
from sca_batch.errors import ScaError
from sca_batch.options import with_options
from sca_batch.train.request import RunRequest


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Make sca-tiny, the model that is bundled with sca.

    Needs a clone of the repository, the extra train (pip install '.[train]'), and npm, which
    fetches the art of the scenes once.
    """
    set_up_logging(logging.INFO, "text")


@cli.command(cls=GroupedCommand)
@click.argument("recipe", default="tiny")
@options_of(RunRequest)
@click.option("--dry-run", is_flag=True, help="Print the recipe, what it trains and what it costs.")
@click.pass_context
def train(ctx: click.Context, /, recipe: str, dry_run: bool, **_: object) -> None:
    """Train RECIPE on composed scenes of pictograms and leave a model in OUTPUT.

    The recipe tiny, the default, makes the bundled model in five stages that are recipes too:
    tiny-language, tiny-sam, tiny-edges (--set start=FILE.pt), tiny-reading (--set sam=DIR --set
    language_model=DIR) and tiny-caption (--set start=DIR). docs/TRAINING.md says what they do.

    Signals, --time-limit, --resume and exit codes are those of sca train, and so are
    `sca train --curves OUTPUT/STAGE` and accelerate's launcher.

    \b
    Examples:
      python -m sca_tiny train -o runs/tiny
      python -m sca_tiny train --dry-run
      python -m sca_tiny train tiny-sam -o runs/sam --set steps=500
      sca caption ./images --model runs/tiny/caption/model
    """
    from sca_batch.overrides import with_settings
    from sca_tiny.recipes import TINY_RECIPES, TinyRecipe, with_workers

    request = with_options(RunRequest(), given_options(ctx, RunRequest))
    if recipe not in TINY_RECIPES:
        raise ScaError(f"no recipe {recipe!r}; expected one of {', '.join(TINY_RECIPES)}")
    chosen = with_settings(TINY_RECIPES[recipe], request.settings)
    if request.workers is not None:
        chosen = with_workers(chosen, request.workers)
    if dry_run:
        from sca_tiny.estimate import preview_stages

        for line in preview_stages(chosen):
            click.echo(line)
        return
    from sca_batch.train.loop import RunOptions
    from sca_tiny.stages import train_stage, train_tiny

    out = request.folder
    with stop_training(out, request.time_limit) as stop:
        options = RunOptions(said, request, stop.requested_after_step)
        if isinstance(chosen, TinyRecipe):
            outcome = train_tiny(chosen, out, options)
        else:
            outcome = train_stage(chosen, out, options)
    ctx.exit(stop.ended(outcome.step, outcome.stopped))


@cli.command()
def concepts() -> None:
    """Write concepts.json from concept_words.txt and the art, and say what is in it."""
    from sca_tiny.scenes.concept_table import rebuild_table

    table = rebuild_table()
    styles = ", ".join(f"{style} {count:,}" for style, count in table.per_style.items())
    click.echo(f"{table.num_concepts:,} concepts, {table.num_drawings:,} drawings; {styles}")
    click.echo(f"On no line: {', '.join(table.unused) or 'none'}", err=True)


if __name__ == "__main__":
    run_command(cli, "python -m sca_tiny")
