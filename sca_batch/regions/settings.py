"""Settings of regions: which are proposed, and which of those are kept. No model is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Literal

from sca_batch.errors import ScaError
from sca_batch.options import check_options, option

if TYPE_CHECKING:
    from sca_batch.model.config import ConfigFile

__all__ = ["AutomaticMaskSettings", "RegionLimits", "RegionSettings"]


@dataclass(frozen=True, slots=True)
class AutomaticMaskSettings:
    """The options of SAM's generator, under its names and with its defaults.

    Raises:
        ScaError: for a value that makes no sense, named as the command line spells it.
    """

    points_per_side: int = option(
        32,
        "Points on each side of the grid over the image. A model may have its own defaults for "
        "these options: `sca model info`. sca-tiny does.",
        content=True,
        least=1,
    )
    points_per_batch: int = option(64, "Grid points.", least=1, group="Speed")
    pred_iou_thresh: float = option(0.88, "Least IoU that SAM predicts for a mask.", content=True)
    stability_score_thresh: float = option(
        0.95, "Least stability when the cut-off moves.", content=True
    )
    stability_score_offset: float = option(
        1.0, "How far it moves, in logits.", content=True, least=0
    )
    box_nms_thresh: float = option(
        0.7, "Box IoU above which the lesser mask is dropped.", content=True
    )
    crop_n_layers: int = option(
        0, "Look again at crops: layer n has 4^n of them.", content=True, least=0
    )
    crop_nms_thresh: float = option(0.7, "As --box-nms-thresh, between crops.", content=True)
    crop_overlap_ratio: float = option(
        512 / 1500, "How much crops of the first layer overlap.", content=True, shown="512/1500"
    )
    crop_n_points_downscale_factor: int = option(
        1, "Fewer points per side, layer by layer.", content=True, least=1
    )
    min_mask_region_area: int = option(
        0, "Fill holes and drop islands below this many pixels.", content=True, least=0
    )

    @classmethod
    def for_model(cls, config: ConfigFile, **options: float) -> AutomaticMaskSettings:
        """These options, else what the model says of itself, else SAM's defaults.

        Raises:
            ScaError: the model names an option that SAM's generator does not have, or a bad value.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(config.automatic_masks.keys() - known)
        if unknown:
            raise ScaError(
                f"config.json: automatic_masks names {unknown[0]!r}; expected some of "
                f"{', '.join(sorted(known))}"
            )
        return cls(**{**config.automatic_masks, **options})  # type: ignore[arg-type]

    def __post_init__(self) -> None:
        check_options(self)
        for name in ("box_nms_thresh", "crop_nms_thresh"):
            if not 0 <= getattr(self, name) <= 1:
                raise _unusable(name, getattr(self, name), "an IoU between 0 and 1")
        if not 0 <= self.crop_overlap_ratio < 1:
            raise _unusable(
                "crop_overlap_ratio", self.crop_overlap_ratio, "a fraction from 0 to below 1"
            )
        if self.points_per_side < self.crop_n_points_downscale_factor**self.crop_n_layers:
            raise ScaError(
                f"--points-per-side {self.points_per_side} leaves no points in crop layer "
                f"{self.crop_n_layers} when divided by --crop-n-points-downscale-factor "
                f"{self.crop_n_points_downscale_factor} in each layer; expected at least "
                f"{self.crop_n_points_downscale_factor**self.crop_n_layers}"
            )


def _unusable(name: str, value: object, expected: str) -> ScaError:
    return ScaError(f"--{name.replace('_', '-')} is {value}; expected {expected}")


@dataclass(frozen=True, slots=True)
class RegionLimits:
    """Limits of proposed regions; None is no limit.

    An area below 1 is a fraction of the image, any other a number of pixels. Both ends are kept.

    Raises:
        ScaError: for limits that make no sense.
    """

    min_area: float | None = option(
        None, "Smallest proposed mask: pixels, or a fraction below 1.", content=True
    )
    max_area: float | None = option(
        None, "Largest proposed mask: pixels, or a fraction below 1.", content=True
    )
    max_regions: int | None = option(
        None, "Proposed per image: those with the best masks.", content=True, least=1
    )

    def __post_init__(self) -> None:
        for name, area in (("--min-area", self.min_area), ("--max-area", self.max_area)):
            if area is not None and not (math.isfinite(area) and area >= 0):
                raise ScaError(
                    f"{name} is {area}; expected pixels, or a fraction of the image below 1"
                )
        check_options(self)
        both = [area for area in (self.min_area, self.max_area) if area is not None]
        # A fraction and a number of pixels can only be compared once an image is known.
        if len(both) == 2 and (both[0] < 1) == (both[1] < 1) and both[0] > both[1]:
            raise ScaError(f"--min-area {both[0]} is above --max-area {both[1]}")


@dataclass(frozen=True, slots=True)
class RegionSettings:
    """The choice of regions; records depend on all of it.

    `source` None takes an image's given regions where the manifest has a list and proposes them
    elsewhere; "auto" always proposes; "given" takes the list and proposes nothing. `limits` and
    `min_caption_score` concern proposed regions: given ones are kept, in order.
    """

    source: Literal["auto", "given"] | None = option(
        None,
        "auto proposes regions everywhere; given takes the manifest's only.",
        content=True,
        name="regions",
        shown="given where the manifest has a list, auto elsewhere",
    )
    limits: RegionLimits = field(default_factory=RegionLimits)
    min_caption_score: float = option(
        0.0,
        "Leave out proposed regions whose caption is less probable (exp of its mean "
        "log-probability).",
        content=True,
        least=0,
        most=1,
        group="Captions",
    )
    automatic: AutomaticMaskSettings = field(default_factory=AutomaticMaskSettings)

    def __post_init__(self) -> None:
        check_options(self)
