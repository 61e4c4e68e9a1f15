"""The plug point of captioners: what turns regions of images into sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from sca_batch.images.pixels import UInt8Image
from sca_batch.records import Caption
from sca_batch.regions.proposal import Proposal

__all__ = ["Captioner", "EncodedImage"]


@dataclass(frozen=True, slots=True, eq=False)
class EncodedImage:
    """An image of a batch: its size, and what its captioner needs of it.

    `embedding` is SAM's, (1, D, h, w); `rgb` the pixels, uint8 (H, W, 3).
    """

    size_hw: tuple[int, int]
    embedding: Tensor | None
    rgb: UInt8Image | None = None


class Captioner(Protocol):
    """Captions of a batch of images' regions, in their order, `at_once` regions in memory.

    The pipeline fills batches with regions from as many images as it takes, and asks for fewer at
    once where memory runs out. Images come without what a captioner does not need: `needs_pixels`
    keeps them in memory until then, `needs_embedding` has images encoded, `needs_crop_embeddings`
    keeps that of the crop in which a region was found with the region.
    """

    needs_pixels: bool
    needs_embedding: bool
    needs_crop_embeddings: bool

    def caption(
        self, images: Sequence[EncodedImage], regions: Sequence[Sequence[Proposal]], at_once: int
    ) -> list[list[Caption]]: ...
