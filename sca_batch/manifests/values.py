"""Single values of a manifest: a box, points, labels, a mask; checked, and named when wrong."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np

from sca_batch.boxes import box_tuple, is_box, xywh_to_xyxy
from sca_batch.errors import ScaError
from sca_batch.records import BoxXYXY, Json, Rle

__all__ = [
    "BoxFormat", "as_written", "is_utf8", "parse_box", "parse_labels", "parse_mask", "parse_points",
    "parse_prompt_id", "parse_texts", "show",
]  # fmt: skip

BoxFormat = Literal["xyxy", "xywh"]

BOX_ORDER = {"xyxy": "x0, y0, x1, y1", "xywh": "x, y, width, height"}
RLE_FORM = '{"size": [height, width], "counts": ...}'


def parse_box(box: object, where: str, order: BoxFormat) -> BoxXYXY:
    """One box, checked: four finite numbers in order; equal sides and any position are fine."""
    expected = f"expected {BOX_ORDER[order]} in pixels"
    if not isinstance(box, list | tuple) or not is_box(box):
        raise ScaError(f"{where} {show(box)} is not four finite numbers; {expected}")
    a, b, c, d = map(float, box)
    if order == "xyxy":
        wrong = "x1 < x0" if c < a else "y1 < y0" if d < b else None
    else:
        wrong = "width < 0" if c < 0 else "height < 0" if d < 0 else None
        if not is_box((a, b, a + c, b + d)):
            wrong = "an end that is not finite"
    if wrong:
        raise ScaError(f"{where} {show(box)} has {wrong}; {expected}")
    return box_tuple((a, b, c, d) if order == "xyxy" else xywh_to_xyxy((a, b, c, d)).tolist())


def parse_points(value: object, where: str) -> tuple[tuple[float, float], ...]:
    """A region's points: [x, y] alone, or a list of those."""
    if not isinstance(value, list | tuple):
        raise ScaError(f"{where} {show(value)} is not a list; expected [x, y] or [[x, y], ...]")
    points = [value] if value and not isinstance(value[0], list | tuple) else value
    for point in points:
        if not isinstance(point, list | tuple) or not is_box([*point, 0, 0]):
            raise ScaError(
                f"{where} {show(point)} is not two finite numbers; expected x, y in pixels"
            )
    return tuple((float(x), float(y)) for x, y in points)


def parse_labels(value: object, where: str) -> tuple[int, ...]:
    labels = value if isinstance(value, list | tuple) else (value,)
    if any(isinstance(label, bool) or label not in (0, 1) for label in labels):
        raise ScaError(f"{where} {show(value)} is not 1 (on the region) or 0 (off it) per point")
    return tuple(map(int, labels))


def parse_prompt_id(value: object, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, int | str) or not is_utf8(str(value)):
        raise ScaError(f"{where} {show(value)} is neither an integer nor text")
    return str(value)


def parse_texts(value: object, where: str) -> list[Json]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise ScaError(f"{where} {show(value)} is not a sentence or a list of sentences")
    return list(texts)


def parse_mask(value: object, where: str) -> Rle:
    """A COCO RLE, compressed or not, as compressed with `counts` as text.

    The runs are added up first: pycocotools trusts them, and writes past its buffer if they lie.
    """
    if not isinstance(value, Mapping) or not isinstance(value.get("size"), list | tuple):
        raise ScaError(f"{where} {show(value)} has no size; expected {RLE_FORM}")
    size = list(value["size"])
    if len(size) != 2 or any(not _is_count(side) or side == 0 for side in size):
        raise ScaError(f"{where} has the size {show(size)}; expected [height, width] in pixels")
    height, width = size
    counts = value.get("counts")
    if isinstance(counts, str | bytes):
        # What is no ASCII is no count: it becomes characters that the format does not have.
        raw = counts.encode("ascii", "xmlcharrefreplace") if isinstance(counts, str) else counts
        total = _compressed_total(raw)
    elif isinstance(counts, list | tuple) and all(_is_count(run) for run in counts):
        total = sum(counts)
    else:
        raise ScaError(f"{where} has the counts {show(counts)}; expected {RLE_FORM}")
    if total != height * width:
        covered = "cannot be read" if total is None else f"cover {total:,} pixels"
        raise ScaError(
            f"{where} has counts that {covered}; expected {height:,} x {width:,} = "
            f"{height * width:,} pixels"
        )
    if isinstance(counts, list | tuple):
        from pycocotools import mask as coco_mask

        uncompressed = {"size": [height, width], "counts": list(counts)}
        raw = coco_mask.frPyObjects(uncompressed, height, width)["counts"]
    return {"size": [height, width], "counts": raw.decode("ascii")}


def _compressed_total(counts: bytes) -> int | None:
    """The number of pixels that a compressed RLE covers; None when it is not one.

    Each run is a little-endian number of five bits per character, 48 added and bit 5 set while
    more follow; from the fourth run on it is the difference from the run two before (`rleFrString`
    of pycocotools).
    """
    characters = np.frombuffer(counts, dtype=np.uint8).astype(np.int64) - 48
    if characters.size == 0 or characters.min() < 0 or characters.max() > 63:
        return None
    last = (characters & 32) == 0
    if not last[-1]:
        return None
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    if (ends - starts).max() > 6:  # beyond 35 bits no run of a real image
        return None
    shifts = 5 * (np.arange(characters.size) - np.repeat(starts, ends - starts + 1))
    runs = np.add.reduceat((characters & 31) << shifts, starts)
    runs -= np.where(characters[ends] & 16, 1 << (shifts[ends] + 5), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    if runs.min() < 0 or runs.max() > np.iinfo(np.uint32).max:
        return None
    return int(runs.sum())


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**32


def is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def as_written(numbers: Iterable[float]) -> list[Json]:
    """The numbers as people write them, whole ones without a point."""
    return [int(number) if float(number).is_integer() else number for number in numbers]


def show(value: object) -> str:
    """The value as it stands in the manifest, shortened."""
    text = json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."
