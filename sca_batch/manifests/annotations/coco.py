"""Data sets in COCO's format: COCO 2017, Objects365 v2, V3Det, and Visual Genome as GRiT has it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from sca_batch.manifests.annotations.sample import (
    AnnotatedImage,
    Reader,
    Tally,
    checked_box,
    checked_size,
    find_file,
    is_id,
    make_regions,
    require_split,
)
from sca_batch.manifests.coco import read_coco
from sca_batch.manifests.json_stream import corrupt
from sca_batch.manifests.request import Request
from sca_batch.records import JsonObject

__all__ = ["COCO_READERS"]

FORM = '{"images": [...], "annotations": [...], "categories": [...]}'
BOX_FORM = '"bbox": [x, y, width, height] in pixels'


@dataclass(frozen=True, slots=True)
class CocoFacts:
    """The files of a data set; `{split}`, `{name}` and `{tail}` are filled in.

    `{name}` is the file's `file_name`, `{tail}` its last two parts. A region's phrase is its
    category's name as it is, or with `captions` its `caption`.
    """

    annotations: tuple[str, ...]
    images: tuple[str, ...]
    splits: tuple[str, ...] = ("train", "val")
    captions: bool = False
    what: str = "annotations of the split {split}"


FACTS = {
    "coco": CocoFacts(
        ("annotations/instances_{split}2017.json", "instances_{split}2017.json"),
        ("{split}2017/{name}", "images/{split}2017/{name}"),
    ),
    "objects365": CocoFacts(
        # Of the training file there is a corrected one.
        (
            "objects365v2_{split}_fixann.json",
            "annotations/objects365v2_{split}_fixann.json",
            "objects365v2_{split}.json",
            "annotations/objects365v2_{split}.json",
        ),
        # The file says images/v1/patch8/x.jpg; the archives unpack to patch8/x.jpg.
        ("{split}/{name}", "{split}/{tail}", "images/{split}/{tail}"),
    ),
    # Six images that version 1 lists do not exist and are counted as missing.
    "v3det": CocoFacts(
        ("annotations/v3det_2023_v1_{split}.json", "v3det_2023_v1_{split}.json"),
        ("{name}", "images/{tail}"),
    ),
    # Texts as GRiT processed them; its training file lacks two images of the densecap split, 1650
    # and 1684.
    "grit-vg": CocoFacts(
        ("{split}.json", "annotations/{split}.json"),
        (
            "{name}", "images/{name}", "VG_100K/{name}", "VG_100K_2/{name}",
            "images/VG_100K/{name}", "images/VG_100K_2/{name}",
        ),
        splits=("train", "test"),
        captions=True,
        what="file of GRiT's",
    ),
}  # fmt: skip


def read_instances(request: Request, tally: Tally, *, facts: CocoFacts) -> Iterator[AnnotatedImage]:
    """Images of a split in the order of `images`; crowds are regions.

    Raises:
        ScaError: naming the entry that is not what COCO's format says.
    """
    split = require_split(request, facts.splits)
    names = [name.format(split=split) for name in facts.annotations]
    path = find_file(request, names, facts.what.format(split=split))
    categories: dict[int, str] = {}
    seen: set[int] = set()

    def image(entry: JsonObject, where: str) -> tuple[int, tuple[int, str, int, int]]:
        form = '{"id": 1, "file_name": "a.jpg", "width": 640, "height": 480}'
        image_id, name = entry.get("id"), entry.get("file_name")
        if not (is_id(image_id) and isinstance(name, str) and name):
            raise corrupt(path, where, "no id or no file_name", form)
        if image_id in seen:
            raise corrupt(path, "images", f"the id {image_id} stands there twice", FORM)
        seen.add(image_id)
        return image_id, (image_id, name, *checked_size(entry, path, where, form))

    def annotation(entry: JsonObject, where: str) -> tuple[int, tuple[int, list[int], int | str]]:
        region_id, image_id = entry.get("id"), entry.get("image_id")
        if not (is_id(region_id) and is_id(image_id)):
            form = '"id" and "image_id", both integers'
            raise corrupt(path, where, "no id or no image_id", form)
        box = checked_box(entry, path, where, BOX_FORM)
        said = entry.get("caption" if facts.captions else "category_id")
        if facts.captions:
            if not isinstance(said, str):
                raise corrupt(path, where, "no caption", "a sentence")
        elif not is_id(said):
            raise corrupt(path, where, "no category_id", "an integer")
        if entry.get("iscrowd"):
            tally.noted["crowd regions"] += 1
        return image_id, (region_id, box, said)

    def category(entry: JsonObject, where: str) -> None:
        category_id, name = entry.get("id"), entry.get("name")
        if not is_id(category_id) or not isinstance(name, str):
            raise corrupt(path, where, "no id or no name", '{"id": 1, "name": "person"}')
        categories[category_id] = name

    others = {} if facts.captions else {"categories": category}
    file = read_coco(path, image, annotation, form=FORM, others=others, progress=request.progress)
    strangers = sum(1 for _ in file.strays())
    if strangers:
        tally.dropped["regions of an image that the file does not list"] += strangers
    for _, (image_id, name, width, height), of_image in file.groups():
        boxes, phrases, ids = [], [], []
        for _, (region_id, box, said) in of_image:
            phrase = categories.get(said) if isinstance(said, int) else said
            if phrase is None:
                tally.dropped["regions of a category that the file does not list"] += 1
                continue
            boxes.append(box)
            phrases.append((phrase,))
            ids.append(region_id)
        regions = make_regions(boxes, phrases, ids, tally)
        if not regions:
            tally.dropped["images without annotations"] += 1
            continue
        candidates = _candidates(request, facts, name)
        yield AnnotatedImage(image_id, candidates, width, height, regions)


def _candidates(request: Request, facts: CocoFacts, name: str) -> tuple[Path, ...]:
    """The files that may be an image's, the likeliest first."""
    tail = "/".join(PurePosixPath(name).parts[-2:])
    if request.images is not None:
        files = [request.images / name, request.images / tail]
    else:
        files = [
            request.root / file.format(split=request.split, name=name, tail=tail)
            for file in facts.images
        ]
    return tuple(dict.fromkeys(files))


COCO_READERS: dict[str, Reader] = {
    name: partial(read_instances, facts=facts) for name, facts in FACTS.items()
}
