"""COCO annotation files as manifests: images become rows, annotations their given regions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from sca_batch.data.cells import parse_box, parse_mask
from sca_batch.data.columns import Row, parse_row
from sca_batch.errors import ScaError
from sca_batch.records import Rle

__all__ = ["coco_rows"]

FORM = '{"images": [{"id": 1, "file_name": "a.jpg", ...}], "annotations": [...]}'


def coco_rows(content: bytes, name: str) -> Iterator[tuple[int, Row]]:
    """Rows in the file's order, with their index in `images`.

    Boxes, masks (polygons drawn as pycocotools draws them), annotation ids and captions become
    the regions' prompts, prompt ids and references. A file whose annotations hold neither box nor
    mask, or that has none, gives no regions; in any other an image without annotations has an
    empty list of them.
    """
    images, annotations = _load(content, name)
    by_image: dict[Any, list[int]] = {}
    known = {_id_of(image, f"{name}, images[{i}]", "id") for i, image in enumerate(images)}
    with_regions = False
    for i, annotation in enumerate(annotations):
        place = f"{name}, annotations[{i}]"
        image_id = _id_of(annotation, place, "image_id")
        if image_id not in known:
            raise ScaError(f"{place}: image_id {json.dumps(image_id)} is not the id of any image")
        by_image.setdefault(image_id, []).append(i)
        with_regions |= bool(annotation.get("bbox") or annotation.get("segmentation"))
    for i, image in enumerate(images):
        place = f"{name}, images[{i}]"
        of_image = [(j, annotations[j]) for j in by_image.get(image["id"], [])]
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


def _load(content: bytes, name: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    try:
        document = json.loads(content.removeprefix(b"\xef\xbb\xbf").decode("utf-8"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ScaError(
            f"{name}, line {line}: not UTF-8; save the file with the encoding UTF-8"
        ) from None
    except json.JSONDecodeError as error:
        raise ScaError(
            f"{name}: invalid JSON on line {error.lineno} column {error.colno}: {error.msg}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ScaError(f"{name}: invalid JSON: {error}") from None
    if not isinstance(document, dict) or not isinstance(document.get("images"), list):
        raise ScaError(
            f"{name}: no list of images; a .json source is a COCO file, {FORM}; "
            "one JSON object per line belongs into a .jsonl"
        )
    lists = [document["images"], document.get("annotations") or []]
    for key, entries in zip(("images", "annotations"), lists, strict=True):
        if not isinstance(entries, list):
            raise ScaError(f"{name}: {key} is not a list; expected {FORM}")
        for i, entry in enumerate(entries):
            if not isinstance(entry, dict):
                raise ScaError(f"{name}, {key}[{i}]: not an object; expected {FORM}")
    return lists[0], lists[1]


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
