"""What records depend on, and how work is grouped."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sca_batch.regions.automatic import AutomaticMaskSettings
from sca_batch.regions.select import RegionLimits

__all__ = ["BatchSettings", "RegionSettings"]


@dataclass(frozen=True, slots=True)
class RegionSettings:
    """Which regions are captioned; records depend on all of it.

    `source` None takes an image's given regions where the manifest has a list and proposes them
    elsewhere; "auto" always proposes; "given" takes the list and proposes nothing. `limits` and
    `min_caption_score` concern proposed regions: given ones are kept, in order.
    """

    source: Literal["auto", "given"] | None = None
    automatic: AutomaticMaskSettings = field(default_factory=AutomaticMaskSettings)
    limits: RegionLimits = field(default_factory=RegionLimits)
    keep_crop_embeddings: bool = False  # for captions prompted by grid points
    min_caption_score: float = 0.0


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """How work is grouped; speed and memory depend on it, records do not."""

    encoder_batch: int = 1
    caption_batch: int = 32
    mask_memory_bytes: int = 1 << 30
    decode_threads: int = 1
    decode_ahead: int = 4
    decode_ahead_bytes: int = 1 << 29
