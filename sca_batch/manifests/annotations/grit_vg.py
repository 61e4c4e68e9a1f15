"""Visual Genome as GRiT prepared it: COCO-like files with a `caption` per region."""

from __future__ import annotations

from collections.abc import Iterator

from sca_batch.manifests.annotations.coco_table import read_coco_table
from sca_batch.manifests.annotations.sample import (
    AnnotatedImage,
    Request,
    Tally,
    find_file,
    require_split,
)

__all__ = ["read_grit_vg"]

FOLDERS = ("", "images", "VG_100K", "VG_100K_2", "images/VG_100K", "images/VG_100K_2")


def read_grit_vg(request: Request, tally: Tally) -> Iterator[AnnotatedImage]:
    """GRiT's `train.json` or `test.json`, texts as it processed them, in the file's order.

    Its training file lacks two images of the densecap split, 1650 and 1684.
    """
    split = require_split(request, ("train", "test"))
    path = find_file(request, [f"{split}.json", f"annotations/{split}.json"], "file of GRiT's")
    bases = [request.images] if request.images else [request.root / name for name in FOLDERS]
    for image in read_coco_table(path, "caption", tally, request.progress):
        if not image.regions:
            tally.dropped["images without annotations"] += 1
            continue
        candidates = tuple(base / image.file_name for base in bases)
        yield AnnotatedImage(image.image_id, candidates, image.width, image.height, image.regions)
