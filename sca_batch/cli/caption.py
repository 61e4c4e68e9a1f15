"""`sca caption`: the main job."""

from __future__ import annotations

import logging
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sca_batch.cli.caption_options import (
    CONTENT_OPTIONS,
    FORMATS,
    batch_options,
    caption_options,
    model_options,
    nightly_options,
    region_options,
    run_options,
)
from sca_batch.cli.caption_settings import Settings, domain_of
from sca_batch.cli.metrics import Metrics
from sca_batch.cli.nightly import (
    check_codes,
    follow_sources,
    list_again,
    make_runner,
    policy_of,
    stop_on_signals,
)
from sca_batch.cli.progress import duration, show_progress
from sca_batch.errors import EXIT_BUG, EXIT_LEFTOVERS, EXIT_STOPPED, ScaError
from sca_batch.job.domain import DomainWatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sca_batch.job import ImageDone, Outcome
    from sca_batch.plan.plan import Plan
    from sca_batch.storage.stores import AnyPath

log = logging.getLogger(__name__)


@click.command()
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@run_options
@model_options
@caption_options
@region_options
@batch_options
@nightly_options
@click.pass_context
def caption(ctx: click.Context, /, sources: tuple[str, ...], **options: Any) -> None:
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
    formats = _formats(options["formats"])
    if formats == {"jsonl"}:
        _take_from_model(ctx, options, [])
        _print_lines(sources, options)
        return
    out = _output(options["output"] or _default_output(sources))
    _take_from_model(ctx, options, _take_from_run(ctx, options, out))
    code = _caption_to_folder(sources, out, formats, options)
    ctx.exit(code)


def _formats(text: str) -> set[str]:
    names = {name.strip() for name in text.split(",") if name.strip()}
    unknown = sorted(names - set(FORMATS))
    if unknown or not names:
        raise ScaError(f"--format {text!r}: expected some of {', '.join(FORMATS)}")
    if "jsonl" in names and len(names) > 1:
        raise ScaError("--format jsonl prints lines and goes alone: --format jsonl -o -")
    return names


def _output(text: str) -> AnyPath:
    from sca_batch.storage.stores import any_path

    if text.startswith("memory://"):
        raise ScaError(f"-o {text}: memory:// ends with its process, and workers have their own")
    return any_path(text)


def _default_output(sources: Sequence[str]) -> str:
    first = sources[0]
    if first == "-":
        raise ScaError("standard input has no name to call the output after; name a folder with -o")
    if any(character in first for character in "*?["):
        return "images-captions"
    return f"{Path(first).resolve().stem or 'images'}-captions"


def _take_from_run(ctx: click.Context, options: dict[str, Any], out: AnyPath) -> list[str]:
    """Options that were left out take the value of the run that is taken up again; which did."""
    if options["overwrite"] or not (out / "run.json").is_file():
        return []
    from sca_batch.dataset.shards import read_run

    before = read_run(out).get("settings", {}).get("options", {})
    taken = [name for name in CONTENT_OPTIONS if _was_left_out(ctx, name) and name in before]
    options.update({name: before[name] for name in taken})
    return taken


def _take_from_model(ctx: click.Context, options: dict[str, Any], taken: list[str]) -> None:
    """Options of automatic masks that nobody gave take the value that the model asks for."""
    from dataclasses import asdict

    from sca_batch.model.zoo import config_at_hand
    from sca_batch.regions.automatic import AutomaticMaskSettings

    config = config_at_hand(options["model"])
    if config is None:
        return
    wanted = asdict(AutomaticMaskSettings.for_model(config))
    for name in config.automatic_masks:
        if _was_left_out(ctx, name) and name not in taken:
            options[name] = wanted[name]


def _was_left_out(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) is click.core.ParameterSource.DEFAULT


def _caption_to_folder(
    sources: Sequence[str], out: AnyPath, formats: set[str], options: dict[str, Any]
) -> int:
    from sca_batch import job
    from sca_batch.dataset.coco import export_coco
    from sca_batch.plan.sources import refuse_output_inside

    if options["output"] == "-":
        raise ScaError("-o - prints lines; add --format jsonl")
    refuse_output_inside(sources, out)
    settings = Settings(options)
    if options["dry_run"]:
        _describe(_plan(sources, options), out, settings, options)
        return 0
    check_codes(options["retry_failed"])
    job.refuse_foreign_folder(out)
    with make_runner(options, tuple(sources)) as runner:
        runner.start()  # the first worker loads its model while the sources are listed
        # Everything that can be wrong with the request is found before the first file is written.
        fresh = options["overwrite"] or not (out / "run.json").is_file()
        plan = _plan(sources, options) if fresh else None
        listed = None if fresh else list_again(sources, options, partial(_plan, sources, options))
        content, informative = runner.about()
        log.info("Engine: %s", informative["engine"])
        # Workers that start from here on take what the first one found, and say nothing of it.
        options |= {"engine": informative["options"]["engine"], "plans": informative["plans"]}
        with job.locked(out) as lock:
            if options["overwrite"]:
                job.remove_run(out)
            run = job.open_run(
                out,
                make_plan=lambda: plan if plan is not None else _plan(sources, options),
                content=content,
                settings=informative,
                shard_size=options["shard_size"],
            )
            if not fresh:
                run = follow_sources(run, options, listed)
            stages = job.StageTimes()
            with (
                show_progress(len(run.plan)) as progress,
                stop_on_signals(options["time_limit"]) as stop,
            ):
                metrics = Metrics(options["metrics_file"], len(run.plan))
                watch = DomainWatch(options["model"], informative["domain"])

                def heard(image: ImageDone) -> None:
                    stop.record()
                    progress.record(image)
                    metrics.record(image)
                    watch.record(image)

                def resumed(images: int) -> None:
                    progress.resumed(images)
                    metrics.resumed(images)

                outcome = job.run_job(
                    run,
                    runner,
                    commit_every_s=options["commit_every"],
                    on_record=heard,
                    on_resumed=resumed,
                    on_stages=stages.add,
                    should_stop=lambda: stop.requested() or lock.lost,
                )
            summary = job.summarize(run, outcome, stages, workers=runner.workers)
            if watch.domain is not None:
                summary["images_outside_domain"] = watch.outside
            job.write_summary(out, summary)
            metrics.finish(summary["complete"])
            if lock.lost:
                click.echo(
                    f"{out}: another run has taken this place over, since this one did not renew "
                    "its lock in time. What is done is kept.",
                    err=True,
                )
                return EXIT_STOPPED
            if outcome.stopped:
                click.echo(
                    f"Stopped; {progress.done:,} of {len(run.plan):,} images are done. The same "
                    "command goes on.",
                    err=True,
                )
                return stop.exit_code
            if "coco" in formats:
                export_coco(out, out / job.COCO_FILE)
    _summary(outcome, out, formats)
    for lost in outcome.lost:
        click.echo(f"{lost.unit} is left over: {lost.error}", err=True)
    if any(lost.is_bug for lost in outcome.lost):
        return EXIT_BUG
    few = options["max_failures"].allow(outcome.failures.total(), len(run.plan))
    return 0 if few and not outcome.lost else EXIT_LEFTOVERS


def _plan(sources: Sequence[str], options: dict[str, Any]) -> Plan:
    from sca_batch.images.formats import looks_like_image
    from sca_batch.images.policy import check_schemes
    from sca_batch.plan.plan import plan_head
    from sca_batch.plan.sources import has_image_suffix, plan_sources

    plan = plan_sources(
        sources,
        # A broken file that claims to be an image gets a row that says what is wrong with it.
        is_image=lambda path: has_image_suffix(path) or looks_like_image(path),
        box_format=options["box_format"],
        stdin=sys.stdin.buffer if "-" in sources else None,
    )
    if options["limit"]:
        plan = plan_head(plan, options["limit"])
    check_schemes(plan.survey.schemes, policy_of(options))
    without = len(plan) - plan.survey.with_regions
    if options["regions"] == "given" and without:
        raise ScaError(
            f"--regions given: {plan.survey.first_without_regions} and {without - 1:,} more have "
            "no boxes, points or masks; add them to the manifest, or leave --regions out"
        )
    return plan


def _describe(plan: Plan, out: AnyPath, settings: Settings, options: dict[str, Any]) -> None:
    given = plan.survey.with_regions if options["regions"] != "auto" else 0
    click.echo(f"Would caption {len(plan):,} images with {options['model']} into {out}/")
    click.echo(
        f"  {-(-len(plan) // options['shard_size']):,} shards of {options['shard_size']} images"
    )
    click.echo(f"  regions: given for {given:,} images, proposed for {len(plan) - given:,}")
    if len(plan) - given:
        automatic = settings.regions.automatic
        click.echo(
            f"  {automatic.points_per_side} x {automatic.points_per_side} points, predicted IoU > "
            f"{automatic.pred_iou_thresh}, stability >= {automatic.stability_score_thresh}"
        )
    captions = settings.captions
    click.echo(f"  {captions.num_beams} beams of at most {captions.max_new_tokens} tokens")
    if plan.skipped_files:
        click.echo(f"  {plan.skipped_files:,} other files are left alone")
    first = plan.survey.first_keys
    for key in first:
        click.echo(f"  {key}")
    if len(plan) > len(first):
        click.echo(f"  and {len(plan) - len(first):,} more")


def _print_lines(sources: Sequence[str], options: dict[str, Any]) -> None:
    """One JSON line per image on standard output, the fields of the Parquet dataset."""
    from sca_batch.dataset.schema import record_to_row, row_to_jsonl
    from sca_batch.job import image_done
    from sca_batch.plan.plan import plan_refs

    if options["output"] not in (None, "-"):
        raise ScaError(f"--format jsonl prints lines; use -o - > {options['output']}")
    settings = Settings(options)
    plan = _plan(sources, options)
    if options["dry_run"]:
        _describe(plan, Path("-"), settings, options)
        return
    model = settings.load()
    pipeline = settings.pipeline(model)
    log.info("Engine: %s", settings.engine_why)
    watch = DomainWatch(options["model"], domain_of(model))
    with show_progress(len(plan)) as progress:
        for record in pipeline.run(plan_refs(plan)):
            click.echo(row_to_jsonl(record_to_row(record)))
            done = image_done(record)
            progress.record(done)
            watch.record(done)
    if not options["max_failures"].allow(progress.failed, len(plan)):
        sys.exit(EXIT_LEFTOVERS)


def _summary(outcome: Outcome, out: AnyPath, formats: set[str]) -> None:
    rate = outcome.images / outcome.seconds if outcome.seconds else 0.0
    lines = [
        f"Captioned {outcome.images:,} images: {outcome.regions:,} regions in "
        f"{duration(outcome.seconds)} ({rate:.2f} images/s)"
    ]
    if outcome.resumed_images:
        lines.append(f"  {outcome.resumed_images:,} images were done before")
    if outcome.failures:
        failures = ", ".join(f"{code} {n:,}" for code, n in outcome.failures.most_common())
        lines.append(f"  {outcome.failures.total():,} failed: {failures}")
    written = "shard-*.parquet" + (", captions.json" if "coco" in formats else "")
    lines.append(f"  {out}/: {written}, run.json")
    lines.append(f"  look at one: sca draw {out} IMAGE")
    click.echo("\n".join(lines), err=True)
