"""`sca train`: recipes, from nothing or from where a run was stopped."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("recipe")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the log, the checkpoint, and at the end the model.",
)
@click.option("--resume", is_flag=True, help="Go on from the checkpoint in the folder.")
@click.option(
    "--workers",
    type=click.IntRange(0),
    default=1,
    show_default=True,
    help="Processes that compose scenes ahead; 0 composes in this one.",
)
@click.option(
    "--compile",
    "compile_layers",
    is_flag=True,
    help="Let torch compile the layers first; needs a C++ compiler, pays within minutes.",
)
@click.option("--dry-run", is_flag=True, help="Print the recipe and what it costs; train nothing.")
def train(
    recipe: str, output: Path, resume: bool, workers: int, compile_layers: bool, dry_run: bool
) -> None:
    """Train RECIPE and leave a model in OUTPUT/model.

    The one recipe today is `tiny`: the bundled model, trained from nothing on composed scenes of
    pictograms. Its art is fetched once with npm. Needs the extra: pip install 'sca[train]'.

    \b
    Examples:
      sca train tiny -o runs/tiny --dry-run
      sca train tiny -o runs/tiny
      sca train tiny -o runs/tiny --resume        after it was stopped
      sca caption ./images --model runs/tiny/model
    """
    from dataclasses import asdict

    from sca_batch.errors import ScaError
    from sca_batch.train.recipes import RECIPES

    if recipe not in RECIPES:
        raise ScaError(f"no recipe {recipe!r}; expected one of {', '.join(sorted(RECIPES))}")
    chosen = RECIPES[recipe]
    if dry_run:
        for name, value in asdict(chosen).items():
            click.echo(f"{name}: {value}")
        images = chosen.steps * chosen.images_per_step
        click.echo(
            f"{chosen.steps:,} steps of {chosen.images_per_step} images: {images:,} scenes, "
            f"{images * chosen.boxes_per_image:,} boxes and "
            f"{images * chosen.points_per_image:,} points"
        )
        return
    from sca_batch.train.loop import train as run

    run(
        chosen,
        output,
        resume=resume,
        report=lambda line: click.echo(line, err=True),
        workers=workers,
        compile_layers=compile_layers,
    )
    click.echo(
        f"Wrote {output / 'model'}: sca caption ./images --model {output / 'model'}", err=True
    )
