"""Regions that came with the manifest: boxes, points, both, or masks."""

# Shape letters:  R prompts of one batch   M masks (4)   D width   H, W embedding grid

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sca_batch.boxes import clip_xyxy, rle_area, rle_box_xyxy
from sca_batch.errors import ImageError
from sca_batch.model.sca import ScaModel
from sca_batch.records import BoxXYXY, Prompt, Region, Rle
from sca_batch.regions.masks import FIRST_OF_THREE, encode_masks, mask_logits
from sca_batch.regions.proposal import (
    ModelPrompt,
    Proposal,
    batches_by_layout,
    frame_prompt,
    prompt_tensors,
)

__all__ = ["given_regions"]


@torch.inference_mode()
def given_regions(
    model: ScaModel,
    embedding_1DHW: Tensor | None,
    size_hw: tuple[int, int],
    prompts: Sequence[Prompt],
    *,
    with_masks: bool = True,
    prompts_per_batch: int = 64,
    mask_memory_bytes: int = 1 << 30,
) -> list[Proposal]:
    """One region for each prompt, in their order.

    A given mask stays as it is, without SAM's opinion of it. Otherwise the mask is, of SAM's
    three, the one with the highest predicted IoU. Where it is empty the region has the prompt's
    box, cut to the image, and area 0.

    Args:
        embedding_1DHW: the image's; None will do where no mask is to be made.
        with_masks: False makes no masks for prompts that have a box: their regions have that box,
            cut to the image, and its area. Prompts of points alone get a box only from a mask,
            so theirs is made all the same.

    Raises:
        ImageError: with code `mask_size`, for a mask that is not of the image's size.
    """
    framed = [_model_prompt(p, size_hw, model.config.image_size, i) for i, p in enumerate(prompts)]
    regions = [_maskless(prompt, size_hw) for prompt in prompts]
    wanted = [
        i
        for i, prompt in enumerate(prompts)
        if prompt.mask_rle is None and (with_masks or prompt.box_xyxy is None)
    ]
    for batch in batches_by_layout([framed[i] for i in wanted], prompts_per_batch):
        assert embedding_1DHW is not None, "masks are made from the image's embedding"
        indices = [wanted[b] for b in batch]
        found = _best_masks(
            model, embedding_1DHW, [framed[i] for i in indices], size_hw, mask_memory_bytes
        )
        for i, (rle, predicted_iou) in zip(indices, found, strict=True):
            regions[i] = _region(
                prompts[i],
                box_xyxy=rle_box_xyxy(rle) if rle_area(rle) else regions[i].box_xyxy,
                area=rle_area(rle),
                mask_rle=rle,
                predicted_iou=predicted_iou,
            )
    return [Proposal(region, prompt) for region, prompt in zip(regions, framed, strict=True)]


def _best_masks(
    model: ScaModel,
    embedding_1DHW: Tensor,
    prompts: Sequence[ModelPrompt],
    size_hw: tuple[int, int],
    mask_memory_bytes: int,
) -> list[tuple[Rle, float]]:
    """For each prompt of one layout, the mask that SAM likes best, and how much."""
    tokens_RTD, features_RND = model.fuse_prompts(
        embedding_1DHW, **prompt_tensors(prompts, model.device)
    )
    iou_R3 = model.predict_iou(tokens_RTD)[:, FIRST_OF_THREE:].cpu().numpy()
    best_R = iou_R3.argmax(axis=1)
    rles: list[Rle] = []
    for _, logits_RHW in mask_logits(
        model,
        tokens_RTD,
        features_RND,
        embedding_1DHW,
        prompt_M=np.arange(len(prompts)),
        mask_M=best_R + FIRST_OF_THREE,
        size_hw=size_hw,
        mask_memory_bytes=mask_memory_bytes,
    ):
        rles += encode_masks(logits_RHW > 0)
    return [(rle, float(iou_R3[i, best_R[i]])) for i, rle in enumerate(rles)]


def _model_prompt(
    prompt: Prompt, size_hw: tuple[int, int], image_size: int, position: int
) -> ModelPrompt:
    """The prompt that SAM is shown: the points, the box, both, or the box of the mask."""
    if prompt.mask_rle is None:
        return frame_prompt(
            size_hw,
            image_size,
            box_xyxy=prompt.box_xyxy,
            points_xy=prompt.points_xy,
            labels=prompt.labels,
        )
    mask_hw = tuple(int(side) for side in prompt.mask_rle["size"])
    if mask_hw != tuple(size_hw):
        raise ImageError(
            "mask_size",
            f"mask {prompt.prompt_id or position} is {mask_hw[0]} x {mask_hw[1]} pixels, "
            f"the image {size_hw[0]} x {size_hw[1]} (height x width)",
        )
    return frame_prompt(size_hw, image_size, box_xyxy=rle_box_xyxy(prompt.mask_rle))


def _maskless(prompt: Prompt, size_hw: tuple[int, int]) -> Region:
    """The region as far as it is known without SAM."""
    if prompt.mask_rle is not None:
        rle = prompt.mask_rle
        return _region(prompt, box_xyxy=rle_box_xyxy(rle), area=rle_area(rle), mask_rle=rle)
    if prompt.box_xyxy is not None:
        corners = prompt.box_xyxy
    else:
        points = np.asarray(prompt.points_xy)
        corners = (*points.min(axis=0).tolist(), *points.max(axis=0).tolist())
    x0, y0, x1, y1 = clip_xyxy(corners, size_hw).tolist()
    return _region(prompt, box_xyxy=(x0, y0, x1, y1), area=round((x1 - x0) * (y1 - y0)))


def _region(
    prompt: Prompt,
    *,
    box_xyxy: BoxXYXY,
    area: int,
    mask_rle: Rle | None = None,
    predicted_iou: float | None = None,
) -> Region:
    return Region(
        box_xyxy=box_xyxy,
        area=area,
        prompt_type=prompt.prompt_type,
        mask_rle=mask_rle,
        predicted_iou=predicted_iou,
        points_xy=prompt.points_xy or None,
        labels=prompt.labels or None,
        prompt_box_xyxy=prompt.box_xyxy,
        prompt_id=prompt.prompt_id,
    )
