"""COCO 2017, Objects365 v2 and V3Det: instances whose phrase is the name of their category."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from sca_batch.manifests.annotations.coco_table import read_coco_table
from sca_batch.manifests.annotations.sample import (
    AnnotatedImage,
    Request,
    Tally,
    find_file,
    require_split,
)

__all__ = ["read_coco", "read_objects365", "read_v3det"]


@dataclass(frozen=True, slots=True)
class InstanceFacts:
    """Where a data set keeps its files; `{split}`, `{name}` and `{tail}` are filled in.

    `{name}` is the file's `file_name`, `{tail}` its last two parts.
    """

    splits: tuple[str, ...]
    annotations: tuple[str, ...]
    images: tuple[str, ...]


COCO = InstanceFacts(
    splits=("train", "val"),
    annotations=("annotations/instances_{split}2017.json", "instances_{split}2017.json"),
    images=("{split}2017/{name}", "images/{split}2017/{name}"),
)
OBJECTS365 = InstanceFacts(
    splits=("train", "val"),
    annotations=(
        "objects365v2_{split}_fixann.json",
        "annotations/objects365v2_{split}_fixann.json",
        "objects365v2_{split}.json",
        "annotations/objects365v2_{split}.json",
    ),
    # The file says images/v1/patch8/x.jpg; the archives unpack to patch8/x.jpg.
    images=("{split}/{name}", "{split}/{tail}", "images/{split}/{tail}"),
)
V3DET = InstanceFacts(
    splits=("train", "val"),
    annotations=("annotations/v3det_2023_v1_{split}.json", "v3det_2023_v1_{split}.json"),
    images=("{name}", "images/{tail}"),
)


def read_coco(request: Request, tally: Tally) -> Iterator[AnnotatedImage]:
    """COCO 2017's instances, crowds included."""
    return _read(COCO, request, tally)


def read_objects365(request: Request, tally: Tally) -> Iterator[AnnotatedImage]:
    """Objects365 v2. Its training file is the corrected one, `objects365v2_train_fixann.json`."""
    return _read(OBJECTS365, request, tally)


def read_v3det(request: Request, tally: Tally) -> Iterator[AnnotatedImage]:
    """V3Det, version 1; six of its listed images do not exist and are counted as missing."""
    return _read(V3DET, request, tally)


def _read(facts: InstanceFacts, request: Request, tally: Tally) -> Iterator[AnnotatedImage]:
    split = require_split(request, facts.splits)
    names = [name.format(split=split) for name in facts.annotations]
    path = find_file(request, names, f"annotations of the split {split}")
    for image in read_coco_table(path, "category", tally, request.progress):
        if not image.regions:
            tally.dropped["images without annotations"] += 1
            continue
        parts = PurePosixPath(image.file_name).parts
        tail = "/".join(parts[-2:])
        if request.images is not None:
            candidates = [request.images / image.file_name, request.images / tail]
        else:
            candidates = [
                request.root / place.format(split=split, name=image.file_name, tail=tail)
                for place in facts.images
            ]
        yield AnnotatedImage(
            image.image_id,
            tuple(dict.fromkeys(candidates)),
            image.width,
            image.height,
            image.regions,
        )
