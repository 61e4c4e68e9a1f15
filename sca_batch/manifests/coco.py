"""COCO annotation files: the one reader of the format, and its images as rows of a manifest."""

from __future__ import annotations

import json
import pickle
from array import array
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Generic, TypeGuard, TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl

from sca_batch.errors import ScaError
from sca_batch.manifests.json_stream import Progress, corrupt, stream_members
from sca_batch.manifests.row import Row, parse_row
from sca_batch.manifests.values import parse_box, parse_mask, parse_prompt_id, parse_texts
from sca_batch.records import JsonObject, Prompt, Rle
from sca_batch.storage.spool import Scratch

__all__ = ["CocoFile", "coco_rows", "read_coco"]

FORM = (
    'a COCO file, {"images": [{"id": 1, "file_name": "a.jpg", ...}], "annotations": [...]}; '
    "one JSON object per line belongs into a .jsonl"
)
BYTES_AT_ONCE = 1 << 20
IDS_AT_ONCE = 50_000  # Python strings alive while a file is read

Id = int | str
I = TypeVar("I")  # noqa: E741  what is kept of an image
A = TypeVar("A")  # what is kept of an annotation
T = TypeVar("T")


def read_coco(
    path: Path,
    keep_image: Callable[[JsonObject, str], tuple[Id, I]],
    keep_annotation: Callable[[JsonObject, str], tuple[Id, A]],
    *,
    form: str,
    others: Mapping[str, Callable[[JsonObject, str], None]] | None = None,
    optional: Collection[str] = (),
    progress: Progress | None = None,
) -> CocoFile[I, A]:
    """Reads a COCO file once, from front to back, whichever list comes first.

    Each entry, and its list and index for messages, goes to a function that checks it and
    gives back the id of its image and what is kept of it, in plain types. `others` are told the
    entries of more lists. What is kept waits in temporary files; about 40 bytes of each entry are
    held: as dicts, the 25 million of Objects365 would not fit into memory.

    Raises:
        ScaError: for what is no such file, or no object, and whatever the functions raise.
    """
    images, annotations, others = _Entries[I](), _Entries[A](), others or {}
    keys = ("images", "annotations", *others)
    for key, i, entry in stream_members(
        path, keys, expected=form, optional=optional, progress=progress
    ):
        where = f"{key}[{i}]"
        if not isinstance(entry, dict):
            raise corrupt(path, where, "not an object", form)
        if key == "images":
            images.add(*keep_image(entry, where))
        elif key == "annotations":
            annotations.add(*keep_annotation(entry, where))
        else:
            others[key](entry, where)
    return CocoFile(images, annotations)


def coco_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Rows in the file's order, with their index in `images`.

    Boxes, masks (polygons drawn as pycocotools draws them), annotation ids and captions become
    the regions' prompts, prompt ids and references. A file whose annotations hold neither box nor
    mask, or that has none, gives no regions; in any other an image without annotations has an
    empty list of them.

    Raises:
        ScaError: at the first entry that is wrong, with its list and index.
    """
    with_regions = False

    def image(entry: JsonObject, where: str) -> tuple[Id, JsonObject]:
        return _id_of(entry, f"{path}, {where}", "id"), entry

    def annotation(entry: JsonObject, where: str) -> tuple[Id, JsonObject]:
        nonlocal with_regions
        with_regions |= bool(entry.get("bbox") or entry.get("segmentation"))
        return _id_of(entry, f"{path}, {where}", "image_id"), entry

    file = read_coco(path, image, annotation, form=FORM, optional=("annotations",))
    for stray, image_id in file.strays():
        raise ScaError(
            f"{path}, annotations[{stray}]: image_id {json.dumps(image_id)} is not the id of any "
            "image"
        )
    for i, (image_id, entry, of_image) in enumerate(file.groups()):
        place = f"{path}, images[{i}]"
        cells: dict[str, object] = {key: value for key, value in entry.items() if key != "id"}
        # Our own exports say where the image was; other people's know only its name.
        cells["uri"] = entry.get("uri") or cells.pop("file_name", None)
        cells["image_id"] = image_id
        if not cells["uri"]:
            raise ScaError(f"{place}: no file_name; expected the path of an image")
        if of_image and not with_regions:
            cells["references"] = [a["caption"] for _, a in of_image if "caption" in a]
        row = parse_row(cells, place, box_format=None, text_cells=False)
        yield i, _with_regions(row, entry, of_image, str(path)) if with_regions else row


@dataclass(frozen=True)
class CocoFile(Generic[I, A]):
    """The entries of a COCO file as they were kept, on disk."""

    images: _Entries[I]
    annotations: _Entries[A]

    def strays(self) -> Iterator[tuple[int, Id]]:
        """Index and image id of each annotation whose image is not in the file."""
        known = np.isin(self.annotations.hashes, self.images.hashes)
        return ((i, self.annotations.read(i)[0]) for i in np.flatnonzero(~known).tolist())

    def groups(self) -> Iterator[tuple[Id, I, list[tuple[int, A]]]]:
        """Each image in order: its id, what was kept of it, its annotations with their index."""
        for i in range(len(self.images)):
            image_id, image = self.images.read(i)
            yield image_id, image, self.annotations.of(image_id, self.images.hashes[i])


class _Entries(Generic[T]):
    """Entries of one list, on disk; held are where each begins and the hash of its image's id."""

    def __init__(self) -> None:
        self._scratch = Scratch()
        self._ends = array("q", [0])
        self._ids: list[str] = []  # that were not hashed yet
        self._waiting = bytearray()  # entries that are not on disk yet
        self._hashes = [np.zeros(0, np.uint64)]

    def __len__(self) -> int:
        return len(self._ends) - 1

    def add(self, image_id: Id, kept: T) -> None:
        content = pickle.dumps((image_id, kept), protocol=5)
        self._waiting += content
        if len(self._waiting) > BYTES_AT_ONCE:
            self._flush()
        self._ends.append(self._ends[-1] + len(content))
        self._ids.append(repr(image_id))  # 1 and "1" are different ids
        if len(self._ids) == IDS_AT_ONCE:
            self._hash_ids()

    def read(self, i: int) -> tuple[Id, T]:
        start, end = self._ends[i], self._ends[i + 1]
        self._flush()
        image_id, kept = pickle.loads(self._scratch.read(start, end - start))
        return image_id, kept

    def of(self, image_id: Id, id_hash: np.uint64) -> list[tuple[int, T]]:
        """The entries of an image, in order, with their index."""
        low = np.searchsorted(self._sorted, id_hash, side="left")
        high = np.searchsorted(self._sorted, id_hash, side="right")
        read = ((i, *self.read(i)) for i in self._order[low:high].tolist())
        return [(i, kept) for i, other_id, kept in read if other_id == image_id]

    def _flush(self) -> None:
        if self._waiting:
            self._scratch.append(self._waiting)
            self._waiting = bytearray()

    def _hash_ids(self) -> None:
        self._hashes.append(pl.Series(self._ids, dtype=pl.String).hash().to_numpy())
        self._ids = []

    @cached_property
    def hashes(self) -> npt.NDArray[np.uint64]:
        """The hash of each entry's image id; nothing can be added after it was asked for."""
        self._hash_ids()
        hashes, self._hashes = np.concatenate(self._hashes), []
        return hashes

    @cached_property
    def _order(self) -> npt.NDArray[np.int64]:
        return np.argsort(self.hashes, kind="stable")

    @cached_property
    def _sorted(self) -> npt.NDArray[np.uint64]:
        return self.hashes[self._order]


def _id_of(entry: JsonObject, place: str, key: str) -> Id:
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ScaError(f"{place}: {key} {json.dumps(value)} is neither an integer nor text")
    return value


def _with_regions(
    row: Row, image: JsonObject, annotations: list[tuple[int, JsonObject]], name: str
) -> Row:
    """The row of an image with its annotations as regions."""
    with_ids = all("id" in annotation for _, annotation in annotations)
    prompts = []
    for i, annotation in annotations:
        place = f"{name}, annotations[{i}]"
        box, segmentation = annotation.get("bbox"), annotation.get("segmentation")
        if not box and not segmentation:
            raise ScaError(
                f"{place}: neither bbox nor segmentation, which others in this file have"
            )
        mask = _mask(segmentation, image, f"{place}, segmentation") if segmentation else None
        box_xyxy = parse_box(box, f"{place}, bbox", "xywh") if box else None
        prompt_id = parse_prompt_id(annotation["id"], f"{place}, id") if with_ids else None
        prompts.append(Prompt(box_xyxy, mask_rle=mask, prompt_id=prompt_id or None))
    extra = row.extra
    if any("caption" in annotation for _, annotation in annotations):
        captions = ((i, annotation.get("caption")) for i, annotation in annotations)
        extra = extra | {
            "references": [
                [] if text is None else [*parse_texts(text, f"{name}, annotations[{i}], caption")]
                for i, text in captions
            ]
        }
    return replace(row, prompts=tuple(prompts), extra=extra)


def _mask(segmentation: object, image: JsonObject, where: str) -> Rle:
    """Polygons or an RLE as a compressed RLE."""
    if isinstance(segmentation, dict):
        return parse_mask(segmentation, where)
    height, width = image.get("height"), image.get("width")
    if not (_is_side(height) and _is_side(width)):
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
    return {"size": [int(height), int(width)], "counts": merged["counts"].decode("ascii")}


def _is_side(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and 0 < value < 2**16


def _is_coordinate(value: object) -> bool:
    # Beyond this pycocotools' polygon filler walks, or writes, outside any image.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e6
