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
    """Pixels, uint8 (H, W, 3), and SAM's embedding of them, (1, D, h, w), if someone needs it."""

    rgb: UInt8Image
    embedding: Tensor | None

    @property
    def size_hw(self) -> tuple[int, int]:
        return self.rgb.shape[0], self.rgb.shape[1]


class Captioner(Protocol):
    """Captions of a batch of images' regions, in their order, `at_once` regions in memory.

    The pipeline fills batches with regions from as many images as it takes, and asks for fewer at
    once where memory runs out. A captioner whose `needs_embedding` is False gets images without
    one where nobody else needs it; `needs_crop_embeddings` keeps that of the crop in which a
    region was found with the region.
    """

    needs_embedding: bool
    needs_crop_embeddings: bool

    def caption(
        self, images: Sequence[EncodedImage], regions: Sequence[Sequence[Proposal]], at_once: int
    ) -> list[list[Caption]]: ...
