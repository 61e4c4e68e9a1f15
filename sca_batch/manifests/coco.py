"""COCO annotation files as manifests: images become rows, annotations their given regions."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from sca_batch.errors import ScaError
from sca_batch.manifests.json_stream import stream_members
from sca_batch.manifests.row import Row, parse_row
from sca_batch.manifests.values import parse_box, parse_mask
from sca_batch.records import Rle
from sca_batch.storage.spool import Scratch

__all__ = ["coco_rows"]

FORM = (
    'a COCO file, {"images": [{"id": 1, "file_name": "a.jpg", ...}], "annotations": [...]}; '
    "one JSON object per line belongs into a .jsonl"
)
BYTES_AT_ONCE = 1 << 20
IDS_AT_ONCE = 50_000  # Python strings alive while a file is read


def coco_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Rows in the file's order, with their index in `images`.

    Boxes, masks (polygons drawn as pycocotools draws them), annotation ids and captions become
    the regions' prompts, prompt ids and references. A file whose annotations hold neither box nor
    mask, or that has none, gives no regions; in any other an image without annotations has an
    empty list of them.

    The file is read once, from front to back, whichever list comes first. Its entries wait in
    temporary files; about 40 bytes of each are held.

    Raises:
        ScaError: at the first entry that is wrong, with its list and index.
    """
    name = str(path)
    images, annotations = _Entries(), _Entries()
    with_regions = False
    for key, i, entry in stream_members(
        path, ("images", "annotations"), expected=FORM, optional=("annotations",)
    ):
        place = f"{name}, {key}[{i}]"
        if not isinstance(entry, dict):
            raise ScaError(f"{place}: not an object; expected {FORM}")
        if key == "images":
            images.add(_id_of(entry, place, "id"), entry)
        else:
            annotations.add(_id_of(entry, place, "image_id"), entry)
            with_regions |= bool(entry.get("bbox") or entry.get("segmentation"))
    stray = annotations.first_of_another(images)
    if stray is not None:
        image_id = json.dumps(annotations.read(stray)["image_id"])
        raise ScaError(
            f"{name}, annotations[{stray}]: image_id {image_id} is not the id of any image"
        )
    for i in range(len(images)):
        place = f"{name}, images[{i}]"
        image = images.read(i)
        of_image = [
            (j, annotation)
            for j in annotations.of(images.id_hash(i))
            if (annotation := annotations.read(j))["image_id"] == image["id"]
        ]
        cells = {key: value for key, value in image.items() if key != "id"}
        # Our own exports say where the image was; other people's know only its name.
        cells["uri"] = image.get("uri") or cells.pop("file_name", None)
        cells["image_id"] = image["id"]
        if not cells["uri"]:
            raise ScaError(f"{place}: no file_name; expected the path of an image")
        if with_regions:
            cells |= _regions(of_image, image, name)
        elif of_image:
            cells["references"] = [a["caption"] for _, a in of_image if "caption" in a]
        yield i, parse_row(cells, place, box_format=None, text_cells=False)


class _Entries:
    """Entries of one list, on disk; held are where each begins and the hash of its image's id."""

    def __init__(self) -> None:
        self._scratch = Scratch()
        self._ends = array("q", [0])
        self._ids: list[str] = []  # that were not hashed yet
        self._waiting = bytearray()  # entries that are not on disk yet
        self._hashes = [np.zeros(0, np.uint64)]

    def __len__(self) -> int:
        return len(self._ends) - 1

    def add(self, image_id: int | str, entry: dict[str, Any]) -> None:
        content = json.dumps(entry, separators=(",", ":")).encode()
        self._waiting += content
        if len(self._waiting) > BYTES_AT_ONCE:
            self._flush()
        self._ends.append(self._ends[-1] + len(content))
        self._ids.append(json.dumps(image_id))  # 1 and "1" are different ids
        if len(self._ids) == IDS_AT_ONCE:
            self._hash_ids()

    def read(self, i: int) -> dict[str, Any]:
        start, end = self._ends[i], self._ends[i + 1]
        entry: dict[str, Any] = json.loads(self._scratch.read(start, end - start))
        return entry

    def id_hash(self, i: int) -> np.uint64:
        return np.uint64(self._all_hashes[i])

    def of(self, id_hash: np.uint64) -> list[int]:
        """The entries whose image's id has this hash, in order."""
        low = np.searchsorted(self._sorted, id_hash, side="left")
        high = np.searchsorted(self._sorted, id_hash, side="right")
        found: list[int] = self._order[low:high].tolist()
        return found

    def first_of_another(self, images: _Entries) -> int | None:
        """The first entry that belongs to none of the images."""
        known = np.isin(self._all_hashes, images._all_hashes)
        return None if known.all() else int(np.argmin(known))

    def _flush(self) -> None:
        self._scratch.append(self._waiting)
        self._waiting = bytearray()

    def _hash_ids(self) -> None:
        self._hashes.append(pl.Series(self._ids, dtype=pl.String).hash().to_numpy())
        self._ids = []

    @cached_property
    def _all_hashes(self) -> npt.NDArray[np.uint64]:
        self._hash_ids()
        self._flush()
        hashes, self._hashes = np.concatenate(self._hashes), []
        return hashes

    @cached_property
    def _order(self) -> npt.NDArray[np.int64]:
        return np.argsort(self._all_hashes, kind="stable")

    @cached_property
    def _sorted(self) -> npt.NDArray[np.uint64]:
        return self._all_hashes[self._order]


def _id_of(entry: dict[str, Any], place: str, key: str) -> int | str:
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ScaError(f"{place}: {key} {json.dumps(value)} is neither an integer nor text")
    return value


def _regions(
    annotations: list[tuple[int, dict[str, Any]]], image: dict[str, Any], name: str
) -> dict[str, Any]:
    """The annotations of one image as manifest columns."""
    masks, boxes = [], []
    for i, annotation in annotations:
        place = f"{name}, annotations[{i}]"
        if not annotation.get("bbox") and not annotation.get("segmentation"):
            raise ScaError(
                f"{place}: neither bbox nor segmentation, which others in this file have"
            )
        masks.append(_mask(annotation.get("segmentation"), image, place))
        box = annotation.get("bbox") or None
        boxes.append(None if box is None else parse_box(box, f"{place}, bbox", "xywh"))
    columns: dict[str, Any] = {"boxes_xywh": boxes, "masks_rle": masks}
    if all("id" in annotation for _, annotation in annotations):
        columns["prompt_ids"] = [annotation["id"] for _, annotation in annotations]
    if any("caption" in annotation for _, annotation in annotations):
        columns["references"] = [annotation.get("caption") for _, annotation in annotations]
    return columns


def _mask(segmentation: Any, image: dict[str, Any], place: str) -> Rle | None:
    """Polygons or an RLE as a compressed RLE; None for neither."""
    if not segmentation:
        return None
    where = f"{place}, segmentation"
    if isinstance(segmentation, dict):
        return parse_mask(segmentation, where)
    height, width = image.get("height"), image.get("width")
    if not all(isinstance(side, int) and 0 < side < 2**16 for side in (height, width)):
        raise ScaError(
            f"{where}: polygons need the image's height and width; expected both in images"
        )
    for polygon in segmentation if isinstance(segmentation, list) else [None]:
        points = polygon if isinstance(polygon, list) else []
        # pycocotools takes a list of four for a box.
        if len(points) < 6 or len(points) % 2 or not all(_is_coordinate(v) for v in points):
            raise ScaError(
                f"{where}: not an RLE and not polygons; expected [[x, y, x, y, x, y, ...], ...] "
                "with at least three points each"
            )
    from pycocotools import mask as coco_mask

    merged = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    return {"size": [height, width], "counts": merged["counts"].decode("ascii")}


def _is_coordinate(value: Any) -> bool:
    # Beyond this pycocotools' polygon filler walks, or writes, outside any image.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e6
