"""Annotated images with boxes and phrases, as every annotation reader gives them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeGuard

from sca_batch.boxes import is_box, xywh_to_xyxy
from sca_batch.errors import ScaError
from sca_batch.manifests.json_stream import corrupt
from sca_batch.manifests.request import Request
from sca_batch.records import Json, JsonObject

__all__ = [
    "AnnotatedImage", "AnnotatedRegion", "Reader", "Tally", "checked_box", "checked_size",
    "find_file", "is_id", "is_side", "make_regions", "require_split", "whole_box",
]  # fmt: skip

LARGEST_PIXEL = 2**31  # boxes are kept as int32 while a file is read


@dataclass(frozen=True, slots=True)
class AnnotatedRegion:
    """One region: its box in whole pixels of the image, what is said about it, and its id."""

    box_xyxy: tuple[int, int, int, int]
    phrases: tuple[str, ...]
    region_id: str


@dataclass(frozen=True, slots=True)
class AnnotatedImage:
    """One image. Its file is the first of `candidates` that exists; `extra` are more columns.

    With `is_member` the one candidate is a member of an archive that lists it.
    """

    image_id: int
    candidates: tuple[Path, ...]
    width: int
    height: int
    regions: tuple[AnnotatedRegion, ...]
    extra: JsonObject = field(default_factory=dict)
    is_member: bool = False


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts by reason of what was left out, and of what was kept although one may ask."""

    dropped: Counter[str] = field(default_factory=Counter)
    noted: Counter[str] = field(default_factory=Counter)


Reader = Callable[[Request, Tally], Iterator[AnnotatedImage]]


def find_file(request: Request, names: Sequence[str], what: str) -> Path:
    """`--annotations`, or the first of `names` that exists below the root.

    Raises:
        ScaError: naming every file that was looked for.
    """
    if request.annotations is not None and request.annotations.is_file():
        return request.annotations
    base = request.annotations or request.root
    for name in names:
        if (base / name).is_file():
            return base / name
    raise ScaError(
        f"{base}: no {what}; expected {' or '.join(names)} below it. Put the file there, or name "
        "it: --annotations PATH"
    )


def require_split(request: Request, splits: Sequence[str]) -> str:
    """The requested split, which must be one of `splits`."""
    if request.split not in splits:
        raise ScaError(
            f"no split {request.split!r}; expected {', '.join(splits)}: --split {splits[0]}"
        )
    return request.split


def is_id(value: object) -> TypeGuard[int]:
    """True for an integer that an image or an annotation may have as its id."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def is_side(value: object) -> TypeGuard[int]:
    """True for an integer that may be an image's width or height."""
    return is_id(value) and value > 0


def whole_box(box: object) -> list[int] | None:
    """Four numbers truncated to whole pixels, each by itself; None when they are not numbers."""
    if not isinstance(box, list | tuple) or not is_box(box) or max(map(abs, box)) >= LARGEST_PIXEL:
        return None
    return [int(value) for value in box]


def checked_box(entry: JsonObject, path: Path, where: str, form: str) -> list[int]:
    """The XYWH box of an annotation, see `whole_box`."""
    box = whole_box(entry.get("bbox"))
    if box is None:
        raise corrupt(path, where, f"the bbox {entry.get('bbox')!r}", form)
    return box


def checked_size(entry: JsonObject, path: Path, where: str, form: str) -> tuple[int, int]:
    """Width and height of an image."""
    width, height = entry.get("width"), entry.get("height")
    if not (is_side(width) and is_side(height)):
        raise corrupt(path, where, f"the size {width} x {height}", form)
    return width, height


def make_regions(
    boxes_xywh: Sequence[Sequence[int]],
    phrases: Sequence[tuple[str, ...]],
    region_ids: Sequence[Json],
    tally: Tally,
) -> tuple[AnnotatedRegion, ...]:
    """Regions of one image from whole XYWH boxes; a box of negative size is dropped, counted."""
    if not boxes_xywh:
        return ()
    regions = []
    corners = xywh_to_xyxy(boxes_xywh).astype(int).tolist()
    for (x0, y0, x1, y1), texts, region_id in zip(corners, phrases, region_ids, strict=True):
        if x1 < x0 or y1 < y0:
            tally.dropped["regions with a negative width or height"] += 1
            continue
        if x1 == x0 or y1 == y0:
            tally.noted["regions with an empty box"] += 1
        regions.append(AnnotatedRegion((x0, y0, x1, y1), texts, str(region_id)))
    return tuple(regions)
