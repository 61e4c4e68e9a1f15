"""COCO annotation files: the one reader of the format, and its images as rows of a manifest."""

from __future__ import annotations

import json
import pickle
import sqlite3
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Generic, TypeGuard, TypeVar

from sca_batch.errors import OutputError, ScaError
from sca_batch.manifests.json_stream import Progress, corrupt, stream_members
from sca_batch.manifests.row import Row, parse_row
from sca_batch.manifests.values import parse_box, parse_mask, parse_prompt_id, parse_texts
from sca_batch.records import JsonObject, Prompt, Rle

__all__ = ["CocoFile", "coco_rows", "read_coco"]

FORM = (
    'a COCO file, {"images": [{"id": 1, "file_name": "a.jpg", ...}], "annotations": [...]}; '
    "one JSON object per line belongs into a .jsonl"
)

Id = int | str
I = TypeVar("I")  # noqa: E741  what is kept of an image
A = TypeVar("A")  # what is kept of an annotation


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
    entries of more lists. What is kept waits on disk: the 25 million annotations of Objects365
    would not fit into memory.

    Raises:
        ScaError: for what is no such file, or no object, and whatever the functions raise.
    """
    file, others = CocoFile[I, A](), others or {}
    keys = ("images", "annotations", *others)
    for key, i, entry in stream_members(
        path, keys, expected=form, optional=optional, progress=progress
    ):
        where = f"{key}[{i}]"
        if not isinstance(entry, dict):
            raise corrupt(path, where, "not an object", form)
        if key in others:
            others[key](entry, where)
        else:
            keep = keep_image if key == "images" else keep_annotation
            file.add(key, *keep(entry, where))
    return file


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


class CocoFile(Generic[I, A]):
    """The entries of a COCO file that were kept, in a database gone with the process."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("")
        self._rows("PRAGMA journal_mode = OFF")  # nothing is ever undone
        # An entry's id is its image's, as `repr` has it: 1 and "1" are different ids.
        for table in ("images", "annotations"):
            self._rows(f"CREATE TABLE {table} (id TEXT, kept BLOB)")

    def add(self, table: str, image_id: Id, kept: I | A) -> None:
        """Appends an entry to `images` or `annotations`.

        Raises:
            OutputError: when there is no room for temporary files.
        """
        content = pickle.dumps((image_id, kept), protocol=5)
        self._rows(f"INSERT INTO {table} VALUES (?, ?)", repr(image_id), content)

    def strays(self) -> Iterator[tuple[int, Id]]:
        """Index and image id of each annotation whose image is not in the file."""
        for row, kept in self._rows(
            "SELECT rowid, kept FROM annotations WHERE id NOT IN (SELECT id FROM images) "
            "ORDER BY rowid"
        ):
            yield row - 1, pickle.loads(kept)[0]

    def groups(self) -> Iterator[tuple[Id, I, list[tuple[int, A]]]]:
        """Each image in order: its id, what was kept of it, its annotations with their index."""
        self._rows("CREATE INDEX IF NOT EXISTS of_image ON annotations (id)")
        rows = self._rows(
            "SELECT images.rowid, images.kept, annotations.rowid, annotations.kept FROM images "
            "LEFT JOIN annotations ON annotations.id = images.id "
            "ORDER BY images.rowid, annotations.rowid"
        )
        for (_, image), group in groupby(rows, key=itemgetter(0, 1)):
            found = [(i - 1, pickle.loads(kept)[1]) for *_, i, kept in group if kept is not None]
            yield *pickle.loads(image), found

    def _rows(self, command: str, *values: str | bytes) -> sqlite3.Cursor:
        try:
            return self._database.execute(command, values)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode not in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE):
                raise
            raise OutputError(
                f"{tempfile.gettempdir()}: no space left for temporary files; free some, or set "
                "TMPDIR to a folder with more"
            ) from None


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
                [] if text is None else parse_texts(text, f"{name}, annotations[{i}], caption")
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
