"""A record as a row of the dataset: the schema, and the way there and back."""

from __future__ import annotations

import json
import math
from typing import TypedDict

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
    Rle,
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

# What each field holds, with its unit and frame; stored with every shard.
FIELD_NOTES = {
    "image_id": "integer id, that of the manifest or counted from 1",
    "key": "identity of the manifest's row: its id, or the path relative to the source",
    "uri": "where the image was read from",
    "file_name": "path relative to the source",
    "sha256": "digest of the file's bytes, hexadecimal; null when it was not read",
    "width": "pixels, after EXIF orientation",
    "height": "pixels, after EXIF orientation",
    "status": "ok; empty: no region was found or given; failed: see error_code",
    "error_code": "why the image failed, one word; else null",
    "error": "why the image failed, a sentence; else null",
    "extra": "JSON object with the manifest's other columns, and its references",
    "regions": "list, empty unless status is ok",
    "regions.region_id": "from 0 within the image; order of SAM, or of the manifest",
    "regions.bbox": "[x, y, width, height], pixels; of a masked region the mask's tight box",
    "regions.area": "pixels; of a masked region the mask's",
    "regions.segmentation": "compressed COCO RLE of the mask; null for a region without one",
    "regions.segmentation.size": "[height, width], pixels",
    "regions.segmentation.counts": "run lengths column by column, compressed as in pycocotools",
    "regions.caption": "the sentence; may be empty",
    "regions.caption_logprob": "mean log-probability per generated token, end included; nats",
    "regions.caption_score": "exp(caption_logprob), in (0, 1]",
    "regions.captions": "every caption that was kept, the best beam first, or one per caption head",
    "regions.captions.text": "the sentence",
    "regions.captions.logprob": "as caption_logprob",
    "regions.predicted_iou": "SAM's own estimate of the mask's IoU, about [0, 1]",
    "regions.stability_score": "SAM's stability score, [0, 1]; null for given regions",
    "regions.points": "[[x, y], ...] the points that prompted the region, pixels; else null",
    "regions.crop_box": "[x, y, width, height] the crop in which the region was found, pixels",
    "regions.prompt_type": "grid_point, box, points or mask",
    "regions.prompt_box_xyxy": "[x0, y0, x1, y1] the prompting box as given, unclipped, pixels",
    "regions.prompt_id": "the manifest's id of the given region; else null",
}

FLOATS = pa.list_(pa.float32())


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


# Prompts stay float64: "as given" would not be true after rounding.
REGION = pa.struct(
    [
        _required("region_id", pa.int32()),
        _required("bbox", FLOATS),
        _required("area", pa.int64()),
        pa.field(
            "segmentation",
            pa.struct([_required("size", pa.list_(pa.int32())), _required("counts", pa.string())]),
        ),
        _required("caption", pa.string()),
        _required("caption_logprob", pa.float32()),
        _required("caption_score", pa.float32()),
        _required(
            "captions",
            pa.list_(
                pa.struct([_required("text", pa.string()), _required("logprob", pa.float32())])
            ),
        ),
        pa.field("predicted_iou", pa.float32()),
        pa.field("stability_score", pa.float32()),
        pa.field("points", pa.list_(pa.list_(pa.float64()))),
        pa.field("crop_box", FLOATS),
        _required("prompt_type", pa.string()),
        pa.field("prompt_box_xyxy", pa.list_(pa.float64())),
        pa.field("prompt_id", pa.string()),
    ]
)

SCHEMA = pa.schema(
    [
        _required("image_id", pa.int64()),
        _required("key", pa.string()),
        _required("uri", pa.string()),
        _required("file_name", pa.string()),
        pa.field("sha256", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        _required("status", pa.string()),
        pa.field("error_code", pa.string()),
        pa.field("error", pa.string()),
        _required("extra", pa.string()),
        _required("regions", pa.list_(REGION)),
    ],
    metadata={
        "sca.coordinate_frame": COORDINATE_FRAME,
        "sca.fields": json.dumps(FIELD_NOTES),
    },
)


class CaptionRow(TypedDict):
    """One kept caption of a region, as `SCHEMA` has it."""

    text: str
    logprob: float


class RegionRow(TypedDict):
    """One region of a row, as `SCHEMA` has it; `FIELD_NOTES` say what the fields are."""

    region_id: int
    bbox: list[float]
    area: int
    segmentation: Rle | None
    caption: str
    caption_logprob: float
    caption_score: float
    captions: list[CaptionRow]
    predicted_iou: float | None
    stability_score: float | None
    points: list[list[float]] | None
    crop_box: list[float] | None
    prompt_type: PromptType
    prompt_box_xyxy: list[float] | None
    prompt_id: str | None


class RecordRow(TypedDict):
    """One record, as `SCHEMA` has it."""

    image_id: int
    key: str
    uri: str
    file_name: str
    sha256: str | None
    width: int | None
    height: int | None
    status: Status
    error_code: str | None
    error: str | None
    extra: str
    regions: list[RegionRow]


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
        "extra": dump_json(ref.extra, ref.key),
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
