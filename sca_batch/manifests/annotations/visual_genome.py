"""Visual Genome's region descriptions (v1.2) under the splits of dense captioning."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

from sca_batch.manifests.annotations.sample import (
    AnnotatedImage,
    Tally,
    checked_size,
    find_file,
    is_id,
    make_regions,
    require_split,
    whole_box,
)
from sca_batch.manifests.json_stream import corrupt, stream_array, stream_members
from sca_batch.manifests.request import Request

__all__ = ["read_visual_genome"]

SPLITS = ("train", "val", "test")
IMAGE_FORM = '{"image_id": 1, "url": ".../VG_100K_2/1.jpg", "width": 800, "height": 600, ...}'
REGION_FORM = (
    '{"region_id": 1382, "phrase": "...", "x": 421, "y": 57, "width": 82, "height": 139, ...}'
)
SPLIT_FORM = '{"train": [1, 2, ...], "val": [...], "test": [...]}'
FOLDER = re.compile(r"/(VG_100K(?:_2)?)/[^/]+$")


def read_visual_genome(request: Request, tally: Tally) -> Iterator[AnnotatedImage]:
    """Images in the order of the split, regions in the order of the file, phrases as they are.

    Reads `image_data.json`, `region_descriptions.json` and `densecap_splits.json`, below the root
    or its folder `annotations`.

    Raises:
        ScaError: for a file that is missing, cut off, or not Visual Genome's.
    """
    split = require_split(request, SPLITS)
    if request.annotations is not None and not request.annotations.is_dir():
        raise corrupt(request.annotations, "", "not a folder", "the folder of VG's three files")
    paths = [
        find_file(request, [f"annotations/{name}", name], f"{name} of Visual Genome")
        for name in ("densecap_splits.json", "image_data.json", "region_descriptions.json")
    ]
    ids = _split(paths[0], split)
    sizes = _images(paths[1], set(ids), request)
    regions = _regions(paths[2], set(ids), request, tally)
    bases = [request.images] if request.images else [request.root, request.root / "images"]
    for image_id in ids:
        if image_id not in sizes:
            tally.dropped["images that image_data.json does not list"] += 1
            continue
        folder, width, height = sizes[image_id]
        packed = regions.pop(image_id, None)
        if packed is None:
            tally.dropped["images without region descriptions"] += 1
            continue
        boxes, phrases, region_ids = json.loads(zlib.decompress(packed))
        candidates = [base / folder / f"{image_id}.jpg" for base in bases]
        found = make_regions(boxes, [(phrase,) for phrase in phrases], region_ids, tally)
        yield AnnotatedImage(image_id, tuple(candidates), width, height, found)


def _split(path: Path, split: str) -> list[int]:
    ids: dict[int, None] = {}
    for _, i, image_id in stream_members(path, (split,), expected=SPLIT_FORM):
        if not is_id(image_id) or image_id in ids:
            again = "stands there twice" if image_id in ids else "is no image's id"
            raise corrupt(path, f"{split}[{i}]", f"{image_id!r} {again}", SPLIT_FORM)
        ids[image_id] = None
    return list(ids)


def _images(path: Path, wanted: set[int], request: Request) -> dict[int, tuple[str, int, int]]:
    """Image id -> the folder its file lies in, width, height."""
    images = {}
    for i, entry in stream_array(path, expected=f"[{IMAGE_FORM}]", progress=request.progress):
        if not isinstance(entry, dict) or not is_id(
            image_id := entry.get("image_id", entry.get("id"))
        ):
            raise corrupt(path, f"entry {i}", "no image_id", IMAGE_FORM)
        if image_id not in wanted:
            continue
        url = entry.get("url")
        folder = FOLDER.search(url) if isinstance(url, str) else None
        if folder is None:
            raise corrupt(path, f"entry {i}", f"the url {url!r}", IMAGE_FORM)
        images[image_id] = folder[1], *checked_size(entry, path, f"entry {i}", IMAGE_FORM)
    return images


def _regions(path: Path, wanted: set[int], request: Request, tally: Tally) -> dict[int, bytes]:
    """Image id -> its regions, packed: the split's order is not the file's, and there are 3.7 M."""
    packed: dict[int, bytes] = {}
    form = f'[{{"id": 1, "regions": [{REGION_FORM}]}}]'
    for i, entry in stream_array(path, expected=form, progress=request.progress):
        of_image = entry if isinstance(entry, dict) else {}
        image_id, regions = of_image.get("id", of_image.get("image_id")), of_image.get("regions")
        if not is_id(image_id) or not isinstance(regions, list):
            raise corrupt(path, f"entry {i}", "no id or no regions", form)
        if image_id not in wanted or not regions:
            continue
        if image_id in packed:
            raise corrupt(path, f"entry {i}", f"image {image_id} a second time", form)
        boxes, phrases, ids = [], [], []
        for j, region in enumerate(regions):
            box, phrase, region_id = _region(region, path, f"entry {i}, regions[{j}]")
            boxes.append(box)
            phrases.append(phrase)
            ids.append(region_id)
        packed[image_id] = zlib.compress(json.dumps([boxes, phrases, ids]).encode(), 1)
    return packed


def _region(region: object, path: Path, where: str) -> tuple[list[int], str, int]:
    if not isinstance(region, dict):
        raise corrupt(path, where, "not an object", REGION_FORM)
    box = whole_box([region.get(side) for side in ("x", "y", "width", "height")])
    region_id, phrase = region.get("region_id", region.get("id")), region.get("phrase")
    if box is None or not isinstance(phrase, str) or not is_id(region_id):
        raise corrupt(path, where, "no box, no phrase or no region_id", REGION_FORM)
    return box, phrase, region_id
