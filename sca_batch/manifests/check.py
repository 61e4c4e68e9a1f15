"""Looks at everything a manifest promises: rows, regions, files, boxes inside their images."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from sca_batch.images.size import read_size_hw
from sca_batch.manifests.read import manifest_images, manifest_unit
from sca_batch.manifests.request import CheckFiles
from sca_batch.manifests.row import Row
from sca_batch.manifests.values import BoxFormat, as_written
from sca_batch.records import BoxXYXY

__all__ = ["ManifestReport", "check_manifest"]

MOST_NAMED = 20  # problems that a report spells out; all are counted


@dataclass(slots=True)
class ManifestReport:
    """Counts of a manifest; `problems` are what is wrong, `notes` what one may want to know."""

    rows: int = 0
    with_regions: int = 0
    regions: int = 0
    references: int = 0
    files_seen: int = 0
    notes: Counter[str] = field(default_factory=Counter)
    problem_count: int = 0
    problems: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, object]:
        # Not `asdict`, which counts a Counter's pairs.
        return {name: getattr(self, name) for name in self.__slots__}

    def problem(self, text: str) -> None:
        self.problem_count += 1
        if len(self.problems) < MOST_NAMED:
            self.problems.append(text)


def check_manifest(
    path: Path,
    *,
    check_files: CheckFiles = "sizes",
    box_format: BoxFormat | None = None,
    progress: Callable[[int], None] | None = None,
) -> ManifestReport:
    """Reads a manifest with the ordinary reader, then looks at the files and the boxes.

    `exists` looks whether every image is there; `sizes` also opens it, to compare
    `width` and `height` and to see which boxes leave it. A box that reaches over an edge is a
    note, one that lies wholly outside is a problem.
    """
    report = ManifestReport()
    seen: dict[str, int] = {}
    unit = manifest_unit(str(path))
    for at, row, uri, _ in manifest_images(
        str(path), box_format=box_format, on_problem=report.problem
    ):
        report.rows += 1
        place = f"{path}, {unit} {at}"
        key = os.path.normpath(uri) if row.given_id is None else str(row.given_id)
        if key in seen:
            report.problem(f"{place}: {key} stands already in {unit} {seen[key]}")
        seen.setdefault(key, at)
        _check_row(report, row, place, uri, check_files)
        if progress is not None:
            progress(report.rows)
    if not report.rows and not report.problem_count:
        report.problem(f"{path}: no rows; expected one image per {unit}")
    return report


def _check_row(
    report: ManifestReport, row: Row, place: str, uri: str, check_files: CheckFiles
) -> None:
    report.references += sum(map(len, row.references))
    size_hw = _file_size(report, place, uri, check_files)
    if row.size_hw is not None and size_hw not in (None, row.size_hw):
        (height, width), (found_height, found_width) = row.size_hw, size_hw
        report.problem(
            f"{place}: width and height say {width} x {height}, and {uri} is "
            f"{found_width} x {found_height}"
        )
    size_hw = size_hw or row.size_hw
    if row.prompts is None:
        report.notes["rows whose regions will be found"] += 1
        return
    report.with_regions += 1
    report.regions += len(row.prompts)
    for i, prompt in enumerate(row.prompts):
        if prompt.box_xyxy is not None:
            _check_box(report, prompt.box_xyxy, f"{place}: box {i}", size_hw)
    if not row.prompts:
        report.notes["rows without regions"] += 1
    if row.prompts and "references" in row.extra and not all(row.references):
        without = sum(not texts for texts in row.references)
        report.notes["regions without references"] += without


def _file_size(
    report: ManifestReport, place: str, uri: str, check_files: CheckFiles
) -> tuple[int, int] | None:
    if check_files == "none":
        return None
    if "://" in uri:
        report.notes["images at a URL, not looked for"] += 1
        return None
    if not os.path.isfile(uri):
        report.problem(f"{place}: no file {uri}")
        return None
    report.files_seen += 1
    if check_files == "exists":
        return None
    size_hw = read_size_hw(Path(uri))
    if size_hw is None:
        report.problem(f"{place}: {uri} is not an image")
    return size_hw


def _check_box(
    report: ManifestReport, box_xyxy: BoxXYXY, place: str, size_hw: tuple[int, int] | None
) -> None:
    x0, y0, x1, y1 = box_xyxy
    if x0 == x1 or y0 == y1:
        report.notes["boxes without width or height"] += 1
    if size_hw is None:
        return
    height, width = size_hw
    if x0 >= width or y0 >= height or (x0 < 0 and x1 <= 0) or (y0 < 0 and y1 <= 0):
        report.problem(f"{place} {as_written(box_xyxy)} lies outside the image, {width} x {height}")
    elif x0 < 0 or y0 < 0 or x1 > width or y1 > height:
        report.notes["boxes that reach over an edge"] += 1
