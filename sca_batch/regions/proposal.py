"""A region together with what SAM is shown for it, and how such prompts form batches."""

# Shape letters:  R regions, from any number of images   P points in one prompt
#                 D prompt width   H, W embedding grid

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

import numpy as np
import torch
from torch import Tensor

from sca_batch.boxes import to_model_frame
from sca_batch.records import BoxXYXY, Region

__all__ = [
    "ModelPrompt",
    "PromptTensors",
    "Proposal",
    "batches_by_layout",
    "frame_prompt",
    "prompt_tensors",
    "proposal_prompts",
]


@dataclass(frozen=True, slots=True, eq=False)
class ModelPrompt:
    """The prompt that SAM is shown for one region, in pixels of its square input.

    A point in a crop belongs to `crop_embedding` (1, D, H, W); None means the embedding of the
    whole image.
    """

    box_xyxy: BoxXYXY | None = None
    points_xy: tuple[tuple[float, float], ...] = ()
    labels: tuple[int, ...] = ()
    crop_embedding: Tensor | None = None

    @property
    def layout(self) -> tuple[int, bool]:
        """Number of points, and whether there is a box: only equal layouts may share a batch."""
        return len(self.points_xy), self.box_xyxy is not None


@dataclass(frozen=True, slots=True, eq=False)
class Proposal:
    """A region that may be captioned, and the prompt it was found or given with."""

    region: Region
    prompt: ModelPrompt


class PromptTensors(TypedDict):
    """The prompt arguments of `ScaModel.fuse_prompts` and `region_queries`, coordinates float64."""

    boxes_R4: Tensor | None
    points_RP2: Tensor | None
    labels_RP: Tensor | None


def frame_prompt(
    size_hw: tuple[int, int],
    image_size: int,
    *,
    box_xyxy: BoxXYXY | None = None,
    points_xy: Sequence[tuple[float, float]] = (),
    labels: Sequence[int] = (),
    crop_embedding: Tensor | None = None,
) -> ModelPrompt:
    """A prompt in pixels of an image (or crop) of `size_hw`, brought to the model's frame.

    Nothing is clipped. Points without labels lie on the region.
    """
    box: BoxXYXY | None = None
    if box_xyxy is not None:
        x0, y0, x1, y1 = to_model_frame(box_xyxy, size_hw, image_size).tolist()
        box = (x0, y0, x1, y1)
    points = to_model_frame(np.reshape(points_xy, (-1, 2)), size_hw, image_size).tolist()
    return ModelPrompt(
        box_xyxy=box,
        points_xy=tuple((x, y) for x, y in points),
        labels=tuple(labels) or (1,) * len(points),
        crop_embedding=crop_embedding,
    )


def proposal_prompts(
    proposals: Sequence[Proposal],
    how: Literal["box", "point"],
    size_hw: tuple[int, int],
    image_size: int,
) -> list[ModelPrompt]:
    """The prompts that the regions of one image are captioned from.

    `how` concerns proposed regions only. "box" is the region's own box on the whole image's
    embedding; "point" is the grid point it was found with, on the embedding of that point's crop.
    A given region is prompted with what was given.
    """
    return [
        frame_prompt(size_hw, image_size, box_xyxy=proposal.region.box_xyxy)
        if how == "box" and proposal.region.prompt_type == "grid_point"
        else proposal.prompt
        for proposal in proposals
    ]


def batches_by_layout(prompts: Sequence[ModelPrompt], batch_size: int) -> Iterator[list[int]]:
    """Indices of prompts that may share a batch, at most `batch_size`, in order within a layout.

    Prompts of different token counts are never padded to one length: SAM attends to padding.
    """
    by_layout: dict[tuple[int, bool], list[int]] = {}
    for i, prompt in enumerate(prompts):
        by_layout.setdefault(prompt.layout, []).append(i)
    for indices in by_layout.values():
        for start in range(0, len(indices), batch_size):
            yield indices[start : start + batch_size]


def prompt_tensors(prompts: Sequence[ModelPrompt], device: torch.device) -> PromptTensors:
    """Prompts of one layout as arguments of `ScaModel.fuse_prompts`."""
    assert len({prompt.layout for prompt in prompts}) == 1, "prompts of one batch differ in layout"
    num_points, has_box = prompts[0].layout
    boxes = [prompt.box_xyxy for prompt in prompts] if has_box else None
    points = [prompt.points_xy for prompt in prompts] if num_points else None
    labels = [prompt.labels for prompt in prompts] if num_points else None
    return {
        "boxes_R4": None if boxes is None else _on(device, boxes, torch.float64),
        "points_RP2": None if points is None else _on(device, points, torch.float64),
        "labels_RP": None if labels is None else _on(device, labels, torch.long),
    }


def _on(device: torch.device, values: Sequence[object], dtype: torch.dtype) -> Tensor:
    return torch.tensor(values, dtype=dtype).to(device)
