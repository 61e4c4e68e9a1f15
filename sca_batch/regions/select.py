"""The regions of an image that are worth a caption: by area, and by SAM's estimate."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sca_batch.regions.proposal import Proposal
from sca_batch.regions.settings import RegionLimits

__all__ = ["select_regions"]


def select_regions(
    proposals: Sequence[Proposal], limits: RegionLimits, size_hw: tuple[int, int]
) -> list[Proposal]:
    """Proposals within the limits, in their order; too many lose the lowest predicted IoU.

    Equal estimates keep the earlier one; a region without an estimate comes last.
    """
    least, most = (_pixels(area, size_hw) for area in (limits.min_area, limits.max_area))
    kept = [
        p
        for p in proposals
        if (least is None or p.region.area >= least) and (most is None or p.region.area <= most)
    ]
    if limits.max_regions is None or len(kept) <= limits.max_regions:
        return kept
    best = sorted(range(len(kept)), key=lambda i: -_estimate(kept[i]))[: limits.max_regions]
    return [kept[i] for i in sorted(best)]


def _pixels(area: float | None, size_hw: tuple[int, int]) -> float | None:
    return area * size_hw[0] * size_hw[1] if area is not None and area < 1 else area


def _estimate(proposal: Proposal) -> float:
    iou = proposal.region.predicted_iou
    return -math.inf if iou is None else iou
