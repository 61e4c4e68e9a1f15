"""Readers of other people's annotation files; each gives images for an ordinary manifest."""

from __future__ import annotations

from sca_batch.manifests.annotations.coco import COCO_READERS
from sca_batch.manifests.annotations.refcoco import REFER_READERS
from sca_batch.manifests.annotations.sa1b import read_sa1b
from sca_batch.manifests.annotations.sample import Reader
from sca_batch.manifests.annotations.visual_genome import read_visual_genome

__all__ = ["SOURCES"]

# What `sca manifest build --from` takes.
SOURCES: dict[str, Reader] = {
    "vg": read_visual_genome,
    "grit-vg": COCO_READERS["grit-vg"],
    **REFER_READERS,
    **COCO_READERS,
    "sa1b": read_sa1b,
}
