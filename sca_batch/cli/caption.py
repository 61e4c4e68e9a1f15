"""`sca caption`: the main job."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import click

from sca_batch.cli.logs import tell
from sca_batch.cli.options import GroupedCommand, given_options, options_of
from sca_batch.cli.progress import Progress, duration
from sca_batch.cli.stopping import stop_on_signals
from sca_batch.errors import EXIT_LEFTOVERS, ScaError
from sca_batch.job.events import Event, Exporting, Planned, SourcesChanged
from sca_batch.job.request import CaptionRequest

if TYPE_CHECKING:
    from sca_batch.job.caption import Outcome, Preview


@click.command(cls=GroupedCommand)
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@options_of(CaptionRequest)
@click.option("--dry-run", is_flag=True, help="Say what would be done; write nothing.")
@click.pass_context
def caption(ctx: click.Context, /, sources: tuple[str, ...], dry_run: bool, **_: object) -> None:
    """Find the regions of every image in SOURCE and describe each one.

    SOURCE is a folder (searched at any depth, images known by their content), image files, a
    quoted pattern, or a manifest: .jsonl, .csv, .tsv, .parquet, .txt, COCO .json, or - for JSON
    lines on standard input. manifests/README.md says which columns a manifest may have.

    The same command again goes on where it was stopped. Exit codes: 0 every image has a record;
    1 finished, but more failed than --max-failures allows, or shards are left over; 2 a request
    that cannot be met, nothing was started; 70 a bug; 75 told to stop by a signal, --time-limit or
    a full disk, what is done is kept; 130 interrupted.

    \b
    Examples:
      sca caption ./images
      sca caption photos.jsonl -o out --regions given
      sca caption one.jpg --format jsonl -o -
      sca caption ./images --model xk-huang/segment-caption-anything-gpt2_large-vg
    """
    request = CaptionRequest.of(*sources, **given_options(ctx, CaptionRequest))
    if dry_run:
        from sca_batch.job.caption import preview_corpus

        _describe(preview_corpus(request))
    elif "jsonl" in request.output.formats:
        ctx.exit(_print_lines(request))
    else:
        ctx.exit(_caption(request))


def _caption(request: CaptionRequest) -> int:
    """The run, with its progress shown and its end told; its exit code."""
    from sca_batch.job.caption import caption_corpus

    with stop_on_signals() as stop, Progress() as progress:

        def listen(event: Event) -> None:
            # What is listed, loaded or exported can be done again; an image is finished first.
            if isinstance(event, Planned | Exporting):
                stop.patient = isinstance(event, Planned)
            progress(event)

        try:
            outcome = caption_corpus(request, listen=listen, should_stop=stop.requested)
        except KeyboardInterrupt:
            tell("Stopped. What is done is kept; the same command goes on.")
            return stop.exit_code
    good = outcome.exit_code == 0
    tell(
        _ending(outcome, progress, "coco" in request.output.formats),
        logging.INFO if good else logging.WARNING,
    )
    return stop.exit_code if outcome.tally.stopped and stop.requested() else outcome.exit_code


def _print_lines(request: CaptionRequest) -> int:
    """One JSON line per image on standard output, the fields of the Parquet dataset."""
    from sca_batch.dataset.schema import record_to_row, row_to_jsonl
    from sca_batch.job.caption import caption_images

    if request.output.output not in (None, "-"):
        raise ScaError(f"--format jsonl prints lines; use -o - > {request.output.output}")
    with Progress() as progress:
        for record in caption_images(request, listen=progress):
            click.echo(row_to_jsonl(record_to_row(record)))
    allowed = request.running.max_failures.allow(progress.failed, progress.total)
    return 0 if allowed else EXIT_LEFTOVERS


def _describe(preview: Preview) -> None:
    request, plan = preview.request, preview.plan
    size = request.batching.shard_size
    given = plan.survey.with_regions if request.regions.source != "auto" else 0
    into = "lines" if preview.out is None else f"{preview.out}/"
    if preview.changes is not None:
        _describe_run(preview, preview.changes)
        return
    click.echo(f"Would caption {len(plan):,} images with {request.model.model} into {into}")
    click.echo(f"  {-(-len(plan) // size):,} shards of {size} images")
    click.echo(f"  regions: given for {given:,} images, proposed for {len(plan) - given:,}")
    if len(plan) - given:
        automatic = request.regions.automatic
        click.echo(
            f"  {automatic.points_per_side} x {automatic.points_per_side} points, predicted IoU > "
            f"{automatic.pred_iou_thresh}, stability >= {automatic.stability_score_thresh}"
        )
    captions = request.captions
    click.echo(f"  {captions.num_beams} beams of at most {captions.max_new_tokens} tokens")
    if plan.skipped_files:
        click.echo(f"  {plan.skipped_files:,} other files are left alone")
    first = plan.survey.first_keys
    for key in first:
        click.echo(f"  {key}")
    if len(plan) > len(first):
        click.echo(f"  and {len(plan) - len(first):,} more")


def _describe_run(preview: Preview, changes: SourcesChanged) -> None:
    """What would be done of a run that is there."""
    left = preview.planned - preview.done
    click.echo(
        f"{preview.out}/ holds a run over {preview.planned:,} images; {left:,} are left to do"
    )
    counts = (
        f"{changes.new:,} new, {changes.changed:,} perhaps changed, {changes.gone:,} vanished, "
        f"{changes.back:,} back"
    )
    if preview.request.existing.update:
        click.echo(f"  the update would find {counts}")
    elif changes.new or changes.changed or changes.gone or changes.back:
        click.echo(f"  its sources have changed: {counts}; --update would follow them")


def _ending(outcome: Outcome, progress: Progress, with_coco: bool) -> str:
    """The end of the run, in words."""
    tally, out = outcome.tally, outcome.out
    if outcome.lock_lost:
        return (
            f"{out}: another run has taken this output over, since this one did not renew its "
            "lock in time. What is done is kept."
        )
    if tally.stopped:
        return (
            f"Stopped; {progress.done:,} of {outcome.planned:,} images are done. The same command "
            "goes on."
        )
    rate = tally.images / tally.seconds if tally.seconds else 0.0
    lines = [
        f"Captioned {tally.images:,} images: {tally.regions:,} regions in "
        f"{duration(tally.seconds)} ({rate:.2f} images/s)"
    ]
    if tally.resumed_images:
        lines.append(f"  {tally.resumed_images:,} images were done before")
    if tally.failures:
        failures = ", ".join(f"{code} {n:,}" for code, n in tally.failures.most_common())
        lines.append(f"  {tally.failures.total():,} failed: {failures}")
    written = "shard-*.parquet" + (", captions.json" if with_coco else "")
    lines.append(f"  {out}/: {written}, run.json")
    lines.append(f"  look at one: sca draw {out} IMAGE")
    lines += [f"{lost.shard} is left over: {lost.error}" for lost in tally.lost]
    lines += [f"no worker could start on {device}" for device in outcome.devices_lost]
    if outcome.left_out:
        lines.append(f"{outcome.left_out:,} images have no record: add --update")
    return "\n".join(lines)
