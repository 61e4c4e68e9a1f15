"""Boxes and masks: formats, frames and areas. The only place where coordinates change frame."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sca_batch.records import BoxXYXY, Rle

__all__ = [
    "box_iou",
    "box_tuple",
    "is_box",
    "clip_xyxy",
    "mask_to_rle",
    "resized_size",
    "rle_area",
    "rle_box_xyxy",
    "rle_to_mask",
    "to_model_frame",
    "xywh_to_xyxy",
    "xyxy_to_xywh",
]

Floats = npt.NDArray[np.float64]


def xywh_to_xyxy(boxes_xywh: npt.ArrayLike) -> Floats:
    """(..., 4) corner and size -> (..., 4) two corners, float64."""
    boxes = np.asarray(boxes_xywh, dtype=np.float64)
    return np.concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], axis=-1)


def xyxy_to_xywh(boxes_xyxy: npt.ArrayLike) -> Floats:
    """(..., 4) two corners -> (..., 4) corner and size, float64."""
    boxes = np.asarray(boxes_xyxy, dtype=np.float64)
    return np.concatenate([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], axis=-1)


def clip_xyxy(boxes_xyxy: npt.ArrayLike, size_hw: tuple[int, int]) -> Floats:
    """Boxes cut to the image, [0, w] x [0, h]; a box wholly outside becomes a line or a point."""
    boxes = np.asarray(boxes_xyxy, dtype=np.float64)
    height, width = size_hw
    clipped: Floats = np.clip(boxes, 0, np.array([width, height, width, height], dtype=np.float64))
    return clipped


def box_iou(first_xyxy: npt.ArrayLike, second_xyxy: npt.ArrayLike) -> Floats:
    """Intersection over union of every pair, (N, 4) and (M, 4) -> (N, M); 0 for empty unions."""
    first = np.asarray(first_xyxy, dtype=np.float64).reshape(-1, 1, 4)
    second = np.asarray(second_xyxy, dtype=np.float64).reshape(1, -1, 4)
    corner = np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(
        first[..., :2], second[..., :2]
    )
    inter = np.prod(np.clip(corner, 0, None), axis=-1)
    areas = [np.prod(np.clip(b[..., 2:] - b[..., :2], 0, None), axis=-1) for b in (first, second)]
    union = areas[0] + areas[1] - inter
    iou: Floats = np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)
    return iou


def resized_size(size_hw: tuple[int, int], longest_side: int) -> tuple[int, int]:
    """The size after bringing the longest side to `longest_side`, rounded as SAM does.

    A side is at least 1: SAM's rounding would leave nothing of a 1 x 5000 strip.
    """
    scale = longest_side / max(size_hw)
    height, width = (max(1, int(side * scale + 0.5)) for side in size_hw)
    return height, width


def to_model_frame(
    coordinates: npt.ArrayLike, size_hw: tuple[int, int], longest_side: int
) -> Floats:
    """(..., 2) points or (..., 4) boxes from image pixels to the model's square frame, float64.

    Each axis has a factor of its own, that of the rounded sizes (SAM's `ResizeLongestSide`).
    Nothing is clipped.
    """
    new_h, new_w = resized_size(size_hw, longest_side)
    factor = np.array([new_w / size_hw[1], new_h / size_hw[0]])
    values = np.asarray(coordinates, dtype=np.float64)
    scaled: Floats = values * np.tile(factor, values.shape[-1] // 2)
    return scaled


def mask_to_rle(mask: npt.NDArray[np.bool_]) -> Rle:
    """A bool mask (h, w) as compressed COCO RLE with `counts` as text."""
    from pycocotools import mask as coco_mask

    rle: dict[str, Any] = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def rle_to_mask(rle: Rle) -> npt.NDArray[np.bool_]:
    """The bool mask (h, w) of a compressed COCO RLE."""
    from pycocotools import mask as coco_mask

    mask: npt.NDArray[np.bool_] = coco_mask.decode(_with_bytes(rle)).astype(bool)
    return mask


def rle_area(rle: Rle) -> int:
    """Number of pixels in the mask."""
    from pycocotools import mask as coco_mask

    return int(coco_mask.area(_with_bytes(rle)))


def rle_box_xyxy(rle: Rle) -> BoxXYXY:
    """The tight box of the mask, x1 and y1 exclusive; (0, 0, 0, 0) for an empty mask."""
    from pycocotools import mask as coco_mask

    x, y, w, h = (float(v) for v in coco_mask.toBbox(_with_bytes(rle)))
    return x, y, x + w, y + h


def box_tuple(values: Iterable[float]) -> BoxXYXY:
    """Four numbers as a box."""
    x0, y0, x1, y1 = map(float, values)
    return x0, y0, x1, y1


def is_box(values: Sequence[object]) -> bool:
    """True for four finite numbers."""
    try:
        return len(values) == 4 and all(
            isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)
            for v in values
        )
    except OverflowError:  # an integer too long for a float
        return False


def _with_bytes(rle: Rle) -> dict[str, Any]:
    counts = rle["counts"]
    return {"size": rle["size"], "counts": counts.encode() if isinstance(counts, str) else counts}
