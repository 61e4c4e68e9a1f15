"""After training: brings predicted IoU and stability to where automatic masks' thresholds are.

Both changes are folded into the last layers of SAM's heads and leave every mask as it is.
"""

# Shape letters:  R prompts   M masks (4)   Y, X pixels of the square input

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from sca_batch.images import preprocess
from sca_batch.model.sca import ScaModel
from sca_batch.train.scenes import Scene

__all__ = ["Calibration", "calibrate"]

GRID = 8  # points a side, on objects and background as automatic mask generation puts them
LEAST_GUESS = 0.3
LEAST_GUESSES = 200
GOOD_IOU = 0.8
STABLE_SHARE = 0.9  # of good masks that are to pass SAM's default stability threshold of 0.95
STABLE = 0.95


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was folded in: predicted IoU becomes `slope * it + offset`, logits grow by a factor."""

    iou_slope: float
    iou_offset: float
    logit_factor: float


@torch.inference_mode()
def calibrate(model: ScaModel, scenes: Iterable[Scene]) -> Calibration:
    """Fits and folds, on scenes that were neither trained on nor are judged.

    The IoU head learnt an estimate from low-res cells; a line through the true IoU at full
    resolution sets it right. A stability score compares thresholds of plus and minus one, which
    means little for a small mask of small logits: its cells are 4 pixels wide. Larger logits have
    the same zero line.
    """
    guessed: list[Tensor] = []
    true: list[Tensor] = []
    good: list[Tensor] = []
    size = model.config.image_size
    for scene in scenes:
        embedding = model.encode_image(torch.from_numpy(preprocess(scene.image, size))[None])
        steps = (np.arange(GRID) + 0.5) * size / GRID
        points = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 1, 2)
        tokens, features = model.fuse_prompts(embedding, points_RP2=torch.from_numpy(points))
        iou_RM = model.predict_iou(tokens)[:, 1:]
        logits = model.predict_masks(tokens, features)[:, 1:]
        logits_RMYX = nn.functional.interpolate(
            logits, (size, size), mode="bilinear", align_corners=False
        )
        columns_R, rows_R = points[:, 0].astype(int).T
        on_NR = np.asarray(scene.masks[:, rows_R, columns_R])
        truth_RYX = np.asarray(scene.masks[on_NR.argmax(axis=0)])
        truth_RYX[~on_NR.any(axis=0)] = False  # a fancy index makes a copy
        true_RM = _iou(logits_RMYX > 0, torch.from_numpy(truth_RYX)[:, None])
        guessed.append(iou_RM.flatten())
        true.append(true_RM.flatten())
        keep_RM = true_RM >= GOOD_IOU
        good += list(logits_RMYX[keep_RM])[:: max(1, int(keep_RM.sum()) // 20)]
    # Guesses below are mostly of the background, which would bend the line, and never pass.
    x, y = torch.cat(guessed).numpy(), torch.cat(true).numpy()
    near = x > LEAST_GUESS
    if near.sum() < LEAST_GUESSES or not good:
        return Calibration(1.0, 0.0, 1.0)  # hardly trained: nothing to set right
    # A slope far from one would be the noise of a head that cannot rank masks yet.
    slope = float(np.clip(np.polyfit(x[near], y[near], 1)[0], 0.75, 2.0))
    offset = float((y[near] - slope * x[near]).mean())
    factor = next(
        (f for f in (1.0, 2.0, 4.0, 8.0, 16.0) if _stable_share(good, f) >= STABLE_SHARE), 16.0
    )
    head = model.mask_decoder.iou_prediction_head.proj_out
    head.weight.mul_(slope)
    head.bias.mul_(slope).add_(offset)
    for mlp in model.mask_decoder.output_hypernetworks_mlps:
        mlp.proj_out.weight.mul_(factor)
        mlp.proj_out.bias.mul_(factor)
    return Calibration(slope, offset, factor)


def _stable_share(logits: list[Tensor], factor: float) -> float:
    scores = [float((x * factor > 1).sum() / (x * factor > -1).sum().clamp(min=1)) for x in logits]
    return float(np.mean([score >= STABLE for score in scores]))


def _iou(masks_RMYX: Tensor, truth_R1YX: Tensor) -> Tensor:
    inter = (masks_RMYX & truth_R1YX).sum(dim=(2, 3)).float()
    return inter / (masks_RMYX | truth_R1YX).sum(dim=(2, 3)).float().clamp(min=1)
