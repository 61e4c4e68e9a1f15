"""`sca train`: recipes, from their beginning or from where a run was stopped."""

from __future__ import annotations

from pathlib import Path

import click

from sca_batch.cli.options import GroupedCommand, given_options, options_of
from sca_batch.cli.stopping import said, stop_training
from sca_batch.options import with_options
from sca_batch.train.request import TrainRequest


@click.command(cls=GroupedCommand)
@click.argument("recipe", default="")
@options_of(TrainRequest)
@click.option("--dry-run", is_flag=True, help="Print the recipe, what it trains and what it costs.")
@click.option(
    "--curves",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="RUN",
    help="Only draw RUN/curves.png from the run's log: losses and scores against steps.",
)
@click.pass_context
def train(
    ctx: click.Context, /, recipe: str, curves: Path | None, dry_run: bool, **_: object
) -> None:
    """Train RECIPE and leave a model in OUTPUT/model.

    The paper's recipes train a text feature mixer between a frozen SAM and a frozen language
    model: vg-ablation, vg, vg-llama, objects365-pretrain, vg-finetune, weak-coco, weak-v3det,
    weak-objects365, weak-mix, weak-finetune, and encoder-NAME and encoder-NAME-sam-mixer for
    clip336, clip224, eva02, dinov2 and mae. docs/TRAINING.md says how to reproduce the paper, and
    how the bundled model is made. Training needs the extra: pip install '.[train]'.

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
      sca caption ./images --model runs/vg/model
    """
    if curves is not None:
        from sca_batch.train.tracking import draw_curves

        draw_curves(curves / "log.jsonl", curves / "curves.png")
        click.echo(f"Wrote {curves / 'curves.png'}", err=True)
        return
    request = with_options(TrainRequest(recipe), given_options(ctx, TrainRequest))
    chosen = request.resolved()
    out = None if dry_run else request.run.folder
    manifests = request.manifests(chosen)
    if out is None:
        from sca_batch.manifests.references import read_captioned
        from sca_batch.train.estimate import preview
        from sca_batch.train.recipes import check_recipe

        check_recipe(chosen)
        for line in preview(chosen, {k: len(read_captioned(p)) for k, p in manifests.items()}):
            click.echo(line)
        return
    from sca_batch.train.caption_task import train_captioner
    from sca_batch.train.loop import RunOptions

    with stop_training(out, request.run.time_limit) as stop:
        outcome = train_captioner(
            chosen,
            manifests,
            out,
            RunOptions(said, request.run, stop.requested_after_step, export=request.export),
            validation=request.validation,
            cache=request.cache_embeddings,
        )
    ctx.exit(stop.ended(outcome.step, outcome.stopped))
