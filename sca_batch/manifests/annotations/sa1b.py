"""SA-1B with machine-made captions: tars or extracted folders, and tables of captions beside."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from itertools import groupby, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from sca_batch.errors import ScaError
from sca_batch.manifests.annotations.sample import (
    AnnotatedImage,
    Tally,
    is_id,
    is_side,
    make_regions,
    require_split,
    whole_box,
)
from sca_batch.manifests.json_stream import corrupt
from sca_batch.manifests.request import Request
from sca_batch.storage.archives import MEMBER

__all__ = ["read_sa1b"]

ROW_FORM = "sa_1-0-433110871<TAB>[{\"caption\": \"...\", \"conf\": 0.9}]"  # fmt: skip
REGION_FORM = '{"id": 433110871, "bbox": [x, y, width, height], "segmentation": {"size": [h, w]}}'
IMAGE_FORM = '{"image": {"width": 2250, "height": 1500, ...}, "annotations": [...]}'
KEY = re.compile(r"(?:sa_)?(\d+)-\d+-(\d+)")


class _Row(NamedTuple):
    """One line of a table: whose region it is about, and the JSON behind the key."""

    line: int
    key: str
    image_id: int
    region_id: int
    value: Any


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
        tarred = _find_tar(table, request)
        rows = _paired(table, partner) if partner.is_file() else _alone(table)
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
            image = _image(table, image_id, pairs, request, tally, tarred)
            if image is not None:
                yield image


def _image(
    table: Path,
    image_id: int,
    pairs: list[tuple[_Row, _Row | None]],
    request: Request,
    tally: Tally,
    tarred: _Tar | None,
) -> AnnotatedImage | None:
    base = request.images or request.root
    folders = [base / table.stem, base / "images" / table.stem, base, base / "images"]
    files = tuple(folder / f"sa_{image_id}.jpg" for folder in folders)
    if tarred is not None:
        member = tarred.path_of(f"sa_{image_id}.jpg")
        if member is None:
            tally.dropped["images that the tar does not hold"] += 1
            return None
        files = (member,)
    if pairs[0][1] is None:
        found = _own_file(files, image_id, tarred)
        if found is None:
            tally.dropped["images whose sa_<id>.json is missing"] += 1
            return None
        size_wh, boxes_of = _own_annotations(*found)
    else:
        size_wh, boxes_of = _table_annotations(table, pairs)
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
    return AnnotatedImage(image_id, files, *size_wh, regions, is_member=tarred is not None)


class _Tar:
    """A tar of images and their annotations, of which only the directory is kept."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._members: dict[str, tuple[str, int, int]] = {}  # file name -> member, place, size
        try:
            with tarfile.open(path, "r:") as file:
                for info in file:
                    if info.isreg():
                        name = info.name.rpartition("/")[2]
                        self._members[name] = info.name, info.offset_data, info.size
                    file.members = []  # type: ignore[attr-defined]  # else all would be kept
        except (OSError, tarfile.TarError, EOFError) as error:
            raise corrupt(path, "", f"not a readable tar ({error})", "SA-1B's archive") from None

    def path_of(self, name: str) -> Path | None:
        """Where a member is read from by its file name, as manifests name members."""
        found = self._members.get(name)
        return None if found is None else Path(f"{self.path}{MEMBER}{found[0]}")

    def read(self, name: str) -> bytes | None:
        found = self._members.get(name)
        if found is None:
            return None
        with self.path.open("rb") as file:
            file.seek(found[1])
            return file.read(found[2])


def _find_tar(table: Path, request: Request) -> _Tar | None:
    """The tar that a table is about, where it was not extracted."""
    base = request.images or request.root
    places = [base / table.stem, base / "images" / table.stem]
    if any(folder.is_dir() for folder in places):
        return None
    tars = (folder.with_suffix(".tar") for folder in places)
    return next((_Tar(path) for path in tars if path.is_file()), None)


def _own_file(
    files: tuple[Path, ...], image_id: int, tarred: _Tar | None
) -> tuple[Path, bytes] | None:
    """The image's own `sa_<id>.json`, and what is in it."""
    if tarred is not None:
        name = f"sa_{image_id}.json"
        content = tarred.read(name)
        return None if content is None else (tarred.path / name, content)
    found = next((f for f in (file.with_suffix(".json") for file in files) if f.is_file()), None)
    if found is None:
        return None
    try:
        return found, found.read_bytes()
    except OSError as error:
        raise corrupt(found, "", f"not readable ({error})", IMAGE_FORM) from None


def _alone(table: Path) -> Iterator[tuple[_Row, None]]:
    return ((row, None) for row in _rows(table))


def _paired(table: Path, partner: Path) -> Iterator[tuple[_Row, _Row | None]]:
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
    entries = row.value
    if not isinstance(entries, list) or not all(
        isinstance(entry, dict) and isinstance(entry.get("caption"), str) for entry in entries
    ):
        raise corrupt(table, f"line {row.line:,}", "no list of captions", ROW_FORM)
    if min_confidence is not None:
        for entry in entries:
            confidence = entry.get("conf")
            if isinstance(confidence, bool) or not isinstance(confidence, int | float):
                raise corrupt(table, f"line {row.line:,}", f"the conf {confidence!r}", ROW_FORM)
        kept = [entry for entry in entries if entry["conf"] >= min_confidence]
        if len(kept) < len(entries):
            tally.dropped["captions below the confidence"] += len(entries) - len(kept)
        entries = kept
    return tuple(entry["caption"] for entry in entries)


def _own_annotations(path: Path, text: bytes) -> tuple[tuple[int, int], dict[int, list[int]]]:
    """Width and height, and region id -> whole XYWH box, of one image's own file."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise corrupt(path, "", f"not readable ({error})", IMAGE_FORM) from None
    image = content.get("image") if isinstance(content, dict) else None
    annotations = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(image, dict) or not isinstance(annotations, list):
        raise corrupt(path, "", "no image or no annotations", IMAGE_FORM)
    size_wh = image.get("width"), image.get("height")
    boxes: dict[int, list[int]] = {}
    for i, annotation in enumerate(annotations):
        boxes.update([_region(annotation, path, f"annotations[{i}]")])
    return _checked_size(size_wh, path, "image"), boxes


def _table_annotations(
    table: Path, pairs: list[tuple[_Row, _Row | None]]
) -> tuple[tuple[int, int], dict[int, list[int]]]:
    """The same from the lines of an annotation table; the size is that of the first mask."""
    path = table.parent.parent / "annotations" / table.name
    boxes: dict[int, list[int]] = {}
    size_wh: tuple[Any, Any] = None, None
    for row, other in pairs:
        assert other is not None, "a table has a partner for all lines or for none"
        where = f"line {other.line:,}"
        _, boxes[row.region_id] = _region(other.value, path, where)
        segmentation = other.value.get("segmentation")
        size = segmentation.get("size") if isinstance(segmentation, dict) else None
        if isinstance(size, list) and len(size) == 2:
            size_wh = size[1], size[0]
    return _checked_size(size_wh, path, where), boxes


def _region(annotation: Any, path: Path, where: str) -> tuple[int, list[int]]:
    box = whole_box(annotation.get("bbox")) if isinstance(annotation, dict) else None
    if box is None or not is_id(annotation.get("id")):
        raise corrupt(path, where, "no bbox or no id", REGION_FORM)
    return annotation["id"], box


def _checked_size(size_wh: tuple[Any, Any], path: Path, where: str) -> tuple[int, int]:
    width, height = size_wh
    if not (is_side(width) and is_side(height)):
        raise corrupt(path, where, f"the size {width} x {height}", IMAGE_FORM)
    return width, height
