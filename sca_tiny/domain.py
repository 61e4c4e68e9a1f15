"""The certainty of a model in its own domain: the bound that tells other images from it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from sca_batch.boxes import to_model_frame
from sca_batch.images.pixels import preprocess
from sca_batch.model.config import Domain
from sca_batch.model.sca import ScaModel
from sca_batch.regions.automatic import propose_regions
from sca_batch.regions.settings import AutomaticMaskSettings
from sca_tiny.scenes.compose import Scene

__all__ = ["AUTOMATIC_MASKS", "image_logprob", "measure_domain"]

SHARE_BELOW = 0.03  # three scenes in a hundred are taken for something else
ELSEWHERE = "xk-huang/segment-caption-anything-gpt2_large-vg"
NAME = "composed scenes of pictograms"
# A small SAM knows that its masks are not SAM's: few have a predicted IoU of 0.88. Objects of a
# scene are seldom too small for 14 points a side. On 24 validation scenes (114 objects) these
# thresholds find 0.90 of the objects at an IoU of 0.5 with 17 regions a scene; a predicted IoU of
# 0.6 finds 0.84 with 13, and 0.7 finds 0.73 with 9.
AUTOMATIC_MASKS = {"points_per_side": 14, "pred_iou_thresh": 0.5, "stability_score_thresh": 0.9}
COARSE = 12  # points a side: enough regions for a mean
NUM_BEAMS = 3  # the command's default


def measure_domain(model: ScaModel, scenes: Iterable[Scene]) -> Domain:
    """The bound that all but three in a hundred of these scenes keep.

    `scenes` are new to the model and of its domain; they are captioned as `sca caption` does it,
    from automatic masks.
    """
    found = [image_logprob(model, scene.image) for scene in scenes]
    known = [value for value in found if value is not None]
    least = float(np.quantile(known, SHARE_BELOW)) if known else float("-inf")
    return Domain(NAME, round(least, 3), SHARE_BELOW, ELSEWHERE)


@torch.inference_mode()
def image_logprob(model: ScaModel, rgb_HW3: np.ndarray) -> float | None:
    """The mean log-probability of an image's captions in nats per token; None without a region."""
    settings = AutomaticMaskSettings.for_model(model.config, points_per_side=COARSE)
    proposals = propose_regions(model, rgb_HW3, None, settings)
    if not proposals:
        return None
    size, size_hw = model.config.image_size, (rgb_HW3.shape[0], rgb_HW3.shape[1])
    boxes = np.array([proposal.region.box_xyxy for proposal in proposals], np.float64)
    pixels = torch.from_numpy(preprocess(rgb_HW3, size))[None]
    boxes_R4 = torch.from_numpy(to_model_frame(boxes, size_hw, size))
    embedding = model.encode_image(pixels.to(model.device))
    queries = model.region_queries(embedding, boxes_R4=boxes_R4.to(model.device)).queries
    found = model.generate(queries, num_beams=NUM_BEAMS)
    return float(np.mean([heads[0][0].logprob for heads in found]))
