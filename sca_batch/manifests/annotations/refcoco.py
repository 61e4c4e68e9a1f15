"""RefCOCO, RefCOCO+, RefCOCOg and RefClef in the refer format: a pickle of refs, and instances."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sca_batch.errors import ScaError
from sca_batch.manifests.annotations.refer_pickle import Ref, read_refs
from sca_batch.manifests.annotations.sample import (
    AnnotatedImage,
    Reader,
    Tally,
    checked_box,
    find_file,
    is_side,
    make_regions,
)
from sca_batch.manifests.json_stream import corrupt, stream_members
from sca_batch.manifests.request import Request

__all__ = ["REFER_READERS", "in_split"]

COCO_FOLDERS = ("images/mscoco/images/train2014", "images/train2014", "train2014")
SAIAPR_FOLDERS = ("images/saiapr_tc-12", "saiapr_tc-12")
FORM = '{"images": [...], "annotations": [{"id": 1, "bbox": [x, y, width, height], ...}]}'


@dataclass(frozen=True, slots=True)
class ReferFacts:
    """The makers of a data set's splits, the first by default, and the folders of its images."""

    name: str
    split_by: tuple[str, ...]
    images: tuple[str, ...]


# RefCOCOg's published numbers are google's split, also where their configuration says umd.
FACTS = (
    ReferFacts("refcoco", ("unc", "google"), COCO_FOLDERS),
    ReferFacts("refcoco+", ("unc",), COCO_FOLDERS),
    ReferFacts("refcocog", ("google", "umd"), COCO_FOLDERS),
    ReferFacts("refclef", ("unc", "berkeley"), SAIAPR_FOLDERS),
)


def read_refer(request: Request, tally: Tally, *, facts: ReferFacts) -> Iterator[AnnotatedImage]:
    """Images of a split, sorted by id, one region per ref with all its sentences.

    Under the protocol `published` an image brings all its refs, whichever split they are in, as
    the published scores were computed; under `clean` only those of the split.

    Raises:
        ScaError: for a file that is missing or broken, and a split that no ref is in.
    """
    split_by = request.split_by or facts.split_by[0]
    if split_by not in facts.split_by:
        raise ScaError(
            f"{facts.name} was not split by {split_by!r}; expected --split-by "
            f"{' or '.join(facts.split_by)}"
        )
    names = [f"{facts.name}/refs({split_by}).p", f"refs({split_by}).p"]
    path = find_file(request, names, f"refs of {facts.name}, split by {split_by}")
    refs = read_refs(path)
    chosen = [ref for ref in refs if in_split(ref["split"], request.split)]
    if not chosen:
        there = ", ".join(sorted({ref["split"] for ref in refs}))
        raise ScaError(f"{path}: no refs of the split {request.split!r}; expected --split {there}")
    of_image: dict[int, list[Ref]] = {ref["image_id"]: [] for ref in chosen}
    for ref in chosen if request.ref_protocol == "clean" else refs:
        if ref["image_id"] in of_image:
            of_image[ref["image_id"]].append(ref)
    _count_others(refs, of_image, request, tally)
    boxes, images = _instances(path.with_name("instances.json"), of_image, request)
    bases = _bases(request, facts, path.parent)
    for image_id in sorted(of_image):
        if image_id not in images:
            tally.dropped["images that instances.json does not list"] += 1
            continue
        name, width, height = images[image_id]
        candidates = tuple(base / name for base in bases)
        kept = [ref for ref in of_image[image_id] if ref["ann_id"] in boxes]
        if len(kept) < len(of_image[image_id]):
            lost = len(of_image[image_id]) - len(kept)
            tally.dropped["regions whose annotation instances.json does not list"] += lost
        regions = make_regions(
            [boxes[ref["ann_id"]] for ref in kept],
            [tuple(sentence["sent"] for sentence in ref["sentences"]) for ref in kept],
            [ref["ref_id"] for ref in kept],
            tally,
        )
        split_of = {str(ref["ref_id"]): ref["split"] for ref in kept}
        yield AnnotatedImage(
            image_id,
            candidates,
            width,
            height,
            regions,
            {
                "split_by": split_by,
                "ref_protocol": request.ref_protocol,
                "ref_splits": [split_of[region.region_id] for region in regions],
            },
        )


def in_split(split: str, wanted: str) -> bool:
    """True for a ref's split that is the wanted one, by the rules of the refer format.

    RefClef has refs in two test sets at once: testAB belongs to testA and to testB. `test` means
    any of them.
    """
    if wanted in ("testA", "testB", "testC"):
        return wanted[-1] in split
    if wanted == "test":
        return "test" in split
    return split == wanted


def _count_others(
    refs: list[Ref], of_image: dict[int, list[Ref]], request: Request, tally: Tally
) -> None:
    others = sum(
        ref["image_id"] in of_image and not in_split(ref["split"], request.split) for ref in refs
    )
    if others and request.ref_protocol == "clean":
        tally.dropped["regions of other splits on the same images"] += others
    elif others:
        tally.noted["regions of other splits (--ref-protocol clean leaves them out)"] += others


def _instances(
    path: Path, of_image: dict[int, list[Ref]], request: Request
) -> tuple[dict[int | str, list[int]], dict[int, tuple[str, int, int]]]:
    """Annotation id -> whole XYWH box, and image id -> file name, width, height."""
    if not path.is_file():
        raise ScaError(f"{path}: no such file; expected it beside the refs, as it was unpacked")
    wanted = {ref["ann_id"] for refs in of_image.values() for ref in refs}
    boxes: dict[int | str, list[int]] = {}
    images: dict[int, tuple[str, int, int]] = {}
    keys = ("images", "annotations")
    for key, i, entry in stream_members(path, keys, expected=FORM, progress=request.progress):
        where = f"{key}[{i}]"
        if not isinstance(entry, dict) or not isinstance(entry_id := entry.get("id"), int | str):
            raise corrupt(path, where, "no id", FORM)
        if key == "annotations" and entry_id in wanted:
            boxes[entry_id] = checked_box(entry, path, where, FORM)
        elif key == "images" and isinstance(entry_id, int) and entry_id in of_image:
            name, width, height = entry.get("file_name"), entry.get("width"), entry.get("height")
            if not (isinstance(name, str) and name and is_side(width) and is_side(height)):
                raise corrupt(path, where, "no file_name, width or height", FORM)
            images[entry_id] = name, width, height
    return boxes, images


def _bases(request: Request, facts: ReferFacts, folder: Path) -> list[Path]:
    if request.images is not None:
        return [request.images]
    roots = dict.fromkeys((request.root, folder, folder.parent))
    return [root / name for root in roots for name in facts.images]


REFER_READERS: dict[str, Reader] = {facts.name: partial(read_refer, facts=facts) for facts in FACTS}
