"""Which regions of an image are worth a caption: by area, and by SAM's estimate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sca_batch.errors import ScaError
from sca_batch.regions.proposal import Proposal

__all__ = ["RegionLimits"]


@dataclass(frozen=True, slots=True)
class RegionLimits:
    """`--min-area`, `--max-area` and `--max-regions`; None is no limit.

    An area below 1 is a fraction of the image, any other a number of pixels. Both ends are kept.

    Raises:
        ScaError: for limits that make no sense.
    """

    min_area: float | None = None
    max_area: float | None = None
    max_regions: int | None = None

    def __post_init__(self) -> None:
        for name, area in (("--min-area", self.min_area), ("--max-area", self.max_area)):
            if area is not None and not (math.isfinite(area) and area >= 0):
                raise ScaError(
                    f"{name} is {area}; expected pixels, or a fraction of the image below 1"
                )
        both = [area for area in (self.min_area, self.max_area) if area is not None]
        # A fraction and a number of pixels can only be compared once an image is known.
        if len(both) == 2 and (both[0] < 1) == (both[1] < 1) and both[0] > both[1]:
            raise ScaError(f"--min-area {both[0]} is above --max-area {both[1]}")
        if self.max_regions is not None and self.max_regions < 1:
            raise ScaError(f"--max-regions is {self.max_regions}; expected at least 1")

    def select(self, proposals: Sequence[Proposal], size_hw: tuple[int, int]) -> list[Proposal]:
        """Those within the limits, in their order; too many lose the lowest predicted IoU.

        Equal estimates keep the earlier one; a region without an estimate comes last.
        """
        least, most = (_pixels(area, size_hw) for area in (self.min_area, self.max_area))
        kept = [
            p
            for p in proposals
            if (least is None or p.region.area >= least) and (most is None or p.region.area <= most)
        ]
        if self.max_regions is None or len(kept) <= self.max_regions:
            return kept
        best = sorted(range(len(kept)), key=lambda i: -_estimate(kept[i]))[: self.max_regions]
        return [kept[i] for i in sorted(best)]


def _pixels(area: float | None, size_hw: tuple[int, int]) -> float | None:
    return area * size_hw[0] * size_hw[1] if area is not None and area < 1 else area


def _estimate(proposal: Proposal) -> float:
    iou = proposal.region.predicted_iou
    return -math.inf if iou is None else iou
