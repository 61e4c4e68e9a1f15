"""`sca train`: recipes, from their beginning or from where a run was stopped."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from sca_batch.cli.options import Duration
from sca_batch.cli.stopping import Stop, stop_on_signals
from sca_batch.errors import ScaError

if TYPE_CHECKING:
    from sca_batch.train.caption_recipes import CaptionRecipe

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("recipe", required=False)
@click.pass_context
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the log, the checkpoints, and at the end the model.",
)
@click.option(
    "--data",
    multiple=True,
    metavar="[NAME=]MANIFEST",
    help="Manifest with boxes and references for a data set of the recipe; once for each.",
)
@click.option("--validation", type=_FILE, help="Manifest to caption and score every N steps.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change one number of the recipe, checked against its type; may be repeated.",
)
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint in the folder.")
@click.option(
    "--export",
    type=click.Choice(["last", "best"]),
    default="last",
    show_default=True,
    help="Which weights OUTPUT/model gets: the last step's, or those of the validation with the "
    "best CIDEr-D. With --resume, a run that is finished is exported again.",
)
@click.option(
    "--time-limit",
    type=Duration(),
    help="Stop, with a checkpoint, before this much time has passed since the start: 7h45m.",
)
@click.option("--dry-run", is_flag=True, help="Print the recipe, what it trains and what it costs.")
@click.option(
    "--cache-embeddings",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Keep image embeddings there, 4 MiB an image (2 in half precision): the encoder then runs "
    "once per image. For recipes without jitter.",
)
@click.option(
    "--track",
    "trackers",
    multiple=True,
    type=click.Choice(["tensorboard", "wandb"]),
    help="Beside log.jsonl, write there too; may be repeated.",
)
@click.option(
    "--curves",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="RUN",
    help="Only draw RUN/curves.png from the run's log: losses and scores against steps.",
)
@click.option("--cpu", is_flag=True, help="Leave the GPUs alone.")
@click.option(
    "--workers",
    type=click.IntRange(0),
    help="Processes that make batches ahead; 0 makes them in this one. The recipe's if left out.",
)
def train(
    ctx: click.Context,
    /,
    recipe: str | None,
    output: Path | None,
    data: tuple[str, ...],
    validation: Path | None,
    settings: tuple[str, ...],
    resume: bool,
    export: Literal["last", "best"],
    time_limit: float | None,
    dry_run: bool,
    cache_embeddings: Path | None,
    trackers: tuple[str, ...],
    curves: Path | None,
    cpu: bool,
    workers: int | None,
) -> None:
    """Train RECIPE and leave a model in OUTPUT/model.

    The paper's recipes train a text feature mixer between a frozen SAM and a frozen language
    model: vg-ablation, vg, vg-llama, objects365-pretrain, vg-finetune, weak-coco, weak-v3det,
    weak-objects365, weak-mix, weak-finetune, and encoder-NAME and encoder-NAME-sam-mixer for
    clip336, clip224, eva02, dinov2 and mae. docs/TRAINING.md says how to reproduce the paper.

    The recipe tiny makes the bundled model, on composed scenes of pictograms, in five stages
    that are recipes too: tiny-language, tiny-sam, tiny-edges (--set start=FILE.pt), tiny-reading
    (--set sam=DIR --set language_model=DIR) and tiny-caption (--set start=DIR). Its art is fetched
    once with npm. Training needs the extra: pip install '.[train]'.

    SIGTERM, SIGUSR1, Ctrl-C and --time-limit stop a run after the step that it is in, with a
    checkpoint, and --resume goes on with the losses of an unbroken run. Exit codes: 0 trained to
    the end; 1 a loss is not finite or data cannot be read, the last checkpoint is kept; 2 a request
    that cannot be met; 70 a bug; 75 told to stop, or a full disk; 130 interrupted.

    \b
    Examples:
      sca train vg --dry-run
      sca train vg -o runs/vg --data train.jsonl --validation test.jsonl
      sca train vg -o runs/vg --data train.jsonl --resume       after it was stopped
      accelerate launch --multi_gpu "$(command -v sca)" train vg -o runs/vg --data train.jsonl
      sca train --curves runs/vg                                  draw how it went
      sca train tiny -o runs/tiny
      sca caption ./images --model runs/vg/model
    """
    import dataclasses

    from sca_batch.overrides import with_settings
    from sca_batch.train.caption_recipes import CAPTION_RECIPES
    from sca_tiny.recipes import TINY_RECIPES, TinyRecipe

    if curves is not None:
        from sca_batch.train.curves import draw_curves

        draw_curves(curves / "log.jsonl", curves / "curves.png")
        click.echo(f"Wrote {curves / 'curves.png'}", err=True)
        return
    if recipe is None:
        names = ", ".join([*CAPTION_RECIPES, *TINY_RECIPES])
        raise ScaError(f"no recipe; expected one of {names}")
    if output is None and not dry_run:
        raise ScaError("no folder for the run; name one: -o runs/NAME")
    if recipe in CAPTION_RECIPES:
        chosen = with_settings(CAPTION_RECIPES[recipe], settings)
        if workers is not None:
            chosen = dataclasses.replace(chosen, workers=workers)
        manifests = _manifests(chosen, data)
        if dry_run or output is None:
            _preview(chosen, manifests)
            return
        from sca_batch.train.caption_loop import train_captioner

        with _only_run(output), stop_on_signals(time_limit, patient=True) as stop:
            outcome = train_captioner(
                chosen,
                manifests,
                output,
                resume=resume,
                report=lambda line: click.echo(line, err=True),
                validation=validation,
                cache=cache_embeddings,
                trackers=trackers,
                cpu=cpu,
                should_stop=lambda: _should_stop(stop),
                export=export,
            )
        if outcome.stopped:
            click.echo(f"Stopped at step {outcome.step:,}; --resume goes on.", err=True)
            ctx.exit(stop.exit_code)
    elif recipe in TINY_RECIPES:
        given = {"--data": data, "--validation": validation,
                 "--cache-embeddings": cache_embeddings, "--export": export != "last"}  # fmt: skip
        unused = [option for option, value in given.items() if value]
        if unused:
            raise ScaError(f"{unused[0]} is not for the recipe {recipe}, which makes its own data")
        stages = with_settings(TINY_RECIPES[recipe], settings)
        if workers is not None:
            stages = _with_workers(stages, workers)
        if dry_run or output is None:
            _preview_tiny(stages)
            return
        from sca_tiny.stages import StageOptions, train_stage, train_tiny

        with _only_run(output), stop_on_signals(time_limit, patient=True) as stop:
            options = StageOptions(
                resume=resume,
                report=lambda line: click.echo(line, err=True),
                trackers=trackers,
                cpu=cpu,
                should_stop=lambda: _should_stop(stop),
            )
            if isinstance(stages, TinyRecipe):
                outcome = train_tiny(stages, output, options)
            else:
                outcome = train_stage(stages, output, options)
        if outcome.stopped:
            click.echo(f"Stopped at step {outcome.step:,}; --resume goes on.", err=True)
            ctx.exit(stop.exit_code)
    else:
        names = ", ".join([*CAPTION_RECIPES, *TINY_RECIPES])
        raise ScaError(f"no recipe {recipe!r}; expected one of {names}")


def _only_run(out: Path) -> AbstractContextManager[Any]:
    """Keeps a second run out of the folder; of several processes the first one's lock is enough."""

    from sca_batch.job.run import locked

    return locked(out) if os.environ.get("RANK", "0") == "0" else nullcontext()


def _should_stop(stop: Stop) -> bool:
    stop.record()
    return stop.requested()


def _manifests(recipe: CaptionRecipe, data: tuple[str, ...]) -> dict[str, Path]:
    """The manifest of each data set by its name, which may be left out where there is one."""
    names = [part.name for part in recipe.data]
    found: dict[str, Path] = {}
    for item in data:
        name, separator, value = item.partition("=")
        if not separator or name not in names:
            if len(names) > 1:
                raise ScaError(f"--data {item}: expected NAME=MANIFEST with {', '.join(names)}")
            name, value = names[0], item
        if name in found:
            raise ScaError(f"--data {item}: there is a manifest for {name} already")
        if not Path(value).is_file():
            raise ScaError(f"--data {item}: no file {value}")
        found[name] = Path(value)
    return found


def _preview(recipe: CaptionRecipe, manifests: dict[str, Path]) -> None:
    from sca_batch.manifests.references import read_captioned
    from sca_batch.train.caption_recipes import check_recipe
    from sca_batch.train.estimate import preview

    check_recipe(recipe)
    num_images = {name: len(read_captioned(path)) for name, path in manifests.items()}
    for line in preview(recipe, num_images):
        click.echo(line)


def _with_workers(stages: Any, workers: int) -> Any:
    """A recipe of the bundled model, its stages with this number of workers."""
    from dataclasses import replace

    from sca_tiny.recipes import TinyRecipe

    if not isinstance(stages, TinyRecipe):
        return replace(stages, workers=workers)
    return replace(
        stages,
        language=replace(stages.language, workers=workers),
        sam=replace(stages.sam, workers=workers),
        reading=replace(stages.reading, workers=workers),
        caption=replace(stages.caption, workers=workers),
    )


def _preview_tiny(stages: Any) -> None:
    from sca_tiny.estimate import preview_stages

    for line in preview_stages(stages):
        click.echo(line)
