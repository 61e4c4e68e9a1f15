"""After training: sets SAM's two quality scores right, and leaves every mask as it is."""

# Shape letters:  R prompts   M masks (4)   D prompt width   N objects   P pixels of the input

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from sca_batch.images import preprocess
from sca_batch.model.sca import PromptableSam
from sca_batch.train.scenes.compose import Scene

__all__ = ["Calibration", "calibrate"]

POINTS_PER_SIDE = 8
EPOCHS = 60
BATCH = 256
GOOD_IOU = 0.75
GOOD_PER_SCENE = 20
STABLE_SHARE = 0.9  # of good masks that are to pass SAM's default stability threshold of 0.95
STABLE = 0.95


@dataclass(frozen=True, slots=True)
class Calibration:
    """Mean squared error of predicted IoU before and after, and what logits were multiplied by."""

    iou_error_before: float
    iou_error_after: float
    logit_factor: float


def calibrate(model: PromptableSam, scenes: Iterable[Scene]) -> Calibration:
    """Fits the IoU head anew and enlarges mask logits, on scenes that nothing else has seen.

    During training the IoU head learns an estimate from low-res cells, for the object that a
    prompt means. Here it learns the IoU at full resolution with whichever object the mask fits
    best: for a point on the background that still gives a clean mask of its neighbour, that is
    what a threshold on proposals should go by.

    A stability score compares thresholds of plus and minus one, which means little for small
    logits on cells 4 pixels wide. Larger ones have the same zero line.
    """
    found = [_of_scene(model, scene) for scene in scenes]
    tokens_RD, truth_RM, good = (
        torch.cat([row[0] for row in found]),
        torch.cat([row[1] for row in found]),
        [logits for row in found for logits in row[2]],
    )
    head = model.mask_decoder.iou_prediction_head
    before, after = _fit(head, tokens_RD, truth_RM)
    factor = next((f for f in (1.0, 2.0, 4.0, 8.0) if _stable_share(good, f) >= STABLE_SHARE), 16.0)
    with torch.no_grad():
        for mlp in model.mask_decoder.output_hypernetworks_mlps:
            mlp.proj_out.weight.mul_(factor)
            mlp.proj_out.bias.mul_(factor)
    return Calibration(before, after, factor)


@torch.no_grad()
def _of_scene(model: PromptableSam, scene: Scene) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The IoU token (R, D) and true IoUs (R, M) of a grid of points and of all boxes.

    Also the full logits of some good masks.
    """
    size = model.config.image_size
    device = model.device
    pixels = torch.from_numpy(preprocess(scene.image, size))[None]
    embedding = model.encode_image(pixels.to(device))
    steps = (np.arange(POINTS_PER_SIDE) + 0.5) * size / POINTS_PER_SIDE
    points = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 1, 2)
    prompts = (
        model.fuse_prompts(embedding, points_RP2=torch.from_numpy(points).to(device)),
        model.fuse_prompts(embedding, boxes_R4=torch.from_numpy(scene.boxes_xyxy).to(device)),
    )
    objects_NP = torch.from_numpy(scene.masks).to(device).flatten(1).float()
    ious, good = [], []
    for tokens, features in prompts:
        logits_RMP = nn.functional.interpolate(
            model.predict_masks(tokens, features, embedding), (size, size), mode="bilinear"
        ).flatten(2)
        masks_RMP = (logits_RMP > 0).float()
        inter_RMN = masks_RMP @ objects_NP.T
        union_RMN = masks_RMP.sum(-1, keepdim=True) + objects_NP.sum(-1) - inter_RMN
        iou_RM = (inter_RMN / union_RMN.clamp(min=1)).amax(dim=-1)
        ious.append(iou_RM)
        good += list(logits_RMP[iou_RM >= GOOD_IOU])
    stride = max(1, len(good) // GOOD_PER_SCENE)
    return (
        torch.cat([tokens[:, 0] for tokens, _ in prompts]),
        torch.cat(ious),
        # A copy, or each mask would keep the logits of all.
        [logits.clone() for logits in good[::stride]],
    )


def _fit(head: nn.Module, tokens_RD: Tensor, truth_RM: Tensor) -> tuple[float, float]:
    """Trains the head on frozen tokens; returns its mean squared error before and after."""

    def error(rows: slice | Tensor) -> Tensor:
        return nn.functional.mse_loss(head(tokens_RD[rows]), truth_RM[rows])

    with torch.no_grad():
        before = error(slice(None)).item()
    head.requires_grad_(True)  # a stage may have frozen it
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=0.01)
    generator = torch.Generator().manual_seed(0)
    num_steps = EPOCHS * max(1, len(tokens_RD) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    with torch.enable_grad():
        for _ in range(num_steps):
            rows = torch.randint(len(tokens_RD), (BATCH,), generator=generator)
            loss = error(rows.to(tokens_RD.device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        return before, error(slice(None)).item()


def _stable_share(logits: list[Tensor], factor: float) -> float:
    if not logits:  # hardly trained: nothing to set right
        return 1.0
    scores = [float((x * factor > 1).sum() / (x * factor > -1).sum().clamp(min=1)) for x in logits]
    return float(np.mean([score >= STABLE for score in scores]))
