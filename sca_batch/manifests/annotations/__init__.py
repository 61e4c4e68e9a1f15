"""Readers of other people's annotation files; each gives images for an ordinary manifest."""

from __future__ import annotations

from sca_batch.manifests.annotations.coco_instances import read_coco, read_objects365, read_v3det
from sca_batch.manifests.annotations.grit_vg import read_grit_vg
from sca_batch.manifests.annotations.refcoco import REFER_READERS
from sca_batch.manifests.annotations.sa1b import read_sa1b
from sca_batch.manifests.annotations.sample import Reader
from sca_batch.manifests.annotations.visual_genome import read_visual_genome

__all__ = ["SOURCES"]

# What `sca manifest build --from` takes.
SOURCES: dict[str, Reader] = {
    "vg": read_visual_genome,
    "grit-vg": read_grit_vg,
    **REFER_READERS,
    "coco": read_coco,
    "objects365": read_objects365,
    "v3det": read_v3det,
    "sa1b": read_sa1b,
}
