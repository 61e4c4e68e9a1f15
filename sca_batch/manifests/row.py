"""One manifest row: which columns there are, what they may hold, and what is said if they don't."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from sca_batch.errors import ScaError
from sca_batch.manifests.values import (
    BoxFormat,
    is_utf8,
    parse_box,
    parse_labels,
    parse_mask,
    parse_points,
    parse_prompt_id,
    parse_texts,
    show,
)
from sca_batch.records import BoxXYXY, Json, JsonObject, Prompt, Rle

__all__ = ["URI_COLUMNS", "Row", "dump_json", "parse_row", "plain_json"]

T = TypeVar("T")

# Where several stand in one row, the first that is filled is read and the others go to `extra`.
URI_COLUMNS = ("uri", "path", "file_name", "image", "url")
ID_COLUMNS = ("image_id", "id")
BARE_BOX_COLUMNS = ("bbox", "bboxes", "box", "boxes")
BOX_COLUMNS = ("boxes_xyxy", "boxes_xywh", *BARE_BOX_COLUMNS)
LIST_COLUMNS = (*BOX_COLUMNS, "points", "point_labels", "masks_rle", "prompt_ids", "references")

LARGEST_ID = 2**63 - 1  # image_id is an int64


@dataclass(frozen=True, slots=True)
class Row:
    """A checked manifest row.

    `prompts` is None where regions are to be proposed. `extra` are the other columns and the
    references: one list of sentences per region, or without regions sentences about the image.
    """

    uri: str
    given_id: int | str | None
    prompts: tuple[Prompt, ...] | None
    extra: JsonObject

    @property
    def references(self) -> list[list[str]]:
        """The sentences about each region or, without regions, about the image, one a list."""
        found = self.extra.get("references")
        texts = found if isinstance(found, list) else []
        return [
            [entry] if isinstance(entry, str) else [text for text in entry if isinstance(text, str)]
            for entry in texts
            if isinstance(entry, str | list)
        ]

    @property
    def size_hw(self) -> tuple[int, int] | None:
        """The columns height and width, where both are sides of an image."""
        height, width = self.extra.get("height"), self.extra.get("width")
        if isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0:
            return height, width
        return None


def parse_row(
    cells: Mapping[str, object], place: str, *, box_format: BoxFormat | None, text_cells: bool
) -> Row:
    """Checks one row. `text_cells` says that lists come as JSON text, as they do in CSV.

    Raises:
        ScaError: naming `place`, the column, what stands there and what was expected.
    """
    filled = {
        name: value
        for name, value in cells.items()
        if value is not None and not (text_cells and value == "")
    }
    try:
        uri = _uri(filled, list(cells))
        given_id = _id(filled, text_cells)
        lists = {name: filled.pop(name) for name in LIST_COLUMNS if name in filled}
        if text_cells:
            parsed = {name: _json_cell(value, name) for name, value in lists.items()}
            lists = {name: value for name, value in parsed.items() if value is not None}
        prompts, references = _regions(lists, box_format)
        extra = {name: plain_json(value) for name, value in filled.items()}
        if references is not None:
            extra["references"] = references
        return Row(uri, given_id, prompts, extra)
    except ScaError as error:
        raise ScaError(f"{place}: {error}") from None


def plain_json(value: object) -> Json:
    """The value as any reader of JSON accepts it: NaN becomes null, dates become text.

    Raises:
        ScaError: for binary values, and for lists in lists without end.
    """
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    try:
        if isinstance(value, Mapping):
            return {str(name): plain_json(item) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain_json(item) for item in value]
    except RecursionError:
        raise ScaError("a column holds lists in lists, too deep to be read") from None
    if isinstance(value, bytes | bytearray | memoryview):
        raise ScaError(
            "a column holds binary values, which `extra` cannot keep; "
            "expected text, numbers and lists. Leave that column out"
        )
    return str(value)


def dump_json(value: object) -> str:
    """Compact JSON of what `plain_json` makes of the value."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError):  # not plain: as a rule it is, and this is slow
        value = plain_json(value)
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    # Half of a surrogate pair: only its escape is valid UTF-8.
    return text if is_utf8(text) else json.dumps(value, separators=(",", ":"))


def _uri(filled: dict[str, object], columns: list[str]) -> str:
    """Takes the image's path or URL out of the row."""
    column = next((name for name in URI_COLUMNS if name in filled), None)
    if column is None:
        empty = [name for name in URI_COLUMNS if name in columns]
        if empty:
            raise ScaError(f"{empty[0]} is empty; expected the path of an image")
        raise ScaError(
            f"no column with the image's path; expected one of {', '.join(URI_COLUMNS)}, "
            f"found {', '.join(map(str, columns)) or 'none'}"
        )
    value = filled.pop(column)
    if not isinstance(value, str) or not value or "\0" in value or not is_utf8(value):
        raise ScaError(f"{column} {show(value)} is not the path or URL of an image")
    return value


def _id(filled: dict[str, object], text_cells: bool) -> int | str | None:
    """Takes the row's id out of it: an integer where it is one, else text."""
    column = next((name for name in ID_COLUMNS if name in filled), None)
    if column is None:
        return None
    value = filled.pop(column)
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # an integer column with holes, as data frames write it
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise ScaError(f"{column} {show(value)} is neither an integer nor text")
    if isinstance(value, str):
        if not is_utf8(value):
            raise ScaError(f"{column} {show(value)} is not valid Unicode")
        # 007 is a name: as a number it would not come back as it was.
        if text_cells and re.fullmatch(r"0|-?[1-9][0-9]{0,19}", value):
            value = int(value)
    return str(value) if isinstance(value, int) and abs(value) > LARGEST_ID else value


def _json_cell(value: object, column: str) -> object:
    if not isinstance(value, str):
        return value
    if column == "references" and not value.lstrip().startswith("["):
        return value
    try:
        parsed: object = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ScaError(
            f"{column} {show(value)} is not JSON ({error}); "
            "lists in a text table are written as JSON, such as [[0, 0, 10, 20]]"
        ) from None
    return parsed


def _regions(
    lists: Mapping[str, object], box_format: BoxFormat | None
) -> tuple[tuple[Prompt, ...] | None, list[Json] | None]:
    """The row's given regions and its references, both None if absent."""
    box_columns = [name for name in BOX_COLUMNS if name in lists]
    if len(box_columns) > 1:
        raise ScaError(f"boxes stand in {' and in '.join(box_columns)}; expected one of them")
    box_column = box_columns[0] if box_columns else ""
    boxes = _boxes(lists, box_column, box_format)
    points = _entries(lists, "points", parse_points)
    masks = _entries(lists, "masks_rle", parse_mask)
    if points is None and "point_labels" in lists:
        raise ScaError("point_labels without points; expected a column points")
    labels = _entries(lists, "point_labels", parse_labels)
    ids = _entries(lists, "prompt_ids", parse_prompt_id)
    if boxes is None and points is None and masks is None:
        if ids:
            raise ScaError(
                "prompt_ids without regions; expected boxes_xyxy, boxes_xywh, points or masks_rle"
            )
        whole = lists.get("references")
        return None, None if whole is None else [*parse_texts(whole, "references")]
    if isinstance(lists.get("references"), str):
        lists = {"references": [lists["references"]]}
    references = _entries(lists, "references", parse_texts)
    columns = {
        box_column: boxes, "points": points, "masks_rle": masks, "point_labels": labels,
        "prompt_ids": ids, "references": references,
    }  # fmt: skip
    (first, count), *others = [
        (name, len(entries)) for name, entries in columns.items() if entries is not None
    ]
    for name, other in others:
        if other != count:
            raise ScaError(
                f"{first} has {count} entries and {name} has {other}; "
                "expected one per region in each"
            )
    none = [None] * count
    parts = zip(
        boxes or none, points or none, labels or none, masks or none, ids or none, strict=True
    )
    return (
        tuple(_prompt(i, *of_region) for i, of_region in enumerate(parts)),
        None if references is None else [[*(texts or ())] for texts in references],
    )


def _prompt(
    i: int,
    box_xyxy: BoxXYXY | None,
    points: tuple[tuple[float, float], ...] | None,
    labels: tuple[int, ...] | None,
    mask: Rle | None,
    prompt_id: str | None,
) -> Prompt:
    points = points or ()
    if box_xyxy is None and not points and mask is None:
        raise ScaError(f"region {i} has neither a box nor points nor a mask")
    labels = (1,) * len(points) if labels is None else labels
    if len(labels) != len(points):
        raise ScaError(
            f"points[{i}] has {len(points)} points and point_labels[{i}] has {len(labels)}; "
            "expected one label per point"
        )
    return Prompt(box_xyxy, points, labels, mask, prompt_id or None)


def _entries(
    lists: Mapping[str, object], column: str, check: Callable[[object, str], T]
) -> list[T | None] | None:
    """The checked entries of a column, None where one is null; None where there is no column."""
    if column not in lists:
        return None
    value = lists[column]
    if not isinstance(value, list | tuple):
        raise ScaError(f"{column} {show(value)} is not a list; expected one entry per region")
    return [
        None if entry is None else check(entry, f"{column}[{i}]") for i, entry in enumerate(value)
    ]


def _boxes(
    lists: Mapping[str, object], column: str, box_format: BoxFormat | None
) -> list[BoxXYXY | None] | None:
    """The boxes of a column. A bare one may hold one box instead of a list of them."""
    order: BoxFormat = "xywh" if column == "boxes_xywh" else "xyxy"
    if column in BARE_BOX_COLUMNS:
        value = lists[column]
        if box_format is None:
            raise ScaError(
                f"{column} {show(value)} may be two corners or a corner and a size; "
                "say which with --box-format xyxy or --box-format xywh, or name the column "
                "boxes_xyxy or boxes_xywh"
            )
        order = box_format
        if isinstance(value, list | tuple) and value and not isinstance(value[0], list | tuple):
            lists = {column: [value]}
    return _entries(lists, column, lambda box, where: parse_box(box, where, order))
