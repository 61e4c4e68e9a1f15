"""`sca manifest`: make manifests from what people have, and look at them before a long run."""

from __future__ import annotations

import logging
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from sca_batch.cli.options import GroupedCommand, given_options, options_of
from sca_batch.cli.values import box_format_option
from sca_batch.errors import EXIT_LEFTOVERS, ScaError
from sca_batch.manifests.request import BuildRequest, CheckFiles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tqdm import tqdm

    from sca_batch.manifests.annotations.build import BuildSummary
    from sca_batch.manifests.check import ManifestReport

log = logging.getLogger(__name__)


@click.group()
def manifest() -> None:
    """Make tables of images and regions, and check them.

    A manifest has one row per image: its path, and if you like its regions, reference captions
    and anything else. manifests/README.md describes the columns.
    """


@manifest.command(cls=GroupedCommand)
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@options_of(BuildRequest)
@click.option("--dry-run", is_flag=True, help="Read and count everything; write nothing.")
@click.pass_context
def build(ctx: click.Context, /, sources: tuple[str, ...], dry_run: bool, **_: object) -> None:
    """Write one manifest of everything that SOURCE holds.

    Without --from, SOURCE is a folder, images, a pattern or another manifest, as for
    `sca caption`. With it, SOURCE is one data set's folder; images with their regions, phrases and
    region ids become rows, and what is left out is counted by reason.

    \b
    Examples:
      sca manifest build ./photos -o photos.jsonl
      sca manifest build --from vg ./visual-genome --split test -o vg-test.jsonl
      sca manifest build --from refcoco+ ./refer --split testA --dry-run
      sca manifest build --from refcocog ./refer --split val --ref-protocol clean
      sca caption vg-test.jsonl --regions given
    """
    request = BuildRequest.of(*sources, **given_options(ctx, BuildRequest))
    target = request.target
    if target.exists() and not request.overwrite and not dry_run:
        raise ScaError(f"{target} is there already; replace it with --overwrite, or name another")
    written = None if dry_run else target
    if request.kind is None:
        from sca_batch.plan.as_manifest import write_sources

        stdin = sys.stdin.buffer if "-" in sources else None
        plan = write_sources(request, written, stdin)
        images = len(plan)
        lines = [f"{images:,} images, {plan.survey.with_regions:,} with given regions"]
        if plan.skipped_files:
            lines.append(f"skipped: {plan.skipped_files:,} files that are no images")
    else:
        from sca_batch.manifests.annotations.build import build_manifest

        with _bars() as progress:
            summary = build_manifest(
                request.kind,
                replace(request.data_set, progress=progress),
                written,
                check_files=request.check_files,
                relative=request.relative,
                limit=request.limit,
            )
        images = summary.images
        lines = _summary_lines(request.kind, request.data_set.split, summary)
    click.echo("\n".join(lines), err=not dry_run)
    if dry_run:
        click.echo("Nothing was written (--dry-run).", err=True)
        return
    click.echo(
        f"Wrote {images:,} images to {target}: sca manifest check {target}, "
        f"sca stats {target}, sca caption {target}",
        err=True,
    )


@manifest.command()
@click.argument("manifest_file", metavar="MANIFEST", type=click.Path(dir_okay=False, exists=True))
@click.option(
    "--check-files",
    type=click.Choice(["exists", "sizes", "none"]),
    default="sizes",
    show_default=True,
    help="exists looks whether each image is there; sizes opens it, compares width and height, "
    "and sees which boxes leave it; none looks at no image.",
)
@box_format_option()
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
def check(
    manifest_file: str,
    check_files: CheckFiles,
    box_format: Literal["xyxy", "xywh"] | None,
    as_json: bool,
) -> None:
    """Read MANIFEST as `sca caption` would, and say what is in it and what is wrong.

    Every problem is named with its line. The exit code is 1 if there is one, and 0 otherwise;
    boxes that reach over an edge are legal, and only noted.

    \b
    Examples:
      sca manifest check vg-test.jsonl
      sca manifest check boxes.csv --box-format xywh --check-files none
    """
    import json

    from sca_batch.manifests.check import check_manifest

    with _bars() as progress:
        report = check_manifest(
            Path(manifest_file),
            check_files=check_files,
            box_format=box_format,
            progress=lambda rows: progress("rows", rows),
        )
    if as_json:
        click.echo(json.dumps({"manifest": manifest_file} | report.to_dict(), ensure_ascii=False))
    else:
        click.echo("\n".join(_report_lines(manifest_file, report)))
    if report.problem_count:
        click.get_current_context().exit(EXIT_LEFTOVERS)


def _summary_lines(kind: str, split: str, summary: BuildSummary) -> list[str]:
    lines = [
        f"{kind}, split {split}: {summary.images:,} images, {summary.regions:,} regions, "
        f"{summary.references:,} phrases"
    ]
    for reason, count in summary.tally.noted.most_common():
        lines.append(f"kept, {reason}: {count:,}")
    for reason, count in summary.tally.dropped.most_common():
        lines.append(f"dropped, {reason}: {count:,}")
        examples = summary.examples.get(reason, [])
        lines += [f"  {example}" for example in examples]
        if 0 < len(examples) < count:
            lines.append(f"  ... and {count - len(examples):,} more")
    return lines


def _report_lines(name: str, report: ManifestReport) -> list[str]:
    lines = [
        f"{name}: {report.rows:,} rows, {report.with_regions:,} with given regions; "
        f"{report.regions:,} regions, {report.references:,} references; "
        f"{report.files_seen:,} files looked at"
    ]
    lines += [f"note, {what}: {count:,}" for what, count in report.notes.most_common()]
    lines += [f"problem: {problem}" for problem in report.problems]
    more = report.problem_count - len(report.problems)
    if more:
        lines.append(f"... and {more:,} more problems")
    lines.append(f"Problems: {report.problem_count:,}" if report.problem_count else "No problems.")
    return lines


@contextmanager
def _bars() -> Iterator[Callable[[str, int], None]]:
    """A progress bar per stage on a terminal, nothing elsewhere; stages begin as they are named."""
    from tqdm import tqdm

    quiet = not log.isEnabledFor(logging.INFO) or not sys.stderr.isatty()
    bars: dict[str, tqdm[None]] = {}

    def progress(stage: str, done: int) -> None:
        if stage not in bars:
            unit = {"images": "image", "rows": "row"}.get(stage, "B")
            label = None if stage in ("images", "rows") else stage
            bars[stage] = tqdm(
                unit=unit, desc=label, unit_scale=unit == "B", disable=quiet, dynamic_ncols=True
            )
        bars[stage].update(done - bars[stage].n)

    try:
        yield progress
    finally:
        for bar in bars.values():
            bar.close()
