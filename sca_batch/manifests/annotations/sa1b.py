"""SA-1B with machine-made captions: tars or extracted folders, and tables of captions beside."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import groupby, zip_longest
from pathlib import Path
from typing import NamedTuple

from sca_batch.errors import ImageError, ScaError
from sca_batch.images.decode import ANYWHERE
from sca_batch.images.fetch import read_bytes
from sca_batch.manifests.annotations.sample import (
    AnnotatedImage,
    Tally,
    checked_size,
    is_id,
    make_regions,
    require_split,
    whole_box,
)
from sca_batch.manifests.json_stream import corrupt
from sca_batch.manifests.request import Request
from sca_batch.records import Json, JsonObject
from sca_batch.storage.archives import MEMBER, UNREADABLE, open_archive

__all__ = ["read_sa1b"]

ROW_FORM = "sa_1-0-433110871<TAB>[{\"caption\": \"...\", \"conf\": 0.9}]"  # fmt: skip
REGION_FORM = '{"id": 433110871, "bbox": [x, y, width, height], "segmentation": {"size": [h, w]}}'
IMAGE_FORM = '{"image": {"width": 2250, "height": 1500, ...}, "annotations": [...]}'
KEY = re.compile(r"(?:sa_)?(\d+)-\d+-(\d+)")


class _Row(NamedTuple):
    """One line of a table: the ids of its image and region, and the JSON behind the key."""

    line: int
    key: str
    image_id: int
    region_id: int
    value: Json


Pair = tuple[_Row, _Row | None]  # a line of captions, and of annotations where a table has them
# Width and height, and region id -> whole XYWH box, of one image.
Annotations = tuple[tuple[int, int], dict[int, list[int]]]


def read_sa1b(request: Request, tally: Tally) -> Iterator[AnnotatedImage]:
    """One region per line of `captions/*.tsv`, with all its captions, tables in sorted order.

    A line is a key, `image-count-region`, and a list of {caption, conf}. The box comes from the
    line of the same key in `annotations/<same name>.tsv`; without that file, from the annotation
    with this id in the image's own `sa_<id>.json`. Images are looked for in a folder named as the
    table, then in a tar of that name, which is read where it is. With `min_confidence`, captions
    below it are left out.

    Raises:
        ScaError: for tables that do not fit each other, and lines that are no captions.
    """
    require_split(request, ("train",))
    folder = request.annotations or request.root
    tables = sorted(folder.glob("captions/*.tsv")) or sorted(folder.glob("*.tsv"))
    if not tables:
        raise ScaError(
            f"{folder}: no tables of captions; expected captions/sa_000000.tsv and others like it, "
            f"each line {ROW_FORM}"
        )
    seen: set[int] = set()
    for table in tables:
        partner = folder / "annotations" / table.name
        members = _tar_members(table, request)
        rows = _paired(table, partner) if partner.is_file() else ((r, None) for r in _rows(table))
        for image_id, group in groupby(rows, key=lambda pair: pair[0].image_id):
            pairs = list(group)
            if image_id in seen:
                raise corrupt(
                    table,
                    f"line {pairs[0][0].line:,}",
                    f"image {image_id} again, after others",
                    "the lines of one image one after another",
                )
            seen.add(image_id)
            request.progress("reading images", len(seen))
            image = _image(table, image_id, pairs, request, tally, members)
            if image is not None:
                yield image


def _image(
    table: Path,
    image_id: int,
    pairs: list[Pair],
    request: Request,
    tally: Tally,
    members: dict[str, Path] | None,
) -> AnnotatedImage | None:
    if members is None:
        base = request.images or request.root
        folders = [base / table.stem, base / "images" / table.stem, base, base / "images"]
        files = tuple(folder / f"sa_{image_id}.jpg" for folder in folders)
        own = [file.with_suffix(".json") for file in files]
    elif f"sa_{image_id}.jpg" in members:
        files = (members[f"sa_{image_id}.jpg"],)
        own = [members[name] for name in [f"sa_{image_id}.json"] if name in members]
    else:
        tally.dropped["images that the tar does not hold"] += 1
        return None
    if pairs[0][1] is None:
        annotated = _own_annotations(own)
        if annotated is None:
            tally.dropped["images whose sa_<id>.json is missing"] += 1
            return None
    else:
        annotated = _table_annotations(table, pairs)
    size_wh, boxes_of = annotated
    boxes, phrases, ids = [], [], []
    for row, _ in pairs:
        if row.region_id not in boxes_of:
            tally.dropped["regions that the image's annotations do not list"] += 1
            continue
        captions = _captions(table, row, request.min_confidence, tally)
        if not captions:
            tally.dropped["regions without a caption"] += 1
            continue
        boxes.append(boxes_of[row.region_id])
        phrases.append(captions)
        ids.append(row.region_id)
    regions = make_regions(boxes, phrases, ids, tally)
    return AnnotatedImage(image_id, files, *size_wh, regions, is_member=members is not None)


def _tar_members(table: Path, request: Request) -> dict[str, Path] | None:
    """File name -> path, as manifests name members, of a table's tar that was not extracted."""
    base = request.images or request.root
    folders = [base / table.stem, base / "images" / table.stem]
    tars = [folder.with_suffix(".tar") for folder in folders]
    path = next((path for path in tars if path.is_file()), None)
    if path is None or any(folder.is_dir() for folder in folders):
        return None
    try:
        members = open_archive(str(path)).members
    except UNREADABLE as error:
        raise corrupt(path, "", f"not a readable tar ({error})", "SA-1B's archive") from None
    return {
        member.name.rpartition("/")[2]: Path(f"{path}{MEMBER}{member.name}")
        for member in members
        if member.offset is not None
    }


def _paired(table: Path, partner: Path) -> Iterator[Pair]:
    for row, other in zip_longest(_rows(table), _rows(partner)):
        if row is None or other is None or row.key != other.key:
            at = row or other
            raise corrupt(
                table,
                f"line {at.line:,}",
                f"the key {row and row.key!r} where {partner} has {other and other.key!r}",
                "the same keys in the same lines",
            )
        yield row, other


def _rows(table: Path) -> Iterator[_Row]:
    with table.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.isspace():
                continue
            try:
                key, _, text = line.decode("utf-8").partition("\t")
                value = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise corrupt(table, f"line {number:,}", f"{error}", ROW_FORM) from None
            parts = KEY.fullmatch(key)
            if parts is None:
                raise corrupt(table, f"line {number:,}", f"the key {key!r}", ROW_FORM)
            yield _Row(number, key, int(parts[1]), int(parts[2]), value)


def _captions(
    table: Path, row: _Row, min_confidence: float | None, tally: Tally
) -> tuple[str, ...]:
    entries = row.value if isinstance(row.value, list) else [None]
    captions: list[str] = []
    for entry in entries:
        caption = entry.get("caption") if isinstance(entry, dict) else None
        if not isinstance(entry, dict) or not isinstance(caption, str):
            raise corrupt(table, f"line {row.line:,}", "no list of captions", ROW_FORM)
        if min_confidence is not None:
            confidence = entry.get("conf")
            if isinstance(confidence, bool) or not isinstance(confidence, int | float):
                raise corrupt(table, f"line {row.line:,}", f"the conf {confidence!r}", ROW_FORM)
            if confidence < min_confidence:
                tally.dropped["captions below the confidence"] += 1
                continue
        captions.append(caption)
    return tuple(captions)


def _own_annotations(own: list[Path]) -> Annotations | None:
    """The annotations in the image's own file, the first of `own` that exists."""
    for path in own:
        try:
            content = json.loads(read_bytes(str(path), ANYWHERE))
        except ImageError as error:
            if error.code == "missing":
                continue
            raise corrupt(path, "", f"not readable ({error})", IMAGE_FORM) from None
        except (ValueError, RecursionError) as error:
            raise corrupt(path, "", f"not readable ({error})", IMAGE_FORM) from None
        image = content.get("image") if isinstance(content, dict) else None
        annotations = content.get("annotations") if isinstance(content, dict) else None
        if not isinstance(image, dict) or not isinstance(annotations, list):
            raise corrupt(path, "", "no image or no annotations", IMAGE_FORM)
        boxes = [_region(entry, path, f"annotations[{i}]") for i, entry in enumerate(annotations)]
        return checked_size(image, path, "image", IMAGE_FORM), dict(boxes)
    return None


def _table_annotations(table: Path, pairs: list[Pair]) -> Annotations:
    """The same from the lines of an annotation table; the size is that of the first mask."""
    path = table.parent.parent / "annotations" / table.name
    boxes: dict[int, list[int]] = {}
    size_of: JsonObject = {}
    for row, other in pairs:
        assert other is not None, "a table has a partner for all lines or for none"
        where = f"line {other.line:,}"
        _, boxes[row.region_id] = _region(other.value, path, where)
        segmentation = other.value.get("segmentation") if isinstance(other.value, dict) else None
        size = segmentation.get("size") if isinstance(segmentation, dict) else None
        if isinstance(size, list) and len(size) == 2:
            size_of = dict(zip(("height", "width"), size, strict=True))
    return checked_size(size_of, path, where, IMAGE_FORM), boxes


def _region(annotation: Json, path: Path, where: str) -> tuple[int, list[int]]:
    if isinstance(annotation, dict):
        box, region_id = whole_box(annotation.get("bbox")), annotation.get("id")
        if box is not None and is_id(region_id):
            return region_id, box
    raise corrupt(path, where, "no bbox or no id", REGION_FORM)
