"""A COCO-style annotation file as columns, grouped by image, however many annotations it has."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from sca_batch.manifests.annotations.sample import (
    AnnotatedRegion,
    Tally,
    is_id,
    is_side,
    make_regions,
    whole_box,
)
from sca_batch.manifests.json_stream import Progress, corrupt, stream_members

__all__ = ["CocoImage", "read_coco_table"]

FORM = '{"images": [...], "annotations": [...], "categories": [...]}'
BOX_FORM = '"bbox": [x, y, width, height] in pixels'


@dataclass(frozen=True, slots=True)
class CocoImage:
    """An image of the file with its regions, in the file's order."""

    image_id: int
    file_name: str
    width: int
    height: int
    regions: tuple[AnnotatedRegion, ...]


@dataclass
class _Columns:
    """36 bytes an annotation: as dicts, the 25 million of Objects365 would not fit into memory."""

    image_id: array[int] = field(default_factory=lambda: array("q"))
    region_id: array[int] = field(default_factory=lambda: array("q"))
    box_xywh: array[int] = field(default_factory=lambda: array("i"))
    category_id: array[int] = field(default_factory=lambda: array("q"))
    captions: list[str] = field(default_factory=list)


def read_coco_table(
    path: Path,
    phrase: Literal["category", "caption"],
    tally: Tally,
    progress: Progress | None = None,
) -> Iterator[CocoImage]:
    """Every image of a COCO-style file in the order of `images`, those without regions too.

    A region's phrase is its category's name as it is, or its `caption`. Crowds are regions.

    Raises:
        ScaError: naming the entry that is not what COCO's format says.
    """
    images: list[tuple[int, str, int, int]] = []
    categories: dict[int, str] = {}
    columns = _Columns()
    keys = ("images", "annotations", *(("categories",) if phrase == "category" else ()))
    for key, i, entry in stream_members(path, keys, expected=FORM, progress=progress):
        where = f"{key}[{i}]"
        if not isinstance(entry, dict):
            raise corrupt(path, where, "not an object", FORM)
        if key == "images":
            images.append(_image(entry, path, where))
        elif key == "annotations":
            _add(columns, entry, phrase, path, where, tally)
        elif not is_id(entry.get("id")) or not isinstance(entry.get("name"), str):
            raise corrupt(path, where, "no id or no name", '{"id": 1, "name": "person"}')
        else:
            categories[entry["id"]] = entry["name"]
    ids = np.array([image_id for image_id, *_ in images], dtype=np.int64)
    once, counts = np.unique(ids, return_counts=True)
    if len(once) < len(ids):
        raise corrupt(path, "images", f"the id {once[counts > 1][0]} stands there twice", FORM)
    yield from _grouped(images, ids, categories, columns, phrase, tally)


def _image(entry: dict[str, Any], path: Path, where: str) -> tuple[int, str, int, int]:
    form = '{"id": 1, "file_name": "a.jpg", "width": 640, "height": 480}'
    width, height, name = entry.get("width"), entry.get("height"), entry.get("file_name")
    if not (is_id(entry.get("id")) and isinstance(name, str) and name):
        raise corrupt(path, where, "no id or no file_name", form)
    if not (is_side(width) and is_side(height)):
        raise corrupt(path, where, f"the size {width} x {height}", form)
    return entry["id"], name, width, height


def _add(
    columns: _Columns, entry: dict[str, Any], phrase: str, path: Path, where: str, tally: Tally
) -> None:
    if not (is_id(entry.get("id")) and is_id(entry.get("image_id"))):
        raise corrupt(path, where, "no id or no image_id", '"id" and "image_id", both integers')
    box = whole_box(entry.get("bbox"))
    if box is None:
        raise corrupt(path, where, f"the bbox {entry.get('bbox')!r}", BOX_FORM)
    if phrase == "category":
        if not is_id(entry.get("category_id")):
            raise corrupt(path, where, "no category_id", "an integer")
        columns.category_id.append(entry["category_id"])
    else:
        if not isinstance(entry.get("caption"), str):
            raise corrupt(path, where, "no caption", "a sentence")
        columns.captions.append(entry["caption"])
    columns.image_id.append(entry["image_id"])
    columns.region_id.append(entry["id"])
    columns.box_xywh.extend(box)
    if entry.get("iscrowd"):
        tally.noted["crowd regions"] += 1


def _grouped(
    images: list[tuple[int, str, int, int]],
    listed: npt.NDArray[np.int64],
    categories: dict[int, str],
    columns: _Columns,
    phrase: str,
    tally: Tally,
) -> Iterator[CocoImage]:
    image_of = np.frombuffer(columns.image_id, dtype=np.int64)
    boxes = np.frombuffer(columns.box_xywh, dtype=np.int32).reshape(-1, 4)
    order = np.argsort(image_of, kind="stable")
    starts = np.searchsorted(image_of, listed, side="left", sorter=order)
    ends = np.searchsorted(image_of, listed, side="right", sorter=order)
    strangers = len(image_of) - int(np.isin(image_of, listed).sum())
    if strangers:
        tally.dropped["regions of an image that the file does not list"] += strangers
    for (image_id, name, width, height), start, end in zip(images, starts, ends, strict=True):
        rows = order[start:end].tolist()
        if phrase == "category":
            known = [row for row in rows if columns.category_id[row] in categories]
            if len(known) < len(rows):
                tally.dropped["regions of a category that the file does not list"] += len(
                    rows
                ) - len(known)
            rows = known
            phrases = [(categories[columns.category_id[row]],) for row in rows]
        else:
            phrases = [(columns.captions[row],) for row in rows]
        ids = [columns.region_id[row] for row in rows]
        regions = make_regions(boxes[rows].tolist(), phrases, ids, tally)
        yield CocoImage(image_id, name, width, height, regions)
