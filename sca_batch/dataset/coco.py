"""A dataset as one COCO instances file with captions, streamed from the shards."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from sca_batch.dataset.schema import COORDINATE_FRAME, RecordRow, RegionRow
from sca_batch.dataset.shards import RunFile, iter_rows, read_run
from sca_batch.plan.run_plan import gone_ids
from sca_batch.storage.atomic import writing
from sca_batch.storage.stores import AnyPath

__all__ = ["Exported", "export_coco"]

CATEGORY = {"id": 1, "name": "object", "supercategory": "object"}
IMAGE_COLUMNS = ["image_id", "file_name", "width", "height", "status", "key", "uri", "sha256"]
FAILURE_COLUMNS = ["image_id", "key", "file_name", "status", "error_code", "error"]


@dataclass(frozen=True, slots=True)
class Exported:
    """Counts of what one export wrote; `failed` images stand in `info` only."""

    images: int
    regions: int
    failed: int


def export_coco(dataset: AnyPath, target: AnyPath) -> Exported:
    """Writes the dataset as `target`; memory does not grow with the number of images.

    Raises:
        ScaError: when `dataset` has no run.json or a damaged shard.
    """
    run = read_run(dataset)
    gone = gone_ids(dataset)
    with writing(target) as file:
        file.write(b'{"info": {\n')
        for name, value in _info(run).items():
            file.write(f"{json.dumps(name)}: {_json(value)},\n".encode())
        failed = _write_list(file, "failed_images", _failures(dataset, gone))
        file.write(b'},\n"licenses": [],\n"categories": ' + _json([CATEGORY]).encode() + b",\n")
        images = _write_list(file, "images", _images(dataset, gone))
        file.write(b",\n")
        regions = _write_list(file, "annotations", _annotations(dataset, gone))
        file.write(b"}\n")
    return Exported(images, regions, failed)


def _info(run: RunFile) -> dict[str, object]:
    fingerprint, settings = run["fingerprint"], run.get("settings", {})
    return {
        "description": "Regions and captions written by sca (Segment and Caption Anything)",
        "model": settings.get("model", fingerprint.get("model")),
        "coordinate_frame": COORDINATE_FRAME,
        "fingerprint": fingerprint,
        "settings": settings,
    }


def _rows(dataset: AnyPath, columns: list[str], gone: frozenset[int]) -> Iterator[RecordRow]:
    return (row for row in iter_rows(dataset, columns) if row["image_id"] not in gone)


def _failures(dataset: AnyPath, gone: frozenset[int]) -> Iterator[dict[str, object]]:
    for row in _rows(dataset, FAILURE_COLUMNS, gone):
        if row["status"] == "failed":
            yield {
                "id": row["image_id"],
                "file_name": row["file_name"],
                "key": row["key"],
                "error_code": row["error_code"],
                "error": row["error"],
            }


def _images(dataset: AnyPath, gone: frozenset[int]) -> Iterator[dict[str, object]]:
    for row in _rows(dataset, IMAGE_COLUMNS, gone):
        if row["status"] != "failed":
            yield {
                "id": row["image_id"],
                "file_name": row["file_name"],
                "width": row["width"],
                "height": row["height"],
                "key": row["key"],
                "uri": row["uri"],
                "sha256": row["sha256"],
            }


def _annotations(dataset: AnyPath, gone: frozenset[int]) -> Iterator[dict[str, object]]:
    annotation_id = 0
    for row in _rows(dataset, ["image_id", "regions"], gone):
        for region in row["regions"]:
            annotation_id += 1
            yield _annotation(annotation_id, row["image_id"], region)


def _annotation(annotation_id: int, image_id: int, region: RegionRow) -> dict[str, object]:
    iou = region["predicted_iou"]
    fields = ("segmentation", "area", "bbox", "caption")
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": CATEGORY["id"],
        # A region without a mask has no polygons; pycocotools wants the key all the same.
        "segmentation": region["segmentation"] or [],
        "area": region["area"],
        "bbox": region["bbox"],
        "iscrowd": 0,
        "caption": region["caption"],
        "score": region["caption_score"] if iou is None else iou,
        "attributes": {name: value for name, value in region.items() if name not in fields},
    }


def _write_list(file: BinaryIO, name: str, entries: Iterable[dict[str, object]]) -> int:
    """One entry per line, so that the file can be read with a pager too."""
    file.write(f"{json.dumps(name)}: [".encode())
    count = 0
    for entry in entries:
        file.write((",\n" if count else "\n").encode() + _json(entry).encode())
        count += 1
    file.write(b"\n]")
    return count


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
