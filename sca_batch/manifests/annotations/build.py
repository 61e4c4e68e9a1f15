"""Annotated images as an ordinary manifest: files looked for, rows written, everything counted."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

from sca_batch.errors import ScaError
from sca_batch.images.size import read_size_hw
from sca_batch.manifests.annotations import SOURCES
from sca_batch.manifests.annotations.sample import AnnotatedImage, Tally
from sca_batch.manifests.json_stream import CorruptAnnotationError
from sca_batch.manifests.request import CheckFiles, Request
from sca_batch.manifests.write import write_manifest
from sca_batch.records import JsonObject

__all__ = ["BuildSummary", "build_manifest"]

EXAMPLES = 3  # files that a summary names for each reason


@dataclass(slots=True)
class BuildSummary:
    """Counts of a manifest's images and regions, and of what it lacks, with some of the files."""

    images: int = 0
    regions: int = 0
    references: int = 0
    tally: Tally = field(default_factory=Tally)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def drop(self, reason: str, example: str) -> None:
        self.tally.dropped[reason] += 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < EXAMPLES:
            examples.append(example)


def build_manifest(
    source: str,
    request: Request,
    target: Path | None,
    *,
    check_files: CheckFiles = "exists",
    relative: bool = False,
    limit: int | None = None,
) -> BuildSummary:
    """Reads one of `SOURCES` and writes TARGET, `.jsonl` or `.parquet`; None writes nothing.

    `check_files` leaves out images whose file is not there (`exists`), and also those whose size
    is not the annotated one (`sizes`). Paths are absolute, or from TARGET's folder if `relative`.

    Raises:
        ScaError: for a source that is wrong, and when no image is left.
    """
    summary = BuildSummary()
    images = SOURCES[source](request, summary.tally)
    kept = _with_files(images, check_files, summary)
    if limit is not None:
        kept = islice(kept, limit)
    start = target.parent if relative and target is not None else None
    rows = _rows(kept, source, request, start, summary)
    try:
        first = next(rows, None)
        if target is None:
            for _ in rows:
                pass
        elif first is not None:  # an empty manifest would only move the error elsewhere
            write_manifest(chain([first], rows), target)
    except CorruptAnnotationError as error:
        raise CorruptAnnotationError(
            f"{error}. Fetch the file again, then look: sca manifest build --from {source} "
            f"{shlex.quote(str(request.root))} --split {request.split} --dry-run"
        ) from None
    if not summary.images:
        raise ScaError(f"{request.root}: no images are left. {_why_empty(summary)}")
    return summary


def _with_files(
    images: Iterable[AnnotatedImage], check_files: CheckFiles, summary: BuildSummary
) -> Iterator[tuple[AnnotatedImage, Path]]:
    """The images that may stay, with the file of each."""
    for image in images:
        path = image.candidates[0]
        if not image.regions:
            summary.drop("images without a usable region", str(path))
            continue
        if check_files != "none" and not image.is_member:
            found = next((file for file in image.candidates if file.is_file()), None)
            if found is None:
                summary.drop("images whose file is missing", str(path))
                continue
            path = found
        if check_files == "sizes":
            size_hw = read_size_hw(path)
            if size_hw is None:
                summary.drop("images whose file is no image", str(path))
                continue
            if size_hw != (image.height, image.width):
                noted = f"{image.width} x {image.height} annotated, {size_hw[1]} x {size_hw[0]}"
                summary.drop("images whose size is not the annotated one", f"{path} ({noted})")
                continue
        yield image, path


def _rows(
    images: Iterable[tuple[AnnotatedImage, Path]],
    source: str,
    request: Request,
    start: Path | None,
    summary: BuildSummary,
) -> Iterator[JsonObject]:
    for image, path in images:
        summary.images += 1
        summary.regions += len(image.regions)
        summary.references += sum(len(region.phrases) for region in image.regions)
        request.progress("images", summary.images)
        uri = os.path.abspath(path) if start is None else os.path.relpath(path, start)
        yield {
            "uri": uri,
            "image_id": image.image_id,
            "width": image.width,
            "height": image.height,
            "boxes_xyxy": [list(region.box_xyxy) for region in image.regions],
            "references": [list(region.phrases) for region in image.regions],
            "prompt_ids": [region.region_id for region in image.regions],
            "task": request.task,
            "split": request.split,
            "source": source,
            **image.extra,
        }


def _why_empty(summary: BuildSummary) -> str:
    reasons = summary.tally.dropped.most_common()
    if not reasons:
        return "The annotation file lists none for this split; look at it, or take another --split"
    said = "; ".join(f"{count:,} {reason}" for reason, count in reasons)
    missing = summary.examples.get("images whose file is missing")
    if missing:
        return (
            f"Dropped: {said}. Looked for {missing[0]}, among others; say where the images are: "
            "--images FOLDER, or do not look: --check-files none"
        )
    return f"Dropped: {said}"
