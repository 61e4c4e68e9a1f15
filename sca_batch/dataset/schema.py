"""A record as a row of the dataset: the schema, and the way there and back."""

from __future__ import annotations

import json
import math
from types import NoneType
from typing import Annotated, Any, TypedDict, get_args, get_origin, get_type_hints, is_typeddict

import numpy as np
import pyarrow as pa

from sca_batch.boxes import box_tuple, rle_area, rle_box_xyxy, xywh_to_xyxy, xyxy_to_xywh
from sca_batch.manifests.row import dump_json
from sca_batch.records import (
    Caption,
    CaptionedRegion,
    ImageRecord,
    ImageRef,
    PromptType,
    Region,
    Status,
    redacted,
)

__all__ = [
    "COORDINATE_FRAME", "FIELD_NOTES", "SCHEMA", "CaptionRow", "RecordRow", "RegionRow",
    "record_to_row", "row_to_jsonl", "row_to_record", "short",
]  # fmt: skip

COORDINATE_FRAME = (
    "pixels of the original image after its EXIF orientation; the origin is the top left corner; "
    "a box is [x, y, width, height], and x + width and y + height are exclusive"
)

Int32 = Annotated[int, pa.int32()]
Int64 = Annotated[int, pa.int64()]
Float32 = Annotated[float, pa.float32()]
Float64 = Annotated[float, pa.float64()]


# Each field with what it holds, its unit and frame, which is stored with every shard.
class SegmentationRow(TypedDict):
    """The mask of a region."""

    size: Annotated[list[Int32], "[height, width], pixels"]
    counts: Annotated[str, "run lengths column by column, compressed as in pycocotools"]


class CaptionRow(TypedDict):
    """A kept caption of a region."""

    text: Annotated[str, "the sentence"]
    logprob: Annotated[Float32, "as caption_logprob"]


class RegionRow(TypedDict):
    """A region of a row."""

    region_id: Annotated[Int32, "from 0 within the image; order of SAM, or of the manifest"]
    bbox: Annotated[
        list[Float32], "[x, y, width, height], pixels; of a masked region the mask's tight box"
    ]
    area: Annotated[Int64, "pixels; of a masked region the mask's"]
    segmentation: Annotated[
        SegmentationRow | None, "compressed COCO RLE of the mask; null for a region without one"
    ]
    caption: Annotated[str, "the sentence; may be empty"]
    caption_logprob: Annotated[
        Float32, "mean log-probability per generated token, end included; nats"
    ]
    caption_score: Annotated[Float32, "exp(caption_logprob), in (0, 1]"]
    captions: Annotated[
        list[CaptionRow],
        "every caption that was kept, the best beam first, or one per caption head",
    ]
    predicted_iou: Annotated[Float32 | None, "SAM's own estimate of the mask's IoU, about [0, 1]"]
    stability_score: Annotated[
        Float32 | None, "SAM's stability score, [0, 1]; null for given regions"
    ]
    # Prompts stay float64: "as given" would not be true after rounding.
    points: Annotated[
        list[list[Float64]] | None,
        "[[x, y], ...] the points that prompted the region, pixels; else null",
    ]
    crop_box: Annotated[
        list[Float32] | None, "[x, y, width, height] the crop in which the region was found, pixels"
    ]
    prompt_type: Annotated[PromptType, "grid_point, box, points or mask"]
    prompt_box_xyxy: Annotated[
        list[Float64] | None, "[x0, y0, x1, y1] the prompting box as given, unclipped, pixels"
    ]
    prompt_id: Annotated[str | None, "the manifest's id of the given region; else null"]


class RecordRow(TypedDict):
    """A record."""

    image_id: Annotated[Int64, "integer id, that of the manifest or counted from 1"]
    key: Annotated[
        str, "identity of the manifest's row: its id, or the path relative to the source"
    ]
    uri: Annotated[str, "where the image was read from"]
    file_name: Annotated[str, "path relative to the source"]
    sha256: Annotated[
        str | None, "digest of the file's bytes, hexadecimal; null when it was not read"
    ]
    width: Annotated[Int32 | None, "pixels, after EXIF orientation"]
    height: Annotated[Int32 | None, "pixels, after EXIF orientation"]
    status: Annotated[Status, "ok; empty: no region was found or given; failed: see error_code"]
    error_code: Annotated[str | None, "why the image failed, one word; else null"]
    error: Annotated[str | None, "why the image failed, a sentence; else null"]
    extra: Annotated[str, "JSON object with the manifest's other columns, and its references"]
    regions: Annotated[list[RegionRow], "list, empty unless status is ok"]


def _fields(row: type, notes: dict[str, str], prefix: str = "") -> list[pa.Field]:
    """The Arrow fields of a row; `notes` gets what they hold, by dotted name."""

    def arrow(kind: Any, name: str) -> pa.DataType:
        parts = [part for part in get_args(kind) if part is not NoneType]
        if is_typeddict(kind):
            return pa.struct(_fields(kind, notes, f"{name}."))
        if parts and isinstance(parts[-1], pa.DataType):
            return parts[-1]
        if get_origin(kind) is list:
            return pa.list_(arrow(parts[0], name))
        return arrow(parts[0], name) if NoneType in get_args(kind) else pa.string()

    fields = []
    for name, hint in get_type_hints(row, include_extras=True).items():
        *width, notes[f"{prefix}{name}"] = hint.__metadata__
        kind = width[0] if width else arrow(hint.__origin__, f"{prefix}{name}")
        fields.append(pa.field(name, kind, nullable=NoneType in get_args(hint.__origin__)))
    return fields


FIELD_NOTES: dict[str, str] = {}
_FIELDS = _fields(RecordRow, FIELD_NOTES)
SCHEMA = pa.schema(
    _FIELDS,
    metadata={"sca.coordinate_frame": COORDINATE_FRAME, "sca.fields": json.dumps(FIELD_NOTES)},
)


def record_to_row(record: ImageRecord) -> RecordRow:
    """The record with the dataset's field names, as JSON would hold it."""
    ref = record.ref
    return {
        "image_id": ref.image_id,
        "key": ref.key,
        "uri": redacted(ref.uri),
        "file_name": ref.file_name,
        "sha256": record.sha256,
        "width": record.width,
        "height": record.height,
        "status": record.status,
        "error_code": record.error_code,
        "error": None if record.error is None else redacted(record.error),
        "extra": dump_json(ref.extra),
        "regions": [_region_to_row(region) for region in record.regions],
    }


def _region_to_row(captioned: CaptionedRegion) -> RegionRow:
    region, caption = captioned.region, captioned.caption
    box_xyxy, area, segmentation = region.box_xyxy, region.area, region.mask_rle
    if segmentation is not None:
        # From the mask itself, so that the three can never disagree in a file.
        box_xyxy, area = rle_box_xyxy(segmentation), rle_area(segmentation)
    iou, stability, points = region.predicted_iou, region.stability_score, region.points_xy
    crop, given = region.crop_box_xywh, region.prompt_box_xyxy
    alternatives = caption.alternatives or ((caption.text, caption.logprob),)
    return {
        "region_id": captioned.region_id,
        "bbox": [short(value) for value in xyxy_to_xywh(box_xyxy)],
        "area": area,
        "segmentation": segmentation,
        "caption": caption.text,
        "caption_logprob": short(caption.logprob),
        # Of the number that is stored: a record that is read back and written again is the same.
        "caption_score": short(math.exp(short(caption.logprob))),
        "captions": [{"text": text, "logprob": short(logprob)} for text, logprob in alternatives],
        "predicted_iou": None if iou is None else short(iou),
        "stability_score": None if stability is None else short(stability),
        "points": None if points is None else [[float(x), float(y)] for x, y in points],
        "crop_box": None if crop is None else list(map(short, crop)),
        "prompt_type": region.prompt_type,
        "prompt_box_xyxy": None if given is None else list(map(float, given)),
        "prompt_id": region.prompt_id,
    }


def row_to_record(row: RecordRow) -> ImageRecord:
    """The record of a row. Point labels and the manifest's prompts are not part of a dataset."""
    ref = ImageRef(
        image_id=row["image_id"],
        key=row["key"],
        uri=row["uri"],
        file_name=row["file_name"],
        extra=json.loads(row["extra"]),
    )
    return ImageRecord(
        ref=ref,
        status=row["status"],
        sha256=row["sha256"],
        height=row["height"],
        width=row["width"],
        regions=tuple(_row_to_region(region) for region in row["regions"]),
        error_code=row["error_code"],
        error=row["error"],
    )


def _row_to_region(row: RegionRow) -> CaptionedRegion:
    crop, given = row["crop_box"], row["prompt_box_xyxy"]
    region = Region(
        box_xyxy=box_tuple(xywh_to_xyxy(row["bbox"])),
        area=row["area"],
        prompt_type=row["prompt_type"],
        mask_rle=row["segmentation"],
        predicted_iou=row["predicted_iou"],
        stability_score=row["stability_score"],
        points_xy=None if row["points"] is None else tuple((x, y) for x, y in row["points"]),
        prompt_box_xyxy=None if given is None else box_tuple(given),
        crop_box_xywh=None if crop is None else box_tuple(crop),
        prompt_id=row["prompt_id"],
    )
    kept = tuple((caption["text"], caption["logprob"]) for caption in row["captions"])
    return CaptionedRegion(
        row["region_id"], region, Caption(row["caption"], row["caption_logprob"], kept)
    )


def row_to_jsonl(row: RecordRow) -> str:
    """The row as one line of JSON, without the line's end; the same fields as in Parquet."""
    return json.dumps(row, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def short(value: float) -> float:
    """The number that float32 holds for `value`, in its shortest decimal form.

    Shards store float32; without this 0.9 would leave them as 0.8999999761581421.
    """
    return float(str(np.float32(value)))
