"""After training: sets SAM's two quality scores right, and leaves every mask as it is."""

# Shape letters:  R prompts   M masks (4)   D prompt width   N objects   P pixels of the input

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from sca_batch.images.pixels import preprocess
from sca_batch.model.sca import PromptableSam
from sca_tiny.scenes.compose import Scene

__all__ = ["Calibration", "calibrate"]

POINTS_PER_SIDE = 5  # many scenes teach more than many points of one
HELD_OUT = 10  # one scene in ten says when to stop
EPOCHS = 20
DROPOUT = 0.1
BATCH = 256
GOOD_IOU = 0.75
GOOD_PER_SCENE = 6
STABLE_SHARE = 0.9  # of good masks that are to pass SAM's default stability threshold of 0.95
STABLE = 0.95


@dataclass(frozen=True, slots=True)
class Calibration:
    """Mean squared error of predicted IoU before and after, and what logits were multiplied by.

    The errors are those on scenes that the head was not fitted to.
    """

    iou_error_before: float
    iou_error_after: float
    logit_factor: float


def calibrate(model: PromptableSam, scenes: Iterable[Scene]) -> Calibration:
    """Fits the IoU head anew and enlarges mask logits, on scenes that nothing else has seen.

    During training the IoU head learns an estimate from low-res cells, for the object that a
    prompt means. Here it learns the IoU at full resolution with whichever object the mask fits
    best: for a point on the background that still gives a clean mask of its neighbour, that is
    what a threshold on proposals should go by.

    Fitted to the end the head would know these scenes by heart, and say 1.3 of others' masks: what
    is kept are the weights of the epoch that was best on scenes it is not fitted to.

    A stability score compares thresholds of plus and minus one, which means little for small
    logits on cells 4 pixels wide. Larger ones have the same zero line.
    """
    found = [_of_scene(model, scene) for scene in scenes]
    good = [logits for row in found for logits in row[2]]
    held_out = found[::HELD_OUT]
    fitted = [row for i, row in enumerate(found) if i % HELD_OUT] or held_out
    head = model.mask_decoder.iou_prediction_head
    before, after = _fit(head, _stacked(fitted), _stacked(held_out))
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
    rng = np.random.default_rng(scene.seed)
    steps = [(np.arange(POINTS_PER_SIDE) + part) * size / POINTS_PER_SIDE for part in rng.random(2)]
    points = np.stack(np.meshgrid(*steps), axis=-1).reshape(-1, 1, 2)
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


def _stacked(rows: Sequence[tuple[Tensor, Tensor, list[Tensor]]]) -> tuple[Tensor, Tensor]:
    return torch.cat([row[0] for row in rows]), torch.cat([row[1] for row in rows])


def _fit(
    head: nn.Module, seen: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor]
) -> tuple[float, float]:
    """Trains the head on frozen tokens; returns its mean squared error before and after.

    Each side is tokens (R, D) and true IoUs (R, M); the errors are those on `held_out`.
    """
    tokens_RD, truth_RM = seen

    def error() -> float:
        with torch.no_grad():
            return nn.functional.mse_loss(head(held_out[0]), held_out[1]).item()

    before = best = error()
    kept = copy.deepcopy(head.state_dict())
    head.requires_grad_(True)  # a stage may have frozen it
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    with torch.enable_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(EPOCHS):
            order = torch.randperm(len(tokens_RD)).to(tokens_RD.device)
            for first in range(0, len(order), BATCH):
                rows = order[first : first + BATCH]
                guessed_RM = head(nn.functional.dropout(tokens_RD[rows], DROPOUT))
                loss = nn.functional.mse_loss(guessed_RM, truth_RM[rows])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            schedule.step()
            if (now := error()) < best:
                best, kept = now, copy.deepcopy(head.state_dict())
    head.load_state_dict(kept)
    return before, best


def _stable_share(logits: list[Tensor], factor: float) -> float:
    if not logits:  # hardly trained: nothing to set right
        return 1.0
    scores = [float((x * factor > 1).sum() / (x * factor > -1).sum().clamp(min=1)) for x in logits]
    return float(np.mean([score >= STABLE for score in scores]))
