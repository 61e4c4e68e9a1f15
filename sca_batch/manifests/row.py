"""One manifest row: which columns there are, what they may hold, and what is said if they don't."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sca_batch.boxes import xywh_to_xyxy
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
from sca_batch.records import BoxXYXY, Prompt

__all__ = [
    "BARE_BOX_COLUMNS",
    "ID_COLUMNS",
    "URI_COLUMNS",
    "Row",
    "dump_json",
    "parse_row",
    "prompts_from_json",
]

# Where several stand in one row, the first that is filled is read and the others go to `extra`.
URI_COLUMNS = ("uri", "path", "file_name", "image", "url")
ID_COLUMNS = ("image_id", "id")
BARE_BOX_COLUMNS = ("bbox", "bboxes", "box", "boxes")
BOX_COLUMNS = ("boxes_xyxy", "boxes_xywh", *BARE_BOX_COLUMNS)
LIST_COLUMNS = (*BOX_COLUMNS, "points", "point_labels", "masks_rle", "prompt_ids", "references")

LARGEST_ID = 2**63 - 1  # image_id is an int64


@dataclass(frozen=True, slots=True)
class Row:
    """A checked manifest row, its lists already the JSON that the plan stores."""

    uri: str
    given_id: int | str | None
    prompts: str | None
    extra: str


def parse_row(
    cells: Mapping[str, Any], place: str, *, box_format: BoxFormat | None, text_cells: bool
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
    uri = _uri(filled, place, list(cells))
    given_id = _id(filled, place, text_cells)
    lists = {name: filled.pop(name) for name in LIST_COLUMNS if name in filled}
    if text_cells:
        parsed = {name: _json_cell(value, name, place) for name, value in lists.items()}
        lists = {name: value for name, value in parsed.items() if value is not None}
    regions, references = _regions(lists, place, box_format)
    if references is not None:
        filled["references"] = references
    prompts = None if regions is None else dump_json(regions, place)
    return Row(uri, given_id, prompts, dump_json(filled, place))


def prompts_from_json(text: str | None) -> tuple[Prompt, ...] | None:
    """The given regions of a plan's row."""
    if text is None:
        return None
    return tuple(
        Prompt(
            box_xyxy=_float_box(region["box"]) if "box" in region else None,
            points_xy=tuple((float(x), float(y)) for x, y in region.get("points", ())),
            labels=tuple(region.get("labels", ())),
            mask_rle=region.get("mask"),
            prompt_id=region.get("id"),
        )
        for region in json.loads(text)
    )


def _float_box(box: list[float]) -> BoxXYXY:
    x0, y0, x1, y1 = map(float, box)
    return x0, y0, x1, y1


def dump_json(value: Any, place: str) -> str:
    """Compact JSON that any reader accepts: NaN becomes null, dates become text."""

    def unusual(value: Any) -> str:
        if isinstance(value, bytes | bytearray | memoryview):
            raise ScaError(
                f"{place}: a column holds binary values, which `extra` cannot keep; "
                "expected text, numbers and lists. Leave that column out"
            )
        return str(value)

    form: dict[str, Any] = {"separators": (",", ":"), "allow_nan": False, "default": unusual}
    try:
        text = json.dumps(value, ensure_ascii=False, **form)
    except ValueError:
        text = json.dumps(_without_nan(value), ensure_ascii=False, **form)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair: only its escape is valid UTF-8
        text = json.dumps(json.loads(text), **form)
    return text


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {name: _without_nan(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value


def _uri(filled: dict[str, Any], place: str, columns: list[str]) -> str:
    """Takes the image's path or URL out of the row."""
    column = next((name for name in URI_COLUMNS if name in filled), None)
    if column is None:
        empty = [name for name in URI_COLUMNS if name in columns]
        if empty:
            raise ScaError(f"{place}: {empty[0]} is empty; expected the path of an image")
        raise ScaError(
            f"{place}: no column with the image's path; expected one of {', '.join(URI_COLUMNS)}, "
            f"found {', '.join(map(str, columns)) or 'none'}"
        )
    value = filled.pop(column)
    if not isinstance(value, str) or not value or "\0" in value or not is_utf8(value):
        raise ScaError(f"{place}: {column} {show(value)} is not the path or URL of an image")
    return value


def _id(filled: dict[str, Any], place: str, text_cells: bool) -> int | str | None:
    """Takes the row's id out of it: an integer where it is one, else text."""
    column = next((name for name in ID_COLUMNS if name in filled), None)
    if column is None:
        return None
    value = filled.pop(column)
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # an integer column with holes, as data frames write it
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise ScaError(f"{place}: {column} {show(value)} is neither an integer nor text")
    if isinstance(value, str):
        if not is_utf8(value):
            raise ScaError(f"{place}: {column} {show(value)} is not valid Unicode")
        if text_cells and value.removeprefix("-").isdecimal() and value.isascii():
            # 007 is a name: as a number it would not come back as it was.
            value = int(value) if len(value) <= 20 and str(int(value)) == value else value
    number: int | str = value
    return str(number) if isinstance(number, int) and abs(number) > LARGEST_ID else number


def _json_cell(value: Any, column: str, place: str) -> Any:
    if not isinstance(value, str):
        return value
    if column == "references" and not value.lstrip().startswith("["):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ScaError(
            f"{place}: {column} {show(value)} is not JSON ({error}); "
            "lists in a text table are written as JSON, such as [[0, 0, 10, 20]]"
        ) from None


def _regions(
    lists: dict[str, Any], place: str, box_format: BoxFormat | None
) -> tuple[list[dict[str, Any]] | None, Any]:
    """The row's given regions as the plan stores them, and its references, both None if absent."""
    parts: dict[str, list[Any]] = {}
    box_columns = [name for name in BOX_COLUMNS if name in lists]
    if len(box_columns) > 1:
        raise ScaError(
            f"{place}: boxes stand in {' and in '.join(box_columns)}; expected one of them"
        )
    if box_columns:
        parts[box_columns[0]] = _boxes(lists[box_columns[0]], box_columns[0], place, box_format)
    if "points" in lists:
        parts["points"] = _entries(lists["points"], "points", place, parse_points)
    if "masks_rle" in lists:
        parts["masks_rle"] = _entries(lists["masks_rle"], "masks_rle", place, parse_mask)
    given = bool(parts)
    if "point_labels" in lists and "points" not in lists:
        raise ScaError(f"{place}: point_labels without points; expected a column points")
    for column, check in (("point_labels", parse_labels), ("prompt_ids", parse_prompt_id)):
        if column in lists:
            parts[column] = _entries(lists[column], column, place, check)
    references = lists.get("references")
    if given and references is not None:
        references = [references] if isinstance(references, str) else references
        references = _entries(references, "references", place, parse_texts)
        parts["references"] = [texts or [] for texts in references]
        references = parts["references"]
    elif references is not None:
        references = parse_texts(references, f"{place}: references")
    if not given:
        if parts.get("prompt_ids"):
            raise ScaError(
                f"{place}: prompt_ids without regions; expected boxes_xyxy, boxes_xywh, points "
                "or masks_rle"
            )
        return None, references
    _check_lengths(parts, place)
    return _join(parts, box_columns[0] if box_columns else "", place), references


def _check_lengths(parts: dict[str, list[Any]], place: str) -> None:
    (first, entries), *others = parts.items()
    for column, other in others:
        if len(other) != len(entries):
            raise ScaError(
                f"{place}: {first} has {len(entries)} entries and {column} has {len(other)}; "
                "expected one per region in each"
            )


def _join(parts: dict[str, list[Any]], box_column: str, place: str) -> list[dict[str, Any]]:
    """One dict per region from one list per column; empty entries are left out."""
    names = {box_column: "box", "points": "points", "masks_rle": "mask", "prompt_ids": "id"}
    count = len(next(iter(parts.values())))
    regions = [
        {
            name: parts[column][i]
            for column, name in names.items()
            if parts.get(column, {i: None})[i]
        }
        for i in range(count)
    ]
    for i, region in enumerate(regions):
        if not region.keys() & {"box", "points", "mask"}:
            raise ScaError(f"{place}: region {i} has neither a box nor points nor a mask")
        labels = parts["point_labels"][i] if "point_labels" in parts else None
        points = region.get("points", [])
        labels = [1] * len(points) if labels is None else labels
        if len(labels) != len(points):
            raise ScaError(
                f"{place}: points[{i}] has {len(points)} points and point_labels[{i}] has "
                f"{len(labels)}; expected one label per point"
            )
        if points:
            region["labels"] = labels
    return regions


def _entries(
    value: Any, column: str, place: str, check: Callable[[Any, str], Any]
) -> list[Any | None]:
    if not isinstance(value, list | tuple):
        raise ScaError(
            f"{place}: {column} {show(value)} is not a list; expected one entry per region"
        )
    return [
        None if entry is None else check(entry, f"{place}: {column}[{i}]")
        for i, entry in enumerate(value)
    ]


def _boxes(
    value: Any, column: str, place: str, box_format: BoxFormat | None
) -> list[list[float] | None]:
    """Boxes as XYXY. A bare column may hold one box instead of a list of them."""
    if column in BARE_BOX_COLUMNS:
        if box_format is None:
            raise ScaError(
                f"{place}: {column} {show(value)} may be two corners or a corner and a size; "
                "say which with --box-format xyxy or --box-format xywh, or name the column "
                "boxes_xyxy or boxes_xywh"
            )
        order = box_format
        if isinstance(value, list | tuple) and value and not isinstance(value[0], list | tuple):
            value = [value]
    else:
        order = "xywh" if column == "boxes_xywh" else "xyxy"
    boxes = _entries(value, column, place, lambda box, where: parse_box(box, where, order))
    if order == "xywh":
        boxes = [None if box is None else xywh_to_xyxy(box).tolist() for box in boxes]
    return boxes
