"""Point prompts through SAM's transformer, a batch at a time, without waiting for the device."""

# Shape letters:  P points of one batch, one prompt each   T tokens, N image tokens, D width
#                 H, W embedding grid   E = D, or 4 D with high-res features

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sca_batch.model.sca import ScaModel
from sca_batch.regions.masks import FIRST_OF_THREE

__all__ = ["FusedBatch", "fused_batches", "one_ahead"]

Floats = npt.NDArray[np.float64]
T = TypeVar("T")

_CACHE_BYTES = 4 << 20  # of a core, more or less


@dataclass(frozen=True, slots=True, eq=False)
class FusedBatch:
    """A batch of point prompts after SAM's transformer.

    `tokens` (P, T, D) and `features` (P, N, D) are on the device, `estimates` (P, 3) on its way
    to the host until `arrived`.
    """

    first_point: int
    tokens: Tensor
    features: Tensor
    estimates: Tensor
    arrived: torch.Event | None

    def iou(self) -> npt.NDArray[np.float32]:
        """SAM's estimate for each of the three masks of each point, (P, 3)."""
        if self.arrived is not None:
            self.arrived.synchronize()
        iou_P3: npt.NDArray[np.float32] = self.estimates.numpy()
        return iou_P3


def fused_batches(
    model: ScaModel, embedding_1EHW: Tensor, points_P2: Floats, batch_size: int
) -> Iterator[FusedBatch]:
    """All points of one image, in the model's frame, at most `batch_size` at a time."""
    batches = _start_batches(model, embedding_1EHW, points_P2, batch_size)
    # Which masks survive is read one batch late, so that a GPU has the next one to work on.
    return one_ahead(batches) if model.device.type == "cuda" else batches


def _start_batches(
    model: ScaModel, embedding_1EHW: Tensor, points_P2: Floats, batch_size: int
) -> Iterator[FusedBatch]:
    batch_size = min(batch_size, _most_points(model))
    points_P12 = torch.from_numpy(points_P2)[:, None].to(model.device)
    for first in range(0, len(points_P12), batch_size):
        tokens_PTD, features_PND = model.fuse_prompts(
            embedding_1EHW, points_RP2=points_P12[first : first + batch_size]
        )
        iou_P3 = model.predict_iou(tokens_PTD)[:, FIRST_OF_THREE:]
        arrived = None
        if model.device.type == "cuda":
            iou_P3 = torch.empty(iou_P3.shape, pin_memory=True).copy_(iou_P3, non_blocking=True)
            arrived = torch.Event(model.device)
            # Of the model's device, which need not be the current one: else it waits for nothing.
            arrived.record(torch.cuda.current_stream(model.device))
        yield FusedBatch(first, tokens_PTD, features_PND, iou_P3, arrived)


def _most_points(model: ScaModel) -> int:
    """Points that torch is given at a time: on a CPU, as many as its caches hold tokens of.

    Image tokens are read and written some forty times for a prompt. A batch that leaves the caches
    takes 1.2 times as long (`benchmarks/decoder.py`, SAM's sizes, 32 points against one).
    """
    if model.device.type != "cpu" or "decoder" in model.engines:
        return sys.maxsize
    bytes_of_point = 4 * model.config.grid_size**2 * model.config.width
    return max(1, torch.get_num_threads() * _CACHE_BYTES // bytes_of_point)


def one_ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, each when the one after it has been started."""
    waiting: list[T] = []
    for item in items:
        yield from waiting
        waiting = [item]
    yield from waiting
