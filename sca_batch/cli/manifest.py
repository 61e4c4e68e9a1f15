"""`sca manifest`: make manifests from what people have, and look at them before a long run."""

from __future__ import annotations

import logging
import re
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sca_batch.cli.values import box_format_option
from sca_batch.errors import EXIT_LEFTOVERS, ScaError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sca_batch.manifests.annotations.build import BuildSummary
    from sca_batch.manifests.check import ManifestReport

log = logging.getLogger(__name__)

# The keys of `data.annotations.SOURCES`, which is not imported to say what there is.
KINDS = (
    "vg", "grit-vg", "refcoco", "refcoco+", "refcocog", "refclef", "coco", "objects365", "v3det",
    "sa1b",
)  # fmt: skip
ONLY_WITH_FROM = (
    "split", "split_by", "ref_protocol", "min_confidence", "annotations", "images", "task",
)  # fmt: skip

EXIF_ORIENTATION = 0x0112
TURNED = {5, 6, 7, 8}  # orientations that swap width and height


@click.group()
def manifest() -> None:
    """Make tables of images and regions, and check them.

    A manifest has one row per image: its path, and if you like its regions, reference captions
    and anything else. manifests/README.md describes the columns.
    """


@manifest.command()
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.option(
    "--from",
    "kind",
    type=click.Choice(KINDS),
    help="SOURCE is the folder of this data set, in the layout that docs/DATASETS.md shows.",
)
@click.option(
    "--split",
    default="train",
    show_default=True,
    help="train, val or test; RefCOCO has testA and testB.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The manifest, .jsonl or .parquet.  [default: NAME-SPLIT.jsonl, here]",
)
@click.option(
    "--check-files",
    type=click.Choice(["exists", "sizes", "none"]),
    default="exists",
    show_default=True,
    help="Leave out images that are not there; sizes also opens each and compares its size with "
    "the annotated one; none looks at no image.",
)
@click.option(
    "--ref-protocol",
    type=click.Choice(["published", "clean"]),
    default="published",
    show_default=True,
    help="RefCOCO family. published: an image of the split brings all its refs, as the published "
    "scores were computed (in google's RefCOCOg, val so contains refs of train). clean: only the "
    "split's own.",
)
@click.option(
    "--min-confidence",
    type=float,
    help="SA-1B: leave out captions whose conf is below this.",
)
@click.option(
    "--split-by",
    help="RefCOCO family: who made the split.  [default: unc; google for refcocog]",
)
@click.option(
    "--annotations",
    type=click.Path(exists=True, path_type=Path),
    help="The annotation file, or the folder it is in, where it is not below SOURCE.",
)
@click.option(
    "--images",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The folder that the annotated file names start from, where it is not below SOURCE.",
)
@click.option(
    "--task",
    type=click.Choice(["caption", "recognition"]),
    default="caption",
    show_default=True,
    help="Written into the column task. The published models were trained with caption on every "
    "data set, object names too.",
)
@click.option("--relative", is_flag=True, help="Write paths from the manifest's folder.")
@click.option("--limit", type=click.IntRange(1), help="Only the first N images.")
@box_format_option()
@click.option("--overwrite", is_flag=True, help="Replace the manifest if it is there.")
@click.option("--dry-run", is_flag=True, help="Read and count everything; write nothing.")
def build(
    sources: tuple[str, ...],
    kind: str | None,
    output: Path | None,
    overwrite: bool,
    dry_run: bool,
    **options: Any,
) -> None:
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
    if kind is None:
        given = [name for name in ONLY_WITH_FROM if _was_given(name)]
        if given:
            option = given[0].replace("_", "-")
            raise ScaError(f"--{option} describes a data set; say which: --from {KINDS[0]}")
    elif len(sources) > 1:
        raise ScaError(
            f"--from {kind} reads one folder, and {len(sources)} are named; build one manifest each"
        )
    target = output or Path(_default_name(sources[0], kind, options["split"]))
    if target.exists() and not overwrite and not dry_run:
        raise ScaError(f"{target} is there already; replace it with --overwrite, or name another")
    if kind is None:
        _build_plain(sources, None if dry_run else target, options)
    else:
        _build_from(kind, Path(sources[0]), None if dry_run else target, options)


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
def check(manifest_file: str, check_files: str, box_format: Any, as_json: bool) -> None:
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
            check_files=check_files,  # type: ignore[arg-type]
            size_of=_size_of,
            box_format=box_format,
            progress=lambda rows: progress("rows", rows),
        )
    if as_json:
        click.echo(json.dumps({"manifest": manifest_file} | report.to_dict(), ensure_ascii=False))
    else:
        click.echo("\n".join(_report_lines(manifest_file, report)))
    if report.problem_count:
        click.get_current_context().exit(EXIT_LEFTOVERS)


def _was_given(name: str) -> bool:
    source = click.get_current_context().get_parameter_source(name)
    return source is not None and source is not click.core.ParameterSource.DEFAULT


def _default_name(source: str, kind: str | None, split: str) -> str:
    if kind is not None:
        return f"{kind}-{split}.jsonl"
    before_wildcard = re.split(r"[*?[]", source)[0]
    name = "" if source == "-" else Path(before_wildcard).absolute().stem
    return f"{name or 'manifest'}.jsonl"


def _build_from(kind: str, root: Path, target: Path | None, options: dict[str, Any]) -> None:
    from sca_batch.manifests.annotations.build import build_manifest
    from sca_batch.manifests.annotations.sample import Request

    if not root.is_dir():
        raise ScaError(f"{root}: no such folder; expected that of {kind}, as docs/DATASETS.md says")
    with _bars() as progress:
        request = Request(
            root,
            split=options["split"],
            annotations=options["annotations"],
            images=options["images"],
            split_by=options["split_by"],
            ref_protocol=options["ref_protocol"],
            min_confidence=options["min_confidence"],
            progress=progress,
        )
        summary = build_manifest(
            kind,
            request,
            target,
            task=options["task"],
            check_files=options["check_files"],
            size_of=_size_of,
            relative=options["relative"],
            limit=options["limit"],
        )
    click.echo("\n".join(_summary_lines(kind, options["split"], summary)), err=target is not None)
    _say_written(target, summary.images)


def _build_plain(sources: tuple[str, ...], target: Path | None, options: dict[str, Any]) -> None:
    from sca_batch.manifests.write import write_manifest
    from sca_batch.plan.as_manifest import plan_rows
    from sca_batch.plan.plan import plan_head
    from sca_batch.plan.sources import plan_sources

    plan = plan_sources(
        sources,
        box_format=options["box_format"],
        stdin=sys.stdin.buffer if "-" in sources else None,
    )
    if options["limit"]:
        plan = plan_head(plan, options["limit"])
    if target is not None:
        if target.suffix.lower() == ".parquet":
            raise ScaError(
                f"{target}: a manifest of folders and files is written as JSON lines: -o "
                f"{target.with_suffix('.jsonl')}"
            )
        start = target.absolute().parent if options["relative"] else None
        write_manifest(plan_rows(plan, start), target)
    lines = [f"{len(plan):,} images, {plan.survey.with_regions:,} with given regions"]
    if plan.skipped_files:
        lines.append(f"skipped: {plan.skipped_files:,} files that are no images")
    click.echo("\n".join(lines), err=target is not None)
    _say_written(target, len(plan))


def _say_written(target: Path | None, images: int) -> None:
    if target is None:
        click.echo("Nothing was written (--dry-run).", err=True)
    else:
        click.echo(
            f"Wrote {images:,} images to {target}: sca manifest check {target}, "
            f"sca stats {target}, sca caption {target}",
            err=True,
        )


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
    bars: dict[str, Any] = {}

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


def _size_of(path: Path) -> tuple[int, int] | None:
    """(height, width) after the EXIF orientation, from the file's head; None if it is no image."""
    import io
    import warnings

    from PIL import Image

    from sca_batch.errors import ImageError
    from sca_batch.images.fetch import read_bytes
    from sca_batch.images.policy import ReadPolicy
    from sca_batch.storage.archives import split_member

    try:
        is_member = split_member(str(path))[1] is not None
        opened = io.BytesIO(read_bytes(str(path), ReadPolicy())) if is_member else path
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(opened) as image:
                width, height = image.size
                turned = image.getexif().get(EXIF_ORIENTATION) in TURNED
    except (ImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return (width, height) if turned else (height, width)
